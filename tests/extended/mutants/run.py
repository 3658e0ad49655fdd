"""Would our tests notice a fault in the Metal kernels or their host? `make mutants`

Each mutant is put into a copy of the tree, and its tests are run until one fails. MUTANTS=attention,rows: picks those
whose names contain one of these; JOBS=2 tries two at a time. Results are kept in build/mutants by a digest of all that
they depend on, so that an interrupted run goes on. Ends with 1 if fewer than 95 % are killed, or if a mutant is
refused: one whose place is gone, which does not compile, or whose tests fail without it.
"""

import json
import os
import sys
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from queue import SimpleQueue
from threading import Lock
from typing import Any

from extended.mutants.every import ALL
from extended.mutants.mutant import Mutant, Tests
from extended.mutants.tree import COMPILER, PLACE, Outcome, Tree
from rich.console import Console
from rich.table import Table

REQUIRED = 0.95
LEAST_LIMIT = 60.0  # seconds; else four times what the tests take without a fault
KEPT = PLACE / "results.json"


class Results:
    """Outcomes by key, written after each; those of tests without a mutant by name, with the files they imported."""

    def __init__(self) -> None:
        self._kept: dict[str, dict[str, Any]] = json.loads(KEPT.read_text()) if KEPT.exists() else {}
        self._lock = Lock()

    def get(self, key: str) -> Outcome | None:
        """One that is kept."""
        return Outcome(**self._kept[key]) if key in self._kept else None

    def put(self, key: str, outcome: Outcome) -> Outcome:
        """Keeps one."""
        self._put(key, asdict(outcome))
        return outcome

    def sound(self, name: str, tree: Tree) -> tuple[Outcome, str] | None:
        """What is kept of tests that passed, with the digest of what they imported, if that is as it was."""
        kept = self._kept.get(name)
        if kept is None or not all((tree.root / file).exists() for file in kept["files"]):
            return None
        digest = tree.digest(kept["files"])
        return (Outcome(**kept["outcome"]), digest) if digest == kept["digest"] else None

    def put_sound(self, name: str, outcome: Outcome, files: list[str], tree: Tree) -> tuple[Outcome, str]:
        """Keeps that, unless they failed."""
        digest = tree.digest(files)
        if outcome.failed is None:
            self._put(name, {"outcome": asdict(outcome), "files": files, "digest": digest})
        return outcome, digest

    def _put(self, key: str, value: dict[str, Any]) -> None:
        """Whole or not at all."""
        with self._lock:
            self._kept[key] = value
            beside = KEPT.with_suffix(".new")
            beside.write_text(json.dumps(self._kept, indent=1))
            beside.replace(KEPT)


class Run:
    """Runs mutants, as many at once as there are trees, and remembers what became of them."""

    def __init__(self, console: Console, trees: list[Tree]) -> None:
        self._console = console
        self._first = trees[0]
        self._free: SimpleQueue[Tree] = SimpleQueue()
        for tree in trees:
            self._free.put(tree)
        self._results = Results()
        self._without: dict[Tests, Outcome] = {}
        self._digests: dict[Tests, str] = {}
        self._mutated: dict[Mutant, str | Exception] = {}
        self._jobs = len(trees)
        self.ends: dict[str, list[Mutant]] = defaultdict(list)

    def take(self, mutants: list[Mutant]) -> None:
        """All mutants: first the tests without any, then each, with a line of what became of it."""
        with ThreadPoolExecutor(self._jobs) as pool:
            list(pool.map(self._sound, dict.fromkeys(mutant.tests for mutant in mutants)))
            self._mutated = {mutant: self._applied(mutant) for mutant in mutants}  # while no tree is mutated
            list(pool.map(self._take, mutants))

    def _applied(self, mutant: Mutant) -> str | Exception:
        """The mutated file, or why there is none."""
        try:
            return mutant.applied((self._first.root / mutant.file).read_text())
        except (ValueError, SyntaxError) as error:
            return error

    def _sound(self, tests: Tests) -> None:
        with self._tree() as tree:
            name = " ".join(tests)
            kept = self._results.sound(name, tree)
            if kept is None:
                outcome, files = tree.imported(tests)
                kept = self._results.put_sound(name, outcome, files, tree)
        self._without[tests], self._digests[tests] = kept
        self._say(f"{'FAULTY' if kept[0].failed else 'sound':8} {kept[0].seconds:5.1f} s  {name}")

    def _take(self, mutant: Mutant) -> None:
        end, outcome = self._end_of(mutant)
        self.ends[end].append(mutant)
        by = f"  {outcome.failed}" if outcome.failed else ""
        why = f"\n{'':18}{outcome.why[:200]}" if outcome.why else ""
        self._say(f"{end:8} {outcome.seconds:5.1f} s  {mutant.name}{by}{why}")

    def _end_of(self, mutant: Mutant) -> tuple[str, Outcome]:
        mutated, without = self._mutated[mutant], self._without[mutant.tests]
        if isinstance(mutated, Exception):
            return "refused", Outcome(str(mutated), "", 0.0)
        if without.failed:
            return "refused", Outcome("its tests fail without it", "", 0.0)
        key = mutant.key(mutated, self._digests[mutant.tests])
        outcome = self._results.get(key) or self._results.put(key, self._ran(mutant, without.seconds))
        if outcome.failed == COMPILER and not mutant.file.endswith(".py"):
            return "refused", outcome
        return ("killed" if outcome.failed else "SURVIVED"), outcome

    def _ran(self, mutant: Mutant, seconds: float) -> Outcome:
        with self._tree() as tree, tree.mutated(mutant):
            return tree.run(mutant.tests, max(LEAST_LIMIT, 4 * seconds))

    @contextmanager
    def _tree(self) -> Iterator[Tree]:
        tree = self._free.get()
        try:
            yield tree
        finally:
            self._free.put(tree)

    def _say(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def chosen() -> list[Mutant]:
    """Those that MUTANTS names, or all. Ends the program if there are none, or two of one name."""
    words = [word for word in os.environ.get("MUTANTS", "").split(",") if word]
    names = [mutant.name for mutant in ALL]
    if twice := {name for name in names if names.count(name) > 1}:
        sys.exit(f"two mutants are called {', '.join(sorted(twice))}")
    found = [mutant for mutant in ALL if not words or any(word in mutant.name for word in words)]
    return found or sys.exit(f"MUTANTS: no mutant's name contains any of {', '.join(words)}")


def summary(ends: dict[str, list[Mutant]]) -> Table:
    """A row for each class, and one for all."""
    table = Table("class", "mutants", "killed")
    counted = [*ends["killed"], *ends["SURVIVED"]]
    for kind in sorted({mutant.kind for mutant in counted}):
        table.add_row(kind, *(str(sum(m.kind == kind for m in some)) for some in (counted, ends["killed"])))
    table.add_section()
    table.add_row("all", str(len(counted)), str(len(ends["killed"])))
    return table


def main() -> None:
    console, mutants = Console(), chosen()
    run = Run(console, [Tree(f"tree-{i}") for i in range(int(os.environ.get("JOBS", "1")))])
    run.take(mutants)
    killed, survived, refused = (len(run.ends[end]) for end in ("killed", "SURVIVED", "refused"))
    console.print(summary(run.ends))
    for end in ("SURVIVED", "refused"):
        for mutant in run.ends[end]:
            console.print(f"{end}: {mutant.name}", markup=False, highlight=False)
    share = killed / max(1, killed + survived)
    console.print(f"{killed} of {killed + survived} killed, {share:.1%}; {refused} refused", highlight=False)
    sys.exit(share < REQUIRED or refused > 0)


if __name__ == "__main__":
    main()
