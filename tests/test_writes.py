"""Every write goes through layout/atomic.py: no other module opens a file for writing, or makes or removes one."""

import ast
import re
from pathlib import Path

import pytest
from test_rooms import FILES, ROOT

ONE = ROOT / "layout/atomic.py"
OTHERS = {  # and what for; besides, the Hub's own library fills the Hub's own cache
    "convert/demo/training": "scripts that are run by hand to make the demo model, no part of the programs",
    "convert/diskspeed.py TemporaryFile": "nameless: gone with its descriptor; only its speed is wanted",
    "convert/diskspeed.py os.fsync": "of that file",
    "convert/signing.py TemporaryDirectory": "the library writes a signature to a name; we read it from there",
    "manifests/command.py os.open": "stdout becomes /dev/null when nobody reads it",
    "runtime/corpus.py TemporaryFile": "nameless: memory that did not fit",
    "runtime/corpus.py os.pwrite": "into that file",
    "runtime/quality/picture.py savefig": "into memory",
    "runtime/sessions/prefixes.py touch": "a method of the store, of which the next line is all",
    "runtime/sessions/store.py os.utime": "when a state was last used; its bytes stay",
}
NATIVE = [
    path for room in ("quantize", "runtime") for path in sorted((ROOT / room).rglob("*.[ch]*")) if path.suffix != ".pyc"
]
OS = {
    *("chflags", "chmod", "chown", "copy_file_range", "fchmod", "fchown", "fdatasync", "fsync", "ftruncate", "link"),
    *(
        "makedirs",
        "mkdir",
        "mkfifo",
        "mknod",
        "pwrite",
        "pwritev",
        "remove",
        "removedirs",
        "rename",
        "renames",
        "replace",
    ),
    *("rmdir", "sendfile", "setxattr", "symlink", "truncate", "unlink", "utime", "writev"),
}
METHODS = {
    *("chmod", "hardlink_to", "link_to", "mkdir", "rename", "rmdir", "symlink_to", "touch", "unlink", "write_bytes"),
    *("write_text", "tofile", "savefig", "save_file"),
}
SHUTIL = {"copy", "copy2", "copyfile", "copyfileobj", "copytree", "move", "rmtree", "chown"}
TEMPORARY = {"NamedTemporaryFile", "TemporaryDirectory", "TemporaryFile", "SpooledTemporaryFile", "mkdtemp", "mkstemp"}
NUMPY = {"save", "savez", "savez_compressed", "savetxt", "memmap"}
FLAGS = {"O_WRONLY", "O_RDWR", "O_CREAT", "O_TRUNC", "O_APPEND", "O_TMPFILE"}
HARMLESS = re.compile(r"[rbt]*")


def writes(source: str) -> list[str]:
    """What a module calls that changes a disk, or may."""
    return [name for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call) and (name := _writing(node))]


def _writing(call: ast.Call) -> str:
    named, name, of = call.func, "", ""
    if isinstance(named, ast.Attribute):
        name, of = named.attr, named.value.id if isinstance(named.value, ast.Name) else ""
    elif isinstance(named, ast.Name):
        name = named.id
    if name in TEMPORARY or (name in METHODS and isinstance(named, ast.Attribute) and of != "atomic"):
        return name
    if (of == "os" and name in OS) or (of == "shutil" and name in SHUTIL) or (of in ("np", "numpy") and name in NUMPY):
        return f"{of}.{name}"
    if name == "open":
        return _opening(call, of)
    moves = isinstance(named, ast.Attribute) and name == "replace" and len(call.args) == 1 and not call.keywords
    return "replace" if moves else ""  # a path's; a string's has two arguments, a dataclass's has names


def _opening(call: ast.Call, of: str) -> str:
    """`open` in its three shapes: by flags, by a mode after a path, by a mode of a path."""
    if of == "os":
        return "os.open" if FLAGS & {node.attr for node in ast.walk(call) if isinstance(node, ast.Attribute)} else ""
    of_path = isinstance(call.func, ast.Attribute)  # whose first argument, unless it is a mode, makes it another open
    modes = [*call.args[0 if of_path else 1 :][:1], *(word.value for word in call.keywords if word.arg == "mode")]
    written = [mode.value if isinstance(mode, ast.Constant) else None for mode in modes]
    harmless = all(of_path if mode is None else HARMLESS.fullmatch(str(mode)) for mode in written)
    return "" if harmless else "open"


def excused(path: Path, call: str) -> bool:
    name = str(path.relative_to(ROOT))
    return any(name.startswith(other) or f"{name} {call}" == other for other in OTHERS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_one_module_writes(path: Path) -> None:
    if path != ONE:
        assert [call for call in writes(path.read_text()) if not excused(path, call)] == []


def test_every_exception_is_still_one() -> None:
    for other in OTHERS:
        where, _, call = other.partition(" ")
        if call:
            assert call in writes((ROOT / where).read_text()), other


def test_native_code_writes_no_file() -> None:
    assert len(NATIVE) > 40
    calls = re.compile(r"\b(fopen|ofstream|fstream|O_CREAT|O_WRONLY|O_RDWR|rename|unlink|remove|mkstemp)\s*[(&|;]")
    assert [(path.name, found[0]) for path in NATIVE for found in calls.finditer(path.read_text())] == []


@pytest.mark.parametrize(
    "line",
    [
        "open(path, 'w')",
        "open(path, mode='ab')",
        "path.open('r+b')",
        "open(path, how)",
        "path.open('x')",
        "os.open(path, os.O_RDONLY | os.O_CREAT)",
        "os.replace(a, b)",
        "a.replace(b)",
        "a.rename(b)",
        "path.write_text('')",
        "path.parent.mkdir()",
        "shutil.move(a, b)",
        "tempfile.NamedTemporaryFile()",
        "NamedTemporaryFile(delete=False)",
        "np.save(path, array)",
        "figure.savefig(path)",
    ],
)
def test_a_write_would_be_found(line: str) -> None:
    assert writes(line)


@pytest.mark.parametrize(
    "line",
    [
        "open(path)",
        "path.open('rb')",
        "os.open(path, os.O_RDONLY)",
        "Pack.open(path)",
        "a.replace('x', 'y')",
        "replace(a, b=1)",
    ],
)
def test_a_read_would_not(line: str) -> None:
    assert not writes(line)
