"""One token's way through the experts, as the GPU paces it: everything is enqueued before the first router has chosen.

After each router the GPU raises an event, computes the shared expert, and waits for another. Meanwhile a thread reads
what was chosen, makes the records resident, writes where they lie into a table that the kernels read, and raises the
event. The thread that enqueues waits once, at the token's end. If a record cannot be had, the GPU is let go on with
whatever the slots hold, and the token is thrown away.
"""

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from ...decoding import Parts
from ...trace import ANSWER, AWAITED, PLACES, RESIDENT
from ..base import Tensor
from .device import Device, Event
from .launches import slot
from .work import EXPERTS

if TYPE_CHECKING:
    from .backend import MetalBackend

PATIENCE = 100  # milliseconds after which the answering thread looks whether the token was given up


class DevicePaced:
    """See decoding.Decoding. Two events count layers: `chosen` is the GPU's, `ready` the host's."""

    most_tokens = 1

    def __init__(self, backend: "MetalBackend", parts: Parts) -> None:
        device, k = backend.device, parts.experts_per_token
        self._backend = backend
        self._parts = parts
        self._chosen, self._ready = device.event(), device.event()
        self._slots = device.buffer(k * len(slot(0, 0)), "slots of the chosen experts")
        self._turns = range(1, 1)  # of this token: the events' values, layer by layer; they only ever rise
        self._answers: _Answers | None = None

    def begin(self, x: Tensor) -> None:
        """See Decoding."""
        self.abandon()  # what an interrupt of an interrupt may have left
        self._turns = range(self._turns.stop, self._turns.stop + len(self._parts.layers))
        events = (self._chosen, self._ready)
        self._answers = _Answers(self._backend.device, self._answer, events, self._turns)
        self._answers.start()  # known before it runs: an interrupt in between can then be followed by `abandon`

    def add_experts(self, index: int, x: Tensor, normed: Tensor) -> None:
        """See Decoding; enqueues."""
        parts, backend, work = self._parts, self._backend, self._backend.work
        weights, k = parts.layers[index], parts.experts_per_token
        turn = self._turns[index]
        # The router belongs to the mixer's section: one less to begin.
        choice = backend.choose(backend.linear(normed, weights.router), k)
        work.signal(self._chosen, turn)
        shared, gate = parts.operations.shared_expert(normed, weights)
        work.wait(self._ready, turn)
        work.section(EXPERTS)
        given = backend.one_tokens_experts(parts.layouts[index], self._slots, normed, k)
        backend.combine(given, choice, shared, gate, x)

    def finish(self) -> None:
        """See Decoding."""
        assert self._answers is not None
        self._backend.work.commit()  # where nobody wanted logits, nobody has waited yet
        self._answers.end()
        self._answers = None

    def abandon(self) -> None:
        """See Decoding."""
        if self._answers is not None:
            self._answers.give_up()
            self._answers = None

    def _answer(self, layer: int) -> None:
        """Make resident what the layer's router chose, and tell the kernels where it lies."""
        start = time.perf_counter()
        ids = self._backend.chosen(self._parts.experts_per_token).tolist()
        places: dict[int, bytes] = {}
        for batch in self._parts.experts.batches(layer, ids):
            places |= {expert: self._backend.slot(record) for expert, record in batch}
        resident = time.perf_counter()
        table = b"".join(places[expert] for expert in ids)
        self._slots.bytes[:] = np.frombuffer(table, np.uint8)
        trace = self._backend.device.trace
        trace.slice(RESIDENT, start, resident, layer=layer)
        trace.slice(PLACES, resident, time.perf_counter(), layer=layer)


class _Answers:
    """The thread that answers the routers of one token: turn by turn, from the first on."""

    def __init__(
        self, device: Device, answer: Callable[[int], None], events: tuple[Event, Event], turns: range
    ) -> None:
        self._device = device
        self._answer = answer
        self._chosen, self._ready = events
        self._turns = turns
        self._given_up = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="moepack-answers", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def end(self) -> None:
        """Wait until all layers were answered. Raises what kept one from it."""
        self._thread.join()
        error, self._error = self._error, None
        if error is not None:
            try:
                raise error
            finally:
                del error  # it knows this frame, and so all that was lent to the token: no cycle shall keep that

    def give_up(self) -> None:
        """Answer no more, and let the GPU pass."""
        self._given_up = True
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        if self._given_up:  # before it began: later tokens may have raised the event further
            return
        with self._device.pool():
            try:
                if all(self._answered(layer, turn) for layer, turn in enumerate(self._turns)):
                    return
            except BaseException as error:  # the token's own thread raises it
                self._error = error
            self._ready.signal(self._turns[-1])

    def _answered(self, layer: int, turn: int) -> bool:
        """Wait for a layer's router and answer it; False if the token was given up meanwhile."""
        asked = time.perf_counter()
        while not self._chosen.wait(turn, PATIENCE):
            if self._given_up:
                return False
        chosen = time.perf_counter()
        self._answer(layer)
        self._ready.signal(turn)
        trace = self._device.trace
        trace.slice(AWAITED, asked, chosen, layer=layer)
        trace.slice(ANSWER, chosen, time.perf_counter(), layer=layer)
        return True
