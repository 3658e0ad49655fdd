"""Which sources and macros a pack needs, and the pipelines made of them, each once.

A build is one .metal file specialised by macros. Macros that are shapes bear the names of the manifest's schema in
capitals; those that are formats name a type of kernels/metal/codes.h.
"""

from collections.abc import Mapping
from typing import TypeAlias

from ....layout.formats import AffineFormat, Format, GridFormat
from ....layout.record import PROJECTIONS, RecordLayout

Macros: TypeAlias = Mapping[str, str]

PARTS = ("weight", "scales", "biases", "grids")
SCALARS = {"bf16": "Bf16", "f16": "F16", "f32": "F32"}


def matrix_type(format: Format | None, scalar: str) -> str:
    """The kernels' name for a format. `scalar` is what the matrix, or an affine matrix's scales and biases, consist of:

    "bf16", "f16" or "f32".
    """
    if format is None:
        return f"Floats<{SCALARS[scalar]}>"
    if isinstance(format, AffineFormat):
        return f"Affine<{format.bits}, {format.group_size}, {SCALARS[scalar]}>"
    return _grid_type(format)


def _grid_type(format: GridFormat) -> str:
    kind = "Steps" if format.family == "affine" else "Books"
    return f"{kind}<{format.bits}, {format.group_size}>"


def record_macros(layout: RecordLayout) -> Macros:
    """What experts.metal has to know of a layer's records."""
    shape = layout.shape
    macros = {"HIDDEN_SIZE": str(shape.hidden), "MOE_INTERMEDIATE_SIZE": str(shape.intermediate)}
    places = {component.name: component.offset for component in layout.components}
    for projection in PROJECTIONS:
        name = projection.upper()
        macros[name] = matrix_type(layout.formats[projection], "bf16")
        macros |= {f"{name}_{part.upper()}": str(places.get(f"{projection}.{part}", 0)) for part in PARTS}
    return macros
