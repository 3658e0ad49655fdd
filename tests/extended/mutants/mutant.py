"""What a mutant is: one fault put into one file of ours, and the tests that should notice."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path


class Kind(StrEnum):
    """Classes of faults."""

    BARRIER = "barrier removed"
    RACE = "written by too many"
    SIMD = "SIMD group misused"
    BY_ONE = "off by one"
    STRIDE = "wrong stride"
    PLACE = "wrong place"
    GUARD = "guard missing"
    OPERATION = "wrong operation"
    MISSING = "step missing"
    ORDER = "wrong order"
    WAIT = "wrong or missing wait"
    GRID = "wrong grid"
    PACKING = "wrong packing"
    CHECK = "check missing"


Tests = tuple[str, ...]  # as pytest is given them


@dataclass(frozen=True)
class Mutant:
    """`snippet`, which occurs once in `file`, becomes `replacement`."""

    name: str
    kind: Kind
    file: str
    snippet: str
    replacement: str
    tests: Tests

    def applied(self, text: str) -> str:
        """The file's text with the fault. Raises ValueError if there is not one place for it."""
        if (found := text.count(self.snippet)) != 1:
            raise ValueError(f"{self.name}: the snippet occurs {found} times in {self.file}")
        mutated = text.replace(self.snippet, self.replacement)
        if self.file.endswith(".py"):
            compile(mutated, self.file, "exec")
        return mutated

    def key(self, mutated: str, digest: str) -> str:
        """Of everything that the result depends on: the mutated text, and a digest of the rest."""
        parts = (self.file, mutated, *self.tests, digest)
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def of(file: str, tests: Tests) -> Callable[..., Mutant]:
    """Makes mutants of a file; their tests unless they name others."""

    def make(name: str, kind: Kind, snippet: str, replacement: str, tests: Tests = tests) -> Mutant:
        return Mutant(f"{Path(file).stem}: {name}", kind, file, snippet, replacement, tests)

    return make
