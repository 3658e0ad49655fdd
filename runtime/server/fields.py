"""Fields that several protocols have, checked and made the engine's own."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from ..answers.grammar import Form
from ..answers.jsontext import is_unicode, loads
from ..penalties import Penalties
from .failures import ApiError, unsupported
from .wishes import SEEDS

NAME = re.compile(r"[a-zA-Z0-9_-]{1,128}")
MOST_STOPS, MOST_STOP_CHARACTERS = 64, 1000
MOST_LOGPROBS = 20
SAMPLED = ("temperature", "top_p", "top_k", "min_p", "seed")
MOST_CHOICES = 8
TOKEN = re.compile(r"0|[1-9][0-9]{0,9}")
REPETITION = (0.01, 100.0)  # beyond these a penalty is a mistake, and logits might become infinite
TEXTS = frozenset({"text"})


class Kinded(Protocol):
    """A tool of any protocol."""

    @property
    def type(self) -> str | None:
        """Its kind."""


Some = TypeVar("Some", bound=Kinded)


def sampling(request: Any, hottest: float = 2.0) -> dict[str, float | int]:
    """The sampling settings that a request gives, within the protocols' ranges; what is out of them is named."""
    given = {name: getattr(request, name) for name in SAMPLED}
    found: dict[str, float | int] = {name: value for name, value in given.items() if value is not None}
    for name, value in found.items():
        most = {"temperature": hottest, "top_p": 1, "min_p": 1}.get(name)
        if most is not None and not 0 <= value <= most:
            raise ApiError(f"{name}: {value} is not between 0 and {most:g}", param=name)
    if "top_k" in found:
        found["top_k"] = min(max(0, int(found["top_k"])), 2**31)  # some clients send -1 for "all"
    if "seed" in found:
        found["seed"] = int(found["seed"]) % SEEDS
    return found


def penalties(request: Any) -> Penalties:
    """The penalties and biases that a request gives, within the protocols' ranges."""
    return Penalties(
        _within("presence_penalty", request.presence_penalty, -2.0, 2.0, 0.0),
        _within("frequency_penalty", request.frequency_penalty, -2.0, 2.0, 0.0),
        _within("repetition_penalty", request.repetition_penalty, *REPETITION, 1.0),
        dict(_bias(token, value) for token, value in (request.logit_bias or {}).items()),
    )


def _within(name: str, value: float | None, least: float, most: float, default: float) -> float:
    if value is not None and not least <= value <= most:
        raise ApiError(f"{name}: {value} is not between {least:g} and {most:g}", param=name)
    return default if value is None else value


def _bias(token: str, value: float) -> tuple[int, float]:
    if not TOKEN.fullmatch(token):
        raise ApiError(f"logit_bias: {token!r:.60} is not the number of a token", param="logit_bias")
    return int(token), _within("logit_bias", value, -100.0, 100.0, 0.0)


def choices(name: str, value: int | None) -> int | None:
    """How many answers, if it is said."""
    if value is not None and not 1 <= value <= MOST_CHOICES:
        raise ApiError(f"{name}: {value} is not between 1 and {MOST_CHOICES}", param=name)
    return value


def limit(name: str, value: int | None) -> int | None:
    """A number of tokens, at least 1."""
    if value is not None and value < 1:
        raise ApiError(f"{name}: {value} leaves nothing to generate; give 1 or more", param=name)
    return value


def stops(name: str, value: str | Sequence[str] | None) -> tuple[str, ...]:
    """Stop strings, none of them empty."""
    found = (value,) if isinstance(value, str) else tuple(value or ())
    if len(found) > MOST_STOPS or any(not 1 <= len(stop) <= MOST_STOP_CHARACTERS for stop in found):
        raise ApiError(
            f"{name}: at most {MOST_STOPS} texts of 1 to {MOST_STOP_CHARACTERS} characters can end an answer",
            param=name,
        )
    return found


def neutral(**given: Any) -> None:
    """Refuse settings that ask for something; None, 0, and what is empty do not."""
    for name, value in given.items():
        if value:
            raise unsupported(name, "not supported by this server; leave it out")


def top_logprobs(name: str, value: int) -> int:
    """How many alternatives of each token are told."""
    if not 0 <= value <= MOST_LOGPROBS:
        raise ApiError(f"{name}: {value} is not between 0 and {MOST_LOGPROBS}", param=name)
    return value


def runnable(tools: Sequence[Some] | None, kinds: frozenset[str | None]) -> list[tuple[str, Some]]:
    """The tools that clients run themselves, each with its place in the request.

    Agents send those of OpenAI's and Anthropic's own servers (web search) along with theirs, and work without them;
    alone they are refused, as no answer is what was meant.
    """
    found = [(f"tools[{index}]", tool) for index, tool in enumerate(tools or ()) if tool.type in kinds]
    if tools and not found:
        said = f"tools of the type {tools[0].type!r:.60} are not supported, only functions that the client runs"
        raise unsupported("tools[0]", said)
    return found


def tool(place: str, name: str, description: str | None, parameters: Any, *, strict: bool | None) -> dict[str, Any]:
    """A tool in OpenAI's form, without what was not given, so that a template prints what the client wrote."""
    if not NAME.fullmatch(name):
        raise ApiError(f"{place}: a tool's name has 1 to 128 letters, digits, _ and -; got {name!r:.60}", param=place)
    function: dict[str, Any] = {"name": name}
    if description is not None:
        function["description"] = description
    if parameters is not None:
        _check_schema(place, parameters)
        function["parameters"] = parameters
    if strict:
        function["strict"] = True
    return {"type": "function", "function": function}


@dataclass(frozen=True)
class ToolChoice:
    """Whether tools are called: `mode` is none, auto, which it is without any, or required; if `allowed`, of those."""

    mode: str | None = None
    allowed: frozenset[str] | None = None

    @classmethod
    def one(cls, name: str) -> "ToolChoice":
        """This one must be called."""
        return cls("required", frozenset({name}))

    @classmethod
    def some(cls, given: Any, name_of: Callable[[Mapping[str, Any]], Any]) -> "ToolChoice":
        """OpenAI's allowed_tools; what runs on its own servers is left out, as it is of the tools."""
        tools = given.get("tools") if isinstance(given, dict) else None
        if not isinstance(tools, list) or not all(isinstance(each, dict) for each in tools):
            raise ApiError("tool_choice: allowed_tools has a mode and tools, a list of objects", param="tool_choice")
        if any(each.get("type") == "namespace" for each in tools):
            raise unsupported("tool_choice", "allowed_tools has to name functions, not their namespaces")
        names = [name_of(each) for each in tools if each.get("type") == "function"]
        if not all(isinstance(name, str) for name in names) or given.get("mode") not in ("auto", "required"):
            raise ApiError("tool_choice: allowed_tools has a mode, auto or required, and names", param="tool_choice")
        return cls(given["mode"], frozenset(names))


def form(
    tools: Sequence[Mapping[str, Any]], choice: ToolChoice, *, parallel: bool | None, response: Any = None
) -> Form:
    """What the answer may be."""
    if not tools and (choice.mode == "required" or choice.allowed is not None):
        raise ApiError("tool_choice: it is only allowed when tools are given", param="tool_choice")
    names = [each["function"]["name"] for each in tools]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ApiError(f"tools: the name {twice!r} is there twice", param="tools")
    if unknown := sorted((choice.allowed or frozenset()) - set(names)):
        raise ApiError(f"tool_choice: {unknown[0]!r:.140} is no name of the tools that are given", param="tool_choice")
    if choice.mode not in (None, "none", "auto", "required"):
        raise ApiError(f"tool_choice: {choice.mode!r:.60} is none of none, auto and required", param="tool_choice")
    mode: Any = choice.mode or "auto"
    return Form(tools, mode, choice.allowed, parallel is not False, response=response)


def response_schema(place: str, kind: str, schema: Any) -> Any:
    """The schema of an answer for a format called text, json_object or json_schema."""
    if kind == "text":
        return None
    if kind == "json_object":
        return {"type": "object"}
    if kind != "json_schema":
        raise ApiError(f"{place}: {kind!r:.60} is none of text, json_object and json_schema", param=place)
    if not isinstance(schema, dict):
        raise ApiError(f"{place}: json_schema needs a schema, which is an object", param=place)
    _check_schema(place, schema)
    return schema


def result_of(content: Any, place: str, kinds: frozenset[str] = TEXTS) -> str:
    """What a tool gave. Images and files in it are named only: refused, they would end the conversation they are in."""
    if isinstance(content, list):
        content = [_named(part, kinds) for part in content]
    return text_of(content, place, kinds)


def _named(part: Any, kinds: frozenset[str]) -> Any:
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(kind, str) or kind in kinds:
        return part
    found = part.get("tool_name")  # of a tool_reference: the tool itself is among the request's
    return {"type": "text", "text": found if isinstance(found, str) else f"[{kind:.60} left out: text only]"}


def text_of(content: Any, place: str, kinds: frozenset[str] = TEXTS) -> str:
    """A message's text, which may come in parts."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise ApiError(f"{place}: the content is a text or a list of parts", param=place)
    return "".join(_part(part, place, kinds) for part in content)


def _part(part: Any, place: str, kinds: frozenset[str]) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if isinstance(kind, str) and kind not in kinds:
        raise unsupported(place, f"parts of the type {kind!r:.60} are not supported; this server reads text only")
    text = None if kind is None else part.get("refusal" if kind == "refusal" else "text")
    if not isinstance(text, str):
        raise ApiError(f"{place}: a part of the content has no text", param=place)
    return text


def arguments(text: Any, place: str) -> dict[str, Any] | None:
    """A call's arguments, which a client sends back as a text, as the object that templates read.

    None where they are no JSON, as those of a call that was cut or malformed: no template can write it.
    """
    if not isinstance(text, str | None):
        raise ApiError(f"{place}: the arguments of a call are a text", param=place)
    try:
        value = loads(text) if text and text.strip() else {}
    except ValueError:
        return None
    if not isinstance(value, dict):
        raise ApiError(f"{place}: the arguments of a call are no object", param=place)
    return value if is_unicode(value) else None


def call(
    number: str, name: Any, given: dict[str, Any] | None, place: str, names: dict[str, str]
) -> dict[str, Any] | None:
    """A call as templates read it, None without its arguments; `names` is given its name, by its id."""
    if not isinstance(name, str) or not name:
        raise ApiError(f"{place}: a call has no name", param=place)
    names[number] = name
    if given is None:
        return None
    return {"id": number, "type": "function", "function": {"name": name, "arguments": given}}


def _check_schema(place: str, schema: Any) -> None:
    """What every reader of a schema takes for granted of its top."""
    kinds = schema.get("type", "object")
    named = isinstance(kinds, str) or (isinstance(kinds, list) and all(isinstance(kind, str) for kind in kinds))
    if not named or not isinstance(schema.get("properties", {}), dict):
        raise ApiError(f"{place}: that is no JSON schema", param=place)
