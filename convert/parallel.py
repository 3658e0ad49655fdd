"""Work on several threads, results in the order of the items, and never more than a few of either in memory."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_flight(jobs: int) -> int:
    """How many items `in_order` has begun and its consumer not yet left behind, at most."""
    return jobs + 2


def in_order(work: Callable[[Item], Result], items: Iterable[Item], *, jobs: int) -> Iterator[Result]:
    """`work` of each item on `jobs` threads, in the order of `items`.

    The first error is raised where its result would have come; what had not begun by then never does.
    """
    executor = ThreadPoolExecutor(jobs, thread_name_prefix="moe-pack")
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(executor.submit(work, item))
            if len(waiting) == in_flight(jobs) - 1:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
