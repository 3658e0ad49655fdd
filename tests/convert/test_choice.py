"""The recipe chosen for a size: against every recipe there is, within the size, and what is said of it."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from checkpoints import NARROW, TINY, CheckpointMaker, Variant
from packs import build_with
from ran import Ran

from moepack.convert import choice as choices
from moepack.convert.checkpoint import Checkpoint
from moepack.convert.choice import choose
from moepack.convert.plan import plan_pack, told_of_experts, understand
from moepack.convert.recipe import Coding, Recipe
from moepack.convert.sensitivities import Sensitivities
from moepack.convert.tensors import Source
from moepack.convert.weighing import Errors, candidates, weigh
from moepack.convert.wish import Wish
from moepack.layout.formats import Format, parse
from moepack.layout.plan import PackPlan
from moepack.layout.record import PROJECTIONS
from moepack.manifests.errors import UsageError
from moepack.manifests.progress import Silent
from moepack.manifests.verify import verify

TWO_LAYERS = replace(TINY, hidden=256, intermediate=128, experts=4, layers=2, interval=2)
FOUR = tuple(map(parse, ("book2-g8", "affine2-g32s", "book3-g16", "affine4-g64")))
WEIGHTS = 3 * 256 * 128 * 4 * 2


@pytest.fixture
def source(make_checkpoint: CheckpointMaker) -> Iterator[Source]:
    with Checkpoint.open(str(make_checkpoint(Variant(TWO_LAYERS)))) as checkpoint:
        yield understand(checkpoint)


def chosen(source: Source, wish: Wish, sensitivities: Sensitivities | None = None) -> choices.Choice:
    return choose(source, wish, sensitivities, jobs=2, progress=Silent())


def uneven(layers: int) -> Sensitivities:
    """Measured ones that differ by up to a hundredfold."""
    values = 10 ** np.random.default_rng(7).uniform(0, 2, (layers, 3))
    return Sensitivities(tuple(dict(zip(PROJECTIONS, row, strict=True)) for row in values.tolist()), 100, "affine2-g64")


def cost_of(recipe: Recipe, source: Source, sensitivities: Sensitivities, errors: Errors) -> float:
    layers = zip(recipe.codings(source.model), sensitivities.layers, errors, strict=True)
    return sum(
        sensitivity[name] * error[name][coding[name].format]
        for coding, sensitivity, error in layers
        for name in PROJECTIONS
    )


def every_recipe(source: Source) -> Iterator[Recipe]:
    """Those of FOUR formats, 4096 for two layers."""
    for picked in product(FOUR, repeat=3 * source.model.num_layers):
        layers = (picked[first : first + 3] for first in range(0, len(picked), 3))
        codings = tuple({name: Coding(f) for name, f in zip(PROJECTIONS, layer, strict=True)} for layer in layers)
        yield Recipe.of(codings, "source")


def weighed(source: Source, monkeypatch: pytest.MonkeyPatch, *, measured: bool) -> tuple[Sensitivities, Errors]:
    """What recipes of FOUR formats, and only of these from now on, are judged by."""
    monkeypatch.setattr(choices, "candidates", lambda *_: FOUR)
    known = uneven(2) if measured else Sensitivities.equal(2)
    return known, weigh(source, FOUR, "mse", jobs=2, progress=Silent())


def recipe_bytes(recipe: Recipe, source: Source, *, padded: bool) -> int:
    shape = {"gate": (128, 256), "up": (128, 256), "down": (256, 128)}
    total = 0
    for layer in recipe.codings(source.model):
        size = sum(
            int(np.prod(part)) * {"uint32": 4, "uint8": 1, "bfloat16": 2}[dtype]
            for name, coding in layer.items()
            for _, dtype, part in coding.format.parts(*shape[name])
        )
        total += 4 * (-(-size // 16384) * 16384 if padded else size)
    return total


@pytest.mark.parametrize("measured", [False, True])
def test_no_recipe_that_fits_costs_less(measured: bool, source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    known, errors = weighed(source, monkeypatch, measured=measured)
    recipes = list(every_recipe(source))
    costs = [cost_of(recipe, source, known, errors) for recipe in recipes]
    sizes = [recipe_bytes(recipe, source, padded=False) for recipe in recipes]
    for share in (0.0, 0.2, 0.5, 0.9):
        most = min(sizes) + int(share * (max(sizes) - min(sizes)))
        found = chosen(source, Wish("mse", bits=most * 8 / WEIGHTS), known if measured else None)
        fitting = [cost for cost, size in zip(costs, sizes, strict=True) if size <= most]
        assert found.cost == pytest.approx(min(fitting), rel=1e-12)
        assert found.size == recipe_bytes(found.recipe, source, padded=False) <= most
        assert cost_of(found.recipe, source, known, errors) == pytest.approx(found.cost)


@pytest.mark.parametrize("measured", [False, True])
def test_no_recipe_within_a_budget_costs_less(measured: bool, source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    """Budgets are the very sizes of packs; what a shorter manifest could save, and no more, may be left unspent."""
    known, errors = weighed(source, monkeypatch, measured=measured)
    recipes = list(every_recipe(source))
    costs = [cost_of(recipe, source, known, errors) for recipe in recipes]
    told = [told_of_experts(source.model, recipe.codings(source.model)) for recipe in recipes]
    sizes = every_pack_bytes(source, recipes, told)
    smallest, *steps = sorted(set(sizes))
    for budget in (smallest, *steps[:: len(steps) // 20]):
        found = chosen(source, Wish("mse", budget=budget, trunk="source"), known if measured else None)
        assert pack_bytes(plan_pack(source, found.recipe).plan) <= budget
        surely = budget - (max(told) - min(told)) if budget > smallest else smallest
        fitting = [cost for cost, size in zip(costs, sizes, strict=True) if size <= max(surely, smallest)]
        assert found.cost <= min(fitting) * (1 + 1e-12)
    below = refusal(source, Wish("mse", budget=smallest - 1, trunk="source"))
    assert f"whose pack has {smallest} bytes" in below


def every_pack_bytes(source: Source, recipes: list[Recipe], told: list[int]) -> list[int]:
    """The sizes of the packs of many recipes whose trunk is the source's, and of whose experts so much is told."""
    plan = plan_pack(source, recipes[0]).plan
    others = pack_bytes(plan) - plan.expert_bytes - told[0]
    records = [recipe_bytes(recipe, source, padded=True) for recipe in recipes]
    return [others + one + other for one, other in zip(records, told, strict=True)]


def pack_bytes(plan: PackPlan) -> int:
    return plan.total_bytes + plan.manifest_bytes


def test_a_budget_holds_for_every_byte_of_the_pack(make_checkpoint: CheckpointMaker, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(Variant(TWO_LAYERS))
    with Checkpoint.open(str(checkpoint)) as opened:
        source = understand(opened)
        smallest = int(re.findall(r"has (\d+) bytes", refusal(source, Wish("mse", budget=1)))[0])
        for index, budget in enumerate((smallest, smallest + 1, smallest + 150_000, smallest + 400_000, 2 * smallest)):
            choice = chosen(source, Wish("mse", budget=budget), uneven(2))
            target = tmp_path / f"pack{index}"
            packing = build_with(checkpoint, target, choice.recipe)
            size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
            assert size == pack_bytes(packing.plan) <= budget
            assert index or size == budget
            assert verify(target, threads=2, progress=Silent()).ok
        assert "below the smallest recipe" in refusal(source, Wish("mse", budget=smallest - 1))


def refusal(source: Source, wish: Wish) -> str:
    with pytest.raises(UsageError) as refused:
        chosen(source, wish)
    return str(refused.value)


def test_more_room_is_never_worse(source: Source) -> None:
    costs = [chosen(source, Wish("mse", bits=bits), uneven(2)).cost for bits in np.linspace(2.4, 4.6, 12).tolist()]
    assert costs == sorted(costs, reverse=True)
    assert costs[0] > 5 * costs[-1]


def test_the_trunk_is_chosen_too_unless_it_is_named(source: Source) -> None:
    smallest = int(re.findall(r"has (\d+) bytes", refusal(source, Wish("mse", budget=1)))[0])
    assert chosen(source, Wish("mse", budget=smallest)).recipe.trunk_format == "affine4-g64"
    assert chosen(source, Wish("mse", budget=10 * smallest)).recipe.trunk_format == "source"
    sizes = range(smallest, 3 * smallest, smallest // 8)
    formats = {chosen(source, Wish("mse", budget=size)).recipe.trunk_format for size in sizes}
    assert formats == {"affine4-g64", "affine8-g64", "source"}
    kept = chosen(source, Wish("mse", budget=10 * smallest, trunk="affine8-g64"))
    assert kept.recipe.trunk_format == "affine8-g64"
    assert kept.trunk_cost > 0
    assert chosen(source, Wish("mse", bits=3.0)).recipe.trunk_format == "source"


def test_sensitive_layers_get_the_bits(source: Source) -> None:
    for layer, projection in product(range(2), PROJECTIONS):
        layers = tuple(dict.fromkeys(PROJECTIONS, 1.0) for _ in range(2))
        layers[layer][projection] = 1000.0
        codings = chosen(source, Wish("mse", bits=2.9), Sensitivities(layers, 1, "x")).recipe.codings(source.model)
        bits = {(i, name): coding.format.bits for i, found in enumerate(codings) for name, coding in found.items()}
        assert bits[layer, projection] == 4 == max(bits.values())
        assert sorted(bits.values())[:4] == [2] * 4


def test_what_the_checkpoint_already_is_passes_through(make_checkpoint: CheckpointMaker) -> None:
    with Checkpoint.open(str(make_checkpoint(Variant(dialect="mlx", bits=6)))) as checkpoint:
        source = understand(checkpoint)
        stored = parse("affine6-g64")
        assert stored in candidates(source, "mse")
        errors = weigh(source, candidates(source, "mse"), "mse", jobs=2, progress=Silent())
        assert {layer[name][stored] for layer in errors for name in PROJECTIONS} == {0.0}
        choice = chosen(source, Wish("mse", bits=7.0))
        assert choice.cost == 0
        assert not plan_pack(source, choice.recipe).recoded


def test_errors_are_those_of_the_whole_matrices(source: Source) -> None:
    """The sample's mean lies within a few per cent of what all rows of all experts give."""
    formats: tuple[Format, ...] = FOUR
    sampled = weigh(source, formats, "mse", jobs=2, progress=Silent())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("moepack.convert.weighing.SAMPLED_ROWS", 10**6)
        patch.setattr("moepack.convert.weighing.SAMPLED_EXPERTS", 10**6)
        whole = weigh(source, formats, "mse", jobs=2, progress=Silent())
    for found, expected in zip(sampled, whole, strict=True):
        for name, format_ in product(PROJECTIONS, formats):
            assert found[name][format_] == pytest.approx(expected[name][format_], rel=0.05)
            assert 0.0005 < expected[name][format_] < 0.2


def test_minmax_is_for_plain_formats(source: Source) -> None:
    assert {format_.name for format_ in candidates(source, "minmax")} == {"affine2-g64", "affine3-g64", "affine4-g64"}


def test_groups_of_64_that_do_not_fit_are_no_candidates(make_checkpoint: CheckpointMaker) -> None:
    with Checkpoint.open(str(make_checkpoint(Variant(NARROW)))) as checkpoint:
        assert all(format_.divisor == 32 for format_ in candidates(understand(checkpoint), "mse"))


def test_sensitivities_of_another_model_are_refused(source: Source) -> None:
    with pytest.raises(UsageError, match="of 3 layers, and this model has 2"):
        chosen(source, Wish("mse", bits=3.0), uneven(3))


def test_the_commands_say_what_was_chosen_and_why(
    moe_pack: Callable[..., Ran], make_checkpoint: CheckpointMaker, tmp_path: Path
) -> None:
    checkpoint = make_checkpoint(Variant(TWO_LAYERS))
    planned = moe_pack("plan", checkpoint, "--bits", "3.0", "--json")
    facts = json.loads(planned.out)
    choice = facts["choice"]
    assert choice["bits"] == 3.0
    assert not choice["sensitivities"]["measured"]
    assert choice["saving"]["bytes"] < 0 < choice["saving"]["cost"]
    assert choice["spending"]["cost"] < 0 < choice["spending"]["bytes"]
    assert (
        sum(group["bytes"] for group in choice["layers"]) == choice["expert_bytes"] <= choice["expert_capacity_bytes"]
    )
    shown = moe_pack("plan", checkpoint, "--bits", "3.0").out
    for said in ("every matrix alike", "save", "spend", "instead", "summed error"):
        assert said in shown
    printed = moe_pack("recipe", checkpoint, "--bits", "3.0")
    assert json.loads(printed.out) == choice["recipe"]
    assert "This recipe was chosen" in printed.err
    (tmp_path / "recipe.json").write_text(printed.out)
    assert moe_pack("build", checkpoint, tmp_path / "a", "--bits", "3.0", "--json").code == 0
    assert moe_pack("build", checkpoint, tmp_path / "b", "--recipe", tmp_path / "recipe.json").code == 0
    assert (tmp_path / "a" / "manifest.json").read_bytes() == (tmp_path / "b" / "manifest.json").read_bytes()


def test_a_size_below_the_smallest_is_refused_naming_that(
    moe_pack: Callable[..., Ran], make_checkpoint: CheckpointMaker, tmp_path: Path
) -> None:
    checkpoint = make_checkpoint(Variant(TWO_LAYERS))
    moe_pack("build", checkpoint, tmp_path / "pack", "--bits", "1.5").refused(
        2, "1.5 bits", "smallest recipe, which has"
    )
    moe_pack("plan", checkpoint, "--budget", "10KB").refused(2, "10000 bytes", "smallest recipe, whose pack has", "GB")
    assert not list(tmp_path.iterdir())


def test_a_weight_that_is_no_number_is_refused(moe_pack: Callable[..., Ran], checkpoint: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = checkpoint / "model.safetensors"
    tensors = load_file(path)
    for name, tensor in tensors.items():
        if ".experts." in name:
            tensor[..., 0] = float("nan")
    save_file(tensors, path, metadata={"format": "pt"})
    moe_pack("plan", checkpoint, "--bits", "4").refused(3, "NaN", "expert")
