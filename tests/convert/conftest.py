"""Fixtures of moe-pack's own tests: the command line, a checkpoint and a pack to damage, a calibration."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from calibrating import calibrated, windows_of
from checkpoints import TINY, CheckpointMaker, Variant
from packs import build_pack
from ran import Ran

from moepack.convert import cli


@pytest.fixture
def moe_pack(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ran]:
    """Runs the command line in this process."""

    def run(*arguments: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["moe-pack", *map(str, arguments)])
        capsys.readouterr()
        code: Any = 0
        try:
            cli.main()
        except SystemExit as leaving:
            code = leaving.code or 0
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return run


@pytest.fixture
def checkpoint(make_checkpoint: CheckpointMaker, tmp_path: Path) -> Path:
    """A copy to damage, in a folder of its own."""
    return make_checkpoint.copy(Variant(), tmp_path / "source" / "checkpoint")


@pytest.fixture
def pack(make_checkpoint: CheckpointMaker, tmp_path: Path) -> Path:
    target = tmp_path / "pack"
    build_pack(make_checkpoint(Variant()), target)
    return target


@pytest.fixture(scope="session")
def whole_calibration(make_checkpoint: CheckpointMaker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A calibration that nothing disturbed."""
    path = tmp_path_factory.mktemp("whole") / "c.moecal"
    calibrated(make_checkpoint(Variant(TINY)), path, windows_of(TINY))
    return path


@pytest.fixture
def calibrated_pack(
    make_checkpoint: CheckpointMaker, whole_calibration: Path, tmp_path: Path, moe_pack: Callable[..., Ran]
) -> Path:
    """Of one recipe with overrides, by that calibration."""
    recipe = {
        "format": "book2-g8",
        "method": "gptq",
        "overrides": [{"layers": "1-2", "projections": ["down"], "format": "affine3-g64", "method": "imatrix"}],
    }
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    target = tmp_path / "calibrated"
    options = ("--recipe", tmp_path / "recipe.json", "--calibration", whole_calibration)
    assert moe_pack("build", make_checkpoint(Variant()), target, *options).code == 0
    return target
