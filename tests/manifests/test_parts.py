"""Verifying a part of a pack, going on after an interrupt, and keeping a pace."""

import json
import subprocess
import sys
import threading
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from tinypack import build, edit_manifest, replace_file, tiny_model, tiny_plan

from moepack.manifests import layers
from moepack.manifests import verify as verifying
from moepack.manifests.errors import MismatchError, StorageError
from moepack.manifests.ledger import Done
from moepack.manifests.pace import Pace, Stopped
from moepack.manifests.progress import Silent
from moepack.manifests.report import Report
from moepack.manifests.scope import Quick, Scope, Share, Slice

STRIDE = 16384
LAYERS, EXPERTS = 4, 5
LAYER = "experts/layer_01.bin"
NO_WHOLE_LAYER = Share(Fraction(80), 15)  # but the first three records of the second


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    build(tmp_path / "pack", tiny_plan(tmp_path, tiny_model(LAYERS, EXPERTS)))
    return tmp_path / "pack"


class Memory:
    """A ledger in memory."""

    def __init__(self) -> None:
        self.done: dict[str, Done] = {}

    def known(self, file: str) -> Done | None:
        return self.done.get(file)

    def keep(self, file: str, done: Done) -> None:
        self.done[file] = done


def verify(pack: Path, scope: Scope = verifying.FULL, threads: int = 2, **options: Any) -> Report:
    return verifying.verify(pack, threads=threads, progress=Silent(), scope=scope, **options)


def flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    replace_file(path, content)


def test_quick_reads_no_weights(pack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "scan", lambda *_: pytest.fail("a layer was read"))
    flip(pack / LAYER, 5)
    flip(pack / "trunk.safetensors", 500)
    report = verify(pack, Quick())
    assert report.ok
    assert (report.records_checked, report.records_total) == (0, LAYERS * EXPERTS)
    small = sum((pack / name).stat().st_size for name in ("config.json", "digests.bin", "SHA256SUMS"))
    assert report.bytes_checked == small < report.bytes_total


@pytest.mark.parametrize("scope", [Quick(), Slice(1, 50), Share(Fraction(1), 3)])
def test_what_is_small_is_always_checked(pack: Path, scope: Scope) -> None:
    flip(pack / "config.json", 3)
    (pack / "stray").touch()
    replace_file(pack / "experts/layer_02.bin", b"short")
    replace_file(pack / "trunk.safetensors", b"short")
    found = dict.fromkeys(finding.sentence.split()[0] for finding in verify(pack, scope).findings)
    assert list(found) == [
        "stray", "config.json", "trunk.safetensors", "experts/layer_02.bin:",
    ]  # fmt: skip


@pytest.mark.parametrize("parts", [1, 3, 7, 21, 30])
def test_damage_to_a_record_is_found_by_exactly_one_slice(pack: Path, parts: int) -> None:
    flip(pack / LAYER, 3 * STRIDE + 7)
    reports = [verify(pack, Slice(part, parts)) for part in range(1, parts + 1)]
    found = [finding.sentence for report in reports for finding in report.findings]
    whole = ", gate.weight" if parts == 1 else ""  # the digests of components need all of a layer
    assert found == [f"{LAYER}: layer 1, expert 3{whole} is damaged"]
    assert sum(report.records_checked for report in reports) == LAYERS * EXPERTS


def test_what_only_whole_layers_can_show_is_found_by_subsets_that_have_them(pack: Path) -> None:
    edit_manifest(pack, lambda fields: fields["layers"][1]["components"][4].update(blake3="0" * 64))
    assert [finding.file for finding in verify(pack).findings] == [LAYER]
    assert [finding.file for finding in verify(pack, Slice(1, 1)).findings] == [LAYER]
    assert all(verify(pack, Slice(part, 2)).ok for part in (1, 2))


def test_damage_to_the_trunk_is_found_by_exactly_one_slice(pack: Path) -> None:
    flip(pack / "trunk.safetensors", 500)
    found = [verify(pack, Slice(part, 6)).findings for part in range(1, 7)]
    assert [finding.file for findings in found for finding in findings] == ["trunk.safetensors"]


def test_a_share_reads_what_it_says(pack: Path) -> None:
    report = verify(pack, Share(Fraction(30), 1))
    read = report.bytes_checked - sum(
        (pack / name).stat().st_size for name in ("config.json", "digests.bin", "SHA256SUMS")
    )
    trunk = (pack / "trunk.safetensors").stat().st_size
    assert report.records_checked * STRIDE + (7 - report.records_checked) * trunk == read
    assert report.scope == "30% by seed 1"


def test_a_moved_record_and_dirty_padding_are_named_by_a_subset_too(pack: Path) -> None:
    content = bytearray((pack / LAYER).read_bytes())
    content[:STRIDE], content[STRIDE : 2 * STRIDE] = content[STRIDE : 2 * STRIDE], content[:STRIDE]
    content[3 * STRIDE - 1] = 1
    replace_file(pack / LAYER, content)
    assert [finding.sentence for finding in verify(pack, NO_WHOLE_LAYER).findings] == [
        f"{LAYER}: layer 1, expert 2, padding is not zero",
        f"{LAYER}: layer 1, expert 0 holds the record of layer 1, expert 1",
        f"{LAYER}: layer 1, expert 1 holds the record of layer 1, expert 0",
    ]


def test_without_record_digests_a_subset_claims_to_have_checked_none(pack: Path) -> None:
    flip(pack / "digests.bin", 0)
    report = verify(pack, NO_WHOLE_LAYER)
    assert [finding.file for finding in report.findings] == ["digests.bin"]
    assert report.records_checked == 0


def test_what_is_done_is_not_read_again(pack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flip(pack / LAYER, 5)
    ledger = Memory()
    first = verify(pack, ledger=ledger)
    monkeypatch.setattr(layers, "scan", lambda *_: pytest.fail("a layer was read"))
    second = verify(pack, ledger=ledger)
    assert second.findings == first.findings != []
    assert (first.bytes_earlier, second.bytes_earlier) == (0, first.bytes_checked)
    assert second.bytes_checked == first.bytes_checked
    assert second.records_checked == first.records_checked == LAYERS * EXPERTS


def test_a_file_that_was_written_since_is_read_again(pack: Path) -> None:
    ledger = Memory()
    assert verify(pack, ledger=ledger).ok
    flip(pack / LAYER, 5)
    assert [finding.layer for finding in verify(pack, ledger=ledger).findings] == [1]
    flip(pack / LAYER, 5)
    assert verify(pack, ledger=ledger).ok


def test_layers_are_read_again_when_record_digests_are_back(pack: Path) -> None:
    ledger, good = Memory(), (pack / "digests.bin").read_bytes()
    flip(pack / LAYER, 5)
    flip(pack / "digests.bin", 0)
    assert [finding.expert for finding in verify(pack, ledger=ledger).findings] == [None, None]
    replace_file(pack / "digests.bin", good)
    assert [finding.expert for finding in verify(pack, ledger=ledger).findings] == [0]


def test_what_could_not_be_read_is_tried_again(pack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise StorageError("the disk failed")

    ledger = Memory()
    with monkeypatch.context() as patched:
        patched.setattr(layers, "read_exactly", broken)
        assert {finding.kind for finding in verify(pack, ledger=ledger).findings} == {"unreadable"}
    assert verify(pack, ledger=ledger).ok


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("scope", [verifying.FULL, Slice(1, 2)])
def test_an_interrupt_at_any_file_loses_nothing_that_was_done(pack: Path, scope: Scope, threads: int) -> None:
    """Interrupted again and again, each time after one more file, it ends with what an undisturbed run finds."""
    flip(pack / LAYER, 2 * STRIDE)
    whole = verify(pack, scope)
    ledger = Interrupting()
    for _ in range(30):
        ledger.left = 1
        try:
            report = verify(pack, scope, threads, ledger=ledger)
            break
        except KeyboardInterrupt:
            continue
    assert report.findings == whole.findings
    assert (report.bytes_checked, report.records_checked) == (whole.bytes_checked, whole.records_checked)
    assert ledger.interrupts >= 3


class Interrupting(Memory):
    """A ledger that is interrupted once it was told of so many files."""

    def __init__(self) -> None:
        super().__init__()
        self.left = self.interrupts = 0
        self._lock = threading.Lock()

    def keep(self, file: str, done: Done) -> None:
        with self._lock:
            if self.left == 0:
                self.interrupts += 1
                raise KeyboardInterrupt
            self.left -= 1
            super().keep(file, done)


def test_an_interrupt_does_not_wait_for_whole_layers(pack: Path) -> None:
    """Other threads give up at their next record."""
    pace = Pace(rate=STRIDE * 2)

    class Impatient(Memory):
        def keep(self, file: str, done: Done) -> None:
            if file == "trunk.safetensors":
                pace.stop()

    start = time.monotonic()
    with pytest.raises(Stopped):
        verify(pack, threads=4, ledger=Impatient(), pace=pace)
    assert time.monotonic() - start < 4  # the whole would take ten seconds


def test_a_pace_is_kept(pack: Path) -> None:
    start = time.monotonic()
    report = verify(pack, pace=Pace(rate=1_000_000, keep_cached=False))
    seconds = time.monotonic() - start
    assert report.ok
    assert report.bytes_checked / 1_000_000 <= seconds < 10


LOWERED = """
import ctypes, json, os
from moepack.manifests.pace import lower_priority
words = lower_priority()
number = {"x86_64": 252, "aarch64": 31}.get(os.uname().machine)
print(json.dumps([words, os.nice(0), number and ctypes.CDLL(None).syscall(number, 1, 0) >> 13]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no priority of disks that we could set")
def test_priority_is_lowered_as_far_as_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    done = subprocess.run([sys.executable, "-c", LOWERED], capture_output=True, text=True, check=True)
    words, nice, disk = json.loads(done.stdout)
    assert words[0] == f"CPU nice {nice}" == "CPU nice 19"
    assert ("disk idle" in words) == (disk == 3)


def test_a_manifest_that_was_altered_is_an_error_in_every_scope(pack: Path) -> None:
    content = (pack / "manifest.json").read_bytes()
    replace_file(pack / "manifest.json", content.replace(b'"num_experts":5', b'"num_experts":6'))
    for scope in (Quick(), Slice(1, 2), verifying.FULL):
        with pytest.raises(MismatchError, match="was altered"):
            verify(pack, scope)
