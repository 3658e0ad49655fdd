"""llama.cpp's programs and files as seen from here: how they are called, what they print, what they leave behind.

Knows llama-quantize, llama-imatrix, llama-perplexity, the file of base log-probabilities and GGUF's tensor table.
Numbers are taken over as printed; none is computed anew. Knows nothing of packs or of what is being compared.
"""

import re
import struct
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

PROGRAMS = ("llama-quantize", "llama-imatrix", "llama-perplexity")
CONVERSION = Path(__file__).with_name("gguf_conversion.py")
ROUTED_EXPERTS = re.compile(r"blk\.\d+\.ffn_(gate|up|down)_exps\.weight")
NUMBER = r"\s*(-?[\d.]+(?:e-?\d+)?)"
WITH_ERROR = NUMBER + r"\s*±" + NUMBER
PRINTED = {
    "ppl": r"Mean PPL\(Q\)\s*:" + WITH_ERROR,
    "ppl_base": r"Mean PPL\(base\)\s*:" + WITH_ERROR,
    "ppl_ratio": r"Mean PPL\(Q\)/PPL\(base\)\s*:" + WITH_ERROR,
    "kl": r"Mean    KLD:" + WITH_ERROR,
    "kl_median": r"Median  KLD:" + NUMBER,
    "kl_p99": r"99\.0%   KLD:" + NUMBER,
    "kl_p999": r"99\.9%   KLD:" + NUMBER,
    "kl_most": r"Maximum KLD:" + NUMBER,
    "top1_percent": r"Same top p:" + WITH_ERROR,
}


@dataclass(frozen=True)
class Windows:
    """The token windows one text was chopped into, and which of their positions llama-perplexity scores.

    tokens: int32 [windows, context]. Every window is a sequence of its own, from an empty state, nothing put before
    it. Scored are the logits after tokens `first` to `last` inclusive of each window (they predict tokens first + 1
    to last + 1): tools/perplexity/perplexity.cpp takes first = context / 2 and context - 1 - first positions.
    """

    tokens: np.ndarray

    @property
    def first(self) -> int:
        return self.tokens.shape[1] // 2

    @property
    def last(self) -> int:
        return self.tokens.shape[1] - 2

    @property
    def positions(self) -> int:
        return self.tokens.shape[0] * (self.last - self.first + 1)


@dataclass(frozen=True)
class Build:
    """A llama.cpp build directory, the source it was made from, and how many threads its programs get."""

    programs: Path
    source: Path
    threads: int

    @classmethod
    def open(cls, directory: Path, threads: int, programs: Sequence[str] = PROGRAMS) -> "Build":
        """Find the programs and, in the CMake cache, the source; ends the program naming whatever is missing."""
        missing = [name for name in programs if not (directory / "bin" / name).is_file()]
        if missing:
            sys.exit(f"{directory}: no llama.cpp build with {', '.join(missing)} in bin/; build these targets first")
        cache = (directory / "CMakeCache.txt").read_text(encoding="utf-8")
        source = re.search(r"^CMAKE_HOME_DIRECTORY:INTERNAL=(.+)$", cache, re.MULTILINE)
        if source is None or not (Path(source[1]) / "convert_hf_to_gguf.py").is_file():
            sys.exit(f"{directory}/CMakeCache.txt: does not lead to llama.cpp's source; keep it beside its build")
        return cls(directory / "bin", Path(source[1]), threads)

    def version(self) -> str:
        """What the build says of itself, a build number and a commit."""
        said = re.search(r"version: (.+)", self.run("llama-perplexity", "--version"))
        return said[1] if said else "unknown"

    def run(self, program: str, *arguments: str | Path) -> str:
        """Run one of the programs to its end; everything it printed. A failure ends the program with its last lines."""
        return run(str(self.programs / program), *map(str, arguments))

    def convert(self, checkpoint: Path, target: Path, floats: str = "f32") -> None:
        """Write a checkpoint of floats as GGUF, all float32 (bfloat16 values are unchanged by that), or all bf16."""
        run(sys.executable, str(CONVERSION), str(self.source), str(checkpoint), str(target), floats)

    def measure(self, model: Path, *arguments: str | Path, context: int) -> str:
        """Run llama-perplexity one window at a time, attention and its cache in float32; what it printed."""
        exact = ("-fa", "off", "-ctk", "f32", "-ctv", "f32")
        window = ("-c", str(context), "-b", str(context), "-ub", str(context), "-t", str(self.threads))
        return self.run("llama-perplexity", "-m", model, *window, *exact, *arguments)

    def imatrix(self, model: Path, text: Path, target: Path, *, context: int, windows: int) -> None:
        """Gather the importance matrix of a model over the first windows of a text."""
        window = ("-c", str(context), "-b", str(context), "-ub", str(context), "-t", str(self.threads))
        chunks = ("--chunks", str(windows))
        self.run("llama-imatrix", "-m", model, "-f", text, "-o", target, *window, "-fa", "off", "--no-ppl", *chunks)

    def sizes(self, model: Path) -> dict[str, tuple[str, int, int]]:
        """Type, bytes and number of weights of every tensor of a GGUF file, read with llama.cpp's own gguf-py."""
        sys.path.insert(0, str(self.source / "gguf-py"))
        from gguf import GGUFReader  # type: ignore[import-not-found]

        return {
            tensor.name: (tensor.tensor_type.name, int(tensor.n_bytes), int(tensor.n_elements))
            for tensor in GGUFReader(model).tensors
        }


def run(*command: str) -> str:
    """Run a command to its end and return all it printed; a failure ends the program with its last lines."""
    ended = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    said = ended.stdout.decode("utf-8", "replace")
    if ended.returncode:
        sys.exit(f"{' '.join(command)}\nended with {ended.returncode}:\n" + "\n".join(said.splitlines()[-20:]))
    return said


@dataclass(frozen=True)
class Expense:
    """Bits per weight of a GGUF file, exactly: bytes of the tensors' data times eight, over their weights."""

    per_expert_weight: float
    per_trunk_weight: float
    per_weight: float
    types: dict[str, str]

    @classmethod
    def of(cls, sizes: dict[str, tuple[str, int, int]]) -> "Expense":
        """Account for the tensors of one file; `types` says per routed expert projection which types it has."""
        experts = {name for name in sizes if ROUTED_EXPERTS.fullmatch(name)}
        types: dict[str, set[str]] = {}
        for name in experts:
            types.setdefault(name.split(".")[2], set()).add(sizes[name][0])
        return cls(
            bits(sizes, experts),
            bits(sizes, sizes.keys() - experts),
            bits(sizes, set(sizes)),
            {part: "+".join(sorted(found)) for part, found in sorted(types.items())},
        )

    def row(self) -> dict[str, object]:
        """As it goes into the JSON file."""
        return {
            f"bits_{key}" if key.startswith("per") else "expert_types": value for key, value in asdict(self).items()
        }


def bits(sizes: dict[str, tuple[str, int, int]], names: set[str]) -> float:
    """Bits per weight of the named tensors."""
    return 8 * sum(sizes[name][1] for name in names) / sum(sizes[name][2] for name in names)


def read_windows(base: Path) -> Windows:
    """The windows a file of base log-probabilities was computed on; they head that file, after magic and sizes."""
    with base.open("rb") as file:
        magic, context, _, chunks = struct.unpack("<8sIii", file.read(20))
        if magic != b"_logits_":
            sys.exit(f"{base}: not a file of llama-perplexity's base log-probabilities")
        return Windows(np.fromfile(file, "<i4", context * chunks).reshape(chunks, context))


def read_base(base: Path, windows: Windows, window: int) -> np.ndarray:
    """Base log-probabilities of one window's scored positions: float32 [positions, vocabulary].

    Stored as 16-bit steps over at most 16 nats below the largest logit: a float32 step, a float32 least value, codes.
    """
    with base.open("rb") as file:
        vocabulary = struct.unpack("<8sIii", file.read(20))[2]
        positions = windows.last - windows.first + 1
        width = 4 + 2 * ((vocabulary + 1) // 2)
        file.seek(20 + windows.tokens.size * 4 + window * positions * width * 2)
        rows = np.fromfile(file, "<u2", positions * width).reshape(positions, width)
    head = np.ascontiguousarray(rows[:, :4]).view("<f4")
    return head[:, :1] * rows[:, 4 : 4 + vocabulary].astype(np.float32) + head[:, 1:]


def printed_quality(said: str) -> dict[str, float | list[float]] | None:
    """The figures llama-perplexity --kl-divergence printed, with a standard error as a pair; None if any is missing."""
    found: dict[str, float | list[float]] = {}
    for key, pattern in PRINTED.items():
        match = re.search(pattern, said)
        if match is None:
            return None
        figures = [float(figure) for figure in match.groups()]
        found[key] = figures if len(figures) > 1 else figures[0]
    return found
