"""The calibration itself: the hidden states of a text go through layer after layer, each of which is observed once.

The forward pass belongs to runtime, which this room does not know: whoever joins the two gives a function that takes
the states through one layer.
"""

from collections.abc import Callable
from pathlib import Path

from threadpoolctl import threadpool_limits

from ...manifests.errors import CorruptInputError
from ...manifests.progress import Progress
from ...quantize.moments import Floats, accumulators
from ..checkpoint import Checkpoint
from ..sensitivities import Sensitivities
from .collector import Collector
from .identity import model_digest
from .plan import CalibrationPlan
from .workspace import Workspace

Advance = Callable[[int, Collector], None]  # take the states through a layer, observed
Measure = Callable[[], Sensitivities]


def calibrate(
    plan: CalibrationPlan,
    checkpoint: Checkpoint,
    target: Path,
    rows: Floats,
    advance: Advance,
    progress: Progress,
    measure: Measure | None = None,
) -> str:
    """Write the calibration file `target`, or finish what an interrupted run has left of it; the file's digest.

    `rows` float32 [tokens, hidden] are the states before layer 0; `advance` changes them in place. `measure` gives the
    sensitivities to store, if they are wanted, once all layers are finished. Raises UsageError if the target exists,
    StorageError if the disk fails or fills, CorruptInputError if an activation is not finite or the checkpoint changed
    meanwhile. After any other error, or a kill, the same call goes on at the next layer.
    """
    shape = plan.facts.shape
    with Workspace.open(target, plan) as workspace:
        workspace.restore(rows)
        collector = Collector(shape, plan.held_out, accumulators(plan.device), str(checkpoint.origin.directory))
        done = workspace.finished
        with (
            threadpool_limits(1, "blas"),  # more threads wait for each other, and would show in the last bits
            progress.task("calibrating", shape.layers, done, unit="layers") as task,
        ):
            for layer in range(done, shape.layers):
                task.note(f"layer {layer + 1}")
                with workspace.layer(layer) as sections:
                    collector.keep = sections.add
                    advance(layer, collector)
                    sections.add(collector.finish())
                workspace.keep(layer + 1, rows)
                task.advance(1)
        if model_digest(checkpoint, plan.source.model) != plan.facts.model.digest:
            raise CorruptInputError(
                f"{checkpoint.origin.directory} changed while it was read; remove {workspace.partial} and start again"
            )
        return workspace.commit(measure() if measure is not None else None)
