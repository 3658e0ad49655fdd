"""Whatever the documentation tells a reader to make can be made."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = set(re.findall(r"^([a-z]+):", MAKEFILE, re.MULTILINE))


def test_every_target_is_declared_and_every_declared_one_is_there() -> None:
    declared = re.findall(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)
    assert [set(line.split()) for line in declared] == [TARGETS]


def test_every_target_that_documents_name_is_there() -> None:
    pages = [ROOT / "README.md", ROOT / "FORMAT.md", *ROOT.glob("docs/*.md"), *ROOT.glob("tests/**/*.md")]
    named = {name for page in pages for name in re.findall(r"`make ([a-z]+)", page.read_text())}
    assert len(named) >= 10
    assert named <= TARGETS
