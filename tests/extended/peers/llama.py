"""llama.cpp's 2- and 3-bit experts, measured by llama.cpp itself: KL divergence to the unquantized model, in one JSON.

`llama.py BUILD CHECKPOINT --calibration FILE --text FILE... --work DIR -o RESULTS.json`. BUILD is the build directory
of a CPU build of llama.cpp with the targets llama-quantize, llama-imatrix and llama-perplexity, made as its
docs/build.md says, its source kept where it was. The published figures came from upstream commit 82bb48500.

Everything is llama.cpp's own: conversion, importance matrix, quantizers, perplexity and KL. What is not scored by it
is checked: its tokens are those of the checkpoint's tokenizer.json (every window, id by id), and its float32 logits
are those of transformers (perplexity and KL over some windows). Each text is scored in windows (see `Windows`), which
are written to DIR as NAME.windows.json, {"windows": [[ids]], "scored_from": n}, for others to score exactly the same.

Documents are separated by NUL in the texts and by the separator token here, and each is cut to --document characters
so that the windows see many of them. Rows: `experts` keeps everything but the routed experts in float32 (their exact
bfloat16 values); `mix` is llama.cpp's own choice for that file type. Activations are rounded to 8 bits in its products
with quantized matrices; multiplying the same Q2_K weights in float32 instead moved the KL from 0.0856 to 0.0854.
"""

import argparse
import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf_conversion import added_tokens, spelling
from llama_programs import Build, Expense, Windows, printed_quality, read_base, read_windows
from tokenizers import Tokenizer

EXPERTS = "experts"
MIX = "mix"
ATTEMPTS = 5  # llama.cpp's logger is never flushed (common/log.cpp says so), so that its last lines are lost at times


@dataclass(frozen=True)
class Variant:
    """One quantization: llama-quantize's file type, and for `experts` rows the types of gate/up and of down."""

    kind: str
    file_type: str
    gate_up: str
    down: str
    calibrated: bool

    @property
    def name(self) -> str:
        types = self.file_type if self.kind == MIX or self.gate_up == self.down else f"{self.gate_up}+{self.down}"
        return f"{self.kind}-{types}{'-imatrix' if self.calibrated else ''}".lower()

    def arguments(self, imatrix: Path) -> Iterator[str]:
        """llama-quantize's options, before its file names."""
        if self.calibrated:
            yield from ("--imatrix", str(imatrix))
        if self.kind == EXPERTS:
            yield from ("--tensor-type", f"ffn_(gate|up)_exps={self.gate_up}")
            yield from ("--tensor-type", f"ffn_down_exps={self.down}", "--tensor-type", ".=f32")
            yield from ("--output-tensor-type", "f32", "--token-embedding-type", "f32")


def experts(kind: str, down: str = "", *, calibrated: bool = True) -> Variant:
    """Only the routed experts in this type, the down projections in another if one is named."""
    return Variant(EXPERTS, kind, kind, down or kind, calibrated)


VARIANTS = (
    experts("Q2_K"),
    experts("IQ2_XS"),
    experts("IQ2_S"),
    Variant(MIX, "Q2_K", "", "", calibrated=True),
    Variant(MIX, "IQ2_XS", "", "", calibrated=True),
    experts("Q2_K", calibrated=False),
    experts("IQ2_XXS", "Q2_K"),
    experts("IQ2_XXS"),
    experts("IQ3_XXS"),
    experts("Q3_K"),
)


@dataclass(frozen=True)
class Corpus:
    """How a text of NUL-separated documents is rendered for llama.cpp, and which tokens it must become."""

    tokenizer: Tokenizer
    added: dict[str, int]
    separator: str
    document: int

    @classmethod
    def of(cls, checkpoint: Path, separator: str, document: int) -> "Corpus":
        return cls(
            Tokenizer.from_file(str(checkpoint / "tokenizer.json")), added_tokens(checkpoint), separator, document
        )

    def text(self, file: Path) -> str:
        """The documents, each cut to the limit and preceded by the separator."""
        documents = file.read_text(encoding="utf-8").split("\0")
        return "".join(self.separator + text[: self.document] for text in documents if text)

    def render(self, file: Path, target: Path) -> list[int]:
        """Write the text with its added tokens respelled for llama.cpp; the ids of the checkpoint's tokenizer."""
        text = self.text(file)
        spelled = text
        for order, token in enumerate(self.added):
            if spelling(order) in text:
                raise SystemExit(f"{file}: holds U+{ord(spelling(order)):X}, which stands for {token} here")
            spelled = spelled.replace(token, spelling(order))
        target.write_bytes(spelled.encode("utf-8"))
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)


@dataclass(frozen=True)
class Comparison:
    """A checkpoint among llama.cpp's quantizations: where files go and how long windows are."""

    build: Build
    checkpoint: Path
    corpus: Corpus
    work: Path
    context: int

    @property
    def base(self) -> Path:
        return self.work / "base-f32.gguf"

    @property
    def imatrix(self) -> Path:
        return self.work / "imatrix.gguf"

    def logits(self, text: Path) -> Path:
        return self.work / f"{text.stem}.logits"

    def windows(self, text: Path) -> Path:
        return self.work / f"{text.stem}.windows.json"

    def prepare(self, calibration: Path, windows: int) -> dict[str, object]:
        """Convert the checkpoint and gather the importance matrix; files that exist are kept."""
        if not self.base.exists():
            self.build.convert(self.checkpoint, self.base)
        rendered = self.work / "calibration.txt"
        ids = self.corpus.render(calibration, rendered)
        if not self.imatrix.exists():
            self.build.imatrix(self.base, rendered, self.imatrix, context=self.context, windows=windows)
        read = min(windows, len(ids) // self.context)
        return {"file": calibration.name, "windows": read, "tokens": read * self.context}

    def score_base(self, text: Path, windows: int) -> Windows:
        """Score the unquantized model on a text; the windows, checked to be the tokenizer's ids, and written down."""
        rendered = self.work / f"{text.stem}.rendered.txt"
        ids = self.corpus.render(text, rendered)
        saved = ("--kl-divergence-base", self.logits(text), "--chunks", str(windows))
        self.build.measure(self.base, "-f", rendered, *saved, context=self.context)
        found = read_windows(self.logits(text))
        if ids[: found.tokens.size] != found.tokens.reshape(-1).tolist():
            raise SystemExit(f"{text}: llama.cpp's tokens are not those of {self.checkpoint / 'tokenizer.json'}")
        written = {"windows": found.tokens.tolist(), "scored_from": found.first}
        self.windows(text).write_text(json.dumps(written), encoding="utf-8")
        return found

    def score(self, model: Path, text: Path) -> dict[str, float | list[float]]:
        """KL divergence of a model to the base on a text."""
        asked = ("--kl-divergence", "--kl-divergence-base", self.logits(text))
        for _ in range(ATTEMPTS):
            found = printed_quality(self.build.measure(model, *asked, context=self.context))
            if found is not None:
                return found
        raise SystemExit(f"{model}: llama-perplexity ended well {ATTEMPTS} times without printing its figures")

    def row(self, variant: Variant, texts: list[Path]) -> dict[str, object]:
        """Quantize, account for the bytes, score."""
        model = self.work / f"{variant.name}.gguf"
        self.build.run("llama-quantize", *variant.arguments(self.imatrix), self.base, model, variant.file_type)
        return {
            "name": variant.name,
            "calibrated": variant.calibrated,
            **Expense.of(self.build.sizes(model)).row(),
            "quality": {text.stem: self.score(model, text) for text in texts},
        }


def agreement(comparison: Comparison, text: Path, windows: Windows, compared: int) -> dict[str, float]:
    """Perplexities of llama.cpp's base and of transformers in float32, and the mean KL, over the first windows."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(comparison.checkpoint, dtype=torch.float32)
    tokens = windows.tokens[:compared]
    with torch.no_grad():
        logits = model(torch.tensor(tokens, dtype=torch.int64)).logits[:, windows.first : windows.last + 1].double()
    reference = torch.log_softmax(logits, -1).numpy()
    base = np.stack([read_base(comparison.logits(text), windows, window) for window in range(len(tokens))])
    following = tokens[:, windows.first + 1 : windows.last + 2, None].astype(np.int64)
    return {
        "windows": len(tokens),
        "ppl_llama": math.exp(-np.take_along_axis(base, following, 2).mean(dtype=np.float64)),
        "ppl_transformers": math.exp(-np.take_along_axis(reference, following, 2).mean()),
        "kl": float((np.exp(reference) * (reference - base)).sum(-1).mean()),
    }


def scored_text(comparison: Comparison, text: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Score the unquantized model on a text: what was scored, where it is written, and how far transformers agrees."""
    windows = comparison.score_base(text, options.windows)
    agreed = agreement(comparison, text, windows, options.agreement)
    print(text.stem, agreed, flush=True)
    return {
        "file": text.name,
        "windows_file": comparison.windows(text).name,
        "positions": windows.positions,
        "scored_from": windows.first,
        "last_scored": windows.last,
        "agreement": agreed,
    }


def lines(row: dict[str, Any]) -> Iterator[str]:
    """One row for the terminal, a line per text."""
    for text, quality in row["quality"].items():
        yield (
            f"{row['name']:31} {row['bits_per_expert_weight']:.4f} {text:9} KL {quality['kl'][0]:.4f} ± "
            f"{quality['kl'][1]:.4f} top-1 {quality['top1_percent'][0]:.2f} % "
            f"PPL ratio {quality['ppl_ratio'][0]:.4f}"
        )


def compare(comparison: Comparison, options: argparse.Namespace) -> None:
    """All of it; the JSON file is written anew after every row."""
    start = time.monotonic()
    results: dict[str, Any] = {
        "llama_cpp": comparison.build.version(),
        "checkpoint": comparison.checkpoint.name,
        "context": comparison.context,
        "document_characters": comparison.corpus.document,
        "calibration": comparison.prepare(options.calibration, options.calibration_windows),
        "texts": {text.stem: scored_text(comparison, text, options) for text in options.text},
        "rows": [],
    }
    for variant in VARIANTS:
        results["rows"].append(comparison.row(variant, options.text))
        results["seconds"] = round(time.monotonic() - start)
        options.output.write_text(json.dumps(results), encoding="utf-8")
        print(*lines(results["rows"][-1]), sep="\n", flush=True)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure llama.cpp's low-bit experts with its own tools.")
    parser.add_argument("build", type=Path, help="build directory of llama.cpp")
    parser.add_argument("checkpoint", type=Path, help="checkpoint of floats with its tokenizer.json")
    parser.add_argument("--calibration", type=Path, required=True, help="text for llama-imatrix")
    parser.add_argument("--text", type=Path, nargs="+", required=True, help="texts to score")
    parser.add_argument("--work", type=Path, required=True, help="directory for GGUF files and logits")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the JSON file")
    parser.add_argument("--context", type=int, default=512, help="tokens per window")
    parser.add_argument("--windows", type=int, default=40, help="windows per text")
    parser.add_argument("--calibration-windows", type=int, default=300, help="windows for llama-imatrix")
    parser.add_argument("--document", type=int, default=2000, help="characters taken of each document")
    parser.add_argument("--separator", default="<|endoftext|>", help="token between documents")
    parser.add_argument("--agreement", type=int, default=8, help="windows compared with transformers")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    return parser.parse_args()


def main() -> None:
    """Compare and write."""
    options = arguments()
    options.work.mkdir(parents=True, exist_ok=True)
    comparison = Comparison(
        Build.open(options.build, options.threads),
        options.checkpoint,
        Corpus.of(options.checkpoint, options.separator, options.document),
        options.work,
        options.context,
    )
    compare(comparison, options)


if __name__ == "__main__":
    main()
