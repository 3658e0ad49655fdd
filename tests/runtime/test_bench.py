"""The benchmark on an engine of known speed: what it runs, what it counts, what it says."""

import gc
import subprocess
import sys
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from moepack.manifests.errors import UsageError
from moepack.runtime import host
from moepack.runtime.bench import Workload, measure
from moepack.runtime.figures import Ceiling, Counts, Figures, Sample, share
from moepack.runtime.sampling import Logits

STORAGE_RATE = 0.5  # GB/s


@dataclass
class Machine:
    """Stand-in engine: the first token of an engine's life reads 10 records of 100 bytes, later ones 2 and hit 8."""

    stats: Counts = field(default_factory=lambda: Counts(stages={"router": 0.0}))
    sessions: list["Tape"] = field(default_factory=list)

    def new_session(self) -> "Tape":
        self.sessions.append(Tape(self))
        return self.sessions[-1]


@dataclass
class Tape:
    machine: Machine
    calls: list[list[int]] = field(default_factory=list)

    @property
    def position(self) -> int:
        return sum(map(len, self.calls))

    def extend(self, tokens: Sequence[int]) -> Logits:
        self.calls.append(list(tokens))
        stats = self.machine.stats
        for _ in tokens:
            read = 2 if stats.records_read else 10
            stats = Counts(
                bytes_read=stats.bytes_read + 100 * read,
                records_read=stats.records_read + read,
                slot_hits=stats.slot_hits + 10 - read,
                stages={"router": stats.stages["router"] + 0.25},
            )
        self.machine.stats = stats
        return np.zeros(5, np.float32)


class Machines:
    """Opens machines and keeps them all; remembers the calls that drop the cache."""

    def __init__(self, *, can_drop: bool = True) -> None:
        self.can_drop, self.open = can_drop, 0
        self.opened: list[Machine] = []
        self.drops = 0

    @contextmanager
    def __call__(self) -> Iterator[Machine]:
        assert self.open == 0, "two engines at once would share the memory"
        self.open += 1
        self.opened.append(Machine())
        yield self.opened[-1]
        self.open -= 1

    def drop(self) -> bool:
        self.drops += 1
        return self.can_drop


def rate() -> float:
    return STORAGE_RATE


WORKLOAD = Workload(prompt_tokens=4, decode_tokens=3, repetitions=2, vocab_size=50)


def calls_of(machines: Machines) -> list[list[list[list[int]]]]:
    """The calls of each session of each machine."""
    return [[session.calls for session in machine.sessions] for machine in machines.opened]


def test_cold_phases_have_an_engine_each_and_warm_runs_one_that_has_worked_before() -> None:
    machines = Machines()
    measured = measure(machines, machines.drop, WORKLOAD, rate)
    sizes = [[[len(call) for call in session] for session in sessions] for sessions in calls_of(machines)]
    cold = [[[4]], [[1, 1, 1, 1]]]  # the prompt; a prompt of one token, and then what is decoded
    assert sizes == [*cold, *cold, [[4, 1, 1, 1]] * 3]
    assert measured.cache_dropped
    assert measured.engine is machines.opened[-1]


def test_an_engine_is_gone_memory_and_all_before_the_next_opens() -> None:
    opened: list[weakref.ref[Machine]] = []

    @contextmanager
    def opening() -> Iterator[Machine]:
        gc.collect()
        assert [machine for machine in opened if machine() is not None] == []
        machine = Machine()
        opened.append(weakref.ref(machine))
        yield machine

    measure(opening, lambda: True, WORKLOAD, rate)
    assert len(opened) == 5


def test_the_cache_is_dropped_last_before_each_cold_phase() -> None:
    machines = Machines()
    done: list[list[int]] = []

    def drop() -> bool:
        done.append([session.position for session in machines.opened[-1].sessions])
        return True

    measure(machines, drop, WORKLOAD, rate)
    assert done == [[0], [1], [0], [1]]


def test_each_repetition_has_tokens_of_its_own() -> None:
    machines = Machines()
    measure(machines, machines.drop, WORKLOAD, rate)
    calls = calls_of(machines)
    cold = [prompt[0] + decode[0][1:] for prompt, decode in (calls[0:2], calls[2:4])]
    assert [prompt[0][0][0] for prompt in (calls[0], calls[2])] == [decode[0][0][0] for decode in (calls[1], calls[3])]
    sessions = [*cold, *calls[4]]
    assert len({tuple(map(tuple, session)) for session in sessions}) == len(sessions) == 5
    assert all(0 <= token < 50 for session in sessions for call in session for token in call)


def figures_of(machines: Machines) -> dict[tuple[str, str], Figures]:
    measured = measure(machines, machines.drop, WORKLOAD, rate)
    return {(figure.condition, figure.phase): figure for figure in measured.figures}


def test_figures_are_per_phase_and_condition() -> None:
    machines = Machines()
    figures = figures_of(machines)
    assert list(figures) == [("cold", "prompt"), ("cold", "decode"), ("warm", "prompt"), ("warm", "decode")]
    assert figures["cold", "prompt"].bytes_per_token == (1000 + 3 * 200) / 4
    assert figures["cold", "prompt"].hit_rate == 24 / 40
    assert figures["cold", "decode"].hit_rate == 0.8
    assert figures["warm", "prompt"].bytes_per_token == 200
    assert figures["warm", "decode"].hit_rate == 0.8
    assert all(figure.repetitions == 2 for figure in figures.values())


def test_a_cache_that_could_not_be_dropped_is_reported() -> None:
    machines = Machines(can_drop=False)
    assert not measure(machines, machines.drop, WORKLOAD, rate).cache_dropped


def sample(seconds: float = 1.0, *, storage: int | None = None, opening: float = 0.0, **counts: Any) -> Sample:
    """Ten tokens that read 5 records of 0.2 GB and found 15 in memory, unless told otherwise."""
    counted = Counts(**{"bytes_read": 10**9, "records_read": 5, "slot_hits": 15, **counts})
    return Sample(10, seconds, counted, storage, opening)


def test_speeds_are_medians_and_rates_use_the_phase_s_time() -> None:
    samples = [sample(seconds, storage=5 * 10**8, read_seconds=0.25) for seconds in (1.0, 2.0, 10.0)]
    figures = Figures.of("warm", "decode", samples)
    assert (figures.tokens_per_second, figures.slowest, figures.fastest) == (5, 1, 10)
    assert (figures.gigabytes_per_second, figures.bytes_per_token) == (0.5, 10**8)
    assert figures.reading_gigabytes_per_second == 4
    assert (figures.hit_rate, figures.storage_share) == (0.75, 0.5)


def test_the_first_token_comes_after_opening_and_the_prompt() -> None:
    assert Figures.of("cold", "prompt", [sample(2.0, opening=0.5)]).first_token_seconds == 2.5
    assert Figures.of("cold", "decode", [sample(2.0)]).first_token_seconds is None


def test_opening_is_timed_where_an_engine_is_opened_for_the_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(1000))  # a second passes between any two looks at it
    monkeypatch.setattr("time.perf_counter", lambda: float(next(clock)))
    figures = figures_of(Machines())
    assert (figures["cold", "prompt"].first_token_seconds, figures["warm", "prompt"].first_token_seconds) == (2, 1)


def test_wrong_guesses_are_read_but_not_missed() -> None:
    figures = Figures.of("warm", "decode", [sample(foreseen=3, foreseen_used=1)])  # 5 read, 2 of them in vain
    assert figures.bytes_per_token == 10**8
    assert figures.missed_bytes_per_token == pytest.approx(0.6 * 10**8)
    assert figures.hit_rate == 15 / 18
    assert figures.foreseen_used_share == pytest.approx(1 / 3)


def test_stages_are_milliseconds_per_token() -> None:
    assert figures_of(Machines())["warm", "decode"].stage_milliseconds == {"router": 250}
    samples = [sample(stages={"router": seconds, "experts": 1.0}) for seconds in (0.1, 0.2, 0.9)]
    assert Figures.of("warm", "decode", samples).stage_milliseconds == {"router": 20, "experts": 100}


def test_the_ceiling_is_the_storage_s_time_where_that_is_longer() -> None:
    """Half of the gigabyte came from the storage, at 0.5 GB/s: 1 s of the 4 for 10 tokens; 0.5 s were computed."""
    ceiling = Ceiling.of([sample(4.0, storage=5 * 10**8, wait_seconds=3.5)], limit=0.5)
    assert (ceiling.tokens_per_second, ceiling.share, ceiling.cause) == (
        pytest.approx(10),
        pytest.approx(0.25),
        "storage",
    )


def test_the_ceiling_is_the_computing_time_where_that_is_longer() -> None:
    ceiling = Ceiling.of([sample(4.0, storage=5 * 10**8, wait_seconds=1.0)], limit=0.5)
    assert (ceiling.tokens_per_second, ceiling.share, ceiling.cause) == (
        pytest.approx(10 / 3),
        pytest.approx(0.75),
        "compute",
    )


def test_without_word_from_the_system_all_missed_bytes_count_as_the_storage_s() -> None:
    ceiling = Ceiling.of([sample(4.0, wait_seconds=3.5, foreseen=5, foreseen_used=3)], limit=0.5)
    assert ceiling.share == pytest.approx(0.6 * 2 / 4)


def test_the_storage_is_measured_before_each_cold_repetition_and_its_median_is_the_limit() -> None:
    rates, machines = iter((0.1, 0.5)), Machines()

    def storage_rate() -> float:
        assert machines.open == 0, "an engine would compete for memory and disk"
        return next(rates)

    measured = measure(machines, machines.drop, WORKLOAD, storage_rate)
    assert measured.storage_rates == (0.1, 0.5)
    assert all(figure.ceiling is not None for figure in measured.figures)


def test_a_text_is_taken_piece_by_piece_and_round_and_round() -> None:
    workload = Workload(prompt_tokens=2, decode_tokens=1, repetitions=1, vocab_size=50, text=range(8))
    assert [workload.tokens(repetition) for repetition in range(3)] == [([0, 1], [2]), ([3, 4], [5]), ([0, 1], [2])]


def test_a_text_shorter_than_a_repetition_is_refused() -> None:
    with pytest.raises(UsageError, match="the text has 2 tokens, and a repetition takes 3"):
        Workload(prompt_tokens=2, decode_tokens=1, repetitions=1, vocab_size=50, text=[1, 2])


def test_what_the_system_does_not_say_stays_unsaid() -> None:
    figures = Figures.of("warm", "decode", [sample()])
    assert (figures.storage_share, figures.reading_gigabytes_per_second, figures.ceiling) == (None, None, None)
    nothing = Figures.of("warm", "decode", [sample(bytes_read=0, records_read=0, slot_hits=0, storage=0)], limit=1.0)
    assert (nothing.hit_rate, nothing.storage_share, nothing.foreseen_used_share) == (None, None, None)
    assert nothing.ceiling == Ceiling(10, 1, "compute")


def test_other_reads_of_the_process_do_not_make_more_than_all() -> None:
    assert Figures.of("cold", "prompt", [sample(bytes_read=10, storage=4096)]).storage_share == 1


def test_a_workload_longer_than_the_context_is_refused() -> None:
    WORKLOAD.check(7)
    with pytest.raises(UsageError, match="4 prompt and 3 decode tokens do not fit the context of 6"):
        WORKLOAD.check(6)


@pytest.mark.parametrize("values", [(0, 1, 1), (1, 0, 1), (1, 1, 0), (-1, 1, 1)])
def test_a_workload_of_nothing_is_refused(values: tuple[int, int, int]) -> None:
    with pytest.raises(UsageError, match="less than 1"):
        Workload(*values, vocab_size=10)


def test_the_hit_rate_of_nothing_is_none() -> None:
    assert (share(0, 0), share(1, 3)) == (None, 0.25)


def test_the_host_tells_what_it_can(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x" * 100_000)
    assert host.drop_cached([file]) == hasattr(__import__("os"), "posix_fadvise")
    assert file.read_bytes() == b"x" * 100_000
    assert 10**6 < host.peak_resident() < 10**12
    assert host.storage_read() is None or host.storage_read() >= 0  # type: ignore[operator]


def test_a_host_without_the_means_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delattr("os.posix_fadvise", raising=False)
    assert not host.drop_cached([tmp_path / "never opened"])


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere only getrusage tells")
def test_the_peak_is_this_process_s_own() -> None:
    """A child that is forked from a large process starts with its parent's ru_maxrss."""
    ballast = np.ones(200_000_000, np.uint8)
    code = "from moepack.runtime.host import peak_resident; print(peak_resident())"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, preexec_fn=int)
    assert int(child.stdout) < len(ballast)


def test_without_proc_the_peak_comes_from_getrusage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "_number", lambda *_: None)
    monkeypatch.setattr("resource.getrusage", lambda _: SimpleNamespace(ru_maxrss=5000))
    monkeypatch.setattr("sys.platform", "darwin")
    assert host.peak_resident() == 5000
    monkeypatch.setattr("sys.platform", "linux")
    assert host.peak_resident() == 5000 * 1024


def test_a_larger_allocation_raises_the_peak() -> None:
    before = host.peak_resident()
    array = np.ones(40_000_000, np.uint8)
    assert array[::4096].sum() > 0
    assert host.peak_resident() >= max(before, 40_000_000)
