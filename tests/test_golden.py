"""The golden packs: every format version that we have written is still read, and today's packer writes it again.

tests/golden/README.md says what they are. FORMAT.md promises both (section 7, and W2 between machines and versions).
"""

import json
from hashlib import sha256
from importlib.metadata import version as library_version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden.checkpoint import write_checkpoint
from golden.keeping import ARCHIVE, CALIBRATION, FACTS, HERE, build_golden, logits, unpack
from tinypack import tree

from moepack.layout.formats import GridFormat, parse
from moepack.layout.reader import Pack
from moepack.manifests.manifest import pack_digest
from moepack.manifests.progress import Silent
from moepack.manifests.schema import FORMAT_VERSION
from moepack.manifests.verify import verify

VERSIONS = sorted(path.name for path in HERE.glob("v*"))
TODAY = HERE / f"v{FORMAT_VERSION}"


def facts(version: str) -> dict[str, Any]:
    """What was written down when the pack was made."""
    found: dict[str, Any] = json.loads((HERE / version / FACTS).read_text())
    return found


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def golden(version: str, tmp_path: Path) -> Path:
    unpack(HERE / version / ARCHIVE, tmp_path / "golden")
    return tmp_path / "golden"


def test_there_is_one_of_todays_version() -> None:
    assert TODAY.name in VERSIONS


def test_the_checkpoint_is_the_one_it_was_made_from(golden: Path, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "checkpoint")
    with Pack.open(golden) as pack:
        recorded = {file.name: file.sha256 for file in pack.manifest.source.files}
    written = sha256((tmp_path / "checkpoint/model.safetensors").read_bytes()).hexdigest()
    assert recorded == {"model.safetensors": written}


def test_it_verifies_and_has_its_digest(version: str, golden: Path) -> None:
    report = verify(golden, threads=2, progress=Silent())
    assert report.findings == []
    assert report.pack_digest == facts(version)["digest"]


def test_it_has_every_kind_of_format(golden: Path) -> None:
    with Pack.open(golden) as pack:
        formats = {name for layer in pack.manifest.layers for name in layer.formats.values()}
        kinds = {(isinstance(parse(name), GridFormat), name.startswith("book")) for name in formats}
        assert kinds == {(False, False), (True, False), (True, True)}
        recipe = pack.manifest.recipe
        assert {recipe.method} | {one.method for one in recipe.overrides or ()} == {"minmax", "mse", "imatrix", "gptq"}
        assert recipe.calibration


def test_it_runs(version: str, golden: Path) -> None:
    np.testing.assert_allclose(logits(golden), facts(version)["logits"], rtol=1e-4, atol=1e-4)


def test_todays_packer_writes_the_same_bytes(tmp_path: Path) -> None:
    """On any machine: a difference means that the format has changed, or the arithmetic, and neither was said."""
    write_checkpoint(tmp_path / "checkpoint")
    build_golden(tmp_path / "checkpoint", TODAY / CALIBRATION, tmp_path / "pack")
    unpack(TODAY / ARCHIVE, tmp_path / "golden")
    written, kept = tree(tmp_path / "pack"), tree(tmp_path / "golden")
    assert written.keys() == kept.keys()
    assert [name for name in kept if written[name] != kept[name]] == []
    assert pack_digest(tmp_path / "pack") == facts(TODAY.name)["digest"]


def test_a_pack_tells_nothing_of_where_and_with_what_it_was_made(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "checkpoint")
    build_golden(tmp_path / "checkpoint", TODAY / CALIBRATION, tmp_path / "pack")
    files = tree(tmp_path / "pack")
    assert not [name for name, content in files.items() if str(tmp_path).encode() in content]
    for library in ("moepack", "msgspec", "numpy", "zstandard"):
        assert library_version(library).encode() not in files["manifest.json"]
