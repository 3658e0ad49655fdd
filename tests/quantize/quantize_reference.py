"""The quantizers' written rules in plain numpy, one group per row; slow, and independent of the native code."""

from collections.abc import Callable, Iterator
from functools import cache
from math import gcd
from typing import NamedTuple

import ml_dtypes
import numpy as np

from moepack.layout.formats import AffineFormat
from moepack.quantize.affine import AffineMatrix

f32 = np.float32


class Result(NamedTuple):
    """Groups of codes, with the bfloat16 scale and bias of each."""

    codes: np.ndarray
    scales: np.ndarray
    biases: np.ndarray


class Fit(NamedTuple):
    """A least-squares grid per group and the gain that chose it."""

    scale: np.ndarray
    bias: np.ndarray
    mean_code: np.ndarray
    gain: np.ndarray


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes [rows, cols] as one little-endian bit stream per row, uint32."""
    stream = (codes[..., None] >> np.arange(bits)) & 1
    return np.packbits(stream.reshape(len(codes), -1).astype(np.uint8), axis=1, bitorder="little").view(np.uint32)


def unpack(words: np.ndarray, bits: int) -> np.ndarray:
    stream = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=1, bitorder="little")
    return stream.reshape(len(words), -1, bits) @ (1 << np.arange(bits))


def dequantize(matrix: AffineMatrix) -> np.ndarray:
    codes = unpack(matrix.codes, matrix.format.bits).astype(f32)
    scales, biases = (a.astype(f32).repeat(matrix.format.group_size, 1) for a in (matrix.scales, matrix.biases))
    with np.errstate(invalid="ignore", over="ignore"):
        return codes * scales + biases


def quantize(weights: np.ndarray | AffineMatrix, format: AffineFormat, method: str) -> AffineMatrix:
    floats = dequantize(weights) if isinstance(weights, AffineMatrix) else weights.astype(f32)
    groups = floats.reshape(-1, format.group_size)
    if method == "minmax":
        result = minmax(groups, format.bits)
    elif isinstance(weights, AffineMatrix) and _few_values(weights.format, format):
        result = _mse_of_histograms(groups, weights, format)
    else:
        result = _mse_by_descent(groups, format.bits)
    rows = len(floats)
    return AffineMatrix(
        format,
        pack(result.codes.reshape(rows, -1), format.bits),
        result.scales.reshape(rows, -1),
        result.biases.reshape(rows, -1),
    )


def minmax(groups: np.ndarray, bits: int) -> Result:
    low, high = extremes(groups)
    scale = (high - low) / f32(2**bits - 1)
    return Result(assign(groups, scale, low, bits), _truncated(scale), _truncated(low))


def extremes(groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least and greatest weight of each group, -0.0 being less than +0.0."""
    low, high = groups.min(1), groups.max(1)
    negative_zero = ((groups == 0) & np.signbit(groups)).any(1)
    positive_zero = ((groups == 0) & ~np.signbit(groups)).any(1)
    low = np.where(low == 0, np.where(negative_zero, f32(-0.0), f32(0)), low)
    return low, np.where(high == 0, np.where(positive_zero, f32(0), f32(-0.0)), high)


def assign(groups: np.ndarray, scale: np.ndarray, bias: np.ndarray, bits: int) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        codes = np.clip(np.rint((groups - bias[:, None]) / scale[:, None]), 0, 2**bits - 1)
    return np.where(scale[:, None] == 0, 0, codes).astype(np.uint8)


def exact_optimum(groups: np.ndarray) -> np.ndarray:
    """The least squared error with four equally spaced levels: every contiguous partition of the sorted group."""
    size = groups.shape[1]
    errors = []
    a, b, c = np.array([(a, b, c) for a in range(1, size) for b in range(a, size + 1) for c in range(b, size + 1)]).T
    codes, squares = 3 * size - a - b - c, (size - a) + 3 * (size - b) + 5 * (size - c)
    variance = squares - codes * codes / size
    for group in np.sort(groups.astype(np.float64), 1):
        centred = group - group.mean()
        tail = np.append(np.cumsum(centred[::-1])[::-1], 0)
        covariance = tail[a] + tail[b] + tail[c]
        errors.append((centred**2).sum() - (covariance**2 / variance).max())
    return np.array(errors)


@cache
def splits(bins: int) -> list[tuple[int, int, int]]:
    """Every way that three equally spaced thresholds part `bins` bins, level names made smallest, in order."""
    found = set()
    for first in range(-2 * bins, bins):
        for inner in range(4 * bins):
            for outer in (inner - 1, inner, inner + 1):
                levels = [sum(bin >= t for t in (first, first + inner, first + inner + outer)) for bin in range(bins)]
                if outer >= 0 and levels[0] < levels[-1]:
                    found.add(_smallest_names(levels))
    return sorted(found)


def _smallest_names(levels: list[int]) -> tuple[int, int, int]:
    unit = gcd(*(level - levels[0] for level in levels))
    names = [(level - levels[0]) // unit for level in levels]
    return sum(n < 1 for n in names), sum(n < 2 for n in names), sum(n < 3 for n in names)


def _few_values(source: AffineFormat, target: AffineFormat) -> bool:
    return source.bits <= 4 and target.bits == 2 and source.group_size % target.group_size == 0


def _truncated(values: np.ndarray) -> np.ndarray:
    return (values.view(np.uint32) >> 16).astype(np.uint16).view(ml_dtypes.bfloat16)


def _mse_of_histograms(groups: np.ndarray, source: AffineMatrix, format: AffineFormat) -> Result:
    share = source.format.group_size // format.group_size
    scale, bias = (a.astype(np.float64).reshape(-1).repeat(share) for a in (source.scales, source.biases))
    codes = unpack(source.codes, source.format.bits).reshape(groups.shape)
    ranks = np.where(scale[:, None] < 0, 15 - codes, codes)
    members = ranks[:, None, :] == np.arange(16)[:, None]
    counts = members.sum(2)
    values = np.where(members, groups[:, None, :], -np.inf).max(2)
    values = np.where(counts > 0, values, 0).astype(f32)
    above = np.cumsum(counts[:, ::-1], 1)[:, ::-1]
    sums = np.cumsum((counts * np.arange(16))[:, ::-1], 1)[:, ::-1]
    size = format.group_size
    fit = _best_split(_with_end(above), _with_end(sums), size, splits(16))
    origin = np.where(scale < 0, bias + 15 * scale, bias)
    stored = _stored(fit, sums[:, 0].astype(f32) / f32(size), origin, np.abs(scale))
    return _better_of(groups, values, counts, stored, 2, ranks)


def _with_end(tails: np.ndarray) -> np.ndarray:
    return np.pad(tails.astype(f32), ((0, 0), (0, 1)))


def _best_split(above: np.ndarray, sums: np.ndarray, size: int, candidates: list[tuple[int, int, int]]) -> Fit:
    zero = np.zeros(len(above), f32)
    best, best_square = [zero, zero, zero + 1], zero
    for a, b, c in candidates:
        codes = above[:, a] + above[:, b] + above[:, c]
        squares = above[:, a] + 3 * above[:, b] + 5 * above[:, c]
        products = sums[:, a] + sums[:, b] + sums[:, c]
        covariance, variance = size * products - codes * sums[:, 0], size * squares - codes * codes
        square = covariance * covariance
        wins = square * best[2] > best_square * variance
        best = [np.where(wins, new, old) for new, old in zip((codes, covariance, variance), best, strict=True)]
        best_square = np.where(wins, square, best_square)
    return _least_squares(best[0], best[1], best[2], sums[:, 0], size)


def _least_squares(codes: np.ndarray, cov: np.ndarray, var: np.ndarray, total: np.ndarray, size: int) -> Fit:
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        scale = cov / var
        return Fit(scale, (total - scale * codes) / size, codes / size, cov * scale)


def _stored(fit: Fit, mean: np.ndarray, origin: np.ndarray, unit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    with np.errstate(over="ignore"):
        scale = (unit * fit.scale.astype(np.float64)).astype(f32).astype(ml_dtypes.bfloat16)
        bias = origin + unit * mean.astype(np.float64) - scale.astype(np.float64) * fit.mean_code.astype(np.float64)
        return scale, bias.astype(f32).astype(ml_dtypes.bfloat16)


def _better_of(
    groups: np.ndarray,
    values: np.ndarray,
    counts: np.ndarray,
    fit: tuple[np.ndarray, np.ndarray],
    bits: int,
    ranks: np.ndarray,
) -> Result:
    """The fit or minmax for each group, by the error of its distinct `values` (that weight i has at ranks[i])."""
    low, high = extremes(groups)
    coding = (high - low) / f32(2**bits - 1)
    wide = [array.astype(f32) for array in fit]
    fit_codes, minmax_codes = assign(values, wide[0], wide[1], bits), assign(values, coding, low, bits)
    stored = _truncated(coding), _truncated(low)
    fit_error = _squared_error(values, counts, fit_codes, *fit)
    wins = fit_error <= _squared_error(values, counts, minmax_codes, *stored)
    codes = np.take_along_axis(np.where(wins[:, None], fit_codes, minmax_codes), ranks, 1)
    return Result(codes, np.where(wins, fit[0], stored[0]), np.where(wins, fit[1], stored[1]))


def _squared_error(
    values: np.ndarray, counts: np.ndarray, codes: np.ndarray, scales: np.ndarray, biases: np.ndarray
) -> np.ndarray:
    with np.errstate(invalid="ignore", over="ignore"):
        read = codes.astype(f32) * scales.astype(f32)[:, None] + biases.astype(f32)[:, None]
        terms = counts * np.square(values.astype(np.float64) - read.astype(np.float64))
        parts = sum_in_order(terms.reshape(len(terms), -1, 8))
        return ((parts[:, 0] + parts[:, 1]) + (parts[:, 2] + parts[:, 3])) + (
            (parts[:, 4] + parts[:, 5]) + (parts[:, 6] + parts[:, 7])
        )


def sum_in_order(terms: np.ndarray) -> np.ndarray:
    """The sum over axis 1, first to last (numpy's own sum pairs terms up)."""
    total = np.zeros_like(terms[:, 0])
    for i in range(terms.shape[1]):
        total = total + terms[:, i]
    return total


def _mse_by_descent(groups: np.ndarray, bits: int) -> Result:
    low, high = extremes(groups)
    size, top = groups.shape[1], 2**bits - 1
    span = high - low
    units = (groups - low[:, None]) / np.where(span > 0, span, f32(1))[:, None]
    total = sum_in_order(units)
    best = Fit(*np.zeros((4, len(groups)), f32))
    for start in _split_starts(units) if bits == 2 else _span_starts(len(groups), top):
        fit = start
        for _ in range(3):
            fit = _refit(units, total, fit, top)
            best = _pick(fit.gain > best.gain, fit, best)
    stored = _stored(best, total / f32(size), low.astype(np.float64), high.astype(np.float64) - low.astype(np.float64))
    every = np.broadcast_to(np.arange(size), groups.shape)
    return _better_of(groups, groups, np.ones(groups.shape), stored, bits, every)


def _refit(units: np.ndarray, total: np.ndarray, start: Fit, top: int) -> Fit:
    size = units.shape[1]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        quotient = (units - start.bias[:, None]) * (f32(1) / start.scale)[:, None]
        codes = np.rint(np.minimum(np.where(quotient > 0, quotient, f32(0)), f32(top)))
        sums = [sum_in_order(terms) for terms in (codes, codes * codes, codes * units)]
        covariance, variance = size * sums[2] - sums[0] * total, size * sums[1] - sums[0] * sums[0]
    fit = _least_squares(sums[0], covariance, variance, total, size)
    sound = (covariance > 0) & (variance > 0)
    fallback = Fit(start.scale, start.bias, fit.mean_code, np.zeros_like(fit.gain))
    return _pick(sound, fit, fallback)


def _pick(first: np.ndarray, a: Fit, b: Fit) -> Fit:
    return Fit(*(np.where(first, x, y) for x, y in zip(a, b, strict=True)))


def _split_starts(units: np.ndarray) -> Iterator[Fit]:
    bins = np.minimum((units * f32(24)).astype(np.int64), 23)
    tails = []
    for terms in (np.ones_like(units), units):
        per_bin = [sum_in_order(np.where(bins == bin, terms, f32(0))) for bin in range(24)]
        tail = [np.zeros(len(units), f32)]
        for bin in reversed(range(24)):
            tail.append(per_bin[bin] + tail[-1])
        tails.append(np.stack(tail[::-1], 1))
    for first in range(4):
        yield _best_split(tails[0], tails[1], units.shape[1], splits(24)[first::4])


def _span_starts(groups: int, top: int) -> Iterator[Fit]:
    full: Callable[[np.float32], np.ndarray] = lambda value: np.full(groups, value, f32)  # noqa: E731
    for low in range(3):
        for high in range(3):
            cut_low, cut_high = f32(low) / (f32(1.5) * f32(top)), f32(high) / (f32(1.5) * f32(top))
            start = full((f32(1) - cut_low - cut_high) / f32(top)), full(cut_low), full(f32(0)), full(f32(0))
            yield Fit(*start)
