"""Reading and sealing `manifest.json`: nothing of it is believed before all of it has been checked.

A code such as "(M5)" at the end of a message is the rule's number in FORMAT.md.
"""

from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from . import canonical, digest, names, rules
from .digest import Digests
from .errors import CorruptInputError, MismatchError, UnsupportedError
from .files import Folder, read_small
from .rules import under
from .schema import FORMAT_VERSION, MAX_MANIFEST_BYTES, Manifest

CHECKSUM = "checksum"
SUPPORTED_FEATURES: tuple[str, ...] = ()


class Sealed(NamedTuple):
    """A manifest, and both digests of the very bytes that it was read from."""

    manifest: Manifest
    digests: Digests

    @property
    def pack_digest(self) -> str:
        """The pack's digest, hexadecimal: one name for every byte of it."""
        return self.digests.blake3


def read_manifest(pack: Path | Folder) -> Manifest:
    """The manifest alone. Raises like `read_sealed`."""
    return read_sealed(pack).manifest


def read_sealed(pack: Path | Folder) -> Sealed:
    """The manifest of the pack in directory `pack`.

    Raises UsageError if there is no such directory, CorruptInputError if the manifest is missing or breaks a rule,
    MismatchError if it was altered, UnsupportedError if it needs a newer version of this program.
    """
    if isinstance(pack, Path):
        with Folder(pack) as folder:
            return read_sealed(folder)
    file = pack / names.MANIFEST_FILE
    with under("M1"):
        content = read_small(file, MAX_MANIFEST_BYTES)
    return Sealed(parse_manifest(content, str(file)), digest.both_of_bytes(content))


def require_same_seal(pack: Path, first: str, then: str) -> None:
    """Raise MismatchError unless the pack had the same digest both times that its manifest was read."""
    if first != then:
        raise MismatchError(f"{pack / names.MANIFEST_FILE} was replaced meanwhile; leave the pack alone and try again")


def parse_manifest(content: bytes, file: str) -> Manifest:
    """The manifest with the bytes `content`, found in `file`. Raises like `read_manifest`."""
    if len(content) > MAX_MANIFEST_BYTES:
        raise CorruptInputError(f"{file} has {len(content)} bytes; at most {MAX_MANIFEST_BYTES} are allowed (M1)")
    manifest = _parse(content, file)
    rules.check(manifest, file)
    return manifest


def pack_digest(pack: Path | Folder) -> str:
    """The digest of a pack of whose manifest nothing else is needed; whoever reads one has it from `read_sealed`."""
    return digest.of_file(pack / names.MANIFEST_FILE)


def seal(manifest: Manifest) -> Manifest:
    """`manifest` with the checksum that belongs to its other fields."""
    fields = msgspec.to_builtins(manifest)
    return msgspec.structs.replace(manifest, checksum=_checksum(fields))


def _checksum(fields: dict[str, Any]) -> str:
    others = {name: value for name, value in fields.items() if name != CHECKSUM}
    return digest.of_bytes(canonical.encode(others)).hex()


def _parse(content: bytes, file: str) -> Manifest:
    with under("M1"):
        fields = canonical.decode(content, file)
    with under("M2"):
        canonical.check_canonical(fields, content, file)
    if not isinstance(fields, dict) or fields.get("format") != "moepack":
        raise CorruptInputError(f"{file} is not the manifest of a pack (M3)")
    if fields.get("version") != FORMAT_VERSION and isinstance(fields.get("version"), int):
        raise UnsupportedError(
            f"{file} has version {fields['version']}; this moepack reads version {FORMAT_VERSION} (M4)"
        )
    requires = fields.get("requires")
    unknown = [repr(name) for name in requires if name not in SUPPORTED_FEATURES] if isinstance(requires, list) else []
    if unknown:
        raise UnsupportedError(f"{file} requires {', '.join(unknown)}; use a newer moepack (M4)")
    if fields.get(CHECKSUM) != _checksum(fields):
        raise MismatchError(f"{file} was altered: its checksum does not belong to its contents (M5)")
    try:
        return msgspec.convert(fields, Manifest)
    except msgspec.ValidationError as error:
        raise CorruptInputError(f"{file}: {error} (M3)") from error
