"""The models that `make bench` measures, each made once under build/bench, for us and for peers."""

import os
import re
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from extended.peers.llama_programs import Build
from extended.synthetic import LOCAL, Width, write_checkpoint
from extended.twin import write_twin
from extended.words import write_tokenizer

from moepack.layout.reader import Pack
from moepack.layout.tensorfile import TensorFile

ROOT = Path(__file__).parents[3]
PLACE = ROOT / "build" / "bench"
SHARED = Path(os.environ.get("MOEPACK_SHARED", ROOT.parent / "shared")) / "models"
MOE_PACK = Path(sys.executable).parent / "moe-pack"
MOE_RUN = Path(sys.executable).parent / "moe-run"
THREADS = 2
EMBEDDING = re.compile(r"embed_tokens|token_embd")
ROUTED_EXPERTS = re.compile(r"\bexperts\.|_exps\b")


@dataclass(frozen=True)
class Subject:
    """A synthetic model; its files are made when they are first asked for."""

    name: str
    width: Width
    options: tuple[str, ...] = ()  # of moe-pack build

    @property
    def place(self) -> Path:
        return PLACE / self.name

    @property
    def checkpoint(self) -> Path:
        """MLX 4-bit, as the mission's source is."""
        path = self.place / "checkpoint"
        if not path.exists():
            write_checkpoint(self.width, path)
            write_tokenizer(self.width.vocab, path)
        return path

    @property
    def pack(self) -> Path:
        """2-bit experts, the trunk as in the source."""
        path = self.place / "pack"
        if not path.exists():
            _run(MOE_PACK, "build", self.checkpoint, path, *self.options)
        return path

    @property
    def twin(self) -> Path:
        """The source's weights in bfloat16."""
        path = self.place / "twin"
        if not path.exists():
            write_twin(self.checkpoint, path)
        return path

    def gguf(self, build: Build) -> Path:
        """The twin as llama.cpp's Q2_K, which is of about our size: 3.04 bits a weight in all."""
        path, floats = self.place / "Q2_K.gguf", self.place / "bf16.gguf"
        if not path.exists():
            build.convert(self.twin, floats, "bf16")
            build.run("llama-quantize", floats, path, "Q2_K", str(THREADS))
            floats.unlink()
        return path

    def pack_bytes(self) -> float:
        """Bytes of weights that a token decoded from the pack is computed with."""
        with Pack.open(self.pack) as pack:
            trunk = {name: entry.size for name, entry in pack.trunk.entries.items()}
            records = {f"experts.{i}": record.stride * pack.model.num_experts for i, record in enumerate(pack.records)}
        return self._per_token(trunk | records)

    def gguf_bytes(self, build: Build) -> float:
        """The same of the GGUF file."""
        return self._per_token({name: size for name, (_, size, _) in build.sizes(self.gguf(build)).items()})

    def twin_bytes(self) -> float:
        """The same of the bfloat16 twin."""
        sizes = {}
        for path in self.twin.glob("*.safetensors"):
            with TensorFile.open(path) as file:
                sizes |= {name: entry.size for name, entry in file.entries.items()}
        return self._per_token(sizes)

    def _per_token(self, sizes: dict[str, int]) -> float:
        """All of the trunk but the embedding, of which a token reads a row, and its share of the routed experts."""
        share = self.width.experts_per_token / self.width.experts
        kept = {name: size for name, size in sizes.items() if not EMBEDDING.search(name)}
        return sum(size * (share if ROUTED_EXPERTS.search(name) else 1) for name, size in kept.items())


MID = Subject("mid", Width(layers=4, experts=32, vocab=8192))
QUICK = ("--expert-format", "affine2-g64", "--method", "minmax")
WIDE = Subject("wide", Width(layers=8, experts=512, vocab=8192), QUICK)
NARROW = Width(layers=4, hidden=1024, intermediate=64, vocab=8192, heads=8, key_heads=4, value_heads=16, routing=LOCAL)
ROUTED = {  # what only routing is looked at of, so narrow ones do
    "512 experts, 4 per token": Subject("routed-512-4", replace(NARROW, experts_per_token=4), QUICK),
    "512 experts, 10 per token": Subject("routed-512-10", NARROW, QUICK),
    "16 experts, 4 per token": Subject("routed-16-4", replace(NARROW, experts=16, experts_per_token=4), QUICK),
}


def trained() -> Path | None:
    """A pack of the trained 66-million-parameter model, where that is at hand (see ../quality/subjects.py)."""
    checkpoint, path = SHARED / "trained-66m", PLACE / "trained-66m"
    if checkpoint.is_dir() and not path.exists():
        _run(MOE_PACK, "build", checkpoint, path)
    return path if path.exists() else None


def demo() -> Path:
    """A pack of the shipped demo model."""
    path = PLACE / "demo-pack"
    if not path.exists():
        _run(MOE_PACK, "demo", path)
    return path


def _run(*command: object) -> None:
    PLACE.mkdir(parents=True, exist_ok=True)
    subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
