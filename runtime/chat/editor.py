"""A line editor on prompt_toolkit, the one module that imports it; see keyboard."""

from collections.abc import AsyncGenerator, Callable, Iterable, Mapping

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.history import DummyHistory
from prompt_toolkit.history import History as Past
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.styles import Style

from .history import History

FILE = "FILE"  # what a command says that a file's name follows
STYLE = Style.from_dict({"bottom-toolbar": "noreverse dim"})


class Editor:
    """See keyboard.Keyboard. Results of tools are not kept in the history."""

    def __init__(self, history: History, commands: Mapping[str, str], status: Callable[[], str]) -> None:
        self._lines = _session(_Past(history), _Commands(commands), status)
        self._results = _session(DummyHistory(), None, status)

    def read(self, prompt: str, *, kept: bool = True) -> str:
        """See Keyboard."""
        return (self._lines if kept else self._results).prompt([("bold", prompt)])


def _session(past: Past, completer: Completer | None, status: Callable[[], str]) -> PromptSession[str]:
    return PromptSession(
        history=past,
        completer=completer,
        key_bindings=_keys(),
        multiline=True,
        prompt_continuation=FormattedText([("", "  ")]),
        bottom_toolbar=lambda: [("class:bottom-toolbar", status())],
        style=STYLE,
        complete_while_typing=False,
    )


class _Past(Past):
    """Our history as prompt_toolkit wants it: newest first."""

    def __init__(self, history: History) -> None:
        super().__init__()
        self._history = history

    def load_history_strings(self) -> Iterable[str]:
        return reversed(self._history.lines)

    def store_string(self, string: str) -> None:
        self._history.add(string)

    async def load(self) -> AsyncGenerator[str, None]:
        """At once: no thread reads what is in memory."""
        for text in self.load_history_strings():
            yield text


class _Commands(Completer):
    """Names of commands at the start of a line, files after those that take one."""

    def __init__(self, commands: Mapping[str, str]) -> None:
        self._commands, self._paths = commands, PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        text = document.text_before_cursor
        name, space, rest = text.partition(" ")
        if not space and text.startswith("/"):
            found = (each for each in self._commands if f"/{each}".startswith(text))
            yield from (Completion(f"/{each}", -len(text), display_meta=self._commands[each]) for each in found)
        elif text.startswith("/") and FILE in self._commands.get(name[1:], ""):
            yield from self._paths.get_completions(Document(rest), complete_event)


def _keys() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("enter")
    def accept(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("c-j")
    @keys.add("escape", "enter")
    def new_line(event: KeyPressEvent) -> None:
        event.current_buffer.newline(copy_margin=False)

    @keys.add("c-c")
    @keys.add("<sigint>")
    def interrupt(event: KeyPressEvent) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt)

    return keys
