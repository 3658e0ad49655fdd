"""The trunk's inner agreement: aligned tensors, and quantized matrices whose three parts fit their format."""

from collections.abc import Mapping

from ..manifests.errors import CorruptInputError, UnsupportedError
from ..manifests.rules import AFFINE_PARTS
from .formats import AffineFormat, Format, parse
from .tensorfile import TRUNK_DTYPES, TensorEntry, TensorFile
from .tensorheader import DTYPE_BITS

SCALE_DTYPES = ("BF16", "F16", "F32")


def parse_format(name: str, file: str) -> Format:
    """The format called `name`. Raises UnsupportedError that names `file` for any other than the known ones."""
    try:
        return parse(name)
    except ValueError as error:
        raise UnsupportedError(f"{file}: {error} (F1)") from error


def _trunk_format(name: str, file: str) -> AffineFormat:
    format_ = parse_format(name, file)
    if not isinstance(format_, AffineFormat):
        raise UnsupportedError(f"{file}: {name} is a format of experts, not of the trunk (F1)")
    return format_


def check_trunk(trunk: TensorFile, formats: Mapping[str, str]) -> None:
    """Raise CorruptInputError unless every tensor is aligned and readable, and `formats` describes what is there."""
    for entry in trunk.entries.values():
        if entry.dtype not in TRUNK_DTYPES:
            raise CorruptInputError(f"{trunk.path}: {entry.name!r} is {entry.dtype}, which no trunk holds (T1)")
        if entry.offset * 8 % DTYPE_BITS[entry.dtype]:
            raise CorruptInputError(f"{trunk.path}: {entry.name!r} at byte {entry.offset} is not aligned (T2)")
    for stem, name in formats.items():
        _check_matrix(trunk, stem, _trunk_format(name, str(trunk.path)))


def _check_matrix(trunk: TensorFile, stem: str, format_: AffineFormat) -> None:
    parts = [trunk.entries.get(f"{stem}.{role}") for role in AFFINE_PARTS]
    weight, scales, biases = parts
    if not (weight and scales and biases and _fit(weight, scales, biases, format_)):
        raise CorruptInputError(f"{trunk.path}: {stem!r} is not a whole {format_.name} matrix (T3)")


def _fit(weight: TensorEntry, scales: TensorEntry, biases: TensorEntry, format_: AffineFormat) -> bool:
    if weight.dtype != "U32" or scales.dtype not in SCALE_DTYPES or scales.dtype != biases.dtype:
        return False
    if len(weight.shape) != 2 or len(scales.shape) != 2 or scales.shape != biases.shape:
        return False
    cols = scales.shape[1] * format_.group_size
    return weight.shape == (scales.shape[0], format_.words(cols))
