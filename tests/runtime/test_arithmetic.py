"""That rounded activations cost little enough to be the default: mean KL to the same pack computed in float32.

The aim is 1e-3; `make bench` publishes what it is on longer texts. The demo model's answer is in test_moe_run.py.
"""

from pathlib import Path

import pytest
from extended.performance.rounding import cost
from extended.quality.subjects import DEMO, write_chats
from front import SHARED, TRAINED, needs_trained_model
from packs import build_with

from moepack.convert.recipe import Recipe

AIM = 1e-3
POSITIONS = 2000
PROSE = SHARED / "models" / "text" / "val_text.txt"
RECIPES = {"default": Recipe(), "affine": Recipe.parse("affine2-g64", "mse", "source")}


@pytest.mark.parametrize("recipe", RECIPES)
def test_conversations_of_the_demo_model(recipe: str, tmp_path: Path) -> None:
    build_with(DEMO, tmp_path / "pack", RECIPES[recipe])
    write_chats(tmp_path / "chats.txt", 100)
    check(tmp_path / "pack", tmp_path / "chats.txt")


@needs_trained_model
def test_prose_of_the_trained_model(tmp_path: Path) -> None:
    build_with(TRAINED, tmp_path / "pack", Recipe())
    check(tmp_path / "pack", PROSE)


def check(pack: Path, text: Path) -> None:
    found = cost(pack, text, threads=2, positions=POSITIONS)
    print(f"{pack.parent.name}: KL {found.divergence:.1e} ± {found.error:.1e} at {found.positions} positions")
    assert 0 < found.divergence + 2 * found.error <= AIM  # nothing at all would be the same arithmetic twice
    assert found.agreement > 0.99
