"""What the model has of a conversation: one session, its tokens, and the last places it can go back to.

A prompt that continues what is in the session costs only what is new. One that parts from it (most templates drop the
thinking of earlier answers) is continued from the last place that both share; going back copies recurrent states and
nothing else, since the caches still have the rows before. Knows tokens, but no chat.
"""

from collections.abc import Sequence
from pathlib import Path

from ...manifests.errors import CorruptInputError, MismatchError
from ..backends.base import Floats
from ..engine import Engine
from ..sessions import statefile
from ..sessions.snapshot import Snapshot

PLACES = 2  # of which each costs a model's recurrent states


class Recall:
    """What generate.Generation extends. `computed`: positions that were, in all."""

    def __init__(self, engine: Engine) -> None:
        self.computed = 0
        self._engine, self._session = engine, engine.new_session()
        self._tokens: list[int] = []
        self._places: list[Snapshot] = []
        self._next_place = 0

    @property
    def position(self) -> int:
        """How many tokens are in the session."""
        return self._session.position

    @property
    def sound(self) -> bool:
        """Whether the session holds what it should: an error or an interrupt may have left it in the middle."""
        return not self._session.failed and self.position == len(self._tokens)

    def begin(self, prompt: Sequence[int], place: int) -> Sequence[int]:
        """Go to where the prompt can be continued; what is left of it, which is to be given to `extend`.

        `place`: a length at which a later prompt may part from this one; 0 for none.
        """
        tokens = list(prompt)
        if not (self.sound and len(self._tokens) < len(tokens) and tokens[: len(self._tokens)] == self._tokens):
            self._go_back(tokens)
        self._next_place = place
        return tokens[self.position :]

    def extend(self, tokens: Sequence[int]) -> Floats:
        """See generate.Extensible; the place is remembered on the way."""
        before = self._next_place - self.position
        if 0 < before < len(tokens):
            self._extend(tokens[:before])
            self._remember()
            tokens = tokens[before:]
        logits = self._extend(tokens)
        if self.position == self._next_place:
            self._remember()
        return logits

    def forget(self) -> None:
        """Begin anew."""
        self._tokens, self._places = [], []
        self._session.restore(())

    def save(self, path: Path) -> str | None:
        """Write the session; the file's digest, None if there is nothing worth one. Raises StorageError."""
        if not (self.sound and self._tokens):
            return None
        ends = [each for each in self._places if each.last < self.position]
        ends.append(self._session.snapshot(self.position))
        return statefile.save(path, self._tokens, self._session.state, ends, self._engine.backend)

    def load(self, path: Path, expected: str) -> int:
        """Go on from a file of that digest; how many tokens it holds. Raises as statefile.load does."""
        room = statefile.Room(self._engine.context, self._engine.model.vocab_size)
        try:
            tokens, ends = statefile.load(path, expected, self._session.state, self._engine.backend, room)
        except (CorruptInputError, MismatchError):  # what there was is as it was
            raise
        except BaseException:
            self.forget()
            raise
        self._tokens, self._places, self._session.failed = tokens, ends[:-1][-PLACES:], False
        return len(tokens)

    def _extend(self, tokens: Sequence[int]) -> Floats:
        logits = self._session.extend(tokens)
        self._tokens.extend(tokens)
        self.computed += len(tokens)
        return logits

    def _remember(self) -> None:
        self._places = [*self._places, self._session.snapshot(self.position)][-PLACES:]

    def _go_back(self, prompt: Sequence[int]) -> None:
        """To the last place that the prompt shares, leaving a token to compute; else to the beginning."""
        shared = [each for each in self._places if each.last < len(prompt) and self._shares(prompt, each.last)]
        if shared:
            self._session.rewind(shared[-1])
        else:
            self._session.restore(())
        self._places = shared
        del self._tokens[self.position :]

    def _shares(self, prompt: Sequence[int], count: int) -> bool:
        return len(self._tokens) >= count and list(prompt[:count]) == self._tokens[:count]
