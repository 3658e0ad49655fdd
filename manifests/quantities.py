"""Numbers of bytes as people write them: GB is 10^9 bytes, GiB is 2^30."""

import re
from fractions import Fraction

from .errors import UsageError

UNITS = {
    **{"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12},
    **{"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40},
}
_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,15})?) ?([KMGT]i?B|B|bytes)", re.IGNORECASE)
_BYTES = re.compile(r"[1-9]\d{3,17}")  # a smaller number alone was meant as gigabytes, or megabytes
_BY_NAME = {name.lower(): size for name, size in UNITS.items()} | {"bytes": 1}


def parse_size(text: str) -> int:
    """The bytes in a text such as "8GB", "7.5GiB", "900 MB" or "8000000000", rounded to a whole one.

    Raises UsageError for any other, also for a number below 1000 without a unit.
    """
    if _BYTES.fullmatch(text.strip()):
        return int(text)
    match = _SIZE.fullmatch(text.strip())
    size = round(Fraction(match[1]) * _BY_NAME[match[2].lower()]) if match else 0
    if size < 1:
        raise UsageError(
            f"{text!r} is not a size; write a number and {', '.join(UNITS)}, such as 8GB,"
            " or bytes alone, 1000 or more, such as 8000000000"
        )
    return size


def parse_rate(text: str) -> int:
    """The bytes per second in a text such as "200MB/s"; "/s" may be left out. Raises UsageError for any other."""
    try:
        return parse_size(text.strip().removesuffix("/s"))
    except UsageError:
        raise UsageError(f"{text!r} is not a rate; write one such as 200MB/s") from None
