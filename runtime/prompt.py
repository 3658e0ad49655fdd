"""What a person asks, as the tokens a model starts from: a bare text, or a chat through the pack's template.

Owns the shape of the messages and tools files and when a prompt counts as empty.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..manifests import canonical
from ..manifests.errors import CorruptInputError, UsageError
from .template import ChatTemplate
from .tokenizer import Tokenizer

MAX_MESSAGES_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True)
class Chat:
    """Messages, each with a role; the tools the model may call; and what else the template may read."""

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.messages:
            raise UsageError("the chat has no messages; give at least one of the user")
        for message in self.messages:
            if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
                raise UsageError(f'a chat message needs a "role" and a "content"; got {message!r:.100}')
        for tool in self.tools or ():
            if not isinstance(tool, Mapping):
                raise UsageError(f"a tool is a JSON object; got {tool!r:.100}")
        last = self.messages[-1]
        if last["role"] == "user" and _is_blank(last.get("content")):
            raise UsageError("the prompt is empty; the user's message has no text")

    @classmethod
    def of(cls, text: str, system: str | None = None) -> "Chat":
        """A chat of one question, after the system's message if there is one."""
        before = [] if system is None else [{"role": "system", "content": system}]
        return cls([*before, {"role": "user", "content": text}])

    @classmethod
    def parse(cls, content: bytes, name: str) -> "Chat":
        """A chat from JSON: {"messages": [...], "tools": [...]}. Raises UsageError for anything else."""
        value = _json(content, name)
        if not isinstance(value, dict) or not isinstance(value.get("messages"), list):
            raise UsageError(f'{name} is not {{"messages": [...], "tools": [...]}}')
        if unknown := value.keys() - {"messages", "tools"}:
            raise UsageError(f"{name} has {min(unknown)!r} beside messages and tools")
        return cls(value["messages"], _tool_list(value.get("tools"), name))


def parse_tools(content: bytes, name: str) -> list[Mapping[str, Any]]:
    """The tools in a JSON list. Raises UsageError for anything else."""
    tools = _tool_list(_json(content, name), name)
    if tools is None:
        raise UsageError(f"{name} is not a JSON list of tools")
    return tools


def parse_variables(text: str) -> dict[str, Any]:
    """Template variables from a JSON object. Raises UsageError for anything else."""
    value = _json(text.encode("utf-8", "surrogateescape"), "--template-vars")
    if not isinstance(value, dict):
        raise UsageError('--template-vars is not a JSON object such as {"enable_thinking": false}')
    return value


def chat_tokens(chat: Chat, template: ChatTemplate, tokenizer: Tokenizer) -> list[int]:
    """The tokens of a chat, up to where the model's answer begins."""
    text = template.render(chat.messages, tools=chat.tools, variables=chat.variables)
    return tokenizer.encode(text, add_special_tokens=False)  # the template writes every special token itself


def raw_tokens(text: str, tokenizer: Tokenizer) -> list[int]:
    """The tokens of a bare text. Raises UsageError for an empty one."""
    if not text:
        raise UsageError("the prompt is empty; give some text")
    return tokenizer.encode(text, add_special_tokens=True)


def _is_blank(content: Any) -> bool:
    """Whether a message has nothing in it; content may be a text or a list of parts."""
    return not content or (isinstance(content, str) and not content.strip())


def _tool_list(value: Any, name: str) -> list[Mapping[str, Any]] | None:
    if value is not None and not isinstance(value, list):
        raise UsageError(f"{name}: tools are a JSON list")
    return value


def _json(content: bytes, name: str) -> Any:
    try:
        return canonical.decode(content, name, canonical.OWN)
    except CorruptInputError as error:
        raise UsageError(str(error)) from error
