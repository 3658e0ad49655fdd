"""moe-pack build --calibration: every matrix is quantized by its own statistics, and nothing else decides the bytes."""

import json
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from calibrating import calibrated, windows_of
from checkpoints import TINY, CheckpointMaker, Shape, Variant
from ran import Ran

from moepack.convert.calibration.file import CalibrationFile
from moepack.convert.checkpoint import Checkpoint
from moepack.convert.plan import understand
from moepack.convert.tensors import Scratch
from moepack.layout.formats import parse
from moepack.layout.reader import Pack
from moepack.layout.record import PROJECTIONS
from moepack.layout.writer import PackWriter
from moepack.manifests.digest import of_file
from moepack.manifests.errors import StorageError
from moepack.manifests.manifest import pack_digest
from moepack.quantize.grids import Matrix
from moepack.quantize.methods import CALIBRATED_METHODS, choose_by_feedback, quantize

FORMATS = ("affine2-g64", "book2-g8")
VARIANTS = {"bf16": Variant(TINY), "mlx 4-bit": Variant(TINY, dialect="mlx", bits=4)}


@pytest.fixture(scope="module")
def calibrations(make_checkpoint: CheckpointMaker, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("calibrations")
    for name, variant in VARIANTS.items():
        calibrated(make_checkpoint(variant), folder / f"{name}.moecal", windows_of(TINY))
    return {name: folder / f"{name}.moecal" for name in VARIANTS}


@pytest.fixture
def source(make_checkpoint: CheckpointMaker) -> Path:
    return make_checkpoint(VARIANTS["bf16"])


@pytest.fixture
def calibration(calibrations: dict[str, Path]) -> Path:
    return calibrations["bf16"]


def parts(matrix: Matrix) -> bytes:
    names = [name for name, _, _ in matrix.format.parts(*matrix.shape)]
    arrays = {"weight": matrix.codes, **{name: getattr(matrix, name) for name in names[1:]}}
    return b"".join(np.ascontiguousarray(arrays[name]).tobytes() for name in names)


@pytest.mark.parametrize("method", CALIBRATED_METHODS)
@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_matrix_is_quantized_by_its_own_statistics(
    moe_pack: Callable[..., Ran],
    make_checkpoint: CheckpointMaker,
    calibrations: dict[str, Path],
    tmp_path: Path,
    variant: str,
    format_: str,
    method: str,
) -> None:
    source, calibration = make_checkpoint(VARIANTS[variant]), calibrations[variant]
    for jobs in (1, 3):
        options = ["--method", method, "--expert-format", format_, "--calibration", calibration, "--jobs", jobs]
        ran = moe_pack("build", source, tmp_path / str(jobs), *options)
        assert ran.code == 0, ran.err
    assert pack_digest(tmp_path / "1") == pack_digest(tmp_path / "3")
    with (
        Pack.open(tmp_path / "1") as pack,
        Checkpoint.open(str(source)) as checkpoint,
        CalibrationFile.open(calibration) as opened,
    ):
        experts = understand(checkpoint).experts
        for layer in range(TINY.layers):
            statistics = opened.layer(layer)
            for expert in range(TINY.experts):
                given = statistics.of(expert, dict.fromkeys(PROJECTIONS, method))
                matrices = experts[layer].read(expert, Scratch(), {})
                wanted = [quantize(matrices[name], parse(format_), method, None, given[name]) for name in PROJECTIONS]
                record = pack.read_record(layer, expert).tobytes()
                assert record.startswith(b"".join(map(parts, wanted)))


def test_calibrated_packs_differ_from_those_without(
    moe_pack: Callable[..., Ran], source: Path, calibration: Path, tmp_path: Path
) -> None:
    for method in (*CALIBRATED_METHODS, "mse"):
        options = ["--calibration", calibration] if method != "mse" else []
        moe_pack("build", source, tmp_path / method, "--method", method, *options)
    assert len({of_file(tmp_path / method / "digests.bin") for method in (*CALIBRATED_METHODS, "mse")}) == 3


def kept_by_gptq(source: Path, calibration: Path, format_: str, layers: range) -> Counter[str]:
    """The methods whose results gptq takes, over the matrices of some layers."""
    with Checkpoint.open(str(source)) as checkpoint, CalibrationFile.open(calibration) as opened:
        experts = understand(checkpoint).experts
        return Counter(
            choose_by_feedback(matrices[name], parse(format_), given[name]).method
            for layer in layers
            for expert in range(TINY.experts)
            for matrices in [experts[layer].read(expert, Scratch(), {})]
            for given in [opened.layer(layer).of(expert, dict.fromkeys(PROJECTIONS, "gptq"))]
            for name in PROJECTIONS
        )


def test_a_build_says_how_often_gptq_kept_its_own_result(
    moe_pack: Callable[..., Ran], source: Path, calibration: Path, tmp_path: Path
) -> None:
    kept = kept_by_gptq(source, calibration, "affine2-g64", range(TINY.layers))
    assert len(kept) > 1, "no matrix for which feedback was no gain"
    options = ["--method", "gptq", "--expert-format", "affine2-g64", "--calibration", calibration]
    told = json.loads(moe_pack("build", source, tmp_path / "a", *options, "--json").out)["this_run"]
    assert told == {"layers": TINY.layers, "of_layers": TINY.layers, "quantized": {"gptq": dict(kept)}}
    shown = moe_pack("build", source, tmp_path / "b", *options).out
    assert f"of {kept.total()} matrices, took gptq for {kept['gptq']}, " in shown
    assert "this run" not in shown


def test_a_build_that_went_on_tells_only_of_its_own_layers(
    moe_pack: Callable[..., Ran], source: Path, calibration: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--method", "gptq", "--expert-format", "book2-g8", "--calibration", calibration]
    open_layer = PackWriter.layer

    def full(writer: PackWriter, index: int) -> object:
        if index == 1:
            raise StorageError("the disk is full")
        return open_layer(writer, index)

    monkeypatch.setattr(PackWriter, "layer", full)
    moe_pack("build", source, tmp_path / "pack", *options).refused(4, "the disk is full")
    monkeypatch.undo()
    kept = kept_by_gptq(source, calibration, "book2-g8", range(1, TINY.layers))
    shown = moe_pack("build", source, tmp_path / "pack", *options).out
    assert f"of {kept.total()} matrices, took gptq for {kept['gptq']}" in shown
    assert f"in the {TINY.layers - 1} of {TINY.layers} layers that this run packed" in shown


def test_the_manifest_names_the_calibration(
    moe_pack: Callable[..., Ran], source: Path, calibration: Path, tmp_path: Path
) -> None:
    target = tmp_path / "pack"
    ran = moe_pack("build", source, target, "--method", "imatrix", "--calibration", calibration)
    assert ran.code == 0, ran.err
    with CalibrationFile.open(calibration) as opened:
        facts = opened.facts
        wanted = {"digest": opened.digest, "text_digest": facts.text.digest, "model_digest": facts.model.digest}
    assert json.loads((target / "manifest.json").read_bytes())["recipe"]["calibration"] == wanted
    assert moe_pack("verify", target).code == 0
    assert wanted["digest"] in moe_pack("inspect", target).out
    assert wanted["digest"] in moe_pack("inspect", calibration).out
    assert json.loads(moe_pack("inspect", calibration, "--json").out)["digest"] == wanted["digest"]
    moe_pack("build", source, tmp_path / "plain", "--expert-format", "affine2-g64")
    assert "calibration" not in json.loads((tmp_path / "plain" / "manifest.json").read_bytes())["recipe"]


def test_plan_takes_a_calibration_and_estimates(moe_pack: Callable[..., Ran], source: Path, calibration: Path) -> None:
    for method in CALIBRATED_METHODS:
        ran = moe_pack("plan", source, "--method", method, "--calibration", calibration, "--json")
        assert ran.code == 0, ran.err
        assert json.loads(ran.out)["estimate"]["quantizing_seconds"] > 0
        assert json.loads(ran.out)["recipe"]["method"] == method


@pytest.mark.parametrize("method", CALIBRATED_METHODS)
def test_a_recipe_can_be_chosen_for_a_calibrated_method(
    moe_pack: Callable[..., Ran], source: Path, calibration: Path, tmp_path: Path, method: str
) -> None:
    options = ["--method", method, "--bits", "3", "--calibration", calibration]
    ran = moe_pack("build", source, tmp_path / "pack", *options)
    assert ran.code == 0, ran.err
    recipe = json.loads((tmp_path / "pack" / "manifest.json").read_bytes())["recipe"]
    assert {recipe["method"], *(override["method"] for override in recipe.get("overrides", ()))} == {method}


def test_only_methods_of_the_recipe_that_need_statistics_get_them(
    moe_pack: Callable[..., Ran], source: Path, calibration: Path, tmp_path: Path
) -> None:
    """down by mse in a pack that is otherwise imatrix: the same bytes as in a pack of mse."""
    recipe = {
        "format": "affine2-g64", "method": "imatrix", "trunk": "source",
        "overrides": [{"layers": "0-3", "projections": ["down"], "format": "affine2-g64", "method": "mse"}],
    }  # fmt: skip
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    ran = moe_pack(
        "build", source, tmp_path / "mixed", "--recipe", tmp_path / "recipe.json", "--calibration", calibration
    )
    assert ran.code == 0, ran.err
    moe_pack("build", source, tmp_path / "plain", "--expert-format", "affine2-g64")
    with Pack.open(tmp_path / "mixed") as mixed, Pack.open(tmp_path / "plain") as plain:
        layout = plain.records[0]
        for expert in range(TINY.experts):
            ours, theirs = mixed.read_record(2, expert), plain.read_record(2, expert)
            down = layout["down.weight"].offset
            assert np.array_equal(ours[down : layout.size], theirs[down : layout.size])
            assert not np.array_equal(ours[:down], theirs[:down])


@pytest.mark.parametrize("method", CALIBRATED_METHODS)
def test_methods_that_need_a_calibration_say_so(
    moe_pack: Callable[..., Ran], source: Path, tmp_path: Path, method: str
) -> None:
    for command in (["build", source, tmp_path / "pack"], ["plan", source]):
        moe_pack(*command, "--method", method).refused(2, method, "moe-pack calibrate", "--calibration")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("method", ["mse", "minmax"])
def test_methods_that_take_none_refuse_one(
    moe_pack: Callable[..., Ran], source: Path, calibration: Path, tmp_path: Path, method: str
) -> None:
    options = ("--expert-format", "affine2-g64", "--method", method, "--calibration", calibration)
    moe_pack("build", source, tmp_path / "pack", *options).refused(2, "--calibration", "imatrix", "gptq")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "other",
    [Variant(Shape(seed=5)), Variant(TINY, dtype="float16"), Variant(TINY, dialect="mlx", bits=4)],
    ids=["other weights", "other dtype", "other encoding"],
)
def test_the_calibration_of_another_model_is_refused(
    moe_pack: Callable[..., Ran], make_checkpoint: CheckpointMaker, calibration: Path, tmp_path: Path, other: Variant
) -> None:
    source = make_checkpoint(other)
    ran = moe_pack("build", source, tmp_path / "pack", "--method", "imatrix", "--calibration", calibration)
    ran.refused(2, calibration, source, "another model")
    assert not list(tmp_path.iterdir())


def test_a_calibration_by_another_tokenizer_is_refused(
    moe_pack: Callable[..., Ran], make_checkpoint: CheckpointMaker, calibration: Path, tmp_path: Path
) -> None:
    source = make_checkpoint.copy(VARIANTS["bf16"], tmp_path / "source")
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    tokenizer["model"]["merges"].pop()
    (source / "tokenizer.json").write_text(json.dumps(tokenizer))
    ran = moe_pack("build", source, tmp_path / "pack", "--method", "imatrix", "--calibration", calibration)
    ran.refused(2, calibration, source, "another tokenizer")


@pytest.mark.parametrize(
    ("harm", "code", "said"),
    [("flip", 1, "damaged"), ("cut", 1, "cut"), ("empty", 3, "not a calibration file"), ("absent", 2, "not exist")],
)
def test_damaged_calibrations_are_refused(
    moe_pack: Callable[..., Ran], source: Path, calibration: Path, tmp_path: Path, harm: str, code: int, said: str
) -> None:
    content = bytearray(calibration.read_bytes())
    content[random.Random(harm).randrange(len(content))] ^= 4
    path = tmp_path / "damaged"
    if harm != "absent":
        path.write_bytes({"flip": content, "cut": calibration.read_bytes()[:-9], "empty": b""}[harm])
    ran = moe_pack("build", source, tmp_path / "pack", "--method", "imatrix", "--calibration", path)
    ran.refused(code, path, said)
    assert not (tmp_path / "pack").exists()


def test_a_build_goes_on_only_with_the_same_calibration(
    moe_pack: Callable[..., Ran], source: Path, calibration: Path, tmp_path: Path
) -> None:
    calibrated(source, tmp_path / "other", windows_of(TINY, 2))
    target = tmp_path / "pack"
    options = ["--method", "imatrix", "--calibration"]
    moe_pack("build", source, target, *options, calibration)
    shutil.move(target, target.with_name("pack.partial"))
    moe_pack("build", source, target, *options, tmp_path / "other").refused(2, "pack.partial")
