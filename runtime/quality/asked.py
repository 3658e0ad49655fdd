"""What a person asked to have measured: options that exclude each other refused, files read, the plan carried out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...manifests.errors import UsageError
from ...manifests.progress import Progress
from ...manifests.schema import Model
from ..backends.base import Backend
from ..corpus import Room
from ..language import Language
from ..source import PackSource, Source
from . import picture
from .calling import Examination
from .evaluation import Evaluation, Evaluator, Plan, Subject
from .structure import token_classes
from .toolcalls import read_cases
from .windows import WINDOW, Windows, read_text, read_tokens

LAYER_TOKENS = 2048
LONGEST_ANSWER = 256


@dataclass(frozen=True)
class Asked:
    """The options; None where a default is to be taken. That of `layer_tokens` is 0, LAYER_TOKENS if drawn.

    `experts_per_token` are the packs' K, each with every pack; none stands for the model's own. `as_document` says
    that figures which only a document shows are wanted. Raises UsageError for options that contradict each other or
    that nothing would come of, and for a picture that cannot be drawn.
    """

    text: Path | None = None
    tokens: Path | None = None
    tools: Path | None = None
    window: int | None = None
    limit: int | None = None
    max_tokens: int | None = None
    weights: bool = True
    layer_tokens: int | None = None
    picture: Path | None = None
    experts_per_token: tuple[int, ...] = ()
    reference_experts_per_token: int | None = None
    as_document: bool = False

    def __post_init__(self) -> None:
        if self.text is not None and self.tokens is not None:
            raise UsageError("--text and --tokens exclude each other; give one of them")
        if self.text is None and self.tokens is None and self.tools is None:
            raise UsageError("there is nothing to score: give --text FILE, --tokens FILE or --tools FILE")
        if self.layer_tokens is not None and self.layer_tokens < 0:
            raise UsageError(f"{self.layer_tokens} tokens for each layer's divergence; give 0 for none, or more")
        for idle, sentence in self._idle():
            if idle:
                raise UsageError(sentence)
        if self.picture is not None:
            picture.check(self.picture)

    def _idle(self) -> Iterator[tuple[bool, str]]:
        """Of each option that may be without effect, whether it is, and the sentence about it."""
        predicted = self.text is not None or self.tokens is not None
        drawn, layers = self.picture is not None, bool(self.layer_tokens)
        empty = drawn and not self.weights and not (predicted and self.layer_tokens != 0)
        yield self.window is not None and self.text is None, "--window cuts --text, which is not given; leave it out"
        yield self.limit is not None and not predicted, "--limit is for --text or --tokens; give one, or leave it out"
        yield self.max_tokens is not None and self.tools is None, "-n is for --tools, which is not given; leave it out"
        yield layers and not predicted, "--layer-tokens is for --text or --tokens; give one, or leave it out"
        yield layers and not (drawn or self.as_document), "only --json and --picture show --layer-tokens; add one"
        yield empty, "--picture would be empty: give --text or --tokens and some --layer-tokens, or omit --no-weights"

    def evaluate(
        self, reference: Source, sources: Sequence[PackSource], backend: Backend, room: Room, progress: Progress
    ) -> Evaluation:
        """Measure the packs against a reference. Raises what `plan`, Evaluator and reading do."""
        subjects = [Subject(source, k) for source in sources for k in self.experts_per_token or (None,)]
        evaluator = Evaluator(reference, subjects, backend, progress, self.reference_experts_per_token)
        return evaluator.evaluate(self.plan(Language.of(sources[0].pack), reference.model, room))

    def draw(self, evaluation: Evaluation) -> None:
        """Draw the picture that was asked for, if any. Raises StorageError if it cannot be written."""
        if self.picture is not None:
            picture.draw(evaluation, self.picture)

    def plan(self, language: Language, model: Model, room: Room) -> Plan:
        """Read the files. Raises UsageError for what they cannot give, see windows, toolcalls and calling."""
        context = model.max_position_embeddings
        windows = self._windows(language, context)
        cases = read_cases(self.tools) if self.tools else None
        by_default = LAYER_TOKENS if self.picture else 0
        return Plan(
            windows=windows,
            classes=token_classes(language.tokenizer, model.vocab_size) if windows else None,
            examination=Examination.of(cases, language, self._longest, context) if cases else None,
            weights=self.weights,
            layer_tokens=by_default if self.layer_tokens is None else self.layer_tokens,
            room=room,
        )

    @property
    def _longest(self) -> int:
        return LONGEST_ANSWER if self.max_tokens is None else self.max_tokens

    def _windows(self, language: Language, context: int) -> Windows | None:
        if self.tokens is not None:
            windows = read_tokens(self.tokens, limit=self.limit)
            windows.require_within(context, f"cut those of {self.tokens} to {context} or less")
        elif self.text is not None:
            window = WINDOW if self.window is None else self.window
            windows = read_text(self.text, language.tokenizer, window=window, limit=self.limit)
            windows.require_within(context)
        else:
            return None
        return windows
