"""OpenAI's /v1/chat/completions: its request as a chat's wish, and an answer as its chunks or its document."""

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from ..answers.events import CallArguments, CallBegan, Content, Event, Thinking
from ..answers.message import Assembly, call_id
from ..serving.answer import Ended, Said
from ..tokenizer import Tokenizer
from . import fields, likelihoods
from .choices import ChoicesShape
from .failures import ApiError, unsupported
from .wishes import Ask, ChatWish, Wish

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
PARTS = frozenset({"text", "refusal"})
KINDS: frozenset[str | None] = frozenset({"function"})


class Function(msgspec.Struct):
    """A tool's function."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(msgspec.Struct):
    """A tool."""

    type: str
    function: Function | None = None


class StreamOptions(msgspec.Struct):
    """Other options of a stream are ignored."""

    include_usage: bool | None = None


class ChatRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The fields that OpenAI documents, and top_k, min_p, repetition_penalty and chat_template_kwargs."""

    model: str
    messages: list[dict[str, Any]]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[Tool] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: str | None = None
    n: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    modalities: list[str] | None = None
    audio: Any = None
    functions: Any = None
    function_call: Any = None
    web_search_options: Any = None
    # Without an effect here.
    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    prediction: Any = None
    verbosity: Any = None
    prompt_cache_key: Any = None
    prompt_cache_retention: Any = None
    prompt_cache_options: Any = None
    safety_identifier: Any = None
    moderation: Any = None


def wish(request: ChatRequest) -> ChatWish:
    """What the request asks for. Raises ApiError for what is malformed or not supported."""
    _refuse(request)
    tools = [read_tool(tool, place) for place, tool in fields.runnable(request.tools, KINDS)]
    choice, response = _choice(request.tool_choice), _response(request.response_format)
    form = fields.form(tools, choice, parallel=request.parallel_tool_calls, response=response)
    variables = dict(request.chat_template_kwargs or {})
    if request.reasoning_effort == "none":
        variables.setdefault("enable_thinking", False)
    names: dict[str, str] = {}
    return ChatWish(messages(request.messages, names), _wish(request), form, variables, names)


def messages(given: list[dict[str, Any]], names: dict[str, str]) -> list[dict[str, Any]]:
    """Messages as templates read them; `names` is given those of calls, by id. What no template reads is left out."""
    return [_message(message, f"messages[{index}]", names) for index, message in enumerate(given)]


def _refuse(request: ChatRequest) -> None:
    if set(request.modalities or ()) - {"text"}:
        raise unsupported("modalities", "this server answers with text only")
    neutral = ("audio", "functions", "function_call", "web_search_options")
    fields.neutral(**{name: getattr(request, name) for name in neutral})
    if request.top_logprobs is not None and not request.logprobs:
        raise ApiError("top_logprobs: it needs logprobs to be true", param="top_logprobs")


def _wish(request: ChatRequest) -> Wish:
    longest = [fields.limit(name, getattr(request, name)) for name in ("max_completion_tokens", "max_tokens")]
    return Wish(
        fields.sampling(request),
        next((size for size in longest if size is not None), None),
        fields.stops("stop", request.stop),
        fields.top_logprobs("top_logprobs", request.top_logprobs or 0) if request.logprobs else None,
        fields.penalties(request),
        fields.choices("n", request.n) or 1,
    )


def read_tool(tool: Tool, place: str) -> dict[str, Any]:
    """A tool as templates read it."""
    if tool.function is None:
        raise ApiError(f"{place}.function: it is missing", param=place)
    found = tool.function
    return fields.tool(place, found.name, found.description, found.parameters, strict=found.strict)


def _choice(value: str | dict[str, Any] | None) -> fields.ToolChoice:
    if value is None or isinstance(value, str):
        return fields.ToolChoice(value)
    if value.get("type") == "allowed_tools":
        return fields.ToolChoice.some(value.get("allowed_tools"), _name_of)
    if value.get("type") != "function" or not (name := _name_of(value)):
        raise ApiError('tool_choice: give {"type": "function", "function": {"name": ...}}', param="tool_choice")
    return fields.ToolChoice.one(name)


def _name_of(tool: Mapping[str, Any]) -> str | None:
    function = tool.get("function")
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) else None


def _response(value: dict[str, Any] | None) -> Any:
    if value is None:
        return None
    given = value.get("json_schema")
    schema = given.get("schema") if isinstance(given, dict) else None
    return fields.response_schema("response_format", str(value.get("type")), schema)


def _message(message: Mapping[str, Any], place: str, names: dict[str, str]) -> dict[str, Any]:
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise ApiError(f"{place}.role: {role!r:.60} is none of {', '.join(ROLES)}", param=f"{place}.role")
    found: dict[str, Any] = {"role": ROLES[role]}
    read = fields.result_of if role == "tool" else fields.text_of
    found["content"] = read(message.get("content"), f"{place}.content", PARTS)
    if role == "assistant":
        found |= _said(message, place, names)
    if role == "tool":
        found |= _result(message, place, names)
    return found


def _said(message: Mapping[str, Any], place: str, names: dict[str, str]) -> dict[str, Any]:
    """The reasoning and the calls of an earlier answer."""
    found: dict[str, Any] = {}
    if isinstance(reasoning := message.get("reasoning_content", message.get("reasoning")), str):
        found["reasoning_content"] = reasoning
    calls = message.get("tool_calls")
    if calls is not None and not isinstance(calls, list):
        raise ApiError(f"{place}.tool_calls: they are a list", param=f"{place}.tool_calls")
    read = [_call(each, f"{place}.tool_calls[{i}]", names) for i, each in enumerate(calls or ())]
    if whole := [call for call in read if call is not None]:
        found["tool_calls"] = whole
    return found


def _call(given: Any, place: str, names: dict[str, str]) -> dict[str, Any] | None:
    """A call of an earlier answer; None if it was cut or malformed."""
    function = given.get("function") if isinstance(given, dict) else None
    if not isinstance(function, dict):
        raise ApiError(f"{place}: a call has a function", param=place)
    arguments = fields.arguments(function.get("arguments"), place)
    return fields.call(str(given.get("id", "")), function.get("name"), arguments, place, names)


def _result(message: Mapping[str, Any], place: str, names: Mapping[str, str]) -> dict[str, Any]:
    """What a tool gave, with the tool's name, which some templates print."""
    number = message.get("tool_call_id")
    if not isinstance(number, str):
        raise ApiError(f"{place}.tool_call_id: a tool's message needs the id of its call", param=place)
    return {"tool_call_id": number, **({"name": names[number]} if number in names else {})}


class _Choice:
    """One answer: its chunks' choices, and its own in the document."""

    def __init__(self, index: int, ask: Ask, tokenizer: Tokenizer, *, keeps: bool) -> None:
        self._index, self._ask, self._tokenizer, self._keeps = index, ask, tokenizer, keeps
        self._assembly = Assembly(ask.first_call)
        self._logprobs: list[msgspec.Raw] = []
        self.kept = 0
        self.end: Ended | None = None

    def began(self) -> Iterator[dict[str, Any]]:
        """The role."""
        yield self._chunk({"role": "assistant"})

    def said(self, part: Said) -> Iterator[dict[str, Any]]:
        """A delta for each event; logprobs go with the first."""
        self._assembly.add(part.events)
        logprobs = None
        if part.likelihood is not None:
            content = [likelihoods.entry(part.likelihood, self._tokenizer)]
            logprobs = {"content": content}
            self._keep(content)
        deltas = [delta for event in part.events if (delta := self._delta(event))]
        for delta in deltas or ([{}] if logprobs else []):
            yield self._chunk(delta, logprobs)
            logprobs = None

    def _keep(self, entries: list[msgspec.Raw]) -> None:
        if self._keeps:
            self._logprobs += entries
            self.kept += likelihoods.size(entries)

    def ended(self, part: Ended) -> dict[str, Any]:
        """The reason."""
        self.end = part
        return self._chunk({}, finish=self._finish())

    def document(self) -> dict[str, Any]:
        """All of it."""
        message = self._assembly.message().document()
        choice = {"index": self._index, "message": message, "finish_reason": self._finish()}
        return {**choice, "logprobs": None if self._ask.top_logprobs is None else {"content": self._logprobs}}

    def _chunk(self, delta: Any, logprobs: Any = None, finish: str | None = None) -> dict[str, Any]:
        return {"index": self._index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}

    def _delta(self, event: Event) -> dict[str, Any] | None:
        match event:
            case Thinking(text):
                return {"reasoning_content": text}
            case Content(text):
                return {"content": text}
            case CallBegan(index, name):
                head = {"index": index, "id": call_id(self._ask.first_call + index), "type": "function"}
                return {"tool_calls": [{**head, "function": {"name": name, "arguments": ""}}]}
            case CallArguments(index, text):
                return {"tool_calls": [{"index": index, "function": {"arguments": text}}]}
        return None

    def _finish(self) -> str:
        assert self.end is not None
        called = any(call.whole for call in self._assembly.message().calls)
        return "tool_calls" if called and self.end.finish == "stop" else self.end.finish


class ChatShape(ChoicesShape):
    """See shape.Shape."""

    kind, chunk_kind = "chat.completion", "chat.completion.chunk"

    def __init__(self, model: str, ask: Ask, request: ChatRequest, tokenizer: Tokenizer) -> None:
        choices = [_Choice(index, ask, tokenizer, keeps=not request.stream) for index in range(ask.choices)]
        wanted = bool(request.stream_options and request.stream_options.include_usage)
        super().__init__("chatcmpl", model, [ask], choices, usage=wanted)

    def _usage(self) -> dict[str, Any]:
        reasoning = sum(end.reasoning for end in self._ends)
        return {**super()._usage(), "completion_tokens_details": {"reasoning_tokens": reasoning}}
