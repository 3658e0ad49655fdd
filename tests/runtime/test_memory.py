"""The memory plan: a promise that is kept, or refused with the number that works."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from checkpoints import TINY, CheckpointMaker, Variant
from packs import build_pack
from tinypack import build, tiny_model, tiny_plan

from moepack.layout.reader import Pack
from moepack.manifests.errors import UsageError
from moepack.runtime import memory
from moepack.runtime.memory import MemoryPlan, plan
from moepack.runtime.quantities import parse_size


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pack]:
    folder = tmp_path_factory.mktemp("planned")
    build(folder / "pack", tiny_plan(folder, tiny_model(layers=2, experts=9)))
    with Pack.open(folder / "pack") as opened:
        yield opened


def planned(pack: Pack, budget: int | None, slots: int | None = None, context: int | None = None) -> MemoryPlan:
    return plan(pack, memory=budget, slots=slots, context=context, chunk=16)


def test_a_large_budget_holds_every_expert_and_no_more(pack: Pack) -> None:
    found = planned(pack, 10**12)
    assert found.slots == 18
    assert sum(found.parts().values()) == found.total


@pytest.mark.parametrize("slots", [None, 1, 5])
def test_the_smallest_budget_it_names_can_be_pasted_and_is_the_smallest(pack: Pack, slots: int | None) -> None:
    with pytest.raises(UsageError, match="for a context of 64 tokens and chunks of 16") as refused:
        planned(pack, 1000, slots, context=64)
    smallest = parse_size(re.search(r"--memory (\S+)", str(refused.value))[1])
    found = planned(pack, smallest, slots, context=64)
    assert found.slots >= (slots or 1)
    assert found.total <= smallest
    with pytest.raises(UsageError, match="too few"):
        planned(pack, smallest - memory.MESSAGE_STEP, slots, context=64)


def test_a_large_tokenizer_is_counted(pack: Pack) -> None:
    before = planned(pack, 10**12).process
    tokenizer = pack.path / "tokenizer.json"
    kept = tokenizer.read_bytes() if tokenizer.exists() else None
    try:
        tokenizer.write_bytes(bytes(len(kept or b"") + 1_000_000))
        assert planned(pack, 10**12).process == before + memory.TOKENIZER_COPIES * 1_000_000
    finally:
        tokenizer.unlink() if kept is None else tokenizer.write_bytes(kept)


def test_more_context_leaves_fewer_slots(pack: Pack) -> None:
    budget = planned(pack, 10**12, slots=10, context=1).total + memory.HUGE_PAGE
    assert planned(pack, budget, context=1).slots == 10
    assert planned(pack, budget, context=64).state > planned(pack, budget, context=1).state


def test_the_state_is_counted_to_the_byte(pack: Pack) -> None:
    """One linear layer: conv [3, 32] and memory [2, 8, 8]; one full layer: 2 x 16 floats per position."""
    assert planned(pack, 10**12, context=10).state == 4 * (3 * 32 + 2 * 8 * 8) + 10 * 2 * 4 * 16


def test_the_default_budget_is_what_is_available(pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_system_available", lambda: 8_000_000_000)
    monkeypatch.setattr(memory, "_group_available", lambda: [4_000_000_000])
    assert planned(pack, None).budget == 3_000_000_000


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


PEAK = """
import sys
from pathlib import Path
from moepack.runtime.engine import Engine, EngineOptions
from moepack.runtime import cli
options = EngineOptions(threads=2, memory=int(sys.argv[2]), chunk=256, context=4096)
with Engine.open(Path(sys.argv[1]), options) as engine:
    engine.new_session().extend([i * 7 % engine.model.vocab_size for i in range(4000)])
status = Path("/proc/self/status").read_text().splitlines()
print(next(line.split()[1] for line in status if line.startswith("VmHWM")))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from Linux's /proc")
def test_the_peak_of_a_long_prompt_stays_within_the_budget(make_checkpoint: CheckpointMaker, tmp_path: Path) -> None:
    build_pack(make_checkpoint(Variant(TINY)), tmp_path / "pack")
    with Pack.open(tmp_path / "pack") as opened, pytest.raises(UsageError) as refused:
        plan(opened, memory=1, slots=None, context=4096, chunk=256)
    budget = parse_size(re.search(r"--memory (\S+)", str(refused.value))[1])
    command = [sys.executable, "-c", PEAK, str(tmp_path / "pack"), str(budget)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert 0 < int(done.stdout) * 1024 <= budget


def test_what_this_machine_has(tmp_path: Path) -> None:
    assert 0 < memory.available_memory() < 2**50
