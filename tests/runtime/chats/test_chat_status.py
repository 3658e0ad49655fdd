"""What a chat says of itself in little room."""

from moepack.runtime.chat import status
from moepack.runtime.chat.partner import Figures
from moepack.runtime.generate import Result


def figures(steps: int, records: int, context: int) -> Figures:
    result = Result("", (), "stop", None, 1, 1.0, steps, 1.0 if steps else 0.0)
    return Figures(result, 1, context - 1, context, 0, records, 0)


def test_the_line_below_the_prompt() -> None:
    assert status.short(figures(20, 7, 4096)) == "context 4095/4096; 20.0 tokens/s; 0% in memory"
    assert status.short(figures(0, 0, 4096)) == "context 4095/4096; n/a in memory"


def test_the_line_below_the_prompt_fits_narrow_terminals() -> None:
    assert len(status.short(figures(9999, 1, 10_000_000))) <= 60
