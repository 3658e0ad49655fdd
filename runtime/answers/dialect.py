"""How a pack's model writes an answer: whether it thinks, and how it writes calls. Told from its own chat template.

"json" is Qwen's `<tool_call>\n{"name": ..., "arguments": {...}}\n</tool_call>`; "xml" that of Qwen3-Coder and Qwen3.5,
`<tool_call>\n<function=NAME>\n<parameter=KEY>\nVALUE\n</parameter>\n</function>\n</tool_call>`.
Knows no other dialect: a model of another one is read as plain text.
"""

from dataclasses import dataclass
from typing import Literal

OPEN, CLOSE = "<tool_call>", "</tool_call>"
THINK, THOUGHT = "<think>", "</think>"
FUNCTION, FUNCTION_END = "<function=", "</function>"
PARAMETER, PARAMETER_END = "<parameter=", "</parameter>"
MARKUP = frozenset({OPEN, CLOSE, THINK, THOUGHT})  # which a vocabulary may hold as special tokens

Calls = Literal["json", "xml"]
Thinking = Literal["never", "may", "begun"]  # "begun": the prompt ends inside of it


@dataclass(frozen=True)
class Dialect:
    """`calls`: how calls are written, None where the template has none. `thinks`: it writes <think>."""

    calls: Calls | None
    thinks: bool

    @classmethod
    def of(cls, source: str) -> "Dialect":
        """The dialect of a chat template's source."""
        xml = FUNCTION in source
        return cls("xml" if xml else "json" if OPEN in source else None, THINK in source)

    def thinking(self, prompt: str) -> Thinking:
        """Where an answer to a rendered prompt begins; a prompt that closed the thinking asks for none."""
        end = prompt.rstrip()
        if end.endswith(THINK):
            return "begun"
        return "may" if self.thinks and not end.endswith(THOUGHT) else "never"
