"""What a person asked on the command line: a text, a file or standard input; bare or as a chat; with or without tools.

Owns which of these go together and how files and standard input are read. The tokens come from `prompt`.
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from ..manifests.errors import UsageError
from .language import Language
from .prompt import MAX_MESSAGES_BYTES, Chat, chat_tokens, parse_tools, parse_variables, raw_tokens

STDIN = "-"


@dataclass(frozen=True)
class Asked:
    """The options that say what to ask; exactly one of `prompt`, `prompt_file` and `messages` is given."""

    prompt: str | None = None
    prompt_file: Path | None = None
    messages: Path | None = None
    system: str | None = None
    tools: Path | None = None
    variables: str | None = None
    raw: bool = False

    def __post_init__(self) -> None:
        given = [value for value in (self.prompt, self.prompt_file, self.messages) if value is not None]
        if len(given) != 1:
            raise UsageError("give one prompt: --prompt TEXT (- for standard input), --prompt-file or --messages")
        if self.raw and (option := self._chat_option()):
            raise UsageError(f"{option} is for chats, and --raw asks for none; leave one of them out")
        if self.messages is not None and self.system is not None:
            raise UsageError("--system and --messages exclude each other; put the system message into the file")

    def tokens(self, language: Language) -> list[int]:
        """The tokens the model starts from: a chat when the pack has a template, else the bare text.

        Raises UsageError for an empty prompt, unreadable files, and chat options that the pack cannot follow.
        """
        if self.raw:
            return raw_tokens(self._text(), language.tokenizer)
        if language.template is not None:
            return chat_tokens(self._chat(), language.template, language.tokenizer)
        if option := self._chat_option():
            raise UsageError(f"{option} needs a chat template, and this pack has none")
        return raw_tokens(self._text(), language.tokenizer)

    def _chat_option(self) -> str | None:
        """The first option given that only makes sense in a chat."""
        options = {"--messages": self.messages, "--system": self.system, "--tools": self.tools}
        options["--template-vars"] = self.variables
        return next((name for name, value in options.items() if value is not None), None)

    def _chat(self) -> Chat:
        path = self.messages
        chat = Chat.parse(content_of(path), str(path)) if path else Chat.of(self._text(), self.system)
        if self.tools is not None:
            chat = replace(chat, tools=parse_tools(content_of(self.tools), str(self.tools)))
        return replace(chat, variables=parse_variables(self.variables)) if self.variables is not None else chat

    def _text(self) -> str:
        """The prompt; of a file or standard input without the line's end that closes it."""
        if self.prompt_file is not None:
            return _line(content_of(self.prompt_file), str(self.prompt_file))
        if self.prompt == STDIN:
            return _line(_limited(sys.stdin.buffer, "standard input"), "standard input")
        return self.prompt or ""


def content_of(path: Path) -> bytes:
    """A file's bytes; pipes and links are fine, since the user named it."""
    try:
        with path.open("rb") as file:
            return _limited(file, str(path))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error


def _limited(file: BinaryIO, name: str) -> bytes:
    """All that `file` holds, which is refused, not cut, when it is too much."""
    content = file.read(MAX_MESSAGES_BYTES + 1)
    if len(content) > MAX_MESSAGES_BYTES:
        raise UsageError(f"{name} has more than {MAX_MESSAGES_BYTES} bytes; give a shorter prompt")
    return content


def _line(content: bytes, name: str) -> str:
    try:
        return content.decode("utf-8").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise UsageError(f"{name} is not UTF-8 text") from error
