"""`SHA256SUMS`: the SHA-256 of every file of a pack, as `sha256sum -c` reads it.

One line per file, sorted by name, `hex  name`: it says nothing that the manifest does not, but says it to programs that
know neither packs nor BLAKE3.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from . import inventory, names
from .digest import of_bytes
from .errors import CorruptInputError, StorageError
from .files import Folder, read_small
from .report import Finding
from .schema import Manifest

HEX_DIGITS = 64
BETWEEN = "  "


def size(listed: Iterable[str]) -> int:
    """Bytes of the file that lists the names `listed`."""
    return sum(HEX_DIGITS + len(BETWEEN) + len(name.encode()) + 1 for name in listed)


def render(sums: Mapping[str, str]) -> bytes:
    """The file's bytes, given each file's hexadecimal SHA-256 by name."""
    return "".join(f"{sums[name]}{BETWEEN}{name}\n" for name in sorted(sums)).encode()


def listed_names(manifest: Manifest) -> list[str]:
    """What the pack's SHA256SUMS must list: every file but itself and the manifest, in its order."""
    return sorted(inventory.expected_sizes(manifest).keys() - {names.SUMS_FILE})


def read(pack: Path | Folder, manifest: Manifest) -> dict[str, str] | None:
    """The SHA-256 of every file, by name, as the pack's SHA256SUMS lists them; None if it is damaged or unreadable.

    Raises CorruptInputError if it is what the manifest promises, and yet no such list.
    """
    if isinstance(pack, Path):
        with Folder(pack) as folder:
            return read(folder, manifest)
    promised = next(file for file in manifest.files if file.name == names.SUMS_FILE)
    try:
        content = read_small(pack / names.SUMS_FILE, promised.size)
    except (CorruptInputError, StorageError):
        return None
    if of_bytes(content).hex() != promised.blake3:
        return None
    return _parse(content, listed_names(manifest))


def _parse(content: bytes, expected: list[str]) -> dict[str, str]:
    lines = content.decode("ascii", "replace").splitlines()
    sums = dict(zip(expected, (line[:HEX_DIGITS] for line in lines), strict=False))
    well_formed = all(len(each) == HEX_DIGITS and set(each) <= set("0123456789abcdef") for each in sums.values())
    if len(lines) != len(expected) or not well_formed or render(sums) != content:
        raise CorruptInputError("is not the sorted list of the pack's files with their SHA-256 (P7)")
    return sums


def disagreements(sums: Mapping[str, str], name: str, sha256: str) -> Iterator[Finding]:
    """What is wrong with what SHA256SUMS says of the file `name`, whose bytes are right and have this SHA-256."""
    if sums.get(name, sha256) != sha256:
        yield Finding(names.SUMS_FILE, f"gives {name} another SHA-256 than it has")
