"""Planted faults are found, each at its line, and nothing is found in the sound kernels beside them."""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from metal.msl.launch import Binding, Fault, Grid, Order, launch
from metal.msl.program import Mode, Program

PLANTED = sorted((Path(__file__).parent / "planted").glob("*.metal"))
GRID = Grid((2, 1, 1), (64, 1, 1))
FLOATS = 256
FOUND_BY_ALL = {"divergence", "threadgroup-memory"}
ORDERS = [Order.FORWARD, Order.REVERSE, Order(1), Order(2)]

Found = set[tuple[str, int]]


@cache
def program(path: Path, mode: Mode) -> Program:
    return Program.compile(f'#line 1 "{path.name}"\n{path.read_text()}', {}, mode)


def planted(path: Path) -> Iterator[tuple[str, Found]]:
    """Every kernel of a file with the faults that its comments announce; a function's go to the kernel after it."""
    faults: Found = set()
    name = ""
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if started := re.match(r"kernel void (\w+)", line):
            name = started[1]
        faults |= {(kind, number) for kind in re.findall(r"fault: ([\w-]+)(?=$| )", line) if not line.startswith("//")}
        if line == "}" or (name and line.startswith("kernel") and line.endswith("}")):
            if name:
                yield name, faults
                faults = set()
            name = ""


KERNELS = [(path, name, faults) for path in PLANTED for name, faults in planted(path)]
IDS = [f"{path.stem}:{name}" for path, name, _ in KERNELS]


def run(path: Path, name: str, mode: Mode, order: Order) -> list[Fault]:
    """With a buffer for every argument, each between others' memory; `_again` is the buffer at index 0."""
    compiled = program(path, mode)
    memory = np.zeros((32, 3, FLOATS), np.float32)
    bindings, lengths = [], {}
    for argument in compiled.kernels[name].arguments:
        index = 0 if argument.name.endswith("_again") else argument.index
        if argument.kind == "threadgroup":
            lengths[argument.index] = 64 * 4
        else:
            bindings.append(Binding(argument.index, memory[index, 1].ctypes.data, memory[index, 1].nbytes))
    return launch(compiled, name, GRID, bindings, lengths, order)


@pytest.mark.parametrize(("path", "name", "announced"), KERNELS, ids=IDS)
def test_what_is_announced_is_found_at_its_line_and_nothing_else(path: Path, name: str, announced: Found) -> None:
    faults = run(path, name, Mode.CHECKED, Order.FORWARD)
    assert {(fault.kind, fault.line) for fault in faults} == announced, "\n".join(map(str, faults))
    assert all(str(fault).startswith(f"{path.name}:{fault.line}: kernel {name}: ") for fault in faults)


@pytest.mark.parametrize("order", ORDERS, ids=str)
@pytest.mark.parametrize(("path", "name", "announced"), KERNELS, ids=IDS)
def test_a_kernel_is_faulty_in_every_order_or_in_none(path: Path, name: str, announced: Found, order: Order) -> None:
    """Which line of two, and which of two faults, depends on who comes first."""
    faults = run(path, name, Mode.CHECKED, order)
    assert bool(faults) == bool(announced), "\n".join(map(str, faults))
    assert {fault.kind for fault in faults} <= {kind for kind, _ in announced}


@pytest.mark.parametrize(("path", "name", "announced"), KERNELS, ids=IDS)
def test_unchecked_programs_find_parted_threads_and_no_more(path: Path, name: str, announced: Found) -> None:
    if {kind for kind, _ in announced} & {"out-of-bounds"}:
        return  # without a checker it would write where it may not
    found = {(fault.kind, fault.line) for fault in run(path, name, Mode.FAST, Order.FORWARD)}
    assert found == {(kind, line) for kind, line in announced if kind in FOUND_BY_ALL}


def test_every_kind_of_fault_is_planted_twice() -> None:
    kinds = [kind for _, _, faults in KERNELS for kind, _ in faults]
    for kind in ("divergence", "race", "out-of-bounds", "const-write", "constant-misuse", "uninitialised"):
        assert kinds.count(kind) >= 2, kind
    assert sum(name.startswith("sound_") for _, name, _ in KERNELS) >= 10


def test_sound_kernels_announce_nothing_and_others_something() -> None:
    assert all(name.startswith("sound_") != bool(faults) for _, name, faults in KERNELS)
