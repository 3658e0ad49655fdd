"""The router's choice, norms and embeddings, against float64."""

import numpy as np
import pytest
from matrices import floats
from metal.running import kernel
from metal.stored import Weights, random_matrix
from oracle import dense
from reference import choose, close, rms_norm, silu

from moepack.layout.formats import Format, parse
from moepack.runtime.backends.metal.launches import embed_grid, gated_norm, groups_grid, norm, rows_grid
from moepack.runtime.backends.metal.library import Build, embedding, matrix_type, plain

EPS = 1e-6


def route(logits: np.ndarray, k: int) -> tuple[np.ndarray, ...]:
    """ids, weights and order, [tokens, K]."""
    tokens, experts = logits.shape
    build = Build.of("router.metal", {"NUM_EXPERTS": experts, "NUM_EXPERTS_PER_TOK": k})
    out = [np.full((tokens, k), 77, dtype) for dtype in (np.uint32, np.float32, np.uint32)]
    return tuple(kernel(build, "route")(rows_grid(tokens), logits, *out))


@pytest.mark.parametrize(("experts", "k"), [(1, 1), (8, 8), (33, 4), (60, 2), (512, 10)])
@pytest.mark.parametrize("decimals", [0, 1, 3])
def test_the_router_chooses_the_largest_and_breaks_ties_downwards(experts: int, k: int, decimals: int) -> None:
    logits = floats(np.random.default_rng(experts), 5, experts, scale=3.0).round(decimals)  # few decimals: many ties
    ids, weights, order = route(logits, k)
    for t in range(len(logits)):
        wanted_ids, wanted_weights = choose(logits[t].astype(float), k)
        assert ids[t].tolist() == wanted_ids.tolist()
        assert close(weights[t], wanted_weights)
        assert order[t].tolist() == np.argsort(wanted_ids).tolist()


def test_the_router_chooses_distinct_experts_whatever_the_logits() -> None:
    """Damaged weights may give any, before the damage is known."""
    random = np.random.default_rng(0)
    logits = floats(random, 40, 21, scale=3.0)
    for row, share in zip(logits, np.linspace(0.05, 1.0, len(logits)), strict=True):
        row[random.random(21) < share] = random.choice([np.nan, -np.nan, np.inf, -np.inf])
    assert np.isnan(logits).all(1).any()
    ids, weights, order = route(logits, 4)
    for t, row in enumerate(logits):
        wanted_ids, wanted_weights = choose(row.astype(float), 4)
        assert ids[t].tolist() == wanted_ids.tolist()
        assert close(weights[t], wanted_weights)
        assert ids[t][order[t]].tolist() == sorted(ids[t].tolist())


@pytest.mark.parametrize(("width", "scale"), [(1, 1.0), (31, 1.0), (300, 1.0), (1088, 1.0), (40, 1e-3)])
def test_norms(width: int, scale: float) -> None:
    """Of small numbers too, of which eps is as large as the mean square."""
    random, rows = np.random.default_rng(width), 11
    x, gate, weight = (floats(random, *shape) for shape in ((rows, width), (rows, width), (width,)))
    x *= np.float32(scale)
    plain_norm, gated_norm_ = (kernel(plain("norms.metal"), name) for name in ("rms_norm", "gated_rms_norm"))
    (got,) = plain_norm(rows_grid(rows), x, weight, np.zeros_like(x), norm(width, EPS))
    wanted = rms_norm(x.astype(float), weight.astype(float), EPS)
    assert close(got, wanted)
    arguments = (x, weight, gate, np.zeros_like(x), gated_norm(width, EPS, rows))
    (gated,) = gated_norm_(groups_grid(rows), *arguments)
    assert close(gated, wanted * silu(gate.astype(float)))


@pytest.mark.parametrize(
    ("format", "dtype", "cols"),
    [
        (parse("affine4-g64"), "bf16", 576),
        (parse("affine6-g32"), "f16", 96),
        (parse("book3-g8"), "bf16", 96),
        (None, "bf16", 41),
    ],
)
def test_embeddings_are_rows_of_the_table(format: Format | None, dtype: str, cols: int) -> None:
    random = np.random.default_rng(cols)
    stored, weights, ids = random_matrix(random, 50, cols, format, dtype), Weights(), np.array([49, 0, 7], np.uint32)
    table = weights.put(stored)
    embed, out = kernel(embedding(matrix_type(format, dtype)), "embed"), np.zeros((3, cols), np.float32)
    (got,) = embed(embed_grid(cols, 3), weights.buffer, table.packed, ids, out)
    assert np.array_equal(got, dense(stored)[ids])
