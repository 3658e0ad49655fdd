"""The way of a token, or a few, through the experts of their layers, as the host paces it: it sees routers' choices.

A backend whose GPU goes on by itself has a way of its own, with the same arithmetic: see Backend.decoding.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from .backends.base import Backend, HostBackend, Ids, Layout, Record, Routes, Tensor, pair_of
from .operations import Operations
from .stages import Stages
from .weights import LayerWeights

FEW_TOKENS = 16  # that decode together


class Experts(Protocol):
    """Where records come from; see experts.ExpertStream."""

    def hold(self, layer: int, experts: Collection[int]) -> bool:
        """Whether all of these records are in memory, checked."""

    def records(self, layer: int, experts: Sequence[int], lag: int) -> Iterator[tuple[int, Record]]:
        """Yield (expert, record) in the order of `experts`; valid until the next one, or `lag` more, are asked for."""

    def batches(self, layer: int, experts: Sequence[int], ids: Ids | None = None) -> Iterator[list[tuple[int, Record]]]:
        """Yield (expert, record) as they can be had: first those in memory, which may be none, then the others.

        `ids` [tokens, K]: who chose them, if not one token all of them. They may be damaged until `confirm` has
        returned.
        """

    def confirm(self) -> None:
        """Wait until all that `batches` yielded has been checked; raises if any of it is damaged."""

    def abandon(self) -> None:
        """Give up what is under way, for nothing will come of what was handed out."""

    def learn(self, layer: int, ids: Ids) -> None:
        """What the tokens of a chunk chose, [tokens, K]."""

    @property
    def may_foresee(self) -> bool:
        """Whether a guess at a later layer's experts is welcome."""

    def foresee(self, layer: int, experts: Sequence[int], most: int) -> None:
        """A guess at what `layer` will want, likeliest first; the first `most` are worth reading."""


@dataclass(frozen=True)
class Parts:
    """What decoding goes through: `layers` and their records' `layouts`, `experts_per_token` (K) of them per token."""

    operations: Operations
    layers: Sequence[LayerWeights]
    layouts: Sequence[Layout]
    experts: Experts
    experts_per_token: int
    stages: Stages


class Decoding(Protocol):
    """What the model asks for few tokens: `begin`, then `add_experts` of each layer, then `finish`; or `abandon`.

    The latter says that they are given up, wherever they were: then nothing is under way any more.
    """

    most_tokens: int  # that go this way together

    def begin(self, x: Tensor) -> None:
        """The tokens' embeddings [tokens, hidden]."""

    def add_experts(self, index: int, x: Tensor, normed: Tensor) -> None:
        """x += the layer's experts of `normed`, added up in ascending order, and the shared one."""

    def finish(self) -> None:
        """All layers are done; raises what kept any of them from its records."""

    def abandon(self) -> None:
        """Nothing will come of these tokens."""


class HostPaced:
    """A token's experts are computed as they come, and added up in ascending order all the same.

    So are a few tokens' where all are in memory; else a sweep keeps more of what there is, for the next step to find.

    The next layer's likeliest experts are guessed before, from less: they are read as soon as these have come.
    """

    most_tokens = FEW_TOKENS

    def __init__(self, backend: HostBackend, parts: Parts) -> None:
        self._backend = backend
        self._parts = parts
        self._operations = parts.operations
        hidden = parts.operations.shape.hidden_size
        self._given = backend.reserved(FEW_TOKENS * parts.experts_per_token, hidden)  # expert by expert

    def begin(self, x: Tensor) -> None:
        """See Decoding."""
        self._foresee(0, x, self._parts.experts_per_token)

    def add_experts(self, index: int, x: Tensor, normed: Tensor) -> None:
        """See Decoding."""
        parts = self._parts
        shared_input = self._backend.shared(normed)
        routes = self._operations.route(shared_input, parts.layers[index], parts.experts_per_token)
        self._backend.add(x, self._experts(index, x, shared_input, routes))
        self._foresee(index + 1, x, parts.experts_per_token)

    def finish(self) -> None:
        """See Decoding; nothing is ever left to wait for."""

    def abandon(self) -> None:
        """See Decoding."""

    def _experts(self, index: int, x: Tensor, normed: Tensor, routes: Routes) -> Tensor:
        parts, stages = self._parts, self._parts.stages
        if len(routes.ids) > 1 and not parts.experts.hold(index, set(routes.ids.ravel().tolist())):
            return swept(self._backend, parts, index, normed, routes)
        visits = routes.visits
        came: list[int] = []
        shared = None
        stages.turn("reads")
        for batch in parts.experts.batches(index, list(visits), routes.ids):
            stages.turn("experts")
            came += self._compute(index, normed, batch, visits, len(came))
            if shared is None:  # the other experts' reads are under way by now
                self._foresee(index + 1, x, -(-len(visits) // 2))
                stages.turn("shared")
                shared = self._operations.shared_expert(normed, parts.layers[index])
            stages.turn("reads")
        assert shared is not None
        stages.turn("experts")
        out = self._backend.combine(self._given, came, routes)
        self._backend.add_gated(out, *shared)
        return out

    def _compute(
        self,
        index: int,
        normed: Tensor,
        batch: Sequence[tuple[int, Record]],
        visits: Mapping[int, Sequence[int]],
        first: int,
    ) -> list[int]:
        """What experts give their tokens, from row `first` on, is that of these pairs."""
        records, tokens = [record for _, record in batch], [visits[expert] for expert, _ in batch]
        self._backend.experts(normed, records, self._parts.layouts[index], tokens, self._given[first:])
        return [pair_of(token, expert) for expert, _ in batch for token in visits[expert]]

    def _foresee(self, index: int, x: Tensor, most: int) -> None:
        """Guess what layer `index` wants by what of its input is known, for `most` experts: the disk shall not idle.

        Of one token: sweeps read ahead by themselves.
        """
        parts = self._parts
        if len(x) > 1 or index == len(parts.layers) or not parts.experts.may_foresee:
            return
        parts.stages.turn("router")
        normed = self._operations.norm(x, parts.layers[index].post_norm)
        guess = self._operations.route(normed, parts.layers[index], parts.experts_per_token)
        parts.experts.foresee(index, guess.ids[0].tolist(), most)


def swept(backend: Backend, parts: Parts, index: int, normed: Tensor, routes: Routes) -> Tensor:
    """What a layer's experts give to many tokens [tokens, hidden], one expert after the other, with the shared one."""
    stages = parts.stages
    parts.experts.learn(index, routes.ids)
    visits = {expert: (tokens, shares) for expert, tokens, shares in routes.by_expert()}
    out = backend.zeros(len(routes.ids), parts.operations.shape.hidden_size)
    stages.turn("reads")
    for expert, record in parts.experts.records(index, list(visits), backend.lag):
        stages.turn("experts")
        backend.expert(out, normed, record, parts.layouts[index], *visits[expert])
        stages.turn("reads")
    stages.turn("shared")
    parts.operations.add_shared(out, normed, parts.layers[index])
    return out
