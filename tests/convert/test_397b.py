"""The mission's checkpoint in full, as headers over sparse files: what `moe-pack plan` says of it.

No weights of Qwen3.5-397B-A17B are needed for its arithmetic: 60 layers, 512 experts, all shapes from config.json, MLX
4-bit as mlx_lm.convert writes it (router gates at 8 bits).
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from extended.synthetic import Width, write_headers

WIDTH = Width(layers=60, vocab=248320)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("397b")
    write_headers(WIDTH, directory)
    return directory


def plan(checkpoint: Path, *options: str) -> dict[str, Any]:
    command = [str(Path(sys.executable).parent / "moe-pack"), "plan", str(checkpoint), "--json", *options]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_the_source_is_the_missions_checkpoint(checkpoint: Path) -> None:
    assert plan(checkpoint)["source"]["bytes"] == 223_012_133_816  # text weights only; published: 224 GB


def test_two_bit_experts_and_the_trunk_as_in_the_source(checkpoint: Path) -> None:
    report = plan(checkpoint)
    experts, trunk = report["experts"], report["trunk"]
    assert report["recipe"]["expert_format"] == "book2-g8"
    assert experts["record_bytes"] == 3_948_544 == 241 * 16 * 1024
    assert experts["padding_bytes"] == 4096
    assert experts["bytes"] == 60 * 512 * 3_948_544
    assert trunk["bytes"] == pytest.approx(5.58e9, rel=1e-3)  # what stays in memory
    assert report["total_bytes"] == pytest.approx(126.9e9, rel=1e-3)


def test_plain_two_bit_experts_are_those_of_flash_moe(checkpoint: Path) -> None:
    experts = plan(checkpoint, "--expert-format", "affine2-g64")["experts"]
    assert experts["record_bytes"] == 3_932_160 == 240 * 16 * 1024
    assert experts["padding_bytes"] == 0
    assert experts["bytes"] == 60 * 512 * 3_932_160


def test_four_bit_experts_pass_through(checkpoint: Path) -> None:
    experts = plan(checkpoint, "--expert-format", "affine4-g64")["experts"]
    assert experts["passed_through"]
    assert experts["record_bytes"] == 7_077_888 == 432 * 16 * 1024


def test_an_eight_bit_trunk_leaves_four_bit_matrices_alone(checkpoint: Path) -> None:
    assert plan(checkpoint, "--trunk", "affine8-g64")["trunk"] == plan(checkpoint)["trunk"]
