"""The same checkpoint and recipes give the same packs, whatever surrounds the build: the part of the matrix that this
machine can show in seconds. `make matrix` has the rest (docs/reproducibility.md).
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from golden.again import kept
from golden.checkpoint import HIDDEN, INTERMEDIATE
from golden.keeping import FACTS, HERE
from golden.recipes import CODINGS, EVERY, TRUNKS

from moepack.layout.formats import FORMATS
from moepack.manifests.schema import FORMAT_VERSION
from moepack.quantize import _native
from moepack.quantize.methods import METHODS, suits

TESTS = Path(__file__).parent
# Of each surrounding: environment, umask, folder, and what is built.
PLAIN: dict[str, str] = {}
TURKISH = {"TZ": "Pacific/Kiritimati", "LC_ALL": "tr_TR.UTF-8", "LANG": "tr_TR.UTF-8", "PYTHONHASHSEED": "1"}
BARE = {"TZ": "America/St_Johns", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONHASHSEED": "77", "SOURCE_DATE_EPOCH": "1"}
SURROUNDINGS = {
    "jobs": (PLAIN, 0o022, "there", ("--jobs", "1,2,8")),
    "turkish": (TURKISH, 0o077, "Türkçe ad, boşluklu", ("--jobs", "8")),
    "bare": (BARE, 0o000, "d/e/e/p", ("--jobs", "1")),
    "killed": ({"PYTHONHASHSEED": "3"}, 0o027, "elsewhere", ("--jobs", "1,8", "--kill")),
}


def again(folder: Path, env: Mapping[str, str], umask: int, options: tuple[str, ...]) -> list[dict[str, Any]]:
    """What a process of its own says that packs the golden checkpoint, working in `folder`."""
    folder.mkdir(parents=True)
    done = subprocess.run(
        [sys.executable, "-m", "golden.again", folder / "work", *options],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(TESTS)} | env,
        umask=umask,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_recipes_have_every_format_method_and_trunk_that_fits() -> None:
    fitting = [one for one in FORMATS if one.fits(HIDDEN)]
    assert {one.name for one in fitting if not one.fits(INTERMEDIATE)} == {
        name for name, _ in CODINGS if name.endswith("-g64")
    }
    assert set(CODINGS) == {(one.name, method) for one in fitting for method in METHODS if suits(method, one)}
    used = {(o.coding.format.name, o.coding.method) for recipe in EVERY.values() for o in recipe.overrides}
    assert used == set(CODINGS)
    assert {recipe.trunk_format for recipe in EVERY.values()} == set(TRUNKS)


def test_the_kept_digests_are_of_all_recipes_and_the_kept_pack() -> None:
    facts = json.loads((HERE / f"v{FORMAT_VERSION}" / FACTS).read_text())
    assert kept().keys() == EVERY.keys()
    assert kept()["golden"] == facts["digest"]
    assert len(set(kept().values())) == len(EVERY)


@pytest.mark.parametrize("isa", _native.INSTRUCTION_SETS)
@pytest.mark.parametrize("name", SURROUNDINGS)
def test_packs_are_the_kept_ones(name: str, isa: str, tmp_path: Path) -> None:
    env, umask, place, options = SURROUNDINGS[name]
    machine, *built = again(tmp_path / place, {**env, "MOEPACK_ISA": isa}, umask, options)
    assert machine["isa"] == isa
    assert [one for one in built if one["digest"] != kept()[one["pack"]]] == []
    assert {one["pack"] for one in built} == EVERY.keys()
    if "--kill" in options:
        assert {one["kept_layers"] for one in built} >= {0, 2}  # killed early and late
