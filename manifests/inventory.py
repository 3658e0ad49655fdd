"""Which files a pack has, how big they are, and what is wrong with those that are there."""

import errno
import stat
from collections.abc import Iterator

from . import files, names
from .errors import CorruptInputError
from .files import Folder
from .schema import Manifest


def expected_sizes(manifest: Manifest) -> dict[str, int]:
    """Every file of the pack but the manifest, with its size in bytes."""
    layers = {layer.file: layer.stride * manifest.model.num_experts for layer in manifest.layers}
    return layers | {file.name: file.size for file in manifest.files}


def fault(pack: Folder, name: str, size: int) -> str | None:
    """What is wrong with the file `name`, short of reading it; None if it is a regular file of `size` bytes."""
    try:
        status = files.status(pack / name)
    except OSError as error:
        return _unreachable(error)
    if stat.S_ISLNK(status.st_mode):
        return "is a symbolic link, not a regular file"
    if not stat.S_ISREG(status.st_mode):
        return "is not a regular file"
    return None if status.st_size == size else f"has {status.st_size} bytes instead of {size}"


def stamp(pack: Folder, name: str) -> str:
    """What tells a file that was written or replaced from the one that was there; empty if it cannot be told."""
    try:
        status = files.status(pack / name)
    except OSError:
        return ""
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"


def check(pack: Folder, manifest: Manifest) -> None:
    """Raise CorruptInputError for the first file that is missing, of another size or not a regular file."""
    for name, size in expected_sizes(manifest).items():
        problem = fault(pack, name, size)
        if problem is not None:
            raise CorruptInputError(f"{pack / name} {problem}; fetch or build the pack again (P2)")


def extra_names(pack: Folder, manifest: Manifest) -> Iterator[str]:
    """The names of everything in the pack's directory that the manifest does not mention, sorted."""
    known = {names.MANIFEST_FILE, names.EXPERTS_FOLDER, *expected_sizes(manifest)}
    inside = [f"{names.EXPERTS_FOLDER}/{name}" for name in pack.names(names.EXPERTS_FOLDER)]
    for found in (pack.names(), inside):
        yield from (name for name in found if name not in known)


def _unreachable(error: OSError) -> str:
    if error.errno == errno.ENOENT:
        return "is missing"
    if error.errno in (errno.ENOTDIR, errno.ELOOP):  # which of the two a link gives differs between systems
        return "lies behind a symbolic link, or behind what is no folder"
    return f"cannot be reached: {error.strerror}"
