"""An answer as it comes, by server-sent events; who goes away, or does not read, is computed for no longer."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeVar

import msgspec
from starlette.types import Receive, Scope, Send

from ..serving.answer import Began, Ended, Failed, Part, Said
from .channel import Pending
from .failures import ApiError
from .settings import Limits
from .shape import Event, Shape

T = TypeVar("T")
HEADERS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]
PING = b": still at it\n\n"


class EventStream:
    """An ASGI response."""

    def __init__(self, pending: Pending, shape: Shape, limits: Limits) -> None:
        self._pending, self._shape, self._limits = pending, shape, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        try:
            await unless_gone(receive, self._send(send))
        finally:
            self._pending.cancel()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        while not self._pending.over:
            part = await self._next()
            for body in (PING,) if part is None else map(_encoded, told(self._shape, part)):
                async with asyncio.timeout(self._limits.send_seconds):
                    await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _next(self) -> Part | None:
        """The next part; None if there is none for long, so that nobody on the way takes the silence for an end."""
        try:
            async with asyncio.timeout(self._limits.ping_seconds):
                return await self._pending.get()
        except TimeoutError:
            return None


async def whole(pending: Pending, shape: Shape) -> dict[str, Any]:
    """The document of an answer, once it is there. Raises ApiError if it failed."""
    while not pending.over:
        part = await pending.get()
        if isinstance(part, Failed):
            raise ApiError.of(part.error) from part.error
        for _ in told(shape, part):
            pass
    return shape.document()


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


def _encoded(event: Event) -> bytes:
    data = event.data.encode() if isinstance(event.data, str) else msgspec.json.encode(event.data)
    name = b"" if event.name is None else b"event: " + event.name.encode() + b"\n"
    return name + b"data: " + data + b"\n\n"
