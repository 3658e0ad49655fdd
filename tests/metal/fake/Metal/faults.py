"""What goes wrong: assertions at the call that is wrong, reports of what is found while work runs, errors of Metal.

Metal's validation layer aborts the process; here the call raises `MetalAssertion`. What cannot be tied to a call (a
hazard, a fault of a kernel, a host that touches memory too early) becomes a `Report`, which tests have to look for.
"""

import threading
from dataclasses import dataclass
from typing import Any


class MetalAssertion(AssertionError):  # noqa: N818 (it is what Metal calls it)
    """Metal's API validation would abort here."""


def need(condition: object, sentence: str) -> None:
    """Metal requires `condition`."""
    if not condition:
        raise MetalAssertion(sentence)


@dataclass(frozen=True)
class Report:
    """One finding. `kind` is one of: hazard, kernel, host access, released memory, event, handler, encoding."""

    kind: str
    sentence: str

    def __str__(self) -> str:
        return self.sentence


class Reports:
    """The findings so far, from whichever thread."""

    def __init__(self) -> None:
        self._lock, self._all = threading.Lock(), list[Report]()

    def add(self, kind: str, sentence: str) -> None:
        report = Report(kind, sentence)
        with self._lock:
            if report not in self._all:
                self._all.append(report)

    def take(self) -> list[Report]:
        """The findings, which are then forgotten."""
        with self._lock:
            taken, self._all = self._all, []
        return taken


reports = Reports()


class CommandFailed(Exception):  # noqa: N818
    """A command buffer ends here, with this error."""

    def __init__(self, sentence: str, code: int) -> None:
        super().__init__(sentence)
        self.code = code


class NSError:
    """What a call returns, or a command buffer keeps, when something failed."""

    def __init__(self, domain: str, code: int, sentence: str, info: dict[str, Any] | None = None) -> None:
        self._domain, self._code, self._sentence, self._info = domain, code, sentence, info or {}

    def domain(self) -> str:
        return self._domain

    def code(self) -> int:
        return self._code

    def localizedDescription(self) -> str:
        return self._sentence

    def userInfo(self) -> dict[str, Any]:
        return self._info

    def __str__(self) -> str:
        return f"Error Domain={self._domain} Code={self._code} {self._sentence!r}"
