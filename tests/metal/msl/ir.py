"""Reads the LLVM text of a program before it is optimised: what Metal forbids, and where memory is accessed.

There every access to device, constant or threadgroup memory is one instruction that names the address space and,
through its debug location, the line of the .metal file. A checked program gets a call before each of them. Functions
of the shim are left alone: they report what they do for their callers.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from .compiler import HERE
from .tokens import MslError, Place

READ, WRITE, ATOMIC = 1, 2, 4
SPACES = {"1": "device", "2": "constant", "3": "threadgroup"}
DEFINE = re.compile(r"^define .*?@(?P<name>[\w.$]+|\"[^\"]+\")\(.*!dbg (?P<scope>!\d+)")
CALL = re.compile(r"\bcall .*?@([\w.$]+|\"[^\"]+\")\(")
DEBUG = re.compile(r", !dbg (!\d+)")
POINTER = r"ptr addrspace\((?P<space>[123])\)"
LOAD = re.compile(rf"= load (?:volatile )?(?P<type>[^,]+), {POINTER} (?P<address>.+?), align")
STORE = re.compile(
    rf"^\s+store (?:volatile )?(?P<type><[^>]+>|\w+) .+, {POINTER} (?P<address>[^,]+|getelementptr.+\)), align"
)
COPY = re.compile(r"call void @llvm\.mem(?:cpy|move|set)\.[^(]+\((?P<arguments>.+)\)")
COPIED = re.compile(rf"{POINTER} (?:\w+(?:\(\d+\))? |align \d+ )*(?P<address>[%@][\w.$]+)")
CONSTANT = re.compile(r"^(?P<name>@[\w.$]+|@\"[^\"]+\") = .*addrspace\(2\) constant (?P<rest>.+)$", re.M)
# Conversions and arithmetic only: the calling convention of x86-64 passes small vectors as double.
DOUBLE = re.compile(r" to double\b|\bfptrunc double\b|\bf(?:add|sub|mul|div|rem|neg|cmp \w+) (?:\w+ )*double\b")
SIZES = {"half": 2, "bfloat": 2, "float": 4, "ptr": 8}


@dataclass
class Function:
    name: str
    scope: str
    lines: list[str] = field(default_factory=list)


class Module:
    """The text of a program, in functions and metadata."""

    def __init__(self, text: str) -> None:
        self.lines = text.splitlines()
        self.metadata = dict(line.split(" = ", 1) for line in self.lines if re.match(r"!\d+ = ", line))
        self.sites: dict[Place, str] = {}

    def functions(self) -> Iterator[Function]:
        """Those of the .metal files, not of the shim."""
        function = None
        for line in self.lines:
            if match := DEFINE.match(line):
                function = Function(match["name"], match["scope"])
            elif line == "}":
                if function and self._is_of_metal(function.scope):
                    yield function
                function = None
            elif function:
                function.lines.append(line)

    def place(self, node: str) -> Place:
        """Of a debug location or a function."""
        entry = self.metadata[node]
        return Place(self._file(node), int(re.search(r"\bline: (\d+)", entry)[1]))

    def title(self, scope: str) -> str:
        return re.search(r'name: "([^"]*)"', self.metadata[scope])[1]

    def _file(self, node: str) -> str:
        while not (match := re.search(r"\bfile: (!\d+)", self.metadata[node])):
            node = re.search(r"\bscope: (!\d+)", self.metadata[node])[1]
        return re.search(r'filename: "([^"]*)"', self.metadata[match[1]])[1]

    def _is_of_metal(self, scope: str) -> bool:
        return not self._file(scope).startswith(str(HERE))


def refuse_what_metal_refuses(module: Module) -> None:
    functions = {function.name: function for function in module.functions()}
    for function in functions.values():
        _refuse_instructions(module, function)
    calls = {name: [each for line in f.lines for each in CALL.findall(line)] for name, f in functions.items()}
    for name, function in functions.items():
        if _reaches(name, name, calls):
            raise MslError(
                f"MSL has no recursion, and {module.title(function.scope)} calls itself", module.place(function.scope)
            )


def _refuse_instructions(module: Module, function: Function) -> None:
    if "__cxx_global_var_init" in function.name:
        first = next(match[1] for line in function.lines if (match := DEBUG.search(line)))
        raise MslError("a constant of the program needs a value that is known when it is compiled", module.place(first))
    for line in function.lines:
        location = DEBUG.search(line)
        if location and DOUBLE.search(line):
            raise MslError("MSL has no double", module.place(location[1]))
        if location and "addrspacecast" in line:
            raise MslError("a pointer cannot be cast to another address space", module.place(location[1]))


def _reaches(start: str, goal: str, calls: dict[str, list[str]]) -> bool:
    seen: set[str] = set()
    waiting = list(calls[start])
    while waiting:
        name = waiting.pop()
        if name == goal:
            return True
        if name in calls and name not in seen:
            seen.add(name)
            waiting += calls[name]
    return False


@dataclass(frozen=True)
class Access:
    space: str
    address: str
    size: str
    kind: int


def checked(module: Module) -> str:
    """The program with a call before every access, and a table of its constants."""
    ours = {function.name for function in module.functions()}
    out: list[str] = []
    inside = False
    for line in module.lines:
        if match := DEFINE.match(line):
            inside = match["name"] in ours
        if inside and (location := DEBUG.search(line)):
            out += [_call(module, access, location[1]) for access in accesses(line)]
        out.append(line)
    return "\n".join([*out, *_declarations(module)]) + "\n"


def accesses(line: str) -> Iterator[Access]:
    if match := LOAD.search(line):
        yield Access(match["space"], match["address"], str(size_of(match["type"])), READ)
    elif match := STORE.search(line):
        yield Access(match["space"], match["address"], str(size_of(match["type"])), WRITE)
    elif match := COPY.search(line):
        yield from _copied(match["arguments"], "memset" in line)


def _copied(arguments: str, sets: bool) -> Iterator[Access]:
    parts = re.split(r", (?![^()]*\))", arguments)
    size = parts[2].split()[-1]
    for part, kind in zip(parts, (WRITE,) if sets else (WRITE, READ), strict=False):
        if match := COPIED.search(part):
            yield Access(match["space"], match["address"], size, kind)


def size_of(type_name: str) -> int:
    if vector := re.fullmatch(r"<(\d+) x (\w+)>", type_name):
        return int(vector[1]) * size_of(vector[2])
    if integer := re.fullmatch(r"i(\d+)", type_name):
        return (int(integer[1]) + 7) // 8
    return SIZES[type_name]


def _call(module: Module, access: Access, location: str) -> str:
    site = module.sites.setdefault(module.place(location), f"@msl.site.{len(module.sites)}")
    function = f"@msl_check_{SPACES[access.space]}"
    arguments = f"ptr addrspace({access.space}) {access.address}, i64 {access.size}, i32 {access.kind}, ptr {site}"
    return f"  call void {function}({arguments}), !dbg {location}"


def _declarations(module: Module) -> Iterator[str]:
    for number, name in SPACES.items():
        yield f"declare void @msl_check_{name}(ptr addrspace({number}), i64, i32, ptr)"
    files = {place.file: f"@msl.file.{i}" for i, place in enumerate(module.sites)}
    for file, name in files.items():
        data = file.encode() + b"\0"
        escaped = "".join(f"\\{byte:02x}" for byte in data)
        yield f'{name} = private constant [{len(data)} x i8] c"{escaped}"'
    for place, name in module.sites.items():
        yield f"{name} = private constant {{ ptr, i32, i32 }} {{ ptr {files[place.file]}, i32 {place.line}, i32 0 }}"
    yield from _constants(module)


def _constants(module: Module) -> Iterator[str]:
    rows = []
    for match in CONSTANT.finditer("\n".join(module.lines)):
        size = f"i64 ptrtoint (ptr getelementptr ({leading_type(match['rest'])}, ptr null, i64 1) to i64)"
        rows.append(f"{{ ptr addrspace(2), i64 }} {{ ptr addrspace(2) {match['name']}, {size} }}")
    table = f"[{len(rows)} x {{ ptr addrspace(2), i64 }}]"
    yield f"@msl_constants = constant {table} " + (f"[{', '.join(rows)}]" if rows else "zeroinitializer")
    yield f"@msl_constant_count = constant i32 {len(rows)}"


def leading_type(text: str) -> str:
    """The type at the beginning: one word, or everything to the bracket that closes the first."""
    depth = 0
    for i, letter in enumerate(text):
        depth += (letter in "[<{") - (letter in "]>}")
        if depth == 0 and (letter in "]>}" or text[i + 1 : i + 2] in (" ", "")):
            return text[: i + 1]
    return text
