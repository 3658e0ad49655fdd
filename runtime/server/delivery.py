"""An answer on its way: as it comes, by server-sent events, or whole; who goes away, or does not read, loses it.

Owns what a client may let wait, and that what was taken for an answer is given back once it is sent. Knows no protocol.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeVar

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ..serving.answer import Began, Ended, Failed, Part, Said
from .channel import Pending
from .failures import ApiError
from .settings import Limits
from .shape import Event, Shape

T = TypeVar("T")
Headers = list[tuple[bytes, bytes]]
ENCODER = msgspec.json.Encoder()
EVENTS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]
PING = b": still at it\n\n"
PIECE_BYTES = 65536  # the next piece goes when the client has nearly all before it
GONE = 499  # nobody reads it; counted


class Delivery(ABC):
    """An ASGI response."""

    def __init__(self, pending: Pending, shape: Shape, limits: Limits) -> None:
        self._pending, self._shape, self._limits = pending, shape, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        try:
            await self._deliver(scope, receive, send)
        finally:
            self._pending.cancel()

    @abstractmethod
    async def _deliver(self, scope: Scope, receive: Receive, send: Send) -> None: ...

    async def _begin(self, send: Send, headers: Headers) -> None:
        await self._timed(send({"type": "http.response.start", "status": 200, "headers": headers}))

    async def _give(self, send: Send, body: bytes | bytearray) -> None:
        """In pieces. Raises TimeoutError, as all these, if the client does not take one for long."""
        for first in range(0, len(body), PIECE_BYTES):
            piece = bytes(body[first : first + PIECE_BYTES])
            await self._timed(send({"type": "http.response.body", "body": piece, "more_body": True}))

    async def _end(self, send: Send) -> None:
        await self._timed(send({"type": "http.response.body", "body": b"", "more_body": False}))

    async def _timed(self, sending: Awaitable[None]) -> None:
        async with asyncio.timeout(self._limits.send_seconds):
            await sending


class Streamed(Delivery):
    """As it comes; while there is nothing to tell for long, nobody on the way shall take the silence for an end."""

    _silent_until = 0.0

    async def _deliver(self, scope: Scope, receive: Receive, send: Send) -> None:
        await unless_gone(receive, self._send(send))

    async def _send(self, send: Send) -> None:
        await self._begin(send, EVENTS)
        self._spoken()
        while not self._pending.over:
            part = await self._next()
            for event in told(self._shape, part) if part is not None else ():
                await self._give(send, _encoded(event))
                self._spoken()
            if asyncio.get_running_loop().time() >= self._silent_until:
                await self._give(send, PING)
                self._spoken()
        await self._end(send)

    def _spoken(self) -> None:
        self._silent_until = asyncio.get_running_loop().time() + self._limits.ping_seconds

    async def _next(self) -> Part | None:
        """The next part, which may have nothing to tell; None if there is none in time."""
        try:
            async with asyncio.timeout_at(self._silent_until):
                return await self._pending.get(self._shape.kept)
        except TimeoutError:
            return None


class Whole(Delivery):
    """Once all of it is there. Raises ApiError, before anything is sent, if it failed."""

    async def _deliver(self, scope: Scope, receive: Receive, send: Send) -> None:
        document = await unless_gone(receive, self._document())
        if document is None:
            await Response(status_code=GONE)(scope, receive, send)
        else:
            await unless_gone(receive, self._send(send, msgspec.json.encode(document)))

    async def _document(self) -> dict[str, Any]:
        while not self._pending.over:
            part = await self._pending.get(self._shape.kept)
            if isinstance(part, Failed):
                raise ApiError.of(part.error) from part.error
            for _ in told(self._shape, part):
                pass
        return self._shape.document()

    async def _send(self, send: Send, body: bytes) -> None:
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await self._begin(send, headers)
        await self._give(send, body)
        await self._end(send)


async def unless_gone(receive: Receive, work: Awaitable[T]) -> T | None:
    """The work's result; None, and the work is cancelled, if the client goes away first, or takes too long."""
    working, watching = asyncio.ensure_future(work), asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    except TimeoutError:
        return None
    finally:
        working.cancel()
        watching.cancel()


async def _gone(receive: Callable[[], Awaitable[Any]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def told(shape: Shape, part: Part) -> Iterable[Event]:
    """A part as the protocol's events."""
    match part:
        case Began():
            return shape.began(part)
        case Said():
            return shape.said(part)
        case Ended():
            return shape.ended(part)
        case Failed(error):
            return shape.failed(ApiError.of(error))


def _encoded(event: Event) -> bytearray:
    """Without copies: a response's last event may have megabytes."""
    found = bytearray(b"" if event.name is None else b"event: %b\n" % event.name.encode())
    found += b"data: "
    if isinstance(event.data, str):
        found += event.data.encode()
    else:
        ENCODER.encode_into(event.data, found, len(found))
    found += b"\n\n"
    return found
