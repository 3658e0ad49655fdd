"""What each layer of Qwen3.5-MoE does, once, in a backend's operations. How they run is not known here.

x += mixer(norm(x)); x += experts(norm(x)) + sigmoid(shared gate) * shared expert(norm(x)); logits = head norm(x).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from ..layout.record import RecordLayout
from ..manifests import schema
from .backends.base import Backend, DeltaState, Floats, Stretch, Tensor
from .decoding import Experts, Parts, swept
from .operations import Operations
from .stages import Stages
from .state import State, copied
from .weights import Weights

SPAN = 256  # rows of a chunk that go through a mixer together; experts see the whole chunk


@dataclass(frozen=True)
class Given:
    """Tokens that continue a sequence, at least one; logits are `wanted` after the last so many of them.

    After each of the numbers of tokens in `marks`, less than all, the recurrent states are copied to `state.marked`.
    `read` is given the logits after every token, some rows [n, vocab] at a time: they are in memory for no longer, and
    may come of damaged experts, which shows once the pass is over.
    """

    tokens: Sequence[int]
    state: State
    wanted: int
    marks: Sequence[int] = ()
    read: Callable[[Floats], None] | None = None


class TextModel:
    """The decoder. `experts_per_token` is K; contributions are summed in ascending order of expert, then the shared."""

    def __init__(
        self,
        shape: schema.Model,
        weights: Weights,
        layouts: Sequence[RecordLayout],
        experts: Experts,
        backend: Backend,
        experts_per_token: int,
    ) -> None:
        self._operations = Operations(shape, backend)
        self._weights = weights
        self._experts = experts
        self._backend = backend
        self._experts_per_token = experts_per_token
        self.stages = Stages()
        layouts = [backend.layout(layout) for layout in layouts]
        self._parts = Parts(self._operations, weights.layers, layouts, experts, experts_per_token, self.stages)
        self._decoding = backend.decoding(self._parts)

    def close(self) -> None:
        """Return once nothing is under way, whatever an interrupt has left: memory may then be freed."""
        self._decoding.abandon()
        self._backend.close()

    def logits(self, given: Sequence[Given]) -> list[Floats]:
        """Of each sequence the logits [wanted, vocab] on the host after its last tokens.

        Advances the states' layers, not their positions. All go through a layer together, and each expert is read once
        for all of them. Raises what the experts raise: then the states are of no use. All is computed while the records
        of earlier layers are still being checked, and nothing leaves here before they were found good.
        """
        self._decoding.abandon()  # what interrupts of an interrupt may have left
        try:
            with self._backend.forward():
                logits = self._logits(given)
            self.stages.turn("reads")
            self._experts.confirm()
        except BaseException:
            try:
                self._decoding.abandon()
            finally:
                self._experts.abandon()
            raise
        finally:
            self.stages.turn(None)
        return logits

    def _logits(self, given: Sequence[Given]) -> list[Floats]:
        """The same, of experts of which nobody knows yet whether they are good."""
        tokens = [token for each in given for token in each.tokens]
        for each in given:
            each.state.marked = {each.state.position + mark: [] for mark in each.marks}
        x = self._backend.embed(self._weights.embedding, np.asarray(tokens, np.int32))
        few = len(tokens) <= self._decoding.most_tokens
        if few:
            self._decode(x, given)
        else:
            self._prefill(x, given)
        self.stages.turn("head")
        logits = self._head(x, given)
        if few:
            self._decoding.finish()
        return logits

    def _head(self, x: Tensor, given: Sequence[Given]) -> list[Floats]:
        """Logits of the rows that are wanted; those of neighbours are computed together."""
        found: list[Floats] = []
        for each, first in zip(given, _starts(given), strict=True):
            if each.read is not None:
                self._read(x[first : first + len(each.tokens)], each.read)
        for rows, counts in _wanted(given):
            logits = self._operations.logits(x[rows], self._weights.norm, self._weights.head)
            found += np.split(logits, list(accumulate(counts))[:-1])
        return found

    def _read(self, x: Tensor, read: Callable[[Floats], None]) -> None:
        """Show the logits of all rows to a reader."""
        for logits in self._operations.logits_by_parts(x, self._weights.norm, self._weights.head):
            read(logits)
            del logits  # before the next ones are made

    def _decode(self, x: Tensor, given: Sequence[Given]) -> None:
        """A few tokens [tokens, hidden] through all layers, in place."""
        self._decoding.begin(x)
        for index, weights in enumerate(self._weights.layers):
            self._mix(x, index, given)
            self.stages.turn("router")
            self._decoding.add_experts(index, x, self._operations.norm(x, weights.post_norm))

    def _prefill(self, x: Tensor, given: Sequence[Given]) -> None:
        """Many tokens [tokens, hidden] through all layers, in place."""
        for index, weights in enumerate(self._weights.layers):
            self._mix(x, index, given)
            self.stages.turn("router")
            normed = self._backend.shared(self._operations.norm(x, weights.post_norm))
            routes = self._operations.route(normed, weights, self._experts_per_token)
            self._backend.add(x, swept(self._backend, self._parts, index, normed, routes))

    def _mix(self, x: Tensor, index: int, given: Sequence[Given]) -> None:
        """x += the layer's mixer, a span of rows at a time, which bounds the memory of its projections."""
        self.stages.turn("mixer")
        for rows in _spans(given, len(x)):
            self._operations.add_mixed(x[rows], self._weights.layers[index], list(_stretches(given, index, rows)))
            self._keep(index, given, rows.stop)

    def _keep(self, index: int, given: Sequence[Given], row: int) -> None:
        """Copy the state of a sequence that has a mark before this row: nothing leads back there later."""
        for each, first in zip(given, _starts(given), strict=True):
            layer = each.state.layers[index]
            if row - first in each.marks and isinstance(layer, DeltaState):
                copies = copied(layer.conv, self._backend), copied(layer.memory, self._backend)
                each.state.marked[each.state.position + row - first].append(copies)


def _starts(given: Sequence[Given]) -> Iterator[int]:
    """The first row of each sequence in a chunk."""
    return accumulate((len(each.tokens) for each in given[:-1]), initial=0)


def _spans(given: Sequence[Given], count: int) -> Iterator[slice]:
    """A chunk's rows, cut at the marks and wherever a span is full."""
    marks = {first + mark for each, first in zip(given, _starts(given), strict=True) for mark in each.marks}
    begin = 0
    for end in sorted({*marks, count}):
        for first in range(begin, end, SPAN):
            yield slice(first, min(first + SPAN, end))
        begin = end


def _stretches(given: Sequence[Given], layer: int, rows: slice) -> Iterator[Stretch]:
    """The sequences' parts of some of a chunk's rows, counted from the first of them."""
    start = 0
    for each in given:
        first, last = max(start, rows.start), min(start + len(each.tokens), rows.stop)
        if first < last:
            within = slice(first - rows.start, last - rows.start)
            yield Stretch(within, each.state.position + first - start, each.state.layers[layer])
        start += len(each.tokens)


def _wanted(given: Sequence[Given]) -> Iterator[tuple[slice, list[int]]]:
    """Runs of rows whose logits are wanted, with each sequence's share of them."""
    run, counts, end = slice(0, 0), list[int](), 0
    for each in given:
        end += len(each.tokens)
        if counts and end - each.wanted != run.stop:
            yield run, counts
            run, counts = slice(0, 0), []
        run = slice(run.start if counts else end - each.wanted, end)
        counts.append(each.wanted)
    yield run, counts
