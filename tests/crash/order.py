"""The order in which a pack is written, checked in the log of a build: FORMAT.md W1, call by call."""

import os
from dataclasses import dataclass
from pathlib import Path

from calls import LOOK, Call

JOURNAL = "journal.jsonl"
PUBLISHED_MODE = 0o444


@dataclass(frozen=True)
class Publication:
    """The calls that gave one file its name, and the one after them."""

    path: Path
    calls: list[Call]
    then: Call | None


def publications(calls: list[Call]) -> list[Publication]:
    """Of every file that got its name by a rename, in order."""
    counted = [call for call in calls if call.name != LOOK]
    found = []
    for position, call in enumerate(counted):
        if call.name == "rename" and call.path.name.endswith(".tmp"):
            begin = max(at for at in range(position) if counted[at].creates and counted[at].path == call.path)
            after = counted[position + 2] if position + 2 < len(counted) else None
            found.append(Publication(call.other, counted[begin : position + 2], after))
    return found


def check_publication(publication: Publication) -> None:
    """Create, write, make read-only, sync, rename, sync the directory: these and nothing between."""
    created, *writes, mode, synced, renamed, folder = publication.calls
    temporary = publication.path.with_name(publication.path.name + ".tmp")
    assert created.creates
    assert created.flags & os.O_NOFOLLOW
    assert writes
    assert all(call.name == "write" and call.path == temporary for call in writes)
    assert (synced.name, synced.path) == ("fsync", temporary)
    assert (renamed.path, renamed.other) == (temporary, publication.path)
    assert (folder.name, folder.path) == ("fsync", publication.path.parent)
    assert mode.name == "fchmod"
    assert mode.flags == (PUBLISHED_MODE if JOURNAL not in publication.path.name else 0o644)


def check_build(calls: list[Call], target: Path) -> int:
    """Everything about the order of a whole build; how many files were published."""
    partial = target.with_name(f"{target.name}.partial")
    assert all(call.done for call in calls), "an undisturbed build has no failing call"
    assert {_folder(path, target, partial) for call in calls for path in (call.path, call.other) if path.name} == {
        target.parent
    }
    found = publications(calls)
    for publication in found:
        check_publication(publication)
    _check_journal(found, partial)
    _check_end(calls, found, target, partial)
    _check_nothing_is_opened_again(calls)
    return len(found)


def _folder(path: Path, target: Path, partial: Path) -> Path:
    """What a call was about: the target's folder, or something else that no build may touch."""
    mine = path in (target.parent, target, partial) or partial in path.parents or path.name.startswith(partial.name)
    return target.parent if mine else path


def _check_journal(found: list[Publication], partial: Path) -> None:
    units = [one for one in found if one.path.parent.name == "experts" or one.path.name == "trunk.safetensors"]
    assert len(units) > 1
    for unit in units:
        line = unit.then
        assert line is not None
        assert (line.name, line.path) == ("write", partial / JOURNAL)


def _check_end(calls: list[Call], found: list[Publication], target: Path, partial: Path) -> None:
    """The manifest is the pack's last file; the directory's name its last but for what the journal leaves."""
    *_, manifest, aside = found
    assert manifest.path == partial / "manifest.json"
    assert aside.path == target.with_name(f"{partial.name}.{JOURNAL}")
    last = [call for call in calls if call.name != LOOK][aside.calls[-1].number :]
    assert [(call.name, call.path) for call in last] == [
        ("unlink", partial / JOURNAL),
        ("fsync", partial),
        ("rename", partial),
        ("fsync", target.parent),
        ("unlink", aside.path),
    ]
    assert last[2].other == target


def _check_nothing_is_opened_again(calls: list[Call]) -> None:
    """No file is opened for writing once it has its name, but for the journal; and none is written under its name."""
    for call in calls:
        if call.name == "open":
            assert call.path.name.endswith(".tmp") or call.path.name == JOURNAL, call
        if call.name in ("write", "ftruncate"):
            assert call.path.name.endswith(".tmp") or call.path.name == JOURNAL, call
        assert call.name != "chmod", call
    opened = [call.path for call in calls if call.name == "open"]
    assert len(opened) == len(set(opened))
