"""OpenAI's /v1/responses: its request as a chat's wish, and an answer as its events or its document.

Nothing is stored: a conversation is sent whole each time.
"""

import secrets
import time
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from ..answers.message import call_id
from ..serving.answer import Began, Ended, Said
from ..tokenizer import Tokenizer
from . import chat, fields, likelihoods, shape
from .blocks import Block, Blocks, Change
from .failures import ApiError, unsupported
from .wishes import Ask, ChatWish, Wish

PARTS = frozenset({"input_text", "output_text", "text", "refusal", "summary_text", "reasoning_text"})
KINDS: frozenset[str | None] = frozenset({"function", "namespace"})
LOGPROBS = "message.output_text.logprobs"
ECHOED = ("instructions", "max_output_tokens", "metadata", "reasoning", "temperature", "text", "top_p", "user")
Out = Iterator[shape.Event]


class Tool(msgspec.Struct):
    """A function, flat, or a namespace of some."""

    type: str
    name: str | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    tools: list["Tool"] | None = None

    @property
    def functions(self) -> Iterator[tuple[str, "Tool"]]:
        """Its functions by the names that the model knows them by."""
        if self.type == "function":
            yield self.name or "", self
        for tool in self.tools or () if self.type == "namespace" else ():
            if tool.type == "function":
                yield joined(self.name, tool.name), tool

    def document(self) -> dict[str, Any]:
        """As the request has it, without what is left out."""
        flat = {name: getattr(self, name) for name in ("type", "name", "description")}
        if self.type == "namespace":
            return {**flat, "tools": [tool.document() for _, tool in self.functions]}
        return {**flat, "parameters": self.parameters, "strict": self.strict}


class ResponseRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The fields that OpenAI documents, and top_k, min_p, seed and stop."""

    model: str
    input: str | list[dict[str, Any]]
    instructions: str | None = None
    stream: bool | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    top_logprobs: int | None = None
    tools: list[Tool] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    text: dict[str, Any] | None = None
    reasoning: dict[str, Any] | None = None
    include: list[str] | None = None
    truncation: str | None = None
    previous_response_id: str | None = None
    conversation: Any = None
    prompt: Any = None
    background: bool | None = None
    max_tool_calls: int | None = None
    # Without an effect here.
    metadata: Any = None
    user: Any = None
    store: Any = None
    service_tier: Any = None
    prompt_cache_key: Any = None
    prompt_cache_retention: Any = None
    safety_identifier: Any = None
    stream_options: Any = None
    prompt_cache_options: Any = None
    context_management: Any = None
    moderation: Any = None
    client_metadata: Any = None


def joined(namespace: Any, name: str | None) -> str:
    """A function's name for the model; MCP's clients join theirs like this, too."""
    return f"{namespace}__{name}" if isinstance(namespace, str) else name or ""


def wish(request: ResponseRequest) -> ChatWish:
    """What the request asks for. Raises ApiError for what is malformed or not supported."""
    refused = ("previous_response_id", "conversation", "prompt", "background", "max_tool_calls")
    fields.neutral(**{name: getattr(request, name) for name in refused})
    if request.truncation not in (None, "disabled"):
        raise unsupported("truncation", "this server cuts no input")
    given = [(place, *each) for place, tool in fields.runnable(request.tools, KINDS) for each in tool.functions]
    if request.tools and not given:
        raise unsupported("tools[0]", "it has no function, and only functions that the client runs are supported")
    tools = [_tool(tool, name, place) for place, name, tool in given]
    response = _response(request.text)
    choice = _choice(request.tool_choice)
    form = fields.form(tools, choice, parallel=request.parallel_tool_calls, response=response)
    off = (request.reasoning or {}).get("effort") == "none"
    names: dict[str, str] = {}
    variables = {"enable_thinking": False} if off else {}
    return ChatWish(_messages(request, names), _wish(request), form, variables, names)


def _wish(request: ResponseRequest) -> Wish:
    told = request.top_logprobs is not None or LOGPROBS in (request.include or ())
    return Wish(
        fields.sampling(request),
        fields.limit("max_output_tokens", request.max_output_tokens),
        fields.stops("stop", request.stop),
        fields.top_logprobs("top_logprobs", request.top_logprobs or 0) if told else None,
    )


def _tool(tool: Tool, name: str, place: str) -> dict[str, Any]:
    return fields.tool(place, name, tool.description, tool.parameters, strict=tool.strict)


def _choice(value: str | dict[str, Any] | None) -> fields.ToolChoice:
    if value is None or isinstance(value, str):
        return fields.ToolChoice(value)
    if value.get("type") == "allowed_tools":
        return fields.ToolChoice.some(value, _name_of)
    if value.get("type") != "function" or not (name := _name_of(value)):
        raise ApiError('tool_choice: give {"type": "function", "name": ...}', param="tool_choice")
    return fields.ToolChoice.one(name)


def _name_of(function: Mapping[str, Any]) -> str | None:
    name = function.get("name")
    return joined(function.get("namespace"), name) if isinstance(name, str) and name else None


def _response(text: Mapping[str, Any] | None) -> Any:
    given = (text or {}).get("format")
    if given is None:
        return None
    if not isinstance(given, dict):
        raise ApiError("text.format: it is an object", param="text")
    return fields.response_schema("text.format", str(given.get("type")), given.get("schema"))


def _messages(request: ResponseRequest, names: dict[str, str]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    if request.instructions:
        found.append({"role": "system", "content": request.instructions})
    if isinstance(request.input, str):
        return [*found, {"role": "user", "content": request.input}]
    for index, item in enumerate(request.input):
        _add(found, item, f"input[{index}]", names)
    return found


def _add(found: list[dict[str, Any]], item: Mapping[str, Any], place: str, names: dict[str, str]) -> None:
    """An item of the input; an answer's reasoning, text and calls become one message again."""
    kind = item.get("type", "message")
    if kind == "message":
        _add_message(found, item, place)
    elif kind == "reasoning":
        said = fields.text_of(item.get("content") or item.get("summary"), place, PARTS)
        found.append({"role": "assistant", "content": "", "reasoning_content": said})
    elif kind == "function_call":
        _add_call(found, item, place, names)
    elif kind == "function_call_output":
        number = str(item.get("call_id", ""))
        result = {"role": "tool", "content": fields.result_of(item.get("output"), place, PARTS), "tool_call_id": number}
        found.append({**result, "name": names[number]} if number in names else result)
    else:
        raise unsupported(place, f"items of the type {kind!r:.60} are not supported")


def _add_call(found: list[dict[str, Any]], item: Mapping[str, Any], place: str, names: dict[str, str]) -> None:
    """A call of an answer, unless it was cut or malformed."""
    arguments = fields.arguments(item.get("arguments"), place)
    call = fields.call(str(item.get("call_id", "")), _name_of(item), arguments, place, names)
    answer = _answer(found)
    if call is not None:
        answer.setdefault("tool_calls", []).append(call)


def _add_message(found: list[dict[str, Any]], item: Mapping[str, Any], place: str) -> None:
    role = item.get("role")
    if not isinstance(role, str) or role not in chat.ROLES or role == "tool":
        raise ApiError(f"{place}.role: {role!r:.60} is none of system, developer, user and assistant", param=place)
    text = fields.text_of(item.get("content"), place, PARTS)
    if role == "assistant" and found and found[-1].keys() == {"role", "content", "reasoning_content"}:
        found[-1]["content"] += text
    else:
        found.append({"role": chat.ROLES[role], "content": text})


def _answer(found: list[dict[str, Any]]) -> dict[str, Any]:
    """The answer that is being put together, a new one after anything else."""
    if not found or found[-1]["role"] != "assistant":
        found.append({"role": "assistant", "content": ""})
    return found[-1]


def _code(error: ApiError) -> str:
    """Of a failed response; of those that OpenAI documents one only is about a request."""
    if error.status >= 500:
        return "server_error"
    return "rate_limit_exceeded" if error.status == 429 else "invalid_prompt"


class ResponseShape:
    """See shape.Shape. The end of a stream has all of it again."""

    def __init__(self, model: str, ask: Ask, request: ResponseRequest, tokenizer: Tokenizer) -> None:
        self._ask, self._request, self._tokenizer = ask, request, tokenizer
        self._head = {"id": f"resp_{secrets.token_hex(16)}", "object": "response", "created_at": int(time.time())}
        self._head["model"] = model
        self._mark = secrets.token_hex(8)  # of the items' ids
        self._blocks = Blocks()
        self._new: list[msgspec.Raw] = []  # logprobs since the last piece
        self._of: dict[int, list[msgspec.Raw]] = {}
        self.kept = 0
        self._cached = self._number = 0
        self._end: Ended | None = None
        self._error: ApiError | None = None
        self._tools = [tool for _, tool in fields.runnable(request.tools, KINDS) if any(tool.functions)]
        spaces = [tool for tool in self._tools if tool.type == "namespace"]
        self._spaced = {name: (space.name, tool.name) for space in spaces for name, tool in space.functions}

    def began(self, part: Began) -> Out:
        """The response without its output."""
        self._cached = part.cached
        yield self._event("response.created", response=self.document())
        yield self._event("response.in_progress", response=self.document())

    def said(self, part: Said) -> Out:
        """Items begin, grow and end."""
        if part.likelihood is not None:
            self._new.append(likelihoods.entry(part.likelihood, self._tokenizer))
            self.kept += likelihoods.size(self._new[-1:])
        for event in part.events:
            for change, block, text in self._blocks.take(event):
                yield from self._changed(change, block, text)

    def ended(self, part: Ended) -> Out:
        """All of it again."""
        self._end = part
        for change, block, text in self._blocks.close():
            block.cut = part.finish == "length"
            yield from self._changed(change, block, text)
        yield self._event(f"response.{self._status()}", response=self.document())

    def failed(self, error: ApiError) -> Out:
        """What there is, with the error."""
        self._error = error
        yield self._event("response.failed", response=self.document())

    def document(self) -> dict[str, Any]:
        """A response."""
        echoed = {name: getattr(self._request, name) for name in ECHOED}
        cut = self._status() == "incomplete"
        return {
            **self._head,
            **echoed,
            "status": self._status(),
            "error": self._error and {"code": _code(self._error), "message": self._error.message},
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "output": [self._item(block) for block in self._blocks.all],
            "parallel_tool_calls": self._request.parallel_tool_calls is not False,
            "tool_choice": self._request.tool_choice or "auto",
            "tools": [tool.document() for tool in self._tools],
            "usage": self._usage() if self._end else None,
        }

    def _event(self, kind: str, **values: Any) -> shape.Event:
        self._number += 1
        return shape.Event({"type": kind, "sequence_number": self._number - 1, **values}, kind)

    def _changed(self, change: Change, block: Block, text: str) -> Out:
        place = {"item_id": self._item_id(block), "output_index": block.number}
        if change == "opened":
            yield self._event("response.output_item.added", output_index=block.number, item=self._begun(block))
            if block.kind == "text":
                part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
                yield self._event("response.content_part.added", **place, content_index=0, part=part)
        elif change == "grown":
            yield self._grown(block, text, place)
        else:
            yield from self._closed(block, place)

    def _grown(self, block: Block, text: str, place: dict[str, Any]) -> shape.Event:
        new = self._taken() if block.kind == "text" else self._drop()
        if block.kind == "call":
            return self._event("response.function_call_arguments.delta", **place, delta=text)
        if block.kind == "thinking":
            return self._event("response.reasoning_text.delta", **place, content_index=0, delta=text)
        self._of.setdefault(block.number, []).extend(new)
        return self._event("response.output_text.delta", **place, content_index=0, delta=text, logprobs=new)

    def _taken(self) -> list[msgspec.Raw]:
        new, self._new = self._new, []
        return new

    def _drop(self) -> list[msgspec.Raw]:
        self.kept -= likelihoods.size(self._taken())
        return []

    def _closed(self, block: Block, place: dict[str, Any]) -> Out:
        self._drop()
        if block.kind == "call":
            done = {"arguments": block.text, "name": self._named(block)["name"]}
            yield self._event("response.function_call_arguments.done", **place, **done)
        elif block.kind == "thinking":
            yield self._event("response.reasoning_text.done", **place, content_index=0, text=block.text)
        else:
            part = self._text_part(block)
            done = {"text": block.text, "logprobs": part["logprobs"]}
            yield self._event("response.output_text.done", **place, content_index=0, **done)
            yield self._event("response.content_part.done", **place, content_index=0, part=part)
        yield self._event("response.output_item.done", output_index=block.number, item=self._item(block))

    def _item(self, block: Block) -> dict[str, Any]:
        head = {"id": self._item_id(block), "status": "incomplete" if block.cut else "completed"}
        if block.kind == "thinking":
            content = [{"type": "reasoning_text", "text": block.text}]
            return {**head, "type": "reasoning", "summary": [], "content": content}
        if block.kind == "text":
            return {**head, "type": "message", "role": "assistant", "content": [self._text_part(block)]}
        return self._call(block, "completed" if block.whole else "incomplete")

    def _begun(self, block: Block) -> dict[str, Any]:
        """An item that has nothing in it yet."""
        if block.kind == "call":
            return self._call(block, "in_progress")
        empty = {**self._item(block), "status": "in_progress", "content": []}
        return empty

    def _call(self, block: Block, status: str) -> dict[str, Any]:
        said = {"call_id": call_id(self._ask.first_call + block.call), "arguments": block.text, **self._named(block)}
        return {"id": self._item_id(block), "type": "function_call", "status": status, **said}

    def _named(self, block: Block) -> dict[str, Any]:
        """The call's function by the request's name of it."""
        if block.name not in self._spaced:
            return {"name": block.name}
        namespace, name = self._spaced[block.name]
        return {"name": name, "namespace": namespace}

    def _text_part(self, block: Block) -> dict[str, Any]:
        logprobs = self._of.get(block.number, [])
        return {"type": "output_text", "text": block.text, "annotations": [], "logprobs": logprobs}

    def _item_id(self, block: Block) -> str:
        prefix = {"thinking": "rs", "text": "msg", "call": "fc"}[block.kind]
        return f"{prefix}_{self._mark}{block.number:04d}"

    def _status(self) -> str:
        if self._error is not None:
            return "failed"
        if self._end is None:
            return "in_progress"
        return "incomplete" if self._end.finish == "length" else "completed"

    def _usage(self) -> dict[str, Any]:
        prompt, answer = len(self._ask.tokens), self._end.tokens if self._end else 0
        counted = {"input_tokens": prompt, "output_tokens": answer, "total_tokens": prompt + answer}
        reasoning = self._end.reasoning if self._end else 0
        details = {"output_tokens_details": {"reasoning_tokens": reasoning}}
        return {**counted, "input_tokens_details": {"cached_tokens": self._cached}, **details}
