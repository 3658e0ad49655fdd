"""FORMAT.md and the tests agree: every numbered rule has its test where the last section says, and vice versa."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SPECIFICATION = (ROOT / "FORMAT.md").read_text()
NUMBER = re.compile(r"\b([PFTMW]\d{1,2})\b")
DEFINED = set(re.findall(r"^- \*\*([A-Z]\d+)\*\* ", SPECIFICATION, re.MULTILINE))
TABLE = {
    number: path
    for row in re.findall(r"^\| ([PFTMW]\d.*?) \| `(tests/\S+)` \|$", SPECIFICATION, re.MULTILINE)
    for number, path in ((number, row[1]) for number in NUMBER.findall(row[0]))
}


def test_every_rule_says_must_or_may_not() -> None:
    paragraphs = re.findall(r"^- \*\*([A-Z]\d+)\*\* (.*?)(?=\n- |\n\n)", SPECIFICATION, re.MULTILINE | re.DOTALL)
    assert {number for number, text in paragraphs if "MUST" in text or "may be" in text} == DEFINED


def test_every_must_has_a_number() -> None:
    for paragraph in re.split(r"\n\n|\n(?=- )", SPECIFICATION.split("## 1.")[1]):
        if "MUST" in paragraph:
            assert re.match(r"- \*\*[A-Z]\d+\*\*", paragraph), paragraph


def test_every_rule_has_a_place_in_the_table() -> None:
    assert TABLE.keys() == DEFINED


@pytest.mark.parametrize("number", sorted(DEFINED))
def test_the_test_file_refers_to_the_rule(number: str) -> None:
    assert covers((ROOT / TABLE[number]).read_text(), number)


def covers(source: str, number: str) -> bool:
    """Whether a test's docstring, its case or its file's docstring names the rule (a range names all within)."""
    ranges = re.findall(r"\b([PFTMW])(\d+)(?:-| to )\1(\d+)", source)
    return number in NUMBER.findall(source) or any(
        number[0] == letter and int(first) <= int(number[1:]) <= int(last) for letter, first, last in ranges
    )


# A rule is named by a test's docstring, by the end of a message, or at the start of a parametrized case.
REFERENCE = re.compile(r'"""([PFTMW]\d{1,2})"""|\(([PFTMW]\d{1,2})\\?\)|^    \("([PFTMW]\d{1,2})",', re.MULTILINE)


@pytest.mark.parametrize("folder", ["layout", "manifests"])
def test_tests_refer_to_no_rule_that_does_not_exist(folder: str) -> None:
    sources = [path.read_text() for path in (ROOT / "tests" / folder).glob("test_*.py")]
    referred = {next(filter(None, match)) for source in sources for match in REFERENCE.findall(source)}
    assert len(referred) > 5
    assert referred <= DEFINED
