"""GPTQ checkpoints, made by a packer written from the format's definition, against their exact weights."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import CheckpointMaker, Variant, edit_config
from oracle import expert_matrix, trunk_tensors
from packs import build_pack
from quantized_checkpoints import (
    BLOCKY,
    SINGLE,
    GptqStyle,
    gptq_matrix,
    largest_difference,
    make_floats,
    make_gptq,
)
from ran import Ran
from safetensors.torch import load_file, save_file
from transformers import Qwen3_5MoeForCausalLM

from moepack.convert.checkpoint import Checkpoint
from moepack.convert.matrices import read_rows
from moepack.convert.plan import understand
from moepack.convert.reference import Reference
from moepack.convert.tensors import Gptq, Scratch, ZeroPoint
from moepack.layout.formats import AffineFormat
from moepack.layout.reader import Pack
from moepack.quantize.affine import AffineMatrix, dequantize
from moepack.runtime.engine import Engine, EngineOptions

MODULE = "model.layers.1.mlp.experts.2.up_proj"
QUERY = "model.layers.1.self_attn.q_proj"
STYLES = {
    "as Qwen publishes: symmetric, 8 stored": GptqStyle(group_size=128, stored_less=0),
    "symmetric, 7 stored": GptqStyle(),
    "no checkpoint_format": GptqStyle(group_size=32, checkpoint_format=None),
    "asymmetric": GptqStyle(sym=False, group_size=32),
    "asymmetric, v2": GptqStyle(sym=False, checkpoint_format="gptq_v2", stored_less=0),
    "bf16 scales": GptqStyle(dtype=torch.bfloat16, sym=False),
    "2 bits": GptqStyle(bits=2, sym=False, group_size=32),
    "8 bits": GptqStyle(bits=8, sym=False),
}
REORDERED = {
    "reordered": GptqStyle(desc_act=True),
    "reordered, asymmetric": GptqStyle(desc_act=True, sym=False, group_size=32, dtype=torch.bfloat16),
    "reordered, 8 bits": GptqStyle(desc_act=True, bits=8),
}

Made = tuple[Path, dict[str, np.ndarray]]
MakeGptq = Callable[[GptqStyle], Made]


@pytest.fixture
def make(make_checkpoint: CheckpointMaker, tmp_path: Path) -> MakeGptq:
    def made(style: GptqStyle) -> Made:
        checkpoint = make_checkpoint.copy(Variant(BLOCKY), tmp_path / "source" / "gptq")
        return checkpoint, make_gptq(checkpoint, style)

    return made


@pytest.fixture
def floats(make_checkpoint: CheckpointMaker, tmp_path: Path) -> Callable[[dict[str, np.ndarray]], Path]:
    return lambda truth: make_floats(make_checkpoint.copy(Variant(BLOCKY), tmp_path / "floats"), truth)


def by_name(cases: dict[str, GptqStyle]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("style", cases.values(), ids=cases.keys())


@by_name(STYLES | REORDERED)
def test_every_expert_is_read_exactly(style: GptqStyle, make: MakeGptq) -> None:
    checkpoint, truth = make(style)
    scratch = Scratch()
    with Checkpoint.open(str(checkpoint)) as opened:
        source = understand(opened)
        assert source.expert_encodings == [f"gptq{style.bits}-g{style.group_size}"]
        for layer, experts in enumerate(source.experts):
            for expert in range(BLOCKY.experts):
                for name, matrix in experts.read(expert, scratch, {}).items():
                    assert isinstance(matrix, AffineMatrix) != style.desc_act
                    values = dequantize(matrix) if isinstance(matrix, AffineMatrix) else matrix
                    wanted = truth[f"model.layers.{layer}.mlp.experts.{expert}.{name}_proj.weight"]
                    np.testing.assert_array_equal(values.astype(np.float64), wanted)


@by_name(STYLES | REORDERED)
def test_records_by_minmax_are_those_of_the_float32_weights(
    style: GptqStyle, make: MakeGptq, floats: Callable[[dict[str, np.ndarray]], Path], tmp_path: Path
) -> None:
    checkpoint, truth = make(style)
    for path, source in (("gptq", checkpoint), ("floats", floats(truth))):
        build_pack(source, tmp_path / f"{path}-pack", method="minmax", trunk="bf16")
    for file in ("experts/layer_00.bin", "experts/layer_01.bin", "trunk.safetensors"):
        assert (tmp_path / "gptq-pack" / file).read_bytes() == (tmp_path / "floats-pack" / file).read_bytes()


@by_name(STYLES)
def test_a_trunk_in_order_stays_as_it_is(style: GptqStyle, make: MakeGptq, tmp_path: Path) -> None:
    checkpoint, truth = make(style)
    build_pack(checkpoint, tmp_path / "pack")
    with Pack.open(tmp_path / "pack") as pack:
        found = dict(trunk_tensors(pack))
        assert pack.manifest.trunk.formats[QUERY] == f"affine{style.bits}-g{style.group_size}"
        assert pack.trunk.entries[f"{QUERY}.biases"].dtype == "F32"
    quantized = {name: values for name, values in truth.items() if ".experts." not in name}
    assert len(quantized) == 3 + 4 + 2 * 3
    for name, values in quantized.items():
        np.testing.assert_array_equal(found[name].astype(np.float64), values, err_msg=name)


@by_name(REORDERED)
def test_a_reordered_trunk_becomes_bf16(style: GptqStyle, make: MakeGptq, tmp_path: Path) -> None:
    checkpoint, truth = make(style)
    build_pack(checkpoint, tmp_path / "pack")
    with Pack.open(tmp_path / "pack") as pack:
        assert not pack.manifest.trunk.formats
        found = dict(trunk_tensors(pack))
    wanted = torch.from_numpy(truth[f"{QUERY}.weight"]).bfloat16().float().numpy()
    np.testing.assert_array_equal(found[f"{QUERY}.weight"], wanted)


def test_a_trunk_of_more_bits_is_not_made_of_fewer(make: MakeGptq, tmp_path: Path) -> None:
    checkpoint, _ = make(GptqStyle(group_size=32))
    build_pack(checkpoint, tmp_path / "pack", trunk="affine8-g64")
    with Pack.open(tmp_path / "pack") as pack:
        formats = pack.manifest.trunk.formats
        assert (formats[QUERY], formats["lm_head"]) == ("affine4-g32", "affine8-g64")


def test_codes_reach_their_least_squares_as_codes(
    make: MakeGptq, floats: Callable[[dict[str, np.ndarray]], Path], tmp_path: Path
) -> None:
    """2 bits by `mse` from 4-bit codes are the global optimum: never worse than the descent that floats get."""
    checkpoint, truth = make(GptqStyle(sym=False))
    for path, source in (("gptq", checkpoint), ("floats", floats(truth))):
        build_pack(source, tmp_path / f"{path}-pack")
    errors = [squared_error(tmp_path / f"{path}-pack", truth) for path in ("gptq", "floats")]
    assert errors[0] <= errors[1]


def squared_error(path: Path, truth: dict[str, np.ndarray]) -> float:
    with Pack.open(path) as pack:
        found = expert_matrix(pack.read_record(1, 2), pack.records[1], "up")
    return float(np.square(found - truth[f"{MODULE}.weight"]).sum())


@by_name({name: (STYLES | REORDERED)[name] for name in ("as Qwen publishes: symmetric, 8 stored", "reordered")})
def test_logits_are_those_of_the_exact_weights(
    style: GptqStyle, make: MakeGptq, floats: Callable[[dict[str, np.ndarray]], Path], tmp_path: Path
) -> None:
    checkpoint, truth = make(style)
    build_pack(checkpoint, tmp_path / "pack", expert_format="affine8-g32")
    tokens = [token * 7 % BLOCKY.vocab for token in range(40)]
    model = Qwen3_5MoeForCausalLM.from_pretrained(floats(truth), dtype=torch.float32).eval()
    with torch.no_grad():
        wanted = model(torch.tensor([tokens])).logits[0].numpy()
    with Engine.open(tmp_path / "pack", EngineOptions(exact=True)) as engine:
        found = engine.new_session().extend_all(tokens)
    assert np.abs(found - wanted).max() < 0.02 * np.abs(wanted).max()


@by_name({name: (STYLES | REORDERED)[name] for name in ("asymmetric", "reordered, asymmetric")})
def test_a_checkpoint_itself_runs_as_transformers_runs_its_weights(
    style: GptqStyle, make: MakeGptq, floats: Callable[[dict[str, np.ndarray]], Path]
) -> None:
    checkpoint, truth = make(style)
    for name in truth:
        if style.desc_act and ".experts." not in name:
            truth[name] = torch.from_numpy(truth[name]).bfloat16().double().numpy()
    model = Qwen3_5MoeForCausalLM.from_pretrained(floats(truth), dtype=torch.float32).eval()
    assert largest_difference(checkpoint, model) <= 1e-3


def test_a_forward_pass_can_have_any_part_alone(make: MakeGptq) -> None:
    checkpoint, truth = make(GptqStyle())
    with Checkpoint.open(str(checkpoint)) as opened:
        reference = Reference(opened)
        parts = [reference.tensor(f"{QUERY}.{part}") for part in ("biases", "scales", "weight")]
        biases, scales, codes = (part for part in parts if part is not None)
        matrix = AffineMatrix(reference.formats[QUERY], codes, scales, biases)
        np.testing.assert_array_equal(dequantize(matrix).astype(np.float64), truth[f"{QUERY}.weight"])


@by_name(STYLES | REORDERED)
@pytest.mark.parametrize(("first", "rows"), [(0, 256), (3, 1), (5, 70), (250, 6)])
def test_some_rows_are_those_of_the_whole(style: GptqStyle, first: int, rows: int, make: MakeGptq) -> None:
    checkpoint, truth = make(style)
    zero_point = ZeroPoint.AS_STORED if style.checkpoint_format == "gptq_v2" else ZeroPoint.LESS_ONE
    with Checkpoint.open(str(checkpoint)) as opened:
        encoding = Gptq(
            *(f"{QUERY}.{part}" for part in ("qweight", "qzeros", "scales", "g_idx")),
            style.bits,
            style.group_size,
            ZeroPoint.MIDPOINT if style.sym else zero_point,
            AffineFormat(style.bits, style.group_size),
            "BF16" if style.dtype is torch.bfloat16 else "F16",
        )
        found = read_rows(opened, encoding, (rows, BLOCKY.hidden), first, Scratch(), "w")
    values = dequantize(found) if isinstance(found, AffineMatrix) else found
    np.testing.assert_array_equal(values.astype(np.float64), truth[f"{QUERY}.weight"][first : first + rows])


@pytest.mark.parametrize("desc_act", [False, True])
def test_a_last_group_may_be_short(desc_act: bool, tmp_path: Path) -> None:
    style = GptqStyle(sym=False, desc_act=desc_act)
    weight = np.random.default_rng(0).standard_normal((24, 96))
    tensors, truth = gptq_matrix(weight, style, 0)
    tensors["scales"] = tensors["scales"].astype(np.float16)
    (tmp_path / "config.json").write_text("{}")
    save_file({name: torch.from_numpy(array) for name, array in tensors.items()}, tmp_path / SINGLE)
    encoding = Gptq("qweight", "qzeros", "scales", "g_idx", 4, 64, ZeroPoint.LESS_ONE, None, "F16")
    with Checkpoint.open(str(tmp_path)) as opened:
        found = read_rows(opened, encoding, (20, 96), 3, Scratch(), "w")
    assert isinstance(found, np.ndarray)
    np.testing.assert_array_equal(found.astype(np.float64), truth[3:23])


def test_plan_says_how_the_weights_are_stored(make: MakeGptq, moe_pack: Callable[..., Ran]) -> None:
    done = moe_pack("plan", make(GptqStyle())[0], "--json")
    source = json.loads(done.out)["source"]
    assert source["expert_encodings"] == ["gptq4-g64"]
    assert source["trunk_encodings"] == ["BF16", "gptq4-g64"]


def edited(name: str, change: Callable[[torch.Tensor], torch.Tensor | None]) -> Callable[[Path], None]:
    def damage(at: Path) -> None:
        tensors = load_file(at / SINGLE)
        changed = change(tensors.pop(name))
        save_file(tensors if changed is None else {**tensors, name: changed}, at / SINGLE)

    return damage


def put(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(tensor: torch.Tensor) -> torch.Tensor:
        tensor.view(-1)[5] = value
        return tensor

    return change


def quantization(**changes: object) -> Callable[[Path], None]:
    return lambda at: edit_config(at, {"quantization_config": {**GptqStyle().config, **changes}})


BAD = {
    "no codes": (edited(f"{MODULE}.qweight", lambda _: None), 3, (f"{MODULE}.weight",)),
    "no zeros": (edited(f"{MODULE}.qzeros", lambda _: None), 3, (f"{MODULE}.qzeros",)),
    "no scales": (edited(f"{MODULE}.scales", lambda _: None), 3, (f"{MODULE}.scales",)),
    "no g_idx": (edited(f"{MODULE}.g_idx", lambda _: None), 3, (f"{MODULE}.g_idx",)),
    "scales of another shape": (
        edited(f"{MODULE}.scales", lambda scales: scales.T.contiguous()),
        3,
        (f"{MODULE}.scales", "[128, 4]", "[4, 128]"),
    ),
    "scales of float32": (edited(f"{MODULE}.scales", torch.Tensor.float), 3, (f"{MODULE}.scales", "F32", "F16")),
    "a scale that is NaN": (edited(f"{MODULE}.scales", put(float("nan"))), 3, (f"{MODULE}.scales", "NaN")),
    "a scale of the trunk that is infinite": (
        edited(f"{QUERY}.scales", put(float("inf"))),
        3,
        (f"{QUERY}.scales", "infinity"),
    ),
    "a group beyond the last": (edited(f"{MODULE}.g_idx", put(4)), 3, (f"{MODULE}.g_idx", "group 4", "0 to 3")),
    "a group before the first": (edited(f"{MODULE}.g_idx", put(-1)), 3, (f"{MODULE}.g_idx", "group -1", "0 to 3")),
    "a group with too many inputs": (edited(f"{MODULE}.g_idx", put(1)), 3, (f"{MODULE}.g_idx", "64 inputs")),
    "a group of the trunk beyond the last": (edited(f"{QUERY}.g_idx", put(99)), 3, (f"{QUERY}.g_idx", "group 99")),
    "zeros that are not symmetric": (edited(f"{MODULE}.qzeros", put(0)), 3, (f"{MODULE}.qzeros", "sym", "7 or 8")),
    "other bits than stored": (quantization(bits=8), 3, ("qweight", "[32, ", "[64, ")),
    "another group size than stored": (quantization(group_size=32), 3, ("qzeros", "[4, ", "[8, ")),
    "3 bits": (quantization(bits=3), 5, ("bits = 3", "2, 4 and 8")),
    "bits that are no number": (quantization(bits="4"), 5, ("bits = '4'",)),
    "one group for each row": (quantization(group_size=-1), 5, ("group_size = -1", "32, 64, 128")),
    "another packing": (quantization(checkpoint_format="marlin"), 5, ("marlin", "gptq_v2")),
    "sym that is no flag": (quantization(sym="yes"), 3, ("sym",)),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_gptq_is_refused(case: str, make: MakeGptq, tmp_path: Path, moe_pack: Callable[..., Ran]) -> None:
    checkpoint, _ = make(GptqStyle())
    damage, code, culprits = BAD[case]
    damage(checkpoint)
    moe_pack("build", checkpoint, tmp_path / "pack").refused(code, *culprits)
    assert not (tmp_path / "pack").exists()
