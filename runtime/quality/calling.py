"""Tool calls of one model after another, on the same cases: answers, rates, and differences to the reference."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...manifests.errors import UsageError
from ...manifests.progress import Progress
from ..corpus import Room
from ..language import Language
from ..prompt import chat_tokens
from ..sweep import Sweep
from ..template import ChatTemplate
from ..tokenizer import Tokenizer
from .bootstrap import Difference, Outcomes, Rate, paired_difference
from .greedy import answers
from .toolcalls import ABSTENTION, CHECKS, Case, check_schemas, judge

NAMES = (*CHECKS, ABSTENTION)


@dataclass(frozen=True, eq=False)
class Examination:
    """Cases as prompts, ready to be asked."""

    cases: Sequence[Case]
    prompts: Sequence[Sequence[int]]
    language: Language
    longest: int

    @classmethod
    def of(cls, cases: Sequence[Case], language: Language, longest: int, context: int) -> "Examination":
        """Render the cases. Raises UsageError for a pack without template, a schema that is none, a case too long."""
        if language.template is None:
            raise UsageError("tool calls need a chat template, and this pack has none")
        check_schemas(cases)
        prompts = [_prompt(case, language.template, language.tokenizer) for case in cases]
        _require_room(cases, prompts, longest, context)
        return cls(cases, prompts, language, longest)

    def of_model(self, sweep: Sweep, title: str, room: Room, progress: Progress) -> "Answers":
        """Ask a model everything."""
        ends = self.language.tokenizer.end_tokens
        with progress.task(title, len(self.prompts), unit="tool cases") as task:
            given = answers(sweep, self.prompts, end_tokens=ends, longest=self.longest, task=task, room=room)
        texts = [self.language.tokenizer.decode(answer, special=True) for answer in given]
        judged = [judge(case, text) for case, text in zip(self.cases, texts, strict=True)]
        return Answers(tuple(texts), {name: _outcomes(judged, name) for name in NAMES})


@dataclass(frozen=True, eq=False)
class Answers:
    """What a model answered, and of each check its outcome in the cases that it applies to."""

    texts: tuple[str, ...]
    outcomes: Mapping[str, Outcomes]

    def rates(self) -> dict[str, Rate]:
        """The rate of each check that applies to a case."""
        return {name: Rate.of(outcomes) for name, outcomes in self.outcomes.items() if len(outcomes)}

    def differences(self, reference: "Answers") -> dict[str, Difference]:
        """Of each rate to the reference's."""
        return {name: paired_difference(self.outcomes[name], reference.outcomes[name]) for name in self.rates()}

    def document(self, reference: "Answers | None" = None) -> dict[str, Any]:
        """For `--json`."""
        found = {name: rate.document() for name, rate in self.rates().items()}
        if reference is None:
            return found
        differences = self.differences(reference)
        return {name: {**found[name], "to_reference": differences[name].document()} for name in found}


def _prompt(case: Case, template: ChatTemplate, tokenizer: Tokenizer) -> list[int]:
    try:
        return chat_tokens(case.chat, template, tokenizer)
    except UsageError as error:
        raise case.failure(error) from error


def _require_room(cases: Sequence[Case], prompts: Sequence[Sequence[int]], longest: int, context: int) -> None:
    size, case = max(zip(map(len, prompts), cases, strict=True), key=lambda pair: pair[0])
    if size >= context:
        fault = f"it has {size} tokens, which leave no room for an answer in the model's context of {context}"
        raise case.failure(UsageError(fault))
    if not 1 <= longest <= context - size:
        room = f"1 to {context - size}, what the longest case, {case.where}, leaves"
        raise UsageError(f"answers of {longest} tokens are outside {room}")


def _outcomes(judged: Sequence[Mapping[str, bool]], name: str) -> Outcomes:
    return np.array([case[name] for case in judged if name in case], np.bool_)
