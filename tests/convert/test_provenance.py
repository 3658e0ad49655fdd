"""Provenance: in-toto's and SLSA's own definitions take it, and it says what the pack does, and no time by itself."""

import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from checkpoints import CheckpointMaker, Variant
from google.protobuf import json_format
from in_toto_attestation.predicates.provenance.v1.provenance_pb2 import Provenance
from in_toto_attestation.v1.statement import Statement
from in_toto_attestation.v1.statement_pb2 import Statement as StatementMessage
from ran import Ran
from tinypack import replace_file

from moepack.manifests import digest
from moepack.manifests.manifest import pack_digest, read_manifest

MoePack = Callable[..., Ran]


def stated(pack: Path, moe_pack: MoePack, *options: object) -> dict[str, Any]:
    out = pack.with_name("statement.json")
    out.unlink(missing_ok=True)
    ran = moe_pack("provenance", pack, "-o", out, *options)
    assert ran.code == 0, ran.err
    found: dict[str, Any] = json.loads(out.read_bytes())
    return found


def test_the_published_definitions_take_it(pack: Path, moe_pack: MoePack) -> None:
    found = stated(pack, moe_pack, "--builder", "https://example.org/ci", "--invocation", "https://example.org/ci/7")
    message = json_format.ParseDict(found, StatementMessage())  # which refuses fields that in-toto does not know
    Statement.copy_from_pb(message).validate()
    predicate = json_format.ParseDict(found["predicate"], Provenance())  # as this refuses those that SLSA does not
    assert predicate.build_definition.build_type == "moepack:build/v1"
    assert predicate.build_definition.resolved_dependencies[0].digest["sha256"]
    details = found["predicate"]["runDetails"]
    assert set(details) == {"builder", "metadata"}
    assert details["builder"]["id"] == "https://example.org/ci"
    assert details["metadata"] == {"invocationId": "https://example.org/ci/7"}
    assert all(isinstance(each, str) for each in details["builder"]["version"].values())


def test_every_file_is_named_by_its_digests(pack: Path, moe_pack: MoePack) -> None:
    subjects = {each["name"]: each["digest"] for each in stated(pack, moe_pack)["subject"]}
    files = {str(path.relative_to(pack)): path for path in pack.rglob("*") if path.is_file()}
    assert set(subjects) == set(files)
    for name, path in files.items():
        assert subjects[name]["sha256"] == sha256(path.read_bytes()).hexdigest()
        assert subjects[name].get("blake3", digest.of_file(path)) == digest.of_file(path)
    assert subjects["manifest.json"]["blake3"] == pack_digest(pack)


def test_sources_and_recipe_are_the_manifests(pack: Path, moe_pack: MoePack, make_checkpoint: CheckpointMaker) -> None:
    definition = stated(pack, moe_pack)["predicate"]["buildDefinition"]
    weights = make_checkpoint(Variant()) / "model.safetensors"
    assert definition["resolvedDependencies"] == [
        {"name": weights.name, "digest": {"sha256": sha256(weights.read_bytes()).hexdigest()}}
    ]
    recipe = read_manifest(pack).recipe
    assert definition["externalParameters"]["recipe"]["expert_format"] == recipe.expert_format
    assert definition["internalParameters"] == {"formatVersion": 1, "arithmetic": recipe.arithmetic}


def test_only_source_date_epoch_gives_a_time(pack: Path, moe_pack: MoePack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    once = stated(pack, moe_pack)
    assert "metadata" not in once["predicate"]["runDetails"]
    assert once == stated(pack, moe_pack)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    run = stated(pack, moe_pack)["predicate"]["runDetails"]
    assert run["metadata"] == {"finishedOn": "2023-11-14T22:13:20Z"}


@pytest.mark.parametrize("epoch", ["", "now", "1e3", "9" * 40])
def test_a_time_that_is_none_is_refused(
    epoch: str, pack: Path, moe_pack: MoePack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", epoch)
    out = pack.with_name("statement.json")
    moe_pack("provenance", pack, "-o", out).refused(2, "SOURCE_DATE_EPOCH")
    assert not out.exists()


def test_a_damaged_pack_gets_none(pack: Path, moe_pack: MoePack) -> None:
    out = pack.with_name("statement.json")
    sums = pack / "SHA256SUMS"
    replace_file(sums, sums.read_bytes().replace(b"0", b"1", 1))
    moe_pack("provenance", pack, "-o", out).refused(1, sums)
    sums.unlink()
    moe_pack("provenance", pack, "-o", out).refused(3, sums)
    assert not out.exists()


def test_a_statement_is_not_written_over(pack: Path, moe_pack: MoePack) -> None:
    stated(pack, moe_pack)
    moe_pack("provenance", pack, "-o", pack.with_name("statement.json")).refused(2, "exists")
    moe_pack("provenance", pack, "-o", pack / "statement.json").refused(2, "lies in the pack")
