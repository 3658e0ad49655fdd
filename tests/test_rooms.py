"""The rooms' import table, and what may not be imported at all."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAY_IMPORT: dict[str, set[str]] = {
    "manifests": set(),
    "layout": {"manifests"},
    "quantize": {"layout"},
    "convert": {"manifests", "layout", "quantize"},
    "runtime": {"manifests", "layout"},
}
COMMAND_LINES = {"convert/cli.py", "runtime/cli.py"}  # thin, and above all rooms
FILES = [path for room in MAY_IMPORT for path in sorted((ROOT / room).rglob("*.py"))]


def imported_modules(path: Path) -> list[str]:
    """Every module a file imports, dotted from the repository's root; relative imports resolved."""
    here = path.relative_to(ROOT).parent.parts
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name.removeprefix("moepack.") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            found += [f"{module}.{alias.name}".removeprefix("moepack.").lstrip(".") for alias in node.names]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_follow_the_table(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0]
    if str(path.relative_to(ROOT)) in COMMAND_LINES or "training" in path.parts:
        return
    for module in imported_modules(path):
        first = module.split(".")[0]
        if first in MAY_IMPORT and first != room:
            assert first in MAY_IMPORT[room], f"{path} imports {module}"
        if room == "quantize" and first == "layout":
            assert module.startswith("layout.formats"), f"{path} imports {module}: formats only"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_only_the_demo_models_training_imports_torch(path: Path) -> None:
    if "training" not in path.parts:
        heavy = {module.split(".")[0] for module in imported_modules(path)} & {"torch", "transformers", "mlx", "mlx_lm"}
        assert not heavy, f"{path} imports {heavy}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_one_module_speaks_to_metal(path: Path) -> None:
    if path != ROOT / "runtime/backends/metal/device.py":
        bindings = {module.split(".")[0] for module in imported_modules(path)} & {"Metal", "objc"}
        assert not bindings, f"{path} imports {bindings}"


@pytest.mark.parametrize(
    "code",
    ["import moepack.runtime", "import moepack.runtime.cli", "import moepack.convert.cli"],
)
def test_starting_imports_neither_torch_nor_transformers(code: str) -> None:
    check = f"{code}; import sys; print(sorted({{'torch', 'transformers', 'mlx'}} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
