"""The models that `make bench` measures, each made once under build/bench, for us and for peers."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from extended.peers.llama_programs import Build
from extended.synthetic import Routing, Width, write_checkpoint
from extended.twin import write_twin
from extended.words import write_tokenizer

ROOT = Path(__file__).parents[3]
PLACE = ROOT / "build" / "bench"
MOE_PACK = Path(sys.executable).parent / "moe-pack"
MOE_RUN = Path(sys.executable).parent / "moe-run"
THREADS = 2


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


MID = Subject("mid", Width(layers=4, experts=32, vocab=8192))
LOCAL = Subject("local", Width(layers=4, experts=128, vocab=8192, routing=Routing(popular=0.2, topical=0.3)))
QUICK = ("--expert-format", "affine2-g64", "--method", "minmax")
WIDE = Subject("wide", Width(layers=8, experts=512, vocab=8192), QUICK)


def demo() -> Path:
    """A pack of the shipped demo model."""
    path = PLACE / "demo-pack"
    if not path.exists():
        _run(MOE_PACK, "demo", path)
    return path


def _run(*command: object) -> None:
    subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
