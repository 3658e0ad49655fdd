"""A manifest that is replaced while a command runs: the digest that is told is of the one that was judged, or none."""

import json
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoints import CheckpointMaker, Variant
from keys import Keys, keys_in
from ran import Ran
from tinypack import edit_manifest, replace_file

from moepack.convert.signing import KeyFile, sign
from moepack.manifests import manifest
from moepack.manifests.manifest import pack_digest
from moepack.manifests.progress import Silent

MoePack = Callable[..., Ran]


@pytest.fixture
def source(make_checkpoint: CheckpointMaker) -> Path:
    return make_checkpoint(Variant())


@pytest.fixture
def replaced(pack: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Arms the change: another manifest, valid too, is there once the first was read, so many times if that is said.

    Gives the first's digest.
    """
    before, parse = (pack / "manifest.json").read_bytes(), manifest.parse_manifest
    edit_manifest(pack, lambda fields: fields["source"].update(repository="other/model"))
    after = (pack / "manifest.json").read_bytes()
    replace_file(pack / "manifest.json", before)

    seen: list[str] = []

    def replacing(content: bytes, file: str) -> manifest.Manifest:
        seen.append(file)
        if len(seen) >= last:
            replace_file(pack / "manifest.json", after)
        return parse(content, file)

    last = 1

    def arm(readings: int = 1) -> str:
        nonlocal last
        last = readings
        monkeypatch.setattr(manifest, "parse_manifest", replacing)
        return pack_digest(pack)

    return arm


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return keys_in(tmp_path / "keys")


@pytest.mark.parametrize(
    ("readings", "command"),
    [
        (1, ("verify", "PACK")),
        (1, ("verify", "PACK", "--quick")),
        (1, ("verify", "PACK", "--state", "OUT")),
        (1, ("verify", "PACK", "--lock", "LOCK")),
        (1, ("verify", "PACK", "--signed-by", "PUBLIC")),
        (1, ("scrub", "PACK")),
        (2, ("scrub", "PACK")),
        (1, ("repair", "PACK", "--source", "SOURCE")),
        (1, ("sign", "PACK", "--key", "PRIVATE", "--out", "OUT")),
        (2, ("sign", "PACK", "--key", "PRIVATE", "--out", "OUT")),
    ],
    ids=str,
)
def test_two_manifests_are_no_answer(
    readings: int,
    command: tuple[str, ...],
    source: Path,
    pack: Path,
    keys: Keys,
    tmp_path: Path,
    moe_pack: MoePack,
    replaced: Callable[..., str],
) -> None:
    lock, out = tmp_path / "pack.lock.toml", tmp_path / "out"
    assert moe_pack("lock", source, "--pack", pack, "--out", lock).code == 0
    sign(pack, KeyFile(keys.private), tmp_path / "pack.sig", threads=1, progress=Silent())
    words = {"PACK": pack, "SOURCE": source, "OUT": out, "LOCK": lock}
    words |= {"PRIVATE": keys.private, "PUBLIC": keys.public}
    replaced(readings)
    moe_pack(*(words.get(each, each) for each in command)).refused(1, pack / "manifest.json", "was replaced meanwhile")
    assert not out.exists()


def test_one_reading_tells_its_own_digest(
    source: Path, pack: Path, tmp_path: Path, moe_pack: MoePack, replaced: Callable[[], str]
) -> None:
    first = replaced()
    before = (pack / "manifest.json").read_bytes()

    def again(*command: object) -> Ran:
        replace_file(pack / "manifest.json", before)
        return moe_pack(*command)

    assert json.loads(again("reproduce", pack, "--source", source, "--json").out)["pack_digest"] == first
    shutil.copytree(pack, tmp_path / "other")
    assert json.loads(again("diff", pack, tmp_path / "other", "--json").out)["difference"]["digest_a"] == first
    assert again("lock", source, "--pack", pack, "--out", tmp_path / "lock.toml").code == 0
    assert tomllib.loads((tmp_path / "lock.toml").read_text())["pack"]["digest"] == first
    assert again("provenance", pack, "-o", tmp_path / "statement.json").code == 0
    subjects = json.loads((tmp_path / "statement.json").read_bytes())["subject"]
    assert [one["digest"]["blake3"] for one in subjects if one["name"] == "manifest.json"] == [first]
    assert pack_digest(pack) != first
