"""The calibration file: every flipped bit, cut or forged header is found, whatever digest it is given."""

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moepack.convert.calibration import header as headers
from moepack.convert.calibration.file import PREFIX, CalibrationFile, compress, write
from moepack.convert.calibration.header import Section
from moepack.convert.calibration.sections import section_size
from moepack.manifests.digest import of_bytes
from moepack.manifests.errors import CorruptInputError, MoepackError


def test_content_of_any_size_is_written_piece_by_piece(whole_calibration: Path, tmp_path: Path) -> None:
    """The pieces share one buffer, as those of a file do: all of them at once would be the last one."""
    with CalibrationFile.open(whole_calibration) as opened:
        facts = opened.facts
    stored, sections = [], []
    for number, (name, fields) in enumerate(facts.shape.all_sections().items()):
        stored.append(compress(bytes([number % 2]) * section_size(fields)))
        sections.append(Section(name, len(stored[-1]), section_size(fields), of_bytes(stored[-1]).hex()))
    buffer = memoryview(bytearray(max(map(len, stored))))

    def content() -> Iterator[memoryview]:
        for section in stored:
            buffer[: len(section)] = section
            yield buffer[: len(section)]

    found = write(tmp_path / "c", facts, sections, content())
    assert b"".join(stored) == (tmp_path / "c").read_bytes()[-32 - sum(map(len, stored)) : -32]
    with CalibrationFile.open(tmp_path / "c") as again:
        assert again.digest == found


def flips(content: bytes) -> Iterator[int]:
    """A byte of every part of a file, and many between."""
    length = PREFIX.unpack_from(content)[1]
    starts = [0, 7, 8, 15, PREFIX.size, PREFIX.size + length // 2, PREFIX.size + length - 1, PREFIX.size + length]
    yield from starts
    yield from (len(content) - 1, len(content) - 32, len(content) - 33)
    yield from random.Random(1).sample(range(len(content)), 300)


def test_every_flipped_bit_is_found(whole_calibration: Path, tmp_path: Path) -> None:
    content, path = whole_calibration.read_bytes(), tmp_path / "damaged"
    for place in flips(content):
        damaged = bytearray(content)
        damaged[place] ^= 1 << (place % 8)
        path.write_bytes(damaged)
        with pytest.raises(MoepackError):
            CalibrationFile.open(path)


@pytest.mark.parametrize("keep", [0, 1, 8, 15, 16, 40, 1000, -33, -1])
def test_a_truncated_file_is_found(whole_calibration: Path, tmp_path: Path, keep: int) -> None:
    (tmp_path / "cut").write_bytes(whole_calibration.read_bytes()[:keep])
    with pytest.raises(MoepackError, match=r"cut|not a calibration file|damaged") as refused:
        CalibrationFile.open(tmp_path / "cut")
    assert refused.value.exit_code == (3 if 0 <= keep < 8 else 1)  # without its first bytes it is nothing


def test_appended_bytes_are_found(whole_calibration: Path, tmp_path: Path) -> None:
    (tmp_path / "longer").write_bytes(whole_calibration.read_bytes() + b"\0")
    with pytest.raises(MoepackError, match="damaged"):
        CalibrationFile.open(tmp_path / "longer")


def test_damage_after_opening_is_found_when_the_section_is_read(whole_calibration: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(whole_calibration, tmp_path / "c"))
    path.chmod(0o644)
    with CalibrationFile.open(path) as opened:
        content = bytearray(path.read_bytes())
        content[-100] ^= 1
        with path.open("r+b") as file:
            file.write(content)
        with pytest.raises(MoepackError, match="section 'layer 3' is damaged"):
            opened.layer(3)


def forged(whole_calibration: Path, target: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A file whose header says something else, with the digest that belongs to it."""
    content = whole_calibration.read_bytes()
    length = PREFIX.unpack_from(content)[1]
    header = json.loads(content[PREFIX.size : PREFIX.size + length])
    change(header)
    return sealed(target, json.dumps(header).encode(), content[PREFIX.size + length : -32])


def sealed(target: Path, header: bytes, sections: bytes) -> Path:
    body = PREFIX.pack(b"MOECAL\r\n", len(header)) + header + sections
    target.write_bytes(body + of_bytes(body))
    return target


def setting(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(header: dict[str, Any]) -> None:
        *names, last = path.split(".")
        for name in names:
            header = header[int(name)] if name.isdigit() else header[name]  # type: ignore[index]
        header[last] = value

    return change


@pytest.mark.parametrize(
    ("path", "value", "exit_code"),
    [
        ("version", 2, 5),
        ("version", "new", 5),
        ("format", "other", 3),
        ("extra", 1, 3),
        ("facts.model.experts", 7, 3),
        ("facts.model.hidden_size", 2**31 - 1, 3),
        ("facts.model.layers", 0, 3),
        ("facts.model.digest", "short", 3),
        ("facts.text.held_out_tokens", 10**9, 3),
        ("facts.expert_hessians", "some", 3),
        ("sections.0.size", 2**50, 3),
        ("sections.0.stored", 2**50, 3),
        ("sections.0.name", "layer 9", 3),
    ],
)
def test_a_header_that_contradicts_itself_is_refused(
    whole_calibration: Path, tmp_path: Path, path: str, value: object, exit_code: int
) -> None:
    with pytest.raises(MoepackError) as refused:
        CalibrationFile.open(forged(whole_calibration, tmp_path / "forged", setting(path, value)))
    assert refused.value.exit_code == exit_code


def test_a_header_longer_than_the_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    body = PREFIX.pack(b"MOECAL\r\n", 2**62) + b"{}"
    (tmp_path / "c").write_bytes(body + of_bytes(body))
    with pytest.raises(CorruptInputError, match="header of 4611686018427387904 bytes"):
        CalibrationFile.open(tmp_path / "c")


@pytest.mark.parametrize("content", ["longer", "shorter", "noise"])
def test_a_section_that_is_not_what_its_header_says_is_never_decompressed(
    whole_calibration: Path, tmp_path: Path, content: str
) -> None:
    with CalibrationFile.open(whole_calibration) as opened:
        facts = opened.facts
    sections, stored = [], []
    for name, fields in facts.shape.all_sections().items():
        size = section_size(fields)
        bad = {"longer": compress(bytes(size + 1)), "shorter": compress(bytes(size - 1)), "noise": b"noise"}[content]
        sections.append(Section(name, len(bad), size, of_bytes(bad).hex()))
        stored.append(bad)
    path = sealed(tmp_path / "c", headers.render(facts, sections), b"".join(stored))
    with CalibrationFile.open(path) as opened, pytest.raises(CorruptInputError, match="does not hold"):
        opened.layer(0)


@pytest.mark.parametrize("value", [np.nan, -1.0, np.inf])
def test_numbers_that_no_statistic_can_be_are_refused(whole_calibration: Path, tmp_path: Path, value: float) -> None:
    with CalibrationFile.open(whole_calibration) as opened:
        facts = opened.facts
    sections, stored = [], []
    for name, fields in facts.shape.all_sections().items():
        content = bytearray(section_size(fields))
        content[-4 * 64 * 63 :] = b"\1" * (4 * 64 * 63)  # correlations may be anything
        if name == "layer 0":
            content[2 * 8 * 8 : 2 * 8 * 8 + 8] = np.float64(value).tobytes()  # the first sum of shares
        stored.append(compress(bytes(content)))
        sections.append(Section(name, len(stored[-1]), len(content), of_bytes(stored[-1]).hex()))
    path = sealed(tmp_path / "c", headers.render(facts, sections), b"".join(stored))
    with CalibrationFile.open(path) as opened:
        with pytest.raises(CorruptInputError, match="shares holds a number that is negative or not finite"):
            opened.layer(0)
        with pytest.raises(CorruptInputError, match="does not count 3 experts for every token"):
            opened.layer(1)
