"""A chat from its first line to its last: reads, does what a command says, or lets the model answer.

Promises that neither Ctrl-C nor an error of one answer ends it at a terminal: a question that was not answered is taken
back, and a stopped answer stays as far as it came. Through a pipe every line is a question, no line is a command, and
the first error ends it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from ...manifests.errors import MoepackError, UsageError
from . import commands, status
from .conversation import Call, Conversation, Entry
from .interrupts import Interrupts
from .keyboard import Keyboard
from .markdown import visible
from .partner import Figures, Partner, Turn
from .screen import Screen
from .status import Totals

PROMPT = "> "
LEAVING = "Ctrl-D or /quit ends the chat; Ctrl-C once more leaves with 130"
UNANSWERED = "the calls stay without results, and no answer is computed; Ctrl-D or /quit ends the chat"
FULL = "the context is full, and the answer was cut: /reset begins anew, and a larger --context takes more memory"
CUT = "the answer was cut at {} tokens; say so to have it go on, or give a larger --max-tokens"


@dataclass
class Talk:
    """`person`: somebody types, may use commands and can go on after an error. `pack`: its root digest."""

    conversation: Conversation
    partner: Partner
    keyboard: Keyboard
    screen: Screen
    pack: str
    identity: bytes
    person: bool
    totals: Totals = field(default_factory=Totals)
    last: Figures | None = None

    def run(self) -> None:
        """Until the last line. Raises KeyboardInterrupt if that is how a person leaves."""
        if self.conversation.asks and not self._guarded(self._answers):
            return
        idle = False
        while True:
            try:
                text = self._read(PROMPT)
            except EOFError:
                return
            except KeyboardInterrupt:
                if idle or not self.person:
                    raise
                idle = True
                self.screen.note(LEAVING)
                continue
            idle = False
            if text.strip() and not self._guarded(partial(self._heard, text)):
                return

    @property
    def status(self) -> str:
        """What to show below the prompt."""
        partner = self.partner
        return (
            status.short(self.last)
            if self.last
            else f"context {partner.recall.position}/{partner.engine.context}; /help"
        )

    def _read(self, prompt: str, *, kept: bool = True) -> str:
        """A line; a person is told what is wrong with one that is none, and asked for another."""
        while True:
            try:
                return self.keyboard.read(prompt, kept=kept)
            except UsageError as error:
                self._tell(error)

    def _guarded(self, work: Callable[[], bool | None]) -> bool:
        """Whether to go on after `work`."""
        try:
            return work() is not False
        except BrokenPipeError:
            raise
        except (MoepackError, OSError) as error:
            self._tell(error)
        except KeyboardInterrupt:
            if not self.person:
                raise
            self.screen.note("interrupted")
        return True

    def _tell(self, error: Exception) -> None:
        """Show an error to a person; where nobody types, it ends the chat."""
        if not self.person:
            raise error
        self.screen.note(f"error: {error}")

    def _heard(self, text: str) -> bool:
        if self.person and text.startswith("/"):
            return commands.do(self, text)
        self.conversation.ask(text)
        return self._answers()

    def _answers(self) -> bool:
        """Let the model answer, and again after what its tools gave; False to end the chat."""
        calls = self._answer()
        while calls and self.person:
            try:
                given = self._results(calls)
            except EOFError:
                return False
            except KeyboardInterrupt:
                self.screen.note(UNANSWERED)
                return True
            calls = self._answer() if given else []
        return True

    def _answer(self) -> list[Call]:
        """One answer, kept if something was said; the calls in it. What it answers is taken back if it fails."""
        try:
            with Interrupts() as interrupts:
                turn = self.partner.turn(self.conversation, lambda: interrupts.wanted)
                self._show(turn, interrupts)
        except BaseException:
            self._take_back()
            raise
        self.last = self.partner.figures(turn)
        self.totals.add(self.last)
        entry = Entry.said(turn.message)
        if turn.stopped and not (entry.content or entry.reasoning_content or entry.tool_calls):
            self._take_back()
            self.screen.note("stopped before anything was said; the question is taken back")
            self._leave_if_stopped(turn)
            return []
        self.conversation.entries.append(entry)
        self._remark(turn, self.last)
        self._leave_if_stopped(turn)
        return [] if turn.stopped else entry.tool_calls or []

    def _show(self, turn: Turn, interrupts: Interrupts) -> None:
        try:
            for event in turn:
                interrupts.speaking = True
                self.screen.show([event])
        except KeyboardInterrupt:
            pass
        finally:
            self.screen.show(turn.finish())
            self.screen.end()

    def _remark(self, turn: Turn, figures: Figures) -> None:
        """What to say after an answer."""
        if turn.stopped:
            self.screen.note("stopped; what was said stays in the conversation")
        elif turn.result.finish == "length":
            full = figures.context_used + 1 >= figures.context
            self.screen.note(FULL if full else CUT.format(len(turn.result.tokens)))
        self.screen.note(status.line(figures))

    def _leave_if_stopped(self, turn: Turn) -> None:
        if turn.stopped and not self.person:
            raise KeyboardInterrupt

    def _take_back(self) -> None:
        """The messages since the last answer."""
        entries = self.conversation.entries
        while entries and entries[-1].role in ("user", "tool"):
            entries.pop()

    def _results(self, calls: list[Call]) -> bool:
        """Ask for what tools gave; whether there was any. What ends the asking leaves all calls without a result."""
        given = []
        for call in calls:
            self.screen.note(f"{call.function.name} {call.function.arguments}: type its result; an empty line skips it")
            text = self._read(f"{' '.join(visible(call.function.name).split())} = ", kept=False)
            if text.strip():
                given.append((call, text))
        for call, text in given:
            self.conversation.answer(call, text)
        return bool(given)
