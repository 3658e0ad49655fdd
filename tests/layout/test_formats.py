"""Weight formats and the expert record: MLX is the oracle of the bits, FORMAT.md's own table of the offsets (F4)."""

import re
from pathlib import Path

import numpy as np
import pytest

from moepack.layout.formats import BITS, GROUP_SIZES, AffineFormat
from moepack.layout.record import ExpertShape, RecordLayout

SPECIFICATION = (Path(__file__).parents[2] / "FORMAT.md").read_text()
FORMATS = [AffineFormat(bits, group) for bits in BITS for group in GROUP_SIZES]


def pack_as_specified(codes: np.ndarray, bits: int) -> np.ndarray:
    """FORMAT.md F4, word for word: one stream of bits per row, low bits first, cut into words of 32."""
    rows = []
    for row in codes:
        stream = sum(int(code) << (c * bits) for c, code in enumerate(row))
        rows.append([stream >> (32 * word) & 0xFFFFFFFF for word in range(len(row) * bits // 32)])
    return np.array(rows, np.uint32)


@pytest.mark.parametrize("format_", FORMATS, ids=lambda f: f.name)
def test_the_bit_stream_is_mlx_packing(format_: AffineFormat) -> None:
    """F4"""
    import mlx.core as mx

    random = np.random.default_rng(format_.bits)
    rows, cols = 3, 2 * format_.group_size
    codes = random.integers(0, 2**format_.bits, (rows, cols))
    scales = random.normal(size=(rows, 2)).astype(np.float32)
    biases = random.normal(size=(rows, 2)).astype(np.float32)
    packed = pack_as_specified(codes, format_.bits)
    assert packed.shape == (rows, format_.words(cols))
    assert scales.shape == (rows, format_.groups(cols))
    theirs = mx.dequantize(mx.array(packed), mx.array(scales), mx.array(biases), format_.group_size, format_.bits)
    wide = (np.repeat(part, format_.group_size, axis=1) for part in (scales, biases))
    scale, bias = wide
    np.testing.assert_allclose(np.array(theirs), codes * scale + bias, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("format_", FORMATS, ids=lambda f: f.name)
def test_names_round_trip(format_: AffineFormat) -> None:
    assert AffineFormat.parse(format_.name) == format_


NO_FORMATS = "", "affine2", "affine5-g64", "affine2-g16", "affine2-g064", "affine22-g64", "Affine2-g64", "affine2-g64 "


@pytest.mark.parametrize("name", NO_FORMATS)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="affine"):
        AffineFormat.parse(name)


def layout_of(name: str) -> RecordLayout:
    formats = dict.fromkeys(("gate", "up", "down"), AffineFormat.parse(name))
    return RecordLayout.of(ExpertShape(4096, 1024), formats)


def test_the_worked_example_of_the_specification_is_our_layout() -> None:
    rows = re.findall(r"\| `(\w+\.\w+)` \| (\w+) \[(\d+), (\d+)\] \| ([\d,]+) \| ([\d,]+) \|", SPECIFICATION)
    layout = layout_of("affine2-g64")
    written = [(n, t, (int(r), int(c)), int(o.replace(",", "")), int(s.replace(",", ""))) for n, t, r, c, o, s in rows]
    assert written == [(c.name, c.dtype, c.shape, c.offset, c.size) for c in layout.components]
    assert layout.stride == layout.size == 3_932_160 == 240 * 16384
    assert layout.stride * 512 * 60 == 120_795_955_200


def test_the_four_bit_record_has_the_size_in_the_specification() -> None:
    assert layout_of("affine4-g64").stride == 7_077_888 == 432 * 16384


def test_a_record_is_padded_to_the_next_16_kib() -> None:
    formats = dict.fromkeys(("gate", "up", "down"), AffineFormat(2, 32))
    layout = RecordLayout.of(ExpertShape(384, 96), formats)
    assert layout.size < layout.stride < layout.size + 16384
    assert layout.stride % 16384 == 0


def test_a_row_that_groups_do_not_divide_is_refused() -> None:
    """F2"""
    formats = dict.fromkeys(("gate", "up", "down"), AffineFormat(2, 64))
    with pytest.raises(ValueError, match="down has 96 inputs, which groups of 64 do not divide"):
        RecordLayout.of(ExpertShape(384, 96), formats)
