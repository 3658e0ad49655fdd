"""Numbers of config.json: present, of the right type and fitting each other, or a sentence says why not."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...manifests.errors import CorruptInputError, UnsupportedError

MAX_COUNT = 2**31 - 1


@dataclass(frozen=True)
class Settings:
    """The keys and values of config.json, or of an object inside it. Every reader raises CorruptInputError."""

    values: Mapping[str, Any]

    def nested(self, key: str) -> "Settings":
        """The object under `key` if there is one, else these settings themselves."""
        inner = self.values.get(key)
        if inner is None:
            return self
        if not isinstance(inner, dict):
            raise self.wrong(f"has {key} = {inner!r:.40}, which is not an object")
        return Settings(inner)

    def count(self, key: str, *, default: int | None = None, most: int = MAX_COUNT) -> int:
        """A whole number from 1 to `most`."""
        value = self._get(key, default)
        if type(value) is not int or not 1 <= value <= most:
            raise self.wrong(f"has {key} = {value!r:.40}, which is not a whole number from 1 to {most}")
        return value

    def positive(self, key: str, *, default: float | None = None) -> float:
        """A finite number above 0."""
        value = self._get(key, default)
        if type(value) not in (int, float) or not 0 < value <= sys.float_info.max:
            raise self.wrong(f"has {key} = {value!r:.40}, which is not a number above 0")
        return float(value)

    def flag(self, key: str, *, default: bool) -> bool:
        """true or false."""
        value = self._get(key, default)
        if type(value) is not bool:
            raise self.wrong(f"has {key} = {value!r:.40}, which is neither true nor false")
        return value

    def names(self, key: str) -> list[str]:
        """A list of strings."""
        value = self._get(key, None)
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            raise self.wrong(f"has a {key} that is not a list of strings")
        return value

    def at_most(self, key: str, limit: str) -> int:
        """The count `key`, which must not exceed the count `limit`."""
        value, most = self.count(key), self.count(limit)
        if value > most:
            raise self.wrong(f"has {key} = {value}, more than {limit} = {most}")
        return value

    def multiple(self, key: str, factor: str) -> int:
        """The count `key`, which must be a multiple of the count `factor`."""
        value, divisor = self.count(key), self.count(factor)
        if value % divisor:
            raise self.wrong(f"has {key} = {value}, which {factor} = {divisor} does not divide")
        return value

    def require(self, fixed: Mapping[str, Any]) -> None:
        """Each setting of `fixed`, where present, has the one value that is supported. Raises UnsupportedError."""
        for key, only in fixed.items():
            value = self.values.get(key)
            if value is not None and value != only:
                raise UnsupportedError(f"config.json has {key} = {value!r:.40}; supported is {only!r} only")

    def wrong(self, what: str) -> CorruptInputError:
        """The error that says what config.json does wrong."""
        return CorruptInputError(f"config.json {what}; is it the checkpoint's own?")

    def _get(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        if value is None and default is None:
            raise self.wrong(f"lacks {key}")
        return default if value is None else value
