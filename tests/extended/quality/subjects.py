"""What `make quality` measures: a checkpoint, texts to predict, tool cases, calibration text, and recipes.

Two subjects: the shipped demonstration model, on conversations drawn for it, and, where it is at hand, a trained
66-million-parameter model in bfloat16 with held-out text (MOEPACK_SHARED, or `shared` beside the repository).
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
TRAINING = ROOT / "convert" / "demo" / "training"
DEMO = ROOT / "convert" / "demo" / "checkpoint"
CASES = Path(__file__).with_name("cases.py")
SEPARATOR = "\0"


@dataclass(frozen=True)
class Recipe:
    """A pack to build: its name in tables, and what `moe-pack build` is told. `tools`: its tool calls are scored."""

    name: str
    options: tuple[str, ...]
    calibrated: bool = False
    tools: bool = False


def uniform(format_: str, method: str, *, tools: bool = False) -> Recipe:
    """One format and one method for all experts."""
    options = ("--expert-format", format_, "--method", method)
    return Recipe(f"{format_} {method}", options, calibrated=method in ("imatrix", "gptq"), tools=tools)


BASELINE = uniform("affine2-g64", "minmax", tools=True)
FOUR_BITS = uniform("affine4-g64", "minmax", tools=True)
STRICT = Recipe("--bits 2.51 gptq", ("--bits", "2.51", "--method", "gptq"), calibrated=True, tools=True)
MIXED = Recipe("--bits 2.54 gptq", ("--bits", "2.54", "--method", "gptq"), calibrated=True, tools=True)
SMALL = uniform("book2-g16", "gptq")
FREE = uniform("book2-g8", "mse", tools=True)
THREE = (FREE, uniform("book3-g16", "mse"), Recipe("--bits 3.33 mse", ("--bits", "3.33", "--method", "mse")))
RECIPES = (
    BASELINE,
    FOUR_BITS,
    uniform("affine2-g64", "mse", tools=True),
    uniform("affine2-g32s", "mse"),
    uniform("affine2-g16s", "mse"),
    uniform("book2-g16", "mse"),
    FREE,
    uniform("book2-g8", "imatrix"),
    SMALL,
    uniform("affine2-g16s", "gptq"),
    uniform("book2-g8", "gptq", tools=True),
    STRICT,
    MIXED,
    uniform("affine3-g64", "mse"),
    uniform("affine3-g32s", "mse"),
    *THREE[1:],
    Recipe("--bits 3.33 --calibration mse", ("--bits", "3.33", "--method", "mse"), calibrated=True),
    uniform("book3-g16", "gptq"),
)


@dataclass(frozen=True)
class Subject:
    """A model and its texts. `texts` by name; `tools` are cases; `fewer`: the K whose cost is shown apart."""

    name: str
    checkpoint: Path
    texts: dict[str, Path]
    tools: Path
    calibration: Path
    fewer: int


def subjects(place: Path, limit: int) -> Iterator[Subject]:
    """Those that are there, with texts of about `limit` cases and the files they need written under `place`."""
    shared = Path(os.environ.get("MOEPACK_SHARED", ROOT.parent / "shared")) / "models"
    if (shared / "trained-66m").is_dir():
        yield _trained(shared, place / "trained-66m", limit)
    yield _demo(place / "demo", limit)


def _trained(shared: Path, place: Path, limit: int) -> Subject:
    place.mkdir(parents=True, exist_ok=True)
    text, checkpoint = shared / "text", shared / "trained-66m"
    tools = place / "tools.jsonl"
    subprocess.run([sys.executable, CASES, checkpoint, text / "val_chat.txt", tools, str(limit)], check=True)
    texts = {"text": text / "val_text.txt", "chat": text / "val_chat.txt"}
    return Subject("trained-66m", checkpoint, texts, tools, text / "calibration.txt", 2)


def _demo(place: Path, limit: int) -> Subject:
    place.mkdir(parents=True, exist_ok=True)
    chats, calibration, tools = place / "chats.txt", place / "calibration.txt", place / "tools.jsonl"
    held_out = write_chats(chats, 400)
    calibration.write_text(SEPARATOR.join(_rendered(*drawn) for drawn in _conversations(4244, 800, evaluation=False)))
    cases = [case for drawn in held_out for case in _cases(*drawn)][:limit]
    tools.write_text("".join(json.dumps(case) + "\n" for case in cases))
    return Subject("demo", DEMO, {"chat": chats}, tools, calibration, 2)


Conversation = tuple[list[dict[str, Any]], list[dict[str, Any]] | None]


def write_chats(path: Path, count: int) -> list[Conversation]:
    """Conversations that the demo model was not trained on, as a text of that many documents; returns them."""
    held_out = list(_conversations(4243, count, evaluation=True))
    path.write_text(SEPARATOR.join(_rendered(*drawn) for drawn in held_out))
    return held_out


def _conversations(seed: int, count: int, *, evaluation: bool) -> Iterator[Conversation]:
    sys.path.insert(0, str(TRAINING))
    import chat

    words = sorted(set(re.findall(r"[a-z]{4,10}", (ROOT / "LICENSE").read_text())))
    stream = chat.Conversations(seed, words, [], evaluation=evaluation)
    return (stream.draw() for _ in range(count))


def _rendered(messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None) -> str:
    import render

    return str(render.render(messages, tools))


def _cases(messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None) -> Iterator[dict[str, Any]]:
    """The user's turns that one call answers; where no tool fits, the demo model is known to call one anyway."""
    for index, answer in enumerate(messages):
        calls = answer.get("tool_calls", [])
        if len(calls) == 1 and tools:
            yield {"messages": messages[:index], "tools": tools, "expected": calls[0]["function"]}
