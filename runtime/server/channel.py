"""From the thread that computes to coroutines: parts of answers, at most so many of one unread.

Waking a loop takes about as long as choosing a token, so what a step brings for all goes there at once.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress

from ...manifests.errors import MoepackError, UsageError
from ..serving.answer import Ended, Failed, Part
from ..serving.request import Request
from . import allowance
from .allowance import Share


class Post:
    """Parts on their way; for the thread that computes."""

    def __init__(self) -> None:
        self._parts: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Queue[Part], Part]]] = {}

    def put(self, loop: asyncio.AbstractEventLoop, queue: asyncio.Queue[Part], part: Part) -> None:
        """For a queue of this loop."""
        self._parts.setdefault(loop, []).append((queue, part))

    def send(self) -> None:
        """Wake each loop once, with all that was put for it."""
        parts, self._parts = self._parts, {}
        for loop, own in parts.items():
            with suppress(RuntimeError):  # the loop is closed: nobody is there any more
                loop.call_soon_threadsafe(_deliver, own)


def _deliver(parts: Sequence[tuple[asyncio.Queue[Part], Part]]) -> None:
    for queue, part in parts:
        queue.put_nowait(part)


class Channel:
    """Made in the coroutine's loop. `put` never waits: a reader that is `most` parts behind loses its answer."""

    def __init__(self, most: int, post: Post) -> None:
        self._most, self._post = most, post
        self._loop = asyncio.get_running_loop()
        self._parts: asyncio.Queue[Part] = asyncio.Queue()
        self._put = self._got = 0

    def put(self, part: Part) -> None:
        """Arrives once the post is sent. Raises UsageError, which ends the answer, for a reader too far behind."""
        last = isinstance(part, Ended | Failed)
        if not last and self._put - self._got >= self._most:
            raise UsageError(f"the client left {self._most} parts of its answer unread")
        self._put += 1
        self._post.put(self._loop, self._parts, part)

    async def get(self) -> Part:
        """The next part; after the last of all answers there is none, ever."""
        part = await self._parts.get()
        self._got += 1
        return part


class Pending:
    """Answers that were asked for together: their parts as they come, until all have ended, one failed, or `cancel`.

    Whoever has it calls `cancel` however it ends, which gives back their share. Where logprobs are `kept`, each token
    takes its part of that, and what finds no room fails.
    """

    def __init__(
        self,
        channel: Channel,
        requests: Sequence[Request],
        cancel: Callable[[Request], None],
        share: Share,
        *,
        kept: bool,
    ) -> None:
        self._channel, self._requests, self._cancel = channel, requests, cancel
        self._share, self._kept = share, kept
        self._left = len(requests)

    @property
    def over(self) -> bool:
        """Whether there is no more to come."""
        return self._left <= 0

    async def get(self) -> Part:
        """The next part of any of them."""
        part = await self._channel.get()
        if self._kept:
            part = self._paid(part)
        if isinstance(part, Ended | Failed):
            self._left = self._left - 1 if isinstance(part, Ended) else 0
        return part

    def _paid(self, part: Part) -> Part:
        try:
            self._share.take(allowance.of_part(part))
        except MoepackError as error:
            return Failed(error)
        return part

    def cancel(self) -> None:
        """Compute no more of any; harmless once they have ended."""
        for request in self._requests:
            self._cancel(request)
        self._share.give_back()
