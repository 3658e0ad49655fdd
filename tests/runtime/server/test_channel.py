"""Parts on their way from the thread that computes: together, in order, and to nobody who is gone."""

import asyncio
from unittest.mock import patch

import pytest

from moepack.manifests.errors import UsageError
from moepack.runtime.answers.events import Content
from moepack.runtime.server.channel import Channel, Post
from moepack.runtime.serving.answer import Ended, Likelihood, Said


def said(text: str) -> Said:
    return Said((Content(text),))


def test_a_loop_is_woken_once_for_all_that_a_step_brings() -> None:
    async def told() -> tuple[list[Said], int]:
        loop, post = asyncio.get_running_loop(), Post()
        channels = [Channel(8, post) for _ in range(3)]
        with patch.object(loop, "call_soon_threadsafe", wraps=loop.call_soon_threadsafe) as waking:
            await asyncio.to_thread(step, channels)
            before = waking.call_count
            assert not any(channel._parts.qsize() for channel in channels)
            post.send()
            post.send()  # of nothing
            woken = waking.call_count - before
        return [await channel.get() for channel in channels for _ in range(2)], woken  # type: ignore[misc]

    def step(channels: list[Channel]) -> None:
        for text in "ab":
            for number, channel in enumerate(channels):
                channel.put(said(f"{text}{number}"))

    found, woken = asyncio.run(told())
    assert woken == 1
    assert found == [said(text) for text in ("a0", "b0", "a1", "b1", "a2", "b2")]


def test_who_reads_too_slowly_loses_the_answer_but_hears_its_end() -> None:
    async def told() -> None:
        post = Post()
        channel = Channel(2, post)
        channel.put(said("a"))
        channel.put(said("b"))
        with pytest.raises(UsageError, match="left 2 parts of its answer unread"):
            channel.put(said("c"))
        channel.put(Ended("stop", None, 2))
        post.send()
        await asyncio.sleep(0)
        assert [await channel.get() for _ in range(3)] == [said("a"), said("b"), Ended("stop", None, 2)]

    asyncio.run(told())


@pytest.mark.parametrize(("top", "parts"), [(0, 6), (3, 6), (4, 3), (20, 1)])
def test_a_part_with_many_alternatives_counts_as_several(top: int, parts: int) -> None:
    part = Said((), Likelihood(1, -1.0, ((2, -2.0),) * top))

    async def told() -> None:
        post = Post()
        channel = Channel(6, post)
        for _ in range(2):  # those that were read count no more
            for _ in range(parts):
                channel.put(part)
            with pytest.raises(UsageError, match="unread"):
                channel.put(part)
            post.send()
            await asyncio.sleep(0)
            assert [await channel.get() for _ in range(parts)] == [part] * parts

    asyncio.run(told())


def test_a_loop_that_is_closed_keeps_nobody_from_the_others() -> None:
    post = Post()

    async def leave() -> None:
        Channel(2, post).put(said("a"))

    asyncio.run(leave())

    async def stay() -> None:
        channel = Channel(2, post)
        channel.put(said("b"))
        post.send()
        assert await channel.get() == said("b")

    asyncio.run(stay())
