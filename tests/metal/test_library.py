"""What a pack needs of kernels: the builds of the 397B model's shapes, and what is refused."""

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import pytest
from metal.builds import called, every_build
from wide import WIDE

from moepack.layout.formats import FORMATS, Format, parse
from moepack.layout.record import PROJECTIONS, ExpertShape, RecordLayout
from moepack.manifests.errors import UnsupportedError
from moepack.runtime.backends.metal import library
from moepack.runtime.backends.metal.device import Device
from moepack.runtime.backends.metal.library import KERNELS, Build, Kernels

SHAPE = ExpertShape(WIDE.hidden_size, WIDE.moe_intermediate_size)
LAYOUT = RecordLayout.of(SHAPE, dict.fromkeys(PROJECTIONS, parse("book2-g8")))
TRUNK = library.matrix_type(parse("affine4-g64"), "bf16")


@dataclass(frozen=True)
class Case:
    name: str
    build: Callable[[], Build]


BUILDS = [
    Case("matvec", lambda: library.products(TRUNK)),
    Case("matmul", lambda: library.many_products(TRUNK, 4)),
    Case("embedding", lambda: library.embedding(TRUNK)),
    Case("experts", lambda: library.experts(LAYOUT)),
    Case("router", lambda: library.router(WIDE, WIDE.num_experts_per_tok)),
    Case("attention", lambda: library.attention(WIDE.full_attention)),
    Case("delta", lambda: library.delta(WIDE.linear_attention)),
    *(Case(file, lambda file=file: library.plain(file)) for file in ("combine.metal", "norms.metal", "sampling.metal")),
]


@pytest.mark.parametrize("case", BUILDS, ids=lambda case: case.name)
def test_every_pipeline_of_the_397b_model_s_shapes(gpu: ModuleType | None, case: Case) -> None:
    build = case.build()
    pipelines = Kernels(Device()).of(build)
    assert {name: pipeline.threads for name, pipeline in pipelines.items()} == dict(KERNELS[build.file])


def test_these_are_all_files() -> None:
    assert {case.build().file for case in BUILDS} == set(KERNELS)


def test_the_survey_of_all_builds_leaves_none_out() -> None:
    """`make pipelines` goes through these: each once, with every format, and the builds of above among them."""
    builds = list(every_build())
    assert len(set(builds)) == len(builds) == len(set(map(called, builds)))
    assert {case.build() for case in BUILDS} < set(builds)
    records = {build.macros for build in builds if build.file == "experts.metal"}
    assert {library.matrix_type(format_, "bf16") for format_ in FORMATS} <= {dict(macros)["UP"] for macros in records}


def test_macros_of_a_record_are_its_layout() -> None:
    macros = library.record_macros(LAYOUT)
    assert (macros["GATE"], macros["HIDDEN_SIZE"]) == ("Books<2, 8>", WIDE.hidden_size)
    for projection in PROJECTIONS:
        for part in ("weight", "grids", "scales"):
            assert macros[f"{projection}_{part}".upper()] == LAYOUT[f"{projection}.{part}"].offset
        assert macros[f"{projection}_biases".upper()] == 0


@pytest.mark.parametrize("format", [None, *FORMATS])
def test_formats_have_different_types(format: Format | None) -> None:
    others = {library.matrix_type(other, "bf16") for other in (None, *FORMATS) if other != format}
    assert library.matrix_type(format, "bf16") not in others


def test_more_experts_per_token_than_lanes_are_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"^the Metal router chooses at most 32 experts per token, not 33$"):
        library.router(WIDE, 33)
