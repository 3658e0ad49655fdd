"""Where a chat template runs: jinja2's immutable sandbox, with a meter on the time and memory that it takes.

jinja2's sandbox keeps a template from Python's internals; it does not keep `'x'.ljust(10**10)` from the memory, nor
loops in loops from the clock. Here every operator, call, filter, slice and turn of a loop is counted before or as soon
as it is done. Promises that a template over its allowance ends in SecurityError, a little late at most. Knows nothing
of chats.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sized
from functools import wraps
from typing import Any, ClassVar, cast

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment, safe_range

from .meter import ITEM, Counted, CountedAndSized, Meter, current, drawn, shown, size

MAX_NODES = 8000  # of its syntax; the longest that we know of have some 2500
MAX_PRODUCT = 10_000_000  # items in what `*` may build by repetition; also the largest base of `**`
MAX_EXPONENT = 64
MAX_WIDTH = 1000  # characters that a text may be padded or indented to

# Filters that serve no chat, and would need limits of their own.
LEFT_OUT = (
    *("attr", "batch", "center", "filesizeformat", "groupby", "pprint", "random", "slice", "striptags"),
    *("urlencode", "urlize", "wordcount", "wordwrap", "xmlattr"),
)
SPREADING = ("list", "sort", "unique", "dictsort", "reverse", "title")  # filters that make an item of every character
CASES = ("upper", "lower", "title", "capitalize", "casefold", "swapcase")  # three letters may become of one
ESCAPING = ("e", "escape", "forceescape")
LOOKING = (  # filters that neither write down nor copy what is in a list
    *("abs", "count", "d", "default", "first", "float", "int", "items", "last", "length", "list", "map", "max", "min"),
    *("reject", "rejectattr", "reverse", "round", "select", "selectattr", "sum"),
)
MAX_INDENT = 16  # of JSON
FORBIDDEN_METHODS = ("translate", "format_map", "encode", "maketrans")
PADDING_METHODS = ("ljust", "rjust", "center", "zfill", "expandtabs")
_LINE_ENDS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
_ATTRIBUTE = re.compile(r"\{[^{}:!]*\.")  # what it would show is not known
_WIDE_FORMAT = re.compile(r"\{[^{}]*\{|[0-9]{4}")  # a width inside a width, or one of four digits
_WIDE_PERCENT = re.compile(r"%[^%a-zA-Z]*(?:\*|[0-9]{4})")


class _Code(CodeGenerator):
    """jinja2's compiler, which would let joining, slicing and literals past the environment."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802 (jinja2's names)
        self._through("joined", node.nodes, frame)

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:  # noqa: N802
        if not isinstance(node.arg, nodes.Slice):
            super().visit_Getitem(node, frame)
            return
        none = nodes.Const(None)
        bounds = [part or none for part in (node.arg.start, node.arg.stop, node.arg.step)]
        self._through("sliced", [node.node, *bounds], frame)

    def visit_List(self, node: nodes.List, frame: Frame) -> None:  # noqa: N802
        self._built(lambda: super(_Code, self).visit_List(node, frame))

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:  # noqa: N802
        if node.ctx != "load":
            super().visit_Tuple(node, frame)
        else:
            self._built(lambda: super(_Code, self).visit_Tuple(node, frame))

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:  # noqa: N802
        self._built(lambda: super(_Code, self).visit_Dict(node, frame))

    def _through(self, function: str, arguments: Iterable[nodes.Node], frame: Frame) -> None:
        self.write(f"environment.{function}(")
        for argument in arguments:
            self.visit(argument, frame)
            self.write(", ")
        self.write(")")

    def _built(self, visit: Callable[[], None]) -> None:
        self.write("environment.built(")
        visit()
        self.write(")")


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment; an unsafe attribute is refused at once (jinja2's prints nothing until it is used)."""

    intercepted_binops: ClassVar[frozenset[str]] = frozenset({"+", "-", "*", "/", "//", "%", "**"})  # type: ignore[misc]
    code_generator_class = _Code

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, optimized=False, finalize=_finalized)  # constants are not folded beyond the meter
        for name in LEFT_OUT:
            del self.filters[name]
        self.filters.update({name: limited_filter(name, filter_) for name, filter_ in self.filters.items()})
        self.globals["range"] = _limited_range
        del self.globals["lipsum"]
        self.concat = _concat  # type: ignore[method-assign]

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        if sum(1 for _ in source.find_all(nodes.Node)) > MAX_NODES:
            raise SecurityError(f"it has more than {MAX_NODES} parts")
        if any(source.find_all((nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends))):
            raise SecurityError("it asks for another template")
        for node in list(source.find_all((nodes.Call, nodes.Filter, nodes.Test))):
            for name in ("dyn_args", "dyn_kwargs"):
                if given := getattr(node, name):
                    spread = nodes.EnvironmentAttribute("spread")
                    setattr(node, name, nodes.Call(spread, [given], [], None, None, lineno=node.lineno))
        buffering = (nodes.Macro, nodes.CallBlock, nodes.FilterBlock, nodes.AssignBlock)
        stored = {id(loop) for block in source.find_all(buffering) for loop in block.find_all(nodes.For)}
        for loop in list(source.find_all(nodes.For)):
            kept = 8 * sum(len(each.nodes) for each in loop.find_all(nodes.Output)) if id(loop) in stored else 0
            loop.iter = nodes.Call(
                nodes.EnvironmentAttribute("counted"),
                [loop.iter, nodes.Const(kept)],
                [],
                None,
                None,
                lineno=loop.lineno,
            )
        return super()._generate(source, *args, **kwargs)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """The value of an operator."""
        _check_operands(operator, left, right)
        return current().built(super().call_binop(context, operator, left, right))

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805 (jinja2's names)
        """What a call gives."""
        meter = current()
        for passed in filter(None, (args, kwargs)):  # what a macro may keep
            meter.built(passed)
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, str):
            args = tuple(list(drawn(part)) if isinstance(part, Iterator) else part for part in args)
            _check_method(meter, owner, __obj.__name__, args, kwargs)
        return meter.built(super().call(__context, __obj, *args, **kwargs))

    def getattr(self, obj: Any, attribute: str) -> Any:
        """`obj.attribute`."""
        current().tick()
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """`obj[argument]`."""
        current().tick()
        return super().getitem(obj, argument)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """`format` of a text, made safe by jinja2, and by us of a size."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None
        text, format_ = str(value.__self__), wrapped

        def limited(*args: Any, **kwargs: Any) -> str:
            _check_method(current(), text, value.__name__, args, kwargs)
            return format_(*args, **kwargs)

        return limited

    def unsafe_undefined(self, obj: Any, attribute: str) -> jinja2.Undefined:
        """Refuse what Python's own objects would give away."""
        raise SecurityError(f"it asks for the attribute {attribute!r:.100} of a {type(obj).__name__}")

    def built(self, value: Any) -> Any:
        """A list, tuple or dictionary that a template wrote down."""
        return current().built(value)

    def joined(self, *parts: Any) -> str:
        """`parts` as one text."""
        for part in parts:
            _finalized(None, part)
        return _concat([part if isinstance(part, str) else str(part) for part in parts])

    def spread(self, values: Any) -> Any:
        """What a template gives as *arguments or **arguments."""
        if not isinstance(values, Sized):
            return list(drawn(values))
        current().spend(2 * ITEM * len(values))
        return values

    def sliced(self, value: Any, start: Any, stop: Any, step: Any) -> Any:
        """`value[start:stop:step]`."""
        if isinstance(value, Sized):
            current().spend(size(value) if isinstance(value, str) else len(value))
        return current().built(value[start:stop:step])

    def counted(self, inner: Any, stored: int) -> Any:
        """What a loop goes over."""
        return (CountedAndSized if isinstance(inner, Sized) else Counted)(inner, stored)


def _concat(parts: Iterable[str]) -> str:
    parts = list(parts)
    current().spend(sum(map(len, parts)) * _widest(parts))
    return "".join(parts)


def _widest(texts: Iterable[str]) -> int:
    return 1 if all(map(str.isascii, texts)) else 4


@jinja2.pass_context
def _finalized(_: Any, value: Any) -> Any:
    """What is printed: texts are counted when they are joined, all else before it is made a text."""
    if not isinstance(value, str):
        current().show(value)
    return value


def _limited_range(*bounds: int) -> range:
    numbers = safe_range(*bounds)
    current().loop(len(numbers))
    return numbers


def limited_filter(name: str, filter_: Callable[..., Any]) -> Callable[..., Any]:
    """A filter whose arguments are looked at first, and whose result is counted."""
    passed = 1 if hasattr(filter_, "jinja_pass_arg") else 0  # the context, before the value

    @wraps(filter_)
    def limited(*args: Any, **kwargs: Any) -> Any:
        meter = current()
        value, *rest = args[passed:] if len(args) > passed else (None,)
        if isinstance(value, Iterator) and name not in ("default", "d"):
            value = drawn(value, written=name not in LOOKING)
            args = (*args[:passed], value, *rest)
        if isinstance(value, Sized):
            meter.spend(len(value) * (2 * ITEM if name in SPREADING else 1))
        if (not isinstance(value, str) and name not in LOOKING) or name in ESCAPING or name in CASES:
            meter.show(value)
        for argument in (*rest, *kwargs.values()):
            if type(argument) is int and abs(argument) > MAX_WIDTH and name not in ("default", "d", "format"):
                raise SecurityError(f"it gives the filter {name!r} the number {argument!s:.40}")
        _check_filter(meter, name, value, rest, kwargs)
        return meter.built(filter_(*args, **kwargs))

    return limited


def _check_filter(meter: Meter, name: str, value: Any, rest: list[Any], kwargs: dict[str, Any]) -> None:
    given = (*rest, *kwargs.values())
    if name in ("join", "sort", "unique") and kwargs.get("attribute", given[1:]):
        _check_attributes(name, value)
    if name == "indent":
        _check_indented(meter, str(value), rest[0] if rest else kwargs.get("width", 4))
    elif name == "tojson":
        _check_json(meter, value, given)
    elif name == "replace":
        for part in given:
            meter.show(part)
        _check_replaced(meter, [str(part) for part in (value, *given)])
    elif name == "join":
        _check_joined(meter, str(rest[0] if rest else kwargs.get("d", "")), value)
    elif name == "format":
        _check_operands("%", str(value), kwargs or tuple(rest))
    elif name == "sum" and not all(type(part) in (int, float) for part in (*rest[1:], kwargs.get("start", 0))):
        raise SecurityError("it sums what are no numbers")


def _check_attributes(name: str, value: Any) -> None:
    if not isinstance(value, list | tuple) or not all(isinstance(each, dict) for each in value):
        raise SecurityError(f"it gives the filter {name!r} attributes of what are no dictionaries")


def _check_indented(meter: Meter, text: str, width: Any) -> None:
    added = size(width) if isinstance(width, str) else 4 * int(width)
    meter.spend((_lines(text) + 1) * 2 * (ITEM + added) + shown(text))


def _lines(text: str) -> int:
    return sum(map(text.count, _LINE_ENDS))


def _check_json(meter: Meter, value: Any, given: tuple[Any, ...]) -> None:
    if any(isinstance(argument, str) for argument in given):
        raise SecurityError("it indents JSON by a text")
    if any(len(str(part)) > MAX_INDENT for each in given if isinstance(each, Sized) for part in cast(Any, each)):
        raise SecurityError("it writes JSON with long separators")
    indent = max([0, *(argument for argument in given if isinstance(argument, int))])
    if indent > MAX_INDENT:
        raise SecurityError(f"it indents JSON by {indent!s:.40}")
    weight = meter.weight(value)
    meter.spend(weight.plain // ITEM * (ITEM + 2 * weight.depth * indent))


def _check_operands(operator: str, left: Any, right: Any) -> None:
    if operator == "*":
        _check_repetition(left, right)
        _check_repetition(right, left)
    elif operator == "**" and (abs(left) > MAX_PRODUCT or abs(right) > MAX_EXPONENT):
        raise SecurityError(f"it computes a power beyond {MAX_PRODUCT} ** {MAX_EXPONENT}")
    elif operator == "%" and isinstance(left, str):
        if _WIDE_PERCENT.search(left):
            raise SecurityError("it pads a text beyond all measure")
        _check_formatted(current(), left, left.count("%"), right if isinstance(right, tuple) else (right,))
    elif operator == "+" and isinstance(left, Sized) and isinstance(right, Sized):
        texts = [part for part in (left, right) if isinstance(part, str)]
        escaped = any(hasattr(part, "__html__") for part in texts)
        current().spend(sum(map(shown if escaped else size, texts)) if texts else 8 * (len(left) + len(right)))


def _check_formatted(meter: Meter, text: str, fields: int, values: Iterable[Any]) -> None:
    """A text with so many fields, in each of which the largest value may stand, in the largest width."""
    longest = max((meter.weight(value).shown for value in values), default=0)
    meter.spend(size(text) + min(fields, len(text)) * (longest + 4 * MAX_WIDTH))


def _check_repetition(sequence: Any, count: Any) -> None:
    if isinstance(sequence, (str, list, tuple)) and isinstance(count, int):
        if len(sequence) * count > MAX_PRODUCT:
            raise SecurityError(f"it repeats a text or list beyond {MAX_PRODUCT} items")
        current().spend(max(0, count) * (size(sequence) if isinstance(sequence, str) else 8 * len(sequence)))


def _check_method(meter: Meter, text: str, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """What a method of a text is about to build, as far as it may be more than a few times that text."""
    meter.spend(size(text))
    if name in FORBIDDEN_METHODS:
        raise SecurityError(f"it calls {name!r} of a text")
    if name in PADDING_METHODS:
        _check_padded(meter, text, name, [part for part in (*args, *kwargs.values()) if isinstance(part, int)])
    elif name == "format":
        if _WIDE_FORMAT.search(text) or _ATTRIBUTE.search(text):
            raise SecurityError("it pads a text beyond all measure, or writes attributes")
        _check_formatted(meter, text, text.count("{"), (*args, *kwargs.values()))
    elif name in CASES:
        meter.spend(shown(text))
    elif name in ("split", "rsplit", "splitlines"):
        _check_split(meter, text, name, args[0] if args else kwargs.get("sep"))
    elif name == "replace":
        _check_replaced(meter, [text, *(str(part) for part in args)])
    elif name == "join":
        _check_joined(meter, text, args[0] if args else ())


def _check_padded(meter: Meter, text: str, name: str, numbers: list[int]) -> None:
    if any(abs(number) > MAX_WIDTH for number in numbers):
        raise SecurityError(f"it pads a text to more than {MAX_WIDTH} characters")
    if name == "expandtabs":
        meter.spend(text.count("\t") * MAX_WIDTH * _widest([text]))


def _check_split(meter: Meter, text: str, name: str, separator: Any) -> None:
    count = len(text) // 2
    if name == "splitlines":
        count = _lines(text)
    elif isinstance(separator, str) and separator:
        count = text.count(separator)
    meter.spend(size(text) + count * ITEM * (1 if text.isascii() else 2))


def _check_replaced(meter: Meter, texts: list[str]) -> None:
    if len(texts) >= 3:
        text, old, new = texts[:3]
        grown = (text.count(old) if old else len(text) + 1) * len(new)
        meter.spend(grown * _widest(texts) * (5 if any(hasattr(part, "__html__") for part in texts) else 1))


def _check_joined(meter: Meter, separator: str, parts: Any) -> None:
    if isinstance(parts, Sized):
        meter.spend(len(parts) * size(separator))
        meter.show(parts)
