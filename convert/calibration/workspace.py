"""The folder in which a calibration is made, so that a killed run goes on at the next layer with the same bytes.

    plan.json           what this calibration is of; another one never goes on here
    layer_007.sections  the stored sections of a finished layer, and layer_007.json, which says what they are
    before_008.states   the hidden states before a layer, float32, and their digest; only the last are kept

Every file is published whole (layout.atomic); the states before layer n are durable before older ones go. What is
found is hashed before it is used. One process at a time: the folder is locked.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec
from blake3 import blake3

from ...layout.atomic import (
    TEMPORARY_SUFFIX,
    AtomicFile,
    Reporting,
    beside_removed,
    publish,
    remove,
    remove_directory,
    rename,
    sync_directory,
)
from ...layout.lock import LockedDirectory
from ...layout.writer import check_space, partial_directory, require_absent
from ...manifests import digest
from ...manifests.errors import UsageError
from ...manifests.files import pieces, read_exactly
from ...quantize.moments import Floats
from ..sensitivities import Sensitivities
from . import file
from .header import Section
from .plan import CalibrationPlan
from .sections import Shape, section_size

PLAN_FILE = "plan.json"
WHOLE_FILE = "whole.moecal"


class Workspace:
    """`<target>.partial/`, locked. A context manager: leaving it without `commit` keeps what is finished.

    `finished` is how many layers are.
    """

    def __init__(self, target: Path, plan: CalibrationPlan, lock: LockedDirectory) -> None:
        self.target = target
        self.partial = lock.path
        self.finished = 0
        self._plan = plan
        self._lock = lock
        self._sections: list[list[Section]] = []  # of every finished layer

    @classmethod
    def open(cls, target: Path, plan: CalibrationPlan) -> "Workspace":
        """Begin or resume. Raises UsageError if the target exists or the folder is of another calibration.

        Raises StorageError if another process works on it or the disk has too little room.
        """
        partial = partial_directory(target)
        require_absent(target)
        if not os.path.lexists(partial):
            check_space(target.parent, plan.disk_bytes, "calibrating")
        with ExitStack() as resources:
            lock = LockedDirectory(partial)
            resources.callback(lock.close)
            require_absent(target)
            workspace = cls(target, plan, lock)
            workspace._claim()
            workspace._take_over()
            resources.pop_all()
        return workspace

    def restore(self, rows: Floats) -> None:
        """Fill `rows` [tokens, hidden] with the hidden states before the first unfinished layer, unless that is 0."""
        if 0 < self.finished < self._shape.layers:
            path = self._states(self.finished)
            with digest.opened(path) as descriptor:
                read_exactly(descriptor, rows.data.cast("B"), 0, path)

    @contextmanager
    def layer(self, layer: int) -> Iterator["LayerSections"]:
        """Write the sections of a layer, all of which must be added; published when the block ends well."""
        with AtomicFile(self._layer_file(layer), None) as opened:
            sections = LayerSections(opened, list(self._shape.sections(layer)))
            yield sections
        publish(self._layer_index(layer), msgspec.json.encode(sections.written))
        self._sections.append(sections.written)

    def keep(self, layer: int, rows: Floats) -> None:
        """Every layer before `layer` is finished, and these are the hidden states that it will be given."""
        if layer < self._shape.layers:
            content = rows.data.cast("B")
            with AtomicFile(self._states(layer), len(content) + digest.DIGEST_BYTES) as opened:
                opened.write(content)
                opened.write(_state_digest(layer, content))
        with Reporting(self.partial):
            remove(self._states(layer - 1))
        self.finished = layer

    def commit(self, sensitivities: Sensitivities | None) -> str:
        """Give the finished calibration its name; the digest that names its bytes. The folder is then gone."""
        sections = [section for layer in self._sections for section in layer]
        whole = self.partial / WHOLE_FILE
        found = file.write(whole, self._plan.facts, sections, self._content(), sensitivities)
        require_absent(self.target)
        with Reporting(self.target):
            rename(whole, self.target)
        with beside_removed(self.target):
            sync_directory(self.target.parent)
            self._remove()
        return found

    def close(self) -> None:
        """Release the lock; what is finished stays for the next run."""
        self._lock.close()

    def __enter__(self) -> "Workspace":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def _shape(self) -> Shape:
        return self._plan.facts.shape

    def _layer_file(self, layer: int) -> Path:
        return self.partial / f"layer_{layer:03}.sections"

    def _layer_index(self, layer: int) -> Path:
        return self.partial / f"layer_{layer:03}.json"

    def _states(self, layer: int) -> Path:
        return self.partial / f"before_{layer:03}.states"

    def _claim(self) -> None:
        """Make the folder ours, or find that it is."""
        path = self.partial / PLAN_FILE
        with Reporting(self.partial):
            for left in self.partial.glob(f"*{TEMPORARY_SUFFIX}"):
                remove(left)
            is_new = not any(self.partial.iterdir())
        if is_new:
            publish(path, self._plan.identity)
        elif not path.is_file() or path.read_bytes() != self._plan.identity:
            raise UsageError(
                f"{self.partial} was begun for another model, text, option or version;"
                " remove it or choose another output"
            )

    def _take_over(self) -> None:
        """Find what an earlier run has finished, as far as its bytes confirm it."""
        for layer in range(self._shape.layers):
            sections = self._confirmed_layer(layer)
            if sections is None:
                break
            self._sections.append(sections)
        while not self._can_continue(len(self._sections)):
            self._sections.pop()
        self.finished = len(self._sections)

    def _can_continue(self, layer: int) -> bool:
        return layer in (0, self._shape.layers) or self._confirmed_states(layer)

    def _confirmed_layer(self, layer: int) -> list[Section] | None:
        index, stored = self._layer_index(layer), self._layer_file(layer)
        if not (index.is_file() and stored.is_file()):
            return None
        try:
            sections = msgspec.json.decode(index.read_bytes(), type=list[Section])
        except msgspec.DecodeError:
            return None
        wanted = {name: section_size(fields) for name, fields in self._shape.sections(layer).items()}
        if {section.name: section.size for section in sections} != wanted:
            return None
        return sections if _holds(stored, sections) else None

    def _confirmed_states(self, layer: int) -> bool:
        path = self._states(layer)
        size = self._plan.state_bytes + digest.DIGEST_BYTES
        if not path.is_file() or path.stat().st_size != size:
            return False
        hasher = _state_hasher(layer)
        with digest.opened(path) as descriptor:
            for piece in pieces(descriptor, 0, self._plan.state_bytes, path):
                hasher.update(piece)
            stored = bytearray(digest.DIGEST_BYTES)
            read_exactly(descriptor, memoryview(stored), self._plan.state_bytes, path)
        return hasher.digest() == bytes(stored)

    def _content(self) -> Iterator[memoryview]:
        for layer in range(self._shape.layers):
            path = self._layer_file(layer)
            with digest.opened(path) as descriptor:
                yield from pieces(descriptor, 0, path.stat().st_size, path)

    def _remove(self) -> None:
        plan = self.partial / PLAN_FILE
        for path in [*(path for path in self.partial.iterdir() if path != plan), plan]:
            remove(path)
        remove_directory(self.partial)


class LayerSections:
    """The sections of one layer on their way into a file; `written` says what is there."""

    def __init__(self, opened: AtomicFile, names: list[str]) -> None:
        self.written: list[Section] = []
        self._opened = opened
        self._names = names

    def add(self, content: bytes) -> None:
        """Append the next section."""
        stored = file.compress(content)
        self._opened.write(stored)
        name = self._names[len(self.written)]
        self.written.append(Section(name, len(stored), len(content), digest.of_bytes(stored).hex()))


def _holds(path: Path, sections: list[Section]) -> bool:
    """Whether a file is exactly these sections."""
    if path.stat().st_size != sum(section.stored for section in sections):
        return False
    offset = 0
    with digest.opened(path) as descriptor:
        for section in sections:
            hasher = blake3()
            for piece in pieces(descriptor, offset, section.stored, path):
                hasher.update(piece)
            if hasher.hexdigest() != section.blake3:
                return False
            offset += section.stored
    return True


def _state_hasher(layer: int) -> blake3:
    return blake3(f"states before layer {layer}".encode(), max_threads=blake3.AUTO)


def _state_digest(layer: int, content: memoryview) -> bytes:
    return _state_hasher(layer).update(content).digest()
