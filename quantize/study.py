"""What importance and error feedback are worth: output errors on synthetic inputs that nothing was fitted to.

Run as `python -m moepack.quantize.study`. The three kinds of inputs: after a norm with a steep spectrum (direction i
has the power 1/i, channels vary by a log-normal factor of 0.5), with a flat one (i^-0.5, 0.3), and products
SiLU(a) * b as a down projection sees them. Weights are normal. dB of the output, held out: more is better.
"""

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ..layout.formats import parse
from .calibration import OFF_DIAGONAL, InputStatistics
from .feedback import output_error
from .gptq import Choice
from .methods import choose_by_feedback

FORMATS = ("affine2-g64", "affine2-g16s", "book2-g16", "book2-g8", "affine3-g64")
KINDS = ("steep", "flat", "down")
INPUTS, ROWS, FITTED, HELD_OUT = 1024, 256, 4096, 8192
SEED = 0

Floats = NDArray[np.float32]


def main() -> None:
    """Print a table: inputs, format, dB per method, and which one gptq took."""
    print(f"{ROWS} x {INPUTS} weights, Hessians of {FITTED} samples, judged on {HELD_OUT} others; output SNR in dB")
    print(f"{'inputs':8}{'format':14}{'mse':>8}{'imatrix':>9}{'gptq':>8}  taken")
    for kind in KINDS:
        weights, statistics = _case(kind)
        for name in FORMATS:
            choice = choose_by_feedback(weights, parse(name), statistics)
            print(f"{kind:8}{name:14}{_row(weights, choice, _required(statistics.held_out))}  {choice.method}")


def _row(weights: Floats, choice: Choice, held_out: Floats) -> str:
    power = output_error(weights, held_out)
    decibels = (10 * math.log10(power / choice.errors[method]) for method in ("mse", "imatrix", "gptq"))
    return "".join(f"{value:{width}.2f}" for value, width in zip(decibels, (8, 9, 8), strict=True))


def _case(kind: str) -> tuple[Floats, InputStatistics]:
    rng = np.random.default_rng(SEED)
    weights = (rng.standard_normal((ROWS, INPUTS)) * 0.02).astype(np.float32)
    blocks = _samples(kind, rng)
    fitted, held_out = (next(blocks) for _ in range(2))
    hessian = (_moments(fitted) * np.float32(OFF_DIAGONAL)).astype(np.float32)
    importance = np.square(fitted).mean(0).astype(np.float32)
    np.fill_diagonal(hessian, importance)
    return weights, InputStatistics(importance, hessian, _moments(held_out))


def _samples(kind: str, rng: np.random.Generator) -> Iterator[NDArray[np.float64]]:
    """Samples to fit to, then samples to judge by, of the same kind of inputs."""
    power, spread = {"steep": (1.0, 0.5), "flat": (0.5, 0.3), "down": (0.7, 0.3)}[kind]
    directions = np.linalg.qr(rng.standard_normal((INPUTS, INPUTS)))[0]
    channels = rng.lognormal(0, spread, INPUTS)
    strengths = np.arange(1, INPUTS + 1)[:, None] ** (-power / 2) * directions
    for count in (FITTED, HELD_OUT):
        normal = _unit_rows(rng.standard_normal((count, INPUTS)) @ strengths)
        if kind == "down":
            other = _unit_rows(rng.standard_normal((count, INPUTS)) @ strengths[:, ::-1])
            normal = normal / (1 + np.exp(-normal)) * other
        yield normal * channels


def _unit_rows(samples: NDArray[np.float64]) -> NDArray[np.float64]:
    scaled: NDArray[np.float64] = samples / np.sqrt(np.square(samples).mean(1, keepdims=True))
    return scaled


def _moments(samples: NDArray[np.float64]) -> Floats:
    return (samples.T @ samples / len(samples)).astype(np.float32)


def _required(moments: Floats | None) -> Floats:
    assert moments is not None
    return moments


if __name__ == "__main__":
    main()
