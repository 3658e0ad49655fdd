"""The state of a verification in a file: durable, of one pack and one scope, gone when the work is done."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tinypack import build, replace_file, tiny_model, tiny_plan

from moepack.layout.checking import check
from moepack.manifests import layers
from moepack.manifests.errors import CorruptInputError, StorageError, UsageError
from moepack.manifests.files import FilePlace
from moepack.manifests.progress import Silent
from moepack.manifests.report import Finding, Report
from moepack.manifests.scope import Quick, Scope, Slice
from moepack.manifests.verify import FULL


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    build(tmp_path / "pack", tiny_plan(tmp_path, tiny_model(4, 3)))
    return tmp_path / "pack"


def checked(pack: Path, state: Path, scope: Scope = FULL) -> Report:
    return check(pack, threads=2, progress=Silent(), scope=scope, state=state)


@pytest.fixture
def begun(pack: Path, tmp_path: Path) -> Path:
    interrupted(pack, tmp_path / "state")
    return tmp_path / "state"


def interrupted(pack: Path, state: Path) -> None:
    """A check that is interrupted at layer 2."""
    whole = layers.scan

    def scan(place: FilePlace, *rest: Any) -> Any:
        if str(place).endswith("layer_02.bin"):
            raise KeyboardInterrupt
        return whole(place, *rest)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(layers, "scan", scan)
        with pytest.raises(KeyboardInterrupt):
            check(pack, threads=1, progress=Silent(), state=state)


def test_an_interrupted_check_goes_on_from_its_file(pack: Path, begun: Path) -> None:
    undisturbed = checked(pack, begun.with_name("other"))
    report = checked(pack, begun)
    assert report.ok
    assert (report.bytes_checked, report.records_checked) == (undisturbed.bytes_checked, 12)
    layer = 3 * 16384
    assert undisturbed.bytes_checked - report.bytes_earlier in (layer, 2 * layer)  # the last may have begun already
    assert not begun.exists()


def test_findings_of_the_interrupted_run_are_told_by_the_next(pack: Path, tmp_path: Path) -> None:
    content = bytearray((pack / "experts/layer_00.bin").read_bytes())
    content[5] ^= 1
    replace_file(pack / "experts/layer_00.bin", content)
    interrupted(pack, tmp_path / "state")
    assert b"is damaged" in (tmp_path / "state").read_bytes()
    report = checked(pack, tmp_path / "state")
    assert report.findings == [Finding("experts/layer_00.bin", "is damaged", 0, 0, "gate.weight")]
    assert report.bytes_earlier > 0
    assert not (tmp_path / "state").exists()


def test_the_state_of_another_pack_is_refused(pack: Path, begun: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    build(tmp_path / "other", tiny_plan(tmp_path / "elsewhere", tiny_model(4, 3)), seed=1)
    before = begun.read_bytes()
    with pytest.raises(UsageError, match="state is of another pack"):
        checked(tmp_path / "other", begun)
    assert begun.read_bytes() == before


def test_the_state_of_another_scope_is_refused(pack: Path, begun: Path) -> None:
    for scope in (Quick(), Slice(1, 2)):
        with pytest.raises(UsageError, match=f"is of a check of full, not of {scope.name}"):
            checked(pack, begun, scope)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\xff", b'{"pack_digest": 1, "scope": "", "done": {}}'])
def test_what_is_no_state_is_refused_and_kept(pack: Path, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "state").write_bytes(content)
    with pytest.raises(UsageError, match="state is not the state of a verification"):
        checked(pack, tmp_path / "state")
    assert (tmp_path / "state").read_bytes() == content


def test_a_directory_or_a_link_is_no_state(pack: Path, tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("directory", "link"):
        with pytest.raises(UsageError, match=f"{name} is not the state"):
            checked(pack, tmp_path / name)


def test_nothing_is_kept_in_the_pack(pack: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(pack)
    for place in (pack / "state", pack / "experts" / "state", tmp_path / "link" / "state"):
        with pytest.raises(UsageError, match="lies in the pack"):
            checked(pack, place)
    with pytest.raises(UsageError, match="is not a folder"):
        checked(pack, tmp_path / "no" / "state")


def test_a_pack_that_is_none_leaves_no_state(tmp_path: Path) -> None:
    with pytest.raises(CorruptInputError):
        checked(tmp_path, tmp_path.parent / "state")
    assert not (tmp_path.parent / "state").exists()


def test_a_state_touches_nobody_elses_file_and_several_runs_may_share_it(pack: Path, tmp_path: Path) -> None:
    state, theirs = tmp_path / "state", tmp_path / "state.tmp"
    theirs.write_text("precious")
    with ThreadPoolExecutor(4) as runs:
        assert all(report.ok for report in runs.map(lambda _: checked(pack, state), range(12)))
    assert theirs.read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith("state")) == ["state.tmp"]


def test_a_folder_that_may_not_be_written_into_is_told_before_the_work(
    pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    with pytest.raises(StorageError, match="may not be written into; keep the state elsewhere, with --state FILE"):
        checked(pack, tmp_path / "state")
