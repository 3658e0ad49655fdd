"""The injector sees what it claims to: a forked run makes the calls of an executed one, and strace counts the same."""

import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from calls import Call, changes, read_log
from machine import Action, Fault, build_injector, run_executed
from promises import Case, Site


def told(calls: list[Call], root: Path) -> list[tuple[str, str, str, int]]:
    """Calls without what differs between two processes."""
    names = [(call, str(call.path).replace(str(root), ""), str(call.other).replace(str(root), "")) for call in calls]
    return [(call.name, path, other, len(call.data) if "journal" not in path else -1) for call, path, other in names]


def test_a_forked_run_makes_the_calls_of_an_executed_one(site: Site, tmp_path: Path) -> None:
    injector, log = build_injector(tmp_path), tmp_path / "log"
    target = site.folder / "executed/pack"
    target.parent.mkdir()
    assert run_executed(injector, log, "build", site.source, target) == 0
    assert told(read_log(log), target.parent) == told(site.calls, site.folder / "undisturbed")


def test_strace_counts_the_same_calls(site: Site, tmp_path: Path) -> None:
    if shutil.which("strace") is None:
        pytest.skip("there is no strace here")
    target, trace = site.folder / "traced/pack", tmp_path / "trace"
    target.parent.mkdir()
    program = Path(sys.executable).with_name("moe-pack")
    watched = (
        "write,pwrite64,writev,pwritev,fsync,fdatasync,rename,renameat,renameat2,link,linkat,unlink,unlinkat,mkdir"
    )
    watched += ",mkdirat,rmdir,truncate,ftruncate,fchmod,fchmodat,chmod,flock,fallocate,sendfile,copy_file_range,msync"
    command = ["strace", "-f", "-y", "-o", trace, "-e", f"trace={watched}", program, "build", site.source, target]
    traced = subprocess.run(command, capture_output=True, text=True, check=False)
    if traced.returncode and "ptrace" in traced.stderr.lower():
        pytest.skip("processes may not be traced here")
    assert traced.returncode == 0, traced.stderr
    lines = [line for line in trace.read_text().splitlines() if "resumed>" not in line]
    ours = [line for line in lines if str(target.parent) in line and "<pipe:" not in line]  # printing is no change
    found = Counter(match[1] for line in ours if (match := re.match(r"\d+\s+(\w+)\(", line)))
    wanted = Counter(call.name for call in changes(site.calls) if call.name != "open")
    assert Counter({name.removesuffix("at"): count for name, count in found.items()}) == wanted


@pytest.mark.parametrize("action", [Action.KILL, Action.HALF])
def test_a_kill_comes_at_the_chosen_call(site: Site, action: Action) -> None:
    first = next(call for call in changes(site.calls) if call.name == "write" and len(call.data) > 1000)

    def case(case: Case) -> None:
        assert case.build(Fault(action, first.number), logged=True).killed
        logged = changes(read_log(case.machine.log))
        assert logged[-1].number == first.number - 1
        left = case.folder.rglob(f"{first.path.name}")
        assert [path.stat().st_size for path in left] == [0 if action == Action.KILL else len(first.data) // 2]

    site.each(case, [action.name])


def test_a_failing_call_is_told_as_its_error(site: Site) -> None:
    def case(case: Case) -> None:
        run = case.build(Fault(Action.FAIL, first.number, 28), logged=True)
        assert "No space left on device" in run.sentence
        assert [call.number for call in read_log(case.machine.log) if call.error] == [first.number]

    first = next(call for call in changes(site.calls) if call.name == "write" and len(call.data) > 1000)
    site.each(case, ["failing"])
