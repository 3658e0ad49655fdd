"""The recipe chosen for a size: against every recipe there is, within the size, and what is said of it."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from checkpoints import NARROW, ODD, TINY, CheckpointMaker, Variant
from packs import build_with
from ran import Ran

from moepack.convert import choice as choices
from moepack.convert.checkpoint import Checkpoint
from moepack.convert.choice import Choice, Wish, choose
from moepack.convert.plan import plan_pack, understand
from moepack.convert.recipe import Coding, Recipe
from moepack.convert.sensitivities import Sensitivities
from moepack.convert.tensors import Source
from moepack.convert.weighing import Errors, candidates, weigh
from moepack.layout.formats import Format, parse
from moepack.layout.record import PROJECTIONS
from moepack.manifests.errors import CorruptInputError, UsageError
from moepack.manifests.progress import Silent
from moepack.manifests.verify import verify

TWO_LAYERS = replace(TINY, layers=2, interval=2)
QUIET = {"jobs": 2, "progress": Silent()}


@pytest.fixture
def source(make_checkpoint: CheckpointMaker) -> Iterator[Source]:
    with Checkpoint.open(str(make_checkpoint(Variant(TWO_LAYERS)))) as checkpoint:
        yield understand(checkpoint)


def uneven(layers: int) -> Sensitivities:
    """Measured ones that differ by up to a hundredfold."""
    values = np.random.default_rng(7).uniform(0, 2, (layers, 3))
    return Sensitivities(
        tuple(dict(zip(PROJECTIONS, (10**row).tolist(), strict=True)) for row in values), 100, "book2-g16"
    )


def cost_of(recipe: Recipe, source: Source, sensitivities: Sensitivities, errors: Errors) -> float:
    codings = recipe.codings(source.model)
    layers = zip(codings, sensitivities.layers, errors, strict=True)
    return sum(weight[name] * error[name][layer[name].format] for layer, weight, error in layers for name in PROJECTIONS)


def every_recipe(source: Source, formats: tuple[Format, ...]) -> Iterator[Recipe]:
    for picked in product(formats, repeat=3 * source.model.num_layers):
        layers = (picked[first : first + 3] for first in range(0, len(picked), 3))
        codings = tuple({name: Coding(f) for name, f in zip(PROJECTIONS, layer, strict=True)} for layer in layers)
        yield Recipe.of(codings, "source")


@pytest.mark.parametrize("share", [0.05, 0.3, 0.55, 0.8])
@pytest.mark.parametrize("measured", [False, True])
def test_no_recipe_that_fits_costs_less(share: float, measured: bool, source: Source) -> None:
    """All 4096 recipes of four formats, sizes by planning each pack."""
    formats = tuple(map(parse, ("affine2-g64", "book2-g8", "affine3-g32s", "affine4-g64")))
    known = uneven(2) if measured else Sensitivities.equal(2)
    errors = weigh(source, formats, "mse", **QUIET)
    recipes = list(every_recipe(source, formats))
    plans = {
        (layout.gate, layout.up, layout.down): plan_pack(source, Recipe(Coding(layout.gate))).plan
        for layout in ()
    }
    assert not plans
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choices, "candidates", lambda *_: formats)
        sizes = [sum(record.size for record in _records(recipe, source)) for recipe in recipes]
        weights = 3 * TINY.hidden * TINY.intermediate * 2
        bits = (min(sizes) + share * (max(sizes) - min(sizes))) * 8 / weights
        found = choose(source, Wish("mse", bits=bits), known if measured else None, **QUIET)
        fits = [cost_of(recipe, source, known, errors) for recipe, size in zip(recipes, sizes, strict=True)
                if size * 8 <= bits * weights]
        assert found.cost == pytest.approx(min(fits))
        assert cost_of(found.recipe, source, known, errors) == pytest.approx(found.cost)
        strides = [sum(record.stride for record in _records(recipe, source)) for recipe in recipes]
        fixed = _fixed_bytes(source)
        budget = fixed + int(8 * (min(strides) + share * (max(strides) - min(strides))))
        found = choose(source, Wish("mse", budget=budget, trunk="source"), known if measured else None, **QUIET)
        fits = [cost_of(recipe, source, known, errors) for recipe, stride in zip(recipes, strides, strict=True)
                if fixed + 8 * stride <= budget]
        assert found.cost == pytest.approx(min(fits))
