"""Requests that wait, clients taking turns: each client's own in order, of several clients' the first of each.

Promises that a request comes after at most one of every other client, so long as its own client has none before it.
Knows no threads: whoever has it locks it.
"""

from collections import OrderedDict, deque
from collections.abc import Iterator

from .request import Request


class Waiting:
    """At most `most` requests, of one client at most `most_each`."""

    def __init__(self, most: int, most_each: int) -> None:
        self._most, self._most_each = most, most_each
        self._clients: OrderedDict[str, deque[Request]] = OrderedDict()  # in the order of their turns; none is empty
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Request]:
        """All of them, client by client."""
        for own in self._clients.values():
            yield from own

    @property
    def first(self) -> Request:
        """Whose turn it is; there must be one."""
        return next(iter(self._clients.values()))[0]

    def full(self, client: str, count: int) -> bool:
        """Whether so many more of a client do not all find a place."""
        return self._count + count > self._most or len(self._clients.get(client, ())) + count > self._most_each

    def put(self, request: Request) -> None:
        """Behind its client's others; a client that had none comes after all others."""
        self._clients.setdefault(request.client, deque()).append(request)
        self._count += 1

    def take(self) -> Request:
        """The first; after that it is its client's turn last."""
        client, own = next(iter(self._clients.items()))
        request = own[0]
        self._clients.move_to_end(client)
        self.remove(request)
        return request

    def remove(self, request: Request) -> None:
        """One that does not want to wait any more. Raises ValueError if it does not wait."""
        own = self._clients.get(request.client, deque[Request]())
        own.remove(request)
        self._count -= 1
        if not own:
            del self._clients[request.client]

    def clear(self) -> None:
        """Nobody waits any more."""
        self._clients.clear()
        self._count = 0
