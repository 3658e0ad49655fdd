"""Builds that are interrupted, parallel or repeated end with the same bytes."""

import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from checkpoints import CheckpointMaker, Shape, Variant
from packs import PLAIN, build_pack
from safetensors.torch import load_file, save_file

from moepack.convert import fingerprint as samples
from moepack.convert.checkpoint import Checkpoint
from moepack.convert.parallel import in_flight, in_order
from moepack.layout.sinks import LayerSink, TrunkSink
from moepack.manifests.errors import CorruptInputError, StorageError, UsageError
from moepack.manifests.manifest import pack_digest
from moepack.manifests.progress import Silent
from moepack.manifests.verify import verify

MOE_PACK = (sys.executable, "-c", "from moepack.convert.cli import main; main()")
LONGER = Variant(shape=Shape(layers=12, experts=16, hidden=256, intermediate=128, seed=9), fused=True)
KILLS = 30  # in all, not counting those that came too late
KILLS_OF_EACH = 4


def digest(path: Path) -> str:
    assert verify(path, threads=2, progress=Silent()).ok
    return pack_digest(path)


@pytest.mark.parametrize("variant", [Variant(), Variant(dialect="mlx", bits=4)], ids=["huggingface", "mlx"])
@pytest.mark.parametrize("trunk", ["source", "affine8-g64"])
def test_the_number_of_threads_does_not_show(
    variant: Variant, trunk: str, make_checkpoint: CheckpointMaker, tmp_path: Path
) -> None:
    for jobs in (1, 2, 4):
        build_pack(make_checkpoint(variant), tmp_path / str(jobs), trunk=trunk, jobs=jobs)
    assert len({digest(tmp_path / str(jobs)) for jobs in (1, 2, 4)}) == 1


class Failing:
    """Lets a sink's method through `after` times, then fails as a full disk does."""

    def __init__(self, sink: type, method: str, after: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = after
        original = getattr(sink, method)

        def limited(*arguments: object) -> None:
            self.left -= 1
            if self.left < 0:
                raise StorageError("the disk is full")
            original(*arguments)

        monkeypatch.setattr(sink, method, limited)


@pytest.mark.parametrize(
    ("sink", "method", "after"),
    [(LayerSink, "append", 0), (LayerSink, "append", 11), (LayerSink, "append", 31), (TrunkSink, "write_blocks", 7)],
)
def test_a_failed_build_leaves_no_pack_and_is_resumed(
    sink: type, method: str, after: int, make_checkpoint: CheckpointMaker, tmp_path: Path
) -> None:
    checkpoint = make_checkpoint(Variant())
    build_pack(checkpoint, tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch:
        Failing(sink, method, after, patch)
        with pytest.raises(StorageError, match="the disk is full"):
            build_pack(checkpoint, tmp_path / "pack")
    assert not (tmp_path / "pack").exists()
    build_pack(checkpoint, tmp_path / "pack")
    assert digest(tmp_path / "pack") == digest(tmp_path / "whole")
    assert not (tmp_path / "pack.partial").exists()


def test_finished_layers_are_not_packed_again(
    make_checkpoint: CheckpointMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, per_layer = make_checkpoint(Variant()), Variant().shape.experts
    with pytest.MonkeyPatch.context() as patch:
        Failing(LayerSink, "append", 2 * per_layer + 1, patch)
        with pytest.raises(StorageError):
            build_pack(checkpoint, tmp_path / "pack")
    appended = Failing(LayerSink, "append", 1000, monkeypatch)
    build_pack(checkpoint, tmp_path / "pack")
    assert 1000 - appended.left == 2 * per_layer


def test_another_recipe_does_not_resume_what_is_there(make_checkpoint: CheckpointMaker, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(Variant())
    with pytest.MonkeyPatch.context() as patch:
        Failing(LayerSink, "append", 9, patch)
        with pytest.raises(StorageError):
            build_pack(checkpoint, tmp_path / "pack")
    with pytest.raises(UsageError, match="partial"):
        build_pack(checkpoint, tmp_path / "pack", method="minmax")


def other_weights(checkpoint: Path, name: str) -> None:
    """The same checkpoint with one tensor trained anew: no name, size or header tells."""
    path = checkpoint / "model.safetensors"
    tensors = load_file(path)
    tensors[name] = tensors[name] * 2
    save_file(tensors, path, metadata={"format": "pt"})


def interrupted(checkpoint: Path, target: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        Failing(LayerSink, "append", 11, patch)
        with pytest.raises(StorageError):
            build_pack(checkpoint, target)


@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.3.mlp.experts.7.down_proj.weight"])
def test_other_weights_under_the_same_headers_do_not_resume_what_is_there(
    name: str, make_checkpoint: CheckpointMaker, tmp_path: Path
) -> None:
    checkpoint, target = make_checkpoint.copy(Variant(), tmp_path / "checkpoint"), tmp_path / "pack"
    interrupted(checkpoint, target)
    other_weights(checkpoint, name)
    with pytest.raises(UsageError, match=r"pack\.partial"):
        build_pack(checkpoint, target)
    assert not target.exists()


def test_a_copy_of_the_checkpoint_resumes_what_is_there(make_checkpoint: CheckpointMaker, tmp_path: Path) -> None:
    interrupted(make_checkpoint(Variant()), tmp_path / "pack")
    build_pack(make_checkpoint.copy(Variant(), tmp_path / "elsewhere"), tmp_path / "pack")
    build_pack(make_checkpoint(Variant()), tmp_path / "whole")
    assert digest(tmp_path / "pack") == digest(tmp_path / "whole")


@pytest.mark.parametrize("in_place", [True, False])
def test_a_checkpoint_that_changes_while_it_is_read_makes_no_pack(
    in_place: bool, make_checkpoint: CheckpointMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, target = make_checkpoint.copy(Variant(), tmp_path / "checkpoint"), tmp_path / "pack"
    shutil.copytree(checkpoint, tmp_path / "other")
    other_weights(tmp_path / "other", "lm_head.weight")
    weights, other = checkpoint / "model.safetensors", tmp_path / "other" / "model.safetensors"
    finish = TrunkSink.finish

    def save_over(sink: TrunkSink) -> str:
        weights.write_bytes(other.read_bytes()) if in_place else other.rename(weights)
        return finish(sink)

    monkeypatch.setattr(TrunkSink, "finish", save_over)
    with pytest.raises(CorruptInputError, match=r"changed while it was read; remove .*pack\.partial and build again"):
        build_pack(checkpoint, target)
    assert not target.exists()


@pytest.mark.parametrize("at", [0, 0.1, 0.5, 1])
def test_samples_of_large_files_tell_trained_weights_apart(
    at: float, make_checkpoint: CheckpointMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With samples of a few bytes instead of whole files: wherever one tensor is new, another fingerprint."""
    monkeypatch.setattr(samples, "WHOLE_BYTES", 0)
    monkeypatch.setattr(samples, "BLOCK_BYTES", 64)
    monkeypatch.setattr(samples, "TENSOR_BYTES", 64)
    monkeypatch.setattr(samples, "TENSORS", 10_000)
    checkpoint = make_checkpoint.copy(Variant(), tmp_path / "checkpoint")
    with Checkpoint.open(str(checkpoint)) as opened:
        before, names = samples.fingerprint(opened), sorted(opened.entries)
    other_weights(checkpoint, names[int(at * (len(names) - 1))])
    with Checkpoint.open(str(checkpoint)) as opened:
        assert samples.fingerprint(opened) != before


def test_progress_adds_up(make_checkpoint: CheckpointMaker, tmp_path: Path) -> None:
    counted = Counted()
    packing = build_pack(make_checkpoint(Variant()), tmp_path / "pack", progress=counted)
    total, done = counted.tasks["packing"]
    header = len(packing.plan.trunk_header)
    assert total == packing.plan.expert_bytes + packing.plan.trunk_bytes
    assert done == total - header


class Counted(Silent):
    def __init__(self) -> None:
        self.tasks: dict[str, tuple[int, int]] = {}

    def task(self, title: str, total: int, done: int = 0) -> "CountedTask":
        self.tasks[title] = (total, done)
        return CountedTask(self, title)


class CountedTask:
    def __init__(self, owner: Counted, title: str) -> None:
        self._owner, self._title = owner, title

    def __enter__(self) -> "CountedTask":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def advance(self, size: int) -> None:
        total, done = self._owner.tasks[self._title]
        self._owner.tasks[self._title] = (total, done + size)

    def note(self, text: str) -> None:
        pass


def start(checkpoint: Path, target: Path) -> subprocess.Popen[bytes]:
    command = [*MOE_PACK, "build", str(checkpoint), str(target), "--jobs", "2", *PLAIN]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def kill_at_random(checkpoint: Path, target: Path, chance: random.Random, duration: float) -> bool:
    """Start a build, kill it at a random moment after it has begun to write; whether the kill came before its end."""
    partial = target.with_name(target.name + ".partial")
    before = partial.stat().st_mtime_ns if partial.exists() else 0
    child = start(checkpoint, target)
    while child.poll() is None and not (partial.exists() and partial.stat().st_mtime_ns != before):
        time.sleep(0.001)
    time.sleep(chance.uniform(0, duration))
    child.kill()
    code = child.wait()
    assert code in (0, -signal.SIGKILL)
    return code != 0


def kill_and_resume(checkpoint: Path, folder: Path, seed: int, duration: float) -> list[Path]:
    """Packs, each built through a few kills and then to its end, until half of all kills came before a run's end."""
    folder.mkdir()
    chance, landed, packs = random.Random(seed), 0, list[Path]()
    while landed < KILLS // 2:
        packs.append(folder / str(len(packs)))
        for _ in range(KILLS_OF_EACH):
            if not packs[-1].exists():
                landed += kill_at_random(checkpoint, packs[-1], chance, duration)
        if not packs[-1].exists():
            assert start(checkpoint, packs[-1]).wait() == 0
    return packs


def test_thirty_kills_at_random_moments_change_nothing(make_checkpoint: CheckpointMaker, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(LONGER)
    begin = time.monotonic()
    build_pack(checkpoint, tmp_path / "whole")
    duration, expected = (time.monotonic() - begin) / KILLS_OF_EACH, digest(tmp_path / "whole")
    with ThreadPoolExecutor(2) as pool:
        halves = pool.map(lambda seed: kill_and_resume(checkpoint, tmp_path / str(seed), seed, duration), range(2))
    assert {digest(pack) for packs in halves for pack in packs} == {expected}


def test_work_in_order_is_bounded() -> None:
    running, most, lock = 0, 0, threading.Lock()

    def items() -> Iterator[int]:
        nonlocal running, most
        for item in range(50):
            with lock:
                running += 1
                most = max(most, running)
            yield item

    results = []
    for result in in_order(lambda item: item * item, items(), jobs=3):
        results.append(result)
        with lock:
            running -= 1
    assert results == [item * item for item in range(50)]
    assert most <= in_flight(3)


def test_the_first_error_stops_the_work() -> None:
    begun = []

    def work(item: int) -> int:
        begun.append(item)
        if item == 4:
            raise ValueError("four")
        return item

    results = []
    with pytest.raises(ValueError, match="four"):
        results.extend(in_order(work, range(1000), jobs=2))
    assert max(begun) < 4 + 2 * in_flight(2)


def test_an_abandoned_build_frees_its_threads(make_checkpoint: CheckpointMaker, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        Failing(LayerSink, "append", 3, patch)
        with pytest.raises(StorageError):
            build_pack(make_checkpoint(Variant()), tmp_path / "pack", jobs=4)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("moe-pack")]


def test_records_share_a_bounded_number_of_buffers(
    make_checkpoint: CheckpointMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[int] = set()
    original = LayerSink.append

    def noting(sink: LayerSink, record: np.ndarray) -> None:
        seen.add(record.ctypes.data)
        original(sink, record)

    monkeypatch.setattr(LayerSink, "append", noting)
    build_pack(make_checkpoint(LONGER), tmp_path / "pack", jobs=2)
    assert len(seen) <= in_flight(2)
