"""The structural slice: positions where the reference is about to write what JSON is made of.

A token is structural if its text, spaces and tabs left out, is not empty and consists of nothing but STRUCTURAL
characters: `"`, `": "`, `"},` and `\\n` count, `"name` and `'` do not. A structural token with a quote in it
is of class "quote", any other of the class of its first such character. A flip is a likeliest token of another class;
a quote flip one where the reference's has a quote and the other's has none.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..tokenizer import Tokenizer
from .divergence import Positions
from .summary import Clusters, Summary

CLASSES: Mapping[str, str] = {
    "quote": '"',
    "brace": "{}",
    "bracket": "[]",
    "colon": ":",
    "comma": ",",
    "backslash": "\\",
    "newline": "\n\r",
    "digit": "0123456789",
}
STRUCTURAL = frozenset("".join(CLASSES.values()))
NAMES = tuple(CLASSES)
QUOTE = NAMES.index("quote")
NONE = -1
TokenClasses = NDArray[np.int8]  # of each token of the vocabulary, an index into NAMES or NONE


@dataclass(frozen=True)
class ClassCount:
    """Of one class: positions, those whose likeliest token differs, and those where its class does."""

    positions: int
    other_token: int
    flips: int


@dataclass(frozen=True)
class Structure:
    """The slice's figures; `summary` is None where no position is structural."""

    summary: Summary | None
    classes: Mapping[str, ClassCount]

    @property
    def quote_flips(self) -> int:
        """Positions where the reference writes a quote and the other does not."""
        return self.classes["quote"].flips

    def document(self) -> dict[str, Any]:
        """For `--json`."""
        classes = {name: vars(count) for name, count in self.classes.items()}
        summary = self.summary.document() if self.summary else {"positions": 0}
        return {**summary, "quote_flips": self.quote_flips, "classes": classes}


def class_of(text: str) -> int:
    """The class of a token's text."""
    core = text.replace(" ", "").replace("\t", "")
    if not core or not STRUCTURAL.issuperset(core):
        return NONE
    if '"' in core:
        return QUOTE
    return next(index for index, name in enumerate(NAMES) if core[0] in CLASSES[name])


def token_classes(tokenizer: Tokenizer, vocab_size: int) -> TokenClasses:
    """The class of every token, int8 [vocab]."""
    texts = (tokenizer.decode([token], special=True) for token in range(vocab_size))
    return np.fromiter(map(class_of, texts), np.int8, vocab_size)


def structure(positions: Positions, clusters: Clusters, classes: TokenClasses) -> Structure:
    """The figures of the structural slice of `positions`."""
    wanted, found = classes[positions.reference_top], classes[positions.top]
    inside = wanted != NONE
    counts = {}
    for index, name in enumerate(NAMES):
        of_class = wanted == index
        other_token = of_class & (positions.top != positions.reference_top)
        flips = of_class & (found != index)
        counts[name] = ClassCount(int(of_class.sum()), int(other_token.sum()), int(flips.sum()))
    return Structure(Summary.of(positions.where(inside), clusters[inside]) if inside.any() else None, counts)
