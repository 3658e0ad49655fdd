"""Teacher-forced scoring: two models over the same tokens, their hidden states kept, their logits never."""

from dataclasses import dataclass

from ...manifests.progress import Task
from ..corpus import Room, Stream
from ..sweep import Sweep
from .divergence import Positions, blocks, compare
from .windows import Windows


@dataclass(frozen=True, eq=False)
class Passed:
    """A model, and a stream that has been through all its layers."""

    sweep: Sweep
    stream: Stream


def passed(sweep: Sweep, windows: Windows, room: Room, task: Task) -> Passed:
    """Take the windows through a model; `task` advances by one per layer."""
    stream = sweep.embed(windows.corpus, room)
    for layer in range(sweep.model.num_layers):
        sweep.advance(layer, stream)
        task.advance(1)
    return Passed(sweep, stream)


def compare_streams(reference: Passed, other: Passed, windows: Windows) -> Positions:
    """Compare what both models predict at every scored position; logits are made for a block of them at a time."""
    rows, tokens = windows.rows(), windows.corpus.tokens
    parts = (rows[part] for part in blocks(len(rows), reference.sweep.model.vocab_size))
    return Positions.joined(
        compare(
            reference.sweep.logits_of(reference.stream.rows[part]),
            other.sweep.logits_of(other.stream.rows[part]),
            tokens[part + 1],
        )
        for part in parts
    )
