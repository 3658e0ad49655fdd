"""What is counted and traced of tokens: counts against the stand-in's own, slices that nest, and a file of them."""

import json
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from checkpoints import CheckpointMaker
from metal import standin
from metal.whole import Packs, backend_of, on_metal
from traced import check_nesting, slices_of, within

from moepack.layout.reader import Pack
from moepack.manifests.errors import DeviceError
from moepack.runtime.backends.metal.device import Device
from moepack.runtime.tally import Tally
from moepack.runtime.trace import ANSWER, AWAITED, ON_GPU, PLACES, RESIDENT, TOKEN, UNTRACED, WAITING, Trace

MODES = {"in order": ("in-order", 0), "asynchronous": ("async", 1), "lazy": ("lazy", 0)}
FEW = ("--prompt-tokens", 6, "--decode-tokens", 3, "--repetitions", 2)
METAL = ("--backend", "metal", "--memory", "2GB")


@pytest.fixture(scope="module")
def packs(make_checkpoint: CheckpointMaker, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return Packs(tmp_path_factory.mktemp("traced"), make_checkpoint)


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest, fake: ModuleType) -> str:
    name: str = request.param
    fake.configure(mode=MODES[name][0], order=MODES[name][1])
    return name


def theirs(counters: Any) -> Tally:
    """The stand-in's counters, as ours are called; who of the host raised an event it does not know."""
    return Tally(
        command_buffers=counters.command_buffers,
        sections=counters.passes,
        kernels=counters.dispatches,
        gpu_signals=counters.gpu_signals,
        gpu_waits=counters.gpu_waits,
        host_signals=Counter({"moepack-answers": counters.host_signals} if counters.host_signals else {}),
        host_waits=counters.host_waits,
        made=Counter(allocation.kind for allocation in counters.allocated),
    )


@pytest.mark.parametrize("case", ["demo", "odd"])
def test_our_counts_are_the_stand_in_s_own(fake: ModuleType, packs: dict[str, Path], case: str, mode: str) -> None:
    with on_metal(packs[case], chunk=8) as engine:
        tally, session = backend_of(engine).tally, engine.new_session()
        assert tally == theirs(fake.counters())
        for tokens in (range(20), [1], [2], [3]):
            before, seen = tally.copy(), fake.counters()
            session.extend(list(tokens))
            assert tally - before == theirs(fake.counters() - seen)
        assert tally == theirs(fake.counters())


def test_a_token_waits_for_the_host_once_a_layer_and_makes_nothing(packs: dict[str, Path], mode: str) -> None:
    with on_metal(packs["demo"]) as engine:
        session, layers = engine.new_session(), engine.model.num_layers
        session.extend([1, 2, 3])
        session.extend([1])  # the first token compiles what only tokens need
        before = backend_of(engine).tally.copy()
        for token in (2, 3, 4):
            session.extend([token])
        spent = backend_of(engine).tally - before
    assert spent.command_buffers == 3
    assert spent.gpu_waits == spent.gpu_signals == 3 * layers
    assert spent.host_waits["MainThread"] == 3  # at the tokens' ends
    assert spent.host_waits["moepack-answers"] >= 3 * layers
    assert spent.host_waits.keys() == {"MainThread", "moepack-answers"}
    assert spent.host_signals == {"moepack-answers": 3 * layers}
    assert spent.made == {}
    assert spent.sections > 3 * 3 * layers
    assert spent.kernels > spent.sections


def test_what_was_refused_was_not_made(fake: ModuleType) -> None:
    device = Device()
    fake.refuse_allocations(count=1)
    with pytest.raises(DeviceError):
        device.buffer(4096, "cache")
    device.buffer(4096, "cache")
    assert device.tally.made == {"buffer": 1}


def test_every_layer_of_a_token_has_one_answer(packs: dict[str, Path], mode: str) -> None:
    trace = Trace()
    with on_metal(packs["demo"]) as engine:
        session, layers = engine.new_session(), engine.model.num_layers
        session.extend([1, 2, 3])
        engine.record(trace)
        session.extend([4])
        engine.record(UNTRACED)
        session.extend([5])
    check_nesting(trace.slices)
    for name in (AWAITED, ANSWER, RESIDENT, PLACES):
        assert [each.facts for each in trace.named(name)] == [{"layer": layer} for layer in range(layers)]
        assert {each.track for each in trace.named(name)} == {"moepack-answers"}
    answers = trace.named(ANSWER)
    assert all(within(each, answers) for name in (RESIDENT, PLACES) for each in trace.named(name))
    assert all(earlier.end <= later.start for earlier, later in pairwise(answers))
    assert [(each.track, each.name) for each in trace.slices if each.name in (WAITING, ON_GPU)] == [
        ("MainThread", WAITING),
        ("GPU", ON_GPU),
    ]
    assert within(trace.named(WAITING)[0], trace.named("head"))
    assert trace.named(ON_GPU)[0].end >= answers[-1].start  # the last layer's experts come after it


def layers_of(pack: Path) -> int:
    with Pack.open(pack) as opened:
        return opened.model.num_layers


def bench(pack: Path, *arguments: object) -> str:
    """What the program prints, on the stand-in, asynchronous."""
    command = [sys.executable, "-m", "moepack.runtime", "bench", pack, *FEW, *METAL, *arguments]
    environment = standin.environment("mode=async")
    run = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300, env=environment)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_bench_traces_warm_answers_and_says_what_a_token_cost(packs: dict[str, Path], tmp_path: Path) -> None:
    file = tmp_path / "trace.json"
    found = json.loads(bench(packs["demo"], "--trace", file, "--json"))["traced"]
    slices = slices_of(file)
    check_nesting(slices)
    tokens, layers = 6, layers_of(packs["demo"])
    names = Counter(each.name for each in slices)
    assert (names[TOKEN], names[WAITING], names[ON_GPU]) == (tokens,) * 3
    assert (names[ANSWER], names[AWAITED]) == (tokens * layers,) * 2
    assert all(within(each, [s for s in slices if s.name == TOKEN]) for each in slices)
    assert (found["tokens"], found["asked"]["command_buffers"]) == (tokens, 1)
    assert (found["dependencies"], found["dependencies_per_layer"], found["allocations"]) == (layers, 1, 0)
    assert found["asked"]["host_waits"]["MainThread"] == 1
    assert 0 < found["answer_milliseconds"] < found["milliseconds"]
    assert 0 < found["gpu_milliseconds"] < found["milliseconds"]
    assert "Apple hardware" in json.loads(file.read_text())["otherData"]["times"]


def test_bench_prints_what_a_token_cost(packs: dict[str, Path], tmp_path: Path) -> None:
    printed = " ".join(bench(packs["demo"], "--trace", tmp_path / "trace.json").split())
    assert "traced: 6 warm tokens of " in printed
    assert "per token: 1 command buffers, " in printed
    assert " 0 allocations" in printed
    layers = layers_of(packs["demo"])
    assert f"the GPU waits for the host {layers} times a token, 1 per layer; " in printed
    assert "the host waits for the GPU: MainThread 1, moepack-answers " in printed
    assert "which nobody measures" in printed
