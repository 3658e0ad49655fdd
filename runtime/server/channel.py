"""From the thread that computes to a coroutine: parts of an answer, at most so many unread."""

import asyncio
from collections.abc import Callable

from ...manifests.errors import UsageError
from ..serving.answer import Ended, Failed, Part
from ..serving.request import Request


class Channel:
    """Made in the coroutine's loop. `put` never waits: a reader that is `most` parts behind loses its answer."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._loop = asyncio.get_running_loop()
        self._parts: asyncio.Queue[Part] = asyncio.Queue()
        self._put = self._got = 0

    def put(self, part: Part) -> None:
        """From any one thread. Raises UsageError, which ends the answer, for a reader that is too far behind."""
        last = isinstance(part, Ended | Failed)
        if not last and self._put - self._got >= self._most:
            raise UsageError(f"the client left {self._most} parts of its answer unread")
        self._put += 1
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._parts.put_nowait, part)

    async def get(self) -> Part:
        """The next part; after the last there is none, ever."""
        part = await self._parts.get()
        self._got += 1
        return part


class Pending:
    """An answer that was asked for: its parts, until `cancel`, which is harmless once it has ended."""

    def __init__(self, channel: Channel, request: Request, cancel: Callable[[Request], None]) -> None:
        self.get = channel.get
        self._request, self._cancel = request, cancel

    def cancel(self) -> None:
        """Compute no more of it."""
        self._cancel(self._request)
