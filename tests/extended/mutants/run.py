"""Would our tests notice a fault in the Metal kernels or their host? `make mutants`

Each mutant is put into a copy of the tree, and its tests are run until one fails. MUTANTS=attention,rows: picks those
whose names contain one of these. Results are kept in build/mutants by a digest of all that they depend on, so that an
interrupted run goes on. Ends with 1 if fewer than 95 % are killed, or if a mutant is refused: one whose place is gone,
which does not compile, or whose tests fail without it.
"""

import json
import os
import sys
from collections import defaultdict
from dataclasses import asdict

from extended.mutants.every import ALL
from extended.mutants.mutant import Mutant, Tests
from extended.mutants.tree import COMPILER, PLACE, ROOT, Outcome, Tree, surroundings
from rich.console import Console
from rich.table import Table

REQUIRED = 0.95
BASELINE_LIMIT = 600.0
LEAST_LIMIT = 60.0  # seconds; else four times what the tests take without a fault
KEPT = PLACE / "results.json"


class Results:
    """Outcomes by key, written after each."""

    def __init__(self) -> None:
        self._kept: dict[str, dict[str, object]] = json.loads(KEPT.read_text()) if KEPT.exists() else {}

    def get(self, key: str) -> Outcome | None:
        """One that is kept."""
        return Outcome(**self._kept[key]) if key in self._kept else None  # type: ignore[arg-type]

    def put(self, key: str, outcome: Outcome) -> Outcome:
        """Keeps one, whole or not at all."""
        self._kept[key] = asdict(outcome)
        beside = KEPT.with_suffix(".new")
        beside.write_text(json.dumps(self._kept, indent=1))
        beside.replace(KEPT)
        return outcome


class Run:
    """Runs mutants and remembers what became of them."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._tree = Tree()
        self._results = Results()
        self._around: dict[Tests, str] = {}
        self.ends: dict[str, list[Mutant]] = defaultdict(list)

    def take(self, mutant: Mutant) -> None:
        """One mutant, with a line of what became of it."""
        try:
            end, outcome = self._end_of(mutant)
        except (ValueError, SyntaxError) as error:
            end, outcome = "refused", Outcome(str(error), "", 0.0)
        self.ends[end].append(mutant)
        by = f"  {outcome.failed}" if outcome.failed else ""
        self._say(f"{end:8} {outcome.seconds:5.1f} s  {mutant.name}{by}")
        if outcome.why:
            self._say(f"{'':18}{outcome.why[:160]}")

    def _end_of(self, mutant: Mutant) -> tuple[str, Outcome]:
        if mutant.tests not in self._around:
            self._around[mutant.tests] = surroundings(mutant.tests)
        key = mutant.key(ROOT, self._around[mutant.tests])
        without = self._without(mutant.tests)
        if without.failed:
            raise ValueError(f"the tests of {mutant.name} fail without it: {without.failed} {without.why}")
        outcome = self._results.get(key) or self._results.put(key, self._ran(mutant, without.seconds))
        if outcome.failed == COMPILER and not mutant.file.endswith(".py"):
            return "refused", outcome
        return ("killed" if outcome.failed else "SURVIVED"), outcome

    def _ran(self, mutant: Mutant, seconds: float) -> Outcome:
        with self._tree.mutated(mutant):
            return self._tree.run(mutant.tests, max(LEAST_LIMIT, 4 * seconds))

    def _without(self, tests: Tests) -> Outcome:
        key = f"without {' '.join(tests)} {self._around[tests]}"
        kept = self._results.get(key)
        if kept is None or kept.failed:
            kept = self._results.put(key, self._tree.run(tests, BASELINE_LIMIT))
            self._say(f"{'sound' if not kept.failed else 'FAULTY':8} {kept.seconds:5.1f} s  {' '.join(tests)}")
        return kept

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
    run = Run(console)
    for mutant in mutants:
        run.take(mutant)
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
