"""Recipes: files read and written, overrides, what they come to in a manifest, and what is refused in a sentence."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from checkpoints import NARROW, TINY, CheckpointMaker, Variant
from hypothesis import given
from hypothesis import strategies as st
from packs import build_with
from ran import Ran

from moepack.convert.checkpoint import Checkpoint
from moepack.convert.plan import understand
from moepack.convert.recipe import EXPERT_FORMATS, TRUNK_FORMATS, Coding, Override, Recipe, of_manifest
from moepack.convert.recipefile import read_recipe, runs, written
from moepack.convert.shipped import CHECKPOINT
from moepack.layout.formats import parse
from moepack.layout.reader import Pack
from moepack.layout.record import PROJECTIONS
from moepack.manifests.errors import UsageError

ROOT = Path(__file__).parent.parent.parent
CODINGS = st.builds(lambda name: Coding(parse(name), "mse"), st.sampled_from(EXPERT_FORMATS))
LAYERS = st.none() | st.sets(st.integers(0, 3), min_size=1).map(lambda found: tuple(sorted(found)))
NAMES = st.sets(st.sampled_from(PROJECTIONS), min_size=1).map(lambda found: tuple(sorted(found, key=PROJECTIONS.index)))
RECIPES = st.builds(
    Recipe,
    CODINGS,
    st.sampled_from(TRUNK_FORMATS),
    st.lists(st.builds(Override, LAYERS, NAMES, CODINGS), max_size=3).map(tuple),
)
MIXED = {
    "format": "affine3-g64",
    "trunk": "affine4-g64",
    "overrides": [
        {"projections": ["down"], "format": "affine4-g64", "method": "minmax"},
        {"layers": "1-2", "format": "book2-g8"},
        {"layers": "2, 3", "projections": ["up", "gate"], "format": "affine2-g64", "method": "mse"},
    ],
}


def saved(folder: Path, recipe: object, name: str = "recipe.json") -> Path:
    path = folder / name
    path.write_text(recipe if isinstance(recipe, str) else json.dumps(recipe))
    return path


@given(RECIPES)
def test_what_is_written_reads_the_same(tmp_path_factory: pytest.TempPathFactory, recipe: Recipe) -> None:
    assert read_recipe(saved(tmp_path_factory.mktemp("recipe"), written(recipe))) == recipe


@given(RECIPES)
def test_the_manifests_rendering_says_every_coding(recipe: Recipe) -> None:
    def coding(layer: int, projection: str) -> Coding:
        for override in reversed(recipe.overrides):
            if projection in override.projections and layer in (override.layers or range(4)):
                return override.coding
        return recipe.coding

    codings = tuple({name: coding(layer, name) for name in PROJECTIONS} for layer in range(4))
    told = msgspec.to_builtins(of_manifest(codings, recipe.trunk_format))
    assert told["trunk_format"] == recipe.trunk_format
    said = [dict.fromkeys(PROJECTIONS, (told["expert_format"], told["method"])) for _ in range(4)]
    for override in told.get("overrides", ()):
        for layer in override["layers"]:
            said[layer] |= dict.fromkeys(override["projections"], (override["expert_format"], override["method"]))
    assert said == [{name: (c.format.name, c.method) for name, c in layer.items()} for layer in codings]
    assert told.keys() >= {"overrides"} or len({c for layer in codings for c in layer.values()}) == 1


@pytest.mark.parametrize(
    ("layers", "text"), [((0,), "0"), ((0, 1, 2), "0-2"), ((0, 2, 3, 7), "0,2-3,7"), ((4095, 1), "1,4095")]
)
def test_layers_in_few_words(layers: tuple[int, ...], text: str) -> None:
    assert runs(layers) == text


def test_toml_is_read_too(tmp_path: Path) -> None:
    text = 'format = "affine3-g64"\n[[overrides]]\nlayers = "1-2"\nprojections = ["down"]\nformat = "affine2-g32"\n'
    recipe = read_recipe(saved(tmp_path, text, "recipe.toml"))
    assert recipe == Recipe(
        Coding(parse("affine3-g64")), "source", (Override((1, 2), ("down",), Coding(parse("affine2-g32"))),)
    )


@pytest.mark.parametrize(
    ("recipe", "culprits"),
    [
        ("", ["not acceptable JSON"]),
        ('{"format": "affine2-g64", "format": "affine3-g64"}', ["appears twice"]),
        ({}, ["format"]),
        ({"format": "affine2-g64", "formats": {}}, ["formats"]),
        ({"format": "affine5-g64"}, ["'affine5-g64'", "book2-g8"]),
        ({"format": "affine2-g64", "method": "best"}, ["'best'", "minmax, mse"]),
        ({"format": "book2-g8", "method": "minmax"}, ["minmax", "book2-g8", "mse"]),
        ({"format": "affine2-g64", "trunk": "q4"}, ["'q4'", "source, bf16"]),
        (
            {"format": "affine2-g64", "overrides": [{"layers": "4", "format": "affine3-g64"}]},
            ["layer 4", "0 to 3; name only"],
        ),
        ({"format": "affine2-g64", "overrides": [{"layers": "3-1"}]}, ["3-1", "ends before it begins"]),
        ({"format": "affine2-g64", "overrides": [{"layers": "first"}]}, ["'first'", "0-9,12"]),
        ({"format": "affine2-g64", "overrides": [{"layers": 2}]}, ["overrides[0].layers"]),
        (
            {"format": "affine2-g64", "overrides": [{"projections": ["gat"]}]},
            ["'gat' is no projection", "gate, up, down"],
        ),
        ({"format": "affine2-g64", "overrides": [{"projections": []}]}, ["projections"]),
        ({"format": "affine2-g128", "overrides": []}, ["affine2-g128", "64 inputs"]),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(
    recipe: object, culprits: list[str], moe_pack: Callable[..., Ran], make_checkpoint: CheckpointMaker, tmp_path: Path
) -> None:
    checkpoint = make_checkpoint(Variant(TINY))
    for command in (("plan", checkpoint), ("build", checkpoint, tmp_path / "pack"), ("recipe", checkpoint)):
        moe_pack(*command, "--recipe", file := saved(tmp_path, recipe)).refused(2, file, *culprits)
    assert not (tmp_path / "pack").exists()
    assert not (tmp_path / "pack.partial").exists()


@pytest.mark.parametrize("document", ["README.md", "docs/recipes.md"])
def test_the_documents_examples_are_recipes_for_the_demo_model(document: str, tmp_path: Path) -> None:
    examples = re.findall(r"```json\n(\{\"format\".*?)```", (ROOT / document).read_text(), re.DOTALL)
    assert examples
    with Checkpoint.open(str(CHECKPOINT)) as demo:
        model = understand(demo).model
    for example in examples:
        read_recipe(saved(tmp_path, example)).codings(model)


def test_a_recipe_file_must_be_there(moe_pack: Callable[..., Ran], tmp_path: Path) -> None:
    checkpoint = tmp_path / "anything"
    checkpoint.mkdir()
    moe_pack("plan", checkpoint, "--recipe", tmp_path / "none.json").refused(2, "none.json", "cannot be read")
    moe_pack("plan", checkpoint, "--recipe", saved(tmp_path, "x" * 2**20 + "x")).refused(2, "cannot be a recipe")


@pytest.mark.parametrize(
    ("options", "culprits"),
    [
        (("--expert-format", "affine2-g64", "--bits", "3"), ["--expert-format", "--bits"]),
        (("--recipe", "r.json", "--budget", "3GB"), ["--recipe", "--budget"]),
        (("--bits", "3", "--budget", "3GB"), ["--bits", "--budget"]),
        (("--recipe", "r.json", "--method", "mse"), ["--method"]),
        (("--recipe", "r.json", "--trunk", "source"), ["--trunk"]),
        (("--bits", "0"), ["0.0"]),
        (("--bits", "nan"), ["nan"]),
        (("--budget", "120"), ["'120'", "GiB"]),
        (("--bits", "3", "--method", "best"), ["'best'"]),
        (("--budget", "3GB", "--trunk", "best"), ["'best'"]),
    ],
)
def test_options_that_contradict_each_other(
    options: tuple[str, ...], culprits: list[str], moe_pack: Callable[..., Ran], tmp_path: Path
) -> None:
    moe_pack("plan", tmp_path, *options).refused(2, *culprits)


def test_a_printed_recipe_is_edited_and_given_back(
    moe_pack: Callable[..., Ran], make_checkpoint: CheckpointMaker, tmp_path: Path
) -> None:
    checkpoint = make_checkpoint(Variant(TINY))
    printed = moe_pack("recipe", checkpoint, "--recipe", saved(tmp_path, MIXED))
    assert printed.code == 0
    again = moe_pack("recipe", checkpoint, "--recipe", saved(tmp_path, printed.out, "again.json"))
    assert again.out == printed.out
    assert json.loads(printed.out)["overrides"][1] == {
        "layers": "1-2",
        "projections": ["gate", "up", "down"],
        "format": "book2-g8",
        "method": "mse",
    }
    assert moe_pack("build", checkpoint, tmp_path / "pack", "--recipe", tmp_path / "again.json").code == 0
    inspected = json.loads(moe_pack("inspect", tmp_path / "pack", "--json").out)
    assert [layout["layers"] for layout in inspected["experts"]["layouts"]] == ["0", "1", "2", "3"]
    assert "book2-g8" in moe_pack("inspect", tmp_path / "pack").out


def test_every_record_and_the_manifest_are_as_the_recipe_says(make_checkpoint: CheckpointMaker, tmp_path: Path) -> None:
    recipe = read_recipe(saved(tmp_path, MIXED))
    build_with(make_checkpoint(Variant(TINY)), tmp_path / "pack", recipe)
    with Pack.open(tmp_path / "pack") as pack:
        found = [{name: format_.name for name, format_ in layout.formats.items()} for layout in pack.records]
        told = pack.manifest.recipe
    assert found[0] == {"gate": "affine3-g64", "up": "affine3-g64", "down": "affine4-g64"}
    assert found[1] == dict.fromkeys(PROJECTIONS, "book2-g8")
    assert found[2] == {"gate": "affine2-g64", "up": "affine2-g64", "down": "book2-g8"}
    assert found[3] == {"gate": "affine2-g64", "up": "affine2-g64", "down": "affine4-g64"}
    assert told.overrides is not msgspec.UNSET
    assert {(one.expert_format, one.method) for one in told.overrides} | {(told.expert_format, told.method)} == {
        ("affine3-g64", "mse"),
        ("affine4-g64", "minmax"),
        ("book2-g8", "mse"),
        ("affine2-g64", "mse"),
    }


def test_the_method_of_each_projection_is_the_one_that_runs(make_checkpoint: CheckpointMaker, tmp_path: Path) -> None:
    """Records are joined from those of packs that use one method throughout."""
    checkpoint, plain = make_checkpoint(Variant(TINY)), Coding(parse("affine2-g64"), "mse")
    minmax = Coding(parse("affine2-g64"), "minmax")
    build_with(checkpoint, tmp_path / "mixed", Recipe(plain, "source", (Override((1,), ("up", "down"), minmax),)))
    build_with(checkpoint, tmp_path / "mse", Recipe(plain))
    build_with(checkpoint, tmp_path / "minmax", Recipe(minmax))
    files = [(tmp_path / name / "experts" / "layer_01.bin").read_bytes() for name in ("mse", "minmax", "mixed")]
    assert len(set(files)) == 3
    with Pack.open(tmp_path / "mixed") as pack:
        layout = pack.records[1]
    for first in range(0, len(files[0]), layout.stride):
        at = first + layout["up.weight"].offset
        assert files[2][first:at] == files[0][first:at]
        assert files[2][at : first + layout.stride] == files[1][at : first + layout.stride]


def test_equal_recipes_give_equal_packs(make_checkpoint: CheckpointMaker, tmp_path: Path) -> None:
    checkpoint, two, three = make_checkpoint(Variant(TINY)), Coding(parse("affine2-g64")), Coding(parse("affine3-g64"))
    build_with(checkpoint, tmp_path / "a", Recipe(two, "source", (Override((0, 1, 2), PROJECTIONS, three),)))
    build_with(checkpoint, tmp_path / "b", Recipe(three, "source", (Override((3,), PROJECTIONS, two),)))
    assert (tmp_path / "a" / "manifest.json").read_bytes() == (tmp_path / "b" / "manifest.json").read_bytes()


def test_a_format_that_does_not_fit_is_refused_wherever_it_is(make_checkpoint: CheckpointMaker, tmp_path: Path) -> None:
    recipe = Recipe(Coding(parse("affine2-g32")), "source", (Override((2,), ("up",), Coding(parse("affine3-g64"))),))
    with pytest.raises(UsageError, match="affine3-g64 does not fit: the experts' up projection has 96 inputs"):
        build_with(make_checkpoint(Variant(NARROW)), tmp_path / "pack", recipe)
