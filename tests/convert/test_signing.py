"""Signatures: any change is found, by whoever holds the public key; the library's own program agrees with ours."""

import base64
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tinypack
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from keys import Keys, keys_in, written
from ran import Ran

from moepack.convert.bundle import MAX_BUNDLE_BYTES
from moepack.convert.signing import KeyFile, judge, sign
from moepack.manifests import digest
from moepack.manifests.errors import CorruptInputError, MismatchError, MoepackError, UnsupportedError
from moepack.manifests.manifest import read_manifest
from moepack.manifests.progress import Silent
from moepack.manifests.report import require_intact
from moepack.manifests.verify import verify

MODEL_SIGNING = Path(sys.executable).with_name("model_signing")
STEP = 97  # of payload bytes, one in so many is changed


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return keys_in(tmp_path_factory.mktemp("keys") / "ours")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, keys: Keys) -> Path:
    """A folder with a signed pack: `pack` and `pack.sig`."""
    folder = tmp_path_factory.mktemp("signed")
    tinypack.build(folder / "pack", tinypack.tiny_plan(tmp_path_factory.mktemp("checkpoint")))
    sign(folder / "pack", KeyFile(keys.private), folder / "pack.sig", threads=2, progress=Silent())
    return folder


@pytest.fixture
def signed(template: Path, tmp_path: Path) -> Path:
    """A copy of the pack, to change; its bundle is beside it."""
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)
    return tmp_path / "pack"


def problem(pack: Path, keys: Keys) -> MoepackError | None:
    """What `verify --signed-by` would end with."""
    try:
        judge(pack, pack.with_name("pack.sig"), KeyFile(keys.public))
        require_intact(verify(pack, threads=1, progress=Silent()), pack)
    except MoepackError as error:
        return error
    return None


def files_of(pack: Path) -> list[Path]:
    return sorted(path for path in pack.rglob("*") if path.is_file())


def changes(path: Path) -> Iterator[bytearray]:
    """The bytes of a file with one changed: each of a small file, samples of weights."""
    content = path.read_bytes()
    weights = path.parent.name == "experts" or path.name == "trunk.safetensors"
    for position in range(0, len(content), STEP if weights else 1):
        changed = bytearray(content)
        changed[position] ^= 1 << position % 8
        yield changed


def test_signed_and_unchanged(signed: Path, keys: Keys) -> None:
    assert problem(signed, keys) is None


def test_any_changed_byte_is_found(signed: Path, keys: Keys) -> None:
    tried = 0
    for path in files_of(signed):
        whole = path.read_bytes()
        for changed in changes(path):
            tinypack.replace_file(path, changed)
            tried += 1
            assert isinstance(problem(signed, keys), MoepackError), f"{path.name}, case {tried}"
        tinypack.replace_file(path, whole)
    assert tried > 5000
    assert problem(signed, keys) is None


def test_any_changed_byte_of_the_bundle_is_found_or_means_nothing(signed: Path, keys: Keys) -> None:
    """White space, and bits of base64 that stand for nothing, are not signed; all that is said is."""
    bundle = signed.with_name("pack.sig")
    whole = bundle.read_bytes()
    said = json.loads(whole)["dsseEnvelope"]
    for position in range(0, len(whole), 3):
        changed = bytearray(whole)
        changed[position] ^= 1
        tinypack.replace_file(bundle, changed)
        if problem(signed, keys) is None:
            now = json.loads(changed)["dsseEnvelope"]
            assert now["payload"] == said["payload"]
            assert base64.b64decode(now["signatures"][0]["sig"]) == base64.b64decode(said["signatures"][0]["sig"])


def resealed(pack: Path) -> None:
    """A change that the pack itself cannot tell: whoever makes it seals the manifest again."""
    tinypack.edit_manifest(pack, lambda fields: fields["source"].update(repository="other/model"))


def resealed_weights(pack: Path) -> None:
    config = pack / "config.json"
    tinypack.replace_file(config, config.read_bytes()[::-1])
    sums = pack / "SHA256SUMS"
    changed = digest.both_of_file(config)
    lines = [
        f"{changed.sha256}  config.json" if "config.json" in each else each for each in sums.read_text().split("\n")
    ]
    tinypack.replace_file(sums, "\n".join(lines).encode())
    new = {"config.json": changed.blake3, "SHA256SUMS": digest.of_file(sums)}

    def edit(fields: dict[str, Any]) -> None:
        for file in fields["files"]:
            file["blake3"] = new.get(file["name"], file["blake3"])

    tinypack.edit_manifest(pack, edit)
    read_manifest(pack)
    assert verify(pack, threads=1, progress=Silent()).ok


def swapped(pack: Path) -> None:
    one, other = sorted((pack / "experts").iterdir())[:2]
    first, second = one.read_bytes(), other.read_bytes()
    tinypack.replace_file(one, second)
    tinypack.replace_file(other, first)


def linked(pack: Path) -> None:
    config = pack / "config.json"
    config.rename(pack.with_name("elsewhere.json"))
    config.symlink_to(pack.with_name("elsewhere.json"))


def renamed(pack: Path) -> None:
    (pack / "config.json").rename(pack / "configuration.json")


CHANGES: dict[str, Callable[[Path], object]] = {
    "a file is added": lambda pack: (pack / "extra.txt").write_text(""),
    "a file is added that git ignores": lambda pack: (pack / ".gitattributes").write_text(""),
    "a folder is added": lambda pack: (pack / ".git").mkdir(),
    "a file is added beside layers": lambda pack: (pack / "experts/layer_99.bin").write_text(""),
    "a file is removed": lambda pack: (pack / "config.json").unlink(),
    "a layer is removed": lambda pack: (pack / "experts/layer_00.bin").unlink(),
    "the list of sums is removed": lambda pack: (pack / "SHA256SUMS").unlink(),
    "a file is renamed": renamed,
    "two layers are swapped": swapped,
    "a file is a link to its bytes": linked,
    "a file is longer": lambda pack: tinypack.replace_file(pack / "config.json", b"{} "),
    "a file is empty": lambda pack: tinypack.replace_file(pack / "config.json", b""),
    "the manifest is sealed again": resealed,
    "file, sums and manifest are made to agree": resealed_weights,
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_found(change: str, signed: Path, keys: Keys) -> None:
    CHANGES[change](signed)
    found = problem(signed, keys)
    assert found is not None
    assert found.exit_code in (1, 3)


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP521R1()], ids=lambda curve: curve.name)
def test_the_librarys_program_verifies_ours(
    curve: ec.EllipticCurve, signed: Path, tmp_path: Path, moe_pack: Callable[..., Ran]
) -> None:
    keys = keys_in(tmp_path / "other", curve)
    bundle = tmp_path / "bundle.json"
    assert moe_pack("sign", signed, "--key", keys.private, "--out", bundle).code == 0
    theirs = [MODEL_SIGNING, "verify", "key", signed, "--signature", bundle, "--public_key", keys.public]
    assert subprocess.run(theirs, capture_output=True).returncode == 0
    tinypack.replace_file(signed / "config.json", b"{}")
    assert subprocess.run(theirs, capture_output=True).returncode == 1


def test_we_verify_what_the_librarys_program_signed(
    signed: Path, keys: Keys, tmp_path: Path, moe_pack: Callable[..., Ran]
) -> None:
    bundle = tmp_path / "theirs.sig"
    theirs = [MODEL_SIGNING, "sign", "key", signed, "--signature", bundle, "--private_key", keys.private]
    subprocess.run(theirs, capture_output=True, check=True)
    ran = moe_pack("verify", signed, "--signed-by", keys.public, "--signature", bundle, "--json")
    assert ran.code == 0, ran.err
    said = json.loads(ran.out)
    assert said["ok"]
    assert said["signed"]["files"] == len(files_of(signed))


def test_a_quick_verification_judges_the_signature_too(signed: Path, keys: Keys, moe_pack: Callable[..., Ran]) -> None:
    assert moe_pack("verify", signed, "--quick", "--signed-by", keys.public).code == 0
    resealed(signed)
    moe_pack("verify", signed, "--quick", "--signed-by", keys.public).refused(1, "pack.sig", "manifest.json differs")


def test_another_key_is_told(signed: Path, tmp_path: Path, moe_pack: Callable[..., Ran]) -> None:
    other = keys_in(tmp_path / "other").public
    moe_pack("verify", signed, "--signed-by", other).refused(1, "pack.sig", other)


def test_a_bundle_of_another_pack_is_told(
    signed: Path, keys: Keys, tmp_path: Path, moe_pack: Callable[..., Ran]
) -> None:
    (tmp_path / "checkpoint").mkdir()
    tinypack.build(tmp_path / "other", tinypack.tiny_plan(tmp_path / "checkpoint"), seed=1)
    bundle = signed.with_name("pack.sig")
    refused = moe_pack("verify", tmp_path / "other", "--signed-by", keys.public, "--signature", bundle)
    refused.refused(1, bundle, "another pack")


def _edited(bundle: Path, edit: Callable[[dict[str, Any]], object]) -> bytes:
    fields = json.loads(bundle.read_bytes())
    edit(fields)
    return json.dumps(fields).encode()


def _with_statement(bundle: Path, **parts: Any) -> bytes:
    def edit(fields: dict[str, Any]) -> None:
        statement = json.loads(base64.b64decode(fields["dsseEnvelope"]["payload"])) | parts
        fields["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(statement).encode()).decode()

    return _edited(bundle, edit)


MALFORMED: dict[str, Callable[[Path], bytes]] = {
    "nothing": lambda _: b"",
    "no JSON": lambda _: b"\x00\xff" * 100,
    "another JSON": lambda _: b"[1, 2]",
    "deep": lambda _: b"[" * 200_000,
    "huge": lambda _: b" " * (MAX_BUNDLE_BYTES + 1),
    "half": lambda bundle: bundle.read_bytes()[: bundle.stat().st_size // 2],
    "no envelope": lambda bundle: _edited(bundle, lambda fields: fields.pop("dsseEnvelope")),
    "no signature": lambda bundle: _edited(bundle, lambda fields: fields["dsseEnvelope"].update(signatures=[])),
    "an empty signature": lambda bundle: _edited(bundle, lambda fields: fields["dsseEnvelope"].update(signatures=[{}])),
    "no base64": lambda bundle: _edited(bundle, lambda fields: fields["dsseEnvelope"].update(payload="?")),
    "no statement": lambda bundle: _edited(bundle, lambda fields: fields["dsseEnvelope"].update(payload="MQ==")),
    "no resources": lambda bundle: _with_statement(bundle, predicate={}),
    "another media type": lambda bundle: _edited(bundle, lambda fields: fields.update(mediaType="text/plain")),
    "no material": lambda bundle: _edited(bundle, lambda fields: fields.update(verificationMaterial={})),
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_a_malformed_bundle_is_refused(kind: str, signed: Path, keys: Keys, moe_pack: Callable[..., Ran]) -> None:
    bundle = signed.with_name("pack.sig")
    tinypack.replace_file(bundle, MALFORMED[kind](bundle))
    moe_pack("verify", signed, "--signed-by", keys.public).refused(3, bundle)


def test_a_statement_of_another_kind_is_not_supported(signed: Path, keys: Keys, moe_pack: Callable[..., Ran]) -> None:
    bundle = signed.with_name("pack.sig")
    tinypack.replace_file(bundle, _with_statement(bundle, predicateType="https://slsa.dev/provenance/v1"))
    moe_pack("verify", signed, "--signed-by", keys.public).refused(5, bundle)


def test_a_statement_that_was_changed_is_told(signed: Path, keys: Keys, moe_pack: Callable[..., Ran]) -> None:
    bundle = signed.with_name("pack.sig")
    tinypack.replace_file(bundle, _with_statement(bundle, extra=1))
    moe_pack("verify", signed, "--signed-by", keys.public).refused(1, bundle, "changed since")


def test_a_missing_bundle_is_told(signed: Path, keys: Keys, moe_pack: Callable[..., Ran]) -> None:
    signed.with_name("pack.sig").unlink()
    moe_pack("verify", signed, "--signed-by", keys.public).refused(3, "pack.sig", "missing")


@pytest.mark.parametrize("content", [b"", b"no key", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"])
def test_what_is_no_key_is_refused(content: bytes, signed: Path, tmp_path: Path, moe_pack: Callable[..., Ran]) -> None:
    key = tmp_path / "key.pem"
    key.write_bytes(content)
    moe_pack("sign", signed, "--key", key, "--out", tmp_path / "new.sig").refused(3, key)
    moe_pack("verify", signed, "--signed-by", key).refused(3, key)
    assert not (tmp_path / "new.sig").exists()


def test_a_key_that_is_not_there_is_a_mistake_of_the_request(
    signed: Path, tmp_path: Path, moe_pack: Callable[..., Ran]
) -> None:
    nothing = tmp_path / "no.pem"
    moe_pack("sign", signed, "--key", nothing, "--out", tmp_path / "new.sig").refused(2, nothing)
    moe_pack("verify", signed, "--signed-by", nothing).refused(2, nothing)


def test_a_key_of_another_kind_is_refused(signed: Path, tmp_path: Path, moe_pack: Callable[..., Ran]) -> None:
    keys = written(tmp_path, rsa.generate_private_key(65537, 2048))
    moe_pack("sign", signed, "--key", keys.private, "--out", tmp_path / "new.sig").refused(3, keys.private)
    moe_pack("verify", signed, "--signed-by", keys.public).refused(3, keys.public)


def test_a_damaged_pack_is_not_signed(signed: Path, keys: Keys, tmp_path: Path, moe_pack: Callable[..., Ran]) -> None:
    layer = signed / "experts/layer_01.bin"
    changed = bytearray(layer.read_bytes())
    changed[100] ^= 4
    tinypack.replace_file(layer, changed)
    out = tmp_path / "new.sig"
    moe_pack("sign", signed, "--key", keys.private, "--out", out).refused(1, "layer_01.bin", "nothing was signed")
    assert not out.exists()


def sealed_with_damage(pack: Path) -> None:
    layer = pack / "experts/layer_01.bin"
    changed = bytearray(layer.read_bytes())
    changed[100] ^= 4
    tinypack.replace_file(layer, changed)
    tinypack.seal_sums(pack)


def sealed_with_another_component(pack: Path) -> None:
    tinypack.edit_manifest(pack, lambda fields: fields["layers"][1]["components"][0].update(blake3="0" * 64))


@pytest.mark.parametrize("change", [sealed_with_damage, sealed_with_another_component])
def test_a_pack_that_contradicts_its_digests_is_not_signed(
    change: Callable[[Path], None], signed: Path, keys: Keys, tmp_path: Path, moe_pack: Callable[..., Ran]
) -> None:
    """Its SHA-256 all agree: only BLAKE3 in the manifest tells."""
    change(signed)
    out = tmp_path / "new.sig"
    moe_pack("sign", signed, "--key", keys.private, "--out", out).refused(1, "layer_01.bin", "nothing was signed")
    assert not out.exists()


def test_another_list_is_told_even_if_the_library_is_content(
    signed: Path, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    from model_signing import verifying

    resealed(signed)
    monkeypatch.setattr(verifying.Config, "verify", lambda *_: None)
    with pytest.raises(MismatchError, match=r"another pack than .*manifest\.json differs"):
        judge(signed, signed.with_name("pack.sig"), KeyFile(keys.public))


def test_a_bundle_may_not_lie_in_the_pack_nor_replace_one(
    signed: Path, keys: Keys, moe_pack: Callable[..., Ran]
) -> None:
    moe_pack("sign", signed, "--key", keys.private, "--out", signed / "pack.sig").refused(2, "lies in the pack")
    moe_pack("sign", signed, "--key", keys.private).refused(2, "pack.sig", "exists")


@pytest.mark.parametrize(
    "options",
    [
        ("sign", "PACK"),
        ("sign", "PACK", "--key", "k", "--sigstore"),
        ("verify", "PACK", "--signature", "s"),
        ("verify", "PACK", "--identity", "i"),
        ("verify", "PACK", "--issuer", "i"),
        ("verify", "PACK", "--signed-by", "k", "--identity", "i", "--issuer", "u"),
    ],
)
def test_options_that_do_not_go_together(options: tuple[str, ...], signed: Path, moe_pack: Callable[..., Ran]) -> None:
    moe_pack(*(signed if each == "PACK" else each for each in options)).refused(2)


def test_without_the_library_one_sentence(
    signed: Path, keys: Keys, moe_pack: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "model_signing", None)
    moe_pack("verify", signed, "--signed-by", keys.public).refused(5, "moepack[sign]")
    moe_pack("sign", signed, "--key", keys.private).refused(5, "moepack[sign]")
    with pytest.raises(UnsupportedError):
        judge(signed, signed.with_name("pack.sig"), KeyFile(keys.public))


def test_starting_does_not_import_the_library() -> None:
    check = "import moepack.convert.cli, sys; print('model_signing' in sys.modules, 'cryptography' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], capture_output=True, text=True).stdout.split() == ["False"] * 2


def test_a_list_with_a_file_twice_is_refused(signed: Path, keys: Keys) -> None:
    bundle = signed.with_name("pack.sig")
    statement = json.loads(base64.b64decode(json.loads(bundle.read_bytes())["dsseEnvelope"]["payload"]))
    predicate = statement["predicate"]
    predicate["resources"].append(predicate["resources"][0])
    tinypack.replace_file(bundle, _with_statement(bundle, predicate=predicate))
    with pytest.raises(CorruptInputError, match="twice"):
        judge(signed, bundle, KeyFile(keys.public))
