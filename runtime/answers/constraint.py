"""Which tokens may come next, so that an answer keeps to a grammar: llguidance, over the pack's own vocabulary.

Promises: an end token may come only where the grammar may end, and no token that has no text, or a special one of the
tokenizer's that is not an answer's markup. Such tokens as <tool_call> are the text they spell, spelled at once or not.
An answer that a token limit cuts is cut here too. llguidance comes with the extra "server".
"""

from collections import OrderedDict
from typing import Any

import numpy as np

from ...manifests import digest
from ...manifests.errors import UsageError
from ..sampling import Allowed
from ..tokenizer import Tokenizer
from .dialect import MARKUP, Calls, Thinking
from .grammar import LOOSE, TIGHT, Form, grammar, json_rule

KEPT = 64  # compiled grammars


class Grammars:
    """Compiles what forms ask for, over one tokenizer, and keeps what was compiled last."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._library = library()
        if not tokenizer.end_tokens:
            raise UsageError("an answer can be held to a grammar only if a token ends it, and this pack names none")
        self._ends = sorted(tokenizer.end_tokens)
        self._size = tokenizer.vocab_size
        words = _Words(self._library, tokenizer, self._ends[0])
        self._words = self._library.LLTokenizer(words, eos_token=self._ends)
        self._compiled: OrderedDict[bytes, Any] = OrderedDict()

    def constraint(self, form: Form, calls: Calls | None, thinking: Thinking) -> "Constraint | None":
        """What holds one answer to its form, None where any will do.

        Raises UsageError for a schema that cannot be held to, naming tool and keyword.
        """
        text = grammar(form, calls, thinking)
        if text is None:
            return None
        key = digest.of_bytes(text.encode("utf-8", "surrogatepass"))
        if key not in self._compiled:
            self._check(form, calls)
            self._compiled[key] = self._compile(text)
            if len(self._compiled) > KEPT:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(key)
        return Constraint(self._compiled[key].deep_copy(), self._size, self._ends)

    def _check(self, form: Form, calls: Calls | None) -> None:
        """Each schema by itself, so that a complaint can name whose it is."""
        if form.response is not None and not form.required:
            self._check_schema(form.response, LOOSE, "the response's schema")
        for offer in form.offered():
            if offer.strict and calls == "json":
                self._check_schema(offer.parameters, TIGHT, f"the parameters of the tool {offer.name!r:.60}")

    def _check_schema(self, schema: Any, spacing: dict[str, Any], whose: str) -> None:
        if fault := self._fault(f"%llguidance {{}}\nstart: {json_rule(schema, spacing)}"):
            raise UsageError(f"{whose} cannot be held to: {fault}")

    def _compile(self, text: str) -> Any:
        if fault := self._fault(text):
            raise UsageError(f"what was asked for cannot be held to: {fault}")
        compiled = self._library.LLMatcher(self._words, text, log_level=0)
        Constraint(compiled.deep_copy(), self._size, self._ends).allowed()  # some grammars show only now what they lack
        return compiled

    def _fault(self, text: str) -> str | None:
        wrong, said = self._library.LLMatcher.validate_grammar_with_warnings(text, self._words)
        return _sentence(said[0]) if wrong else None


class Constraint:
    """One answer's. Ask what is `allowed`, then `take` the token that came."""

    def __init__(self, matcher: Any, size: int, ends: list[int]) -> None:
        self._matcher, self._size, self._ends = matcher, size, ends

    def copy(self) -> "Constraint":
        """Another answer's, that goes on from here."""
        return Constraint(self._matcher.deep_copy(), self._size, self._ends)

    def allowed(self) -> Allowed:
        """Which tokens may come next, bool [V]; at least one."""
        mask = np.zeros(self._size, np.bool_)
        if self._matcher.is_stopped():
            mask[self._ends] = True
            return mask
        bits = np.unpackbits(np.frombuffer(self._matcher.compute_bitmask(), np.uint8), bitorder="little")
        known = min(self._size, len(bits))
        mask[:known] = bits[:known]
        self._require_sound()
        return mask

    def take(self, token: int) -> None:
        """A token that came, an end token included."""
        if not self._matcher.is_stopped():
            self._matcher.consume_token(token)
            self._require_sound()

    def _require_sound(self) -> None:
        if self._matcher.is_error():
            said = self._matcher.get_error().partition("\n")[0]
            raise UsageError(f"the answer can no longer be held to its form: {said:.200}")


class _Words:
    """The vocabulary as llguidance takes it: what every token spells, special ones aside, and how a text is cut."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, library: Any, tokenizer: Tokenizer, end: int) -> None:
        spelled = library.LLTokenizer(tokenizer.json())
        self.tokens = [spelled.decode_bytes([token]) for token in range(spelled.vocab_size)]
        self.special_token_ids = [token for token, text in tokenizer.special.items() if text not in MARKUP]
        self.eos_token_id = end
        self._tokenizer = tokenizer

    def __call__(self, text: bytes | str) -> list[int]:
        plain = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
        return self._tokenizer.encode(plain, add_special_tokens=False)


def _sentence(said: str) -> str:
    """A complaint of llguidance's in one line: a pattern with what is wrong in it, and no advice on its own options."""
    lines = said.rpartition("failed to compile JSON schema: ")[2].splitlines() or [said]
    why = next((line.removeprefix("error: ") for line in lines[1:] if line.startswith("error: ")), None)
    if why is None:
        return lines[0].partition(". Enable '")[0]
    return f"{lines[0]} {lines[1].strip():.100}: {why}"


def library() -> Any:
    """llguidance. Raises UsageError without it."""
    try:
        import llguidance
    except ImportError as error:
        remedy = "install it with `pip install '.[server]'`"
        raise UsageError(f"holding an answer to a grammar needs llguidance; {remedy}") from error
    return llguidance
