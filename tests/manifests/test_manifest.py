"""Reading manifest.json from an untrusted directory. Covers FORMAT.md M1 to M5."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3
from tinypack import build, edit_manifest, replace_file, tiny_plan

from moepack.manifests import canonical
from moepack.manifests.errors import CorruptInputError, MismatchError, MoepackError, UnsupportedError
from moepack.manifests.manifest import pack_digest, read_manifest, seal


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    build(tmp_path / "pack", tiny_plan(tmp_path))
    return tmp_path / "pack"


def refused(pack: Path, kind: type[MoepackError], sentence: str) -> None:
    with pytest.raises(kind, match=sentence) as caught:
        read_manifest(pack)
    assert str(pack / "manifest.json") in str(caught.value)


def test_the_manifest_reads_back(pack: Path) -> None:
    manifest = read_manifest(pack)
    assert canonical.encode(manifest) == (pack / "manifest.json").read_bytes()
    assert seal(manifest) == manifest
    assert manifest.model.full_attention.rope_theta == 1e7


def test_the_packs_digest_is_that_of_the_manifests_bytes(pack: Path) -> None:
    assert pack_digest(pack) == blake3((pack / "manifest.json").read_bytes()).hexdigest()


NOT_JSON = {
    "empty": b"",
    "cut off": b'{"format":"moepack"',
    "bad UTF-8": b'{"format":"\xff"}',
    "byte order mark": b'\xef\xbb\xbf{"format":"moepack"}',
    "NaN": b'{"format":NaN}',
    "Infinity": b'{"format":-Infinity}',
    "duplicate key": b'{"format":"moepack","format":"moepack"}',
    "duplicate key inside": b'{"model":{"a":1,"a":1}}',
    "deep nesting": b'{"format":' + b"[" * 65 + b"]" * 65 + b"}",
    "too many values": b'{"format":' + b"[" * 2**17 + b"}",
    "number beyond all floats": b'{"version":1e999}',
    "half of a surrogate pair": b'{"format":"\\ud800"}',
    "number of 10,000 digits": b'{"version":' + b"9" * 10_000 + b"}",
}


@pytest.mark.parametrize("case", NOT_JSON)
def test_what_is_not_strict_json_is_refused(pack: Path, case: str) -> None:
    """M1"""
    replace_file(pack / "manifest.json", NOT_JSON[case])
    refused(pack, CorruptInputError, r"manifest.json (is not acceptable JSON: .*|has more than 131072 values) \(M1\)")


def test_a_manifest_too_large_is_refused_before_it_is_read(pack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """M1"""
    os.truncate(replace(pack), 4 * 1024 * 1024 + 1)
    for read in ("pread", "preadv", "read"):
        monkeypatch.setattr(os, read, None)
    refused(pack, CorruptInputError, r"has 4194305 bytes; at most 4194304 are allowed \(M1\)")


def replace(pack: Path) -> Path:
    replace_file(pack / "manifest.json", b"")
    return pack / "manifest.json"


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda path: None, "is missing"),
        (lambda path: path.symlink_to("elsewhere"), "is a symbolic link, not a regular file"),
        (os.mkfifo, "is not a regular file"),
        (Path.mkdir, "is not a regular file"),
    ],
    ids=["missing", "link", "pipe", "folder"],
)
def test_what_is_no_regular_file_is_refused(pack: Path, make: Callable[[Path], None], sentence: str) -> None:
    """M1"""
    (pack / "manifest.json").rename(pack / "elsewhere")
    make(pack / "manifest.json")
    refused(pack, CorruptInputError, rf"manifest.json {sentence} \(M1\)")


def test_other_renderings_of_the_same_json_are_refused(pack: Path) -> None:
    """M2"""
    fields = json.loads((pack / "manifest.json").read_bytes())
    for rendering in (json.dumps(fields), json.dumps(fields, sort_keys=True, indent=1)):
        replace_file(pack / "manifest.json", rendering.encode())
        refused(pack, CorruptInputError, r"is not canonical JSON .* \(M2\)")


@pytest.mark.parametrize("text", [b'{"a":9007199254740993}', b'{"a":1.0}', b"{} "])
def test_what_has_no_canonical_rendering_is_refused(pack: Path, text: bytes) -> None:
    """M2"""
    replace_file(pack / "manifest.json", text)
    refused(pack, CorruptInputError, r"is not canonical JSON.* \(M2\)")


def set_at(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """An edit that sets the field at a dotted path; numbers index lists."""
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]

    def edit(fields: Any) -> None:
        for part in parents:
            fields = fields[part]
        fields[last] = value

    return edit


WRONG_FIELDS = [
    ("format", "other", "is not the manifest of a pack"),
    ("version", "1", r"\$.version"),
    ("version", True, r"\$.version"),
    ("extra", 1, "unknown field `extra`"),
    ("model.extra", 1, "unknown field `extra`"),
    ("layers.0.extra", 1, "unknown field `extra`"),
    ("requires", "nothing", r"\$.requires"),
    ("model.hidden_size", "32", r"\$.model.hidden_size"),
    ("model.hidden_size", 0, r"\$.model.hidden_size"),
    ("model.hidden_size", 2**31, r"\$.model.hidden_size"),
    ("model.hidden_size", 32.5, r"\$.model.hidden_size"),
    ("model.num_experts", 65537, r"\$.model.num_experts"),
    ("model.layer_types", [], r"\$.model.layer_types"),
    ("model.layer_types.0", "mamba", r"\$.model.layer_types"),
    ("model.tie_word_embeddings", 1, r"\$.model.tie_word_embeddings"),
    ("model.full_attention", None, r"\$.model.full_attention"),
    ("layers", {}, r"\$.layers"),
    ("layers.0.stride", -16384, r"\$.layers"),
    ("layers.0.stride", 1e300, r"\$.layers"),
    ("layers.0.formats.side", "affine2-g64", r"\$.layers"),
    ("layers.0.file", "x" * 129, r"\$.layers"),
    ("layers.0.components.0.blake3", "AB" * 32, r"\$.layers"),
    ("layers.0.components.0.blake3", "ab" * 32 + "\n", r"\$.layers"),
    ("files.0.size", -1, r"\$.files"),
    ("files.0.name", 5, r"\$.files"),
    ("files.0.name", None, r"\$.files"),
    ("source.dialect", "gguf", r"\$.source.dialect"),
]


@pytest.mark.parametrize(("path", "value", "sentence"), WRONG_FIELDS)
def test_fields_of_other_names_types_or_bounds_are_refused(pack: Path, path: str, value: Any, sentence: str) -> None:
    """M3"""
    edit_manifest(pack, set_at(path, value))
    refused(pack, CorruptInputError, rf"{sentence}.*\(M3\)")


@pytest.mark.parametrize(
    "field", ["version", "requires", "model", "source", "recipe", "layers", "trunk", "digests", "files"]
)
def test_missing_fields_are_refused(pack: Path, field: str) -> None:
    """M3"""
    edit_manifest(pack, lambda fields: fields.pop(field))
    refused(pack, CorruptInputError, rf"missing required field `{field}` \(M3\)")


def test_a_manifest_that_is_no_object_is_refused(pack: Path) -> None:
    """M3"""
    replace_file(pack / "manifest.json", b"[]")
    refused(pack, CorruptInputError, r"is not the manifest of a pack \(M3\)")


def test_another_version_is_unsupported(pack: Path) -> None:
    """M4"""
    edit_manifest(pack, set_at("version", 2))
    refused(pack, UnsupportedError, r"has version 2; this moepack reads version 1 \(M4\)")


def test_an_unknown_requirement_is_unsupported(pack: Path) -> None:
    """M4"""
    edit_manifest(pack, set_at("requires", ["sparse-records", "x"]))
    refused(pack, UnsupportedError, r"requires 'sparse-records', 'x'; use a newer moepack \(M4\)")


def test_an_altered_manifest_is_a_mismatch(pack: Path) -> None:
    """M5"""
    content = (pack / "manifest.json").read_bytes()
    replace_file(pack / "manifest.json", content.replace(b'"num_experts_per_tok":2', b'"num_experts_per_tok":1'))
    refused(pack, MismatchError, r"was altered: its checksum does not belong to its contents \(M5\)")


def test_a_missing_checksum_is_a_mismatch(pack: Path) -> None:
    """M5"""
    fields = json.loads((pack / "manifest.json").read_bytes())
    del fields["checksum"]
    replace_file(pack / "manifest.json", canonical.encode(fields))
    refused(pack, MismatchError, r"\(M5\)")
