"""Checkpoints by repository name: huggingface_hub's cache and offline switch are respected, failures are sentences."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from checkpoints import CheckpointMaker, Variant
from huggingface_hub import errors

from moepack.convert import hub
from moepack.convert.checkpoint import Checkpoint
from moepack.layout.reader import Pack
from moepack.manifests.errors import StorageError, UsageError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def fill_cache(checkpoint: Path, cache: Path) -> None:
    """What `hf download org/tiny` leaves behind."""
    repository = cache / "models--org--tiny"
    snapshot = repository / "snapshots" / COMMIT
    shutil.copytree(checkpoint, repository / "blobs")
    snapshot.mkdir(parents=True)
    for path in (repository / "blobs").iterdir():
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)


def moe_pack_offline(cache: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", "from moepack.convert.cli import main; main()", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("variant", "revision"),
    [(Variant(), ""), (Variant(shard="100KB"), "@main"), (Variant(shard="100KB"), f"@{COMMIT}")],
    ids=["single file", "shards of a branch", "shards of a commit"],
)
def test_a_cached_repository_is_packed_and_its_commit_recorded(
    variant: Variant, revision: str, make_checkpoint: CheckpointMaker, tmp_path: Path
) -> None:
    fill_cache(make_checkpoint(variant), tmp_path / "cache")
    done = moe_pack_offline(tmp_path / "cache", "build", f"org/tiny{revision}", str(tmp_path / "pack"))
    assert done.returncode == 0, done.stderr
    with Pack.open(tmp_path / "pack") as pack:
        assert (pack.manifest.source.repository, pack.manifest.source.revision) == ("org/tiny", COMMIT)


def test_what_is_not_cached_cannot_be_had_offline(tmp_path: Path) -> None:
    done = moe_pack_offline(tmp_path / "cache", "plan", "org/other")
    assert done.returncode == StorageError.exit_code
    assert "org/other is not in the cache" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("text", "is_one"),
    [("org/name", True), ("org/name@v1.0", True), ("org/name@refs/pr/1", True), ("name", False), ("./a/b", False)],
)
def test_repository_names(text: str, is_one: bool) -> None:
    assert hub.is_repository_name(text) is is_one


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (errors.HFValidationError("bad"), UsageError, "there is no repository"),
        (errors.LocalEntryNotFoundError("x"), StorageError, "not in the cache"),
        (errors.OfflineModeIsEnabled("x"), StorageError, "not in the cache"),
        (OSError(28, "No space left on device"), StorageError, "No space left on device"),
        (RuntimeError("odd\nsecond line"), StorageError, "odd"),
    ],
)
def test_failures_become_one_sentence(
    error: Exception, kind: type[Exception], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(kind, match=says) as caught:
        hub.download("org/name", "main", ["config.json"], lambda _: [])
    assert "\n" not in str(caught.value)


class Answering:
    """A Hub that knows the size of one weight file."""

    def __init__(self, size: int | None) -> None:
        self.size = size

    def model_info(self, *_: object, **__: object) -> SimpleNamespace:
        if self.size is None:
            raise errors.OfflineModeIsEnabled("x")
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename="model.safetensors", size=self.size)])


def cached(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub_size: int | None) -> list[list[str]]:
    """A Hub of that one file, in whose cache lies config.json only; what is asked of it is noted in the result."""
    snapshot, asked = tmp_path / "cache" / "snapshots" / COMMIT, list[list[str]]()
    snapshot.mkdir(parents=True)
    shutil.copy(checkpoint / "config.json", snapshot)

    def fetch(*_: object, allow_patterns: list[str], **__: object) -> str:
        asked.append(allow_patterns)
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: Answering(hub_size))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    return asked


def test_weights_that_the_disk_cannot_hold_are_not_fetched(
    make_checkpoint: CheckpointMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = cached(make_checkpoint(Variant()), tmp_path, monkeypatch, 10**18)
    with pytest.raises(StorageError, match=r"1000000000\.00 GB left to fetch"):
        hub.download("org/name", None, ["config.json"], lambda _: ["model.safetensors"])
    assert asked == [["config.json"]]


@pytest.mark.parametrize(("size", "begun"), [(1000, 0), (None, 0), (10**12, 10**12)])
def test_weights_that_fit_or_are_begun_or_of_unknown_size_are_fetched(
    size: int | None, begun: int, make_checkpoint: CheckpointMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = cached(make_checkpoint(Variant()), tmp_path, monkeypatch, size)
    (tmp_path / "cache" / "blobs").mkdir()
    with (tmp_path / "cache" / "blobs" / "x.incomplete").open("wb") as file:
        file.truncate(begun)
    hub.download("org/name", None, ["config.json"], lambda _: ["model.safetensors"])
    assert asked[-1] == ["model.safetensors"]


@pytest.mark.parametrize(
    "error", [errors.HFValidationError("bad"), errors.LocalEntryNotFoundError("x")], ids=["no such one", "offline"]
)
def test_a_mistyped_local_path_is_thought_of(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises((UsageError, StorageError), match="there is no such directory here"):
        Checkpoint.open("models/qwen")


def test_local_work_does_not_even_load_the_hub_library() -> None:
    code = "import sys, moepack.convert.cli; print('huggingface_hub' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
