"""Builds the training corpus: Python help text and source, a tokenizer, and what chat.py needs for conversations.

Sources (see README.md for licences):
  * the Python documentation as installed by the Debian package python3.11-doc (--docs),
  * the Python Enhancement Proposals, a checkout of https://github.com/python/peps (--peps),
  * the standard library of the Python that runs this script: its source, tests and docstrings.
The same inputs give the same corpus, byte for byte.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import sysconfig
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from chat import Conversations
from render import render
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
VOCABULARY = 2048
MOST_TOKENS = 9_000_000  # of text and of code each


def read(path: Path) -> str:
    """A file's text, or nothing where it is not plain UTF-8 of a sensible size."""
    if path.stat().st_size > 400_000:
        return ""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return ""
    plain = sum(ch < "\x7f" for ch in text) > 0.97 * len(text)
    return text if plain and "\0" not in text else ""


def source_files(stdlib: Path) -> list[Path]:
    """The standard library's Python files, without installed packages and generated tables."""
    skip = {"site-packages", "dist-packages", "encodings", "__pycache__"}
    return sorted(p for p in stdlib.rglob("*.py") if not skip & set(p.relative_to(stdlib).parts))


def docstrings(path: Path, name: str) -> Iterator[tuple[str, str, str]]:
    """(dotted name, signature, docstring) of a module's classes and functions."""
    try:
        tree = ast.parse(read(path))
    except SyntaxError:
        return
    for node in tree.body:
        nodes = [(node, name)]
        if isinstance(node, ast.ClassDef):
            nodes += [(child, f"{name}.{node.name}") for child in node.body]
        for item, owner in nodes:
            if isinstance(item, ast.FunctionDef | ast.ClassDef) and (doc := ast.get_docstring(item)):
                arguments = ast.unparse(item.args) if isinstance(item, ast.FunctionDef) else ""
                yield f"{owner}.{item.name}", f"{item.name}({arguments})", doc


def help_and_questions(stdlib: Path) -> tuple[list[str], list[tuple[str, str]]]:
    """Help pages made from docstrings, and questions that their first lines answer."""
    pages, questions = [], []
    for path in source_files(stdlib):
        parts = path.relative_to(stdlib).with_suffix("").parts
        if {"test", "tests", "idlelib", "lib2to3"} & set(parts):
            continue
        name = ".".join(parts).removesuffix(".__init__")
        entries = list(docstrings(path, name))
        if entries:
            pages.append(f"Help on {name}:\n\n" + "\n\n".join(f"{sig}\n{doc}" for _, sig, doc in entries))
        for dotted, signature, doc in entries:
            line = doc.splitlines()[0]
            if "_" not in dotted and 20 < len(line) < 90 and line.endswith(".") and "(" in signature:
                questions.append((f"What does {dotted} do?", line))
    return pages, questions


def common_words(texts: list[str]) -> list[str]:
    """Lower-case English words of the documentation, most frequent first."""
    counts = Counter(word for text in texts for word in re.findall(r"(?<![\w.`])[a-z]{3,11}(?![\w`(.])", text))
    return [word for word, count in counts.most_common(7000) if count >= 4]


def train_tokenizer(samples: list[str]) -> Tokenizer:
    """A byte-level BPE with Qwen2's splitting rule."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(QWEN_SPLIT), behavior="isolated", invert=False)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 2,
        special_tokens=SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(samples, trainer)
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in ("<tool_call>", "</tool_call>")])
    return tokenizer


def write_tokens(tokenizer: Tokenizer, documents: list[str], out: Path, name: str) -> None:
    """Documents as 16-bit tokens between <|endoftext|>, one in fifty kept for validation."""
    documents = sorted(documents, key=lambda text: zlib.crc32(text.encode()))
    streams: dict[bool, list[int]] = {True: [], False: []}
    for number, encoding in enumerate(tokenizer.encode_batch(documents)):
        streams[number % 50 == 0] += [*encoding.ids, 0]
    for validation, ids in streams.items():
        tokens = np.array(ids[:MOST_TOKENS], dtype=np.uint16)
        tokens.tofile(out / f"{'val_' if validation else ''}{name}.bin")
        print(f"{name}: {len(ids)} tokens, {len(tokens)} kept, validation {validation}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--docs", type=Path, default=Path("/usr/share/doc/python3.11/html/_sources"))
    parser.add_argument("--peps", type=Path, default=Path("peps"))
    parser.add_argument("--stdlib", type=Path, default=Path(sysconfig.get_paths()["stdlib"]))
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    manual = [read(p) for p in sorted(args.docs.rglob("*.rst.txt"))]
    peps = [read(p) for p in sorted(args.peps.glob("peps/pep-*.rst"))]
    pages, questions = help_and_questions(args.stdlib)
    text = [t for t in manual + peps + pages if t]
    code = [t for p in source_files(args.stdlib) if (t := read(p))]
    words = common_words(manual + peps)
    (args.out / "chat.json").write_text(json.dumps({"words": words, "questions": questions}))
    print(f"{len(text)} texts, {len(code)} sources, {len(words)} words, {len(questions)} questions")

    conversations = Conversations(0, words, questions)
    chats = [render(*conversations.draw()) for _ in range(4000)]
    tokenizer = train_tokenizer(text[::3] + code[::6] + chats)
    tokenizer.save(str(args.out / "tokenizer.json"), pretty=False)
    write_tokens(tokenizer, text, args.out, "text")
    write_tokens(tokenizer, code, args.out, "code")


if __name__ == "__main__":
    main()
