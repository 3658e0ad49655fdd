"""The writer's promises short of crashes: one packer per target, no surprises, nothing overwritten."""

import dataclasses
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tinypack import FORMATS, Content, build, tiny_model, tiny_plan, tree, write_layer, write_missing

from moepack.layout import atomic, writer
from moepack.layout.journal import SourceDone
from moepack.layout.plan import BLANK, PackPlan, TensorSpec
from moepack.layout.reader import Pack
from moepack.layout.writer import PackWriter
from moepack.manifests import digest
from moepack.manifests.errors import CorruptInputError, StorageError, UnsupportedError, UsageError
from moepack.manifests.manifest import read_manifest
from moepack.manifests.schema import Recipe, Source, SourceFile


@pytest.fixture
def plan(tmp_path: Path) -> PackPlan:
    return tiny_plan(tmp_path)


def test_a_pack_reads_back_as_it_was_written(tmp_path: Path, plan: PackPlan) -> None:
    manifest = build(tmp_path / "pack", plan)
    assert read_manifest(tmp_path / "pack") == manifest
    content = Content(plan)
    with Pack.open(tmp_path / "pack") as pack:
        for layer in range(2):
            for expert in range(3):
                record = content.record(layer, expert)
                assert (pack.read_record(layer, expert) == record).all()
                assert pack.record_digest(layer, expert) == digest.of_record(record.data, layer, expert)
                address = pack.address(layer, expert)
                assert os.pread(address.fd, address.size, address.offset) == record.tobytes()
        for spec in plan.trunk:
            assert pack.trunk.read(spec.name).tobytes() == content.tensor(spec).tobytes()
    assert (tmp_path / "pack/config.json").read_bytes() == plan.copied[0].read_bytes()


def test_the_plan_knows_every_size_beforehand(tmp_path: Path, plan: PackPlan) -> None:
    build(tmp_path / "pack", plan)
    files = tree(tmp_path / "pack")
    assert plan.total_bytes == sum(map(len, files.values())) - len(files["manifest.json"])
    assert plan.trunk_bytes == len(files["trunk.safetensors"])
    assert plan.layer_bytes(1) == len(files[plan.layer_file(1)])
    assert plan.expert_bytes == 2 * plan.layer_bytes(0)


def test_the_plan_counts_bits_per_weight(tmp_path: Path) -> None:
    plan = tiny_plan(tmp_path, tiny_model(hidden=4096, intermediate=1024), dict.fromkeys(FORMATS, "affine2-g64"))
    assert plan.expert_bits_per_weight == 2.5
    trunk_weights = 32 + 5 * 32 + 5 * 32 + 2
    all_weights = 3 * 4096 * 1024 * 6 + trunk_weights
    assert plan.bits_per_weight == (plan.expert_bytes + plan.trunk_bytes) * 8 / all_weights


def test_trunk_tensors_with_wider_elements_come_first_so_that_all_are_aligned(plan: PackPlan) -> None:
    odd = dataclasses.replace(plan, trunk=(TensorSpec("a", "BF16", (3,)), TensorSpec("b", "F32", (1,))))
    assert [spec.name for spec in odd.trunk] == ["b", "a"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"records": ()}, "0 record layouts for 2 layers"),
        ({"model": tiny_model(hidden=64)}, "other shapes"),
        ({"trunk": (TensorSpec("a", "U8", (1,)),) * 2}, "same name"),
        ({"copied": (Path("manifest.json"),)}, "name that a pack may not hold"),
        ({"copied": (Path("con.txt"),)}, "name that a pack may not hold"),
    ],
)
def test_a_plan_that_contradicts_itself_is_refused(plan: PackPlan, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        dataclasses.replace(plan, **changes)


def test_published_files_are_read_only(tmp_path: Path, plan: PackPlan) -> None:
    build(tmp_path / "pack", plan)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "pack").rglob("*") if path.is_file()}
    assert modes == {0o444}


def test_an_existing_target_is_left_alone(tmp_path: Path, plan: PackPlan) -> None:
    (tmp_path / "pack").mkdir()
    with pytest.raises(UsageError, match=r"pack exists; remove it or choose another output"):
        PackWriter.open(tmp_path / "pack", plan)
    assert not (tmp_path / "pack.partial").exists()


def test_a_dangling_link_is_an_existing_target(tmp_path: Path, plan: PackPlan) -> None:
    (tmp_path / "pack").symlink_to("nowhere")
    with pytest.raises(UsageError, match="pack exists"):
        PackWriter.open(tmp_path / "pack", plan)


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path, plan: PackPlan) -> None:
    with pytest.raises(UsageError, match="nowhere is not a folder to write into: No such file"):
        PackWriter.open(tmp_path / "nowhere/pack", plan)


def test_one_packer_per_target(tmp_path: Path, plan: PackPlan) -> None:
    owner = rf"another moe-pack \(pid {os.getpid()}\) is writing .*pack\.partial"
    with PackWriter.open(tmp_path / "pack", plan), pytest.raises(StorageError, match=owner):
        PackWriter.open(tmp_path / "pack", plan)
    PackWriter.open(tmp_path / "pack", plan).close()


def test_a_dead_packers_lock_dies_with_it(tmp_path: Path, plan: PackPlan) -> None:
    code = (
        "import fcntl, os, sys; os.mkdir(sys.argv[1]); fcntl.flock(os.open(sys.argv[1], 0), 2); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "pack.partial"], check=False)
    assert (tmp_path / "pack.partial").exists()
    build(tmp_path / "pack", plan)


@pytest.mark.parametrize("files", [["notes.txt"], ["journal.jsonl", "notes.txt"], ["manifest.json"]])
def test_somebody_elses_directory_is_not_touched(tmp_path: Path, plan: PackPlan, files: list[str]) -> None:
    (tmp_path / "pack.partial").mkdir()
    for name in files:
        (tmp_path / "pack.partial" / name).write_text("precious")
    with pytest.raises(UsageError, match=r"pack\.partial was begun by another build"):
        PackWriter.open(tmp_path / "pack", plan)
    assert all((tmp_path / "pack.partial" / name).read_text() == "precious" for name in files)


def test_another_plans_work_is_not_mixed_in(tmp_path: Path, plan: PackPlan) -> None:
    with PackWriter.open(tmp_path / "pack", plan) as writer:
        write_layer(writer, Content(plan), 0)
    other = dataclasses.replace(plan, recipe=Recipe("affine2-g32", "mse", "source", 1))
    with pytest.raises(UsageError, match="begun by another build"):
        PackWriter.open(tmp_path / "pack", other)
    build(tmp_path / "pack", plan)


def test_a_changed_copied_file_is_another_plan(tmp_path: Path, plan: PackPlan) -> None:
    before = plan.identity
    plan.copied[0].write_text("changed")
    assert dataclasses.replace(plan).identity != before


def test_a_copied_file_that_changes_meanwhile_is_noticed(tmp_path: Path, plan: PackPlan) -> None:
    with PackWriter.open(tmp_path / "pack", plan) as writer:
        plan.copied[0].write_text("changed")
        with pytest.raises(CorruptInputError, match=r"config.json changed while it was being packed"):
            write_missing(writer, Content(plan))
    assert not (tmp_path / "pack").exists()


def test_a_disk_without_room_is_refused_before_anything_is_made(
    tmp_path: Path, plan: PackPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**12, 0, 20_000_000))
    big = tiny_plan(tmp_path, tiny_model(experts=2000))
    with pytest.raises(StorageError, match=r"has 0.02 GB free and this pack needs 0.07 GB more; make room"):
        PackWriter.open(tmp_path / "pack", big)
    assert not (tmp_path / "pack.partial").exists()


def test_room_is_needed_only_for_what_is_missing(
    tmp_path: Path, plan: PackPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    with PackWriter.open(tmp_path / "pack", plan) as writer:
        write_layer(writer, Content(plan), 0)
    left = plan.total_bytes - plan.layer_bytes(0)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**12, 0, left))
    PackWriter.open(tmp_path / "pack", plan).close()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**12, 0, left - 1))
    with pytest.raises(StorageError, match="make room and run the same command again"):
        PackWriter.open(tmp_path / "pack", plan)


@pytest.mark.parametrize("size", [0, 16383, 16385])
def test_a_record_of_another_size_is_refused(tmp_path: Path, plan: PackPlan, size: int) -> None:
    refused = pytest.raises(ValueError, match="a record has 16384 bytes")
    with PackWriter.open(tmp_path / "pack", plan) as writer, refused, writer.layer(0) as sink:
        sink.append(np.zeros(size, np.uint8))
    assert not (tmp_path / "pack.partial/experts/layer_00.bin").exists()


def test_dirty_padding_is_refused(tmp_path: Path, plan: PackPlan) -> None:
    record = Content(plan).record(0, 0)
    record[-1] = 1
    refused = pytest.raises(ValueError, match="zeros after byte 1408")
    with PackWriter.open(tmp_path / "pack", plan) as writer, refused, writer.layer(0) as sink:
        sink.append(record)


def test_a_layer_without_all_its_experts_is_not_published(tmp_path: Path, plan: PackPlan) -> None:
    with PackWriter.open(tmp_path / "pack", plan) as writer:
        with (
            pytest.raises(ValueError, match="49152 bytes, but 16384 were written"),
            writer.layer(0) as sink,
        ):
            sink.append(memoryview(Content(plan).record(0, 0)))
        assert writer.missing_layers() == [0, 1]


def test_an_incomplete_pack_is_not_committed(tmp_path: Path, plan: PackPlan) -> None:
    with PackWriter.open(tmp_path / "pack", plan) as writer, pytest.raises(ValueError, match="all of its units"):
        writer.commit()


def test_a_pack_whose_source_is_not_hashed_is_not_committed(tmp_path: Path, plan: PackPlan) -> None:
    files = [SourceFile("model.safetensors", 1, "ab" * 32, BLANK)]
    unhashed = dataclasses.replace(plan, source=Source("mlx", None, None, files))
    with PackWriter.open(tmp_path / "pack", unhashed) as writer:
        with pytest.raises(ValueError, match="all of its units"):
            write_missing(writer, Content(unhashed))
        writer.source_hashed(SourceDone("model.safetensors", 1, 2, "ef" * 32))
        assert writer.commit().source.files[0].sha256 == "ef" * 32


def test_files_are_written_back_while_they_grow(
    tmp_path: Path, plan: PackPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed = []
    name = "fdatasync" if hasattr(os, "fdatasync") else "fsync"
    monkeypatch.setattr(atomic, "FLUSH_BYTES", 20_000)
    monkeypatch.setattr(os, name, flushed.append)
    with atomic.AtomicFile(tmp_path / "file", 100_000) as file:
        for _ in range(10):
            file.write(b"x" * 10_000)
    assert len(flushed) >= 5
    assert (tmp_path / "file").read_bytes() == b"x" * 100_000


def test_a_device_that_fails_behind_our_back_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(atomic, "FLUSH_BYTES", 100_000)
    monkeypatch.setattr(os, "fdatasync" if hasattr(os, "fdatasync") else "fsync", broken)
    failure = pytest.raises(StorageError, match="file cannot be written: Input/output error")
    with failure, atomic.AtomicFile(tmp_path / "file", 100_000) as file:
        file.write(b"x" * 100_000)
    assert list(tmp_path.iterdir()) == []


def test_big_records_are_hashed_in_parallel_to_the_same_digests(tmp_path: Path) -> None:
    plan = tiny_plan(tmp_path, tiny_model(hidden=1024, intermediate=512), dict.fromkeys(FORMATS, "affine4-g64"))
    assert plan.records[0].stride > 256 * 1024
    build(tmp_path / "pack", plan)
    content = Content(plan)
    with Pack.open(tmp_path / "pack") as pack:
        assert pack.record_digest(1, 2) == digest.of_record(content.record(1, 2).data, 1, 2)
        part = plan.records[1]["up.scales"]
        joined = b"".join(content.record(1, e)[part.offset : part.offset + part.size].tobytes() for e in range(3))
        listed = next(c for c in pack.manifest.layers[1].components if c.name == "up.scales")
        assert listed.blake3 == digest.of_bytes(joined).hex()


def source_of(name: str) -> Source:
    return Source("mlx", None, None, [SourceFile(name, 1, "ab" * 32, "cd" * 32)])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"source": source_of("m" * 256)}, r"does not fit into a pack: manifest.json: .*length <= 255.* \(M3\)"),
        ({"recipe": Recipe("x" * 257, "mse", "source", 1)}, r"length <= 256.* \(M3\)"),
        ({"source": source_of("model-\udcff.safetensors")}, "does not fit into a pack: .*non-UTF-8"),
    ],
)
def test_a_plan_of_a_pack_that_readers_refuse_is_refused(
    plan: PackPlan, changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UnsupportedError, match=sentence):
        dataclasses.replace(plan, **changes)


def test_more_records_than_a_pack_may_have_are_refused_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"2621440 records; a pack has at most 2097152 \(M10\)"):
        tiny_plan(tmp_path, tiny_model(layers=40, experts=65536))
    with pytest.raises(UnsupportedError, match=r"manifest.json has \d+ bytes; at most 4194304 are allowed \(M1\)"):
        tiny_plan(tmp_path, tiny_model(layers=4098, experts=2))


def test_a_long_name_of_a_weight_file_is_fine(tmp_path: Path, plan: PackPlan) -> None:
    build(tmp_path / "pack", dataclasses.replace(plan, source=source_of("m" * 255)))
    Pack.open(tmp_path / "pack").close()


def test_what_our_own_reader_refuses_is_not_published(tmp_path: Path, plan: PackPlan) -> None:
    wrong = dataclasses.replace(plan, trunk_formats={"lm_head": "affine3-g32"})
    with pytest.raises(CorruptInputError, match=r"'lm_head' is not a whole affine3-g32 matrix \(T3\)"):
        build(tmp_path / "pack", wrong)
    assert not (tmp_path / "pack").exists()


def test_a_copied_file_that_changes_between_its_check_and_the_manifest(
    tmp_path: Path, plan: PackPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = plan.copied[0].read_bytes()

    def changing(path: Path, content: bytes, mode: int = atomic.READ_ONLY) -> None:
        plan.copied[0].write_text("another size")
        atomic.publish(path, content, mode)

    monkeypatch.setattr(writer, "publish", changing)
    manifest = build(tmp_path / "pack", plan)
    assert [file.size for file in manifest.files if file.name == "config.json"] == [len(original)]
    assert (tmp_path / "pack/config.json").read_bytes() == original


def test_a_copied_file_that_grows_meanwhile_is_noticed(tmp_path: Path, plan: PackPlan) -> None:
    with PackWriter.open(tmp_path / "pack", plan) as writer:
        plan.copied[0].write_text(plan.copied[0].read_text() + " ")
        with pytest.raises(CorruptInputError, match=r"config.json changed while it was being packed"):
            write_missing(writer, Content(plan))


def test_a_name_that_would_be_too_long_in_the_end_is_refused_at_the_start(tmp_path: Path, plan: PackPlan) -> None:
    longest = 255 - len(".partial.journal.jsonl.tmp")
    with pytest.raises(UsageError, match=r"too long a name by 2 bytes"):
        build(tmp_path / ("é" + "n" * longest), plan)
    build(tmp_path / ("n" * longest), plan)


@pytest.mark.parametrize("target", ["", ".", "/", "..", "nowhere/.."])
def test_a_target_without_a_name_of_its_own(
    tmp_path: Path, plan: PackPlan, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="names no new directory; give the pack a name"):
        PackWriter.open(Path(target), plan)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize("name", ["notes", "experts/notes"])
def test_a_directory_among_the_work_is_named(tmp_path: Path, plan: PackPlan, name: str) -> None:
    PackWriter.open(tmp_path / "pack", plan).close()
    (tmp_path / "pack.partial" / name).mkdir()
    with pytest.raises(UsageError, match=rf"partial/{name} is a directory, which no pack has; remove it and run"):
        PackWriter.open(tmp_path / "pack", plan)


def test_a_link_in_the_place_of_the_experts_folder_is_named(tmp_path: Path, plan: PackPlan) -> None:
    PackWriter.open(tmp_path / "pack", plan).close()
    (tmp_path / "pack.partial/experts").rmdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "pack.partial/experts").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match=r"partial/experts is not a directory; remove .*pack\.partial or choose"):
        PackWriter.open(tmp_path / "pack", plan)
