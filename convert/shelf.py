"""A checkpoint's tensors under canonical names, taken one by one and checked as they are taken.

What is left on the shelf at the end is a tensor nobody expected: better a refusal than a pack without it.
"""

from collections.abc import Iterable, Mapping, Sequence

from ..layout.tensorfile import TensorEntry
from ..manifests.errors import CorruptInputError, UnsupportedError
from .checkpoint import Checkpoint
from .tensors import FLOATS, LeftOut, Plain

CODE_PARTS = ("scales", "biases", "qweight", "qzeros", "g_idx")  # in whatever dialect


class Shelf:
    """The tensors of `checkpoint`, each prefix of `prefixes` replaced; those of `left_out` are set aside."""

    def __init__(self, checkpoint: Checkpoint, prefixes: Mapping[str, str], left_out: Mapping[str, str]) -> None:
        self.checkpoint = checkpoint
        self._prefixes = prefixes
        self._left: dict[str, TensorEntry] = {}
        self._set_aside: dict[str, list[int]] = {}
        for stored, entry in checkpoint.entries.items():
            reason = next((what for prefix, what in left_out.items() if stored.startswith(prefix)), None)
            if reason is None:
                self._put(self.canonical(stored), entry)
            else:
                self._set_aside.setdefault(reason, []).append(entry.size)

    @property
    def left_out(self) -> tuple[LeftOut, ...]:
        """What was set aside, and how many bytes."""
        return tuple(LeftOut(what, len(sizes), sum(sizes)) for what, sizes in self._set_aside.items())

    def canonical(self, stored: str) -> str:
        """A stored tensor's or module's name with its prefix replaced by the canonical one."""
        for prefix, replacement in self._prefixes.items():
            if stored.startswith(prefix):
                return replacement + stored.removeprefix(prefix)
        return stored

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def set_aside(self, names: Iterable[str], what: str) -> None:
        """Leave out the tensors called `names`, as far as they are there, with all that belongs to their codes."""
        for name in names:
            for part in (name, f"{name}_scale_inv", *(name.removesuffix("weight") + other for other in CODE_PARTS)):
                if part in self._left:
                    self._set_aside.setdefault(what, []).append(self._left.pop(part).size)

    def peek(self, name: str) -> TensorEntry:
        """The tensor called `name`, left where it is. Raises CorruptInputError if it is missing."""
        if name not in self._left:
            raise CorruptInputError(f"{self.checkpoint.origin.directory} has no tensor {name!r}; is it all there?")
        return self._left[name]

    def take(self, name: str, dtypes: Sequence[str], shape: tuple[int, ...]) -> TensorEntry:
        """The tensor called `name`, of one of `dtypes` and of `shape`. Raises CorruptInputError otherwise."""
        entry = self.peek(name)
        if entry.dtype not in dtypes or entry.shape != shape:
            raise CorruptInputError(
                f"{self.checkpoint.home(entry.name)}: tensor {entry.name!r} is {entry.dtype} {list(entry.shape)},"
                f" expected {' or '.join(dtypes)} {list(shape)} by config.json"
            )
        return self._left.pop(name)

    def take_plain(self, name: str, shape: tuple[int, ...]) -> Plain:
        """The tensor of floats called `name`."""
        entry = self.take(name, FLOATS, shape)
        return Plain(entry.name, entry.dtype)

    def finish(self) -> None:
        """Raise UnsupportedError if a tensor is left that nobody took."""
        if self._left:
            entry = self._left[min(self._left)]
            raise UnsupportedError(
                f"{self.checkpoint.home(entry.name)}: tensor {entry.name!r} {list(entry.shape)} is unknown to this"
                f" version ({len(self._left)} such in all)"
            )

    def _put(self, name: str, entry: TensorEntry) -> None:
        if name in self._left:
            other = self._left[name].name
            raise CorruptInputError(f"the checkpoint holds {name!r} twice, as {other!r} and as {entry.name!r}")
        self._left[name] = entry
