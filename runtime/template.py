"""Chat templates: the messages of a chat as the text its model was trained on.

A template comes with a checkpoint and is code, so it runs only in jinja2's immutable sandbox, on plain JSON values,
with a limit on its source, on what it prints and on the numbers it may build. The names it finds there are those that
transformers gives a template. Knows nothing of tokens.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, ClassVar

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment, safe_range
from jinja2.utils import Namespace

from ..manifests.errors import CorruptInputError, UsageError
from .packfiles import PackFiles

FILE = "chat_template.jinja"
CONFIG = "tokenizer_config.json"
MAX_TEMPLATE_BYTES = 1024 * 1024
MAX_PROMPT_CHARACTERS = 64 * 1024 * 1024
MAX_LOOPS = 1_000_000  # all `range` calls of one rendering together
MAX_PRODUCT = 10_000_000  # items in what `*` may build by repetition; also the largest base of `**`
MAX_EXPONENT = 64
REASONING = ("reasoning_content", "thinking", "reasoning")  # one thing under three names; templates read either
BUILT_INS = {"range", "dict", "namespace", "cycler", "joiner", "raise_exception", "strftime_now"}
RESERVED = BUILT_INS | {"messages", "tools", "documents", "add_generation_prompt"}  # no variable may replace these

Message = Mapping[str, Any]


class ChatTemplate:
    """One pack's templates by name: "default", and perhaps "tool_use" for chats with tools."""

    def __init__(self, sources: Mapping[str, str], variables: Mapping[str, str], name: str) -> None:
        self._name = name
        self._variables = dict(variables)
        self._sources = dict(sources)
        self._templates = {key: _compile(source, name) for key, source in sources.items()}

    @classmethod
    def open(cls, files: PackFiles, variables: Mapping[str, str]) -> "ChatTemplate | None":
        """The pack's template, or None; `variables` are the special tokens by name, such as bos_token.

        Raises CorruptInputError when it is too large, not a template, or not text.
        """
        if FILE in files:
            source = _text(files.read(FILE, MAX_TEMPLATE_BYTES), str(files.path / FILE))
            return cls({"default": source}, variables, str(files.path / FILE))
        sources = _configured(files.json(CONFIG).get("chat_template"), str(files.path / CONFIG))
        return cls(sources, variables, str(files.path / CONFIG)) if sources else None

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The text of a chat, ready for the model's answer. All values must be plain JSON values.

        `variables` are what a template may read besides, such as enable_thinking.
        Raises UsageError for variables that would replace the chat or a built-in, and when the template refuses the
        messages or fails on them; CorruptInputError when it tries what the sandbox forbids.
        """
        if taken := sorted(RESERVED & (variables or {}).keys()):
            raise UsageError(f"a template variable cannot be named {taken[0]!r}: that is the chat's own or built in")
        values = {
            **self._variables,
            "messages": [_normal(message) for message in messages],
            "tools": None if tools is None else list(tools),
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
            **(variables or {}),
        }
        template = self._templates[self._choose(with_tools=tools is not None)]
        values["range"] = _limited_range()
        return self._guarded(lambda: _bounded_text(template, values))

    def source(self, *, with_tools: bool) -> str:
        """The source of the template that renders chats with or without tools."""
        return self._sources[self._choose(with_tools=with_tools)]

    def _choose(self, *, with_tools: bool) -> str:
        name = "tool_use" if with_tools and "tool_use" in self._templates else "default"
        if name not in self._templates:
            raise UsageError(f"{self._name} has no default chat template, only {', '.join(sorted(self._templates))}")
        return name

    def _guarded(self, work: Callable[[], str]) -> str:
        try:
            return work()
        except SecurityError as error:
            raise CorruptInputError(f"{self._name} tries what a chat template may not: {_sentence(error)}") from error
        except _Refusal as error:
            raise UsageError(f"the chat template refuses these messages: {_sentence(error)}") from error
        except Exception as error:  # a template can raise whatever Python's operators raise
            raise UsageError(f"{self._name} fails on these messages: {_sentence(error)}") from error


class _Refusal(jinja2.TemplateError):
    """A template's own `raise_exception`."""


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox, which refuses an unsafe attribute at once (jinja2's would print nothing until it is used).

    It bounds products and powers, since two characters of source must not fill the memory.
    """

    intercepted_binops: ClassVar[frozenset[str]] = frozenset({"*", "**"})  # type: ignore[misc]

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "*":
            _check_repetition(left, right)
            _check_repetition(right, left)
        elif abs(left) > MAX_PRODUCT or abs(right) > MAX_EXPONENT:
            raise SecurityError(f"it computes a power beyond {MAX_PRODUCT} ** {MAX_EXPONENT}")
        return super().call_binop(context, operator, left, right)

    def unsafe_undefined(self, obj: Any, attribute: str) -> jinja2.Undefined:
        raise SecurityError(f"it asks for the attribute {attribute!r} of a {type(obj).__name__}")


class _Generation(Extension):
    """`{% generation %}...{% endgeneration %}` marks an answer in a chat; to a prompt's text it adds nothing."""

    tags: ClassVar[set[str]] = {"generation"}  # type: ignore[misc]

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class _Dict:
    """`dict` as a template may use it: it makes dictionaries, and is not Python's class itself."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, keys: Any, value: Any = None) -> dict[Any, Any]:
        return dict.fromkeys(keys, value)


class _Namespace(Namespace):
    """`namespace` without names that begin with an underscore, which could stand in for Python's internals."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # a template may use any name, also `self`
        self, *rest = args
        for name in (values := dict(*rest, **kwargs)):
            _check_public(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_public(name)
        super().__setitem__(name, value)


def _check_repetition(sequence: Any, count: Any) -> None:
    if isinstance(sequence, (str, list, tuple)) and isinstance(count, int) and len(sequence) * count > MAX_PRODUCT:
        raise SecurityError(f"it repeats a text or list beyond {MAX_PRODUCT} items")


def _check_public(name: Any) -> None:
    if str(name).startswith("_"):
        raise SecurityError(f"it stores {name!r} in a namespace")


def _compile(source: str, name: str) -> jinja2.Template:
    environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, LoopControlExtension])
    environment.filters["tojson"] = _tojson
    environment.globals |= {"dict": _Dict(), "namespace": _Namespace, "raise_exception": _raise_exception}
    environment.globals["strftime_now"] = lambda format: datetime.now().strftime(format)
    del environment.globals["lipsum"]
    try:
        return environment.from_string(source)
    except (jinja2.TemplateError, RecursionError, SyntaxError) as error:
        raise CorruptInputError(f"{name} is not a chat template: {_sentence(error)}") from error


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without jinja2's HTML escapes, and with json.dumps' arguments."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise _Refusal(message)


def _limited_range() -> Callable[..., range]:
    """The sandbox's `range`, which refuses long ones, with a limit on all of one rendering together."""
    left = MAX_LOOPS

    def limited(*bounds: int) -> range:
        nonlocal left
        numbers = safe_range(*bounds)
        left -= len(numbers)
        if left < 0:
            raise SecurityError(f"it loops more than {MAX_LOOPS} times")
        return numbers

    return limited


def _bounded_text(template: jinja2.Template, values: Mapping[str, Any]) -> str:
    parts, size = [], 0
    for part in template.generate(values):
        size += len(part)
        if size > MAX_PROMPT_CHARACTERS:
            raise SecurityError(f"it prints more than {MAX_PROMPT_CHARACTERS} characters")
        parts.append(part)
    return "".join(parts)


def _normal(message: Message) -> dict[str, Any]:
    """A message without its null fields, and with its reasoning under the names that templates read it by."""
    fields = {name: value for name, value in message.items() if value is not None}
    reasoning = next((fields[name] for name in REASONING if name in fields), None)
    return fields if reasoning is None else {"thinking": reasoning, **fields, "reasoning_content": reasoning}


def _configured(value: Any, name: str) -> dict[str, str]:
    """The templates in a tokenizer_config.json: none, one text, or a list of named ones."""
    if value is None:
        return {}
    if isinstance(value, str):
        value = [{"name": "default", "template": value}]
    try:
        sources = {entry["name"]: entry["template"] for entry in value}
    except (TypeError, KeyError) as error:
        raise CorruptInputError(f"{name}: chat_template is neither a text nor a list of named templates") from error
    for source in sources.values():
        if not isinstance(source, str) or len(source) > MAX_TEMPLATE_BYTES:
            raise CorruptInputError(f"{name}: a chat template is not a text of at most {MAX_TEMPLATE_BYTES} characters")
    return sources


def _text(content: bytes, name: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CorruptInputError(f"{name} is not UTF-8 text") from error


def _sentence(error: BaseException) -> str:
    """An error in one line of moderate length."""
    line = f", line {error.lineno}" if isinstance(error, jinja2.TemplateSyntaxError) else ""
    text = error.message if isinstance(error, jinja2.TemplateError) else f"{type(error).__name__}: {error}"
    return " ".join((text or type(error).__name__).split())[:300] + line
