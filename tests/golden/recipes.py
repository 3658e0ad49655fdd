"""What the golden checkpoint is packed by: the golden recipe, and `EVERY`, which between them have all there is.

A recipe's packs have kept digests, so none of these changes; what is new goes into another.
"""

from itertools import product
from pathlib import Path

from moepack.convert.calibration.file import CalibrationFile
from moepack.convert.checkpoint import Checkpoint
from moepack.convert.pipeline import build
from moepack.convert.plan import plan_pack, understand
from moepack.convert.recipe import Coding, Override, Recipe
from moepack.manifests.progress import Progress, Silent

from .checkpoint import LAYERS

# Every kind of format and every method; layers, and projections of one layer, that differ.
RECIPE = Recipe(
    Coding.parse("book2-g8", "mse"),
    "affine8-g64",
    (
        Override((0,), ("gate", "up"), Coding.parse("affine2-g32", "minmax")),
        Override((0,), ("down",), Coding.parse("affine4-g32", "mse")),
        Override((1,), ("gate", "up"), Coding.parse("affine3-g16s", "imatrix")),
        Override((2,), ("gate", "down"), Coding.parse("book3-g16", "gptq")),
        Override((3,), ("up",), Coding.parse("affine2-g32", "gptq")),
    ),
)

PLAIN = [f"affine{bits}-g{group}" for group in (32, 64) for bits in (2, 3, 4, 6, 8)]  # g128 is wider than the model
GRIDS = [f"{kind}{bits}-g{group}" for bits in (2, 3) for kind, group in (("book", "16"), ("book", "8"))]
GRIDS += [f"affine{bits}-g{group}s" for bits in (2, 3) for group in (32, 16)]
CODINGS = [*product(PLAIN, ("minmax", "mse", "imatrix", "gptq")), *product(GRIDS, ("mse", "imatrix", "gptq"))]
TRUNKS = ("source", "bf16", "affine8-g64", "affine4-g64")
ROOM = 2 * LAYERS  # gate and up of every layer; rows of down are too short for groups of 64


def _packs() -> list[Recipe]:
    """Gate and up have wide formats first, down has none; as many packs as that takes."""
    narrow = [coding for coding in CODINGS if not coding[0].endswith("-g64")]
    wide = [coding for coding in CODINGS if coding[0].endswith("-g64")]
    packs = -(-len(CODINGS) // (3 * LAYERS))
    inner, outer = narrow[: packs * LAYERS], wide + narrow[packs * LAYERS :]
    return [
        _recipe(outer[number * ROOM :][:ROOM], inner[number * LAYERS :][:LAYERS], TRUNKS[number % len(TRUNKS)])
        for number in range(packs)
    ]


def _recipe(outer: list[tuple[str, str]], inner: list[tuple[str, str]], trunk: str) -> Recipe:
    places = [(layer, name) for layer in range(LAYERS) for name in ("gate", "up")]
    places = places[: len(outer)] + [(layer, "down") for layer in range(len(inner))]
    pairs = zip(places, [*outer, *inner], strict=True)
    return Recipe(
        Coding.parse("book2-g8", "mse"),
        trunk,
        tuple(Override((layer,), (name,), Coding.parse(*coding)) for (layer, name), coding in pairs),
    )


EVERY = {"golden": RECIPE} | {f"every-{number}": recipe for number, recipe in enumerate(_packs(), 1)}


def build_by(
    recipe: Recipe, checkpoint: Path, calibration: Path, target: Path, jobs: int = 2, progress: Progress | None = None
) -> int:
    """Pack the golden checkpoint by a recipe, or go on with it; how many layers that took."""
    with Checkpoint.open(str(checkpoint)) as opened, CalibrationFile.open(calibration) as calibrated:
        packing = plan_pack(understand(opened), recipe, calibrated if recipe.calibrated else None)
        return build(packing, target, jobs=jobs, progress=progress or Silent()).layers
