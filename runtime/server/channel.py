"""From the thread that computes to coroutines: parts of answers, at most so many of one unread.

Waking a loop takes about as long as choosing a token, so what a step brings for all goes there at once.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress

from ...manifests.errors import MoepackError, UsageError
from ..serving.answer import Ended, Failed, Part, Said
from ..serving.request import Request
from .allowance import Share

LIGHT = 4  # alternatives of a token's logprob that take as much memory as a part


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
    """Made in the coroutine's loop. `put` never waits: a reader that is `most` parts behind loses its answer.

    A part with many alternatives counts as several.
    """

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
        self._put += _weight(part)
        self._post.put(self._loop, self._parts, part)

    async def get(self) -> Part:
        """The next part; after the last of all answers there is none, ever."""
        part = await self._parts.get()
        self._got += _weight(part)
        return part


def _weight(part: Part) -> int:
    likelihood = part.likelihood if isinstance(part, Said) else None
    return 1 if likelihood is None else 1 + len(likelihood.top) // LIGHT


class Pending:
    """Answers that were asked for together: their parts as they come, until all have ended, one failed, or `cancel`.

    Whoever has it calls `cancel` however it ends, which gives back their share.
    """

    def __init__(
        self, channel: Channel, requests: Sequence[Request], cancel: Callable[[Request], None], share: Share
    ) -> None:
        self._channel, self._requests, self._cancel, self._share = channel, requests, cancel, share
        self._left = len(requests)

    @property
    def over(self) -> bool:
        """Whether there is no more to come."""
        return self._left <= 0

    async def get(self, kept: int) -> Part:
        """The next part of any of them; `kept`: bytes of logprobs that the reader keeps by now, or it has failed."""
        part = self._refused(kept) or await self._channel.get()
        if isinstance(part, Ended | Failed):
            self._left = self._left - 1 if isinstance(part, Ended) else 0
        return part

    def _refused(self, kept: int) -> Failed | None:
        try:
            self._share.hold(kept)
        except MoepackError as error:
            return Failed(error)
        return None

    def cancel(self) -> None:
        """Compute no more of any; harmless once they have ended."""
        for request in self._requests:
            self._cancel(request)
        self._share.give_back()
