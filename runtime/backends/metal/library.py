"""Which sources and macros a pack needs, and the pipelines made of them, each once.

A build is one .metal file specialised by macros. Macros that are shapes bear the names of the manifest's schema in
capitals; those that are formats name a type of kernels/metal/codes.h. Knows nothing of when kernels run.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from ....layout.formats import AffineFormat, Format, GridFormat
from ....layout.record import PROJECTIONS, RecordLayout
from ....manifests import schema
from ....manifests.errors import UnsupportedError
from .device import LANES, Device, Pipeline
from .launches import MATMUL_THREADS, RULE_THREADS, THREADS
from .sources import library_source

Macros: TypeAlias = Mapping[str, str | int]

PARTS = ("weight", "scales", "biases", "grids")
SCALARS = {"bf16": "Bf16", "f16": "F16", "f32": "F32"}
KERNELS: Mapping[str, Mapping[str, int]] = {  # of each file, with the threads of a threadgroup
    "matvec.metal": {"matvec": THREADS, "matvec_add": THREADS, "matvec_gated": THREADS},
    "matmul.metal": dict.fromkeys(("matmul", "matmul_add", "matmul_gather", "matmul_scatter"), MATMUL_THREADS),
    "embedding.metal": {"embed": LANES},
    "experts.metal": {"experts_gated": THREADS, "experts_down": THREADS},
    "combine.metal": dict.fromkeys(("combine", "add_gated", "swiglu", "add", "clear"), THREADS),
    "norms.metal": {"rms_norm": THREADS, "gated_rms_norm": THREADS},
    "router.metal": {"route": LANES},
    "attention.metal": {"attention_prepare": THREADS, "attention": THREADS, "attention_join": THREADS},
    "delta.metal": {"delta_convolve": THREADS, "delta_norm": THREADS, "delta_rule": RULE_THREADS},
    "sampling.metal": {"top_k": THREADS},
}


@dataclass(frozen=True)
class Build:
    """A file with its macros, in a fixed order."""

    file: str
    macros: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, file: str, macros: Macros) -> "Build":
        """The build of `file` with `macros`."""
        return cls(file, tuple((name, str(value)) for name, value in macros.items()))

    @property
    def source(self) -> str:
        """What the compiler is given."""
        return library_source(self.file, dict(self.macros))


class Kernels:
    """All pipelines of a device. A build is compiled when it is first asked for, and never again."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._built: dict[Build, dict[str, Pipeline]] = {}

    def of(self, build: Build) -> Mapping[str, Pipeline]:
        """The build's kernels by name. Raises UnsupportedError if the compiler or the device refuses one."""
        if build not in self._built:
            library = self._device.library(build.source, build.file)
            kernels = KERNELS[build.file].items()
            self._built[build] = {name: library.pipeline(name, threads) for name, threads in kernels}
        return self._built[build]


def products(type: str) -> Build:
    """One token's products with matrices of a type."""
    return Build.of("matvec.metal", {"MATRIX": type})


def many_products(type: str, token_blocks: int) -> Build:
    """Many tokens' products with them, `token_blocks` times eight tokens to a threadgroup."""
    return Build.of("matmul.metal", {"MATRIX": type, "TOKEN_BLOCKS": token_blocks})


def embedding(type: str) -> Build:
    """Rows of a table."""
    return Build.of("embedding.metal", {"MATRIX": type})


def experts(layout: RecordLayout) -> Build:
    """One token's experts of a layer with such records."""
    return Build.of("experts.metal", record_macros(layout))


def router(model: schema.Model, experts_per_token: int) -> Build:
    """The choice of `experts_per_token` experts. Raises UnsupportedError if a SIMD group lacks the lanes."""
    if experts_per_token > LANES:
        raise UnsupportedError(f"the Metal router chooses at most {LANES} experts per token, not {experts_per_token}")
    return Build.of("router.metal", {"NUM_EXPERTS": model.num_experts, "NUM_EXPERTS_PER_TOK": experts_per_token})


def attention(shape: schema.FullAttention) -> Build:
    """A full-attention layer's kernels."""
    sizes = (shape.num_heads, shape.num_kv_heads, shape.head_dim, shape.rotary_dims)
    names = ("NUM_HEADS", "NUM_KV_HEADS", "HEAD_DIM", "ROTARY_DIMS")
    return Build.of("attention.metal", dict(zip(names, sizes, strict=True)))


def delta(shape: schema.LinearAttention) -> Build:
    """A Gated DeltaNet layer's kernels."""
    heads = (shape.num_key_heads, shape.num_value_heads, shape.key_head_dim, shape.value_head_dim)
    names = ("NUM_KEY_HEADS", "NUM_VALUE_HEADS", "KEY_HEAD_DIM", "VALUE_HEAD_DIM", "CONV_KERNEL")
    return Build.of("delta.metal", dict(zip(names, (*heads, shape.conv_kernel), strict=True)))


def plain(file: str) -> Build:
    """A file that has no macros: "combine.metal", "norms.metal" or "sampling.metal"."""
    return Build(file)


def matrix_type(format: Format | None, scalar: str) -> str:
    """The kernels' name for a format. `scalar`, "bf16", "f16" or "f32", is what floats consist of: the matrix's own,

    or the scales and biases of an affine one.
    """
    if format is None:
        return f"Floats<{SCALARS[scalar]}>"
    if isinstance(format, AffineFormat):
        return f"Affine<{format.bits}, {format.group_size}, {SCALARS[scalar]}>"
    return _grid_type(format)


def record_macros(layout: RecordLayout) -> Macros:
    """What experts.metal has to know of a layer's records."""
    shape = layout.shape
    macros: dict[str, str | int] = {"HIDDEN_SIZE": shape.hidden, "MOE_INTERMEDIATE_SIZE": shape.intermediate}
    places = {component.name: component.offset for component in layout.components}
    for projection in PROJECTIONS:
        name = projection.upper()
        macros[name] = matrix_type(layout.formats[projection], "bf16")
        macros |= {f"{name}_{part.upper()}": places.get(f"{projection}.{part}", 0) for part in PARTS}
    return macros


def _grid_type(format: GridFormat) -> str:
    kind = "Steps" if format.family == "affine" else "Books"
    return f"{kind}<{format.bits}, {format.group_size}>"
