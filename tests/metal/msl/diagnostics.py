"""Compile errors as one sentence that names a line of a .metal file, whoever found them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from .tokens import MARKER, Place

DIAGNOSTIC = re.compile(
    r"^(?P<file>[^\n:]+):(?P<line>\d+):\d+: (?P<kind>fatal error|error|note): (?P<message>.*)$", re.M
)
# What the shim's macros stand for, in clang's words and in Metal's.
WORDS = {
    "const __attribute__((address_space(2))) ": "constant ",
    "__attribute__((address_space(1))) ": "device ",
    "__attribute__((address_space(2))) ": "constant ",
    "__attribute__((address_space(3))) ": "threadgroup ",
    "_Float16": "half",
    "__bf16": "bfloat",
}


class CompileError(Exception):
    """Why a program was refused: a message, the file and line it is about, and that line's text."""

    def __init__(self, message: str, file: str, line: int, text: str) -> None:
        super().__init__(f"{file}:{line}: {message}" + (f", in: {text}" if text else ""))
        self.message, self.file, self.line, self.text = message, file, line, text


@dataclass(frozen=True)
class Diagnostic:
    place: Place
    kind: str
    message: str


def source_lines(source: str, file: str) -> dict[tuple[str, int], str]:
    """Every line by the file and number that #line gives it."""
    found = {}
    number = 0
    for line in source.splitlines():
        marker = MARKER.match(line.strip())
        number = int(marker[1]) - 1 if marker else number + 1
        file = marker[2] if marker else file
        if not marker:
            found[file, number] = line.strip()
    return found


def compile_error(message: str, place: Place, lines: dict[tuple[str, int], str]) -> CompileError:
    return CompileError(message, place.file, place.line, lines.get((place.file, place.line), ""))


def from_compiler(output: str, lines: dict[tuple[str, int], str]) -> CompileError:
    """The first error, at the place nearest to it that is not the shim's."""
    found = list(diagnostics(output))
    errors = [i for i, each in enumerate(found) if each.kind != "note"]
    if not errors:
        raise RuntimeError(f"the compiler failed without saying why: {output.strip()[:500]}")
    first, following = errors[0], found[errors[0] + 1 :]
    candidates = [found[first], *(each for each in following if each.kind == "note")]
    files = {file for file, _ in lines}
    place = next((each.place for each in candidates if each.place.file in files), found[first].place)
    return compile_error(found[first].message + hint(candidates), place, lines)


def hint(found: list[Diagnostic]) -> str:
    """What clang cannot know: that Metal copies structs between address spaces, and the shim's C++ does not."""
    copies = any("implicit copy" in each.message and "generic address space" in each.message for each in found)
    return " (Metal would copy this struct; here its members are copied one by one)" if copies else ""


def diagnostics(output: str) -> Iterator[Diagnostic]:
    for match in DIAGNOSTIC.finditer(output):
        yield Diagnostic(Place(match["file"], int(match["line"])), match["kind"], metal_words(match["message"]))


def metal_words(message: str) -> str:
    for clang, metal in WORDS.items():
        message = message.replace(clang, metal)
    return message
