"""A chat made of what the command line asked for, on the terminal or the pipe that there is."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ...layout.reader import Pack
from ...manifests import schema
from ...manifests.console import say
from ...manifests.errors import UsageError
from ...manifests.files import require_there
from ..asked import content_of
from ..engine import Engine, EngineOptions
from ..language import Language
from ..prompt import Chat, parse_tools, parse_variables
from ..sessions.identity import identity
from ..state import recurrent_bytes
from . import commands
from .conversation import Conversation, Entry, check_tools
from .history import History, default_path
from .keyboard import Keyboard, Lines, editor
from .partner import Partner, Settings
from .recall import PLACES
from .screen import Looks, Pipe, Screen, Terminal
from .talk import Talk

CHAT_BYTES = 20_000_000  # prompt_toolkit adds 8 MB, measured; the rest is for the conversation


@dataclass(frozen=True)
class Wanted:
    """The options of the command line; `sampling` has those that were given, by name."""

    system: str | None = None
    messages: Path | None = None
    tools: Path | None = None
    variables: str | None = None
    thinking: bool | None = None
    fold: bool = False
    load: Path | None = None
    history: Path | None = None
    keep_history: bool = True
    max_tokens: int | None = None
    stops: tuple[str, ...] = ()
    sampling: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.messages is not None and self.system is not None:
            raise UsageError("--system and --messages exclude each other; put the system message into the file")
        if self.load is not None and (self.messages or self.system is not None or self.tools):
            raise UsageError("--load brings its own messages and tools; leave out --messages, --system and --tools")
        if self.load is not None:
            require_there(self.load)

    def conversation(self) -> Conversation:
        """How it begins."""
        chat = None if self.messages is None else Chat.parse(content_of(self.messages), str(self.messages))
        found = Conversation([] if chat is None else [Entry.of(message) for message in chat.messages])
        if self.system is not None:
            found.system = self.system
        if self.tools is not None:
            found.tools = check_tools(parse_tools(content_of(self.tools), str(self.tools)), str(self.tools))
        elif chat is not None and chat.tools:
            found.tools = check_tools(chat.tools, str(self.messages))
        self.apply(found)
        return found

    def apply(self, conversation: Conversation) -> None:
        """The template's variables that were given."""
        given = {} if self.variables is None else parse_variables(self.variables)
        if self.thinking is not None:
            given[commands.THINKING] = self.thinking
        conversation.variables = {**conversation.variables, **given}

    def adjusted(self, settings: Settings) -> Settings:
        """Settings with what was given in place of theirs."""
        return Settings(
            replace(settings.sampling, **self.sampling),
            settings.max_tokens if self.max_tokens is None else self.max_tokens,
            self.stops or settings.stops,
        )


def reserving(options: EngineOptions, model: schema.Model) -> EngineOptions:
    """Options whose memory plan leaves room for what a chat holds besides: places to go back to, one more to save."""
    return replace(options, prefix_bytes=CHAT_BYTES + (PLACES + 1) * recurrent_bytes(model))


def run(pack: Pack, engine: Engine, language: Language, settings: Settings, wanted: Wanted) -> None:
    """Chat until the end. Raises KeyboardInterrupt if a person leaves so."""
    conversation, root = wanted.conversation(), pack.digest
    partner = Partner(engine, language, settings)
    history = History(_history_path(wanted))
    talk = Talk(conversation, partner, Lines(), _screen(wanted), root, identity(root, engine), sys.stdin.isatty())
    talk.keyboard = _keyboard(history, talk)
    if wanted.load is not None:
        commands.load(talk, str(wanted.load))
        wanted.apply(talk.conversation)
        partner.settings = wanted.adjusted(partner.settings)
    if wanted.thinking is not None and not partner.thinks(talk.conversation):
        say("no effect: this pack's chat template knows no thinking")
    try:
        talk.run()
    finally:
        history.close()


def _screen(wanted: Wanted) -> Screen:
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return Pipe(sys.stdout)
    return Terminal(sys.stdout, Looks(not _dumb() and not os.environ.get("NO_COLOR"), not _dumb()), fold=wanted.fold)


def _keyboard(history: History, talk: Talk) -> Keyboard:
    if not sys.stdin.isatty():
        return Lines()
    if not sys.stdout.isatty():
        return Lines(sys.stderr)
    takes = {name: command.takes for name, command in commands.COMMANDS.items()}
    found = None if _dumb() else editor(history, takes, lambda: talk.status)
    if found is None and not _dumb():
        say("lines cannot be edited without prompt_toolkit: pip install '.[chat]'")
    return found or Lines(sys.stdout)


def _history_path(wanted: Wanted) -> Path | None:
    editing = sys.stdin.isatty() and sys.stdout.isatty() and not _dumb()
    return (wanted.history or default_path()) if editing and wanted.keep_history else None


def _dumb() -> bool:
    """Whether the terminal knows no escape sequences."""
    return os.environ.get("TERM", "dumb") in ("", "dumb", "unknown")
