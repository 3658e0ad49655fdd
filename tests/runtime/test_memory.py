"""The memory plan: a promise that is kept, or refused with the number that works."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest
from checkpoints import CheckpointMaker, Shape, Variant
from packs import build_pack, build_with
from tinypack import build, tiny_model, tiny_plan
from wide import WIDE

from moepack.convert.recipe import Recipe
from moepack.convert.shipped import CHECKPOINT, QUESTION
from moepack.layout.reader import Pack
from moepack.manifests import schema
from moepack.manifests.errors import UsageError
from moepack.runtime import memory
from moepack.runtime.memory import MemoryPlan, plan, scratch_bytes
from moepack.runtime.quantities import parse_size


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped model, as moe-pack demo packs it."""
    target = tmp_path_factory.mktemp("demo") / "pack"
    build_with(CHECKPOINT, target, Recipe())
    return target


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pack]:
    folder = tmp_path_factory.mktemp("planned")
    build(folder / "pack", tiny_plan(folder, tiny_model(layers=2, experts=9)))
    with Pack.open(folder / "pack") as opened:
        yield opened


def planned(
    pack: Pack, budget: int | None, slots: int | None = None, context: int | None = None, chunk: int | None = 16
) -> MemoryPlan:
    return plan(pack, memory=budget, slots=slots, context=context, chunk=chunk)


def refusal(pack: Pack, budget: int, **asked: int | None) -> str:
    with pytest.raises(UsageError, match="too few") as refused:
        planned(pack, budget, **asked)
    return str(refused.value)


def smallest(sentence: str) -> int:
    """The budget that a refusal says would work."""
    return parse_size(re.search(r"--memory (\S+)", sentence)[1])


def test_a_large_budget_holds_every_expert_and_no_more(pack: Pack) -> None:
    found = planned(pack, 10**12)
    assert found.slots == 18
    assert sum(found.parts().values()) == found.total


@pytest.mark.parametrize("slots", [None, 1, 5])
@pytest.mark.parametrize(("context", "chunk"), [(64, 16), (None, None)])
def test_the_smallest_budget_it_names_can_be_pasted_and_is_the_smallest(
    pack: Pack, slots: int | None, context: int | None, chunk: int | None
) -> None:
    sentence = refusal(pack, 1000, slots=slots, context=context, chunk=chunk)
    assert f"for a context of 64 tokens and chunks of {chunk or 32}" in sentence
    budget = smallest(sentence)
    found = planned(pack, budget, slots, context, chunk)
    assert found.slots >= (slots or 1)
    assert found.total <= budget
    refusal(pack, budget - memory.MESSAGE_STEP, slots=slots, context=context, chunk=chunk)


def test_a_large_tokenizer_is_counted_as_it_stays_and_as_it_is_read(pack: Pack) -> None:
    before = planned(pack, 10**12).process
    tokenizer = pack.path / "tokenizer.json"
    try:
        tokenizer.write_bytes(bytes(10_000_000))
        assert planned(pack, 10**12).process == before + memory.TOKENIZER_KEPT * 10_000_000
        assert smallest(refusal(pack, 1000)) == memory.PROCESS_BYTES + memory.TOKENIZER_READING * 10_000_000
    finally:
        tokenizer.unlink()


def test_more_context_leaves_fewer_slots(pack: Pack) -> None:
    budget = planned(pack, 10**12, slots=14, context=1).total + memory.HUGE_PAGE
    assert planned(pack, budget, context=1).slots == 14
    assert planned(pack, budget, context=64).state > planned(pack, budget, context=1).state


def test_the_state_is_counted_to_the_byte(pack: Pack) -> None:
    """One linear layer: conv [3, 32] and memory [2, 8, 8]; one full layer: 2 x 16 floats per position."""
    assert planned(pack, 10**12, context=10).state == 4 * (3 * 32 + 2 * 8 * 8) + 10 * 2 * 4 * 16


def test_the_scratch_of_the_397b_model_by_hand() -> None:
    """Experts: 4 rows of 4096, 1024 between projections, 10 routes; mixer: 2 rows, and 256 tokens of a delta layer.

    Sixteen tokens that decode together hold, of 10 experts each, a row of 4096, one of 1024, the latter rounded twice.

    Rounded, a row of 4096 takes two bytes a column and 20 bytes for 32 of them: 10752; one of 1024 takes 2688.
    """
    sampling = 4 * 10 * WIDE.vocab_size
    rounded = 2048 * (3 * 10752 + 2688)
    few = 16 * 10 * (4 * (4096 + 1024) + 2 * 2688)
    assert scratch_bytes(WIDE, 2048) == 4 * 2048 * (4 * 4096 + 1024 + 10 * 10) + rounded + few + sampling
    channels = 2 * 16 * 128 + 64 * 128
    spanned = 32 * (2 * 4096 + channels + 2 * 64 * 129)
    mixing = 4 * (2 * 32 * 4096 + spanned) + 32 * (10752 + 21504)
    assert scratch_bytes(WIDE, 32) == mixing + 2_400_000 + few + sampling
    assert scratch_bytes(WIDE, 512, span=64) < scratch_bytes(WIDE, 512)


@dataclass(frozen=True)
class Sizes:
    """All that a plan asks of a pack."""

    model: schema.Model


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> Pack:
    """A stand-in for the 397B model's pack at 2 bits: a trunk of 5.5 GB, records of 3.93 MB."""
    monkeypatch.setattr(memory, "trunk_bytes", lambda pack: 5_500_000_000)
    monkeypatch.setattr(memory, "process_bytes", lambda pack: (memory.PROCESS_BYTES, memory.PROCESS_BYTES))
    monkeypatch.setattr(memory, "slot_pitch", lambda pack: 2 * memory.HUGE_PAGE)
    return cast(Pack, Sizes(WIDE))


def test_what_nobody_asked_for_grows_with_the_budget_and_never_starves_the_slots(wide: Pack) -> None:
    """For every budget from the smallest up there is a plan, whatever else was asked for."""
    least = smallest(refusal(wide, 1000, chunk=None))
    before = planned(wide, least, chunk=None)
    assert (before.context, before.chunk, before.slots) == (2048, 32, 1)
    for budget in range(least, least + 20_000_000_000, 97_000_003):
        found = planned(wide, budget, chunk=None)
        assert found.total <= budget
        assert (found.context, found.chunk) >= (before.context, 32)
        room = budget - found.process - found.trunk
        if (found.context, found.chunk) != (2048, 32):
            assert found.slots >= WIDE.num_experts_per_tok
        assert found.context == 2048 or found.state <= room // 4
        assert found.chunk == 32 or found.scratch <= (room - found.state) // 4
        before = found
    assert (before.context, before.chunk) == (32768, 2048)


@pytest.mark.parametrize("asked", [{"chunk": 1500}, {"slots": 700}, {"slots": 50, "chunk": 300}, {"context": 9000}])
def test_every_budget_from_the_smallest_up_works(wide: Pack, asked: dict[str, int]) -> None:
    least = smallest(refusal(wide, 1000, **{"chunk": None, **asked}))
    for budget in range(least, least + 6_000_000_000, 97_000_003):
        found = planned(wide, budget, **{"chunk": None, **asked})
        assert found.total <= budget
        assert all(getattr(found, name) == value for name, value in asked.items())


def test_a_context_that_does_not_fit_is_answered_with_one_that_does(wide: Pack) -> None:
    sentence = refusal(wide, 7_000_000_000, context=100_000)
    fitting = int(re.search(r"or --context (\d+)", sentence)[1])
    assert planned(wide, 7_000_000_000, context=fitting).slots >= 1
    refusal(wide, 7_000_000_000, context=fitting + 100)
    assert "--context" not in refusal(wide, 5_000_000_000, context=100_000)


def test_a_chunk_is_never_longer_than_the_context(wide: Pack) -> None:
    assert planned(wide, 10**12, context=100, chunk=None).chunk == 100
    assert planned(wide, 10**12, chunk=5000).chunk == 5000


def test_the_default_budget_is_a_share_of_what_is_free_and_says_so(pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moepack.runtime.host.memory_free", lambda: 8_000_000_000)
    monkeypatch.setattr(memory, "_group_available", lambda: [])
    found = planned(pack, None)
    assert (found.budget, found.reason.split(" that ")[0]) == (6_000_000_000, "3/4 of the 8.00 GB")
    monkeypatch.setattr(memory, "_group_available", lambda: [9_000_000_000, 4_000_000_000])
    found = planned(pack, None)
    assert (found.budget, found.reason) == (3_000_000_000, "3/4 of the 4.00 GB that are left to this control group")
    assert planned(pack, 10**12).reason == ""


def group(folder: Path, names: tuple[str, str], limit: str, used: int, statistics: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    if statistics:
        (folder / "memory.stat").write_text(statistics)


NEW, OLD = ("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")


def test_control_groups_from_the_process_up_to_the_root(tmp_path: Path) -> None:
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "cgroup").write_text("7:cpu,memory:/box\n3:pids:/elsewhere\n0::/slice/job\n")
    mount = tmp_path / "mount"
    group(mount / "slice" / "job", NEW, "max", 5)
    group(mount / "slice", NEW, "1000", 900, "anon 1\ninactive_file 300\nactive_file 50\nfile 400\n")
    group(mount / "memory" / "box", OLD, "5000", 6000, "inactive_file 1\ntotal_inactive_file 200\n")
    group(mount / "memory", OLD, "9000", 1000)
    assert memory._group_available(tmp_path, mount) == [0, 8000, 450]
    assert memory._group_available(tmp_path / "none", mount) == []


MOE_RUN = str(Path(sys.executable).parent / "moe-run")
LONG = ("--prompt-tokens", "1200", "--decode-tokens", "4", "--repetitions", "1")
BROAD = Shape(hidden=1024, heads=8, head_dim=128, value_heads=16, experts=12, intermediate=512, vocab=8192)
measured_here = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from Linux's /proc")


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The console script in a process of its own: what a budget is for."""
    return subprocess.run([MOE_RUN, *map(str, arguments)], capture_output=True, text=True)


def peak(*arguments: object) -> tuple[int, int]:
    """A run's planned bytes and its peak."""
    done = run(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["peak_resident_bytes"] > found["planned_bytes"]["trunk"]
    return sum(found["planned_bytes"].values()), found["peak_resident_bytes"]


@pytest.fixture(scope="module")
def broad(make_checkpoint: CheckpointMaker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pack of a model so broad that trunk, scratch and slots outweigh the interpreter."""
    target = tmp_path_factory.mktemp("broad") / "pack"
    build_pack(make_checkpoint(Variant(BROAD)), target)
    return target


@measured_here
@pytest.mark.parametrize("options", [(), ("--chunk", 1200, "--context", 1300), ("--slots", 48, "--chunk", 300)])
def test_the_peak_of_a_long_prompt_stays_within_the_smallest_budget(broad: Path, options: tuple[object, ...]) -> None:
    """And within it, not only within five percent of it: a benchmark's process is smaller than a chat's."""
    refused = run("bench", broad, *LONG, *options, "--memory", "1MB")
    assert refused.returncode == 2
    budget = smallest(refused.stderr)
    plan, most = peak("bench", broad, *LONG, *options, "--memory", budget)
    assert most <= budget
    assert plan <= budget


def test_a_benchmark_takes_the_context_it_needs_where_a_small_budget_would_leave_less(broad: Path) -> None:
    workload = ("--prompt-tokens", 2500, "--decode-tokens", 1, "--repetitions", 1, "--memory", "145MB")
    done = run("bench", broad, *workload, "--json")
    assert json.loads(done.stdout)["context"] == 2501, done.stderr
    assert run("bench", broad, *workload, "--context", 2048).returncode == 2


@measured_here
def test_a_chat_starts_with_the_smallest_budget_and_stays_within_it(demo: Path) -> None:
    chat = ("generate", demo, "--messages", QUESTION, "--temp", 0.5, "-n", 8)
    budget = smallest(run(*chat, "--memory", "1MB").stderr)
    assert peak(*chat, "--memory", budget)[1] <= 1.05 * budget


def test_a_run_says_which_budget_it_took_only_when_nobody_asked_for_one(demo: Path) -> None:
    said = run("generate", demo, "-p", "hi", "-n", 1).stderr
    assert re.search(r"^memory: at most .* of a budget of .* \(3/4 of the .*\)", said, re.MULTILINE)
    assert "budget" not in run("generate", demo, "-p", "hi", "-n", 1, "--memory", "1GB").stderr


def test_what_this_machine_has() -> None:
    assert 0 < memory.default_budget().size < 2**50
