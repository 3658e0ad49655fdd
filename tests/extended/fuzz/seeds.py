"""Valid files for the fuzzers to start from: those of the tiny pack, of the shipped model, and the hostile corpus."""

import json
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[3]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests/hostile")]

import documents  # noqa: E402
import templates  # noqa: E402
from tinypack import build, tiny_plan  # noqa: E402

from moepack.convert.shipped import CHECKPOINT  # noqa: E402

MOST = 4096  # bytes of a seed


def write(corpus: Path, name: str) -> None:
    """The seeds of one parser."""
    corpus.mkdir(parents=True, exist_ok=True)
    for number, content in enumerate(_seeds(name)):
        if len(content) <= MOST:
            (corpus / f"seed-{number}").write_bytes(content)


def _seeds(name: str) -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        build(Path(folder, "pack"), tiny_plan(Path(folder)))
        manifest = Path(folder, "pack/manifest.json").read_bytes()
        trunk = Path(folder, "pack/trunk.safetensors").read_bytes()
    json_documents = [made() for case, made in documents.JSON.items() if "M" not in case and "million" not in case]
    config = (CHECKPOINT / "config.json").read_bytes()
    length = int.from_bytes(trunk[:8], "little")
    section = documents.section("layer 0", 8 * 2 * 2 + 2 * 2 * 32 * 4 + 2 * 2 * 4 * 32 + 2 * 2 * 2 * 528)
    own = {
        "manifest": [manifest],
        "sealed": [manifest],
        "header": [(len(trunk) - 8 - length).to_bytes(3, "little") + trunk[8 : 8 + length]],
        "checkpoint": [b'{"weight_map":{"a":"model-1.safetensors"}}\0' + config],
        "config": [config, (CHECKPOINT / "generation_config.json").read_bytes()],
        "calibration": [documents.calibrated([section], kept="none"), documents.calibrated([section], 1, 2, 32, "all")],
        "recipe": [
            b'{"format":"book2-g8","method":"mse","trunk":"source","overrides":[{"layers":"0-2,6","projections":["down"]}]}',
            b'#\nformat = "affine2-g64"\n[[overrides]]\nlayers = "0-3"\nformat = "affine4-g64"\n',
        ],
        "tokenizer": [
            json.dumps(documents.tokenizer()).encode() + b'\0{"eos_token":{"content":"a"}}',
            documents.TOKENIZER["30 parts in parts"](),
        ],
        "template": [made() for made in templates.HUNGRY.values()]
        + [(CHECKPOINT / "chat_template.jinja").read_bytes()],
    }
    return own[name] + ([] if name == "template" else json_documents)
