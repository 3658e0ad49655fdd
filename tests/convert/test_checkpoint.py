"""Opening checkpoints: what is incomplete or contradicts itself is refused in a sentence that names it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import CheckpointMaker, Variant
from safetensors.torch import load_file, save_file

from moepack.convert.checkpoint import INDEX, Checkpoint
from moepack.manifests.errors import CorruptInputError, UsageError

SHARDED = Variant(shard="100KB")


@pytest.fixture
def sharded(make_checkpoint: CheckpointMaker, tmp_path: Path) -> Path:
    return make_checkpoint.copy(SHARDED, tmp_path / "checkpoint")


def refused(directory: Path) -> str:
    with pytest.raises(CorruptInputError) as caught:
        Checkpoint.open(str(directory))
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


def edit_index(directory: Path, changes: dict[str, object]) -> None:
    index = json.loads((directory / INDEX).read_text())
    index["weight_map"] |= changes
    (directory / INDEX).write_text(json.dumps(index))


def edit_tensors(path: Path, changes: dict[str, torch.Tensor], *, drop: str | None = None) -> None:
    tensors = {name: tensor for name, tensor in {**load_file(path), **changes}.items() if name != drop}
    save_file(tensors, path, metadata={"format": "pt"})


def test_a_sharded_checkpoint_reads_like_a_single_file(make_checkpoint: CheckpointMaker, sharded: Path) -> None:
    with Checkpoint.open(str(sharded)) as many, Checkpoint.open(str(make_checkpoint(Variant()))) as one:
        assert len(many.files) > 1
        assert many.entries.keys() == one.entries.keys()
        for name, entry in one.entries.items():
            left, right = np.empty(entry.size, np.uint8), np.empty(entry.size, np.uint8)
            one.read_into(name, left)
            many.read_into(name, right)
            assert left.tobytes() == right.tobytes()


def test_rows_are_read_where_they_are(make_checkpoint: CheckpointMaker) -> None:
    checkpoint = make_checkpoint(Variant(fused=True, dtype="float32"))
    expected = load_file(checkpoint / "model.safetensors")
    with Checkpoint.open(str(checkpoint)) as opened:
        name = "model.layers.1.mlp.experts.down_proj"
        out = np.empty((2, *expected[name].shape[1:]), np.float32)
        opened.read_into(name, out, 3)
        np.testing.assert_array_equal(out, expected[name][3:5].numpy())


def test_a_missing_shard_is_named(sharded: Path) -> None:
    shard = sorted(sharded.glob("*.safetensors"))[3]
    shard.unlink()
    assert str(shard) in refused(sharded)


def test_a_truncated_shard_is_named(sharded: Path) -> None:
    shard = sorted(sharded.glob("*.safetensors"))[2]
    shard.write_bytes(shard.read_bytes()[:-1])
    assert str(shard) in refused(sharded)


def test_a_tensor_that_the_index_promises_is_missed(sharded: Path) -> None:
    shard = sorted(sharded.glob("*.safetensors"))[0]
    edit_index(sharded, {"model.invented.weight": shard.name})
    assert "lacks tensor 'model.invented.weight'" in refused(sharded)


def test_a_tensor_that_the_index_does_not_know_is_noticed(sharded: Path) -> None:
    shard = sorted(sharded.glob("*.safetensors"))[0]
    edit_tensors(shard, {"model.invented.weight": torch.zeros(2)})
    assert "holds tensor 'model.invented.weight'" in refused(sharded)


def test_a_tensor_in_two_shards_is_noticed(sharded: Path) -> None:
    first, second, *_ = sorted(sharded.glob("*.safetensors"))
    name, tensor = next(iter(load_file(first).items()))
    edit_tensors(second, {name: tensor})
    sentence = refused(sharded)
    assert name in sentence
    assert str(second) in sentence


@pytest.mark.parametrize(
    "name", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "weights.bin", 7, None, ["a"], {}]
)
def test_an_index_may_only_name_files_beside_it(name: object, sharded: Path) -> None:
    edit_index(sharded, {"model.norm.weight": name})
    assert INDEX in refused(sharded)


@pytest.mark.parametrize("content", ["", "{", "[1]", "{}", '{"weight_map": []}', '{"weight_map": {}}', "[" * 100_000])
def test_an_index_that_is_none_is_refused(content: str, sharded: Path) -> None:
    (sharded / INDEX).write_text(content)
    assert INDEX in refused(sharded)


@pytest.mark.parametrize("content", ["", "{", "[]", "\xff"])
def test_a_config_that_is_none_is_refused(content: str, sharded: Path) -> None:
    (sharded / "config.json").write_text(content, encoding="latin-1")
    assert "config.json" in refused(sharded)


def test_a_directory_without_weights_is_refused(sharded: Path) -> None:
    for path in (*sharded.glob("*.safetensors"), sharded / INDEX):
        path.unlink()
    assert "model.safetensors is missing" in refused(sharded)


def test_a_directory_without_config_is_refused(sharded: Path) -> None:
    (sharded / "config.json").unlink()
    assert "config.json is missing" in refused(sharded)


@pytest.mark.parametrize("source", ["nowhere", "./no/where", "a/b/c", "/nowhere", "org/name@", ""])
def test_what_is_neither_directory_nor_repository_is_a_usage_error(source: str) -> None:
    with pytest.raises(UsageError, match="neither a directory nor a repository"):
        Checkpoint.open(source)
