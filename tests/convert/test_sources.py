"""The SHA-256 of every weight file: computed beside the build, once, and never of a file that changed."""

import json
import os
import threading
from collections.abc import Iterator
from concurrent.futures import wait
from hashlib import sha256
from pathlib import Path

import pytest
from checkpoints import CheckpointMaker, Variant
from packs import build_pack

from moepack.convert import sources
from moepack.convert.checkpoint import Checkpoint
from moepack.convert.plan import plan_pack, understand
from moepack.convert.recipe import Recipe
from moepack.convert.sources import SourceHashing
from moepack.layout.journal import JOURNAL_FILE, SourceDone, read_entries
from moepack.layout.plan import BLANK
from moepack.layout.sinks import LayerSink
from moepack.layout.tensorfile import TensorFile
from moepack.manifests.digest import of_bytes
from moepack.manifests.errors import CorruptInputError, StorageError
from moepack.manifests.files import pieces
from moepack.manifests.manifest import pack_digest, read_manifest
from moepack.manifests.progress import Progress

SHARDED = Variant(shard="100KB")


def weight_files(checkpoint: Path) -> list[Path]:
    return sorted(checkpoint.glob("*.safetensors"))


def recorded(pack: Path) -> dict[str, str]:
    return {file.name: file.sha256 for file in read_manifest(pack).source.files}


@pytest.mark.parametrize("variant", [Variant(), SHARDED], ids=["one file", "shards"])
def test_the_manifest_has_the_sha_256_of_every_weight_file(
    variant: Variant, make_checkpoint: CheckpointMaker, tmp_path: Path
) -> None:
    """W3"""
    checkpoint = make_checkpoint(variant)
    packing = build_pack(checkpoint, tmp_path / "pack")
    expected = {path.name: sha256(path.read_bytes()).hexdigest() for path in weight_files(checkpoint)}
    assert recorded(tmp_path / "pack") == expected
    assert packing.plan.unhashed_sources == expected.keys()
    copied = {file.name: file.blake3 for file in read_manifest(tmp_path / "pack").files}
    for name in ("config.json", "tokenizer.json"):
        assert copied[name] == of_bytes((checkpoint / name).read_bytes()).hex()
    assert packing.plan.manifest_bytes == (tmp_path / "pack/manifest.json").stat().st_size
    assert BLANK not in (tmp_path / "pack/manifest.json").read_text()


class Hashed(list[str]):
    """The names of the files that are hashed from now on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        original = SourceHashing._hash

        def noting(hashing: SourceHashing, file: TensorFile) -> SourceDone:
            self.append(file.path.name)
            return original(hashing, file)

        monkeypatch.setattr(SourceHashing, "_hash", noting)


def interrupted(checkpoint: Path, target: Path) -> Path:
    """The journal of a build that failed in its third layer, when it had hashed all weight files."""
    append, done = LayerSink.append, SourceHashing.done

    def failing(sink: LayerSink, record: memoryview) -> None:
        if sink._index == 2:
            raise StorageError("the disk is full")
        append(sink, record)

    def waiting(hashing: SourceHashing) -> Iterator[SourceDone]:
        wait(hashing._waiting.values())
        return done(hashing)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LayerSink, "append", failing)
        patch.setattr(SourceHashing, "done", waiting)
        with pytest.raises(StorageError, match="the disk is full"):
            build_pack(checkpoint, target)
    journal = target.with_name("pack.partial") / JOURNAL_FILE
    assert {entry.name for entry in read_entries(journal) if isinstance(entry, SourceDone)} == {
        path.name for path in weight_files(checkpoint)
    }
    return journal


def test_a_resumed_build_hashes_no_weight_file_again(
    make_checkpoint: CheckpointMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = make_checkpoint(SHARDED)
    interrupted(checkpoint, tmp_path / "pack")
    build_pack(checkpoint, tmp_path / "whole")
    hashed = Hashed(monkeypatch)
    build_pack(checkpoint, tmp_path / "pack")
    assert hashed == []
    assert pack_digest(tmp_path / "pack") == pack_digest(tmp_path / "whole")


def test_a_weight_file_that_was_written_again_is_hashed_again(
    make_checkpoint: CheckpointMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = make_checkpoint.copy(SHARDED, tmp_path / "checkpoint")
    interrupted(checkpoint, tmp_path / "pack")
    written = weight_files(checkpoint)[1]
    os.utime(written, ns=(0, 1))
    hashed = Hashed(monkeypatch)
    build_pack(checkpoint, tmp_path / "pack")
    assert hashed == [written.name]


@pytest.mark.parametrize("field", ["sha256", "size", "modified", "name"])
def test_a_damaged_line_of_the_journal_claims_nothing(
    field: str, make_checkpoint: CheckpointMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = make_checkpoint(Variant())
    journal = interrupted(checkpoint, tmp_path / "pack")
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    (line,) = [line for line in lines if line["type"] == "source"]
    line[field] = "0" + line[field][1:] if isinstance(line[field], str) else line[field] + 1
    journal.write_text("".join(json.dumps(line) + "\n" for line in lines))
    hashed = Hashed(monkeypatch)
    build_pack(checkpoint, tmp_path / "pack")
    assert hashed == ["model.safetensors"]
    assert recorded(tmp_path / "pack") == {
        "model.safetensors": sha256((checkpoint / "model.safetensors").read_bytes()).hexdigest()
    }


def test_a_file_that_changes_while_it_is_hashed_is_noticed(
    make_checkpoint: CheckpointMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = make_checkpoint.copy(Variant(), tmp_path / "checkpoint")

    def touching(descriptor: int, offset: int, size: int, path: Path) -> Iterator[memoryview]:
        yield from pieces(descriptor, offset, size, path)
        os.utime(path, ns=(0, 1))

    monkeypatch.setattr(sources, "pieces", touching)
    with pytest.raises(CorruptInputError, match=r"changed while it was read; remove .*pack\.partial and build again"):
        build_pack(checkpoint, tmp_path / "pack")
    assert not (tmp_path / "pack").exists()


def test_a_file_that_changes_after_it_was_hashed_is_noticed(
    make_checkpoint: CheckpointMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = make_checkpoint.copy(Variant(), tmp_path / "checkpoint")
    rest = SourceHashing.rest

    def touching(hashing: SourceHashing, progress: Progress) -> Iterator[SourceDone]:
        yield from rest(hashing, progress)
        os.utime(checkpoint / "model.safetensors", ns=(0, 1))

    monkeypatch.setattr(SourceHashing, "rest", touching)
    with pytest.raises(CorruptInputError, match=r"changed while it was read; remove .*pack\.partial and build again"):
        build_pack(checkpoint, tmp_path / "pack")
    assert not (tmp_path / "pack").exists()


def test_a_build_that_fails_does_not_wait_for_the_hashing(
    make_checkpoint: CheckpointMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file without end would keep it for ever."""

    def endless(*_: object) -> Iterator[memoryview]:
        while True:
            yield memoryview(bytes(1024))

    def failing(*_: object) -> None:
        raise StorageError("the disk is full")

    monkeypatch.setattr(sources, "pieces", endless)
    monkeypatch.setattr(LayerSink, "append", failing)
    with pytest.raises(StorageError, match="the disk is full"):
        build_pack(make_checkpoint(Variant()), tmp_path / "pack")
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("moe-pack")]


def test_the_config_that_is_copied_is_the_one_that_was_understood(
    make_checkpoint: CheckpointMaker, tmp_path: Path
) -> None:
    """W3"""
    directory = make_checkpoint.copy(Variant(), tmp_path / "checkpoint")
    with Checkpoint.open(str(directory)) as checkpoint:
        source = understand(checkpoint)
        config = json.loads((directory / "config.json").read_text())
        (directory / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.5}))
        with pytest.raises(CorruptInputError, match=r"config\.json changed while it was read"):
            plan_pack(source, Recipe())
