"""Runs kernels on numpy arrays through the backend's own module, on whatever device `Metal` gives.

On a Mac that is its GPU, and tests of kernels run here instead of under msl. It has never happened: on Linux a test
holds this file against msl, under the stand-in.
"""

import re
from collections.abc import Sequence
from functools import cache

import numpy as np
import pytest

from moepack.manifests.errors import UnsupportedError
from moepack.runtime.backends.metal.device import Argument, Buffer, Device, Pipeline, Size

MOST_BY_VALUE = 4096
ARGUMENT = re.compile(r"([^,(]+)\[\[buffer\((\d+)\)\]\]")


@cache
def opened() -> "Launcher":
    """Of the machine's device; skips the test if there is none that our kernels can run on."""
    try:
        return Launcher(Device())
    except UnsupportedError as refused:
        pytest.skip(str(refused))


class Launcher:
    """Makes each pipeline once."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._pipelines: dict[tuple[str, str, int], Pipeline] = {}

    def run(
        self, name: str, source: str, threads: int, grid: Size, given: Sequence[np.ndarray | bytes]
    ) -> list[np.ndarray]:
        """The arrays that the kernel may write, in their order, as it leaves them; those given stay."""
        arguments = [self._argument(i, each) for i, each in enumerate(given)]
        with self._device.pool():
            commands = self._device.commands(name)
            commands.section(name)
            commands.run(self._pipeline(name, source, threads), grid, arguments)
            commands.commit()
            commands.finish()
        written = writable(source, name)
        return [_contents(arguments[i], each) for i, each in enumerate(given) if i in written]

    def _pipeline(self, name: str, source: str, threads: int) -> Pipeline:
        key = (name, source, threads)
        if key not in self._pipelines:
            self._pipelines[key] = self._device.library(source, "a test's source").pipeline(name, threads)
        return self._pipelines[key]

    def _argument(self, index: int, given: np.ndarray | bytes) -> Argument:
        if isinstance(given, bytes) and len(given) <= MOST_BY_VALUE:
            return given
        raw = np.frombuffer(given if isinstance(given, bytes) else given.tobytes(), np.uint8)
        buffer = self._device.buffer(max(1, len(raw)), f"argument {index}")
        buffer.bytes[: len(raw)] = raw
        return buffer


def writable(source: str, name: str) -> set[int]:
    """Indices of the buffers that a kernel does not take as const, as its source says."""
    signature = source[source.index(f"kernel void {name}(") :].partition("{")[0]
    words = {int(index): set(re.findall(r"\w+", text)) for text, index in ARGUMENT.findall(signature)}
    return {index for index, found in words.items() if "device" in found and "const" not in found}


def _contents(argument: Argument, given: np.ndarray | bytes) -> np.ndarray:
    assert isinstance(argument, Buffer), "a kernel writes what it is given by value"
    assert isinstance(given, np.ndarray), "a kernel writes bytes"
    return argument.bytes[: given.nbytes].copy().view(given.dtype).reshape(given.shape)
