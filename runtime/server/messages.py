"""Anthropic's /v1/messages: its request as a chat's wish, and an answer as its events or its document."""

import secrets
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

import msgspec

from ..answers.message import call_id
from ..serving.answer import Began, Ended, Said
from . import fields, shape
from .blocks import Block, Blocks, Change, WholeCalls
from .failures import ApiError, unsupported
from .wishes import Ask, ChatWish, Wish

KINDS = frozenset({None, "custom"})
CHOICES = {"auto": "auto", "any": "required", "none": "none"}


class Tool(msgspec.Struct):
    """A tool of the client's; Anthropic's own have other types."""

    name: str
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    type: str | None = None
    strict: bool | None = None


class CountRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What a prompt is made of."""

    model: str
    messages: list[dict[str, Any]]
    system: str | list[Any] | None = None
    tools: list[Tool] | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None
    output_config: dict[str, Any] | None = None
    # Without an effect here.
    cache_control: Any = None
    speed: Any = None
    user_profile_id: Any = None
    workspace_id: Any = None


class MessagesRequest(CountRequest, forbid_unknown_fields=True, kw_only=True):
    """The fields that Anthropic documents, and min_p and seed."""

    max_tokens: int
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    stop_sequences: list[str] | None = None
    metadata: Any = None  # these five without an effect here
    service_tier: Any = None
    inference_geo: Any = None
    diagnostics: Any = None
    container: Any = None
    context_management: Any = None
    mcp_servers: Any = None
    safeguards: Any = None


def wish(request: MessagesRequest) -> ChatWish:
    """What the request asks for. Raises ApiError for what is malformed or not supported."""
    if request.messages and request.messages[-1].get("role") == "assistant":
        said = "an assistant's message is not continued here; the conversation must end with a user's message"
        raise unsupported(f"messages[{len(request.messages) - 1}]", said)
    # safeguards: whoever asks for a check of what the model calls has to know that there is none
    fields.neutral(**{name: getattr(request, name) for name in ("container", "mcp_servers", "safeguards")})
    asked = Wish(
        fields.sampling(request, hottest=1.0),
        fields.limit("max_tokens", request.max_tokens),
        fields.stops("stop_sequences", request.stop_sequences),
    )
    return counted(request, asked)


def counted(request: CountRequest, asked: Wish | None = None) -> ChatWish:
    """The prompt of a request."""
    tools = [_tool(tool, place) for place, tool in fields.runnable(request.tools, KINDS)]
    given = request.tool_choice or {"type": "auto"}
    parallel = given.get("disable_parallel_tool_use") is not True
    form = fields.form(tools, _choice(given), parallel=parallel, response=_response(request.output_config))
    off = request.thinking is not None and request.thinking.get("type") == "disabled"
    names: dict[str, str] = {}
    variables = {"enable_thinking": False} if off else {}
    return ChatWish(_messages(request, names), asked or Wish(), form, variables, names)


def _choice(given: Mapping[str, Any]) -> fields.ToolChoice:
    kind, name = given.get("type"), given.get("name")
    if kind == "tool" and isinstance(name, str):
        return fields.ToolChoice.one(name)
    if not isinstance(kind, str) or kind not in CHOICES:
        raise ApiError("tool_choice: its type is none of auto, any, none, and tool with a name", param="tool_choice")
    return fields.ToolChoice(CHOICES[kind])


def _tool(tool: Tool, place: str) -> dict[str, Any]:
    return fields.tool(place, tool.name, tool.description, tool.input_schema, strict=tool.strict)


def _response(config: Mapping[str, Any] | None) -> Any:
    given = (config or {}).get("format")
    if given is None:
        return None
    if not isinstance(given, dict):
        raise ApiError("output_config.format: it is an object", param="output_config")
    return fields.response_schema("output_config.format", str(given.get("type")), given.get("schema"))


def _messages(request: CountRequest, names: dict[str, str]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    if request.system:
        found.append({"role": "system", "content": fields.text_of(request.system, "system")})
    for index, message in enumerate(request.messages):
        place, role = f"messages[{index}]", message.get("role")
        if role not in ("user", "assistant", "system"):
            raise ApiError(f"{place}.role: {role!r:.60} is none of user, assistant and system", param=place)
        blocks = _blocks(message.get("content"), place)
        found += [_said(blocks, place, names)] if role == "assistant" else _given(role, blocks, place, names)
    return found


def _blocks(content: Any, place: str) -> list[Mapping[str, Any]]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, list) or not all(isinstance(block, dict) for block in content):
        raise ApiError(f"{place}.content: it is a text or a list of blocks", param=place)
    return content


def _said(blocks: list[Mapping[str, Any]], place: str, names: dict[str, str]) -> dict[str, Any]:
    """An earlier answer."""
    found: dict[str, Any] = {"role": "assistant", "content": ""}
    calls = []
    for block in blocks:
        if block.get("type") == "thinking":
            found["reasoning_content"] = found.get("reasoning_content", "") + str(block.get("thinking", ""))
        elif block.get("type") == "tool_use":
            calls.append(_call(block, place, names))
        elif block.get("type") != "redacted_thinking":
            found["content"] += fields.text_of([block], place)
    return {**found, "tool_calls": calls} if calls else found


def _call(block: Mapping[str, Any], place: str, names: dict[str, str]) -> dict[str, Any] | None:
    given = block.get("input", {})
    if not isinstance(given, dict):
        raise ApiError(f"{place}: the input of a tool_use block is no object", param=place)
    return fields.call(str(block.get("id", "")), block.get("name"), given, place, names)


def _given(role: str, blocks: list[Mapping[str, Any]], place: str, names: Mapping[str, str]) -> list[dict[str, Any]]:
    """What tools gave, each a message of its own, then what the user says."""
    found, texts = [], []
    for block in blocks:
        if block.get("type") == "tool_result":
            number = str(block.get("tool_use_id", ""))
            result = {"role": "tool", "content": fields.result_of(block.get("content"), place), "tool_call_id": number}
            found.append({**result, "name": names[number]} if number in names else result)
        else:
            texts.append(block)
    return [*found, {"role": role, "content": fields.text_of(texts, place)}] if texts or not found else found


class MessageShape:
    """See shape.Shape. Calls are whole or not there: clients run a call that is cut with what there is of its input."""

    kept = 0

    def __init__(self, model: str, ask: Ask) -> None:
        self._ask, self._model = ask, model
        self._id = f"msg_{secrets.token_hex(12)}"
        self._blocks, self._calls = Blocks(), WholeCalls()
        self._cached = 0
        self._end: Ended | None = None

    def began(self, part: Began) -> Iterator[shape.Event]:
        """The message without its content."""
        self._cached = part.cached
        yield self._event("message_start", message=self.document())

    def said(self, part: Said) -> Iterator[shape.Event]:
        """Blocks begin, grow and end."""
        for event in chain.from_iterable(map(self._calls.take, part.events)):
            for change in self._blocks.take(event):
                yield self._changed(*change)

    def ended(self, part: Ended) -> Iterator[shape.Event]:
        """The reason, and the end."""
        for change in self._blocks.close():
            yield self._changed(*change)
        self._end = part
        delta = {"stop_reason": self._reason(), "stop_sequence": part.stop}
        yield self._event("message_delta", delta=delta, usage=self._usage())
        yield self._event("message_stop")

    def failed(self, error: ApiError) -> Iterator[shape.Event]:
        """As Anthropic's clients expect it."""
        yield shape.Event(error.document("/v1/messages"), "error")

    def document(self) -> dict[str, Any]:
        """A message."""
        head = {"id": self._id, "type": "message", "role": "assistant", "model": self._model}
        content = [self._block(block) for block in self._blocks.all]
        stop = self._end.stop if self._end else None
        tail = {"stop_reason": self._reason(), "stop_sequence": stop, "usage": self._usage()}
        return {**head, "content": content, **tail}

    def _event(self, kind: str, **values: Any) -> shape.Event:
        return shape.Event({"type": kind, **values}, kind)

    def _changed(self, change: Change, block: Block, text: str) -> shape.Event:
        if change == "opened":
            return self._event("content_block_start", index=block.number, content_block=self._block(block))
        if change == "closed":
            return self._event("content_block_stop", index=block.number)
        delta = {
            "thinking": {"type": "thinking_delta", "thinking": text},
            "text": {"type": "text_delta", "text": text},
            "call": {"type": "input_json_delta", "partial_json": text},
        }[block.kind]
        return self._event("content_block_delta", index=block.number, delta=delta)

    def _block(self, block: Block) -> dict[str, Any]:
        if block.kind == "thinking":
            return {"type": "thinking", "thinking": block.text, "signature": ""}
        if block.kind == "text":
            return {"type": "text", "text": block.text}
        given = msgspec.Raw(block.text.encode()) if block.whole else {}  # while it begins
        number = call_id(self._ask.first_call + block.call)
        return {"type": "tool_use", "id": number, "name": block.name, "input": given}

    def _reason(self) -> str | None:
        if self._end is None:
            return None
        if self._end.finish == "length":
            return "max_tokens"
        if self._end.stop is not None:
            return "stop_sequence"
        return "tool_use" if any(block.whole for block in self._blocks.all) else "end_turn"

    def _usage(self) -> dict[str, Any]:
        counted = {"input_tokens": len(self._ask.tokens) - self._cached, "cache_read_input_tokens": self._cached}
        answered = self._end.tokens if self._end else 0
        return {**counted, "cache_creation_input_tokens": 0, "output_tokens": answered}
