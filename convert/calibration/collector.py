"""Watching a forward pass: the statistics of one layer at a time, from the rows that its experts see.

Made for runtime's `Observer`, which it fits without knowing it. Memory: sums of x x^T, see `sum_bytes`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ...manifests.errors import CorruptInputError
from ...quantize.calibration import correlations
from ...quantize.moments import Floats, MakeAccumulator, Sums
from .sections import FIT, HALVES, HELD_OUT, INNER, INPUT, Shape, encode

Ids = NDArray[np.int32]
LARGEST = 1e15  # a chunk's squares of such still add up to a float32


@dataclass
class Tally:
    """Sums over rows of one group of inputs, one for each half."""

    width: int
    make: MakeAccumulator | None
    squares: Sums = field(init=False)

    def __post_init__(self) -> None:
        self.squares = np.zeros((HALVES, self.width))
        self._products = [self.make(self.width) for _ in range(HALVES)] if self.make else []

    def add(self, half: int, rows: Floats) -> None:
        """Add rows [n, width] to a half, all of magnitudes below LARGEST."""
        self.squares[half] += np.square(rows, dtype=np.float64).sum(axis=0)
        if self._products:
            self._products[half].add(rows)

    def total(self, half: int) -> Sums:
        """The sum of x x^T over a half's rows."""
        return self._products[half].total()

    def correlations(self) -> NDArray[np.int16]:
        """Those of both halves."""
        return np.stack([correlations(products.total()) for products in self._products])

    def clear(self) -> None:
        """Begin again at zero."""
        self.squares.fill(0)
        for products in self._products:
            products.clear()


class Collector:
    """Observes a pass. `held_out` says of each token whether it only judges; `keep` is given each expert's section.

    Experts come in ascending order, each once; `finish` ends a layer and gives that layer's own section. Raises
    CorruptInputError, naming `where` the model is, for activations that are not finite or cannot be squared.
    """

    def __init__(self, shape: Shape, held_out: NDArray[np.bool_], make: MakeAccumulator, where: str) -> None:
        self.keep: Callable[[bytes], None] = lambda section: None
        self._shape = shape
        self._held_out = held_out
        self._where = where
        self._tokens = _halves(held_out)
        self._inputs = Tally(shape.hidden_size, make)
        self._own = {
            INPUT: Tally(shape.hidden_size, make if INPUT in shape.own else None),
            INNER: Tally(shape.moe_intermediate_size, make),
        }

    def layer(self, layer: int) -> None:
        """A layer begins."""
        shape = self._shape
        self._inputs.clear()
        self._inner_pool = np.zeros((HALVES, shape.moe_intermediate_size, shape.moe_intermediate_size))
        self._visits = np.zeros((HALVES, shape.experts), np.int64)
        self._shares = np.zeros((HALVES, shape.experts))
        self._diagonals = {
            group: np.zeros((HALVES, shape.experts, width), np.float32) for group, width in shape.widths.items()
        }
        self._begin(0)

    def inputs(self, layer: int, first: int, inputs: Floats) -> None:
        """What gate and up may see of the tokens from `first` on."""
        self._require_moderate(layer, inputs)
        held_out = self._held_out[first : first + len(inputs)]
        self._inputs.add(FIT, inputs[~held_out])
        self._inputs.add(HELD_OUT, inputs[held_out])

    def expert(self, layer: int, expert: int, tokens: Ids, inputs: Floats, inner: Floats, shares: Floats) -> None:
        """Rows that an expert sees: `inputs` of gate and up, `inner` of down, with the route's weights."""
        self._require_moderate(layer, inner)
        self._skip_to(expert)
        held_out = self._held_out[tokens]
        for half, rows in ((FIT, ~held_out), (HELD_OUT, held_out)):
            self._visits[half, expert] += np.count_nonzero(rows)
            self._shares[half, expert] += shares[rows].sum(dtype=np.float64)
            self._own[INPUT].add(half, inputs[rows])
            self._own[INNER].add(half, inner[rows] * shares[rows, None])

    def finish(self) -> bytes:
        """The layer has ended: its section."""
        self._skip_to(self._shape.experts)
        visits = self._visits.sum(axis=1)
        inner = [self._inner_pool[half] for half in (FIT, HELD_OUT)]
        arrays: dict[str, np.ndarray] = {
            "visits": self._visits,
            "shares": self._shares,
            "input.diagonals": self._diagonals[INPUT],
            "input.pool.diagonal": _means(self._inputs.squares, self._tokens),
            "input.pool.correlations": self._inputs.correlations(),
            "inner.diagonals": self._diagonals[INNER],
            "inner.pool.diagonal": _means(np.stack([total.diagonal() for total in inner]), visits),
            "inner.pool.correlations": np.stack([correlations(total) for total in inner]),
        }
        return encode(self._shape.layer_fields(), arrays)

    def _require_moderate(self, layer: int, rows: Floats) -> None:
        if not (np.abs(rows) < LARGEST).all():
            raise CorruptInputError(
                f"{self._where}: activations in layer {layer} are not finite, or too large to be squared; its weights"
                " are damaged"
            )

    def _begin(self, expert: int) -> None:
        self._expert = expert
        for tally in self._own.values():
            tally.clear()

    def _skip_to(self, expert: int) -> None:
        """End every expert before this one, visited or not."""
        while self._expert < expert:
            self._end_expert()
            self._begin(self._expert + 1)

    def _end_expert(self) -> None:
        for group, tally in self._own.items():
            self._diagonals[group][:, self._expert] = _means(tally.squares, self._visits[:, self._expert])
        for half in (FIT, HELD_OUT):
            self._inner_pool[half] += self._own[INNER].total(half)
        if self._shape.own:
            arrays = {f"{group}.correlations": self._own[group].correlations() for group in self._shape.own}
            self.keep(encode(self._shape.expert_fields(), arrays))


def sum_bytes(shape: Shape) -> int:
    """Bytes of a collector's sums of x x^T."""
    hidden, inner = (width * width * 8 * HALVES for width in shape.widths.values())
    return hidden + 2 * inner + (hidden if INPUT in shape.own else 0)


def _means(squares: Sums, counts: NDArray[np.int64]) -> Floats:
    """[halves, width]: sums divided by how many rows they are of, 0 where there are none."""
    return (squares / np.maximum(counts, 1)[:, None]).astype(np.float32)


def _halves(held_out: NDArray[np.bool_]) -> NDArray[np.int64]:
    judged = np.count_nonzero(held_out)
    return np.array([len(held_out) - judged, judged])
