"""The small files that a pack keeps from its checkpoint: tokenizer, chat template, generation defaults.

Promises: a file is a regular one, within its size limit, and has the digest that the manifest states before a byte
of it is parsed. Knows nothing of what the files mean.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..layout.reader import Pack
from ..manifests import canonical, digest
from ..manifests.errors import CorruptInputError, MismatchError
from ..manifests.files import Folder, read_small
from ..manifests.schema import File

MAX_CONFIG_BYTES = 16 * 1024 * 1024  # tokenizer_config.json of large vocabularies repeats every added token


class PackFiles:
    """Reads the files that the manifest of the pack at `path`, or in an opened folder, lists as `listed`."""

    def __init__(self, path: Path | Folder, listed: Iterable[File]) -> None:
        self.path = path
        self._listed = {file.name: file for file in listed}

    @classmethod
    def of(cls, pack: Pack) -> "PackFiles":
        """The files of an opened pack."""
        return cls(pack.folder, pack.manifest.files)

    def __contains__(self, name: str) -> bool:
        return name in self._listed

    def read(self, name: str, limit: int) -> bytes:
        """All bytes of a listed file. Raises CorruptInputError over `limit` bytes, MismatchError for a wrong digest."""
        content = read_small(self.path / name, limit)
        if digest.of_bytes(content).hex() != self._listed[name].blake3:
            raise MismatchError(
                f"{self.path / name} is not the file that the manifest promises; moe-pack verify shows all damage"
            )
        return content

    def json(self, name: str) -> dict[str, Any]:
        """The JSON object in a file, or an empty one when the pack has no such file."""
        if name not in self:
            return {}
        value = canonical.decode(self.read(name, MAX_CONFIG_BYTES), str(self.path / name))
        if not isinstance(value, dict):
            raise CorruptInputError(f"{self.path / name} holds no JSON object")
        return value


class LooseFiles(PackFiles):
    """The same files in a checkpoint's folder, where no manifest promises anything and links are followed."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, ())
        self._checkpoint = path

    def __contains__(self, name: str) -> bool:
        return (self._checkpoint / name).is_file()

    def read(self, name: str, limit: int) -> bytes:
        """All bytes of a file. Raises CorruptInputError if it is missing or has more than `limit`."""
        return read_small(self.path / name, limit, follow_links=True)
