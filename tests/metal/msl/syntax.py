"""What the translation recognises in MSL: attributes, parameters of kernels, kernels and their instantiations."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from .tokens import MslError, Place, Token, closing, split, text

VECTOR_BASES = ["bool", "char", "uchar", "short", "ushort", "int", "uint", "long", "ulong", "float", "half", "bfloat"]
VECTORS = {f"{base}{width}" for base in VECTOR_BASES for width in (2, 3, 4)}
# What a thread may ask for; those of the second group belong to the threadgroup. Fields of Lane and Group.
OF_LANE = {
    "thread_position_in_grid",
    "thread_position_in_threadgroup",
    "thread_index_in_threadgroup",
    "thread_index_in_simdgroup",
    "simdgroup_index_in_threadgroup",
    "thread_index_in_quadgroup",
    "quadgroup_index_in_threadgroup",
}
OF_GROUP = {
    "threadgroup_position_in_grid",
    "threads_per_threadgroup",
    "dispatch_threads_per_threadgroup",
    "threadgroups_per_grid",
    "threads_per_grid",
    "simdgroups_per_threadgroup",
    "threads_per_simdgroup",
}
SYNONYMS = {"thread_execution_width": "threads_per_simdgroup"}
KNOWN = OF_LANE | OF_GROUP | {"buffer", "threadgroup", "max_total_threads_per_threadgroup", "host_name"}
HARMLESS = {"kernel", "unroll", "maybe_unused", "nodiscard", "likely", "unlikely", "fallthrough", "always_inline"}


@dataclass(frozen=True)
class Attribute:
    name: str
    argument: str
    place: Place


@dataclass(frozen=True)
class Parameter:
    """A kernel's parameter: `role` is buffer, threadgroup, or what it tells of the thread."""

    name: str
    role: str
    index: int
    place: Place


@dataclass(frozen=True)
class Kernel:
    """A kernel's definition, or the template of one."""

    name: str
    parameters: tuple[Parameter, ...]
    max_threads: int | None
    place: Place


@dataclass(frozen=True)
class Instance:
    """A kernel that can be launched: by what name, and the C++ expression that names its function."""

    name: str
    expression: str
    kernel: str
    place: Place


def attributes_in(tokens: Sequence[Token], opening: int) -> list[Attribute]:
    """Those of the `[[...]]` that begins at `opening`."""
    end = closing(tokens, opening)
    return [attribute(part) for part in split(tokens[opening + 1 : end - 1])]


def attribute(tokens: Sequence[Token]) -> Attribute:
    argument = text(tokens[2:-1]) if len(tokens) > 1 and tokens[1].text == "(" else ""
    return Attribute(tokens[0].text, argument, tokens[0].place)


def strip_attributes(tokens: Sequence[Token]) -> tuple[list[Token], list[Attribute]]:
    kept: list[Token] = []
    found: list[Attribute] = []
    at = 0
    while at < len(tokens):
        if tokens[at].text == "[[":
            found += attributes_in(tokens, at)
            at = closing(tokens, at) + 1
        else:
            kept.append(tokens[at])
            at += 1
    return kept, found


def parameter(tokens: Sequence[Token], kernel: str) -> Parameter:
    body, attributes = strip_attributes(tokens)
    name = body[-1].text if body[-1].kind == "name" else ""
    if len(attributes) != 1:
        raise MslError(f"`{text(body)}` of kernel {kernel} needs one attribute, such as [[buffer(0)]]", body[0].place)
    role, index = role_of(attributes[0], kernel)
    return Parameter(name, role, index, body[0].place)


def role_of(attribute: Attribute, kernel: str) -> tuple[str, int]:
    name = SYNONYMS.get(attribute.name, attribute.name)
    if name in ("buffer", "threadgroup"):
        return name, small_number(attribute)
    if name in OF_LANE | OF_GROUP:
        return name, 0
    raise MslError(
        f"a parameter of kernel {kernel} has the attribute [[{name}]], which is unknown here", attribute.place
    )


def small_number(attribute: Attribute) -> int:
    if re.fullmatch(r"\d+", attribute.argument) and int(attribute.argument) < 31:
        return int(attribute.argument)
    raise MslError(f"[[{attribute.name}({attribute.argument})]] needs an index from 0 to 30", attribute.place)


def threads_limit(attributes: Sequence[Attribute]) -> int | None:
    for each in attributes:
        if each.name == "max_total_threads_per_threadgroup":
            return int(each.argument)
    return None


def host_name(attributes: Sequence[Attribute]) -> str | None:
    return next((each.argument.strip('"') for each in attributes if each.name == "host_name"), None)


def refuse_unknown(attributes: Sequence[Attribute]) -> None:
    for each in attributes:
        if each.name == "function_constant":
            raise MslError("function constants are not supported here; macros are", each.place)
        if each.name not in HARMLESS | KNOWN:
            raise MslError(f"[[{each.name}]] is unknown here", each.place)


def instance(tokens: Sequence[Token], attributes: Sequence[Attribute]) -> Instance:
    """Of an explicit instantiation, without its `template`, `kernel` and attributes: `void name<float>(types...)`."""
    end = len(tokens)
    if tokens[-1].text == ")":
        end = opening_of(tokens, len(tokens) - 1)
    first = opening_of(tokens, end - 1)
    name = tokens[first - 1]
    expression = text(tokens[first - 1 : end])
    return Instance(host_name(attributes) or expression, expression, name.text, name.place)


def opening_of(tokens: Sequence[Token], closer: int) -> int:
    """The index of what opens the bracket that ends at `closer`."""
    pair = {")": "(", ">": "<"}
    last, depth = tokens[closer].text, 0
    if last not in pair:
        raise MslError("this instantiation does not name template arguments", tokens[closer].place)
    for at in range(closer, -1, -1):
        depth += (tokens[at].text == last) - (tokens[at].text == pair[last])
        if depth == 0:
            return at
    raise MslError(f"this {last} was never opened", tokens[closer].place)
