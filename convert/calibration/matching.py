"""Whether a calibration is one for what is to be packed."""

from collections.abc import Iterable

from ...manifests import schema
from ...manifests.errors import UsageError
from ..tensors import Source
from .file import CalibrationFile
from .identity import model_digest, tokenizer_digest
from .statistics import CALIBRATED


def require_calibration(calibration: CalibrationFile | None, source: Source, methods: Iterable[str]) -> None:
    """Raise UsageError unless there is a calibration of this very model if a method needs one, and none otherwise."""
    needed = [method for method in methods if method in CALIBRATED]
    if calibration is None:
        if needed:
            raise UsageError(
                f"{needed[0]} needs a calibration: make one with moe-pack calibrate, and give it as --calibration"
            )
        return
    if not needed:
        raise UsageError(
            f"--calibration is given, but no matrix is quantized by a method that uses one; there are"
            f" {' and '.join(CALIBRATED)}"
        )
    require_same(calibration, source)


def recorded(calibration: CalibrationFile) -> schema.Calibration:
    """What a manifest says of a calibration."""
    facts = calibration.facts
    return schema.Calibration(calibration.digest, facts.text.digest, facts.model.digest)


def require_same(calibration: CalibrationFile, source: Source) -> None:
    """Raise UsageError unless a calibration is of this very model, files and tokenizer."""
    described, where = calibration.facts.model, source.checkpoint.origin.directory
    if described.digest != model_digest(source.checkpoint, source.model):
        raise UsageError(
            f"{calibration.path} is the calibration of another model than {where}, or of the same in other files;"
            " calibrate this one"
        )
    if described.tokenizer_digest != tokenizer_digest(source.checkpoint):
        raise UsageError(f"{calibration.path} was made with another tokenizer than {where} has now; calibrate it again")
