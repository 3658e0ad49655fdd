"""`make wide`: two layers of the 397B model's full width on the Metal backend, under the stand-in, against the CPU's.

One Gated DeltaNet layer and one with full attention, 512 experts each, K = 10, the default recipe's formats, the real
shapes of heads; only depth and vocabulary are small. Ends with an error if logits differ by more than 1e-3 of the
largest, in whatever order the stand-in runs things, if a token does, if records did not stream, or if the stand-in or
its checker finds a fault. The first tokens are held against numpy in float64 besides. Nothing here runs on Apple
hardware. The pack (4.2 GB) is kept under build/wide.
"""

import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from metal import standin
from metal.whole import Answers, along, greedy, on_cpu, on_metal
from reference import Reference
from rich.console import Console
from synthetic import DISTINCT, Width, write_checkpoint

from moepack.convert.checkpoint import Checkpoint
from moepack.convert.experts import ExpertPacker
from moepack.convert.plan import Packing, plan_pack, understand
from moepack.convert.recipe import Recipe
from moepack.convert.sources import SourceHashing
from moepack.convert.trunk import trunk_blocks
from moepack.layout.reader import Pack
from moepack.layout.record import RecordLayout
from moepack.layout.writer import PackWriter
from moepack.manifests.progress import Silent
from moepack.runtime.engine import Engine, EngineStats

standin.install()
from Metal import fake  # noqa: E402

PLACE = Path(__file__).parent.parent.parent / "build" / "wide"
PACK = PLACE / "pack"
WIDTH = Width(layers=2, interval=2)
MODES = {
    "lazy": {"mode": "lazy", "order": 0},
    "in order": {"mode": "in-order", "order": 0},
    "lazy, random order": {"mode": "lazy", "order": 20261129},
}
CHECKED = {"mode": "lazy", "order": 3, "checked": True}
PROMPT, CHUNK, DECODED = 12, 9, 3  # chunks of nine and three: products in tiles, and row by row
SHORT = 5  # tokens of the prompt for all modes but the first: a chunk takes minutes, and these still go in tiles
REFERENCE_TOKENS = 2  # so that attention and the delta rule have something to remember
SLOTS = 12  # one layer's experts of a token and two more: the next layer's take their place
MEMORY = 3 * 10**9
PATIENCE = 3600.0  # seconds that a wait may take; kernels are slow here
TOLERANCE = 1e-3  # of the largest logit
JOBS = 2
out = Console(highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class Found:
    """What a run of some tokens gave, and what it read and took."""

    name: str
    logits: list[np.ndarray]
    stats: EngineStats
    seconds: float

    @property
    def tokens(self) -> list[int]:
        return [int(logits.argmax()) for logits in self.logits]


class Failures(list[str]):
    """What went wrong so far; each is printed when it is found."""

    def require(self, met: object, sentence: str) -> None:
        if not met:
            out.print(f"FAILED: {sentence}")
            self.append(sentence)


def make_pack() -> None:
    """A few experts are packed as moe-pack packs them; the others are these with their rows rotated."""
    shutil.rmtree(PLACE, ignore_errors=True)
    write_checkpoint(WIDTH, PLACE / "checkpoint", experts=DISTINCT)
    with Checkpoint.open(str(PLACE / "checkpoint")) as checkpoint:
        packing = plan_pack(understand(checkpoint), Recipe())
        with PackWriter.open(PACK, packing.plan) as writer:
            write_trunk(packing, writer)
            for layer in range(WIDTH.layers):
                write_layer(packing, writer, layer)
            with SourceHashing(checkpoint.files, {}, "start again") as hashing:
                for file in hashing.rest(Silent()):
                    writer.source_hashed(file)
            writer.commit()
    shutil.rmtree(PLACE / "checkpoint")


def write_trunk(packing: Packing, writer: PackWriter) -> None:
    """As the pipeline does."""
    blocks = trunk_blocks(packing.trunk, packing.source.checkpoint, JOBS)
    with writer.trunk() as sink:
        for spec in packing.plan.trunk:
            sink.write_blocks(spec.name, blocks.pop(spec.name))


def write_layer(packing: Packing, writer: PackWriter, layer: int) -> None:
    """All experts of a layer, no two of them alike."""
    layout = packing.plan.records[layer]
    methods = {name: coding.method for name, coding in packing.codings[layer].items()}
    packer = ExpertPacker(packing.source.checkpoint, layout, methods, JOBS)
    with closing(packer.packed(packing.source.experts[layer], range(DISTINCT))) as packed:
        samples = [slot.record.copy() for slot in packed]
    with writer.layer(layer) as sink:
        for expert in range(WIDTH.experts):
            sink.append(rotated(samples[expert % DISTINCT], layout, expert // DISTINCT))


def rotated(record: np.ndarray, layout: RecordLayout, rows: int) -> np.ndarray:
    """A record whose matrices are another's with their rows moved down; inner rows no longer meet their columns."""
    made = np.zeros_like(record)
    for component in layout.components:
        part = slice(component.offset, component.offset + component.size)
        made[part] = np.roll(record[part].reshape(component.shape[0], -1), rows, axis=0).reshape(-1)
    return made


def describe() -> None:
    """What the pack itself says of its sizes and formats."""
    with Pack.open(PACK) as pack:
        model, full, linear = pack.model, pack.model.full_attention, pack.model.linear_attention
        formats = {format_.name for record in pack.records for format_ in record.formats.values()}
        trunk = Counter(pack.manifest.trunk.formats.values())
    experts = f"{model.num_experts} experts of {model.moe_intermediate_size}, K = {model.num_experts_per_tok}"
    heads = f"{full.num_heads}/{full.num_kv_heads} heads of {full.head_dim}"
    delta = f"{linear.num_key_heads}/{linear.num_value_heads} of {linear.value_head_dim}"
    out.print(f"{', '.join(model.layer_types)}; hidden {model.hidden_size}, {experts}; {heads}, {delta}")
    out.print(f"experts in {', '.join(sorted(formats))}, trunk in {dict(trunk)}, vocabulary of {model.vocab_size}")


@contextmanager
def metal(settings: dict[str, object]) -> Iterator[Engine]:
    """An engine on the Metal backend, under a fresh stand-in that behaves as the settings say."""
    fake.reset()
    fake.configure(patience=PATIENCE, **settings)
    with on_metal(PACK, chunk=CHUNK, slots=SLOTS, memory=MEMORY) as engine:
        yield engine


def follow(name: str, engine: Engine, prompt: list[int], tokens: list[int]) -> Found:
    """Give the prompt and these tokens to a session."""
    start = time.monotonic()
    logits = along(engine.new_session(), prompt, tokens)
    return Found(name, logits, engine.stats, time.monotonic() - start)


def answer(prompt: list[int]) -> Found:
    """The CPU backend's own continuation."""
    with on_cpu(PACK, chunk=CHUNK, slots=SLOTS, memory=MEMORY) as engine:
        start = time.monotonic()
        answers: Answers = greedy(engine.new_session(), prompt, DECODED)
        return Found("cpu, exact", answers.logits, engine.stats, time.monotonic() - start)


def report(found: Found, wanted: list[np.ndarray], against: str, failures: Failures) -> None:
    """One line, and what is wrong with it."""
    apart = max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(found.logits, wanted, strict=True))
    same = found.tokens == [int(logits.argmax()) for logits in wanted]
    read = f"{found.stats.records_read} records, {found.stats.bytes_read:,} bytes read"
    tokens = f"tokens {found.tokens} {'equal' if same else 'DIFFER'}"
    out.print(f"{found.name}: {apart:.1e} of the largest logit from {against}; {tokens}; {read}; {found.seconds:.0f} s")
    failures.require(apart <= TOLERANCE, f"{found.name}: logits are {apart:.1e} off")
    failures.require(same, f"{found.name}: other tokens than {against}")
    wholly = [np.isfinite(logits).all() and logits.std() > 0.1 for logits in found.logits]
    failures.require(all(wholly), f"{found.name}: logits are not a model's")


def faultless(name: str, failures: Failures) -> None:
    """Nothing was found by the stand-in."""
    reports = fake.found()
    failures.require(not reports, f"{name}: {reports[0].sentence if reports else ''}")


def compare_modes(modes: Sequence[str], prompt: list[int], failures: Failures) -> None:
    """A prompt and some decoded tokens, in these modes."""
    wanted = answer(prompt)
    out.print(
        f"{wanted.name}, {len(prompt)} tokens: continued by {wanted.tokens};"
        f" {wanted.stats.bytes_read:,} bytes read; {wanted.seconds:.0f} s"
    )
    least = DECODED * WIDTH.layers * WIDTH.experts_per_token // 2
    for name in modes:
        with metal(MODES[name]) as engine:
            found = follow(f"metal, {name}, {len(prompt)} tokens", engine, prompt, wanted.tokens)
        report(found, wanted.logits, "the CPU's", failures)
        failures.require(found.stats.records_read > SLOTS + least, f"{name}: records did not stream")
        faultless(name, failures)


def compare_reference(prompt: list[int], failures: Failures) -> None:
    """The first tokens against numpy, one at a time; of its experts none is kept in memory."""
    start = time.monotonic()
    reference = Reference(PACK, kept=0)
    wanted = [reference.step(token) for token in prompt]
    out.print(f"numpy, float64: {len(prompt)} tokens in {time.monotonic() - start:.0f} s")
    with metal(MODES["lazy"]) as engine:
        found = follow(f"metal, lazy, {len(prompt)} tokens", engine, prompt[:1], [*prompt[1:], 0])
    report(found, wanted, "numpy's", failures)


def check(prompt: list[int], failures: Failures) -> None:
    """One token under the checker, which looks at every access to memory."""
    with on_cpu(PACK, chunk=CHUNK, slots=SLOTS, memory=MEMORY) as engine:
        wanted = follow("cpu, exact", engine, prompt, [0])
    with metal(CHECKED) as engine:
        found = follow("metal, checked, one token", engine, prompt, [0])
    report(found, wanted.logits, "the CPU's", failures)
    faultless("checker", failures)


def main() -> None:
    """Run everything; the first failure does not keep the rest from running."""
    out.print("Metal kernels run here on the CPU, under our stand-in. Nothing runs, or ever ran, on Apple hardware.")
    if not PACK.exists():
        out.print(f"making {PACK}")
        start = time.monotonic()
        make_pack()
        out.print(f"made in {time.monotonic() - start:.0f} s")
    describe()
    prompt = np.random.default_rng(1).integers(0, WIDTH.vocab, PROMPT).tolist()
    failures = Failures()
    first, *others = MODES
    check(prompt[:1], failures)
    compare_reference(prompt[:REFERENCE_TOKENS], failures)
    compare_modes(others, prompt[:SHORT], failures)
    compare_modes([first], prompt, failures)
    if failures:
        sys.exit("; ".join(failures))
    out.print(f"all within {TOLERANCE:g}, no fault found; under the stand-in on a CPU, not on Apple hardware")


if __name__ == "__main__":
    main()
