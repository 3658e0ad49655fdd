"""The journal of a pack under construction: which units are finished, with the digests to check that by.

Append-only JSON lines, each made durable before the next step. A line that was torn by a crash is cut off; nothing a
journal says of the pack is believed before the unit has been hashed again.
"""

from pathlib import Path

import msgspec

from ..manifests import digest
from .atomic import AppendedFile

JOURNAL_FILE = "journal.jsonl"


class Begun(msgspec.Struct, frozen=True, tag="begun"):
    """The first line: which plan this directory belongs to, and a fingerprint of the weights it is made from."""

    identity: str
    fingerprint: str = ""


class Running(msgspec.Struct, frozen=True, tag="running"):
    """A process took over; the last such line names the current owner to whoever finds the directory locked."""

    pid: int


class LayerDone(msgspec.Struct, frozen=True, tag="layer"):
    """A layer file is published. `records` is the BLAKE3 of its record digests joined, `components` by name."""

    index: int
    records: str
    components: dict[str, str]


class TrunkDone(msgspec.Struct, frozen=True, tag="trunk"):
    """The trunk is published; `blake3` is the file's digest."""

    blake3: str


class SourceDone(msgspec.Struct, frozen=True, tag="source"):
    """A weight file of the checkpoint was hashed when it had this size and time of change (nanoseconds).

    Nobody hashes it again, so the line has a `seal` against damage of its own.
    """

    name: str
    size: int
    modified: int
    sha256: str
    seal: str = ""

    def sealed(self) -> "SourceDone":
        """The same with the seal that belongs to it."""
        unsealed = msgspec.structs.replace(self, seal="")
        return msgspec.structs.replace(self, seal=digest.of_bytes(msgspec.json.encode(unsealed)).hex())


Entry = Begun | Running | LayerDone | TrunkDone | SourceDone
_DECODER: msgspec.json.Decoder[Entry] = msgspec.json.Decoder(Entry)


class Journal:
    """The opened journal at `path`, created when missing; `entries` are those of earlier runs and of this one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = AppendedFile(path)
        try:
            self.entries = self._recover()
        except BaseException:
            self.close()
            raise

    def append(self, entry: Entry) -> None:
        """Add one line and make it durable."""
        self._file.append(msgspec.json.encode(entry) + b"\n")
        self.entries.append(entry)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _recover(self) -> list[Entry]:
        whole = _whole_lines(self._file.content)
        if len(whole) != len(self._file.content):
            self._file.cut(len(whole))
        return _parse_all(whole)


def read_entries(path: Path) -> list[Entry]:
    """What is journaled at `path` so far, without changing anything; nothing if there is no journal."""
    return _parse_all(_whole_lines(path.read_bytes())) if path.is_file() else []


def _whole_lines(content: bytes) -> bytes:
    return content[: content.rfind(b"\n") + 1]


def _parse_all(lines: bytes) -> list[Entry]:
    return [entry for line in lines.splitlines() if (entry := _parse(line)) is not None]


def _parse(line: bytes) -> Entry | None:
    # A damaged line claims nothing, so its unit is made again.
    try:
        return _DECODER.decode(line)
    except msgspec.DecodeError:
        return None
