"""The console scripts before their command line is there."""

import signal
import subprocess
import sys

import pytest

from moepack.manifests.interrupt import leaving_at_once

INTERRUPTED = """
import os, signal, sys
from importlib import import_module
from types import ModuleType

class Interrupted(ModuleType):
    def __getattr__(self, name):
        try:
            os.kill(os.getpid(), signal.SIGINT)
            for _ in range(1000): pass
        except KeyboardInterrupt:
            raise RuntimeError("what numpy makes of it") from None

signal.signal(signal.SIGINT, signal.default_int_handler)
sys.modules["moepack.{room}.cli"] = Interrupted("cli")
import_module("moepack.{room}.__main__").main()
"""


@pytest.mark.parametrize("room", ["runtime", "convert"])
def test_an_interrupt_while_modules_are_imported_is_no_traceback(room: str) -> None:
    run = subprocess.run([sys.executable, "-c", INTERRUPTED.format(room=room)], capture_output=True, timeout=60)
    assert (run.returncode, run.stderr) == (130, b"error: interrupted\n")


def test_afterwards_interrupts_are_what_they_were() -> None:
    before = signal.getsignal(signal.SIGINT)
    with leaving_at_once():
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before
