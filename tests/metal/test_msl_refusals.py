"""What Metal refuses is refused here too, in one sentence that names the line; and what it accepts is not."""

from pathlib import Path

import pytest
from metal.msl.program import CompileError, Mode, Program

HEAD = "#include <metal_stdlib>\nusing namespace metal;\n"
KERNEL = "kernel void k(device float* y [[buffer(0)]]) "


def sections(name: str) -> dict[str, str]:
    """Of a file in `language`: sources by what stands behind the four slashes above them."""
    _, *parts = (Path(__file__).parent / "language" / name).read_text().split("\n//// ")
    return dict(part.split("\n", 1) for part in parts)


REFUSED, ACCEPTED = sections("refused.metal"), sections("accepted.metal")


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize(("title", "source"), REFUSED.items(), ids=[title.split(" |")[0] for title in REFUSED])
def test_what_metal_refuses_is_refused_at_its_line(title: str, source: str, mode: Mode) -> None:
    lines = (HEAD + source).splitlines()
    [blamed] = [number for number, line in enumerate(lines, 1) if "//!" in line]
    with pytest.raises(CompileError) as caught:
        Program.compile('#line 1 "file.metal"\n' + HEAD + source, {}, mode)
    assert title.split(" | ")[1] in caught.value.message
    assert (caught.value.file, caught.value.line) == ("file.metal", blamed)
    assert str(caught.value).startswith(f"file.metal:{blamed}: ")
    assert caught.value.text == lines[blamed - 1].strip()


@pytest.mark.parametrize("source", ACCEPTED.values(), ids=ACCEPTED)
def test_what_only_looks_forbidden_is_not_refused(source: str) -> None:
    assert list(Program.compile(HEAD + source, {}, Mode.CHECKED).kernels) == ["k"]


def test_a_line_of_an_included_file_is_named_by_that_file() -> None:
    included = '#line 1 "one.h"\nstatic float f(float x) {\n  return x +;\n}\n'
    with pytest.raises(CompileError) as caught:
        Program.compile(f'{HEAD}{included}#line 2 "two.metal"\n{KERNEL}{{ y[0] = f(1.0f); }}', {}, Mode.FAST)
    assert (caught.value.file, caught.value.line, caught.value.text) == ("one.h", 2, "return x +;")


def test_messages_speak_of_metals_address_spaces() -> None:
    with pytest.raises(CompileError) as caught:
        Program.compile(KERNEL + "{ constant float* p = y; }", {}, Mode.FAST)
    assert "constant float *" in caught.value.message
    assert "device float *" in caught.value.message
    assert "address_space" not in caught.value.message


def test_a_struct_that_metal_would_copy_is_refused_with_advice() -> None:
    source = (
        "struct P { uint n; float s; };\nkernel void k(device float* y [[buffer(0)]], constant P& p [[buffer(1)]]) {\n"
    )
    with pytest.raises(CompileError, match="here its members are copied one by one") as caught:
        Program.compile(source + "  P copy = p;\n  y[0] = copy.s;\n}", {}, Mode.FAST)
    assert caught.value.line == 3
