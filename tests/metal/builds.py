"""Every build of a kernel file that a pack can ask for: all types of matrices, and the shapes of two models.

Shapes are macros of the files that experts, router, attention and Gated DeltaNet have; packs may have others.
"""

from collections.abc import Iterator

from metal.stored import KINDS
from wide import WIDE

from moepack.convert.checkpoint import Checkpoint
from moepack.convert.plan import understand
from moepack.convert.shipped import CHECKPOINT
from moepack.layout.formats import FORMATS, Format, parse
from moepack.layout.record import PROJECTIONS, ExpertShape, RecordLayout
from moepack.manifests import schema
from moepack.runtime.backends.metal import library
from moepack.runtime.backends.metal.library import Build

TOKEN_BLOCKS = (1, 4)  # what the backend picks from
MIXED = ("book2-g8", "affine4-g64", "affine3-g32s")  # of gate, up and down


def every_build() -> Iterator[Build]:
    """Each once."""
    models = (WIDE, demo_model())
    yield from (library.plain(file) for file in ("combine.metal", "norms.metal", "sampling.metal"))
    for type_ in dict.fromkeys(library.matrix_type(*kind) for kind in KINDS):
        yield library.products(type_)
        yield from (library.many_products(type_, blocks) for blocks in TOKEN_BLOCKS)
        yield library.embedding(type_)
    for model in models:
        yield library.router(model, model.num_experts_per_tok)
        yield library.attention(model.full_attention)
        yield library.delta(model.linear_attention)
        yield from (library.experts(layout) for layout in layouts(model))


def layouts(model: schema.Model) -> Iterator[RecordLayout]:
    """A model's records: one format for all projections, each that its widths allow, and one that differs in each."""
    shape = ExpertShape(model.hidden_size, model.moe_intermediate_size)
    mixed: tuple[Format, ...] = tuple(map(parse, MIXED))
    for formats in (*((format_,) * len(PROJECTIONS) for format_ in FORMATS), mixed):
        if all(format_.fits(cols) for format_ in formats for cols in (shape.hidden, shape.intermediate)):
            yield RecordLayout.of(shape, dict(zip(PROJECTIONS, formats, strict=True)))


def demo_model() -> schema.Model:
    """The model that is shipped."""
    with Checkpoint.open(str(CHECKPOINT)) as checkpoint:
        return understand(checkpoint).model


def called(build: Build) -> str:
    """A build in a few words: its file, and what tells it from the others of that file."""
    places = tuple(f"{projection.upper()}_" for projection in PROJECTIONS)
    telling = [value for name, value in build.macros if not name.startswith(places)]
    return " ".join([build.file.removesuffix(".metal"), *telling])
