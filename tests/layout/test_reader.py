"""Opening a pack: what the manifest says of formats, trunk and files must be so. Covers FORMAT.md F1-F3, T1-T3, P2."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from tinypack import TRUNK, build, edit_manifest, replace_file, tiny_plan

from moepack.layout.plan import PackPlan, TensorSpec
from moepack.layout.reader import Pack
from moepack.layout.tensorheader import render
from moepack.manifests import digest
from moepack.manifests.errors import CorruptInputError, MismatchError, UnsupportedError, UsageError


@pytest.fixture
def plan(tmp_path: Path) -> PackPlan:
    return tiny_plan(tmp_path)


@pytest.fixture
def pack(tmp_path: Path, plan: PackPlan) -> Path:
    build(tmp_path / "pack", plan)
    return tmp_path / "pack"


def open_files() -> int:
    return len(list(Path("/dev/fd").iterdir()))


def refused(pack: Path, kind: type[Exception], sentence: str) -> None:
    before = open_files()
    with pytest.raises(kind, match=sentence):
        Pack.open(pack)
    assert open_files() == before, "a refused pack leaves no file open"


def test_unknown_formats_are_unsupported(pack: Path) -> None:
    """F1"""
    edit_manifest(pack, lambda m: m["layers"][1]["formats"].update(up="affine5-g32"))
    refused(pack, UnsupportedError, r"experts/layer_01.bin: no affine format .*|'affine5-g32' is not .* \(F1\)")


def test_groups_must_divide_the_inputs(pack: Path) -> None:
    """F2"""
    edit_manifest(pack, lambda m: m["layers"][0]["formats"].update(down="affine4-g128"))
    refused(pack, CorruptInputError, r"layer_00.bin: down has 32 inputs, which groups of 128 do not divide \(F2\)")


def test_component_sizes_must_follow_from_the_formats(pack: Path) -> None:
    """F3"""
    edit_manifest(pack, lambda m: m["layers"][1]["formats"].update(down="affine2-g32"))
    refused(pack, CorruptInputError, r"layer_01.bin: its components have other sizes than its formats give \(F3\)")


@pytest.mark.parametrize("name", ["book2-g8", "affine2-g32s", "affine3-g16s"])
def test_grid_formats_are_for_experts_only(pack: Path, name: str) -> None:
    """F1"""
    edit_manifest(pack, lambda m: m["trunk"]["formats"].update(lm_head=name))
    refused(pack, UnsupportedError, rf"trunk.safetensors: {name} is a format of experts, not of the trunk \(F1\)")


GRIDS = {"gate": "book2-g8", "up": "affine2-g16s", "down": "book3-g16"}


@pytest.fixture
def grid_pack(tmp_path: Path) -> Path:
    build(tmp_path / "grids", tiny_plan(tmp_path, formats=GRIDS))
    return tmp_path / "grids"


def test_rows_of_grids_must_fill_whole_words(grid_pack: Path) -> None:
    """F2"""
    edit_manifest(grid_pack, lambda m: m["model"].update(hidden_size=40))  # whole groups of 8, and half a word
    refused(grid_pack, CorruptInputError, r"layer_00.bin: gate has 40 inputs, which groups of 32 do not .* \(F2\)")


@pytest.mark.parametrize(
    ("projection", "name"),
    [
        ("gate", "book2-g16"),  # half as many grids
        ("gate", "affine2-g32"),  # biases where grids are
        ("up", "book3-g8"),  # as many bytes of grids, more of codes
        ("down", "affine3-g16s"),  # twice as many grids
    ],
)
def test_components_must_be_those_of_their_grid_format(grid_pack: Path, projection: str, name: str) -> None:
    """F3"""
    edit_manifest(grid_pack, lambda m: m["layers"][1]["formats"].update({projection: name}))
    refused(grid_pack, CorruptInputError, r"layer_01.bin: its components .* than its formats give \(F3\)")


def test_a_damaged_record_is_never_returned(pack: Path) -> None:
    """P3"""
    layer = pack / "experts/layer_01.bin"
    content = bytearray(layer.read_bytes())
    content[2 * 16384 + 77] ^= 8
    replace_file(layer, content)
    with Pack.open(pack) as opened:
        opened.read_record(1, 1)
        with pytest.raises(MismatchError, match=r"layer_01.bin: expert 2 \(bytes 32768\+16384\) is damaged.*\(P3\)"):
            opened.read_record(1, 2)


@pytest.mark.parametrize(("layer", "expert"), [(0, 3), (0, -1), (2, 0)])
def test_records_outside_the_model_do_not_exist(pack: Path, layer: int, expert: int) -> None:
    with Pack.open(pack) as opened, pytest.raises(IndexError):
        opened.address(layer, expert)


def test_altered_record_digests_are_a_mismatch(pack: Path) -> None:
    """P5"""
    content = bytearray((pack / "digests.bin").read_bytes())
    content[3] ^= 1
    replace_file(pack / "digests.bin", content)
    refused(pack, MismatchError, r"digests.bin was altered.*\(P5\)")


FILES = [
    "SHA256SUMS",
    "digests.bin",
    "trunk.safetensors",
    "experts/layer_00.bin",
    "experts/layer_01.bin",
    "config.json",
]


def make_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def make_link(path: Path) -> None:
    path.rename(path.parent / "elsewhere")
    path.symlink_to("elsewhere")


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (Path.unlink, "is missing"),
        (lambda path: replace_file(path, path.read_bytes()[:-1]), r"has \d+ bytes instead of \d+"),
        (lambda path: replace_file(path, path.read_bytes() + b"\0"), r"has \d+ bytes instead of \d+"),
        (make_link, "is a symbolic link, not a regular file"),
        (make_pipe, "is not a regular file"),
        (make_folder, "is not a regular file"),
    ],
    ids=["missing", "truncated", "extended", "link", "pipe", "folder"],
)
def test_every_file_must_be_there_whole(pack: Path, name: str, change: Callable[[Path], None], sentence: str) -> None:
    """P2"""
    change(pack / name)
    refused(pack, CorruptInputError, rf"{name} {sentence}; fetch or build the pack again \(P2\)")


def test_layer_files_behind_a_link_are_refused(pack: Path) -> None:
    """P2"""
    (pack / "experts").rename(pack.parent / "elsewhere")
    (pack / "experts").symlink_to("../elsewhere")
    refused(pack, CorruptInputError, r"layer_00.bin lies behind a symbolic link.*\(P2\)")


def replace_trunk(pack: Path, content: bytes) -> None:
    replace_file(pack / "trunk.safetensors", content)

    def relist(manifest: dict) -> None:
        entry = next(file for file in manifest["files"] if file["name"] == "trunk.safetensors")
        entry.update(size=len(content), blake3=digest.of_bytes(content).hex())

    edit_manifest(pack, relist)


def trunk_of(tensors: tuple[TensorSpec, ...]) -> bytes:
    return render(tensors) + b"\0" * sum(spec.size for spec in tensors)


def test_a_malformed_trunk_is_refused(pack: Path) -> None:
    """T1"""
    replace_trunk(pack, b"\xff" * 64)
    refused(pack, CorruptInputError, r"trunk.safetensors announces a header .* \(T1\)")


def test_a_trunk_of_float8_is_refused(pack: Path) -> None:
    """T1"""
    replace_trunk(pack, trunk_of((*TRUNK, TensorSpec("a", "F8_E4M3", (2,)))))
    refused(pack, CorruptInputError, r"trunk.safetensors: 'a' is F8_E4M3, which no trunk holds \(T1\)")


def test_trunk_tensors_must_be_aligned(pack: Path) -> None:
    """T2"""
    replace_trunk(pack, trunk_of((TensorSpec("a", "U8", (1,)), TensorSpec("b", "F32", (1,)), *TRUNK)))
    refused(pack, CorruptInputError, r"trunk.safetensors: 'b' at byte \d+ is not aligned \(T2\)")


WEIGHT, SCALES, BIASES = (spec for spec in TRUNK if spec.name.startswith("lm_head"))


@pytest.mark.parametrize(
    "parts",
    [
        (WEIGHT, SCALES),
        (SCALES, BIASES),
        (dataclasses.replace(WEIGHT, dtype="I32"), SCALES, BIASES),
        (dataclasses.replace(WEIGHT, shape=(5, 3)), SCALES, BIASES),
        (dataclasses.replace(WEIGHT, shape=(20,)), SCALES, BIASES),
        (WEIGHT, dataclasses.replace(SCALES, shape=(4, 1)), BIASES),
        (WEIGHT, dataclasses.replace(SCALES, dtype="F32"), BIASES),
        (WEIGHT, dataclasses.replace(SCALES, dtype="U16"), dataclasses.replace(BIASES, dtype="U16")),
    ],
)
def test_a_quantized_trunk_tensor_must_be_whole(pack: Path, parts: tuple[TensorSpec, ...]) -> None:
    """T3"""
    ordered = sorted(parts, key=lambda spec: spec.dtype not in ("U32", "I32", "F32"))
    replace_trunk(pack, trunk_of(tuple(ordered)))
    refused(pack, CorruptInputError, r"trunk.safetensors: 'lm_head' is not a whole affine4-g32 matrix \(T3\)")


def test_a_directory_that_is_no_pack_is_named(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", UsageError, "nowhere is not a pack: there is no such directory")
    refused(tmp_path, CorruptInputError, r"manifest.json is missing \(M1\)")
