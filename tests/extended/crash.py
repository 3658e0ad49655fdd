"""Every fault at every system call of what writes packs, mends and vouches for them; losses of power, real disks.

Prints what was tried, by part.

The shares of it that `make test` runs are in tests/crash. Five to ten minutes on two cores; the disks need root.
`make crash PARTS=kills,power` runs some of the parts.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "crash"))

import disks
import mending
import promises
from calibrations import calibration_site
from calls import changes
from machine import reason_for_none
from promises import Site

MEMORY = Path("/dev/shm")
DRAWS = 20


def parts(site: Site, calibration: Site, root: Path) -> dict[str, Callable[[], str]]:
    """What can be run, by name."""
    return {
        "calls": lambda: f"{len(changes(site.calls))} of a build, {len(changes(calibration.calls))} of a calibration",
        "kills": lambda: f"{promises.one_fault_each(site, promises.kills(site))} before calls and within writes",
        "failures": lambda: f"{promises.one_fault_each(site, promises.failures(site))} of EIO, ENOSPC, short writes",
        "power": lambda: "{} strict states, {} drawn ones".format(*promises.losses_of_power(site, DRAWS)),
        "again": lambda: "{} strict and {} drawn in resumes".format(*promises.losses_of_power_in_resumes(site, 3, 0.1)),
        "random": lambda: f"{promises.random_kills(site, 200)} kills at random moments",
        "resumes": lambda: "{} builds, {} kills of resumes of resumes".format(*promises.kills_of_resumes(site, 40)),
        "packers": lambda: "{} pairs, {} times the second left at once".format(*promises.two_packers(site)),
        "calibration": lambda: (
            f"{promises.one_fault_each(calibration, promises.kills(calibration))} kills,"
            f" {promises.one_fault_each(calibration, promises.failures(calibration))} failures,"
            " {} strict and {} drawn states".format(*promises.losses_of_power(calibration, 5))
        ),
        "repair": lambda: _of_repairs(mending.repair_deed(site)),
        "lock": lambda: mending.all_faults(mending.lock_deed(site)),
        "sign": lambda: mending.all_faults(mending.sign_deed(site, root)),
        "full": lambda: _on_disks(root, lambda: f"{disks.full_disks(site, root)} ext4 disks that fill up"),
        "ext4": lambda: _on_disks(root, lambda: f"{disks.losses_of_power(site, root)} losses of power under ext4"),
    }


def _of_repairs(deed: mending.Deed) -> str:
    strict, drawn = mending.losses_of_power_in_repairs(deed, 5)
    return f"{mending.all_faults(deed)}; {strict} strict and {drawn} drawn states after a loss of power"


def _on_disks(root: Path, run: Callable[[], str]) -> str:
    reason = disks.reason_for_none(root)
    return f"not run: {reason}" if reason else run()


def main() -> None:
    if reason := reason_for_none():
        sys.exit(reason)
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="crash-")))
        memory = MEMORY if MEMORY.is_dir() else root
        source = promises.make_checkpoint(root / "checkpoint")
        folder = memory / f"crash-{os.getpid()}"
        site = stack.enter_context(promises.opened_site(root, source, folder))
        calibration = stack.enter_context(
            calibration_site(root, source, folder.with_name(f"{folder.name}-calibration"))
        )
        known = parts(site, calibration, root)
        for name in os.environ.get("PARTS", "").split(",") if os.environ.get("PARTS") else known:
            start = time.monotonic()
            print(f"{name:12} {known[name]()}, {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
