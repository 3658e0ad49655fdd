"""A text's passage through a model, layer by layer and observed: the forward pass that a calibration is made of.

The text is read as the model's own tokens, and may be taken through a pack's experts instead of the model's. Who
observes, and what is kept, is the observer's affair.
"""

from functools import cached_property
from pathlib import Path

from .backends.base import Backend, Floats
from .corpus import Room, Stream
from .packfiles import LooseFiles
from .quality.vocabulary import require_same_model
from .quality.windows import Windows, read_text
from .source import ExpertsFrom, PackSource, Source
from .sweep import Observer, Sweep
from .tokenizer import Tokenizer


def read_whole(source: Source, folder: Path, text: Path, *, window: int) -> Windows:
    """A text file as windows of a model whose tokenizer is in `folder`. Raises UsageError as read_text does."""
    tokenizer = Tokenizer.open(LooseFiles(folder), source.model.vocab_size)
    return read_text(text, tokenizer, window=window)


class Passage:
    """Windows of a text before a model's first layer, to be taken through one layer after the other.

    `through` is the pack whose experts they meet, None for the model's own. Raises UsageError if windows are longer
    than the model's context, and if the pack is another model's.
    """

    def __init__(
        self, source: Source, windows: Windows, backend: Backend, room: Room, *, through: PackSource | None = None
    ) -> None:
        windows.require_within(source.model.max_position_embeddings)
        if through is not None:
            require_same_model(source, through)
        self.windows = windows
        self.through = None if through is None else through.pack.digest
        self._sweep = Sweep(source if through is None else ExpertsFrom(source, through), backend)
        self._room = room

    @property
    def rows(self) -> Floats:
        """The hidden states, float32 [tokens, hidden]; `advance` changes them in place."""
        return self._stream.rows

    def advance(self, layer: int, observer: Observer) -> None:
        """Through one layer; see Sweep.advance."""
        self._sweep.advance(layer, self._stream, observer=observer)

    @cached_property
    def _stream(self) -> Stream:
        """Only made when it is asked for: it is as large as the text, and takes time."""
        return self._sweep.embed(self.windows.corpus, self._room)
