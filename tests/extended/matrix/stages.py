"""What cells run: our Python files beside a quantizer that a given compiler built, and environments of libraries.

A stage has all of moepack but the engine's native code, which no pack needs.
"""

import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[3]
PLACE = ROOT / "build" / "matrix"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
DEPENDENCIES: list[str] = PROJECT["project"]["dependencies"]
NANOBIND = next(one for one in PROJECT["build-system"]["requires"] if one.startswith("nanobind"))
LIBRARIES = {
    "pinned": ["--constraint", str(ROOT / ".ci/constraints.txt"), *DEPENDENCIES],
    "oldest": [one.replace(">=", "==") for one in DEPENDENCIES],
    "newest": DEPENDENCIES,
}


def environment(name: str, wanted: Sequence[str]) -> Path:
    """The interpreter of a virtual environment with `wanted`, made if it is not there. Raises CalledProcessError."""
    home = PLACE / "environments" / name
    if not (home / "done").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", home], check=True)
        subprocess.run([home / "bin/python", "-m", "pip", "install", "--quiet", "--upgrade", *wanted], check=True)
        (home / "done").touch()
    return home / "bin/python"


def stage(name: str, settings: Iterable[str]) -> Path:
    """The folder for PYTHONPATH with our files and a quantizer built with CMake's `settings`, made anew."""
    place = PLACE / "stages" / name
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(ROOT / "src/moepack", place / "moepack", ignore=_all_but_python)
    shutil.copy(_built(name, settings), place / "moepack/quantize/_native.so")
    told, version = place / "moepack.dist-info", PROJECT["project"]["version"]
    told.mkdir()
    (told / "METADATA").write_text(f"Metadata-Version: 2.1\nName: moepack\nVersion: {version}\n")
    return place


def _all_but_python(folder: str, names: list[str]) -> list[str]:
    there = [Path(folder, name) for name in names]
    return [path.name for path in there if path.name == "demo" or (path.is_file() and path.suffix != ".py")]


def _built(name: str, settings: Iterable[str]) -> Path:
    tools, place = environment("tools", [NANOBIND]), PLACE / "native" / name
    asked = subprocess.run([tools, "-m", "nanobind", "--cmake_dir"], check=True, capture_output=True, text=True)
    options = ["-DCMAKE_BUILD_TYPE=Release", f"-DPython_EXECUTABLE={tools}", f"-Dnanobind_DIR={asked.stdout.strip()}"]
    options += [f"-D{setting}" for setting in settings]
    subprocess.run(["cmake", "-S", ROOT, "-B", place, *options], check=True, stdout=subprocess.DEVNULL)
    target = ["--target", "quantize_native", "--parallel"]
    subprocess.run(["cmake", "--build", place, *target], check=True, stdout=subprocess.DEVNULL)
    return next((place / "quantize/native").glob("_native*.so"))
