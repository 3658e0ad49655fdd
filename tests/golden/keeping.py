"""How a golden pack is kept: in an archive, with the logits of a prompt."""

import io
import tarfile
from pathlib import Path

import numpy as np
import zstandard

from moepack.runtime.engine import Engine, EngineOptions

from .checkpoint import VOCAB
from .recipes import RECIPE, build_by

HERE = Path(__file__).parent
ARCHIVE, CALIBRATION, FACTS = "pack.tar.zst", "golden.moecal", "facts.json"
PROMPT = [token * 37 % VOCAB for token in range(1, 13)]


def build_golden(checkpoint: Path, calibration: Path, target: Path) -> None:
    """Pack the golden checkpoint by the golden recipe."""
    build_by(RECIPE, checkpoint, calibration, target)


def logits(pack: Path) -> np.ndarray:
    """What the packed model says after the prompt, in float32 arithmetic."""
    with Engine.open(pack, EngineOptions(threads=2, exact=True)) as engine:
        return engine.new_session().extend(PROMPT)


def archived(pack: Path) -> bytes:
    """A pack's files as one archive, in which nothing tells of time, place or user."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for path in sorted(path for path in pack.rglob("*") if path.is_file()):
            entry = tarfile.TarInfo(str(path.relative_to(pack)))
            entry.size = path.stat().st_size
            with path.open("rb") as file:
                archive.addfile(entry, file)
    return zstandard.ZstdCompressor(level=19).compress(content.getvalue())


def unpack(archive: Path, target: Path) -> None:
    """The pack in an archive of ours."""
    content = zstandard.ZstdDecompressor().decompress(archive.read_bytes(), max_output_size=2**24)
    with tarfile.open(fileobj=io.BytesIO(content)) as opened:
        for entry in opened:
            file, path = opened.extractfile(entry), target / entry.name
            assert file is not None, f"{entry.name} is no file"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(file.read())
