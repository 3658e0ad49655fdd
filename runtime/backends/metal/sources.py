"""The text of a Metal library: a .metal file with the headers that it includes, specialised by macros.

Metal compiles a string and knows no folder of ours, so headers are put in place here, each once; `#line` keeps the
compiler's messages pointing at our files. Macros become `#define`s at the top: a value may then hold commas, whatever
the compiler's options make of them.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "kernels" / "metal"
_INCLUDE = re.compile(r'#include "(.+)"')


def library_source(file: str, macros: Mapping[str, str]) -> str:
    """`file`, such as "matvec.metal", in one piece, with `macros` defined."""
    defines = [f"#define {name} {value}" for name, value in macros.items()]
    return "\n".join([*defines, *_lines(file, set()), ""])


def source_line(file: str, line: int) -> str:
    """A line of a file of ours, as compilers number them; empty if there is none."""
    path = FOLDER / file
    lines = path.read_text().splitlines() if path.is_file() else []
    return lines[line - 1].strip() if 0 < line <= len(lines) else ""


def _lines(file: str, included: set[str]) -> Iterator[str]:
    included.add(file)
    yield f'#line 1 "{file}"'
    for number, line in enumerate((FOLDER / file).read_text().splitlines(), 1):
        found = _INCLUDE.fullmatch(line.strip())
        if found is None:
            yield line
        elif found[1] not in included:
            yield from _lines(found[1], included)
            yield f'#line {number + 1} "{file}"'
        else:
            yield ""
