"""What is done to a finished pack, under the faults that a build is put to: `repair`, `lock` and `sign`.

A pack under repair has, file by file, its damaged bytes or its good ones, and the same command mends it. A lock or a
bundle is absent or complete.
"""

import errno
import os
import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from calls import changes, read_log
from forgetful import read_tree, states, write_tree
from keys import Keys, keys_in
from machine import NONE, Action, Fault, Run
from promises import STORAGE, Case, Site, failures, files_of, kills, spaced
from tinypack import replace_file

DAMAGED = ("experts/layer_00.bin", "experts/layer_01.bin", "trunk.safetensors", "config.json", "SHA256SUMS")
LIBRARY = ("model_signing.signing", "model_signing.verifying", "sigstore.errors")  # what signing imports when it runs


@dataclass(frozen=True)
class Deed:
    """A command to be done once in a folder that `prepare` fills; `judge` says what must hold after each fault.

    `site` has the calls of an undisturbed run; `product` is what the command makes or changes there.
    """

    site: Site
    product: str
    prepare: Callable[[Path], None]
    command: Callable[[Path], tuple[object, ...]]
    judge: Callable[["Deed", Case, Run, Fault], None]

    def do(self, case: Case, fault: Fault = NONE, *, logged: bool = False) -> Run:
        """The command, always the same."""
        room = {"TMPDIR": str(case.folder / "tmp")}  # the library that signs writes to a name there
        return case.machine.run(*self.command(case.folder), fault=fault, logged=logged, environment=room)

    @property
    def ignored(self) -> set[int]:
        """Calls by which Python looks for a folder for temporary files: where one fails, it takes another."""
        return {call.number for call in self.site.calls if call.path.parent.name == "tmp" and call.name != "mkdir"}

    def undisturbed(self) -> "Deed":
        """The deed, with the calls that it makes."""
        found = []

        def case(case: Case) -> None:
            self.prepare(case.folder)
            run = self.do(case, logged=True)
            assert run.code == 0, run.err
            self.judge(self, case, run, NONE)
            found.extend(read_log(case.machine.log))

        self.site.each(case, ["undisturbed"])
        return replace(self, site=replace(self.site, calls=found))

    def one_fault_each(self, faults: Iterable[Fault]) -> int:
        """The command with each fault; how many."""

        def case(case: Case) -> None:
            fault = by_name[case.folder.name]
            self.prepare(case.folder)
            run = self.do(case, fault)
            if run.code and not run.killed:
                assert run.code == STORAGE, run
                assert run.sentence
            self.judge(self, case, run, fault)
            fills = fault.action == Action.FAIL_FROM_HERE and fault.error == errno.ENOSPC  # what follows needs no room
            assert run.code != 0 or fills or fault.action == Action.SHORT or fault.at in self.ignored, run

        by_name = {str(fault): fault for fault in faults}
        return self.site.each(case, by_name)


def _own(site: Site, name: str) -> Site:
    """The site's machines and its good pack, with a folder beside it."""
    folder = site.folder / f"{name}s"
    folder.mkdir()
    return replace(site, folder=folder, calls=[])


def _good(site: Site) -> Path:
    return site.folder / "undisturbed/pack"


# repair


def repair_deed(site: Site) -> Deed:
    """Two records, the trunk, a copied file and SHA256SUMS are damaged."""

    def prepare(folder: Path) -> None:
        shutil.copytree(_good(site), folder / "pack")
        for name in DAMAGED:
            content = bytearray((folder / "pack" / name).read_bytes())
            content[len(content) // 2] ^= 1
            replace_file(folder / "pack" / name, content)
            (folder / "pack" / name).chmod(0o444)

    def command(folder: Path) -> tuple[object, ...]:
        return ("repair", folder / "pack", "--source", site.source)

    return Deed(_own(site, "repair"), "pack", prepare, command, _judge_repair).undisturbed()


def _judge_repair(deed: Deed, case: Case, run: Run, fault: Fault) -> None:
    pack, good = case.target, case.site.expected
    assert_mended_or_as_before(pack, good)
    first = [call.number for call in deed.site.calls if call.name == "rename" and call.other.parent == pack]
    if first and fault.at <= min(first) and run.code:
        assert all(files_of(pack)[name] != good[name] for name in DAMAGED), "changed before all was made"
    assert run.code or files_of(pack) == good
    assert_is_mended_again(deed, case)


def assert_mended_or_as_before(pack: Path, good: dict[str, bytes]) -> None:
    """Each file has its good bytes, or all of them but the one that is damaged; nothing else is there."""
    found = files_of(pack)
    assert found.keys() == good.keys()
    for name, content in found.items():
        damaged = bytearray(good[name])
        damaged[len(damaged) // 2] ^= name in DAMAGED
        assert content in (good[name], bytes(damaged)), f"{name} is neither as it was nor mended"


def assert_is_mended_again(deed: Deed, case: Case) -> None:
    """The same command ends with the bytes of the undamaged pack, and leaves nothing beside it."""
    again = deed.do(case)
    assert again.code == 0, again.err
    assert files_of(case.target) == case.site.expected
    assert [path.name for path in case.folder.iterdir()] == ["pack"]
    assert {path.stat().st_mode & 0o777 for path in case.target.rglob("*") if path.is_file()} == {0o444}


def losses_of_power_in_repairs(deed: Deed, draws: int, share: float = 1) -> tuple[int, int]:
    """Mend again what a loss of power may leave of a repair; how many states were strict, and how many drawn."""
    found = []

    def logged(case: Case) -> None:
        deed.prepare(case.folder)
        tree = read_tree(case.folder)
        assert deed.do(case, logged=True).code == 0
        found.extend(states(case.folder, read_log(case.machine.log), draws, tree))

    deed.site.each(logged, ["logged"])
    chosen = [found[index - 1] for index in spaced(len(found), share)]
    by_name = {f"{state.kind}-{number}-after-{state.after}": state for number, state in enumerate(chosen)}

    def case(case: Case) -> None:
        case.folder.rmdir()
        write_tree(case.folder, by_name[case.folder.name].tree)
        assert_mended_or_as_before(case.target, case.site.expected)
        assert_is_mended_again(deed, case)

    deed.site.each(case, by_name)
    strict = sum(state.kind == "strict" for state in chosen)
    return strict, len(chosen) - strict


# lock and sign


def lock_deed(site: Site) -> Deed:
    """The lock of the good pack."""

    def command(folder: Path) -> tuple[object, ...]:
        return ("lock", site.source, "--pack", _good(site), "--out", folder / "lock.toml")

    def whole(case: Case) -> bool:
        return case.machine.run("verify", _good(site), "--quick", "--lock", case.folder / "lock.toml").code == 0

    return Deed(_own(site, "lock"), "lock.toml", _make_room, command, _judge_by(whole)).undisturbed()


def sign_deed(site: Site, root: Path) -> Deed:
    """A bundle of the good pack by a key of its own."""
    keys: Keys = keys_in(root / "keys")
    for _ in range(site.count):
        with site.machine() as machine:
            machine.warm(*LIBRARY)

    def command(folder: Path) -> tuple[object, ...]:
        return ("sign", _good(site), "--key", keys.private, "--out", folder / "pack.sig")

    def whole(case: Case) -> bool:
        judged = ("--quick", "--signed-by", keys.public, "--signature", case.folder / "pack.sig")
        return case.machine.run("verify", _good(site), *judged).code == 0

    return Deed(_own(site, "signature"), "pack.sig", _make_room, command, _judge_by(whole)).undisturbed()


def _make_room(folder: Path) -> None:
    (folder / "tmp").mkdir()


def _judge_by(whole: Callable[[Case], bool]) -> Callable[[Deed, Case, Run, Fault], None]:
    def judge(deed: Deed, case: Case, run: Run, fault: Fault) -> None:
        made = case.folder / deed.product
        if os.path.lexists(made):
            assert whole(case)
            kept = run.killed or run.code == 0 or "without the file" in run.sentence
            assert kept, "the same command refuses to replace it"
        else:
            assert run.code
            again = deed.do(case)
            assert again.code == 0, again.err
            assert whole(case)
        left = [path.name for path in case.folder.iterdir() if path.name not in ("tmp", deed.product)]
        dead = run.killed or (fault.action == Action.FAIL_FROM_HERE and fault.error == errno.EIO)  # it removes nothing
        assert not left or (dead and re.fullmatch(rf"{deed.product}\.[\d-]+\.tmp", *left)), left

    return judge


def all_faults(deed: Deed) -> str:
    """Every kill and every failure; how many there were of each."""
    killed, failed = deed.one_fault_each(kills(deed.site)), deed.one_fault_each(failures(deed.site))
    return f"{len(changes(deed.site.calls))} calls, {killed} kills, {failed} failures"
