"""Whether a calibration is one for what is to be packed."""

from collections.abc import Iterable

from ...manifests import schema
from ...manifests.errors import UsageError
from ...quantize.methods import CALIBRATED_METHODS
from ..tensors import Source
from .file import CalibrationFile
from .identity import model_digest, tokenizer_digest


def require_calibration(calibration: CalibrationFile | None, methods: Iterable[str]) -> None:
    """Raise UsageError unless there is a calibration if a method needs one, and none otherwise."""
    needed = [method for method in methods if method in CALIBRATED_METHODS]
    if calibration is None:
        if needed:
            raise _missing(needed[0])
        return
    if not needed:
        raise UsageError(
            f"--calibration is given, but no matrix is quantized by a method that uses one; there are"
            f" {' and '.join(CALIBRATED_METHODS)}"
        )


def require_for_choosing(calibration: CalibrationFile | None, method: str) -> None:
    """Raise UsageError unless a recipe of `method` can be chosen with this: before all formats are weighed for it."""
    if calibration is None:
        if method in CALIBRATED_METHODS:
            raise _missing(method)
    elif method not in CALIBRATED_METHODS and calibration.sensitivities is None:
        raise UsageError(
            f"{calibration.path} has no sensitivities; calibrate with --sensitivities, or leave it out: {method} uses"
            " nothing else of it"
        )


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


def _missing(method: str) -> UsageError:
    return UsageError(f"{method} needs a calibration: make one with moe-pack calibrate, and give it as --calibration")
