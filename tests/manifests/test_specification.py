"""FORMAT.md and the tests agree: every numbered rule has its test where the last section says, and vice versa."""

import ast
import re
from pathlib import Path
from typing import TypeGuard

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
    """Whether a test function names the rule in its docstring, its decorators, its name or its text.

    Cases that a decorator takes from a table of the file count too; the file's own docstring does not.
    """
    tree = ast.parse(source)
    tests = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
    used = {name.id for test in tests for mark in test.decorator_list for name in ast.walk(mark) if is_name(name)}
    assigned: list[tuple[ast.stmt, ast.expr]] = [
        (node, node.targets[0]) for node in tree.body if isinstance(node, ast.Assign)
    ]
    assigned += [(node, node.target) for node in tree.body if isinstance(node, ast.AnnAssign)]
    tables = [node for node, target in assigned if ast.unparse(target) in used]
    return any(number in NUMBER.findall(ast.unparse(node)) for node in (*tests, *tables))


def is_name(node: ast.AST) -> TypeGuard[ast.Name]:
    return isinstance(node, ast.Name)


# A rule is named by a test's docstring, by the end of a message, or at the start of a parametrized case.
REFERENCE = re.compile(r'"""([PFTMW]\d{1,2})"""|\(([PFTMW]\d{1,2})\\?\)|^    \("([PFTMW]\d{1,2})",', re.MULTILINE)


@pytest.mark.parametrize("folder", ["layout", "manifests"])
def test_tests_refer_to_no_rule_that_does_not_exist(folder: str) -> None:
    sources = [path.read_text() for path in (ROOT / "tests" / folder).glob("test_*.py")]
    referred = {next(filter(None, match)) for source in sources for match in REFERENCE.findall(source)}
    assert len(referred) > 5
    assert referred <= DEFINED
