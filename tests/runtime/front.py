"""What the tests of moe-run's front share: a pack's small files in a folder, and tokenizers made on the spot."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from moepack.manifests.schema import File
from moepack.runtime.packfiles import PackFiles

SHARED = Path(os.environ.get("MOEPACK_SHARED", Path(__file__).parents[2] / ".." / "shared"))
TRAINED = SHARED / "models" / "trained-66m"
needs_trained_model = pytest.mark.skipif(not TRAINED.exists(), reason="the shared trained model is not here")

CORPUS = ["the quick brown fox says hello", "héllo wörld, 你好 世界! 🙂🙃", "def main():\n    return {'a': [1, 2]}"] * 4


def small_files(folder: Path, **contents: Any) -> PackFiles:
    """Files by name with `__` for the dot: bytes and texts as they are, anything else as JSON."""
    listed = []
    for key, value in contents.items():
        name = key.replace("__", ".")
        text = value if isinstance(value, str | bytes) else json.dumps(value)
        content = text if isinstance(text, bytes) else text.encode()
        (folder / name).write_bytes(content)
        listed.append(File(name=name, size=len(content), blake3=blake3(content).hexdigest()))
    return PackFiles(folder, listed)


def byte_level(*added: str, special: tuple[str, ...] = ("<|end|>",)) -> Tokenizer:
    """A byte-level BPE in which every byte is a token: any token sequence, also one that is no UTF-8, can occur."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({symbol: i for i, symbol in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in special])
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in added])
    return tokenizer
