"""A text as windows of tokens to be scored, and which position belongs to which document.

Documents are separated by NUL; each is tokenized alone and cut into windows of its own. The logits after token i of a
window are scored against token i + 1, so a window's last token is only a target.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from ...manifests import canonical, digest
from ...manifests.errors import CorruptInputError, UsageError
from ..backends.base import Ids
from ..corpus import Corpus
from ..tokenizer import Tokenizer
from .summary import Clusters

SEPARATOR = "\0"
WINDOW = 512
LEAST_POSITIONS = 100
MAX_BYTES = 4 * 1024**3


@dataclass(frozen=True, eq=False)
class Windows:
    """Windows of tokens; `documents` says which document each is from, `scored_from` the first position scored."""

    corpus: Corpus
    documents: tuple[int, ...]
    scored_from: int
    digest: str

    def rows(self) -> Ids:
        """The scored rows of the corpus, ascending."""
        return np.concatenate([np.arange(first + self.scored_from, last - 1) for first, last in self.corpus.bounds()])

    def clusters(self) -> Clusters:
        """The document of each scored row; its window where the text is a single document."""
        lengths = [max(0, last - 1 - first - self.scored_from) for first, last in self.corpus.bounds()]
        single = len(set(self.documents)) < 2
        return np.repeat(np.arange(len(lengths)) if single else np.asarray(self.documents), lengths).astype(np.int64)

    def require_within(self, context: int, remedy: str | None = None) -> None:
        """Raise UsageError, with a remedy, by default another --window, if a window is longer than the `context`."""
        longest = max(last - first for first, last in self.corpus.bounds())
        if longest > context:
            fault = f"windows of {longest} tokens do not fit the model's context of {context}"
            raise UsageError(f"{fault}; {remedy or f'give --window {context} or less'}")

    def sample(self, tokens: int) -> "Windows":
        """Windows from all over the text, evenly spaced, of about `tokens` tokens together; at least one.

        Only windows with scored positions, of which there must be some.
        """
        scored = [(i, each) for i, each in enumerate(self.corpus.bounds()) if each[1] - 1 - each[0] > self.scored_from]
        count = min(len(scored), max(1, len(scored) * tokens // len(self.corpus)))
        chosen = [scored[index * len(scored) // count] for index in range(count)]
        corpus = Corpus.of([self.corpus.tokens[slice(*bounds)] for _, bounds in chosen])
        return Windows(corpus, tuple(self.documents[i] for i, _ in chosen), self.scored_from, self.digest)

    def document(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "blake3": self.digest,
            "documents": len(set(self.documents)),
            "windows": self.corpus.sequences,
            "tokens": len(self.corpus),
            "scored_from": self.scored_from,
            "positions": len(self.rows()),
        }


def read_text(path: Path, tokenizer: Tokenizer, *, window: int = WINDOW, limit: int | None = None) -> Windows:
    """Tokenize a file and cut it; at most `limit` tokens, from all over the text.

    Raises UsageError if the file cannot be read, is not UTF-8 or is too short.
    """
    if window < 2:
        raise UsageError(f"windows of {window} tokens have nothing to predict; give 2 or more")
    content = _content(path)
    try:
        texts = content.decode("utf-8").split(SEPARATOR)
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text") from error
    documents = (np.asarray(tokenizer.encode(text, add_special_tokens=False), np.int32) for text in texts if text)
    return _checked(_cut(documents, window), limit, 0, path, digest.of_bytes(content).hex())


def read_tokens(path: Path, *, limit: int | None = None) -> Windows:
    """Windows that another tool scored: {"windows": [[ids...]], "scored_from": n}. Raises UsageError otherwise.

    `scored_from` is the first position whose logits count; llama-perplexity's is half the window.
    """
    content = _content(path)
    try:
        value = canonical.decode(content, str(path), canonical.OWN)
    except CorruptInputError as error:
        raise UsageError(str(error)) from error
    if (
        not isinstance(value, dict)
        or not value.keys() <= {"windows", "scored_from"}
        or not _are_ids(value.get("windows"))
    ):
        raise UsageError(f'{path} is not {{"windows": [[token, ...], ...], "scored_from": n}}')
    scored_from = value.get("scored_from", 0)
    if type(scored_from) is not int or scored_from < 0:
        raise UsageError(f"{path}: scored_from is {scored_from!r:.40}, not a position in a window")
    _require_reached(value["windows"], scored_from, path)
    return _checked(list(enumerate(value["windows"])), limit, scored_from, path, digest.of_bytes(content).hex())


Tokens: TypeAlias = Sequence[int] | Ids
Numbered: TypeAlias = list[tuple[int, Tokens]]  # windows, each after the number of its document


def _cut(documents: Iterable[Ids], window: int) -> Numbered:
    return [
        (number, tokens[first : first + window])
        for number, tokens in enumerate(documents)
        for first in range(0, len(tokens), window)
    ]


def _limited(windows: Numbered, limit: int | None) -> Numbered:
    """Windows of two tokens or more, from all over the text and at most `limit` tokens: the last one is cut to it."""
    if limit is not None and limit < 2:
        raise UsageError(f"a limit of {limit} tokens leaves nothing to score; give 2 or more")
    windows = [(number, tokens) for number, tokens in windows if len(tokens) >= 2]
    if limit is None or not windows:
        return windows
    total = sum(len(tokens) for _, tokens in windows)
    count = min(len(windows), -(-len(windows) * limit // total))
    spread = [windows[index * len(windows) // count] for index in range(count)]
    before = accumulate((len(tokens) for _, tokens in spread), initial=0)
    cut = [(number, tokens[: max(0, limit - past)]) for (number, tokens), past in zip(spread, before, strict=False)]
    return [(number, tokens) for number, tokens in cut if len(tokens) >= 2]


def _checked(whole: Numbered, limit: int | None, scored_from: int, path: Path, content_digest: str) -> Windows:
    windows = _limited(whole, limit)
    positions = _positions(windows, scored_from)
    if positions < LEAST_POSITIONS:
        enough = _positions(whole, scored_from) >= LEAST_POSITIONS
        at_fault = f"a limit of {limit} tokens is too small for {path}" if enough else f"{path} is too short"
        raise UsageError(
            f"{at_fault}: it gives {positions} positions to score, and at least {LEAST_POSITIONS} are needed"
        )
    corpus = Corpus.of([tokens for _, tokens in windows])
    return Windows(corpus, tuple(number for number, _ in windows), scored_from, content_digest)


def _require_reached(windows: Sequence[Sequence[int]], scored_from: int, path: Path) -> None:
    longest = max(map(len, windows), default=0)
    if 2 <= longest <= scored_from + 1:
        raise UsageError(
            f"{path}: scored_from is {scored_from}, and the longest window has {longest} tokens, so nothing is scored;"
            f" give {longest - 2} or less, or longer windows"
        )


def _positions(windows: Numbered, scored_from: int) -> int:
    return sum(max(0, len(tokens) - 1 - scored_from) for _, tokens in windows)


def _are_ids(value: Any) -> bool:
    if not isinstance(value, list):
        return False
    return all(
        isinstance(ids, list) and all(type(token) is int and 0 <= token < 2**31 for token in ids) for ids in value
    )


def _content(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UsageError(f"{path} has more than {MAX_BYTES} bytes; give a part of it")
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
