"""One real report, or more, of every command that has `--json`: what the schemas in docs/schemas are held against."""

import contextlib
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from calibrating import calibrated, windows_of
from checkpoints import TINY, CheckpointMaker, Variant
from tinypack import replace_file

from moepack.convert import cli as moe_pack
from moepack.runtime import cli as moe_run

TEXT = "the quick brown fox jumps over the lazy dog " * 40
TOOL = {"name": "f", "parameters": {"type": "object", "properties": {}}}
CASE = {"messages": [{"role": "user", "content": "hi"}], "tools": [TOOL], "expected": {"name": "f", "arguments": {}}}

Reports = Iterator[tuple[str, Any]]


def left(program: Any, *arguments: object, code: int = 0) -> str:
    """What a command prints before it leaves with `code`."""
    out, found = io.StringIO(), 0
    with mock.patch.object(sys, "argv", ["program", *map(str, arguments)]), contextlib.redirect_stdout(out):
        try:
            program.main()
        except SystemExit as leaving:
            found = int(leaving.code or 0)
    assert found == code, (arguments, found)
    return out.getvalue()


def report(program: Any, *arguments: object, code: int = 0) -> Any:
    """The document that it prints."""
    return json.loads(left(program, *arguments, code=code))


def damaged(pack: Path) -> None:
    layer = pack / "experts/layer_01.bin"
    content = bytearray(layer.read_bytes())
    content[1000] ^= 1
    replace_file(layer, content)


def of_packs(folder: Path, make_checkpoint: CheckpointMaker, private: Path, public: Path) -> Reports:
    """Those of moe-pack that need no calibration and no engine."""
    source = make_checkpoint(Variant())
    pack, other = folder / "pack", folder / "other"

    def ask(name: str, *arguments: object, code: int = 0) -> tuple[str, Any]:
        return name, report(moe_pack, *arguments, "--json", code=code)

    yield ask("plan", "plan", source, "--out", folder)
    yield ask("plan", "plan", source, "--bits", 3, "--out", folder)
    yield "recipe", report(moe_pack, "recipe", source)
    yield "recipe", report(moe_pack, "recipe", source, "--bits", 3.1)
    yield ask("build", "build", source, pack)
    yield ask("build", "build", source, other, "--expert-format", "affine3-g64")
    yield ask("inspect", "inspect", pack)
    yield ask("verify", "verify", pack)
    yield ask("verify", "verify", pack, "--quick")
    yield ask("verify", "scrub", pack, "--subset", "50%")
    yield ask("sign", "sign", pack, "--key", private)
    yield ask("verify", "verify", pack, "--signed-by", public)
    statement = folder / "statement.json"
    left(moe_pack, "provenance", pack, "-o", statement)
    yield "provenance", json.loads(statement.read_bytes())
    yield ask("lock", "lock", source, "-o", folder / "a.lock.toml", "--pack", pack)
    yield ask("lock", "lock", source, "-o", folder / "b.lock.toml")
    yield ask("diff", "diff", pack, pack)
    yield ask("diff", "diff", pack, other, code=1)
    yield ask("reproduce", "reproduce", pack, "--source", source, "--trunk")
    damaged(pack)
    yield ask("verify", "verify", pack, code=1)
    yield ask("reproduce", "reproduce", pack, "--source", source, "--sample", "100%", code=1)
    yield ask("repair", "repair", pack, "--source", source)
    yield ask("repair", "repair", pack, "--source", source)


def of_calibrations(folder: Path, make_checkpoint: CheckpointMaker) -> Reports:
    """Those that need a calibration, or make one."""
    source, text = make_checkpoint(Variant()), folder / "text"
    text.write_text(TEXT)
    out = folder / "c.moecal"
    ask = ("calibrate", source, "--text", text, "-o", out, "--tokens", 400, "--window", 4, "--held-out", 2)
    yield "calibrate", report(moe_pack, *ask, "--sensitivities", "--sensitivity-tokens", 32, "--json")
    yield "inspect-calibration", report(moe_pack, "inspect", out, "--json")
    small = folder / "small.moecal"
    tiny = make_checkpoint(Variant(TINY))
    calibrated(tiny, small, windows_of(TINY))
    yield "inspect-calibration", report(moe_pack, "inspect", small, "--json")
    gptq = ("build", tiny, folder / "gptq", "--method", "gptq", "--calibration", small)
    yield "build", report(moe_pack, *gptq, "--expert-format", "affine2-g32", "--json")
    yield "inspect", report(moe_pack, "inspect", folder / "gptq", "--json")


def of_measurements(folder: Path, make_checkpoint: CheckpointMaker) -> Reports:
    """That of `quality`."""
    pack, text, tools = folder / "judged", folder / "text", folder / "tools"
    text.write_text(TEXT)
    tools.write_text(json.dumps(CASE) + "\n")
    source = make_checkpoint()
    report(moe_pack, "build", source, pack, "--json")
    ask = ("quality", pack, "--reference", source, "--json")
    yield "quality", report(moe_pack, *ask, "--text", text, "--tools", tools, "-n", 4, "--layer-tokens", 50)
    yield "quality", report(moe_pack, *ask, "--text", text, "--no-weights")


def of_runs(pack: Path) -> Reports:
    """Those of moe-run, on a pack of the shipped model."""
    few = ("--memory", "500MB", "--json")
    yield "generate", report(moe_run, "generate", pack, "-p", "Hello", "-n", 3, "--seed", 1, *few)
    yield "generate", report(moe_run, "generate", pack, "-p", "Hello", "--raw", "-n", 3, "--temp", 0, "--exact", *few)
    bench = ("bench", pack, "--prompt-tokens", 8, "--decode-tokens", 2, "--repetitions", 1)
    yield "bench", report(moe_run, *bench, *few)
    yield "bench", report(moe_run, *bench, "--trace", pack.with_name("trace.json"), *few)
    yield "doctor", report(moe_run, "doctor", pack, *few)
    yield "doctor", report(moe_run, "doctor", pack, "--device", "m3-max-48gb", "--json")
    yield "demo", report(moe_pack, "demo", pack.with_name("demo"), "--json")
