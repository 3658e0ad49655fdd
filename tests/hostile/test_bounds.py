"""Every parser keeps to its memory and time whatever it is fed, and says so in one sentence.

Memory is what was resident at most in the process that parses. One that runs into the limit of its address space, which
is far beyond, has failed, whatever sentence it makes of that.
"""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import documents
import pytest
import templates

HERE = Path(__file__).parent
SECONDS = 2.0
SLOWER = 1.5  # times that a busy machine may take: the bound is of a quiet one
CASES = {
    "manifest": documents.JSON,
    "header": {**documents.JSON, **documents.HEADER},
    "index": {**documents.JSON, **documents.INDEX},
    "config": documents.JSON,
    "small": documents.JSON,
    "calibration": documents.CALIBRATION,
    "recipe": documents.JSON,
    "toml": documents.TOML,
    "tokenizer": documents.TOKENIZER,
    "template": templates.HUNGRY,
}
READ = {
    "header": {"as many tensors as may be", "as many shapes as may be", "90,000 facts"},
    "tokenizer": {"a million tokens", "250,000 tokens and merges", "200,000 added tokens", "30 parts in parts"},
}
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what was resident at most")


@cache
def outcomes(parser: str) -> dict[str, dict[str, Any]]:
    paths = os.pathsep.join([str(HERE), str(HERE.parent)])
    environment = {**os.environ, "PYTHONPATH": paths, "RUST_BACKTRACE": "0", "MALLOC_ARENA_MAX": "2"}
    done = subprocess.run(
        [sys.executable, HERE / "bounds.py", parser], env=environment, capture_output=True, text=True, check=True
    )
    return {told["case"]: told for told in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("parser", CASES)
def test_a_parser_keeps_to_its_bounds(parser: str) -> None:
    found = outcomes(parser)
    assert found.keys() == CASES[parser].keys()
    for case, outcome in found.items():
        assert outcome["error"] is None or outcome["ours"], (case, outcome)
        assert outcome["grown"] <= outcome["bound"], (case, outcome)
        assert not outcome.get("ran_out"), (case, outcome)
        assert outcome["seconds"] < SECONDS * SLOWER, (case, outcome)
        assert "\n" not in outcome["message"], (case, outcome)
        assert len(outcome["message"]) < 600, (case, outcome)


@pytest.mark.parametrize("parser", READ)
def test_what_is_large_but_sound_is_read(parser: str) -> None:
    found = outcomes(parser)
    assert {case for case in READ[parser] if found[case]["error"]} == set()


@pytest.mark.parametrize(("parser", "code"), [("manifest", 3), ("header", 3), ("index", 3), ("recipe", 2)])
def test_no_document_of_the_corpus_passes_for_another(parser: str, code: int) -> None:
    found = outcomes(parser)
    assert {found[case]["code"] for case in documents.JSON} == {code}


def test_every_template_that_takes_too_much_is_refused() -> None:
    harmless = {  # they take time and room, not too much of either
        *("a loop that only tests", "64 KiB of macros", "names of a namespace", "namespaces in namespaces"),
        *("constants that are escaped", "a text and a Markup"),
    }
    assert {case for case, outcome in outcomes("template").items() if not outcome["error"]} <= harmless
