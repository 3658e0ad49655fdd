"""What must hold after anything was done to a `moe-pack` that writes, and the rounds that do it, with counts of cases.

After a fault there is no manifest under the pack's name, or a complete pack; an error was one sentence and exit code 4;
the same command then succeeds, and the bytes are those of an undisturbed run.
"""

import errno
import random
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue

import msgspec
from calls import Call, changes, read_log
from checkpoints import Shape, Variant, save_huggingface
from forgetful import State, read_tree, states, write_tree
from machine import NONE, Action, Fault, Machine, Run, build_injector
from tinypack import tree

TINIEST = Shape(
    layers=2, experts=3, experts_per_token=2, hidden=64, intermediate=64, shared_intermediate=64, vocab=300, interval=2
)  # fmt: skip
FAILURES = (errno.EIO, errno.ENOSPC)
STORAGE = 4


@dataclass
class Site:
    """Where one thing is made again and again by one `command`, to which the target is added.

    `expected` is the undisturbed one, as its files by name; `calls` made it.
    """

    source: Path
    command: tuple[object, ...]
    folder: Path
    machines: "SimpleQueue[Machine]"
    count: int
    expected: dict[str, bytes]
    calls: list[Call]

    @contextmanager
    def machine(self) -> Iterator[Machine]:
        """One of the machines that is free."""
        machine = self.machines.get()
        try:
            yield machine
        finally:
            self.machines.put(machine)

    def each(self, case: Callable[["Case"], None], names: Iterable[object]) -> int:
        """`case` for every name, on all machines at once; how many there were."""
        with ThreadPoolExecutor(self.count) as pool:
            return sum(pool.map(lambda name: self._one(case, str(name)), names))

    def _one(self, case: Callable[["Case"], None], name: str) -> int:
        with self.machine() as machine:
            folder = self.folder / name
            folder.mkdir()
            try:
                case(Case(self, machine, folder))
            except AssertionError as error:
                error.add_note(f"in the case {name}, left in {folder}")
                raise
            shutil.rmtree(folder)
        return 1


@dataclass(frozen=True)
class Case:
    """One thing to be made in `folder`, on a machine of its own."""

    site: Site
    machine: Machine
    folder: Path

    @property
    def target(self) -> Path:
        return self.folder / "pack"

    def build(self, fault: Fault = NONE, **options: object) -> Run:
        """The command, always the same."""
        return self.machine.run(*self.site.command, self.target, fault=fault, **options)  # type: ignore[arg-type]

    def whole_or_absent(self) -> bool:
        """Whether the target is there, which then is the expected one."""
        if not self.target.exists():
            return False
        assert files_of(self.target) == self.site.expected
        return True

    def assert_ends_well(self, run: Run) -> None:
        """After a fault: the promises."""
        if run.code == 0:
            assert self.whole_or_absent()
        elif not run.killed:
            assert run.code == STORAGE, run
            self.assert_is_a_sentence(run)
        if not self.whole_or_absent():
            again = self.build()
            assert again.code == 0, again.err
            assert self.whole_or_absent()
            assert [path.name for path in self.folder.iterdir()] == [self.target.name]
        made = [path for path in (self.target, *self.target.rglob("*")) if path.is_file()]
        assert {path.stat().st_mode & 0o777 for path in made} == {0o444}

    def assert_is_a_sentence(self, run: Run) -> None:
        """It names a file and what to do."""
        sentence = run.sentence
        assert str(self.folder) in sentence, sentence
        assert any(remedy in sentence for remedy in ("the same command", "choose another", "verify it")), sentence
        assert "verify it" not in sentence or self.whole_or_absent(), sentence


def files_of(target: Path) -> dict[str, bytes]:
    """A folder's files with their bytes, or the one file that it is."""
    return tree(target) if target.is_dir() else {"": target.read_bytes()}


@contextmanager
def opened_site(root: Path, source: Path, folder: Path, *command: object, count: int = 2) -> Iterator[Site]:
    """A site that works in `folder` on `count` machines; what they need beside is in `root`.

    Without a `command` it builds packs of `source`.
    """
    command = command or ("build", source)
    injector = build_injector(root)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        machines: SimpleQueue[Machine] = SimpleQueue()
        first = [stack.enter_context(Machine(injector, root / f"machine{index}")) for index in range(count)]
        for machine in first:
            machines.put(machine)
        folder.mkdir(exist_ok=True)
        (folder / "undisturbed").mkdir()
        run = first[0].run(*command, folder / "undisturbed/pack", logged=True)
        assert run.code == 0, run.err
        expected = files_of(folder / "undisturbed/pack")
        yield Site(source, command, folder, machines, count, expected, read_log(first[0].log))


def make_checkpoint(folder: Path) -> Path:
    """The smallest checkpoint with both kinds of layers."""
    return save_huggingface(folder, Variant(TINIEST))


def spaced(total: int, share: float) -> list[int]:
    """Numbers from 1 to `total`, evenly spaced, with the first and the last."""
    count = max(2, round(total * share))
    return sorted({1 + round(index * (total - 1) / (count - 1)) for index in range(count)})


def one_fault_each(site: Site, faults: Iterable[Fault]) -> int:
    """A build with each fault."""

    def case(case: Case) -> None:
        fault = by_name[case.folder.name]
        run = case.build(fault)
        case.assert_ends_well(run)
        fills = fault.action == Action.FAIL_FROM_HERE and fault.error == errno.ENOSPC  # what follows may need no room
        assert run.code != 0 or fills or fault.action == Action.SHORT, run

    by_name = {str(fault): fault for fault in faults}
    return site.each(case, by_name)


def kills(site: Site, share: float = 1) -> list[Fault]:
    """SIGKILL before every call, and in the middle of every write."""
    numbered = {call.number: call for call in changes(site.calls)}
    found = []
    for at in spaced(len(numbered), share):
        found.append(Fault(Action.KILL, at))
        if numbered[at].name == "write" and len(numbered[at].data) > 1:
            found.append(Fault(Action.HALF, at))
    return found


def failures(site: Site, share: float = 1) -> list[Fault]:
    """Each call fails, alone or with all that follow it, of each error; and each write is cut short."""
    found = []
    for at in spaced(len(changes(site.calls)), share):
        for error in FAILURES:
            found += [Fault(Action.FAIL, at, error), Fault(Action.FAIL_FROM_HERE, at, error)]
    return found + [Fault(Action.SHORT, call.number) for call in short_writes(site, share)]


def short_writes(site: Site, share: float) -> list[Call]:
    writes = [call for call in changes(site.calls) if call.name == "write" and len(call.data) > 1]
    return [writes[index - 1] for index in spaced(len(writes), share)]


def losses_of_power(site: Site, draws: int, share: float = 1) -> tuple[int, int]:
    """Resume from what a loss of power may leave; how many states were strict, and how many drawn."""
    return _resumed(site, list(states(site.folder / "undisturbed", site.calls, draws)), share)


def losses_of_power_in_resumes(site: Site, draws: int, share: float = 1) -> tuple[int, int]:
    """The same, while builds go on that were killed: at a share of their calls, each of the last five among them."""
    last, found = len(changes(site.calls)), []

    def case(case: Case) -> None:
        assert case.build(Fault(Action.KILL, int(case.folder.name))).killed
        before = read_tree(case.folder)
        if not case.target.exists():
            assert case.build(logged=True).code == 0
            found.extend(states(case.folder, read_log(case.machine.log), draws, before))

    site.each(case, sorted({*spaced(last, share), *range(last - 4, last + 1)}))
    return _resumed(site, found, 1)


def _resumed(site: Site, found: list[State], share: float) -> tuple[int, int]:
    chosen = [found[index - 1] for index in spaced(len(found), share)]
    by_name = {f"{state.kind}-{number}-after-{state.after}": state for number, state in enumerate(chosen)}

    def case(case: Case) -> None:
        state = by_name[case.folder.name]
        case.folder.rmdir()
        write_tree(case.folder, state.tree)
        assert_promised(site, state)
        if not case.whole_or_absent():
            run = case.build()
            assert run.code == 0, run.err
        assert case.whole_or_absent()

    site.each(case, by_name)
    strict = sum(state.kind == "strict" for state in chosen)
    return strict, len(chosen) - strict


def assert_promised(site: Site, state: State) -> None:
    """Every unit whose journal line was durable is there, whole."""
    for line in state.promised:
        entry = msgspec.json.decode(line)
        names = {"layer": f"experts/layer_{entry.get('index', 0):02}.bin", "trunk": "trunk.safetensors"}
        if (name := names.get(entry["type"])) is not None:
            held = [state.tree.get(f"{folder}/{name}") for folder in ("pack", "pack.partial")]
            assert site.expected[name] in held, f"{name} was finished, and is lost after {state.after}"


def random_kills(site: Site, count: int, seed: int = 0) -> int:
    """SIGKILL at random moments of a build's time; how many hit a run that was still going, as all must."""
    chance = random.Random(seed)
    names = {f"killed{index}": chance.random() for index in range(count)}
    longest = _seconds(site)

    def case(case: Case) -> None:
        own = random.Random(names[case.folder.name])
        while not (run := case.build(kill_after=own.random() * longest)).killed:
            assert run.code == 0, run
            shutil.rmtree(case.target)
        case.assert_ends_well(run)

    return site.each(case, names)


def _seconds(site: Site) -> float:
    """How long a build takes here, roughly."""
    found = []

    def case(case: Case) -> None:
        start = time.perf_counter()
        assert case.build().code == 0
        found.append(time.perf_counter() - start)

    site.each(case, [f"timed{index}" for index in range(4)])
    return max(found)


def kills_of_resumes(site: Site, rounds: int, seed: int = 1) -> tuple[int, int]:
    """Kill a build, the resume of it, the resume of that, ... ; how many builds, and how many kills in all."""
    chance, hits = random.Random(seed), []

    def case(case: Case) -> None:
        own = random.Random(seeds[case.folder.name])
        for _ in range(30):
            run = case.build(Fault(Action.KILL, own.randint(1, 90)))
            if case.whole_or_absent():
                break
            assert run.killed, run
            hits.append(1)
        case.assert_ends_well(run)

    seeds = {f"chain{index}": chance.random() for index in range(rounds)}
    return site.each(case, seeds), len(hits)


def two_packers(site: Site, share: float = 1) -> tuple[int, int]:
    """One build is stopped before each call, and another comes; how many pairs, how often the second was refused."""
    refused = []
    with site.machine() as second:

        def case(case: Case) -> None:
            first = case.build(Fault(Action.STOP, int(case.folder.name)))
            assert first.code is None, first
            other = Case(site, second, case.folder)
            late = other.build()
            assert late.code in (0, STORAGE, 2), late
            if late.code == STORAGE:
                assert "another moe-pack" in late.sentence
                refused.append(1)
            last = case.machine.go_on(first)
            assert last.code in ((0,) if late.code else (2, STORAGE)), (late, last)
            assert last.code == 0 or last.sentence
            assert case.whole_or_absent()

        with site.machine() as one:
            alone = replace(site, machines=SimpleQueue(), count=1)
            alone.machines.put(one)
            count = alone.each(case, spaced(len(changes(site.calls)), share))
    return count, len(refused)
