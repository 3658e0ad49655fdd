"""Command queues and command buffers: what is encoded, committed, waited for, and how it ended."""

import time
from collections.abc import Callable
from typing import Any

from objc import autoreleased

from .accounts import Step, account
from .bridge import Labelled, selector
from .constants import ENUMS, MTLCommandBufferEncoderInfoErrorKey
from .encoder import MTLBlitCommandEncoder, MTLComputeCommandEncoder
from .encoder_info import MTLCommandBufferDescriptor, encoder_infos
from .event import MTLEvent
from .failures import ordered
from .faults import CommandFailed, NSError, need, reports
from .gpu import gpu
from .order import Order
from .work import End, Item, Pass, Signal, Wait

NOT_ENQUEUED, COMMITTED, COMPLETED, ERROR = (
    ENUMS[f"MTLCommandBufferStatus{name}"] for name in ("NotEnqueued", "Committed", "Completed", "Error")
)


class MTLCommandQueue(Labelled):
    """Command buffers in the order of their commits."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most
        self._unfinished: list[MTLCommandBuffer] = []  # made, whether or not committed
        self._pending: list[MTLCommandBuffer] = []  # committed and not completed
        self._ended = 0  # the passes of all that have completed
        gpu.order.hold(self)

    @selector(gives="@")
    def commandBuffer(self) -> "MTLCommandBuffer":
        return self._new(MTLCommandBuffer(self))

    @selector(gives="@")
    def commandBufferWithUnretainedReferences(self) -> "MTLCommandBuffer":
        return self._new(MTLUnretainedCommandBuffer(self))

    @selector("@", gives="@")
    def commandBufferWithDescriptor_(self, descriptor: MTLCommandBufferDescriptor) -> "MTLCommandBuffer":
        made = self._new(MTLCommandBuffer(self))
        made._tells = descriptor._tells
        return made

    def _new(self, command_buffer: "MTLCommandBuffer") -> "MTLCommandBuffer":
        with gpu.lock:
            self._unfinished = [buffer for buffer in self._unfinished if not buffer._finished]
            self._unfinished.append(command_buffer)
            first = self._unfinished[0]
        if len(self._unfinished) > self._most:
            gpu.wait_for(lambda: first._finished, None, f"the first of {self._most + 1} command buffers of a queue")
        made: MTLCommandBuffer = autoreleased(command_buffer)
        return made

    def _forget_passes(self) -> None:
        self._ended = 0

    def _advance(self, order: Order) -> bool:
        """Put in flight what needs nothing more from the host; say whether there was anything."""
        moved = False
        for item in (
            item for command_buffer in self._pending for item in command_buffer._items[command_buffer._flown :]
        ):
            if isinstance(item, Wait) and item.event._promised < item.value:
                return moved
            if isinstance(item, Pass):
                order.in_flight(item)
            if isinstance(item, Signal):
                item.event._promised = max(item.event._promised, item.value)
            item.command_buffer._flown += 1
            moved = True
        return moved


class MTLCommandBuffer(Labelled):
    """Encoded once, committed once; it keeps alive what it uses."""

    _retains = True
    _tells = False  # which encoder failed

    def __init__(self, queue: MTLCommandQueue) -> None:
        super().__init__()
        self._queue = queue
        self._items: list[Item] = []
        self._flown = 0  # so many items are in flight or past it
        self._status, self._finished = NOT_ENQUEUED, False
        self._error: NSError | None = None
        self._handlers: list[Callable[[Any], None]] = []
        self._encoder: Any = None
        self._failure = None
        self._run = 0  # commands so far
        self._times = (0.0, 0.0)
        self._known = 0  # the passes that the host knew to have ended when it committed this
        self._ended = 0  # those that had ended when this completed
        gpu.order.hold(self)

    # Encoding.

    @selector(gives="@")
    def computeCommandEncoder(self) -> MTLComputeCommandEncoder:
        return self._encode(MTLComputeCommandEncoder, ENUMS["MTLDispatchTypeSerial"])

    @selector("Q", gives="@")
    def computeCommandEncoderWithDispatchType_(self, kind: int) -> MTLComputeCommandEncoder:
        return self._encode(MTLComputeCommandEncoder, kind)

    @selector(gives="@")
    def blitCommandEncoder(self) -> MTLBlitCommandEncoder:
        return self._encode(MTLBlitCommandEncoder, ENUMS["MTLDispatchTypeSerial"])

    def _encode(self, kind: Any, dispatch_type: int) -> Any:
        self._encodable("make an encoder")
        work = Pass(self)
        self._items.append(work)
        self._encoder = kind(self, work, dispatch_type)
        return autoreleased(self._encoder)

    @selector("@Q")
    def encodeSignalEvent_value_(self, event: MTLEvent, value: int) -> None:
        self._encodable("encode a signal")
        self._items.append(Signal(self, event, value))

    @selector("@Q")
    def encodeWaitForEvent_value_(self, event: MTLEvent, value: int) -> None:
        self._encodable("encode a wait")
        self._items.append(Wait(self, event, value))

    def _encodable(self, what: str) -> None:
        need(self._status == NOT_ENQUEUED, f"command buffer {self._name} is committed: too late to {what}")
        need(self._encoder is None, f"command buffer {self._name} has an open encoder: end it before you {what}")

    # Running.

    @selector("?")
    def addCompletedHandler_(self, block: Callable[[Any], None]) -> None:
        need(self._status == NOT_ENQUEUED, f"command buffer {self._name} is committed: too late to add a handler")
        self._handlers.append(block)

    @selector()
    def commit(self) -> None:
        need(self._status == NOT_ENQUEUED, f"command buffer {self._name} is committed twice")
        need(self._encoder is None, f"command buffer {self._name} is committed with an open encoder")
        self._items.append(End(self))
        with gpu.lock:
            self._enter()
        account.count("command_buffers")
        gpu.committed()

    def _enter(self) -> None:
        self._status, self._failure, self._known = COMMITTED, ordered.committed(), gpu.order.host
        for work in (item for item in self._items if isinstance(item, Pass)):
            gpu.order.enter(work)
            for fence in work.waits_for:
                need(fence._updated, f"{work.name} waits for fence {fence._name}, which nothing before it updates")
            for fence in work.updates:
                fence._update(work)
        self._queue._pending.append(self)
        if self._queue not in gpu.queues:
            gpu.queues.append(self._queue)

    @selector()
    def waitUntilCompleted(self) -> None:
        need(self._status != NOT_ENQUEUED, f"command buffer {self._name} is waited for, and not committed")
        gpu.wait_for(lambda: self._finished, None, f"command buffer {self._name}")
        self._learn()

    @selector(gives="q")
    def status(self) -> int:
        if self._status in (COMPLETED, ERROR):
            self._learn()
        return self._status

    @selector(gives="@")
    def error(self) -> NSError | None:
        return self._error

    @selector(gives="d")
    def GPUStartTime(self) -> float:
        """In seconds, of this machine: they say nothing of a GPU's."""
        return self._times[0]

    @selector(gives="d")
    def GPUEndTime(self) -> float:
        return self._times[1]

    def _learn(self) -> None:
        """The host has seen that this has completed, and with it all before it in its queue."""
        gpu.host_learns(self._ended)

    # What the GPU asks and tells.

    def _before(self, item: Item) -> list[Item]:
        return self._items[: self._items.index(item)]

    def _done_before(self, item: Item) -> bool:
        return all(earlier.done for earlier in self._before(item))

    def _known_before(self, item: Item) -> int:
        """The passes that have ended for `item`."""
        known = self._known
        for earlier in self._before(item):
            if isinstance(earlier, Wait):
                known |= earlier.known
            elif isinstance(earlier, Pass) and isinstance(item, Signal):
                known |= earlier.bit | earlier.clock
        if isinstance(item, Pass):
            for fence in item.waits_for:
                known |= fence._known_to(item)
        return known

    def _forget_passes(self) -> None:
        self._known = self._ended = 0

    def _waited(self, wait: Wait) -> None:
        wait.known, wait.done = wait.event._known_at(wait.value), True
        account.count("gpu_waits")
        account.step(Step("wait", self._name, wait.event._name, wait.value))

    def _begin(self) -> None:
        """An item is about to run."""
        self._times = (self._times[0] or time.perf_counter(), 0.0)

    def _spend(self) -> None:
        """A command is about to run."""
        if self._failure is not None and self._run >= self._failure.after:
            raise CommandFailed(self._failure.sentence, self._failure.code)
        self._run += 1

    def _fail(self, sentence: str, code: int) -> None:
        """Nothing of this runs any more, and its events are never signalled."""
        info = {MTLCommandBufferEncoderInfoErrorKey: encoder_infos(self._items)} if self._tells else {}
        self._error = NSError("MTLCommandBufferErrorDomain", code, sentence, info)
        for item in self._items[:-1]:
            item.done = True

    def _complete(self) -> None:
        """On the GPU's thread, without its lock, because handlers are the host's."""
        if self._failure is not None and self._error is None:
            self._fail(self._failure.sentence, self._failure.code)
        with gpu.lock:
            self._status = ERROR if self._error else COMPLETED
            for work in (item for item in self._items if isinstance(item, Pass)):
                self._queue._ended |= work.bit | work.clock
            self._ended = self._queue._ended
            self._times = (self._times[0], time.perf_counter())
            account.step(Step("completed", self._name, ""))
        self._call_handlers()
        with gpu.lock:
            self._finished = True
            self._queue._pending.remove(self)
            self._items, self._handlers = [], []
            gpu.lock.notify_all()

    def _call_handlers(self) -> None:
        for block in self._handlers:
            self._learn()
            try:
                block(self)
            except Exception as error:
                reports.add("handler", f"a completed handler of command buffer {self._name} raised {error!r}")


class MTLUnretainedCommandBuffer(MTLCommandBuffer):
    """Keeps nothing alive. (To PyObjC it is a command buffer like any other.)"""

    _retains = False
