"""What becomes of the trunk under each recipe: what is recoded, within which bounds, and what never is."""

from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from checkpoints import ODD, TINY, CheckpointMaker, Variant
from oracle import trunk_tensors
from packs import build_pack

from moepack.convert import trunk
from moepack.layout.reader import Pack

FLOATS = {"bf16": Variant(), "fp16": Variant(dtype="float16"), "fp32": Variant(dtype="float32")}
DTYPES = {"bf16": "BF16", "fp16": "F16", "fp32": "F32"}
SENSITIVE = (
    *("lm_head.weight", "self_attn.o_proj.weight", "linear_attn.out_proj.weight"),
    *(f"mlp.shared_expert.{projection}_proj.weight" for projection in ("gate", "up", "down")),
)
UNTOUCHED = (".mlp.gate.weight", ".shared_expert_gate.weight", "conv1d.weight", "A_log", "dt_bias")


def trunk_of(path: Path) -> dict[str, np.ndarray]:
    with Pack.open(path) as pack:
        return dict(trunk_tensors(pack))


def packed(checkpoint: Path, target: Path, recipe: str) -> tuple[dict[str, np.ndarray], dict[str, str], dict[str, str]]:
    """A trunk's values, the dtype tag of each tensor, and the format of each quantized module."""
    build_pack(checkpoint, target, expert_format="affine2-g32", trunk=recipe)
    with Pack.open(target) as pack:
        dtypes = {name: entry.dtype for name, entry in pack.trunk.entries.items()}
        return dict(trunk_tensors(pack)), dtypes, pack.manifest.trunk.formats


@pytest.mark.parametrize("source", FLOATS)
@pytest.mark.parametrize(("recipe", "bits"), [("affine8-g64", 8), ("affine4-g64", 4)])
def test_float_matrices_are_quantized_finely(
    source: str, recipe: str, bits: int, make_checkpoint: CheckpointMaker, tmp_path: Path
) -> None:
    checkpoint = make_checkpoint(FLOATS[source])
    original, dtypes, _ = packed(checkpoint, tmp_path / "original", "source")
    found, _, formats = packed(checkpoint, tmp_path / "pack", recipe)
    assert set(dtypes.values()) == {DTYPES[source], "F32"}
    assert found.keys() == original.keys()
    for name, values in original.items():
        if name.removesuffix(".weight") in formats:
            groups = values.reshape(len(values), -1, 64)
            finest = 8 if name.endswith(SENSITIVE) else bits
            assert formats[name.removesuffix(".weight")] == f"affine{finest}-g64"
            step = (groups.max(-1) - groups.min(-1)) / (2**finest - 1)
            errors = np.sqrt(((found[name] - values).reshape(groups.shape) ** 2).mean(-1))
            assert (errors <= 0.4 * step + 2**-10 * np.abs(groups).max(-1)).all(), name
        else:
            np.testing.assert_array_equal(found[name], values, err_msg=name)
    assert {"model.embed_tokens", "lm_head", "model.layers.0.linear_attn.in_proj_a"} <= formats.keys()
    assert not [name for name in formats if f"{name}.weight".endswith(UNTOUCHED)]


def test_an_embedding_that_is_the_output_head_too_has_8_bits(make_checkpoint: CheckpointMaker, tmp_path: Path) -> None:
    for tied, bits in ((True, 8), (False, 4)):
        checkpoint = make_checkpoint(Variant(replace(TINY, tied=tied)))
        _, _, formats = packed(checkpoint, tmp_path / str(tied), "affine4-g64")
        assert formats["model.embed_tokens"] == f"affine{bits}-g64"


def test_sensitive_parts_with_fewer_bits_already_stay(make_checkpoint: CheckpointMaker, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(Variant(dialect="mlx", bits=6))
    _, _, before = packed(checkpoint, tmp_path / "source", "source")
    _, _, after = packed(checkpoint, tmp_path / "pack", "affine4-g64")
    for stem, format_ in after.items():
        kept = f"{stem}.weight".endswith((*SENSITIVE, *UNTOUCHED))
        assert format_ == (before[stem] if kept else "affine4-g64"), stem


@pytest.mark.parametrize("source", FLOATS)
def test_bf16_rounds_matrices_once_and_spares_the_rest(
    source: str, make_checkpoint: CheckpointMaker, tmp_path: Path
) -> None:
    checkpoint = make_checkpoint(FLOATS[source])
    original, _, _ = packed(checkpoint, tmp_path / "original", "source")
    found, dtypes, formats = packed(checkpoint, tmp_path / "pack", "bf16")
    assert formats == {}
    for name, values in original.items():
        if values.ndim == 2 and not name.endswith(UNTOUCHED):
            assert dtypes[name] == "BF16"
            values = values.astype(ml_dtypes.bfloat16).astype(np.float32)
        np.testing.assert_array_equal(found[name], values, err_msg=name)


def test_bf16_from_quantized_keeps_the_router_as_it_was(make_checkpoint: CheckpointMaker, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(Variant(dialect="mlx", bits=4))
    original, _, before = packed(checkpoint, tmp_path / "original", "source")
    found, _, after = packed(checkpoint, tmp_path / "pack", "bf16")
    assert after == {name: format_ for name, format_ in before.items() if f"{name}.weight".endswith(UNTOUCHED)}
    for name, values in original.items():
        recoded = name.removesuffix(".weight") in before.keys() - after.keys()
        expected = values.astype(ml_dtypes.bfloat16).astype(np.float32) if recoded else values
        np.testing.assert_array_equal(found[name], expected, err_msg=name)


def test_matrices_that_groups_do_not_divide_stay_as_they_are(make_checkpoint: CheckpointMaker, tmp_path: Path) -> None:
    _, dtypes, formats = packed(make_checkpoint(Variant(shape=ODD)), tmp_path / "pack", "affine4-g64")
    left = {name for name, dtype in dtypes.items() if dtype == "BF16" and name.endswith("_proj.weight")}
    assert left == {f"model.layers.{layer}.{name}" for layer, name in divided_by_32_only()}
    assert "model.layers.0.linear_attn.in_proj_qkv" in formats


def divided_by_32_only() -> set[tuple[int, str]]:
    """ODD's value heads and query heads have 96 dimensions in all."""
    return {(layer, "linear_attn.out_proj.weight") for layer in range(3)} | {(3, "self_attn.o_proj.weight")}


def test_a_trunk_already_in_the_format_passes_through(make_checkpoint: CheckpointMaker, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(Variant(dialect="mlx", bits=4))
    build_pack(checkpoint, tmp_path / "source")
    build_pack(checkpoint, tmp_path / "affine4", trunk="affine4-g64")
    name = "trunk.safetensors"
    assert (tmp_path / "source" / name).read_bytes() == (tmp_path / "affine4" / name).read_bytes()


@pytest.mark.parametrize("recipe", ["source", "bf16", "affine4-g64"])
@pytest.mark.parametrize("variant", [Variant(dtype="float32"), Variant(dialect="mlx", bits=8)], ids=["floats", "codes"])
def test_blocks_of_rows_do_not_show(
    recipe: str, variant: Variant, make_checkpoint: CheckpointMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However small the blocks in which a tensor streams through memory, the file is the same."""
    checkpoint = make_checkpoint(variant)
    build_pack(checkpoint, tmp_path / "whole", trunk=recipe)
    monkeypatch.setattr(trunk, "BLOCK_BYTES", 3 * 4 * TINY.hidden)
    monkeypatch.setattr(trunk, "BLOCK_WEIGHTS", 3 * TINY.hidden)
    build_pack(checkpoint, tmp_path / "blocks", trunk=recipe)
    name = "trunk.safetensors"
    assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "blocks" / name).read_bytes()


def test_norms_are_stored_as_float32_multipliers(make_checkpoint: CheckpointMaker, tmp_path: Path) -> None:
    _, dtypes, _ = packed(make_checkpoint(Variant()), tmp_path / "pack", "affine4-g64")
    norms = {name for name in dtypes if "norm" in name}
    assert len(norms) == 2 * TINY.layers + 3 + 2 + 1
    assert {dtypes[name] for name in norms} == {"F32"}
