"""A tiny but genuine pack for the tests: random bytes in the real layout, written by the real writer."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from moepack.layout.formats import parse
from moepack.layout.plan import PackPlan, TensorSpec, expert_shape
from moepack.layout.record import RecordLayout
from moepack.layout.tensorfile import ARRAY_DTYPES
from moepack.layout.writer import PackWriter
from moepack.manifests import canonical, digest, schema

FORMATS = {"gate": "affine2-g32", "up": "affine2-g32", "down": "affine4-g32"}
TRUNK = (
    TensorSpec("model.norm.weight", "F32", (32,)),
    TensorSpec("model.embed_tokens.weight", "BF16", (5, 32)),
    TensorSpec("lm_head.weight", "U32", (5, 4)),
    TensorSpec("lm_head.scales", "BF16", (5, 1)),
    TensorSpec("lm_head.biases", "BF16", (5, 1)),
    TensorSpec("model.layers.0.linear_attn.A_log", "F32", (2,)),
)


def tiny_model(layers: int = 2, experts: int = 3, hidden: int = 32, intermediate: int = 32) -> schema.Model:
    return schema.Model(
        family="qwen3_5_moe",
        hidden_size=hidden,
        vocab_size=5,
        layer_types=["linear_attention", "full_attention"][:layers] * max(1, layers // 2),
        num_experts=experts,
        num_experts_per_tok=2,
        moe_intermediate_size=intermediate,
        shared_expert_intermediate_size=32,
        full_attention=schema.FullAttention(2, 1, 16, 4, 1e7),
        linear_attention=schema.LinearAttention(1, 2, 8, 8, 4),
        rms_norm_eps=1e-6,
        max_position_embeddings=64,
        tie_word_embeddings=False,
    )


def tiny_plan(folder: Path, model: schema.Model | None = None, formats: dict[str, str] | None = None) -> PackPlan:
    """A plan whose copied file lies in `folder`."""
    model = model or tiny_model()
    config = folder / "config.json"
    config.write_text('{"model_type": "tiny"}')
    parsed = {projection: parse(name) for projection, name in (formats or FORMATS).items()}
    layout = RecordLayout.of(expert_shape(model), parsed)
    return PackPlan(
        model=model,
        records=(layout,) * model.num_layers,
        trunk=TRUNK,
        trunk_formats={"lm_head": "affine4-g32"},
        copied=(config,),
        recipe=schema.Recipe("affine2-g32", "minmax", "source", 1),
        source=schema.Source("mlx", None, None, [schema.SourceFile("model.safetensors", 1234, "ab" * 32, "cd" * 32)]),
    )


@dataclass(frozen=True)
class Content:
    """The bytes of a pack, made from a seed."""

    plan: PackPlan
    seed: int = 0

    def record(self, layer: int, expert: int) -> np.ndarray:
        layout = self.plan.records[layer]
        record = np.zeros(layout.stride, np.uint8)
        random = np.random.default_rng([self.seed, layer, expert])
        record[: layout.size] = random.integers(0, 256, layout.size, np.uint8)
        return record

    def tensor(self, spec: TensorSpec) -> np.ndarray:
        values = np.random.default_rng([self.seed, *spec.name.encode()]).integers(0, 100, spec.shape)
        return values.astype(ARRAY_DTYPES[spec.dtype])


def write_layer(writer: PackWriter, content: Content, index: int) -> None:
    with writer.layer(index) as sink:
        for expert in range(content.plan.model.num_experts):
            sink.append(content.record(index, expert))


def write_missing(writer: PackWriter, content: Content) -> schema.Manifest:
    """Write all that is missing, and commit."""
    if writer.trunk_missing:
        with writer.trunk() as sink:
            for spec in content.plan.trunk:
                sink.write_blocks(spec.name, [content.tensor(spec)])
    for index in writer.missing_layers():
        write_layer(writer, content, index)
    return writer.commit()


def build(target: Path, plan: PackPlan, seed: int = 0, fingerprint: str = "") -> schema.Manifest:
    """Build (or finish) a whole pack at `target`."""
    with PackWriter.open(target, plan, fingerprint=fingerprint) as writer:
        return write_missing(writer, Content(plan, seed))


def tree(folder: Path) -> dict[str, bytes]:
    """Every file of a folder with its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def replace_file(path: Path, content: bytes | bytearray) -> None:
    """Give a (read-only) file of a pack other bytes."""
    path.unlink()
    path.write_bytes(content)


def edit_manifest(pack: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    """Change a pack's manifest and seal it again, as an attacker who knows the format would."""
    fields = json.loads((pack / "manifest.json").read_bytes())
    edit(fields)
    fields.pop("checksum", None)
    fields["checksum"] = digest.of_bytes(canonical.encode(fields)).hex()
    replace_file(pack / "manifest.json", canonical.encode(fields))


def seal_sums(pack: Path) -> None:
    """Make SHA256SUMS agree with the files as they are, and the manifest with that, whatever other digests say."""
    listed = [line.split("  ")[1] for line in (pack / "SHA256SUMS").read_text().splitlines()]
    sums = "".join(f"{sha256((pack / name).read_bytes()).hexdigest()}  {name}\n" for name in listed).encode()
    replace_file(pack / "SHA256SUMS", sums)

    def edit(fields: dict[str, Any]) -> None:
        entry = next(file for file in fields["files"] if file["name"] == "SHA256SUMS")
        entry["blake3"] = digest.of_bytes(sums).hex()

    edit_manifest(pack, edit)
