"""What each layer's experts cost alone: the divergence of a model that is the reference but for one layer's experts.

The stream before layer l is the reference's own, so each variant computes from layer l on: half a pass per layer.
"""

from ...manifests.progress import Task
from ..backends.base import Backend
from ..corpus import Room
from ..source import ExpertsFrom, Source
from ..sweep import Sweep
from .score import Passed, compare_streams
from .summary import Estimate, estimate
from .windows import Windows


def layer_divergences(
    reference: Source,
    other: Source,
    windows: Windows,
    backend: Backend,
    *,
    experts_per_token: int | None,
    room: Room,
    task: Task,
) -> list[Estimate]:
    """Mean KL(reference || reference with layer l's experts from `other`) for each l; `task` advances per layer."""
    own = Sweep(reference, backend, experts_per_token=experts_per_token)
    mixed = Sweep(ExpertsFrom(reference, other), backend, experts_per_token=experts_per_token)
    whole = Passed(own, own.run(own.embed(windows.corpus, room)))
    before = own.embed(windows.corpus, room)
    found = []
    for layer in range(reference.model.num_layers):
        variant = before.copy()
        mixed.advance(layer, variant)
        positions = compare_streams(whole, Passed(own, own.run(variant, layer + 1)), windows)
        found.append(estimate(positions.divergence, windows.clusters()))
        own.advance(layer, before)
        task.advance(1)
    return found
