"""The stand-in's selectors, types, enumerations and structs against PyObjC's own metadata for Metal.

The metadata is a Python file of the macOS package pyobjc-framework-Metal, which pip downloads and keeps under build/.
It is read, not imported: PyObjC does not run here.
"""

import inspect
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import Metal
import pytest
from Metal.bridge import NSObject
from Metal.constants import ENUMS

PACKAGE = "pyobjc-framework-Metal==12.2.2"
FOLDER = Path(__file__).parents[2] / "build" / "pyobjc"
UNREACHABLE = re.compile("Failed to establish|name resolution|Max retries|Connection refused|timed out", re.IGNORECASE)

# Methods whose types PyObjC takes from the system itself, because they need no correction: no metadata lists them.
UNLISTED = {"setPreprocessorMacros:", "setLanguageVersion:", "setMathMode:", "setErrorOptions:"}
TYPES = {"S": "{MTLSize=QQQ}", "R": "{_NSRange=QQ}", "?": "@?", "n": "^v", "p": "^@", "o": "^@"}


def wheel() -> Path:
    """The package, downloaded once."""
    found = list(FOLDER.glob("pyobjc_framework_*etal-12.2.2-*.whl"))
    if found:
        return found[0]
    platform = ["--platform", "macosx_11_0_universal2", "--python-version", "311", "--only-binary", ":all:"]
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(FOLDER), *platform, PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode and UNREACHABLE.search(done.stderr + done.stdout):
        pytest.skip(f"{PACKAGE} cannot be downloaded: the package index cannot be reached")
    assert done.returncode == 0, done.stderr
    return wheel()


class Recorder(ModuleType):
    """What the metadata believes to be PyObjC: it keeps what it is told."""

    arch = "arm64"

    def __init__(self) -> None:
        super().__init__("objc")
        self.selectors: dict[str, list[dict[str, Any]]] = {}

    def registerMetaDataForSelector(self, _: bytes, selector: bytes, meta: dict[str, Any]) -> None:  # noqa: N802
        self.selectors.setdefault(selector.decode(), []).append(meta)

    def createStructType(self, name: str, encoding: bytes, fields: list[str]) -> Any:  # noqa: N802
        return SimpleNamespace(name=name, encoding=encoding.decode(), fields=fields)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *_, **__: None


@pytest.fixture(scope="module")
def metadata() -> Any:
    """`selectors`, `enums` and `structs` as PyObjC knows them."""
    text = zipfile.ZipFile(wheel()).read("Metal/_metadata.py")
    recorder = Recorder()
    names: dict[str, Any] = {"__name__": "Metal._metadata"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "objc", recorder)
        exec(compile(text, "_metadata.py", "exec"), names)
    enums = {name: int(value) for name, value in re.findall(r"\$(\w+)@(-?\d+)(?=\$)", names["enums"])}
    return SimpleNamespace(
        selectors=recorder.selectors, enums=enums, structs=names["misc"], functions=names["functions"]
    )


def classes() -> list[type]:
    return [thing for thing in vars(Metal).values() if inspect.isclass(thing) and issubclass(thing, NSObject)]


def methods() -> list[Any]:
    """Every public method of every class, once."""
    found = {
        method.selector: method
        for kind in classes()
        for name, method in inspect.getmembers(kind, inspect.isfunction)
        if not name.startswith("_") and not hasattr(NSObject, name)
    }
    return list(found.values())


def test_every_public_method_is_a_selector() -> None:
    for kind in classes():
        for name, method in inspect.getmembers(kind, inspect.isfunction):
            if not name.startswith("_") and not hasattr(NSObject, name):
                assert hasattr(method, "selector"), f"{kind.__name__}.{name}"
    assert len(methods()) > 60


def argument_type(meta: dict[str, Any], index: int) -> str:
    """The type of an argument; objects are not stated everywhere."""
    given = meta.get("arguments", {}).get(index + 2, {}).get("type", b"@")
    return given if isinstance(given, str) else given.decode()


@pytest.mark.parametrize("method", methods(), ids=lambda method: method.selector)
def test_selectors_are_pyobjcs(metadata: Any, method: Any) -> None:
    assert len(method.takes) == method.selector.count(":")
    if method.selector in UNLISTED:
        assert method.selector not in metadata.selectors
        return
    for meta in metadata.selectors[method.selector]:
        for i, letter in enumerate(method.takes):
            assert argument_type(meta, i) == TYPES.get(letter, letter), f"argument {i}"
            extra = meta.get("arguments", {}).get(i + 2, {})
            assert extra.get("type_modifier") == {"n": b"n", "p": b"n", "o": b"o"}.get(letter)
            assert extra.get("c_array_length_in_arg") == (i + 3 if letter in "np" else None)
        assert ("required" not in meta) or meta["retval"]["type"].decode() == TYPES.get(method.gives, method.gives)


def test_enumerations_are_pyobjcs(metadata: Any) -> None:
    assert {name: metadata.enums[name] for name in ENUMS} == ENUMS
    assert all(getattr(Metal, name) == value for name, value in ENUMS.items())


def test_structs_and_functions_are_pyobjcs(metadata: Any) -> None:
    assert list(Metal.MTLSize._fields) == metadata.structs["MTLSize"].fields
    assert metadata.structs["MTLSize"].encoding == TYPES["S"]
    assert metadata.functions["MTLSizeMake"][0] == b"{MTLSize=QQQ}QQQ"
    assert metadata.functions["MTLCreateSystemDefaultDevice"][0] == b"@"
    assert metadata.functions["MTLCopyAllDevices"][0] == b"@"


def test_results_have_the_types_that_are_stated(fake: ModuleType) -> None:
    device = Metal.MTLCreateSystemDefaultDevice()
    checks = {"Q": int, "q": int, "Z": bool, "S": Metal.MTLSize}
    for kind, thing in ((type(device), device), (Metal.MTLSharedEvent, device.newSharedEvent())):
        for name, method in inspect.getmembers(kind, inspect.isfunction):
            if getattr(method, "takes", None) == "" and method.gives in checks:
                assert isinstance(getattr(thing, name)(), checks[method.gives]), name
