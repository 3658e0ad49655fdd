"""Every way in which transformers and mlx_lm write a checkpoint ends in the same canonical tensors."""

from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import mlx.core as mx
import numpy as np
import pytest
import torch
from checkpoints import ODD, TINY, CheckpointMaker, Shape, Variant, random_model
from mlx.utils import tree_flatten
from oracle import CENTERED_NORMS, dequantize, reference_model, trunk_tensors
from packs import build_pack, reference_record
from safetensors import safe_open

from moepack.layout.formats import AffineFormat
from moepack.layout.reader import Pack

TIED = Shape(tied=True, seed=5)
DEEP = Shape(layers=6, interval=3, seed=6)

HUGGINGFACE = {
    "per-expert": Variant(),
    "fused": Variant(fused=True),
    "fp16": Variant(dtype="float16"),
    "fp32 fused": Variant(dtype="float32", fused=True),
    "sharded per-expert": Variant(shard="100KB"),
    "sharded fused": Variant(fused=True, shard="150KB"),
    "with vision and MTP": Variant(fused=True, vision=True),
    "with vision, per-expert": Variant(vision=True),
    "odd": Variant(shape=ODD),
    "odd fused fp16": Variant(shape=ODD, dtype="float16", fused=True),
    "tied": Variant(shape=TIED),
    "tied with vision": Variant(shape=TIED, fused=True, vision=True),
    "every third layer": Variant(shape=DEEP, fused=True),
}
MLX_QUANTIZED = {
    "4 bits": Variant(dialect="mlx", bits=4),
    "4 bits, group 32": Variant(dialect="mlx", bits=4, group_size=32),
    "2 bits, group 64": Variant(dialect="mlx", bits=2),
    "3 bits, group 32": Variant(dialect="mlx", bits=3, group_size=32),
    "6 bits": Variant(dialect="mlx", bits=6),
    "8 bits": Variant(dialect="mlx", bits=8),
    "4 bits of fp16": Variant(dialect="mlx", dtype="float16", bits=4),
    "4 bits of fp32": Variant(dialect="mlx", dtype="float32", bits=4),
    "odd, 4 bits": Variant(shape=ODD, dialect="mlx", bits=4),
    "tied, 4 bits": Variant(shape=TIED, dialect="mlx", bits=4),
    "mixed 2 and 6 bits": Variant(dialect="mlx", bits=2, mixed="mixed_2_6"),
    "group 128": Variant(shape=Shape(hidden=256, intermediate=128, seed=7), dialect="mlx", bits=4, group_size=128),
}
MLX_FLOATS = {
    "bf16": Variant(dialect="mlx"),
    "fp16": Variant(dialect="mlx", dtype="float16"),
    "fp32, odd": Variant(shape=ODD, dialect="mlx", dtype="float32"),
}
FORMAT = AffineFormat(2, 32)


def by_name(cases: Mapping[str, Variant]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("variant", cases.values(), ids=cases.keys())


def expected_trunk(model: torch.nn.Module) -> dict[str, np.ndarray]:
    """transformers' own weights as a pack's trunk must hold them."""
    expected = {}
    for name, tensor in model.state_dict().items():
        name = name.replace("model.language_model.", "model.")
        if ".experts." in name or ".visual." in name:
            continue
        values = tensor.float().numpy()
        if name.removesuffix(".weight").endswith(CENTERED_NORMS):
            values = values + np.float32(1)
        expected[name] = values[:, 0] if "conv1d" in name else values
    if model.config.tie_word_embeddings:
        del expected["lm_head.weight"]
    return expected


def assert_same(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


@by_name(HUGGINGFACE)
def test_huggingface_tensors_arrive_exactly(variant: Variant, make_checkpoint: CheckpointMaker, tmp_path: Path) -> None:
    build_pack(make_checkpoint(variant), tmp_path / "pack", expert_format=FORMAT.name, method="minmax")
    model = random_model(variant.shape, variant.dtype, vision=variant.vision)
    state = {name.replace("model.language_model.", "model."): value for name, value in model.state_dict().items()}
    with Pack.open(tmp_path / "pack") as pack:
        assert_same(dict(trunk_tensors(pack)), expected_trunk(model))
        for layer in range(variant.shape.layers):
            fused = state[f"model.layers.{layer}.mlp.experts.gate_up_proj"].float().numpy()
            down = state[f"model.layers.{layer}.mlp.experts.down_proj"].float().numpy()
            for expert in range(variant.shape.experts):
                gate, up = np.split(fused[expert], 2)
                record = pack.read_record(layer, expert).tobytes()[: pack.records[layer].size]
                assert record == reference_record(gate, up, down[expert], FORMAT)


def test_a_pack_loads_back_into_transformers(make_checkpoint: CheckpointMaker, tmp_path: Path) -> None:
    """Logits of the dequantized pack are close to the original's: nothing is transposed, swapped or shifted."""
    build_pack(make_checkpoint(Variant(dtype="float32")), tmp_path / "pack", expert_format="affine8-g32")
    tokens = torch.arange(40)[None] * 7 % TINY.vocab
    with torch.no_grad():
        original = random_model(TINY)(tokens).logits
        packed = reference_model(tmp_path / "pack")(tokens).logits
    assert (original - packed).abs().max() < 0.02 * original.abs().max()


def stored(checkpoint: Path) -> dict[str, np.ndarray]:
    """Every tensor of an MLX checkpoint, read by the safetensors library."""
    with safe_open(checkpoint / "model.safetensors", "np") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def canonical(name: str) -> str:
    return name.removeprefix("language_model.").removeprefix("language_model.")


def mlx_modules(checkpoint: Path) -> dict[str, object]:
    """mlx_lm's own model with the checkpoint's weights: its modules by canonical name."""
    from mlx_lm.utils import load_model

    model, _ = load_model(checkpoint)
    return {canonical(name): module for name, module in model.named_modules()}


def mlx_weights(checkpoint: Path) -> dict[str, np.ndarray]:
    """mlx_lm's own weights in float32, quantized ones dequantized by MLX, by canonical name."""
    weights = {}
    for name, module in mlx_modules(checkpoint).items():
        if hasattr(module, "bits"):
            parts = (module.scales.astype(mx.float32), module.biases.astype(mx.float32))
            values = mx.dequantize(module.weight, *parts, group_size=module.group_size, bits=module.bits)
            weights[f"{name}.weight"] = np.array(values)
        elif not module.children():
            for parameter, value in tree_flatten(module.parameters()):
                weights[f"{name}.{parameter}"] = np.array(value.astype(mx.float32))
        for parameter in ("A_log", "dt_bias"):
            if parameter in module:
                weights[f"{name}.{parameter}"] = np.array(module[parameter].astype(mx.float32))
    return {name: value[..., 0] if "conv1d" in name else value for name, value in weights.items()}


@by_name(MLX_QUANTIZED | MLX_FLOATS)
def test_mlx_trunks_are_what_mlx_itself_loads(
    variant: Variant, make_checkpoint: CheckpointMaker, tmp_path: Path
) -> None:
    checkpoint = make_checkpoint(variant)
    build_pack(checkpoint, tmp_path / "pack", expert_format="affine2-g32")
    expected = {name: value for name, value in mlx_weights(checkpoint).items() if ".switch_mlp." not in name}
    with Pack.open(tmp_path / "pack") as pack:
        found = dict(trunk_tensors(pack))
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=2e-6, atol=1e-6, err_msg=name)


@by_name(MLX_QUANTIZED | MLX_FLOATS)
def test_mlx_experts_follow_the_reference_rule(
    variant: Variant, make_checkpoint: CheckpointMaker, tmp_path: Path
) -> None:
    checkpoint = make_checkpoint(variant)
    build_pack(checkpoint, tmp_path / "pack", expert_format=FORMAT.name, method="minmax")
    tensors, modules = stored(checkpoint), mlx_modules(checkpoint)
    with Pack.open(tmp_path / "pack") as pack:
        for layer in range(variant.shape.layers):
            for expert in (0, variant.shape.experts - 1):
                matrices = [mlx_expert(tensors, modules, layer, expert, name) for name in ("gate", "up", "down")]
                record = pack.read_record(layer, expert).tobytes()[: pack.records[layer].size]
                assert record == reference_record(*matrices, FORMAT)


def mlx_expert(
    tensors: Mapping[str, np.ndarray], modules: Mapping[str, object], layer: int, expert: int, projection: str
) -> np.ndarray:
    stem = f"model.layers.{layer}.mlp.switch_mlp.{projection}_proj"
    parts = [tensors.get(f"language_model.{stem}.{part}") for part in ("weight", "scales", "biases")]
    if parts[1] is None:
        return parts[0][expert].astype(np.float32)
    format_ = AffineFormat(modules[stem].bits, modules[stem].group_size)
    return dequantize(parts[0][expert], parts[1][expert], parts[2][expert], format_)


@pytest.mark.parametrize("name", ["4 bits", "4 bits, group 32", "2 bits, group 64", "3 bits, group 32", "8 bits"])
def test_experts_in_the_target_format_pass_through_bit_for_bit(
    name: str, make_checkpoint: CheckpointMaker, tmp_path: Path
) -> None:
    variant = MLX_QUANTIZED[name]
    checkpoint = make_checkpoint(variant)
    format_ = f"affine{variant.bits}-g{variant.group_size}"
    build_pack(checkpoint, tmp_path / "pack", expert_format=format_)
    tensors = stored(checkpoint)
    with Pack.open(tmp_path / "pack") as pack:
        for layer in range(variant.shape.layers):
            stem = f"language_model.model.layers.{layer}.mlp.switch_mlp"
            parts = [
                tensors[f"{stem}.{projection}_proj.{part}"]
                for projection in ("gate", "up", "down")
                for part in ("weight", "scales", "biases")
            ]
            for expert in range(variant.shape.experts):
                joined = b"".join(part[expert].tobytes() for part in parts)
                assert pack.read_record(layer, expert).tobytes() == joined.ljust(pack.records[layer].stride, b"\0")


@pytest.mark.parametrize("name", ["4 bits", "4 bits of fp16", "4 bits of fp32", "mixed 2 and 6 bits", "odd, 4 bits"])
def test_quantized_trunks_pass_through_bit_for_bit(name: str, make_checkpoint: CheckpointMaker, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(MLX_QUANTIZED[name])
    build_pack(checkpoint, tmp_path / "pack")
    tensors = {canonical(key): value for key, value in stored(checkpoint).items()}
    with Pack.open(tmp_path / "pack") as pack:
        assert pack.trunk.entries.keys() == {key for key in tensors if ".switch_mlp." not in key}
        for key in pack.trunk.entries:
            if key.removesuffix(".weight").endswith((*CENTERED_NORMS, "linear_attn.norm")):
                np.testing.assert_array_equal(pack.trunk.read(key), tensors[key].astype(np.float32))
            else:
                assert pack.trunk.read(key).dtype == tensors[key].dtype
                assert pack.trunk.read(key).tobytes() == tensors[key].tobytes()


def test_scales_that_are_not_bf16_are_not_passed_into_records(make_checkpoint: CheckpointMaker, tmp_path: Path) -> None:
    packing = build_pack(
        make_checkpoint(MLX_QUANTIZED["4 bits of fp16"]), tmp_path / "pack", expert_format="affine4-g64"
    )
    assert len(packing.recoded) == 3 * TINY.layers
    assert ml_dtypes.bfloat16 == np.dtype(pack_scale_dtype(tmp_path / "pack"))


def pack_scale_dtype(path: Path) -> str:
    with Pack.open(path) as pack:
        return pack.records[0]["gate.scales"].dtype


@pytest.mark.parametrize(
    ("variant", "dialect"), [(Variant(dialect="mlx"), "mlx"), (Variant(fused=True, vision=True), "huggingface")]
)
def test_an_unquantized_mlx_checkpoint_is_told_from_its_source(
    variant: Variant, dialect: str, make_checkpoint: CheckpointMaker, tmp_path: Path
) -> None:
    """Same weights, but MLX's norms are multipliers already: adding one twice would pass every shape check."""
    packing = build_pack(make_checkpoint(variant), tmp_path / "pack")
    assert packing.source.dialect == dialect
    with Pack.open(tmp_path / "pack") as pack:
        assert abs(pack.trunk.read("model.norm.weight").mean() - 1) < 0.1


def test_what_a_text_model_does_without_is_left_out_and_counted(
    make_checkpoint: CheckpointMaker, tmp_path: Path
) -> None:
    checkpoint = make_checkpoint(Variant(fused=True, vision=True))
    packing = build_pack(checkpoint, tmp_path / "pack")
    with safe_open(checkpoint / "model.safetensors", "pt") as file:
        sizes = {name: file.get_tensor(name).nbytes for name in file.keys()}  # noqa: SIM118
    left = {part.what: part.size for part in packing.source.left_out}
    assert left["the vision tower"] == sum(size for name, size in sizes.items() if name.startswith("model.visual."))
    assert left["multi-token prediction"] == sum(size for name, size in sizes.items() if name.startswith("mtp."))
