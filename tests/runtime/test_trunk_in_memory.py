"""The trunk in memory: the bytes of the file, in one aligned arena, and nothing else left behind."""

import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from checkpoints import CheckpointMaker, Variant
from packs import build_pack
from safetensors import safe_open

from moepack.layout.reader import Pack
from moepack.layout.tensorfile import TensorFile
from moepack.manifests.errors import MismatchError, StorageError
from moepack.runtime import arena, host, trunk


@pytest.fixture(scope="module")
def path(make_checkpoint: CheckpointMaker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("trunk") / "pack"
    build_pack(make_checkpoint(Variant(dialect="mlx", bits=4)), target)
    return target


@pytest.fixture
def pack(path: Path) -> Iterator[Pack]:
    with Pack.open(path) as opened:
        yield opened


@pytest.mark.parametrize("piece", [1, 1000, trunk.PIECE_BYTES])
def test_every_tensor_is_what_the_safetensors_library_reads(
    pack: Pack, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    monkeypatch.setattr(trunk, "PIECE_BYTES", piece)
    found = trunk.read_trunk(pack, check_digest=True)
    with safe_open(pack.trunk.path, "np") as oracle:
        assert set(found) == set(oracle.keys())
        for name, tensor in found.items():
            entry = pack.trunk.entries[name]
            assert tensor.shape == entry.shape
            assert tensor.tobytes() == pack.trunk.path.read_bytes()[entry.offset : entry.offset + entry.size]
            if tensor.dtype.kind != "V" and entry.dtype != "BF16":
                np.testing.assert_array_equal(tensor, oracle.get_tensor(name))


def test_tensors_lie_side_by_side_on_cache_lines_in_one_arena_of_the_planned_size(pack: Pack) -> None:
    found = trunk.read_trunk(pack, check_digest=False)
    starts = sorted((tensor.ctypes.data, tensor.nbytes) for tensor in found.values())
    assert starts[0][0] % arena.HUGE_PAGE == 0
    assert all(start % arena.CACHE_LINE == 0 for start, _ in starts)
    spread = starts[-1][0] + starts[-1][1] - starts[0][0]
    assert sum(size for _, size in starts) <= spread <= trunk.trunk_bytes(pack)


def test_the_file_is_not_left_in_the_page_cache(pack: Pack) -> None:
    if not hasattr(os, "posix_fadvise"):
        pytest.skip("this system cannot be asked")
    with mock.patch("os.posix_fadvise") as forgotten:
        trunk.read_trunk(pack, check_digest=True)
    ranges = sorted(call.args[1:3] for call in forgotten.call_args_list)
    assert sum(size for _, size in ranges) == sum(entry.size for entry in pack.trunk.entries.values())
    assert {call.args[3] for call in forgotten.call_args_list} == {os.POSIX_FADV_DONTNEED}


@pytest.mark.parametrize("check", [True, False])
def test_a_read_that_fails_in_the_middle_ends_the_whole(pack: Pack, check: bool) -> None:
    broken = list(pack.trunk.entries)[3]
    whole = TensorFile.read_into

    def failing(file: TensorFile, name: str, *rest: object, **options: bool) -> None:
        if name == broken:
            raise StorageError("the disk was pulled")
        whole(file, name, *rest, **options)  # type: ignore[arg-type]

    with mock.patch.object(TensorFile, "read_into", failing), pytest.raises(StorageError, match="pulled"):
        trunk.read_trunk(pack, check_digest=check)


def test_any_changed_byte_is_found_when_digests_are_checked(pack: Pack) -> None:
    whole = TensorFile.read_into
    changed = list(pack.trunk.entries)[-1]

    def flipping(file: TensorFile, name: str, out: np.ndarray, *rest: object, **options: bool) -> None:
        whole(file, name, out, *rest, **options)  # type: ignore[arg-type]
        if name == changed:
            out.reshape(-1).view(np.uint8)[-1] ^= 1

    with mock.patch.object(TensorFile, "read_into", flipping):
        trunk.read_trunk(pack, check_digest=False)
        with pytest.raises(MismatchError, match="damaged"):
            trunk.read_trunk(pack, check_digest=True)
        with pytest.raises(MismatchError, match="damaged"):
            trunk.check_trunk(pack)


def test_an_arena_is_zeros_on_a_huge_page_and_can_be_locked_or_says_why_not() -> None:
    memory = arena.reserve(100_000)
    assert (memory.shape, memory.dtype, memory.any()) == ((100_000,), np.uint8, False)
    assert memory.ctypes.data % arena.HUGE_PAGE == 0
    assert host.lock(memory) in (True, False)
    assert host.lock(arena.reserve(1000)) or host.protection(1000) != "locked"


HEAP = """
import sys
import numpy as np
from pathlib import Path
from moepack.runtime import _native
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
assert not {bound} or _native.bound_heap()
for size in range(8, 33, 8):  # each freed block would raise an unbounded threshold
    np.ones(size * 2**18, np.float32)
blocks = [np.ones(2**20, np.float32) for _ in range(60)]
before, last = resident(), blocks[-1]
del blocks
print(before - resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's allocator is bound")
def test_a_bound_heap_gives_back_what_is_freed_below_a_block_in_use() -> None:
    freed = {}
    for bound in (False, True):
        code = HEAP.format(bound=bound)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        freed[bound] = int(done.stdout)
    assert freed[True] > 59 * 4_000_000
    assert freed[False] < freed[True] / 2
