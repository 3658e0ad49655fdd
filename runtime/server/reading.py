"""Bodies of requests as typed values: JSON within limits, unknown fields refused, each fault named with its field."""

import asyncio
import re
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request

from .failures import ApiError
from .settings import Limits

T = TypeVar("T")
_UNKNOWN = re.compile(r"Object contains unknown field `(.*?)`(?: - at `\$\.?(.*?)`)?$", re.DOTALL)
_PLACE = re.compile(r"^(.*) - at `\$\.?(.*?)`$", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(.*?)`")


async def body_of(request: Request, kind: type[T], limits: Limits) -> T:
    """The request's JSON. Raises ApiError: 415 for another type, 413 too much, 408 too slow, 400 for the rest."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise ApiError("send JSON, with the header content-type: application/json", 415)
    try:
        async with asyncio.timeout(limits.body_seconds):
            content = await _content(request, limits.body_bytes)
    except TimeoutError as error:
        raise ApiError(f"the body did not come within {limits.body_seconds:.0f} s", 408) from error
    return decoded(content, kind)


async def _content(request: Request, limit: int) -> bytes:
    content = bytearray()
    async for piece in request.stream():
        content += piece
        if len(content) > limit:
            raise ApiError(f"the body has more than {limit} bytes", 413)
    return bytes(content)


def decoded(content: bytes, kind: type[T]) -> T:
    """A body's value. Raises ApiError for one of another shape."""
    try:
        return msgspec.json.decode(content, type=kind)
    except msgspec.ValidationError as error:
        raise _shape_error(str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError(f"the body is not JSON: {error}") from error


def converted(value: Any, kind: type[T], place: str) -> T:
    """Part of a body, decoded before, as a typed value; `place` is where it stood."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise _shape_error(str(error), place) from error


def _shape_error(said: str, place: str = "") -> ApiError:
    if unknown := _UNKNOWN.match(said):
        name = ".".join(part for part in (place, unknown[2], unknown[1]) if part)
        return ApiError(f"Unrecognized request argument supplied: {name}", param=name, code="unknown_parameter")
    found = _PLACE.match(said)
    what, where = (found[1], found[2]) if found else (said, "")
    if missing := _MISSING.match(said):
        where = f"{where}.{missing[1]}" if where else missing[1]
    param = ".".join(part for part in (place, where) if part) or None
    return ApiError(f"{param}: {what}" if param else what, param=param)
