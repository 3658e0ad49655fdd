"""Nothing that is read can become code: shipped sources have none of the ways by which it could."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("manifests", "layout", "quantize", "convert", "runtime")
FILES = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py")) if "training" not in path.parts]
MODULES = {
    *("pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "code", "codeop", "runpy"),
    *("imp", "torch", "transformers", "yaml", "xml", "subprocess", "pty", "multiprocessing"),
}
CALLS = {"eval", "exec", "compile", "__import__", "execfile", "input"}
ATTRIBUTES = {
    *("system", "popen", "execv", "execve", "execvp", "spawnv", "posix_spawn", "fork", "import_module", "load_module"),
    *("exec_module", "loads_pickle", "from_pretrained", "load_library", "allow_pickle"),
}
KEYWORDS = {"trust_remote_code", "allow_pickle", "shell"}
NUMPY_LOADERS = {"load", "fromfile", "memmap", "loadtxt", "genfromtxt"}
EXCEPTIONS = {  # fixed names and a fixed command line: nothing of them is read
    "quantize/moments.py": {"import_module"},
    "runtime/host.py": {"subprocess"},
}


def found_in(source: str) -> list[str]:
    """Every way to code in a source, with its line."""
    return [f"{node.lineno}: {what}" for node in ast.walk(ast.parse(source)) for what in faults(node)]  # type: ignore[attr-defined]


def faults(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names if alias.name.split(".")[0] in MODULES]
    if isinstance(node, ast.ImportFrom):
        top = (node.module or "").split(".")[0] if not node.level else ""
        names = [alias.name for alias in node.names if not node.level and alias.name in ATTRIBUTES]
        return names + ([top] if top in MODULES else [])
    if isinstance(node, ast.Call):
        keywords = [word.arg for word in node.keywords if word.arg in KEYWORDS and word.arg]
        return keywords + called(node.func)
    return []


def called(function: ast.expr) -> list[str]:
    if isinstance(function, ast.Name):
        return [function.id] if function.id in CALLS else []
    if isinstance(function, ast.Attribute):
        of_numpy = isinstance(function.value, ast.Name) and function.value.id in ("np", "numpy", "torch")
        if function.attr in ATTRIBUTES or (of_numpy and function.attr in NUMPY_LOADERS):
            return [function.attr]
    return []


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_shipped_source_has_no_way_to_run_what_it_reads(path: Path) -> None:
    allowed = EXCEPTIONS.get(str(path.relative_to(ROOT)), set())
    assert {found.partition(": ")[2] for found in found_in(path.read_text())} == allowed


@pytest.mark.parametrize(
    "source",
    [
        "import pickle", "from pickle import loads", "import torch", "import subprocess as s", "import yaml",
        "eval('1')", "exec(x)", "__import__('os')", "compile(x, '', 'exec')", "os.system('id')", "os.popen('id')",
        "importlib.import_module(name)", "from importlib import import_module", "np.load(path)",
        "AutoModel.from_pretrained(x, trust_remote_code=True)", "f(allow_pickle=True)", "run(x, shell=True)",
    ],
)  # fmt: skip
def test_each_such_way_would_be_noticed(source: str) -> None:
    assert found_in(source)
