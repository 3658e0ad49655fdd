"""The parts of `make bench`, each a list of series: contenders take turns, and every turn is kept."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from extended.peers.llama_programs import Build
from extended.performance import limited
from extended.performance.limited import forget
from extended.performance.locality import Locality, trace
from extended.performance.page import SIZES
from extended.performance.rounding import cost
from extended.performance.series import Series
from extended.performance.sides import (
    LlamaBench,
    Side,
    evaluated_rate,
    ik_llama,
    llama,
    ours,
    printed_rate,
    transformers,
)
from extended.performance.subjects import MID, MOE_RUN, ROUTED, SHARED, THREADS, WIDE, Subject, demo, trained
from extended.words import text, tokenizer
from kernel_sets import KERNEL_SETS, run_on

from moepack.layout.reader import Pack
from moepack.runtime.asked import Asked
from moepack.runtime.engine import Engine, EngineOptions
from moepack.runtime.language import Language

DECODED, PROMPTS, ROUNDS = 32, (128, 2048), 5
PROMPT_ROUNDS = {128: 3, 2048: 3}
LIMITS = {"600 MiB": 600 * 2**20, "450 MiB": 450 * 2**20}
TRACED = 3000  # tokens whose routing is looked at
LIMITED_TOKENS, LIMITED_ROUNDS = 16, 3
OVER = 1.05  # a budget is kept within 5 %: what we are told to use, so that the limit is not passed
KERNELS = [Path(__file__).parent.parent / name for name in ("kernels.py", "mixers.py")]
FUSED = [name for name in KERNEL_SETS if name != "baseline"]
Turn = Callable[[], tuple[float, dict[str, Any]]]  # one round of one contender: a value, and what else was seen


@dataclass(frozen=True)
class Peers:
    """Builds of other engines, None where no path was given."""

    llama: Build | None
    ik: Path | None

    @classmethod
    def named(cls) -> "Peers":
        """As LLAMA_CPP and IK_LLAMA_CPP say."""
        llama, ik = os.environ.get("LLAMA_CPP"), os.environ.get("IK_LLAMA_CPP")
        return cls(Build.open(Path(llama), THREADS, BENCH_PROGRAMS) if llama else None, Path(ik) if ik else None)

    def sides(self, subject: Subject) -> list[LlamaBench]:
        """All that can be run. Quantizing takes llama.cpp's programs; ik_llama.cpp reads the same file."""
        if self.llama is None:
            return []
        model = subject.gguf(self.llama)
        return [*llama(self.llama, model), *(ik_llama(self.ik, model) if self.ik else [])]


BENCH_PROGRAMS = ("llama-quantize", "llama-bench")


def decode(peers: Peers) -> list[Series]:
    """Decoding with everything in memory."""
    with ExitStack() as resources:
        sides: list[Side] = [ours(MID, resources), *peers.sides(MID), transformers(MID)]
        found = rounds("in memory", {side.name: plainly(side.decode, DECODED) for side in sides}, ROUNDS)
    sizes = {"moepack": MID.pack_bytes, "transformers": MID.twin_bytes}
    if peers.llama is not None:
        sizes |= dict.fromkeys(("llama.cpp", "ik_llama.cpp"), partial(MID.gguf_bytes, peers.llama))
    return [replace(each, seen={**each.seen, "bytes_per_token": sizes[each.side.split()[0]]()}) for each in found]


def prefill(peers: Peers) -> list[Series]:
    """Prompts of several lengths with everything in memory."""
    found = []
    with ExitStack() as resources:
        sides: list[Side] = [ours(MID, resources, chunk=max(PROMPTS)), *peers.sides(MID), transformers(MID)]
        for tokens in PROMPTS:
            turns = {side.name: plainly(side.prefill, tokens) for side in sides}
            found += rounds(f"{tokens} tokens", turns, PROMPT_ROUNDS[tokens])
    return found


def beyond(peers: Peers) -> list[Series]:
    """Decoding in less memory than the model takes, caches dropped before every round."""
    if (reason := limited.unavailable()) is not None:
        print(reason, file=sys.stderr)
        return []
    found = []
    for case, limit in LIMITS.items():
        turns = {"moepack": partial(limited_bench, MID.pack, limit)}
        if peers.llama is not None:
            plain = llama(peers.llama, MID.gguf(peers.llama))[0]
            turns[f"{plain.name}, mmap"] = partial(limited_llama, plain, limit)
        if peers.llama is not None and peers.ik is not None:
            turns["ik_llama.cpp Q2_K --prefetch-experts"] = partial(limited_ik, peers.ik, MID.gguf(peers.llama), limit)
        found += rounds(case, turns, LIMITED_ROUNDS, warm_up=False)
    return found


def limited_bench(pack: Path, limit: int, *options: str) -> tuple[float, dict[str, Any]]:
    """`moe-run bench` under a limit; its own account of the warm decoding goes along."""
    forget(pack)
    sizes = ("--prompt-tokens", "16", "--decode-tokens", str(LIMITED_TOKENS), "--repetitions", "1", "--context", "512")
    memory = ("--memory", f"{int(limit / OVER)}", "--threads", str(THREADS), "--chunk", "16")
    ran = limited.run([str(MOE_RUN), "bench", str(pack), "--json", *sizes, *memory, *options], limit)
    document = json.loads(ran.printed[ran.printed.index("{") : ran.printed.rindex("}") + 1])
    figures = next(each for each in document["figures"] if (each["condition"], each["phase"]) == ("warm", "decode"))
    seen = {"group_peak": ran.peak, "figures": document["figures"]}
    kept = ("storage_gigabytes_per_second", "slots", "peak_resident_bytes", "experts_per_token")
    return figures["tokens_per_second"], seen | {name: document[name] for name in kept}


def limited_llama(side: LlamaBench, limit: int) -> tuple[float, dict[str, Any]]:
    """llama-bench under a limit, from a file whose pages were dropped; its own warm-up of a token comes first."""
    forget(side.model)
    ran = limited.run(side.command("-p", "0", "-n", str(LIMITED_TOKENS)), limit)
    return printed_rate(ran.printed), {"group_peak": ran.peak}


def limited_ik(programs: Path, model: Path, limit: int) -> tuple[float, dict[str, Any]]:
    """llama-cli of ik_llama.cpp, since its llama-bench knows no --prefetch-experts; it leaves a log where it runs."""
    forget(model)
    asked = ("-p", "babe", "-n", str(LIMITED_TOKENS), "-c", "512", "-s", "1", "--ignore-eos", "--prefetch-experts")
    command = [str(programs.resolve() / "bin" / "llama-cli"), "-m", str(model.resolve()), "-t", str(THREADS), *asked]
    with TemporaryDirectory() as folder:
        ran = limited.run(command, limit, folder=Path(folder))
    return evaluated_rate(ran.printed), {"group_peak": ran.peak}


def digests(peers: Peers) -> list[Series]:
    """What checking every record costs while decoding from the disk, on and off in turn."""
    if (reason := limited.unavailable()) is not None:
        print(reason, file=sys.stderr)
        return []
    case, limit = next(iter(LIMITS.items()))
    options = {"checked": (), "not checked": ("--no-check-digests",)}
    turns = {name: partial(limited_bench, MID.pack, limit, *given) for name, given in options.items()}
    return rounds(case, turns, ROUNDS, warm_up=False)


def start(peers: Peers) -> list[Series]:
    """Seconds from the command to the first token of the demo model, and those of its prefill itself."""
    command = [str(MOE_RUN), "generate", str(demo()), "-p", "What is the weather in Oslo?", "-n", "1", "--json"]
    command += ["--temp", "0", "--threads", str(THREADS)]

    def turn() -> tuple[float, dict[str, Any]]:
        begun = time.perf_counter()
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        return time.perf_counter() - begun, {"prefill": json.loads(done.stdout)["prompt_seconds"]}

    return rounds("demo model", {"moe-run generate": turn}, ROUNDS)


def wide(peers: Peers) -> list[Series]:
    """Eight layers of the 397B model's full width in 6 GB of memory, prompts of 2048. Its files take 50 GB of disk."""
    if (reason := limited.unavailable()) is not None:
        print(reason, file=sys.stderr)
        return []
    sizes = ("--prompt-tokens", "2048", "--decode-tokens", "32", "--chunk", "2048", "--context", "4096")
    turns = {"moepack": partial(limited_bench, WIDE.pack, int(6e9 * OVER), *sizes)}
    return rounds("6 GB", turns, 1, warm_up=False)


def kernels(peers: Peers) -> list[Series]:
    """Experts by format, attention and the delta rule, on the instruction sets of this machine: one process each."""
    found = []
    for script, name in product(KERNELS, FUSED):
        done = run_on(name, str(script))
        if done.returncode == 0:
            found.append(Series(f"{script.stem}, {name}", "moepack", [], {"printed": done.stdout}))
        elif "names no instruction set" not in done.stderr:
            raise RuntimeError(done.stderr)
    return found


def locality(peers: Peers) -> list[Series]:
    """How far experts are used again: synthetic models on a text of theirs and on random tokens, and trained ones."""
    found = []
    for name, subject in ROUTED.items():
        vocab, topics = subject.width.vocab, subject.width.routing.topics
        local = tokenizer(vocab).encode(text(vocab, topics, TRACED)).ids
        drawn = np.random.default_rng(0).integers(vocab, size=TRACED).tolist()
        for tokens, side in ((local, f"synthetic, {name}, its text"), (drawn, f"synthetic, {name}, random tokens")):
            found += reuse(subject.pack, side, tokens)
    if (pack := trained()) is not None:
        found += reuse(pack, "trained, 16 experts, 4 per token, English", english(pack))
    return found


def reuse(pack: Path, side: str, tokens: Sequence[int]) -> list[Series]:
    """Hit rates of least-recently-used caches of some shares of a layer's experts, and neighbours' overlap."""
    with Engine.open(pack, EngineOptions(threads=THREADS, context=len(tokens))) as engine:
        experts = engine.model.num_experts
        seen = Locality.of(trace(engine, tokens), experts, SIZES)
    hits = {f"{count / experts:.3g}": rate for count, rate in seen.hits.items() if count >= seen.experts_per_token}
    return [Series(case, side, [value]) for case, value in (hits | {"overlap": seen.overlap}).items()]


def english(pack: Path) -> list[int]:
    """Held-out text in a trained model's tokens."""
    with Pack.open(pack) as opened:
        tokens = Asked(prompt_file=SHARED / "text" / "val_text.txt", raw=True).tokens(Language.of(opened))
    return tokens[:TRACED]


def rounding(peers: Peers) -> list[Series]:
    """What rounding activations to fifteen bits costs: KL to float32 arithmetic on the trained model's texts."""
    if (pack := trained()) is None:
        return []
    found = []
    for name, file in (("prose", "val_text.txt"), ("conversations", "val_chat.txt")):
        seen = cost(pack, SHARED / "text" / file, threads=THREADS)
        found.append(Series("KL to float32 activations", name, [seen.divergence], asdict(seen)))
    return found


PARTS = {each.__name__: each for each in (decode, prefill, beyond, digests, start, rounding, locality, kernels, wide)}
DEFAULT = [name for name in PARTS if name != "wide"]


def plainly(work: Callable[[int], float], tokens: int) -> Turn:
    """A turn of which nothing else is kept."""
    return lambda: (work(tokens), {})


def rounds(case: str, turns: dict[str, Turn], count: int, *, warm_up: bool = True) -> list[Series]:
    """All contenders in turn, `count` times, after one uncounted round if they are to be warm."""
    taken: dict[str, list[tuple[float, dict[str, Any]]]] = {name: [] for name in turns}
    for round_ in range(count + warm_up):
        for name in list(turns)[:: -1 if round_ % 2 else 1]:  # nobody always follows the same one
            taken[name].append(turns[name]())
            print(f"{case}, {name}: {taken[name][-1][0]:.2f}", file=sys.stderr)
    counted = {name: each[warm_up:] for name, each in taken.items()}
    return [
        Series(case, name, [value for value, _ in each], {"rounds": [seen for _, seen in each]})
        for name, each in counted.items()
    ]
