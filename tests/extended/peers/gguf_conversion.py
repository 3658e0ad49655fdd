"""Runs llama.cpp's own convert_hf_to_gguf.py on a checkpoint whose tokenizer that program has never seen.

Called as `gguf_conversion.py LLAMA_CPP_SOURCE CHECKPOINT OUTFILE FLOATS`, where FLOATS is f32 or bf16. Two things are
told to the converter, nothing else: the name of the pre-tokenizer, by the regular expression in tokenizer.json (the
converter knows tokenizers by a hash),
and other spellings for the added tokens: llama-perplexity never reads a control token from text, so each added token
becomes an ordinary user-defined token spelled as one private-use character (see `spelling`). Ids do not change.
"""

import json
import sys
from pathlib import Path
from typing import Any

FIRST_SPELLING = 0xF0000
GPT2 = "gpt-2"
USER_DEFINED = 4  # gguf.TokenType.USER_DEFINED, which text may always spell
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|"
ENDS = r"[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PRE_TOKENIZERS = {
    CONTRACTIONS + r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+" + ENDS: "qwen2",
    CONTRACTIONS + r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+" + ENDS: "qwen35",
}


def spelling(order: int) -> str:
    """The character that stands for the added token of this order, counted by ascending id."""
    return chr(FIRST_SPELLING + order)


def added_tokens(checkpoint: Path) -> dict[str, int]:
    """Text and id of every added token of tokenizer.json, by ascending id."""
    described = json.loads((checkpoint / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
    return {token["content"]: token["id"] for token in sorted(described, key=lambda token: token["id"])}


def pre_tokenizer(checkpoint: Path) -> str:
    """llama.cpp's name of this tokenizer's pre-tokenizer; ends the program when its expression is not one we know."""
    described = json.loads((checkpoint / "tokenizer.json").read_text(encoding="utf-8"))["pre_tokenizer"]
    steps = described.get("pretokenizers", [described])
    if len(steps) == 1 and steps[0]["type"] == "ByteLevel" and steps[0]["use_regex"]:
        return GPT2
    expressions = [step["pattern"].get("Regex") for step in steps if step["type"] == "Split"]
    if len(expressions) == 1 and expressions[0] in PRE_TOKENIZERS:
        return PRE_TOKENIZERS[expressions[0]]
    sys.exit(f"{checkpoint / 'tokenizer.json'}: llama.cpp's name for this pre-tokenizer is not known here: {steps}")


def convert(source: Path, checkpoint: Path, outfile: Path, floats: str) -> None:
    """Write the checkpoint as a GGUF file whose matrices are of the type `floats`."""
    sys.path[:0] = [str(source), str(source / "gguf-py")]
    from conversion.base import TextModel  # type: ignore[import-not-found]
    from convert_hf_to_gguf import main  # type: ignore[import-not-found]

    original = TextModel.get_vocab_base

    def respelled(model: Any) -> tuple[list[str], list[int], str]:
        tokens, types, pre = original(model)
        for order, identity in enumerate(added_tokens(checkpoint).values()):
            tokens[identity], types[identity] = spelling(order), USER_DEFINED
        return tokens, types, pre

    TextModel.get_vocab_base = respelled
    TextModel.get_vocab_base_pre = lambda model, tokenizer: pre_tokenizer(checkpoint)
    TextModel.set_vocab = lambda model: model._set_vocab_gpt2()
    sys.argv[1:] = [str(checkpoint), "--outfile", str(outfile), "--outtype", floats, "--no-mtp"]
    main()


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
