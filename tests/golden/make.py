"""Make the golden pack of today's format version: PYTHONPATH=tests:tests/convert python -m golden.make

Refuses to replace one: packs of a version that others hold stay readable, and this is how it is known that they do.
"""

import json
import sys
import tempfile
from pathlib import Path

from calibrating import calibrated

from moepack.manifests.manifest import pack_digest
from moepack.manifests.schema import FORMAT_VERSION
from moepack.runtime.corpus import Corpus

from .checkpoint import VOCAB, write_checkpoint
from .keeping import ARCHIVE, CALIBRATION, FACTS, HERE, archived, build_golden, logits

WINDOWS, WINDOW = 20, 19


def calibrate(checkpoint: Path, target: Path) -> None:
    """Calibrate on windows of arithmetic: the statistics depend on the machine, which is why the file is kept."""
    windows = [[(step * (7 + n) + n) % VOCAB for step in range(WINDOW)] for n in range(WINDOWS)]
    calibrated(checkpoint, target, Corpus.of(windows), expert_hessians="none")


def main() -> None:
    folder = HERE / f"v{FORMAT_VERSION}"
    if folder.exists():
        sys.exit(f"{folder} exists, and stays as it is")
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint, pack = Path(scratch) / "checkpoint", Path(scratch) / "pack"
        write_checkpoint(checkpoint)
        folder.mkdir()
        calibrate(checkpoint, folder / CALIBRATION)
        build_golden(checkpoint, folder / CALIBRATION, pack)
        (folder / ARCHIVE).write_bytes(archived(pack))
        facts = {"digest": pack_digest(pack), "logits": logits(pack).tolist()}
        (folder / FACTS).write_text(json.dumps(facts) + "\n")


if __name__ == "__main__":
    main()
