"""What turns the parts of an answer into a protocol's events, and into its one document."""

from collections.abc import Iterable
from typing import Any, Protocol

from ..serving.answer import Began, Ended, Said
from .failures import ApiError


class Event:
    """One server-sent event: JSON, or a bare text, with or without a name."""

    def __init__(self, data: Any, name: str | None = None) -> None:
        self.data, self.name = data, name


class Shape(Protocol):
    """Takes the parts in order, and tells each as events; `document` is the same answer whole, after `ended`."""

    @property
    def kept(self) -> int:
        """Bytes of memory for the logprobs that it keeps until then, and for the document's."""

    def began(self, part: Began) -> Iterable[Event]:
        """Computing began."""

    def said(self, part: Said) -> Iterable[Event]:
        """Some of the answer."""

    def ended(self, part: Ended) -> Iterable[Event]:
        """It is whole."""

    def failed(self, error: ApiError) -> Iterable[Event]:
        """There is no more."""

    def document(self) -> dict[str, Any]:
        """All of it at once."""
