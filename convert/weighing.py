"""What each format would cost in accuracy: relative squared errors, measured on a sample of the checkpoint's weights.

A few experts of every layer, and of each of their matrices rows spread over all of it, are quantized with every
candidate, by the recipe's own method, or by mse where that goes by a calibration: its gain is much the same for all
formats. Sampled rows are whole, so groups and rows see what the pack's will see.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np

from ..layout.formats import AFFINE_FORMATS, GRID_FORMATS, AffineFormat, Format
from ..layout.plan import expert_shape
from ..manifests.progress import Progress
from ..quantize.affine import AffineMatrix
from ..quantize.error import relative_squared_error
from ..quantize.methods import CALIBRATED_METHODS, NonFiniteWeightError, quantize, suits
from .finite import not_finite
from .matrices import read_rows
from .parallel import in_order
from .recipe import DEFAULT_METHOD, TRUNK_METHOD, Recipe, fitting, passes_through
from .tensors import LayerExperts, Scratch, Source, Weights, format_of
from .trunk import TrunkItem, plan_item

SAMPLED_EXPERTS = 4  # of every layer
SAMPLED_ROWS = 64  # of every matrix
CANDIDATES: tuple[Format, ...] = (*GRID_FORMATS, *(AffineFormat(bits, 64) for bits in (2, 3, 4)))

Errors: TypeAlias = tuple[Mapping[str, Mapping[Format, float]], ...]  # of each layer, by projection and format


def candidates(source: Source, method: str) -> tuple[Format, ...]:
    """The formats among which a recipe is chosen: CANDIDATES that fit, and what the checkpoint already is in."""
    stored = {format_of(encoding) for layer in source.experts for encoding in layer.encodings.values()}
    wanted = (*CANDIDATES, *(format_ for format_ in AFFINE_FORMATS if format_ in stored - set(CANDIDATES)))
    fits = fitting(expert_shape(source.model))
    return tuple(format_ for format_ in wanted if format_ in fits and suits(method, format_))


def weigh(source: Source, formats: Sequence[Format], method: str, *, jobs: int, progress: Progress) -> Errors:
    """The relative squared error that each format would leave in each layer's projections.

    What passes through has none. Methods that go by a calibration are weighed as mse: they trade weight error for
    something better. Raises CorruptInputError naming the tensor if a sampled weight is not finite.
    """
    layers, experts = range(source.model.num_layers), _spread(source.model.num_experts, SAMPLED_EXPERTS)
    sampled = [(layer, expert) for layer in layers for expert in experts]

    def one(where: tuple[int, int]) -> dict[str, list[float]]:
        return _errors_of_expert(source, where, formats, method)

    found: list[dict[str, list[float]]] = []
    with progress.task("weighing formats", len(sampled), unit="experts") as task:
        for errors in in_order(one, sampled, jobs=jobs):
            found.append(errors)
            task.advance(1)
    return tuple(_mean(found[layer * len(experts) : (layer + 1) * len(experts)], formats) for layer in layers)


def weigh_trunk(source: Source, recipe: Recipe) -> float:
    """The relative squared error that a recipe leaves in the trunk's matrices, the mean over their weights."""
    error, weights = 0.0, 0
    for item in (plan_item(entry, recipe) for entry in source.trunk if entry.tensor.role.follows_recipe):
        size = math.prod(item.entry.tensor.shape)
        error += size * _error_of_item(source, item)
        weights += size
    return error / max(weights, 1)


def _errors_of_expert(
    source: Source, where: tuple[int, int], formats: Sequence[Format], method: str
) -> dict[str, list[float]]:
    layer, expert = where
    experts = source.experts[layer]
    return {
        projection: [_error(experts, where, projection, weights, format_, method) for format_ in formats]
        for projection, weights in _sampled_rows(experts, expert).items()
    }


def _sampled_rows(experts: LayerExperts, expert: int) -> dict[str, Weights]:
    return {projection: _rows(weights) for projection, weights in experts.read(expert, Scratch(), {}).items()}


def _error(
    experts: LayerExperts, where: tuple[int, int], projection: str, weights: Weights, format_: Format, method: str
) -> float:
    if passes_through(experts.encodings[projection], format_):
        return 0.0
    try:
        return relative_squared_error(_floats(weights), quantize(weights, format_, _without_data(method)))
    except NonFiniteWeightError:
        layer, expert = where
        stored = experts.stored(expert, projection)
        raise not_finite(f"tensor {stored!r}, layer {layer}, expert {expert}, {projection}") from None


def _without_data(method: str) -> str:
    return DEFAULT_METHOD if method in CALIBRATED_METHODS else method


def _error_of_item(source: Source, item: TrunkItem) -> float:
    if not isinstance(item.target, AffineFormat):
        return 0.0
    encoding, (rows, cols) = item.entry.encoding, item.entry.tensor.shape
    count = min(rows, SAMPLED_ROWS)
    weights = read_rows(source.checkpoint, encoding, (count, cols), (rows - count) // 2, Scratch(), "sample")
    try:
        return relative_squared_error(_floats(weights), quantize(weights, item.target, TRUNK_METHOD))
    except NonFiniteWeightError:
        raise not_finite(f"tensor {encoding.stored!r}") from None


def _floats(weights: Weights) -> Weights:
    return weights if isinstance(weights, AffineMatrix) else weights.astype(np.float32)


def _rows(weights: Weights) -> Weights:
    """SAMPLED_ROWS rows, spread evenly."""
    rows = _spread(weights.shape[0], SAMPLED_ROWS)
    if isinstance(weights, AffineMatrix):
        return AffineMatrix(weights.format, weights.codes[rows], weights.scales[rows], weights.biases[rows])
    return weights[rows]


def _spread(count: int, most: int) -> list[int]:
    """Up to `most` of the numbers below `count`, evenly spread."""
    taken = min(count, most)
    return [(2 * index + 1) * count // (2 * taken) for index in range(taken)]


def _mean(
    experts: Sequence[Mapping[str, Sequence[float]]], formats: Sequence[Format]
) -> dict[str, dict[Format, float]]:
    return {
        projection: dict(zip(formats, np.mean([found[projection] for found in experts], axis=0).tolist(), strict=True))
        for projection in experts[0]
    }
