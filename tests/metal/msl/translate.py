"""From preprocessed MSL to C++ for the shim: what clang takes as it is stays, line by line.

Four things are not C++: attributes, kernels and their named instantiations, variables in threadgroup memory, and
constructors of vectors; and literals like 0.5 are float. Signatures of kernels are read on the way.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from .rules import refuse_what_metal_refuses
from .syntax import (
    VECTORS,
    Attribute,
    Instance,
    Kernel,
    attributes_in,
    instance,
    parameter,
    refuse_unknown,
    strip_attributes,
    threads_limit,
)
from .tokens import MslError, Output, Place, Token, closing, find, joined, split, text, tokenize

FLOAT = re.compile(r"(?:\d+\.\d*|\.\d+)(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+")
SHORT_FLOAT = re.compile(r"((?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)(h|H|bf|BF)")


@dataclass
class Translation:
    code: str = ""
    kernels: dict[str, Kernel] = field(default_factory=dict)
    instances: list[Instance] = field(default_factory=list)

    def kernel_of(self, one: Instance) -> Kernel:
        if one.kernel not in self.kernels:
            raise MslError(f"{one.kernel} is not a kernel", one.place)
        return self.kernels[one.kernel]


def translate(source: str, file: str) -> Translation:
    tokens = tokenize(source, file)
    refuse_what_metal_refuses(tokens)
    translation = Translation()
    tokens = _Kernels(tokens, translation).without_them()
    translation.code = joined(_spelled(tokens))
    return translation


class _Kernels:
    """Takes kernels and attributes out of the tokens, and notes them in the translation."""

    def __init__(self, tokens: Sequence[Token], translation: Translation) -> None:
        self.tokens, self.translation, self.out = tokens, translation, Output()
        self.attributes: list[Attribute] = []  # of the declaration that is being read
        self.template = False  # whether it began with template <...>
        self.body_end = -1  # of the latest kernel
        self.variables = 0

    def without_them(self) -> list[Token]:
        at = 0
        while at < len(self.tokens):
            at = self._step(at)
        return self.out.tokens

    def _step(self, at: int) -> int:
        word = self.tokens[at].text
        if word == "[[":
            return self._attribute(at)
        if word == "template":
            return self._template(at) if self.tokens[at + 1].text == "<" else self._instance(at)
        if word == "kernel":
            return self._kernel(at, at + 1)
        if word == "threadgroup" and at < self.body_end and self.tokens[at - 1].text in ("{", "}", ";"):
            return self._variable(at)
        if word in (";", "{", "}"):
            self.attributes, self.template = [], False
        self.out.keep(self.tokens[at])
        return at + 1

    def _attribute(self, at: int) -> int:
        end = closing(self.tokens, at) + 1
        found = attributes_in(self.tokens, at)
        refuse_unknown(found)
        self.attributes += found
        self.out.drop(*self.tokens[at:end])
        return self._kernel(end, end) if any(each.name == "kernel" for each in found) else end

    def _template(self, at: int) -> int:
        end = closing(self.tokens, at + 1) + 1
        self.out.keep(*self.tokens[at:end])
        self.template = True
        return end

    def _instance(self, at: int) -> int:
        end = find(self.tokens, ";", at)
        body, attributes = strip_attributes(self.tokens[at + 1 : end])
        refuse_unknown(attributes)
        plain = [token for token in body if token.text != "kernel"]
        if len(plain) < len(body) or any(each.name == "kernel" for each in attributes):
            self.translation.instances.append(instance(plain, attributes))
        self.out.put("template " + text(plain), self.tokens[at:end])
        return end

    def _kernel(self, at: int, signature: int) -> int:
        """A kernel whose keyword, if it has one, is at `at`; its attributes and signature follow."""
        self.out.drop(*self.tokens[at:signature])
        if self.tokens[signature].text == "[[":
            return self._attribute_of_kernel(signature)
        if self.tokens[signature].text == "kernel":  # beside [[kernel]]
            return self._kernel(signature, signature + 1)
        opening = find(self.tokens, "(", signature)
        end = closing(self.tokens, opening) + 1
        self._note(self.tokens[opening - 1], self.tokens[opening + 1 : end - 1])
        self.out.keep(*strip_attributes(self.tokens[signature:end])[0])
        if self.tokens[end].text == "{":
            self.body_end = closing(self.tokens, end)
        return end

    def _attribute_of_kernel(self, at: int) -> int:
        end = closing(self.tokens, at) + 1
        found = attributes_in(self.tokens, at)
        refuse_unknown(found)
        self.attributes += found
        self.out.drop(*self.tokens[at:end])
        return self._kernel(end, end)

    def _note(self, name: Token, parameters: Sequence[Token]) -> None:
        read = tuple(parameter(part, name.text) for part in split(parameters))
        _refuse_twice(read)
        self.translation.kernels[name.text] = Kernel(name.text, read, threads_limit(self.attributes), name.place)
        if not self.template:
            self.translation.instances.append(Instance(name.text, name.text, name.text, name.place))

    def _variable(self, at: int) -> int:
        """`threadgroup float a[4], b;` or, left as it is, a pointer or reference to threadgroup memory."""
        end = find(self.tokens, ";", at)
        declaration = self.tokens[at + 1 : end]
        if any(token.text in ("*", "&", "=") for token in declaration):
            self.out.keep(self.tokens[at])
            return at + 1
        type_end = _type_end(declaration)
        code = [self._variable_code(declaration[:type_end], part) for part in split(declaration[type_end:])]
        self.out.put(" ".join(code), self.tokens[at : end + 1])
        return end + 1

    def _variable_code(self, of: Sequence[Token], declarator: Sequence[Token]) -> str:
        name, sizes, type_name = declarator[0].text, text(declarator[1:]), f"msl_type_{self.variables}"
        number, self.variables = self.variables, self.variables + 1
        return (
            f"typedef {text(of)} {type_name} {sizes}; "
            f"threadgroup {type_name}& {name} = msl::variable<{type_name}>({number});"
        )


def _type_end(declaration: Sequence[Token]) -> int:
    """Where the type of a declaration ends: before the name that [, a comma or nothing follows."""
    depth = 0
    for i, token in enumerate(declaration):
        depth += (token.text == "<") - (token.text == ">")
        following = declaration[i + 1].text if i + 1 < len(declaration) else ","
        if depth == 0 and i > 0 and token.kind == "name" and following in ("[", ","):
            return i
    raise MslError("this declaration of threadgroup memory is not understood", declaration[0].place)


def _refuse_twice(parameters: Sequence) -> None:
    seen: Mapping[tuple[str, int], Place] = {}
    for each in parameters:
        if each.role in ("buffer", "threadgroup") and (each.role, each.index) in seen:
            raise MslError(f"[[{each.role}({each.index})]] is used twice", each.place)
        seen = {**seen, (each.role, each.index): each.place}


def _spelled(tokens: Sequence[Token]) -> list[Token]:
    """Literals and constructors of vectors, as C++ spells them."""
    out = Output()
    at = 0
    while at < len(tokens):
        end = _vector_type(tokens, at)
        if end and tokens[end].text == "(":
            out.put(f"msl::make<{text(tokens[at:end])}>", tokens[at:end])
            at = end
        else:
            out.keep(tokens[at]) if tokens[at].kind != "number" else out.put(
                _literal(tokens[at].text), tokens[at : at + 1]
            )
            at += 1
    return out.tokens


def _vector_type(tokens: Sequence[Token], at: int) -> int:
    """Where the name of a vector type that begins here ends; 0 if none begins."""
    if tokens[at].text in VECTORS:
        return at + 1
    if tokens[at].text == "vec" and tokens[at + 1].text == "<":
        return closing(tokens, at + 1) + 1
    return 0


def _literal(number: str) -> str:
    short = SHORT_FLOAT.fullmatch(number)
    if short and not number.startswith("0x"):
        digits = short[1] if FLOAT.fullmatch(short[1]) else short[1] + ".0"
        return f"{'half' if short[2] in 'hH' else 'bfloat'}({digits}f)"
    return number + "f" if FLOAT.fullmatch(number) else number
