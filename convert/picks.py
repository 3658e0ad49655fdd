"""Which experts are to be looked at: named ones, or a sample drawn by a seed."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ..manifests.errors import UsageError
from ..manifests.sampling import drawn, parse_percent, share_of
from ..manifests.schema import Model

DEFAULT_SAMPLE = "32"
_NAMED = re.compile(r"(\d{1,5}):(\d{1,6})(?:-(\d{1,6}))?")


@dataclass(frozen=True)
class Picks:
    """Experts of each layer, in order, and in words how they were chosen."""

    experts: Mapping[int, list[int]]
    how: str

    @property
    def count(self) -> int:
        """How many there are."""
        return sum(map(len, self.experts.values()))


def pick(model: Model, experts: str | None, sample: str | None, seed: int | None) -> Picks:
    """The experts named as "12:345,13:0-7" (layer:expert), or a sample of so many or of so many percent, such as 1%.

    Raises UsageError for both at once, for text that is neither, and for an expert that the model does not have.
    """
    if experts is None:
        return _sampled(model, sample or DEFAULT_SAMPLE, seed or 0)
    if sample is not None or seed is not None:
        raise UsageError("--experts names what a sample would draw; leave --sample and --seed out")
    found: dict[int, set[int]] = {}
    for text in experts.split(","):
        layer, wanted = _named(text.strip(), model)
        found.setdefault(layer, set()).update(wanted)
    return Picks({layer: sorted(found[layer]) for layer in sorted(found)}, "as named")


def _named(text: str, model: Model) -> tuple[int, range]:
    match = _NAMED.fullmatch(text)
    if match is None:
        raise UsageError(f"{text!r} names no expert; write layer:expert, such as 12:345, or 12:0-7 for several")
    layer, first, last = int(match[1]), int(match[2]), int(match[3] or match[2])
    if layer >= model.num_layers or last >= model.num_experts or last < first:
        raise UsageError(
            f"there is no {text}; the model has layers 0 to {model.num_layers - 1} of experts 0 to"
            f" {model.num_experts - 1}"
        )
    return layer, range(first, last + 1)


def _sampled(model: Model, sample: str, seed: int) -> Picks:
    total = model.num_layers * model.num_experts
    if sample.isascii() and sample.isdigit() and int(sample[:12]) > 0:
        wanted = min(int(sample[:12]), total)
    else:
        try:
            wanted = share_of(total, parse_percent(sample))
        except UsageError:
            raise UsageError(f"{sample!r} is no sample; write a number of experts, or a share such as 1%") from None
    found: dict[int, list[int]] = {}
    for index in drawn(total, wanted, seed):
        found.setdefault(index // model.num_experts, []).append(index % model.num_experts)
    return Picks(found, f"{wanted} drawn by seed {seed}")
