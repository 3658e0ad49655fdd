"""A made-up language for synthetic models: a byte-level BPE tokenizer, and texts whose tokens keep to a topic.

The vocabulary is built, not trained: single bytes, then syllables, then words of two syllables, with and without the
space before them, each merged from the two parts before it. So every word is one token, whichever way a text is read,
and the same vocabulary comes out everywhere. Written as published models have it: Qwen2's splitting expression.
"""

from collections.abc import Iterator
from itertools import islice, product
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CONSONANTS, VOWELS = "bcdfghjklmnprstvwyz", "aeiou"
STAY = 0.93  # the probability that a text keeps to its topic from a word to the next
END, SPACE = "<|endoftext|>", "Ġ"  # the byte-level alphabet's letter for a space


def tokenizer(vocab: int) -> Tokenizer:
    """A tokenizer of at most `vocab` tokens. Raises ValueError if they do not hold the bytes and a few words."""
    merges = list(islice(_merges(), vocab - 1 - 256))
    if len(merges) < 128:
        raise ValueError(f"a vocabulary of {vocab} tokens has no room for words; give 512 or more")
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(first + second for first, second in merges)]
    made = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    split = pre_tokenizers.Split(Regex(SPLIT), "isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([END])
    return made


def _merges() -> Iterator[tuple[str, str]]:
    """Pairs of tokens in the order in which they are merged: syllables, then words, each before its spaced form."""
    syllables = [consonant + vowel for consonant, vowel in product(CONSONANTS, VOWELS)]
    yield from product(CONSONANTS, VOWELS)
    for first, second in product(syllables, syllables):
        yield first, second
        yield SPACE, first + second


def write_tokenizer(vocab: int, directory: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json beside a checkpoint's config.json."""
    tokenizer(vocab).save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(
        f'{{"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "{END}"}}'
    )


def text(vocab: int, topics: int, words: int, seed: int = 0, *, stay: float = STAY) -> str:
    """Random words, each a token; a word is of the topic before it with probability `stay`, else of a random one.

    Topics are as in synthetic.Routing: token modulo `topics`.
    """
    random = np.random.default_rng(seed)
    made = tokenizer(vocab)
    spaced = [made.token_to_id(token) for token in made.get_vocab() if token.startswith(SPACE) and len(token) > 2]
    shelves = [[token for token in spaced if token % topics == topic] for topic in range(topics)]
    shelves = [shelf for shelf in shelves if shelf]
    tokens, topic = [], 0
    for moves in random.random(words) >= stay:
        topic = int(random.integers(len(shelves))) if moves else topic
        tokens.append(int(random.choice(shelves[topic])))
    return made.decode(tokens)
