"""Puts the stand-in for PyObjC's `Metal` where `import Metal` finds it: on Linux, where there is no real one."""

import importlib.util
import os
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
FAKE = Path(__file__).parent / "fake"
RUNS = sys.platform == "linux"
WHY_NOT = "the stand-in for Metal runs on Linux only"


def install() -> None:
    """For this process. A real `Metal` is left alone."""
    if RUNS and importlib.util.find_spec("Metal") is None:
        sys.path.append(str(FAKE))


def environment(settings: str = "") -> dict[str, str]:
    """For a process that a test starts; `settings` as `Metal.fake` takes them, such as "mode=lazy,order=7"."""
    paths = [str(TESTS), str(FAKE), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "MOEPACK_FAKE_METAL": settings}
