"""No single flipped bit goes unnoticed in a micro pack of one layer.

Through `verify`: every bit of manifest.json, SHA256SUMS, digests.bin, the trunk and a copied file; of the layer file
(two experts) every bit of the second expert's bytes at the edges of its components and its padding. Through
`layers.scan` and `layers.findings`, which are what `verify` does with a layer file once it is open: every bit of every
byte of a layer file of one expert (all of `verify` for each would take minutes).
"""

import dataclasses
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from tinypack import build, tiny_model, tiny_plan

from moepack.layout.plan import TensorSpec
from moepack.manifests import layers
from moepack.manifests.errors import CorruptInputError, MismatchError, UnsupportedError
from moepack.manifests.manifest import read_manifest
from moepack.manifests.places import Places
from moepack.manifests.progress import Silent
from moepack.manifests.schema import Manifest
from moepack.manifests.verify import verify

STRIDE = 16384
LAYER = "experts/layer_00.bin"


@pytest.fixture(scope="module")
def micro(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    folder = tmp_path_factory.mktemp("micro")
    plan = tiny_plan(folder, tiny_model(layers=1, experts=2))
    plan = dataclasses.replace(plan, trunk=(TensorSpec("a", "F32", (3,)),), trunk_formats={})
    manifest = build(folder / "pack", plan)
    for path in (folder / "pack").rglob("*.*"):
        path.chmod(0o644)
    return folder / "pack", manifest


@contextmanager
def flipped(descriptor: int, offset: int, bit: int) -> Iterator[None]:
    original = os.pread(descriptor, 1, offset)
    os.pwrite(descriptor, bytes([original[0] ^ 1 << bit]), offset)
    yield
    os.pwrite(descriptor, original, offset)


@contextmanager
def opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDWR)
    yield descriptor
    os.close(descriptor)


def culprit(pack: Path) -> str:
    """The file that verification blames."""
    try:
        found = verify(pack, threads=1, progress=Silent()).findings
    except (CorruptInputError, MismatchError, UnsupportedError) as error:
        return "manifest.json" if str(pack / "manifest.json") in str(error) else str(error)
    assert len({finding.file for finding in found}) == 1
    return found[0].file


@pytest.mark.parametrize("name", ["manifest.json", "SHA256SUMS", "digests.bin", "trunk.safetensors", "config.json"])
def test_every_bit_outside_the_layer_files(micro: tuple[Path, Manifest], name: str) -> None:
    pack, _ = micro
    with opened(pack / name) as descriptor:
        for offset in range((pack / name).stat().st_size):
            for bit in range(8):
                with flipped(descriptor, offset, bit):
                    assert culprit(pack) == name, (offset, bit)
    assert verify(pack, threads=1, progress=Silent()).ok


def test_every_bit_at_the_edges_of_components(micro: tuple[Path, Manifest]) -> None:
    pack, manifest = micro
    parts = manifest.layers[0].components
    edges = sorted({edge for part in parts for edge in (part.offset, part.offset + part.size - 1)} | {1408, STRIDE - 1})
    with opened(pack / LAYER) as descriptor:
        for offset in edges:
            for bit in range(8):
                with flipped(descriptor, STRIDE + offset, bit):
                    found = verify(pack, threads=1, progress=Silent()).findings
                expected = next(
                    (part.name for part in parts if part.offset <= offset < part.offset + part.size), "padding"
                )
                assert [(f.file, f.layer, f.expert, f.component) for f in found] == [(LAYER, 0, 1, expected)]


def test_every_bit_of_a_layer_file(tmp_path: Path) -> None:
    plan = tiny_plan(tmp_path, msgspec.structs.replace(tiny_model(layers=1, experts=1), num_experts_per_tok=1))
    layer, pack = build(tmp_path / "pack", plan).layers[0], tmp_path / "pack"
    places = Places((pack / "digests.bin").read_bytes(), 1)
    (pack / LAYER).chmod(0o644)
    with opened(pack / LAYER) as descriptor:
        for offset in range(STRIDE):
            part = next((c.name for c in layer.components if c.offset <= offset < c.offset + c.size), "padding")
            for bit in range(8):
                with flipped(descriptor, offset, bit):
                    scan = layers.scan(pack / LAYER, 0, layer, 1, lambda size: None, places)
                found = [(f.expert, f.component) for f in layers.findings(0, layer, scan, places)]
                assert found == [(0, part)], (offset, bit)
    assert verify(pack, threads=1, progress=Silent()).ok


def test_the_manifest_read_alone_is_as_strict(micro: tuple[Path, Manifest]) -> None:
    pack, manifest = micro
    assert read_manifest(pack) == manifest
    with opened(pack / "manifest.json") as descriptor, flipped(descriptor, 40, 0), pytest.raises(MismatchError):
        read_manifest(pack)
