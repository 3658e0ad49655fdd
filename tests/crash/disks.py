"""Real file systems that fill up, or whose power goes: ext4 in an image file, mounted over a loop device. Needs root.

The image of a mounted file system is what has reached the device; copied while the packer stands still at a call, it is
what a loss of power at that moment leaves, and mounting the copy replays ext4's journal as after one.
"""

import os
import random
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from calls import changes
from forgetful import State
from machine import Action, Fault
from promises import STORAGE, Case, Site, assert_promised, spaced

MEGABYTE = 1_000_000


def reason_for_none(folder: Path) -> str:
    """Why no file system can be mounted here, or nothing."""
    if os.geteuid() != 0:
        return "mounting a file system needs root"
    if shutil.which("mkfs.ext4") is None:
        return "there is no mkfs.ext4"
    try:
        with mounted(made(folder / "try.img", 8 * MEGABYTE), folder / "try"):
            return ""
    except subprocess.CalledProcessError as error:
        return f"no loop device can be mounted ({error.stderr.decode().strip()})"


def made(image: Path, size: int) -> Path:
    """An empty ext4 of that size, all of it usable."""
    image.unlink(missing_ok=True)
    with image.open("wb") as file:
        file.truncate(size)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", image], check=True, capture_output=True)
    return image


@contextmanager
def mounted(image: Path, folder: Path) -> Iterator[Path]:
    """The image's file system at `folder`."""
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-o", "loop", image, folder], check=True, capture_output=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True, capture_output=True)


def fill(path: Path, left: int) -> None:
    """Take all of a file system's room but `left` bytes."""
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"\1" * 4096)
        except OSError:
            pass
        os.fsync(file.fileno())
        file.truncate(max(0, file.tell() - left))


def full_disks(site: Site, root: Path, rounds: int = 10, seed: int = 3) -> int:
    """Disks of random sizes that something else fills while a build goes on, which then ends; how many."""
    chance, last = random.Random(seed), max(map(len, site.expected.values()))
    begins = next(call.number for call in site.calls if call.path.suffix == ".tmp")  # room was asked for before
    for _ in range(rounds):
        image = made(root / "full.img", chance.randint(8 * MEGABYTE, 16 * MEGABYTE))
        at = chance.randint(begins, len(changes(site.calls)) // 2)
        with mounted(image, root / "full") as folder, site.machine() as machine:
            case = Case(site, machine, folder / "case")
            case.folder.mkdir()
            stopped = case.build(Fault(Action.STOP, at))
            fill(folder / "filler", chance.randint(0, last // 8))
            run = case.machine.go_on(stopped)
            assert run.code == STORAGE, run
            assert "No space left on device" in run.sentence
            assert "make room and run the same command again" in run.sentence
            (folder / "filler").unlink()
            case.assert_ends_well(run)
    return rounds


def losses_of_power(site: Site, root: Path, share: float = 1) -> int:
    """At each call the disk stands still as it is; what is found there afterwards is gone on with."""
    lines, count = {call.number: call.data for call in site.calls if call.path.name == "journal.jsonl"}, 0
    synced = [call.number for call in changes(site.calls) if call.name == "fsync" and call.path.name == "journal.jsonl"]
    for at in spaced(len(changes(site.calls)), share):
        image = made(root / "power.img", 12 * MEGABYTE)
        with mounted(image, root / "power") as folder, site.machine() as machine:
            case = Case(site, machine, folder / "case")
            case.folder.mkdir()
            os.sync()
            stopped = case.build(Fault(Action.STOP, at))
            shutil.copyfile(image, root / "after.img")
            assert machine.go_on(stopped, signal.SIGKILL).killed
        with mounted(root / "after.img", root / "power") as folder, site.machine() as machine:
            case = Case(site, machine, folder / "case")
            promised = b"".join(data for number, data in lines.items() if any(number < when < at for when in synced))
            tree = {
                str(path.relative_to(case.folder)): path.read_bytes()
                for path in case.folder.rglob("*")
                if path.is_file()
            }
            assert_promised(site, State(at, "ext4", tree, tuple(promised.splitlines())))
            if not case.whole_or_absent():
                run = case.build()
                assert run.code == 0, run.err
            assert case.whole_or_absent()
        count += 1
    return count
