"""Where a record belongs: its digest binds its place, so a record that lies elsewhere is tried at other places.

Promises to recognise a record anywhere in the pack, as long as few in a layer are strange; of many, only those that
kept their layer or their number, as in exchanges of whole files or within one, are recognised.
"""

from collections.abc import Iterator
from itertools import chain, product

from .digest import DIGEST_BYTES, RecordHasher

Place = tuple[int, int]  # layer and expert
SOUGHT_EVERYWHERE = 8  # strangers of one layer; each costs a hash of 32 bytes per record of the pack


class Places:
    """The record digests of a pack of `experts` per layer, as digests.bin holds them."""

    def __init__(self, digests: bytes, experts: int) -> None:
        self._experts = experts
        self._digests = [digests[at : at + DIGEST_BYTES] for at in range(0, len(digests), DIGEST_BYTES)]
        self._known = frozenset(self._digests)

    def promised(self, layer: int, expert: int) -> bytes:
        """The digest that the record at this place must have."""
        return self._digests[layer * self._experts + expert]

    def home(self, record: RecordHasher, here: Place, *, everywhere: bool) -> Place | None:
        """Where the record that lies `here` belongs, if anywhere; looked for `everywhere` or only near."""
        places = chain(self._near(*here), self._all() if everywhere else ())
        return next((place for place in places if place != here and record.digest(*place) in self._known), None)

    def _near(self, layer: int, expert: int) -> Iterator[Place]:
        yield from product(range(self._layers), (expert,))
        yield from product((layer,), range(self._experts))

    def _all(self) -> Iterator[Place]:
        return product(range(self._layers), range(self._experts))

    @property
    def _layers(self) -> int:
        return len(self._digests) // self._experts
