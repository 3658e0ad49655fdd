"""What Metal's compiler refuses and a C++ compiler would let pass, as far as tokens show it.

Words that MSL does not have; pointers and references without an address space, except where `auto` finds it; variables
of the program that are not constant; variables in threadgroup memory outside kernels, or with an initial value.
Recursion, double and casts to other address spaces are found later (ir.py).
"""

from collections.abc import Iterator, Sequence

from .tokens import MslError, Token, closing, find, split

BANNED = {
    "double": "MSL has no double",
    "std": "MSL has no namespace std",
    "goto": "MSL has no goto",
    "new": "MSL has no new",
    "delete": "MSL has no delete",
    "virtual": "MSL has no virtual functions",
    "dynamic_cast": "MSL has no dynamic_cast",
    "typeid": "MSL has no typeid",
    "try": "MSL has no exceptions",
    "catch": "MSL has no exceptions",
    "throw": "MSL has no exceptions",
    "thread_local": "MSL has no thread_local",
    "asm": "MSL has no asm",
}
SPACES = {"device", "constant", "threadgroup", "thread"}
QUALIFIERS = {"const", "volatile", "typename", "static", "constexpr", "inline"}
NOT_A_TYPE = {"return", "else", "do", "case", "using", "typedef", "operator", "auto", "sizeof"}
DECLARATIONS = {"struct", "class", "union", "namespace"}
NOT_A_VARIABLE = DECLARATIONS | {"constant", "enum", "using", "typedef", "template", "extern", "operator"}
NOT_A_FUNCTION = {"static_assert", "decltype", "alignas", "sizeof", "__attribute__", "if", "while", "for", "switch"}


def refuse_what_metal_refuses(tokens: Sequence[Token]) -> None:
    for token in tokens:
        if token.kind == "name" and token.text in BANNED:
            raise MslError(BANNED[token.text], token.place)
    for at, scope in _scopes(tokens):
        if scope in DECLARATIONS and tokens[at].text == "(" and _opens_parameters(tokens, at):
            for parameter in split(tokens[at + 1 : closing(tokens, at)]):
                _refuse_without_space(parameter)
        if at == 0 or tokens[at - 1].text in (";", "{", "}"):
            _refuse_without_space(_pointer_statement(tokens, at))
            if scope == "namespace":
                _refuse_variable(tokens, at)
    _refuse_misplaced_variables(tokens)


def _scopes(tokens: Sequence[Token]) -> Iterator[tuple[int, str]]:
    """Every token with what encloses it: a namespace (as the file does), a struct or the like, or something else."""
    scopes = ["namespace"]
    for at, token in enumerate(tokens):
        if token.text == "}" and len(scopes) > 1:
            scopes.pop()
        yield at, scopes[-1]
        if token.text == "{":
            scopes.append(_scope_opened(tokens, at) if scopes[-1] in DECLARATIONS else "")


def _scope_opened(tokens: Sequence[Token], brace: int) -> str:
    for token in reversed(tokens[:brace]):
        if token.text in (";", "{", "}", ")", "="):
            return ""
        if token.text in DECLARATIONS:
            return token.text
    return ""


def _refuse_without_space(declaration: Sequence[Token]) -> None:
    before = declaration[: find(declaration, "=", 0)]
    depth = 0
    for token in before:
        depth += (token.text == "<") - (token.text == ">")
        if depth == 0 and token.text in ("*", "&", "&&") and not SPACES & {each.text for each in before}:
            kind = "pointer" if token.text == "*" else "reference"
            raise MslError(f"this {kind} has no address space: device, constant, threadgroup or thread", token.place)


def _refuse_variable(tokens: Sequence[Token], at: int) -> None:
    """Two names or more, and then `=`, `;` or a size: a variable of the program, if it begins like one."""
    end = at
    while tokens[end].kind == "name" or tokens[end].text == "::":
        end += 1
    words = {token.text for token in tokens[at:end]}
    if end - at > 1 and tokens[end].text in ("=", ";", "[") and not words & NOT_A_VARIABLE:
        raise MslError(
            "a variable of the program must be constant, in the address space of that name", tokens[at].place
        )


def _opens_parameters(tokens: Sequence[Token], opening: int) -> bool:
    """Whether a function's name comes before, in no other bracket, and with no `=` or single `:` before it."""
    named = tokens[opening - 1].kind == "name" or "operator" in (t.text for t in tokens[max(opening - 3, 0) : opening])
    if opening == 0 or not named or tokens[opening - 1].text in NOT_A_FUNCTION:
        return False
    depth = 0
    for token in reversed(tokens[: opening - 1]):
        depth += (token.text in (")", "]")) - (token.text in ("(", "["))
        depth -= 2 * (token.text == "[[")
        if depth < 0:
            return False
        if depth == 0 and token.text in (";", "{", "}"):
            return True
        if depth == 0 and token.text in ("=", ":", "operator"):
            return token.text == "operator"
    return True


def _pointer_statement(tokens: Sequence[Token], at: int) -> Sequence[Token]:
    """`float* p = ...`, `Row& r;`: qualifiers, one type, * or &, a name, and then = or ; or an array's size."""
    first = at
    while tokens[at].text in QUALIFIERS:
        at += 1
    if tokens[at].kind != "name" or tokens[at].text in NOT_A_TYPE | SPACES:
        return ()
    at += 1
    if tokens[at].text == "<":
        at = closing(tokens, at) + 1 if _closes(tokens, at) else len(tokens) - 1
    stars = at
    while tokens[at].text in ("*", "&", "const"):
        at += 1
    named = tokens[at].kind == "name" and at + 1 < len(tokens) and tokens[at + 1].text in ("=", ";", "[", ",")
    return tokens[first : at + 1] if at > stars and named else ()


def _closes(tokens: Sequence[Token], opening: int) -> bool:
    """Whether this < is a bracket: a > comes before the statement ends."""
    return any(token.text == ">" for token in tokens[opening : find(tokens, ";", opening)])


def _refuse_misplaced_variables(tokens: Sequence[Token]) -> None:
    bodies = list(_kernel_bodies(tokens))
    for at, token in enumerate(tokens):
        if token.text != "threadgroup" or at == 0 or tokens[at - 1].text not in ("{", "}", ";"):
            continue
        declaration = tokens[at : find(tokens, ";", at)]
        words = {each.text for each in declaration}
        if words & {"*", "&", "("} or not declaration:
            continue
        if "=" in words or "{" in words:
            raise MslError("threadgroup memory cannot have an initial value", token.place)
        if not any(first < at < end for first, end in bodies):
            raise MslError("threadgroup memory can be declared in kernels only", token.place)


def _kernel_bodies(tokens: Sequence[Token]) -> Iterator[tuple[int, int]]:
    for at, token in enumerate(tokens):
        if token.text != "kernel":
            continue
        brace, semicolon = find(tokens, "{", at), find(tokens, ";", at)
        if brace < semicolon:
            yield brace, closing(tokens, brace)
