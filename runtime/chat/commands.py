"""What a line that begins with a slash does. A text that begins with one is sent after a blank: ` /etc is full`."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...manifests.errors import UsageError
from ..asked import content_of
from ..prompt import parse_tools
from ..quantities import megabytes
from . import saved, status
from .conversation import check_tools

if TYPE_CHECKING:
    from .talk import Talk

THINKING = "enable_thinking"  # the name that Qwen's and other templates read


@dataclass(frozen=True)
class Command:
    """`takes` names what follows it, in brackets what may."""

    does: Callable[["Talk", str], bool | None]
    takes: str
    help: str


def do(talk: "Talk", line: str) -> bool:
    """Do what a line says; False to end the chat. Raises UsageError for what is no command, or lacks what it takes."""
    name, text = [*line[1:].split(None, 1), "", ""][:2]
    command, text = COMMANDS.get(name), _checked(text.strip())
    if command is None:
        raise UsageError(f"there is no /{name:.40}; /help lists what there is, and a blank before the slash sends it")
    if not text and command.takes and not command.takes.startswith("["):
        raise UsageError(f"/{name} takes {command.takes}")
    return command.does(talk, text) is not False


def _checked(text: str) -> str:
    """Raise UsageError for a text that no file's name and no message can be."""
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise UsageError("what follows the command is not valid UTF-8; check how it was typed")
    return text


def _path(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise UsageError(f"{text} names a home that is not known; give the whole path") from error


def _help(talk: "Talk", text: str) -> None:
    width = max(len(f"{name} {each.takes}") for name, each in COMMANDS.items())
    lines = [f"/{f'{name} {each.takes}':<{width}}  {each.help}" for name, each in COMMANDS.items()]
    talk.screen.note("\n".join([*lines, KEYS]))


def _system(talk: "Talk", text: str) -> None:
    if text:
        talk.conversation.system = None if text == "off" else text
    talk.screen.note(f"system: {talk.conversation.system or 'none'}")


def _reset(talk: "Talk", text: str) -> None:
    talk.conversation.reset()
    talk.screen.note("the conversation begins anew; system message and tools stay")


def _save(talk: "Talk", text: str) -> None:
    path = _path(text)
    partner = talk.partner
    size = saved.save(path, talk.conversation, partner.settings, partner.recall, talk.pack, talk.identity)
    beside = f", and the state that computing them left beside it, {megabytes(size)}" if size else ""
    talk.screen.note(f"saved {len(talk.conversation.entries)} messages to {path}{beside}")


def load(talk: "Talk", text: str) -> None:
    """/load, and --load at the start."""
    path = _path(text)
    found = saved.read(path)
    known = saved.restore(path, found, talk.partner.recall, talk.identity)
    talk.conversation, talk.partner.settings = found.conversation, found.settings
    talk.last = None
    if known:
        told = f"{known} tokens need not be computed again"
    elif found.pack != talk.pack:
        told = "it is another pack's, so it will be computed again"
    else:
        told = "there is no state for this pack and these options, so it will be computed again"
    talk.screen.note(f"loaded {len(found.messages)} messages from {path}; {told}")


def _stats(talk: "Talk", text: str) -> None:
    talk.screen.note("\n".join(status.report(talk.totals, talk.partner)))


def _tools(talk: "Talk", text: str) -> None:
    if text == "off":
        talk.conversation.tools = None
    elif text:
        path = _path(text)
        talk.conversation.tools = check_tools(parse_tools(content_of(path), str(path)), str(path))
    names = [tool["function"]["name"] for tool in talk.conversation.tools or ()]
    talk.screen.note(f"tools: {', '.join(names) or 'none'}")


def _think(talk: "Talk", text: str) -> None:
    if text not in ("show", "fold", "off"):
        raise UsageError("/think takes show, fold or off")
    if not talk.partner.thinks(talk.conversation):
        raise UsageError("this pack's chat template knows no thinking")
    variables = talk.conversation.variables
    if text == "off":
        talk.conversation.variables = {**variables, THINKING: False}
    else:
        talk.screen.fold = text == "fold"
        if variables.get(THINKING) is False:
            talk.conversation.variables = {**variables, THINKING: True}
    thought = talk.conversation.thought if text == "show" else ""
    talk.screen.note(f"thinking: {text}" + (f"; the last answer's was:\n{thought}" if thought else ""))


def _quit(talk: "Talk", text: str) -> bool:
    return False


FILE = "FILE"
COMMANDS = {
    "help": Command(_help, "", "this list"),
    "system": Command(_system, "[TEXT|off]", "set the system message, remove it, or show it"),
    "reset": Command(_reset, "", "begin anew; system message and tools stay"),
    "save": Command(_save, FILE, "write the conversation, and the state that computing it left"),
    "load": Command(load, FILE, "go on with a saved one"),
    "stats": Command(_stats, "", "what was computed, read and kept so far"),
    "tools": Command(_tools, "[FILE|off]", "read tool definitions from a JSON list, or show their names"),
    "think": Command(
        _think, "show|fold|off", "show thinking, the last answer's at once, count it in a line, or ask for none"
    ),
    "quit": Command(_quit, "", "end the chat, as Ctrl-D does"),
}
KEYS = (
    "Enter sends; Alt-Enter or Ctrl-J is a new line; Ctrl-C stops an answer, or empties the line; a blank before a"
    " slash sends it"
)
