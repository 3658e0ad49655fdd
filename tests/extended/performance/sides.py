"""The contenders: each prefills a prompt or decodes, and says how many tokens per second that were.

Everyone gets random tokens and THREADS threads. llama.cpp and ik_llama.cpp run their own llama-bench, whose figures
are taken as printed; ours and transformers run in this process. Models are loaded outside of what is timed.
"""

import json
import re
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from extended.peers.llama_programs import Build
from extended.performance.subjects import THREADS, Subject

from moepack.runtime.engine import Engine, EngineOptions

EVALUATED = re.compile(r"^\S*\s+eval time =.*?([\d.]+) tokens per second", re.MULTILINE)


class Side(Protocol):
    """A contender with everything in memory."""

    @property
    def name(self) -> str:
        """What the page calls it."""

    def prefill(self, tokens: int) -> float:
        """Tokens per second of a prompt."""

    def decode(self, tokens: int) -> float:
        """Tokens per second, one after the other, from an empty context."""


@dataclass
class Local:
    """A model in this process: `start` begins a sequence, `extend` adds tokens to it and gives logits."""

    name: str
    vocab: int
    start: Callable[[], Callable[[Sequence[int]], object]]
    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def prefill(self, tokens: int) -> float:
        extend, drawn = self.start(), self._drawn(tokens)
        return _rate(tokens, lambda: extend(drawn))

    def decode(self, tokens: int) -> float:
        extend, drawn = self.start(), self._drawn(tokens + 1)
        extend(drawn[:1])
        return _rate(tokens, lambda: [extend([token]) for token in drawn[1:]])

    def _drawn(self, count: int) -> list[int]:
        drawn: list[int] = self.random.integers(self.vocab, size=count).tolist()
        return drawn


def _rate(tokens: int, work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return tokens / (time.perf_counter() - start)


def ours(subject: Subject, resources: ExitStack, **options: Any) -> Local:
    """moepack, with every expert in a slot after the first rounds."""
    engine = resources.enter_context(Engine.open(subject.pack, EngineOptions(threads=THREADS, **options)))
    return Local("moepack", subject.width.vocab, lambda: engine.new_session().extend)


def transformers(subject: Subject) -> Local:
    """transformers in bfloat16, with its fastest implementation of experts here and its own key-value cache."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(THREADS)
    model = AutoModelForCausalLM.from_pretrained(subject.twin, dtype=torch.bfloat16)

    def start() -> Callable[[Sequence[int]], object]:
        cache: Any = None

        @torch.inference_mode()
        def extend(tokens: Sequence[int]) -> object:
            nonlocal cache
            found = model(torch.tensor([list(tokens)]), past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = found.past_key_values
            return found.logits

        return extend

    return Local("transformers bf16", subject.width.vocab, start)


@dataclass(frozen=True)
class LlamaBench:
    """llama-bench of llama.cpp or ik_llama.cpp, in one of its modes."""

    name: str
    programs: Path
    model: Path
    mode: tuple[str, ...]

    def prefill(self, tokens: int) -> float:
        return self._rate("-p", str(tokens), "-n", "0")

    def decode(self, tokens: int) -> float:
        return self._rate("-p", "0", "-n", str(tokens))

    def command(self, *asked: str) -> list[str]:
        """How it is called."""
        common = ("-m", str(self.model), "-t", str(THREADS), "-r", "1", "-o", "json")
        return [str(self.programs / "llama-bench"), *common, *self.mode, *asked]

    def _rate(self, *asked: str) -> float:
        done = subprocess.run(self.command(*asked), check=True, capture_output=True, text=True)
        return printed_rate(done.stdout)


def printed_rate(printed: str) -> float:
    """Tokens per second in llama-bench's JSON, whatever else is printed around it."""
    rates: list[float] = json.loads(printed[printed.index("[\n") : printed.rindex("]") + 1])[0]["samples_ts"]
    return rates[0]


def evaluated_rate(printed: str) -> float:
    """Tokens per second of decoding, as llama-cli prints it."""
    found = EVALUATED.search(printed)
    if found is None:
        raise ValueError(f"llama-cli printed no evaluation time: {printed[-500:]}")
    return float(found[1])


def llama(build: Build, model: Path) -> list[LlamaBench]:
    """llama.cpp with its weights as they are in the file, and rearranged for its kernels."""
    return [
        LlamaBench(f"llama.cpp Q2_K{name}", build.programs, model, ("--repack", repack))
        for name, repack in ((" --no-repack", "0"), (" repacked", "1"))
    ]


def ik_llama(directory: Path, model: Path) -> list[LlamaBench]:
    """ik_llama.cpp, likewise."""
    return [
        LlamaBench(f"ik_llama.cpp Q2_K{name}", directory / "bin", model, ("-rtr", repack))
        for name, repack in (("", "0"), (" -rtr", "1"))
    ]
