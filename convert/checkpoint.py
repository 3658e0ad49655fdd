"""A published checkpoint on disk: config.json, its safetensors files, and exact reads from them.

An opened `Checkpoint` is whole: every shard that the index names is there, of full length, and holds exactly the
tensors that the index says. What the tensors mean is the dialects' affair.
"""

import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from ..layout.plan import BLANK
from ..layout.tensorfile import TensorEntry, TensorFile
from ..manifests.errors import CorruptInputError, UsageError
from ..manifests.schema import SourceFile
from . import hub

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
TOKENIZER = "tokenizer.json"
COPIED = (CONFIG, TOKENIZER, "tokenizer_config.json", "chat_template.jinja", "generation_config.json")
MAX_JSON_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True)
class Origin:
    """Where a checkpoint was found. `repository` and `revision` are None for a plain directory."""

    directory: Path
    repository: str | None = None
    revision: str | None = None


class Checkpoint:
    """An opened checkpoint; a context manager. Reads are thread-safe."""

    def __init__(self, origin: Origin, config: Mapping[str, Any], files: tuple[TensorFile, ...]) -> None:
        self.origin = origin
        self.config = config
        self.files = files
        self.entries: dict[str, TensorEntry] = {}
        self._home: dict[str, TensorFile] = {}
        for file in files:
            self.entries.update(file.entries)
            self._home.update(dict.fromkeys(file.entries, file))

    @classmethod
    def open(cls, source: str) -> "Checkpoint":
        """Open a local directory, or `org/name[@revision]` from the Hugging Face Hub (downloaded to its cache).

        Raises UsageError if there is no such thing, StorageError if it cannot be fetched or read, CorruptInputError
        if it is incomplete or malformed.
        """
        origin = _find(source)
        directory = origin.directory
        config = read_json(directory / CONFIG)
        with ExitStack() as opened:
            if (directory / INDEX).exists():
                files = _open_shards(directory, opened)
            else:
                files = (opened.enter_context(_open(directory / SINGLE, f"and there is no {INDEX} either")),)
            opened.pop_all()
        return cls(origin, config, files)

    @property
    def copied(self) -> tuple[Path, ...]:
        """The files that a pack takes over byte for byte: configuration, tokenizer, chat template."""
        return tuple(path for name in COPIED if (path := self.origin.directory / name).is_file())

    @property
    def source_files(self) -> list[SourceFile]:
        """What a manifest records of each weight file, as far as it is known before the file is read."""
        return [SourceFile(file.path.name, file.size, file.header_blake3, BLANK) for file in self.files]

    def home(self, name: str) -> Path:
        """The file in which a tensor lies."""
        return self._home[name].path

    def read_into(self, name: str, out: np.ndarray, first: int | None = None) -> None:
        """Fill `out` with the whole tensor, or with as many rows from `first` on as it holds: one `pread`."""
        self._home[name].read_into(name, out, first)

    def read_columns_into(self, name: str, out: np.ndarray, first: int) -> None:
        """Fill `out` [rows, n] with columns `first` to `first + n` of the matrix `name`: one `pread` of each row."""
        self._home[name].read_columns_into(name, out, first)

    def close(self) -> None:
        """Close every file."""
        for file in self.files:
            file.__exit__(None, None, None)

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _find(source: str) -> Origin:
    if source and Path(source).is_dir():
        return Origin(Path(source))
    if not hub.is_repository_name(source):
        raise UsageError(f"{source} is neither a directory nor a repository name such as org/name or org/name@revision")
    repository, _, revision = source.partition("@")
    directory = hub.download(repository, revision or None, [*COPIED, INDEX], _weight_files)
    return Origin(directory, repository, directory.name)


def _weight_files(directory: Path) -> list[str]:
    index = directory / INDEX
    return _shard_names(index, read_weight_map(index)) if index.exists() else [SINGLE]


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file of the checkpoint. Raises CorruptInputError if there is none."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise CorruptInputError(f"{path} has more than {MAX_JSON_BYTES} bytes; it cannot be a checkpoint's")
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CorruptInputError(f"{path} is missing; a checkpoint needs it") from None
    except (ValueError, RecursionError) as error:
        raise CorruptInputError(f"{path} is not JSON ({error}); fetch it again") from None
    if not isinstance(value, dict):
        raise CorruptInputError(f"{path} is not a JSON object; fetch it again")
    return value


def read_weight_map(index: Path) -> dict[str, str]:
    """Which file each tensor lies in, as the index says."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CorruptInputError(f"{index} has no weight_map; fetch it again")
    return weight_map


def _shard_names(index: Path, weight_map: Mapping[str, Any]) -> list[str]:
    for name in weight_map.values():
        if not isinstance(name, str) or name != Path(name).name or not name.endswith(".safetensors"):
            raise CorruptInputError(f"{index} names {name!r:.100}, which is not a safetensors file beside it")
    return sorted(set(weight_map.values()))


def _open_shards(directory: Path, opened: ExitStack) -> tuple[TensorFile, ...]:
    index = directory / INDEX
    weight_map = read_weight_map(index)
    files = []
    for name in _shard_names(index, weight_map):
        file = opened.enter_context(_open(directory / name, f"though {INDEX} names it; fetch it again"))
        _check_shard(file, {tensor for tensor, home in weight_map.items() if home == name})
        files.append(file)
    return tuple(files)


def _open(path: Path, otherwise: str) -> TensorFile:
    if not path.exists():
        raise CorruptInputError(f"{path} is missing, {otherwise}")
    return TensorFile.open(path)


def _check_shard(file: TensorFile, expected: set[str]) -> None:
    if missing := sorted(expected - file.entries.keys()):
        raise CorruptInputError(f"{file.path} lacks tensor {missing[0]!r}, which {INDEX} places in it; fetch it again")
    if extra := sorted(file.entries.keys() - expected):
        raise CorruptInputError(
            f"{file.path} holds tensor {extra[0]!r}, which {INDEX} does not place in it; fetch both again"
        )
