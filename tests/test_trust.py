"""docs/trust.md: every promise has a test that exists, and `make trust` runs it."""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests/extended"))

import trust  # noqa: E402

PAGE = (ROOT / "docs/trust.md").read_text()
ROWS = [line for line in PAGE.splitlines() if line.startswith("| ") and "](../tests/" in line]


def test_every_test_that_is_named_exists() -> None:
    named = re.findall(r"\[(tests/[\w/.]+)\]\(\.\./(tests/[\w/.]+)\)", PAGE)
    assert len(named) > 30
    assert all(shown == linked and (ROOT / linked).is_file() for shown, linked in named)


def test_every_promise_is_there_once_and_has_its_test() -> None:
    numbers = re.findall(r"^\| (\d+)\. ", PAGE, re.MULTILINE)
    assert numbers == [str(number) for number in range(1, 26)]
    assert all(any(row.startswith(f"| {number}. ") for row in ROWS) for number in numbers)


def test_make_trust_runs_tests_that_exist() -> None:
    paths = [path for paths in trust.PROMISES.values() for path in paths]
    assert [path for path in paths if not (ROOT / path).exists()] == []
