"""Verification names every difference between a pack and its manifest. Covers FORMAT.md P1 to P6."""

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from contextlib import nullcontext
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tinypack import FORMATS, Content, build, edit_manifest, replace_file, tiny_model, tiny_plan, tree

from moepack.manifests.canonical import encode
from moepack.manifests.digest import of_bytes, of_record
from moepack.manifests.errors import CorruptInputError, MismatchError
from moepack.manifests.manifest import pack_digest
from moepack.manifests.progress import Silent
from moepack.manifests.report import Finding, Report
from moepack.manifests.verify import verify

STRIDE = 16384
LAYER = "experts/layer_01.bin"


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    build(tmp_path / "pack", tiny_plan(tmp_path))
    return tmp_path / "pack"


def findings(pack: Path, threads: int = 2) -> list[Finding]:
    report = verify(pack, threads=threads, progress=Silent())
    assert report.ok == (not report.findings)
    return report.findings


def sentences(pack: Path) -> list[str]:
    return [finding.sentence for finding in findings(pack)]


def flip(path: Path, *offsets: int) -> None:
    content = bytearray(path.read_bytes())
    for offset in offsets:
        content[offset] ^= 0x10
    replace_file(path, content)


def test_a_good_pack_is_good(pack: Path) -> None:
    report = verify(pack, threads=3, progress=Silent())
    assert report.ok
    assert report.findings == []
    assert report.pack_digest == pack_digest(pack)
    assert report.bytes_checked == sum(map(len, tree(pack).values())) - (pack / "manifest.json").stat().st_size
    assert msgspec.json.decode(msgspec.json.encode(report), type=Report) == report


@pytest.mark.parametrize("threads", [1, 2, 16])
def test_threads_do_not_change_the_findings(pack: Path, threads: int) -> None:
    flip(pack / "experts/layer_00.bin", 5)
    flip(pack / LAYER, STRIDE + 1400)
    expected = [
        Finding("experts/layer_00.bin", "is damaged", 0, 0, "gate.weight"),
        Finding(LAYER, "is damaged", 1, 1, "down.biases"),
    ]
    assert findings(pack, threads) == expected


def test_damage_is_located_by_layer_expert_and_component(tmp_path: Path, pack: Path) -> None:
    """P3 and P4 together"""
    layout = tiny_plan(tmp_path).records[1]
    original = (pack / LAYER).read_bytes()
    for expert in range(3):
        for part in layout.components:
            for offset in (part.offset, part.offset + part.size - 1):
                flip(pack / LAYER, expert * STRIDE + offset)
                assert findings(pack) == [Finding(LAYER, "is damaged", 1, expert, part.name)]
                replace_file(pack / LAYER, original)


def test_a_sentence_says_it_all(pack: Path) -> None:
    flip(pack / LAYER, 2 * STRIDE + 300)
    assert sentences(pack) == ["experts/layer_01.bin: layer 1, expert 2, gate.scales is damaged"]


def test_several_components_of_one_expert_are_each_named(pack: Path) -> None:
    flip(pack / LAYER, 0, 300)
    assert [(f.expert, f.component) for f in findings(pack)] == [(0, "gate.weight"), (0, "gate.scales")]


def test_the_same_component_of_several_experts_is_named_for_each(pack: Path) -> None:
    flip(pack / LAYER, 0, STRIDE)
    assert [(f.expert, f.component) for f in findings(pack)] == [(0, "gate.weight"), (1, "gate.weight")]


def test_what_the_digests_cannot_tell_apart_is_not_claimed(pack: Path) -> None:
    flip(pack / LAYER, 0, STRIDE + 300)
    found = [(f.expert, f.component) for f in findings(pack)]
    assert found == [(0, "gate.weight or gate.scales"), (1, "gate.weight or gate.scales")]


def test_dirty_padding_is_named(pack: Path) -> None:
    """P6"""
    flip(pack / LAYER, STRIDE + 1408, 3 * STRIDE - 1)
    expected = [Finding(LAYER, "is not zero", 1, expert, "padding") for expert in (1, 2)]
    assert findings(pack) == expected


def test_dirty_padding_does_not_hide_damage_elsewhere(pack: Path) -> None:
    flip(pack / LAYER, 1408, STRIDE + 300)
    assert sentences(pack) == [
        f"{LAYER}: layer 1, expert 0, padding is not zero",
        f"{LAYER}: layer 1, expert 1, gate.scales is damaged",
    ]
    flip(pack / LAYER, 300, STRIDE + 300)
    assert sentences(pack) == [
        f"{LAYER}: layer 1, expert 0, padding is not zero",
        f"{LAYER}: layer 1, expert 0, gate.scales is damaged",
    ]


def test_padding_that_was_dirty_when_the_pack_was_sealed_is_found(pack: Path) -> None:
    """P6: a packer that left garbage there is not excused by having digested it."""
    content = bytearray((pack / LAYER).read_bytes())
    content[-1] = 7
    replace_file(pack / LAYER, content)
    seal_again(pack)
    assert sentences(pack) == [f"{LAYER}: layer 1, expert 2, padding is not zero"]


def seal_again(pack: Path) -> None:
    """Give the pack the record digests and the SHA-256 that its bytes have."""
    layers = [(pack / name).read_bytes() for name in ("experts/layer_00.bin", LAYER)]
    records = [
        of_record(layer[at : at + STRIDE], index, at // STRIDE)
        for index, layer in enumerate(layers)
        for at in range(0, len(layer), STRIDE)
    ]
    replace_listed(pack, "digests.bin", b"".join(records))
    sums = (sha256sums(pack, name) for name in tree(pack) if name not in ("manifest.json", "SHA256SUMS"))
    replace_listed(pack, "SHA256SUMS", b"".join(sorted(sums, key=lambda line: line[66:])))


def sha256sums(pack: Path, name: str) -> bytes:
    return f"{sha256((pack / name).read_bytes()).hexdigest()}  {name}\n".encode()


def replace_listed(pack: Path, name: str, content: bytes) -> None:
    """Give a file other bytes and list them in the manifest, which is sealed again."""
    replace_file(pack / name, content)
    facts = {"size": len(content), "blake3": of_bytes(content).hex()}
    edit_manifest(pack, lambda fields: [file.update(facts) for file in fields["files"] if file["name"] == name])


def test_component_digests_are_checked_even_when_every_record_agrees(pack: Path) -> None:
    """P4"""
    edit_manifest(pack, lambda fields: fields["layers"][1]["components"][4].update(blake3="0" * 64))
    expected = "layer 1, up.scales differs from the manifest, though every record agrees with digests.bin"
    assert sentences(pack) == [f"{LAYER}: {expected}"]


def test_record_digests_are_checked_even_when_every_component_agrees(pack: Path) -> None:
    """P3"""
    records = bytearray((pack / "digests.bin").read_bytes())
    records[0] ^= 1
    replace_listed(pack, "digests.bin", bytes(records))
    expected = "layer 0, expert 0 differs from digests.bin, though its components are as the manifest says"
    assert sentences(pack) == [
        "SHA256SUMS gives digests.bin another SHA-256 than it has",
        f"experts/layer_00.bin: {expected}",
    ]


@pytest.mark.parametrize("name", ["SHA256SUMS", "config.json", "digests.bin", "trunk.safetensors"])
def test_damaged_files_are_named(pack: Path, name: str) -> None:
    """P5"""
    flip(pack / name, 3)
    assert sentences(pack) == [f"{name} is damaged"]


def test_without_record_digests_the_components_still_tell(pack: Path) -> None:
    (pack / "digests.bin").unlink()
    flip(pack / LAYER, STRIDE + 300)
    assert sentences(pack) == ["digests.bin is missing", f"{LAYER}: layer 1, gate.scales is damaged in some expert"]


def make_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def make_link(path: Path) -> None:
    path.rename(path.parents[1] / "elsewhere")
    path.symlink_to("../elsewhere")


@pytest.mark.parametrize("name", ["config.json", "trunk.safetensors", LAYER])
@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (Path.unlink, "is missing"),
        (make_pipe, "is not a regular file"),
        (make_link, "is a symbolic link, not a regular file"),
        (lambda path: replace_file(path, path.read_bytes() + b"\0"), r"has \d+ bytes instead of \d+"),
    ],
    ids=["missing", "pipe", "link", "extended"],
)
def test_what_is_no_such_file_is_named(pack: Path, name: str, change: Callable[[Path], None], problem: str) -> None:
    """P2"""
    change(pack / name)
    found = [finding for finding in findings(pack) if finding.file != "elsewhere"]
    assert [finding.file for finding in found] == [name]
    assert re.fullmatch(problem, found[0].problem)


def test_a_truncated_layer_is_checked_as_far_as_it_goes(pack: Path) -> None:
    """P2"""
    flip(pack / LAYER, 300)
    os.truncate(pack / LAYER, 2 * STRIDE + 100)
    found = findings(pack)
    assert [(f.layer, f.expert, f.problem.split(":")[0]) for f in found] == [
        (1, None, "has 32868 bytes instead of 49152"),
        (1, 2, "cannot be read"),
        (1, 0, "is damaged"),
    ]


def fail_reading(monkeypatch: pytest.MonkeyPatch, path: Path, at: int = 0) -> None:
    """The device gives an error for the bytes of `path` from `at` on, and for no others."""
    whole, broken = os.preadv, path.stat().st_ino

    def failing(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        if offset == at and os.fstat(descriptor).st_ino == broken:
            raise OSError(5, "Input/output error")
        return whole(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", failing)


def test_an_io_error_is_a_finding_and_the_rest_is_checked(pack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flip(pack / LAYER, 2 * STRIDE)
    fail_reading(monkeypatch, pack / LAYER, STRIDE)
    found = findings(pack)
    assert [(f.expert, f.component, f.kind) for f in found] == [(1, None, "unreadable"), (2, None, "damage")]
    assert "Input/output error" in found[0].problem


@pytest.mark.parametrize("name", ["trunk.safetensors", "config.json", "digests.bin", "SHA256SUMS"])
def test_an_io_error_is_not_called_damage(pack: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_reading(monkeypatch, pack / name)
    (found,) = findings(pack)
    assert (found.file, found.kind) == (name, "unreadable")
    size = (pack / name).stat().st_size
    assert found.problem == f"cannot be read: {pack / name} cannot be read at bytes 0+{size}: Input/output error"


def test_a_layer_that_cannot_be_opened_is_not_called_damaged(pack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.open

    def failing(path: Path, *args: Any, **kwargs: Any) -> int:
        if Path(path).name == Path(LAYER).name:
            raise OSError(5, "Input/output error")
        return whole(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", failing)
    (found,) = findings(pack)
    assert (found.file, found.layer, found.kind) == (LAYER, 1, "unreadable")
    assert found.problem.endswith("cannot be opened: Input/output error")


def test_a_stray_file_is_told_apart_from_damage(pack: Path) -> None:
    (pack / "notes.txt").write_text("x")
    flip(pack / LAYER, 300)
    assert [(f.file, f.kind) for f in findings(pack)] == [("notes.txt", "stray"), (LAYER, "damage")]


def test_what_does_not_belong_to_the_pack_is_named(pack: Path) -> None:
    """P1"""
    (pack / "notes.txt").write_text("x")
    (pack / "experts/layer_02.bin").write_text("x")
    (pack / "cache").mkdir()
    (pack / ".hidden").symlink_to("/etc/passwd")
    extra = [".hidden", "cache", "notes.txt", "experts/layer_02.bin"]
    assert sentences(pack) == [f"{name} does not belong to the pack; remove it" for name in extra]


def test_a_renamed_file_is_missing_here_and_extra_there(pack: Path) -> None:
    """P1"""
    (pack / LAYER).rename(pack / "experts/layer_1.bin")
    assert sentences(pack) == [
        "experts/layer_1.bin does not belong to the pack; remove it",
        f"{LAYER}: layer 1 is missing",
    ]


def test_swapped_layer_files_are_recognised(pack: Path) -> None:
    first, second = ((pack / name).read_bytes() for name in ("experts/layer_00.bin", LAYER))
    replace_file(pack / "experts/layer_00.bin", second)
    replace_file(pack / LAYER, first)
    assert sentences(pack) == [
        "experts/layer_00.bin: layer 0 holds the records of layer 1",
        f"{LAYER}: layer 1 holds the records of layer 0",
    ]


def test_swapped_records_are_recognised(pack: Path) -> None:
    content = (pack / LAYER).read_bytes()
    replace_file(pack / LAYER, content[2 * STRIDE :] + content[STRIDE : 2 * STRIDE] + content[:STRIDE])
    assert sentences(pack) == [
        f"{LAYER}: layer 1, expert 0 holds the record of layer 1, expert 2",
        f"{LAYER}: layer 1, expert 2 holds the record of layer 1, expert 0",
    ]


def test_a_record_moved_to_another_layer_and_number_is_recognised(pack: Path) -> None:
    content = bytearray((pack / LAYER).read_bytes())
    content[:STRIDE] = (pack / "experts/layer_00.bin").read_bytes()[2 * STRIDE :]
    replace_file(pack / LAYER, content)
    assert sentences(pack) == [f"{LAYER}: layer 1, expert 0 holds the record of layer 0, expert 2"]


def test_a_record_s_digest_is_what_the_specification_says() -> None:
    """P3: spelt out, for whoever writes a second implementation."""
    suffix = b"moepack expert record\0\0\0" + bytes([1, 0, 0, 0]) + bytes([0x02, 0x01, 0, 0])
    assert of_record(b"abc" * 100, 1, 258) == of_bytes(b"abc" * 100 + suffix)


def exchanged(first: bytes, second: bytes) -> tuple[bytes, bytes]:
    return second, first


def duplicated(first: bytes, second: bytes) -> tuple[bytes, bytes]:
    return first, first


@pytest.mark.parametrize(
    ("change", "moved"), [(exchanged, {0: 2, 2: 0}), (duplicated, {2: 0})], ids=["exchanged", "duplicated"]
)
def test_a_record_out_of_place_is_found_though_its_digest_moved_with_it(
    tmp_path: Path, change: Callable[[bytes, bytes], tuple[bytes, bytes]], moved: dict[int, int]
) -> None:
    """P3"""
    pack = tmp_path / "pack"
    build(pack, tiny_plan(tmp_path))
    rearrange(pack / LAYER, STRIDE, 0, change)
    rearrange(pack / "digests.bin", 32, 3, change)
    seal_all_but_digests(tmp_path, pack)
    assert sentences(pack) == [
        f"{LAYER}: layer 1, expert {expert} holds the record of layer 1, expert {home}"
        for expert, home in moved.items()
    ]


def rearrange(file: Path, size: int, first: int, change: Callable[[bytes, bytes], tuple[bytes, bytes]]) -> None:
    """Change the first and the third of what a file holds `size` bytes each of, from number `first` on."""
    content = bytearray(file.read_bytes())
    a, b = (slice((first + n) * size, (first + n + 1) * size) for n in (0, 2))
    content[a], content[b] = change(bytes(content[a]), bytes(content[b]))
    replace_file(file, content)


def seal_all_but_digests(folder: Path, pack: Path) -> None:
    """Let manifest and SHA256SUMS say of all other bytes what they are: an attacker's pack, or a defective packer's."""
    digests = (pack / "digests.bin").read_bytes()
    content = (pack / LAYER).read_bytes()
    seal_again(pack)
    replace_listed(pack, "digests.bin", digests)

    def describe(fields: dict[str, Any]) -> None:
        for part in fields["layers"][1]["components"]:
            starts = range(part["offset"], len(content), STRIDE)
            part["blake3"] = of_bytes(b"".join(content[at : at + part["size"]] for at in starts)).hex()

    edit_manifest(pack, describe)
    lines = (pack / "SHA256SUMS").read_bytes().splitlines(keepends=True)
    renewed = [sha256sums(pack, line[66:-1].decode()) for line in lines]
    replace_listed(pack, "SHA256SUMS", b"".join(renewed))


def test_what_nothing_recognises_is_sought_everywhere_only_a_few_times(tmp_path: Path) -> None:
    """Where many records of a layer are strange, those that changed layer and number are just damaged."""
    build(tmp_path / "pack", tiny_plan(tmp_path, tiny_model(experts=12)))
    first, second = (tmp_path / "pack" / name for name in ("experts/layer_00.bin", LAYER))
    donor = second.read_bytes()
    replace_file(first, donor[STRIDE:] + donor[:STRIDE])
    found = [finding.problem for finding in findings(tmp_path / "pack") if finding.component is None]
    assert found == [f"holds the record of layer 1, expert {expert}" for expert in range(1, 9)]


needs_sha256sum = pytest.mark.skipif(shutil.which("sha256sum") is None, reason="there is no sha256sum here")


@needs_sha256sum
def test_sha256sum_agrees(pack: Path) -> None:
    """P7"""
    command = ["sha256sum", "--check", "--strict", "SHA256SUMS"]
    ran = subprocess.run(command, cwd=pack, capture_output=True, text=True, check=True)
    assert [line.split(":")[0] for line in ran.stdout.splitlines()] == sorted(
        tree(pack).keys() - {"SHA256SUMS", "manifest.json"}
    )


@pytest.mark.parametrize("line", range(5))
def test_a_wrong_sha_256_is_found_though_the_pack_was_sealed_with_it(pack: Path, line: int) -> None:
    """P7"""
    content = bytearray((pack / "SHA256SUMS").read_bytes())
    lines = bytes(content).splitlines(keepends=True)
    at = sum(map(len, lines[:line]))
    content[at] = ord("0") if content[at] != ord("0") else ord("1")
    replace_listed(pack, "SHA256SUMS", bytes(content))
    name = lines[line][66:-1].decode()
    assert sentences(pack) == [f"SHA256SUMS gives {name} another SHA-256 than it has"]


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: text.upper(),
        lambda text: text.replace(b"  ", b" *"),
        lambda text: text.replace(b"config.json", b"konfig.json"),
        lambda text: text[:-1] + b"\r",
        lambda text: b"".join(reversed(text.splitlines(keepends=True))),
        lambda text: text.replace(b"\n", b"\xff", 1),
    ],
    ids=["upper case", "binary marks", "another name", "no last newline", "not sorted", "not ASCII"],
)
def test_sums_of_another_form_are_found(pack: Path, edit: Callable[[bytes], bytes]) -> None:
    """P7"""
    replace_listed(pack, "SHA256SUMS", edit((pack / "SHA256SUMS").read_bytes()))
    (sentence,) = sentences(pack)
    assert sentence == "SHA256SUMS is not the sorted list of the pack's files with their SHA-256 (P7)"


def test_all_is_reported_at_once(pack: Path) -> None:
    (pack / "config.json").unlink()
    (pack / "notes.txt").write_text("x")
    flip(pack / "trunk.safetensors", 900)
    flip(pack / LAYER, 0)
    assert [f.file for f in findings(pack)] == ["notes.txt", "config.json", "trunk.safetensors", LAYER]


def test_a_manifest_that_cannot_be_believed_ends_it(pack: Path) -> None:
    content = (pack / "manifest.json").read_bytes()
    replace_file(pack / "manifest.json", content.replace(b'"hidden_size":32', b'"hidden_size":64'))
    with pytest.raises(MismatchError, match=r"manifest\.json was altered"):
        verify(pack, threads=1, progress=Silent())
    replace_file(pack / "manifest.json", content[:-1])
    with pytest.raises(CorruptInputError, match=r"manifest\.json is not acceptable JSON"):
        verify(pack, threads=1, progress=Silent())


class Counting:
    """A progress display that adds up what it is told."""

    def __init__(self) -> None:
        self.total = self.done = 0

    def task(self, title: str, total: int, done: int = 0) -> nullcontext["Counting"]:
        self.total = total
        return nullcontext(self)

    def advance(self, size: int) -> None:
        self.done += size

    def note(self, text: str) -> None:
        pass


def test_progress_hears_of_every_byte(pack: Path) -> None:
    progress = Counting()
    report = verify(pack, threads=2, progress=progress)
    assert progress.total == progress.done == report.bytes_checked > 0


def test_records_larger_than_a_page_are_located_too(tmp_path: Path) -> None:
    plan = tiny_plan(tmp_path, tiny_model(hidden=512, intermediate=256), dict.fromkeys(FORMATS, "affine3-g128"))
    build(tmp_path / "pack", plan)
    record = Content(plan).record(0, 1)
    part = plan.records[0]["up.biases"]
    flip(tmp_path / "pack/experts/layer_00.bin", len(record) + part.offset)
    assert [(f.expert, f.component) for f in findings(tmp_path / "pack")] == [(1, "up.biases")]


def test_a_report_is_ready_for_json(pack: Path) -> None:
    flip(pack / LAYER, 0)
    fields = msgspec.to_builtins(verify(pack, threads=1, progress=Silent()))
    assert fields["ok"] is False
    place = {"file": LAYER, "layer": 1, "expert": 0, "component": "gate.weight"}
    assert fields["findings"] == [{**place, "problem": "is damaged", "kind": "damage"}]
    assert encode(fields["findings"])
