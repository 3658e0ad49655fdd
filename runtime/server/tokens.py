"""/tokenize: a text or a chat as the model's tokens."""

from typing import Any

import msgspec

from . import chat, fields
from .failures import ApiError
from .service import Service
from .wishes import ChatWish, Wish


class TokenizeRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Either `content` (or `prompt`) or `messages`. `with_pieces`: the text of each token, too."""

    content: str | None = None
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    tools: list[chat.Tool] | None = None
    add_special: bool = False
    with_pieces: bool = False
    model: Any = None


def document(request: TokenizeRequest, service: Service) -> dict[str, Any]:
    """The tokens and their number."""
    tokenizer = service.language.tokenizer
    found = _tokens(request, service)
    answer: dict[str, Any] = {"count": len(found), "tokens": found}
    if request.with_pieces:
        answer["pieces"] = [tokenizer.decode([token], special=True) for token in found]
    return answer


def _tokens(request: TokenizeRequest, service: Service) -> list[int]:
    texts = [text for text in (request.content, request.prompt) if text is not None]
    if len(texts) + (request.messages is not None) != 1:
        raise ApiError("give one of content, prompt and messages")
    if texts:
        return service.encoded(texts[0], add_special=request.add_special)
    tools = [chat.read_tool(tool, place) for place, tool in fields.runnable(request.tools, chat.KINDS)]
    form = fields.form(tools, fields.ToolChoice(), parallel=None)
    return service.counted(ChatWish(chat.messages(request.messages or [], {}), Wish(), form))
