"""Packs of the model that is shipped with moepack; tests of a pack of their own name it anew."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from moe_run_program import built

from moepack.convert.shipped import CHECKPOINT


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("packs") / "pack", CHECKPOINT)


@pytest.fixture
def changed(tmp_path: Path) -> Callable[..., Path]:
    """Builds a pack of the shipped checkpoint with files replaced (text), merged into (dict) or removed (None)."""

    def make(**files: str | dict[str, Any] | None) -> Path:
        checkpoint = tmp_path / "checkpoint"
        shutil.copytree(CHECKPOINT, checkpoint)
        for key, value in files.items():
            file = checkpoint / key.replace("__", ".")
            if isinstance(value, dict):
                file.write_text(json.dumps({**json.loads(file.read_text()), **value}))
            elif value is None:
                file.unlink(missing_ok=True)
            else:
                file.write_text(value)
        return built(tmp_path / "pack", checkpoint)

    return make
