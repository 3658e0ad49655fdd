"""A pack to prove something of, and what is done to it and to its checkpoint."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from ran import Ran
from safetensors.numpy import load_file, save_file
from tinypack import replace_file

LAYER = "experts/layer_01.bin"


def flip(path: Path, offset: int = 1000) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    replace_file(path, content)


def stride(pack: Path) -> int:
    return int(json.loads((pack / "manifest.json").read_bytes())["layers"][1]["stride"])


def found(ran: Ran) -> Any:
    return json.loads(ran.out)


def with_other_weights(checkpoint: Path) -> None:
    """The same names, shapes and sizes, so the same headers, but one expert of layer 1 is another."""
    file = checkpoint / "model.safetensors"
    content = bytearray(file.read_bytes())
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    start = header["model.layers.1.mlp.experts.5.up_proj.weight"]["data_offsets"][0] + 8 + length
    for weight in range(16):
        content[start + 2 * weight + 1] ^= 0x80  # the sign of a bfloat16
    replace_file(file, content)


def with_another_norm(checkpoint: Path) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"] + np.ones(1, tensors["model.norm.weight"].dtype)
    (checkpoint / "model.safetensors").unlink()
    save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})
