"""Weight formats and the expert record: MLX is the oracle of the bits, FORMAT.md's own table of the offsets (F4)."""

import re
from pathlib import Path

import numpy as np
import pytest

from moepack.layout.formats import BITS, FORMATS, GRID_FORMATS, GROUP_SIZES, AffineFormat, Format, GridFormat, parse
from moepack.layout.record import ExpertShape, RecordLayout

SPECIFICATION = (Path(__file__).parents[2] / "FORMAT.md").read_text()
AFFINE = [AffineFormat(bits, group) for bits in BITS for group in GROUP_SIZES]


def pack_as_specified(codes: np.ndarray, bits: int) -> np.ndarray:
    """FORMAT.md F4, word for word: one stream of bits per row, low bits first, cut into words of 32."""
    rows = []
    for row in codes:
        stream = sum(int(code) << (c * bits) for c, code in enumerate(row))
        rows.append([stream >> (32 * word) & 0xFFFFFFFF for word in range(len(row) * bits // 32)])
    return np.array(rows, np.uint32)


@pytest.mark.parametrize("format_", AFFINE, ids=lambda f: f.name)
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
def test_names_round_trip(format_: Format) -> None:
    assert parse(format_.name) == format_


NO_FORMATS = "", "affine2", "affine5-g64", "affine2-g16", "affine2-g064", "affine22-g64", "Affine2-g64", "affine2-g64 "
NO_FORMATS += "affine2-g64s", "affine4-g16s", "book2-g32", "book4-g8", "book2-g8s", "book2"


@pytest.mark.parametrize("name", NO_FORMATS)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is not a weight format"):
        parse(name)


def test_a_grid_format_is_not_taken_for_a_plain_affine_one() -> None:
    with pytest.raises(ValueError, match="not a plain affine format"):
        AffineFormat.parse("affine2-g16s")
    with pytest.raises(ValueError, match="no book grids have 2 bits and groups of 32"):
        GridFormat("book", 2, 32)


def layout_of(name: str) -> RecordLayout:
    formats = dict.fromkeys(("gate", "up", "down"), parse(name))
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


def levels_as_specified(format_: GridFormat) -> list[list[int]]:
    """FORMAT.md's grid formats, word for word: the formulas, or the table under the format's name."""
    codes = range(2**format_.bits)
    if format_.family == "affine":
        offsets = {2: (4, 1), 3: (12, 2)}[format_.bits]
        grids = [(byte % 16, byte // 16) for byte in range(256)]
        return [[k * (8 * q - offsets[0] - offsets[1] * z) for q in codes] for k, z in grids]
    table = SPECIFICATION.split(f"\n`{format_.name}`:\n")[1].split("\n\n")[0]
    plain = [[int(level) for level in row.split(",")] for row in re.findall(r"\| \d \| ([-\d, ]+) \|", table)]
    return plain + [[-level for level in reversed(book)] for book in plain]


@pytest.mark.parametrize("format_", GRID_FORMATS, ids=lambda f: f.name)
def test_the_levels_are_those_of_the_specification(format_: GridFormat) -> None:
    table = format_.table
    assert table.dtype == np.int16
    assert table.tolist() == levels_as_specified(format_)
    assert table.shape == (2**format_.grid_bits, 2**format_.bits)
    assert (np.diff(table[table.any(axis=1)].astype(int), axis=1) > 0).all()


@pytest.mark.parametrize(
    ("name", "stride"), [("book2-g8", 3_948_544), ("affine2-g16s", 3_948_544), ("book2-g16", 3_555_328)]
)
def test_records_of_grid_formats_have_the_sizes_of_the_specification(name: str, stride: int) -> None:
    layout = layout_of(name)
    bits = parse(name)
    assert isinstance(bits, GridFormat)
    assert layout["gate.grids"].shape == (1024, 4096 * bits.grid_bits // (8 * bits.group_size))
    assert layout["down.scales"].size == 2 * 4096
    assert layout.stride == stride
    assert [c.name for c in layout.components][:3] == ["gate.weight", "gate.grids", "gate.scales"]


def test_a_row_that_does_not_fill_words_of_codes_is_refused() -> None:
    with pytest.raises(ValueError, match="down has 48 inputs, which groups of 32 do not divide"):
        RecordLayout.of(ExpertShape(64, 48), dict.fromkeys(("gate", "up", "down"), parse("book2-g8")))
