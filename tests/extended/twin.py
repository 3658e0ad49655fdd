"""The bfloat16 twin of an MLX checkpoint: the same weights as transformers publishes them, for whatever reads no MLX.

Every quantized matrix is dequantized and rounded to bfloat16; norms are zero-centred again, convolutions turned back,
and each layer's experts fused into one tensor of gate and up and one of down.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import ml_dtypes
import numpy as np

from moepack.layout.formats import AffineFormat
from moepack.layout.tensorfile import TensorFile
from moepack.layout.tensorheader import TensorSpec, render
from moepack.quantize.affine import AffineMatrix, dequantize

CENTERED_NORMS = ("layernorm.weight", "q_norm.weight", "k_norm.weight", "model.norm.weight")
COPIED = ("tokenizer.json", "tokenizer_config.json")
Piece = tuple[TensorSpec, Callable[[], Iterator[np.ndarray]]]  # what a tensor is, and what makes its parts in order


def write_twin(checkpoint: Path, directory: Path) -> None:
    """Write the twin of the checkpoint, a shard for each of its shards."""
    config = json.loads((checkpoint / "config.json").read_text())
    directory.mkdir(parents=True)
    text = {"architectures": ["Qwen3_5MoeForCausalLM"], "dtype": "bfloat16", **config["text_config"]}
    (directory / "config.json").write_text(json.dumps(text, indent=2))
    for name in COPIED:
        if (checkpoint / name).exists():
            shutil.copy(checkpoint / name, directory / name)
    index = json.loads((checkpoint / "model.safetensors.index.json").read_text())["weight_map"]
    weight_map = {}
    for shard in sorted(set(index.values())):
        with TensorFile.open(checkpoint / shard) as file:
            pieces = list(Source(file, config["quantization"]).pieces())
            _write(directory / shard, pieces)
        weight_map |= {spec.name: shard for spec, _ in pieces}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def _write(path: Path, pieces: list[Piece]) -> None:
    with path.open("wb") as file:
        file.write(render([spec for spec, _ in pieces]))
        for _, parts in pieces:
            for part in parts():
                file.write(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)


class Source:
    """One shard of an MLX checkpoint; `quantization` is config.json's, with its exceptions by name."""

    def __init__(self, file: TensorFile, quantization: dict[str, object]) -> None:
        self._file = file
        self._quantization = quantization

    def pieces(self) -> Iterator[Piece]:
        """Every tensor of the twin that comes from this shard."""
        for name, entry in self._file.entries.items():
            stem, _, part = name.rpartition(".")
            if part in ("scales", "biases") or ".switch_mlp.up_proj" in name:
                continue
            if name.endswith("switch_mlp.gate_proj.weight"):
                yield self._fused(stem, "gate_up_proj", ("gate_proj", "up_proj"))
            elif name.endswith("switch_mlp.down_proj.weight"):
                yield self._fused(stem, "down_proj", ("down_proj",))
            else:
                yield self._plain(name, entry.dtype)

    def _fused(self, stem: str, fused: str, projections: tuple[str, ...]) -> Piece:
        stems = [f"{stem.rpartition('.')[0]}.{projection}" for projection in projections]
        experts, rows, groups = self._file.entries[f"{stem}.scales"].shape
        cols = groups * self._format(stem).group_size
        name = _published(f"{stem.rpartition('.')[0]}.{fused}").replace("switch_mlp", "experts")
        spec = TensorSpec(name, "BF16", (experts, rows * len(stems), cols))
        return spec, lambda: (self._matrix(part, expert) for expert in range(experts) for part in stems)

    def _plain(self, name: str, dtype: str) -> Piece:
        values = self._values(name)
        return TensorSpec(_published(name), "F32" if dtype == "F32" else "BF16", values.shape), lambda: iter([values])

    def _values(self, name: str) -> np.ndarray:
        stem = name.removesuffix(".weight")
        if f"{stem}.scales" in self._file.entries:
            return self._matrix(stem)
        values = self._file.read(name)
        if name.endswith(CENTERED_NORMS):
            return (values.astype(np.float32) - 1).astype(ml_dtypes.bfloat16)  # exact: near 1, steps are coarse
        return np.ascontiguousarray(values.transpose(0, 2, 1)) if name.endswith("conv1d.weight") else values

    def _matrix(self, stem: str, expert: int | None = None) -> np.ndarray:
        """bfloat16 [rows, cols] of a quantized matrix, or of one expert's part of a stack."""
        names = [f"{stem}.{part}" for part in ("weight", "scales", "biases")]
        read = self._file.read if expert is None else lambda name: self._file.read_row(name, expert)
        return dequantize(AffineMatrix(self._format(stem), *map(read, names))).astype(ml_dtypes.bfloat16)

    def _format(self, stem: str) -> AffineFormat:
        settings = self._quantization.get(stem, self._quantization)
        return AffineFormat(settings["bits"], settings["group_size"])


def _published(name: str) -> str:
    """transformers' name of a text model's tensor."""
    return name.removeprefix("language_model.")
