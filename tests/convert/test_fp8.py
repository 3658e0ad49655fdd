"""FP8 checkpoints against transformers: its quantizer writes them, its loader dequantizes them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from checkpoints import CheckpointMaker, Shape, Variant, edit_config
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import trunk_tensors
from packs import build_pack
from quantized_checkpoints import BLOCKY, SINGLE, largest_difference, make_floats, make_fp8
from ran import Ran
from safetensors.torch import load_file, save_file
from transformers import Qwen3_5MoeForCausalLM
from transformers.integrations.finegrained_fp8 import _dequantize_fp8_weight
from transformers.quantizers.quantizer_finegrained_fp8 import FineGrainedFP8HfQuantizer

from moepack.convert.checkpoint import Checkpoint
from moepack.convert.matrices import read_rows, read_stacked
from moepack.convert.plan import understand
from moepack.convert.tensors import Fp8, Scratch
from moepack.layout.reader import Pack
from moepack.runtime.engine import Engine, EngineOptions

CENTERED = ("input_layernorm", "post_attention_layernorm", "q_norm", "k_norm", "model.norm")
EXPERT = "model.layers.1.mlp.experts.2.up_proj.weight"
QUERY = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture
def fp8(make_checkpoint: CheckpointMaker, tmp_path: Path) -> Path:
    return make_fp8(make_checkpoint.copy(Variant(BLOCKY), tmp_path / "source" / "fp8"))


def loaded(path: Path, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> Any:
    """transformers' own load of an FP8 checkpoint, dequantized: what it does by itself without a GPU."""

    def dequantize(self: Any, *_: object, **__: object) -> None:  # the original also wants accelerate to be there
        self.quantization_config.dequantize = True

    monkeypatch.setattr(FineGrainedFP8HfQuantizer, "validate_environment", dequantize)
    return Qwen3_5MoeForCausalLM.from_pretrained(path, dtype=dtype).eval()


def exact_state(checkpoint: Path) -> dict[str, np.ndarray]:
    """Every FP8 matrix of a checkpoint in float32, by plain torch."""
    tensors = load_file(checkpoint / SINGLE)
    return {
        name: _dequantize_fp8_weight(tensor, tensors[f"{name}_scale_inv"], [128, 128], torch.float32).numpy()
        for name, tensor in tensors.items()
        if tensor.dtype == torch.float8_e4m3fn
    }


def expert_files(pack: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted((pack / "experts").iterdir())]


@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("fused", [False, True])
def test_records_are_those_of_the_float32_weights(
    fused: bool, scale_dtype: torch.dtype, make_checkpoint: CheckpointMaker, tmp_path: Path
) -> None:
    variant = Variant(BLOCKY, fused=fused)
    checkpoint = make_fp8(make_checkpoint.copy(variant, tmp_path / "fp8"), scale_dtype)
    floats = make_floats(make_checkpoint.copy(variant, tmp_path / "floats"), exact_state(checkpoint))
    for trunk in ("source", "affine8-g64"):
        build_pack(checkpoint, tmp_path / f"{trunk}-fp8", trunk=trunk)
        build_pack(floats, tmp_path / f"{trunk}-floats", trunk=trunk)
        assert expert_files(tmp_path / f"{trunk}-fp8") == expert_files(tmp_path / f"{trunk}-floats")
    trunks = [tmp_path / f"affine8-g64-{kind}" / "trunk.safetensors" for kind in ("fp8", "floats")]
    assert trunks[0].read_bytes() == trunks[1].read_bytes()


def test_the_trunk_is_what_transformers_loads(fp8: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_pack(fp8, tmp_path / "pack")
    state = loaded(fp8, torch.bfloat16, monkeypatch).state_dict()
    with Pack.open(tmp_path / "pack") as pack:
        assert pack.trunk.entries[QUERY].dtype == "BF16"
        found = dict(trunk_tensors(pack))
    assert found.keys() == {name for name in state if ".experts." not in name}
    for name, values in found.items():
        shift = np.float32(name.removesuffix(".weight").endswith(CENTERED))
        np.testing.assert_array_equal(values, state[name].float().numpy().reshape(values.shape) + shift, err_msg=name)


def test_logits_are_those_of_transformers(fp8: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_pack(fp8, tmp_path / "pack", expert_format="affine8-g32")
    tokens = [token * 7 % BLOCKY.vocab for token in range(40)]
    with torch.no_grad():
        wanted = loaded(fp8, torch.bfloat16, monkeypatch).float()(torch.tensor([tokens])).logits[0].numpy()
    with Engine.open(tmp_path / "pack", EngineOptions(exact=True)) as engine:
        found = engine.new_session().extend_all(tokens)
    assert np.abs(found - wanted).max() < 0.02 * np.abs(wanted).max()


def test_a_checkpoint_itself_runs_as_transformers_runs_it(fp8: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its experts in float32, its trunk in the bfloat16 that transformers loads."""
    model = loaded(fp8, torch.bfloat16, monkeypatch).float()
    exact = loaded(fp8, torch.float32, monkeypatch).state_dict()
    model.load_state_dict({name: values for name, values in exact.items() if ".experts." in name}, strict=False)
    assert largest_difference(fp8, model) <= 1e-3


def stored_matrix(directory: Path, codes: torch.Tensor, scales: torch.Tensor) -> Checkpoint:
    (directory / "config.json").write_text("{}")
    save_file({"w": codes.view(torch.float8_e4m3fn), "s": scales}, directory / SINGLE)
    return Checkpoint.open(str(directory))


sizes = st.integers(1, 40)


@settings(max_examples=60, deadline=None)
@given(rows=sizes, cols=sizes, block=st.tuples(st.integers(1, 17), st.integers(1, 17)), data=st.data())
def test_any_rows_of_any_blocks_equal_torch(
    rows: int, cols: int, block: tuple[int, int], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    seed = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    first = data.draw(st.integers(0, rows - 1))
    count = data.draw(st.integers(1, rows - first))
    codes = torch.randint(0, 127, (2, rows, cols), generator=seed, dtype=torch.uint8)
    codes |= torch.randint(0, 2, codes.shape, generator=seed, dtype=torch.uint8) << 7
    scales = torch.rand(2, -(-rows // block[0]), -(-cols // block[1]), generator=seed) * 1e-3
    wanted = _dequantize_fp8_weight(codes.view(torch.float8_e4m3fn), scales, list(block), torch.float32).numpy()
    encoding = Fp8("w", "s", block, "F32")
    with stored_matrix(tmp_path_factory.mktemp("matrix"), codes[0], scales[0]) as checkpoint:
        found = read_rows(checkpoint, encoding, (count, cols), first, Scratch(), "w")
        np.testing.assert_array_equal(found, wanted[0, first : first + count])
    with stored_matrix(tmp_path_factory.mktemp("stack"), codes, scales) as checkpoint:
        np.testing.assert_array_equal(read_stacked(checkpoint, encoding, (rows, cols), 1, Scratch(), "w"), wanted[1])


def test_every_code_has_its_value(tmp_path: Path) -> None:
    codes = torch.tensor([code for code in range(256) if code & 0x7F != 0x7F], dtype=torch.uint8)[None]
    with stored_matrix(tmp_path, codes, torch.ones(1, 2)) as checkpoint:
        found = read_rows(checkpoint, Fp8("w", "s", (128, 128), "F32"), (1, 254), 0, Scratch(), "w")
    np.testing.assert_array_equal(found, codes.numpy().view(ml_dtypes.float8_e4m3fn).astype(np.float32))


@pytest.mark.parametrize("block", [32, 64])
def test_other_blocks_are_read_too(block: int, make_checkpoint: CheckpointMaker, tmp_path: Path) -> None:
    checkpoint = make_fp8(make_checkpoint.copy(Variant(Shape(layers=2, interval=2)), tmp_path / "fp8"), block=block)
    with Checkpoint.open(str(checkpoint)) as opened:
        source = understand(opened)
        assert source.expert_encodings == [f"fp8 in blocks of {block}x{block}"]
        encoding = source.experts[1].encodings["up"]
        tensors = load_file(checkpoint / SINGLE)
        name = "model.layers.1.mlp.experts.0.up_proj.weight"
        wanted = _dequantize_fp8_weight(tensors[name], tensors[f"{name}_scale_inv"], [block, block], torch.float32)
        assert encoding.stored == name
        found = source.experts[1].read(0, Scratch(), {})["up"]
        np.testing.assert_array_equal(found, wanted.numpy())


def test_plan_says_how_the_weights_are_stored(fp8: Path, moe_pack: Callable[..., Ran]) -> None:
    done = moe_pack("plan", fp8)
    assert done.code == 0
    assert "experts of fp8 in blocks of 128x128, a trunk of BF16 and fp8 in blocks of 128x128" in done.out


def set_tensors(checkpoint: Path, changes: dict[str, torch.Tensor | None]) -> None:
    tensors = {**load_file(checkpoint / SINGLE), **changes}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, checkpoint / SINGLE)


def edited(name: str, change: Callable[[torch.Tensor], torch.Tensor | None]) -> Callable[[Path], None]:
    return lambda at: set_tensors(at, {name: change(load_file(at / SINGLE)[name])})


def quantization(**changes: object) -> Callable[[Path], None]:
    settings = {"quant_method": "fp8", "weight_block_size": [128, 128], **changes}
    return lambda at: edit_config(at, {"quantization_config": settings})


def put(byte: int) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(tensor: torch.Tensor) -> torch.Tensor:
        tensor.view(torch.uint8)[77, 5] = byte
        return tensor

    return change


BAD = {
    "no scale": (edited(f"{EXPERT}_scale_inv", lambda _: None), 3, (f"{EXPERT}_scale_inv",)),
    "a scale of another shape": (
        edited(f"{EXPERT}_scale_inv", lambda scale: scale.T.contiguous()),
        3,
        (f"{EXPERT}_scale_inv", "[2, 1]", "[1, 2]"),
    ),
    "a scale of bytes": (
        edited(f"{EXPERT}_scale_inv", lambda scale: scale.to(torch.uint8)),
        3,
        (f"{EXPERT}_scale_inv", "U8"),
    ),
    "a scale that is NaN": (
        edited(f"{EXPERT}_scale_inv", lambda scale: scale * float("nan")),
        3,
        (f"{EXPERT}_scale_inv", "NaN"),
    ),
    "a scale of the trunk that is infinite": (
        edited(f"{QUERY}_scale_inv", lambda scale: scale / 0),
        3,
        (f"{QUERY}_scale_inv", "infinity"),
    ),
    "a code that is NaN": (edited(EXPERT, put(0x7F)), 3, (EXPERT, "row 77", "NaN")),
    "a code of the trunk that is -NaN": (edited(QUERY, put(0xFF)), 3, (QUERY, "row 77", "NaN")),
    "an overflow": (edited(f"{EXPERT}_scale_inv", lambda scale: scale + 3e38), 3, (EXPERT, "row 0", "infinity")),
    "the other 8-bit float": (edited(EXPERT, lambda code: code.to(torch.float8_e5m2)), 5, (EXPERT, "F8_E5M2")),
    "codes of another shape": (edited(EXPERT, lambda code: code[:64].clone()), 3, (EXPERT, "[64, 256]", "[128, 256]")),
    "said to be floats": (quantization(modules_to_not_convert=["model.layers.1.self_attn"]), 3, (QUERY[:-7],)),
    "no block size": (quantization(weight_block_size=None), 5, ("weight_block_size", "[128, 128]")),
    "a block of one size": (quantization(weight_block_size=[128]), 5, ("weight_block_size", "[128]")),
    "an impossible block": (quantization(weight_block_size=[0, 128]), 5, ("weight_block_size",)),
    "powers of two as scales": (quantization(scale_fmt="ue8m0"), 5, ("scale_fmt", "ue8m0")),
    "experts of 4 bits": (quantization(expert_dtype="fp4"), 5, ("expert_dtype", "fp4")),
    "modules that are no list": (quantization(modules_to_not_convert=4), 3, ("modules_to_not_convert",)),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_fp8_is_refused(case: str, fp8: Path, tmp_path: Path, moe_pack: Callable[..., Ran]) -> None:
    damage, code, culprits = BAD[case]
    damage(fp8)
    moe_pack("build", fp8, tmp_path / "pack").refused(code, *culprits)
    assert not (tmp_path / "pack").exists()
