"""Text to token ids and back, by the pack's tokenizer.json.

Owns the vocabulary's special facts too: which tokens end an answer, and the named special tokens a chat template may
use. Promises that streamed text is never half a character and that its pieces joined are what decoding all tokens at
once gives. Knows nothing of chats or of the model.
"""

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any

import msgspec
from msgspec import Raw, Struct
from tokenizers import Encoding
from tokenizers import Tokenizer as Vocabulary
from tokenizers.models import BPE

from ..manifests import canonical
from ..manifests.errors import CorruptInputError, UnsupportedError, UsageError
from ._native import trim_heap
from .packfiles import PackFiles

FILE = "tokenizer.json"
MAX_TOKENIZER_BYTES = 32 * 1024 * 1024  # 250,000 tokens take 15 MiB; reading takes some ten times that
MAX_PATTERN = 2048  # characters of a regular expression
MAX_REPEATS = 10_000  # what its counted repetitions multiply to: each of them is compiled so many times
CACHED_WORDS = 1000  # whose tokens the library remembers in each thread: its 10,000 add up in a server
REPLACEMENT = "\ufffd"  # what a decoder shows for bytes that are not, or not yet, a character
NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class Tokenizer:
    """The pack's tokenizer. `end_tokens` end an answer; `named_tokens` maps "bos_token" and the like to their text."""

    def __init__(
        self, vocabulary: Vocabulary, vocab_size: int, end_tokens: Iterable[int], named_tokens: Mapping[str, str]
    ) -> None:
        self._vocabulary = vocabulary
        self._vocab_size = vocab_size
        self.end_tokens = frozenset(end_tokens)
        self.named_tokens = dict(named_tokens)

    @classmethod
    def open(cls, files: PackFiles, vocab_size: int) -> "Tokenizer":
        """The tokenizer of a pack whose model has `vocab_size` tokens.

        Raises UsageError when the pack has none, CorruptInputError when it or a config beside it is malformed.
        """
        if FILE not in files:
            raise UsageError(f"{files.path} has no {FILE}; build the pack again from a checkpoint that has one")
        vocabulary = _parse(files)
        named = _named_tokens(files)
        ends = {*_configured_ends(files, vocab_size), *_named_end(vocabulary, named)}
        return cls(vocabulary, vocab_size, ends, named)

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """The ids of `text`; the tokenizer's own frame (such as a first token) only with `add_special_tokens`.

        Raises UsageError for text that has no UTF-8 form, CorruptInputError for an id that the model lacks.
        """
        ids: list[int] = self._encoding(text, add_special_tokens=add_special_tokens).ids
        return ids

    def encode_cut(self, text: str, cuts: Iterable[int]) -> tuple[list[int], list[int]]:
        """The ids of `text` without a frame, and how many of them lie before each of the cuts, counted in characters.

        A cut inside of a token is left out. Raises as `encode` does.
        """
        encoding = self._encoding(text, add_special_tokens=False)
        places = encoding.offsets
        counts = {cut: bisect_right(places, cut, key=lambda place: place[1]) for cut in cuts}
        whole = [n for cut, n in counts.items() if n == len(places) or places[n][0] >= cut]
        return encoding.ids, whole

    def _encoding(self, text: str, *, add_special_tokens: bool) -> Encoding:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise UsageError("the text is not valid UTF-8, so it has no tokens; check how it was passed") from error
        with _faults_of_the_library(f"{FILE} fails on this text"):
            encoding = self._vocabulary.encode(text, add_special_tokens=add_special_tokens)
        if (highest := max(encoding.ids, default=0)) >= self._vocab_size:
            raise CorruptInputError(
                f"{FILE} made token {highest}, but the model has only {self._vocab_size}: they are not of one model"
            )
        return encoding

    def decode(self, tokens: Sequence[int], *, special: bool = False) -> str:
        """The text of `tokens`; special tokens are left out unless `special`. Ids without a text give none."""
        with _faults_of_the_library(f"{FILE} fails on these tokens"):
            text: str = self._vocabulary.decode(list(tokens), skip_special_tokens=not special)
        return text

    @property
    def vocab_size(self) -> int:
        """How many tokens the model has, of which some may have no text."""
        return self._vocab_size

    @property
    def special(self) -> dict[int, str]:
        """The texts of special tokens, by id."""
        added = self._vocabulary.get_added_tokens_decoder()
        return {token: entry.content for token, entry in added.items() if entry.special}

    def json(self) -> str:
        """The tokenizer.json that this tokenizer follows."""
        text: str = self._vocabulary.to_str()
        return text

    def stream(self, *, special: bool = False) -> "TextStream":
        """A fresh decoder for tokens that arrive one by one."""
        return TextStream(self, special=special)


class TextStream:
    """Decodes tokens as they come; text that may still change (an unfinished character) waits for the next token.

    Only a window of tokens is decoded again each time: the last ones that gave whole text, as context (decoders may
    treat the first token of a text differently), and those after them.
    """

    def __init__(self, tokenizer: Tokenizer, *, special: bool) -> None:
        self._tokenizer, self._special = tokenizer, special
        self._window: list[int] = []
        self._context = 0  # leading tokens of the window whose text is out
        self._shown = 0  # characters of the window's text that are out

    def push(self, token: int) -> str:
        """The text that `token` completes, often its own, sometimes none."""
        self._window.append(token)
        text = self._decode(self._window)
        whole = text.rstrip(REPLACEMENT)
        piece = whole[self._shown :]
        self._shown += len(piece)
        if piece and whole == text:
            self._slide()
        return piece

    def finish(self) -> str:
        """The text still waiting, unfinished characters shown as U+FFFD; the stream is then empty."""
        rest = self._decode(self._window)[self._shown :]
        self._window, self._context, self._shown = [], 0, 0
        return rest

    def _slide(self) -> None:
        del self._window[: self._context]
        self._context = len(self._window)
        self._shown = len(self._decode(self._window))

    def _decode(self, tokens: Sequence[int]) -> str:
        return self._tokenizer.decode(tokens, special=self._special)


def _parse(files: PackFiles) -> Vocabulary:
    content = files.read(FILE, MAX_TOKENIZER_BYTES)
    where = str(files.path / FILE)
    _check_parts(content, where)
    with _faults_of_the_library(f"{where} is not a tokenizer"):
        vocabulary = Vocabulary.from_buffer(content)
    trim_heap()  # parsing takes twice what it leaves
    vocabulary.no_truncation()  # a file may ask for either; both would change a prompt silently
    vocabulary.no_padding()
    if isinstance(vocabulary.model, BPE):
        vocabulary.model._resize_cache(CACHED_WORDS)  # no file can ask for it, and there is no public way
    return vocabulary


@contextmanager
def _faults_of_the_library(what: str) -> Iterator[None]:
    """A block in which the library may raise bare Exceptions for some faults, and panics, which are not even that."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise CorruptInputError(f"{what}: {' '.join(str(error).split()):.300}") from error


class _Model(Struct):
    vocab: Raw = Raw(b"{}")


class _Parts(Struct):
    """What of a tokenizer.json must be looked at before the library compiles it; the vocabulary is stepped over."""

    model: _Model
    normalizer: Raw = Raw(b"null")
    pre_tokenizer: Raw = Raw(b"null")
    post_processor: Raw = Raw(b"null")
    decoder: Raw = Raw(b"null")


def _check_parts(content: bytes, where: str) -> None:
    try:
        parts = msgspec.json.decode(content, type=_Parts)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CorruptInputError(f"{where} is not a tokenizer: {error}") from error
    if not bytes(parts.model.vocab).startswith(b"{"):  # a tree of one node per character, of hundreds of bytes
        raise UnsupportedError(f"{where} has no vocabulary by token, such as BPE's; unigram models are not supported")
    for part in (parts.normalizer, parts.pre_tokenizer, parts.post_processor, parts.decoder):
        for pattern in _patterns(canonical.decode(bytes(part), where)):
            _check_pattern(pattern, where)


def _patterns(part: Any) -> Iterator[str]:
    """Every regular expression in a decoded part of a tokenizer."""
    if isinstance(part, dict) and isinstance(part.get("Regex"), str):
        yield part["Regex"]
    for inner in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
        yield from _patterns(inner)


def _check_pattern(pattern: str, where: str) -> None:
    counts = (int(count) for count in re.findall(r"(?<=[{,])\d{1,9}(?=[,}])", pattern) if int(count))
    if len(pattern) > MAX_PATTERN or prod(counts) > MAX_REPEATS or re.search(r"\{,?\d{10}|,\d{10}", pattern):
        raise CorruptInputError(f"{where} has a regular expression that is too large: {pattern!r:.100}")


def _named_tokens(files: PackFiles) -> dict[str, str]:
    """The named special tokens of tokenizer_config.json, which writes each as a text or as an object with one."""
    config = files.json("tokenizer_config.json")
    found = {}
    for name in NAMED_TOKENS:
        value = config.get(name)
        text = value.get("content") if isinstance(value, dict) else value
        if text is not None and not isinstance(text, str):
            raise CorruptInputError(f"{files.path / 'tokenizer_config.json'}: {name} is not a text")
        if text is not None:
            found[name] = text
    return found


def _configured_ends(files: PackFiles, vocab_size: int) -> list[int]:
    """eos_token_id of generation_config.json, else of config.json (flat, or of its text_config)."""
    config = files.json("config.json")
    text_config = config.get("text_config")
    for name, values in (
        ("generation_config.json", files.json("generation_config.json")),
        ("config.json", config),
        ("config.json", text_config if isinstance(text_config, dict) else {}),
    ):
        if values.get("eos_token_id") is not None:
            return _ids(values["eos_token_id"], f"{files.path / name}: eos_token_id", vocab_size)
    return []


def _ids(value: Any, where: str, vocab_size: int) -> list[int]:
    ids = value if isinstance(value, list) else [value]
    for item in ids:
        if type(item) is not int or not 0 <= item < vocab_size:
            raise CorruptInputError(f"{where} is {item!r}, not one of the model's {vocab_size} tokens")
    return ids


def _named_end(vocabulary: Vocabulary, named: Mapping[str, str]) -> list[int]:
    """The tokenizer's own end token: configs of chat models often name only the end of a document."""
    token = vocabulary.token_to_id(named["eos_token"]) if "eos_token" in named else None
    return [] if token is None else [token]
