"""Memory that is lent: no region in two hands, all of it whole again in the end, whoever finds the garbage."""

import gc
import threading
from itertools import pairwise
from types import ModuleType

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moepack.manifests.errors import DeviceError
from moepack.runtime.backends.metal.device import Device
from moepack.runtime.backends.metal.memory import (
    LINE,
    PAGE,
    SHELF,
    Region,
    SharedMemory,
    Shelf,
    Spares,
    Workspace,
    shelf_bytes,
)

SIZE = 64 * LINE


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.one_of(st.integers(0, SIZE // 3), st.none()), max_size=60), st.randoms(use_true_random=False))
def test_regions_never_overlap_and_come_back(fake: ModuleType, steps: list[int | None], random: object) -> None:
    """A number lends as many bytes, None gives one of those lent back."""
    workspace = Workspace(Device(), SIZE)
    lent: list[Region] = []
    for size in steps:
        if size is None:
            if lent:
                lent.pop(random.randrange(len(lent)))  # type: ignore[attr-defined]
            continue
        try:
            lent.append(workspace.region(size))
        except DeviceError:
            assert sum(region.size for region in lent) + size > SIZE // 4
        else:
            assert lent[-1].size >= size
        places = sorted((region.offset, region.offset + region.size) for region in lent)
        assert all(end <= start for (_, end), (start, _) in pairwise(places))
        assert max([end for _, end in places], default=0) <= workspace.peak <= SIZE
    lent.clear()
    assert workspace.region(SIZE).offset == 0


def test_what_does_not_fit_says_what_helps(fake: ModuleType) -> None:
    workspace = Workspace(Device(), SIZE)
    with pytest.raises(DeviceError, match=r"ask for smaller chunks \(--chunk\)"):
        workspace.region(SIZE + 1)


def test_garbage_that_another_thread_collects_comes_back_too(fake: ModuleType) -> None:
    workspace = Workspace(Device(), SIZE)
    knot: list[object] = [workspace.region(SIZE)]
    knot.append(knot)
    del knot
    collector = threading.Thread(target=gc.collect)
    collector.start()
    collector.join()
    assert workspace.region(SIZE).offset == 0


def test_spares_are_lent_again_and_never_twice_at_once(fake: ModuleType) -> None:
    spares = Spares(Device())
    first, second = spares.region(1000, "a"), spares.region(1000, "a")
    assert first.buffer is not second.buffer
    buffer = first.buffer
    del first
    assert spares.region(900, "a").buffer is buffer
    assert spares.region(5000, "a").buffer is not buffer


def test_a_shelf_holds_what_was_put_there(fake: ModuleType) -> None:
    shelf = Shelf(Device())
    contents = [np.full(size, fill, np.uint8) for fill, size in enumerate((1, 255, 256, 257, 2**21, 0, 300_000))]
    for region, content in zip([shelf.put(each) for each in contents], contents, strict=True):
        assert region.offset % LINE == 0
        assert np.array_equal(region.buffer.bytes[region.offset : region.offset + len(content)], content)


class Memory:
    """A buffer of no device."""

    def __init__(self, size: int) -> None:
        self.bytes = np.zeros(size, np.uint8)

    def __len__(self) -> int:
        return len(self.bytes)


class Bounded:
    """A device that counts what it gives."""

    def __init__(self) -> None:
        self.given = 0

    def buffer(self, size: int, label: str) -> Memory:
        self.given += size
        return Memory(size)


@settings(deadline=None)
@given(st.lists(st.one_of(st.integers(0, SHELF // 8), st.integers(0, 2**21)), max_size=40))
def test_a_shelf_takes_no_more_than_was_planned_in_whatever_order(sizes: list[int]) -> None:
    device = Bounded()
    shelf = Shelf(device)  # type: ignore[arg-type]
    for size in sizes:
        shelf.put(np.zeros(size, np.uint8))
    assert device.given <= shelf_bytes(sizes)
    assert shelf_bytes(sizes) <= sum(sizes) * 16 / 15 + len(sizes) * LINE + SHELF


def test_pieces_are_found_by_address_and_nothing_beyond_them(fake: ModuleType) -> None:
    memory = SharedMemory(Device())
    pieces = [memory.reserve(size) for size in (PAGE, 3 * PAGE + 5, 100)]
    for piece in pieces:
        buffer, offset = memory.place(piece[7:])
        assert offset == 7
        assert buffer.bytes.ctypes.data == piece.ctypes.data
    beyond = pieces[0].base
    assert isinstance(beyond, type(pieces[0]))
    with pytest.raises(ValueError, match="lie in no memory"):
        memory.place(beyond[: len(beyond)])
