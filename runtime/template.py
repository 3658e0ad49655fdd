"""Chat templates: the messages of a chat as the text its model was trained on.

A template comes with a checkpoint and is code, so it runs only in our sandbox, on plain JSON values. The names it finds
there are those that transformers gives a template. Knows nothing of tokens.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.utils import Namespace

from ..manifests.errors import CorruptInputError, UsageError
from .meter import ITEM, Meter, drawn, metered, size
from .packfiles import PackFiles
from .sandbox import Sandbox, limited_filter

FILE = "chat_template.jinja"
CONFIG = "tokenizer_config.json"
MAX_TEMPLATE_BYTES = 64 * 1024  # four times the longest that we know of; compiling takes time and memory
MAX_TEMPLATES = 4
MAX_DATE_FORMAT = 200
ENTRY = 3 * ITEM  # of a dictionary
REASONING = ("reasoning_content", "thinking", "reasoning")  # one thing under three names; templates read either
BUILT_INS = {"range", "dict", "namespace", "cycler", "joiner", "raise_exception", "strftime_now"}
RESERVED = BUILT_INS | {"messages", "tools", "documents", "add_generation_prompt"}  # no variable may replace these

Message = Mapping[str, Any]


class ChatTemplate:
    """One pack's templates by name: "default", and perhaps "tool_use" for chats with tools.

    `name`: their file's path, which errors tell in full only while it is read.
    """

    def __init__(self, sources: Mapping[str, str], variables: Mapping[str, str], name: str) -> None:
        self._name = Path(name).name  # a server's clients are told it; where the pack lies is not for them
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
        check_variables(variables or {})
        values = {
            **self._variables,
            "messages": [_normal(message) for message in messages],
            "tools": None if tools is None else list(tools),
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
            **(variables or {}),
        }
        template = self._templates[self._choose(with_tools=tools is not None)]
        with metered(len(json.dumps(values))) as meter:
            return self._guarded(lambda: _bounded_text(template, values, meter))

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


def check_variables(variables: Mapping[str, Any]) -> None:
    """Raise UsageError for variables that would replace the chat or a built-in."""
    if taken := sorted(RESERVED & variables.keys()):
        raise UsageError(f"a template variable cannot be named {taken[0]!r}: that is the chat's own or built in")


class _Refusal(jinja2.TemplateError):
    """A template's own `raise_exception`."""


class _Generation(Extension):
    """`{% generation %}...{% endgeneration %}` marks an answer in a chat; to a prompt's text it adds nothing."""

    tags: ClassVar[set[str]] = {"generation"}  # type: ignore[misc]

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class _Dict:
    """`dict` as a template may use it: it makes dictionaries, and is not Python's class itself."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*(part if isinstance(part, dict) else drawn(part, ENTRY) for part in args), **kwargs)

    def fromkeys(self, keys: Any, value: Any = None) -> dict[Any, Any]:
        return dict.fromkeys(drawn(keys, ENTRY), value)


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

    def __repr__(self) -> str:
        return "<Namespace>"  # not what is in it, which may be in it many times


def _check_public(name: Any) -> None:
    if str(name).startswith("_"):
        raise SecurityError(f"it stores {name!r} in a namespace")


def _compile(source: str, name: str) -> jinja2.Template:
    environment = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, LoopControlExtension])
    environment.filters["tojson"] = limited_filter("tojson", _tojson)
    environment.globals |= {"dict": _Dict(), "namespace": _Namespace, "raise_exception": _raise_exception}
    environment.globals["strftime_now"] = _strftime_now
    try:
        return environment.from_string(source)
    except SecurityError as error:
        raise CorruptInputError(f"{name} tries what a chat template may not: {_sentence(error)}") from error
    except Exception as error:  # what jinja2 makes of it is Python, whose compiler has limits of its own
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


def _strftime_now(format: str) -> str:
    if len(format) > MAX_DATE_FORMAT:
        raise SecurityError(f"it writes the date in more than {MAX_DATE_FORMAT} characters")
    return datetime.now().strftime(format)


def _raise_exception(message: str) -> None:
    raise _Refusal(message)


def _bounded_text(template: jinja2.Template, values: Mapping[str, Any], meter: Meter) -> str:
    parts = []
    for part in template.generate(values):
        meter.spend(size(part) + ITEM)
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
    if len(sources) > MAX_TEMPLATES:
        raise CorruptInputError(f"{name} has more than {MAX_TEMPLATES} chat templates")
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
