"""A lock: a small TOML file that names a checkpoint, a recipe and the pack they give, for a repository to commit.

    version = 1
    arithmetic = 1        # of the moepack that wrote it: another may give other bytes
    [source]              # repository and revision, if it is from the Hub; fingerprint
    [[source.files]]      # name, size and header_blake3 of each weight file
    [[source.copied]]     # name and blake3 of each file that a pack takes over
    [recipe]              # as a recipe file has it
    [calibration]         # digest, if a method goes by one
    [pack]                # digest, if a pack was at hand

Nothing of it depends on where the checkpoint lies.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct

from ..layout.atomic import replace
from ..manifests.diff import changes
from ..manifests.errors import MismatchError, UnsupportedError, UsageError
from ..manifests.schema import Count, Digest, Name, Size, SourceName
from ..quantize.methods import ARITHMETIC
from .checkpoint import Checkpoint
from .fingerprint import fingerprint
from .hub import is_repository_name
from .plan import Packing
from .recipe import Recipe
from .recipefile import decoded, recipe_in, written

SUFFIX = ".toml"


class _File(Struct, frozen=True, forbid_unknown_fields=True):
    name: SourceName
    size: Size
    header_blake3: Digest


class _Copied(Struct, frozen=True, forbid_unknown_fields=True):
    name: SourceName
    blake3: Digest


class _Source(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    fingerprint: Digest
    files: Annotated[list[_File], Meta(min_length=1)]
    copied: list[_Copied]
    repository: Name | None = None
    revision: Name | None = None


class _Named(Struct, frozen=True, forbid_unknown_fields=True):
    digest: Digest


class _Lock(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    version: Literal[1]
    arithmetic: Count
    source: _Source
    recipe: dict[str, Any]
    calibration: _Named | None = None
    pack: _Named | None = None


@dataclass(frozen=True)
class Lock:
    """A lock that was read from `path`; `pack_digest` is None if none was known when it was written."""

    path: Path
    arithmetic: int
    recipe: Recipe
    calibration: str | None
    pack_digest: str | None
    _source: _Source

    @property
    def repository(self) -> str:
        """Where the checkpoint can be had. Raises UsageError if the lock does not name a repository of the Hub."""
        source = self._source
        if source.repository is None or not is_repository_name(source.repository):
            raise UsageError(f"{self.path} names no repository; say where its checkpoint is")
        return f"{source.repository}@{source.revision}" if source.revision else source.repository

    @property
    def names(self) -> dict[str, Any]:
        """What it names, ready for JSON."""
        source = self._source
        told = {"repository": source.repository, "revision": source.revision, "files": len(source.files)}
        return {**told, "recipe": written(self.recipe)}

    def require_arithmetic(self) -> None:
        """Raise UnsupportedError if this moepack computes other bytes than the one that wrote the lock."""
        if self.arithmetic != ARITHMETIC:
            raise UnsupportedError(
                f"{self.path} is of a moepack with arithmetic {self.arithmetic}, and this one has {ARITHMETIC}, which"
                " gives other bytes; use that version, or lock again"
            )

    def require_source(self, packing: Packing) -> None:
        """Raise MismatchError, naming the first file that differs, unless this is the checkpoint that was locked."""
        checkpoint = packing.source.checkpoint
        there = _source(checkpoint, packing)
        where = f"{checkpoint.origin.directory} is not the checkpoint that {self.path} names"
        for change in changes(_by_name(self._source.files), _by_name(there.files)):
            raise MismatchError(f"{where}: {change.field} is {change.b}, not {change.a}")
        for change in changes(_by_name(self._source.copied), _by_name(there.copied)):
            raise MismatchError(f"{where}: {change.field} is {change.b}, not {change.a}")
        if there.fingerprint != self._source.fingerprint:
            raise MismatchError(f"{where}: its weights are others, though their names and sizes are the same")

    def require_calibration(self, packing: Packing) -> None:
        """Raise MismatchError unless the packing goes by the calibration that was locked, or by none either."""
        recorded = packing.plan.recipe.calibration
        digest = None if recorded is UNSET else recorded.digest
        if digest != self.calibration:
            raise MismatchError(f"the calibration is {digest}, and {self.path} names {self.calibration}")

    def require_pack(self, pack: Path, found: str) -> None:
        """Raise MismatchError unless the digest `found` of the pack is the locked one, UsageError if none is locked."""
        if self.pack_digest is None:
            raise UsageError(f"{self.path} names no pack; lock again with --pack")
        if found != self.pack_digest:
            raise MismatchError(f"{pack} has the digest {found}, and {self.path} names {self.pack_digest}")


def read_lock(path: Path) -> Lock:
    """The lock in a file. Raises UsageError naming it if it cannot be read, is malformed, or names what is not."""
    require_lock_name(path)
    try:
        lock = msgspec.convert(decoded(path), _Lock)
    except msgspec.ValidationError as error:
        raise UsageError(f"{path} is not a lock: {error}") from None
    calibration, pack = (None if named is None else named.digest for named in (lock.calibration, lock.pack))
    return Lock(path, lock.arithmetic, recipe_in(lock.recipe, path), calibration, pack, lock.source)


def require_lock_name(path: Path) -> None:
    """Raise UsageError if a lock cannot be called like this."""
    if path.suffix != SUFFIX:
        raise UsageError(f"{path} is no name of a lock, which ends in {SUFFIX}")


def write_lock(path: Path, packing: Packing, pack_digest: str | None) -> None:
    """Write the lock of a packing, and of the pack that it gave, if there is one. Raises StorageError."""
    recorded = packing.plan.recipe.calibration
    lock = _Lock(
        version=1,
        arithmetic=ARITHMETIC,
        source=_source(packing.source.checkpoint, packing),
        recipe=written(packing.recipe),
        calibration=None if recorded is UNSET else _Named(recorded.digest),
        pack=None if pack_digest is None else _Named(pack_digest),
    )
    content = "\n".join(_toml(msgspec.to_builtins(lock))).encode() + b"\n"
    replace(path, content)


def _source(checkpoint: Checkpoint, packing: Packing) -> _Source:
    origin = checkpoint.origin
    copied = [_Copied(file.name, file.blake3) for _, file in sorted(packing.plan.copied_files.items())]
    files = [_File(file.name, file.size, file.header_blake3) for file in checkpoint.source_files]
    return _Source(fingerprint(checkpoint), files, copied, origin.repository, origin.revision)


def _by_name(files: list[Any]) -> dict[str, Any]:
    return {file.name: msgspec.to_builtins(file) for file in files}


def _toml(table: dict[str, Any], at: str = "") -> Iterator[str]:
    """The lines of a table: what is plain first, then tables, then lists of tables."""
    for name, value in table.items():
        if not _is_table(value) and not _is_tables(value):
            yield f"{name} = {_value(value)}"
    for name, value in table.items():
        path = f"{at}.{name}" if at else name
        for header, one in [(f"[{path}]", value)] if _is_table(value) else []:
            yield from ("", header, *_toml(one, path))
        for one in value if _is_tables(value) else []:
            yield from ("", f"[[{path}]]", *_toml(one, path))


def _is_table(value: Any) -> bool:
    return isinstance(value, dict)


def _is_tables(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_table, value))


def _value(value: Any) -> str:
    """A string, an integer or a list of them; JSON writes these as TOML does, but for one character."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
