"""The whole evaluation: one reference, and packs with any K, on the same text, tool cases and weights.

The models are swept one after another, layer by layer; of each only the last hidden states are kept. What comes out
is an `Evaluation`; how it looks is `report`'s and `picture`'s affair.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from ...manifests.progress import Progress
from ..backends.base import Backend
from ..corpus import Room
from ..source import PackSource, Source
from ..sweep import Sweep
from .calling import Answers, Examination
from .divergence import Positions
from .layers import layer_divergences
from .noise import Noise, measure
from .score import Passed, compare_streams, passed
from .structure import Structure, TokenClasses, structure
from .summary import Clusters, Estimate, Summary, ratio
from .vocabulary import require_same_model
from .windows import Windows


@dataclass(frozen=True, eq=False)
class Subject:
    """A pack to be judged, with K experts per token (None: the model's own)."""

    source: PackSource
    experts_per_token: int | None = None

    @property
    def bits_per_weight(self) -> float:
        """Bits per expert weight, without padding."""
        layouts, model = self.source.pack.records, self.source.model
        weights = 3 * model.hidden_size * model.moe_intermediate_size * len(layouts)
        return 8 * sum(layout.size for layout in layouts) / weights

    @property
    def trunk_formats(self) -> list[str]:
        """The formats that matrices of the trunk are quantized to."""
        return sorted(set(self.source.pack.manifest.trunk.formats.values()))


@dataclass(frozen=True, eq=False)
class Plan:
    """What to measure. `layer_tokens` is how many tokens each layer's own divergence is measured on; 0 for none."""

    windows: Windows | None
    classes: TokenClasses | None
    examination: Examination | None
    weights: bool
    layer_tokens: int
    room: Room


@dataclass(frozen=True, eq=False)
class Verdict:
    """What was found of one subject. `to_first` is its mean divergence over that of the first subject."""

    subject: Subject
    experts_per_token: int
    text: Summary | None = None
    to_first: Estimate | None = None
    structure: Structure | None = None
    answers: Answers | None = None


@dataclass(frozen=True, eq=False)
class WeightFacts:
    """Of one pack, whatever K: SQNR, and the divergence that each layer's experts cause alone."""

    noise: Noise | None = None
    layers: Sequence[Estimate] = ()


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Everything found; `weights` by pack."""

    reference: str
    reference_experts_per_token: int
    plan: Plan
    reference_answers: Answers | None
    verdicts: Sequence[Verdict]
    weights: Mapping[str, WeightFacts] = field(default_factory=dict)

    @property
    def names(self) -> dict[str, str]:
        """What to call each pack, by its path: its folder, and of those above it as many as tell it from the others."""
        paths = {where: Path(where).parts for where in self.weights}
        return {
            where: _distinct(parts, [other for other in paths.values() if other != parts])
            for where, parts in paths.items()
        }


class Evaluator:
    """Judges subjects against a reference. Raises UsageError unless all are the same model with the same tokens."""

    def __init__(
        self,
        reference: Source,
        subjects: Sequence[Subject],
        backend: Backend,
        progress: Progress,
        experts_per_token: int | None = None,
    ) -> None:
        for subject in subjects:
            require_same_model(reference, subject.source)
        self._reference, self._backend, self._progress = reference, backend, progress
        self._sweep = Sweep(reference, backend, experts_per_token=experts_per_token)
        self._subjects = [
            (subject, Sweep(subject.source, backend, experts_per_token=subject.experts_per_token))
            for subject in subjects
        ]

    def evaluate(self, plan: Plan) -> Evaluation:
        """Carry out a plan. Raises what reading weights raises."""
        whole = self._passed(self._sweep, "reference", plan)
        answers = self._answers(self._sweep, "reference", plan)
        verdicts = self._verdicts(whole, plan)
        packs = {subject.source.where: subject.source for subject, _ in self._subjects}
        weights = {where: self._weights(source, plan) for where, source in packs.items()}
        k = self._sweep.experts_per_token
        return Evaluation(self._reference.where, k, plan, answers, verdicts, weights)

    def _verdicts(self, reference: Passed | None, plan: Plan) -> list[Verdict]:
        found: list[Verdict] = []
        first: Positions | None = None
        for subject, sweep in self._subjects:
            title = f"{subject.source.where}, K {sweep.experts_per_token}"
            verdict = Verdict(subject, sweep.experts_per_token)
            if reference is not None and (other := self._passed(sweep, title, plan)) and plan.windows is not None:
                positions = compare_streams(reference, other, plan.windows)
                first = first or positions
                verdict = _with_text(verdict, positions, first, plan.windows.clusters(), plan.classes)
            found.append(replace(verdict, answers=self._answers(sweep, title, plan)))
        return found

    def _passed(self, sweep: Sweep, title: str, plan: Plan) -> Passed | None:
        if plan.windows is None:
            return None
        with self._progress.task(f"text, {title}", sweep.model.num_layers, unit="layers") as task:
            return passed(sweep, plan.windows, plan.room, task)

    def _answers(self, sweep: Sweep, title: str, plan: Plan) -> Answers | None:
        if plan.examination is None:
            return None
        return plan.examination.of_model(sweep, f"tool calls, {title}", plan.room, self._progress)

    def _weights(self, source: PackSource, plan: Plan) -> WeightFacts:
        noise = None
        layers: Sequence[Estimate] = ()
        count = source.model.num_layers
        if plan.weights:
            with self._progress.task(f"weights, {source.where}", count, unit="layers") as task:
                noise = measure(self._reference, source, self._backend, task)
        if plan.layer_tokens and plan.windows is not None:
            with self._progress.task(f"KL per layer, {source.where}", count, unit="layers") as task:
                layers = layer_divergences(
                    self._reference,
                    source,
                    plan.windows.sample(plan.layer_tokens),
                    self._backend,
                    experts_per_token=self._sweep.experts_per_token,
                    room=plan.room,
                    task=task,
                )
        return WeightFacts(noise, layers)


def _distinct(parts: Sequence[str], others: Sequence[Sequence[str]]) -> str:
    """The shortest end of a path that no other one has."""
    count = next(n for n in range(1, len(parts) + 2) if all(other[-n:] != parts[-n:] for other in others))
    return str(Path(*parts[-count:]))


def _with_text(
    verdict: Verdict, positions: Positions, first: Positions, clusters: Clusters, classes: TokenClasses | None
) -> Verdict:
    return replace(
        verdict,
        text=Summary.of(positions, clusters),
        to_first=ratio(positions.divergence, first.divergence, clusters) if first.divergence.any() else None,
        structure=None if classes is None else structure(positions, clusters, classes),
    )


def document(evaluation: Evaluation) -> dict[str, Any]:
    """Everything, for `--json`."""
    answers, windows = evaluation.reference_answers, evaluation.plan.windows
    return {
        "reference": {
            "source": evaluation.reference,
            "experts_per_token": evaluation.reference_experts_per_token,
            "tool_calls": answers.document() if answers else None,
        },
        "text": windows.document() if windows else None,
        "packs": [_verdict_document(verdict, answers) for verdict in evaluation.verdicts],
        "weights": {where: _weight_document(facts) for where, facts in evaluation.weights.items()},
    }


def _verdict_document(verdict: Verdict, reference: Answers | None) -> dict[str, Any]:
    pack = verdict.subject.source.pack
    return {
        "pack": verdict.subject.source.where,
        "recipe": msgspec.to_builtins(pack.manifest.recipe),
        "expert_bytes": pack.expert_bytes,
        "trunk_bytes": pack.trunk.size,
        "total_bytes": pack.total_bytes,
        "trunk_formats": verdict.subject.trunk_formats,
        "experts_per_token": verdict.experts_per_token,
        "bits_per_expert_weight": verdict.subject.bits_per_weight,
        "text": verdict.text.document() if verdict.text else None,
        "kl_to_first_pack": verdict.to_first.document() if verdict.to_first else None,
        "structural": verdict.structure.document() if verdict.structure else None,
        "tool_calls": verdict.answers.document(reference) if verdict.answers else None,
    }


def _weight_document(facts: WeightFacts) -> dict[str, Any]:
    return {
        "sqnr_db": facts.noise.document() if facts.noise else None,
        "kl_per_layer": [layer.document() for layer in facts.layers],
    }
