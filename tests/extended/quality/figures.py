"""`make quality`: build packs by every recipe, score them with `moe-pack quality`, and write docs/quality.md.

Everything is kept under build/quality: packs, calibration files, and each score as JSON, made anew when its command or
a file that it reads is another (see kept.py). With LLAMA_CPP naming a build directory of llama.cpp (see
../peers/llama.py), its formats are measured with its own tools, and packs of no more bits are scored on the same
tokens.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import page
from kept import keep
from subjects import FOUR_BITS, MIXED, RECIPES, ROOT, SMALL, STRICT, THREE, Recipe, Subject, subjects, uniform

from moepack.layout.formats import bits_per_weight
from moepack.layout.reader import Pack
from moepack.layout.record import ExpertShape

PLACE = ROOT / "build" / "quality"
MOE_PACK = Path(sys.executable).parent / "moe-pack"
LLAMA = ROOT / "tests" / "extended" / "peers" / "llama.py"
CALIBRATION_TOKENS = 262144
PICTURE = ".svg"
WIDE_SHAPE = ExpertShape(hidden=4096, intermediate=1024)  # of Qwen3.5-397B-A17B
FEWER = (FOUR_BITS.name, "book2-g8 mse")
PEERS = (uniform("book2-g16", "mse"), SMALL, uniform("book2-g8", "mse"), STRICT, MIXED, uniform("book2-g8", "gptq"))

Scores = dict[str, Any]


@dataclass(frozen=True)
class Bench:
    """One subject's folder and what is in it. `limit`: tokens scored of each text."""

    subject: Subject
    place: Path
    limit: int

    @property
    def calibration(self) -> Path:
        return self.place / "calibration.moecal"

    def pack(self, recipe: Recipe) -> Path:
        return self.place / "packs" / recipe.name.replace(" ", "_").lstrip("-")

    def calibrate(self) -> None:
        """Measure the calibration text."""
        text = ("--text", self.subject.calibration, "--tokens", CALIBRATION_TOKENS, "--sensitivities")
        command = (MOE_PACK, "calibrate", self.subject.checkpoint, *text, "-o", self.calibration)
        inputs = (self.subject.checkpoint, self.subject.calibration)
        keep(self.calibration, command, inputs, lambda: run(*command))

    def build(self, recipe: Recipe) -> Path:
        """The pack of a recipe."""
        target = self.pack(recipe)
        target.parent.mkdir(parents=True, exist_ok=True)
        used = (self.calibration,) if recipe.calibrated else ()
        given = ("--calibration", *used) if used else ()
        command = (MOE_PACK, "build", self.subject.checkpoint, target, *recipe.options, *given)
        keep(target, command, (self.subject.checkpoint, *used), lambda: run(*command))
        return target

    def score(self, name: str, recipes: tuple[Recipe, ...], *options: object) -> Scores:
        """`moe-pack quality` of some packs, kept as NAME.json. Paths in the options are read, but for the picture's."""
        kept, packs = self.place / f"{name}.json", [self.pack(recipe) for recipe in recipes]
        command = (MOE_PACK, "quality", *packs, "--reference", self.subject.checkpoint, "--json", *options)
        read = [option for option in options if isinstance(option, Path) and option.suffix != PICTURE]
        manifests = (pack / "manifest.json" for pack in packs)  # which have the digests of all the rest
        inputs = (*manifests, self.subject.checkpoint, *read)
        keep(kept, command, inputs, lambda: kept.write_text(run(*command, capture=True)))
        scores: Scores = json.loads(kept.read_text())
        names = {str(self.pack(recipe)): recipe.name for recipe in recipes}
        return {
            "scores": scores,
            "packs": [
                (names[row["pack"]], row | {"wide_bits": wide_bits(Path(row["pack"]))}) for row in scores["packs"]
            ],
            "weights": {names[path]: value for path, value in scores["weights"].items()},
        }


def wide_bits(path: Path) -> float:
    """Bits per expert weight that a pack's formats have at the widths of Qwen3.5-397B-A17B."""
    with Pack.open(path) as pack:
        formats = [(name, format_) for layout in pack.records for name, format_ in layout.formats.items()]
    return fmean(bits_per_weight(format_, *WIDE_SHAPE.of(name)) for name, format_ in formats)


def run(*command: object, capture: bool = False) -> str:
    """Run a command, its progress on the terminal; a failure ends the program."""
    words = [str(word) for word in command]
    print("$", *words, file=sys.stderr, flush=True)
    done = subprocess.run(words, check=False, text=True, stdout=subprocess.PIPE if capture else None)
    if done.returncode:
        raise SystemExit(f"{words[0]} {words[1]} ended with {done.returncode}")
    return done.stdout or ""


def measure(bench: Bench) -> dict[str, Any]:
    """All scores of one subject."""
    subject = bench.subject
    bench.calibrate()
    for each in RECIPES:
        bench.build(each)
    called = tuple(recipe for recipe in RECIPES if recipe.tools)
    fewer = tuple(recipe for recipe in RECIPES if recipe.name in FEWER)
    first, *_ = subject.texts.values()
    text = ("--limit", bench.limit)
    results: dict[str, Any] = {
        name: bench.score(name, RECIPES, "--text", path, *text, *() if path == first else ("--no-weights",))
        for name, path in subject.texts.items()
    }
    results["three"] = bench.score("three", THREE, "--text", first, *text, "--no-weights")
    results["tools"] = bench.score("tools", called, "--no-weights", "--tools", subject.tools)
    results["fewer"] = bench.score("fewer", fewer, "--text", first, *text, "--no-weights", "-k", subject.fewer)
    drawn = ROOT / "docs" / f"quality-{subject.name}{PICTURE}"
    shown = tuple(recipe for recipe in called if recipe != FOUR_BITS)
    results["layers"] = bench.score("layers", shown, "--text", first, "--limit", 4096, "--picture", drawn)
    return results


def measure_llama(bench: Bench, build: Path) -> dict[str, Any]:
    """llama.cpp's figures, and ours on its very tokens."""
    work, kept = bench.place / "llama", bench.place / "llama.json"
    text = bench.subject.texts["text"]
    files = ("--calibration", bench.subject.calibration, "--text", text, "--work", work)
    sizes = ("--windows", 120, "--calibration-windows", CALIBRATION_TOKENS // 512)
    command = (sys.executable, LLAMA, build, bench.subject.checkpoint, *files, *sizes, "-o", kept)
    inputs = (bench.subject.checkpoint, bench.subject.calibration, text)
    keep(kept, command, inputs, lambda: run(*command))
    theirs = json.loads(kept.read_text())
    windows = theirs["texts"][text.stem]["windows_file"]
    return {"theirs": theirs, "ours": bench.score("windows", PEERS, "--tokens", work / windows, "--no-weights")}


def main() -> None:
    """Measure every subject and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=int, default=32768, help="tokens scored of each text")
    parser.add_argument("--cases", type=int, default=300, help="tool cases")
    parser.add_argument("--fresh", action="store_true", help="forget what build/quality holds")
    parser.add_argument("--only", help="one subject, and the page is not written")
    options = parser.parse_args()
    if options.fresh:
        shutil.rmtree(PLACE, ignore_errors=True)
    results = {}
    for subject in subjects(PLACE, options.cases):
        if options.only in (None, subject.name):
            bench = Bench(subject, PLACE / subject.name, options.limit)
            results[subject.name] = measure(bench)
            if (build := os.environ.get("LLAMA_CPP")) and "text" in subject.texts:
                results[subject.name]["llama"] = measure_llama(bench, Path(build))
    if options.only is None:
        (ROOT / "docs" / "quality.md").write_text(page.render(results))


if __name__ == "__main__":
    main()
