"""What a request is told when it cannot be met, in OpenAI's shape or, under /v1/messages, in Anthropic's.

Owns which error has which status. Knows no request.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...manifests.errors import MoepackError, UsageError
from ..generate import RoomError
from ..serving.scheduler import BusyError, ClosingError
from .wishes import WishError

ANTHROPIC = "/v1/messages"
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
}


@dataclass
class ApiError(Exception):
    """A refusal with its HTTP status; `param` is the field of the request that it is about."""

    message: str
    status: int = 400
    param: str | None = None
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.message

    @classmethod
    def of(cls, error: Exception) -> "ApiError":
        """What any error comes to: the request's own fault, a full queue, or a failure of pack, disk or device."""
        if isinstance(error, ApiError):
            return error
        if isinstance(error, BusyError):
            wait = {"retry-after": str(math.ceil(error.seconds))}
            return cls(str(error), 429, code="rate_limit_exceeded", headers=wait)
        if isinstance(error, ClosingError):
            return cls(str(error), 503, code="closing")
        if isinstance(error, WishError):
            return cls(str(error), param=error.field)
        if isinstance(error, RoomError):
            return cls(str(error), code="context_length_exceeded")
        if isinstance(error, UsageError):
            return cls(str(error))
        if isinstance(error, RecursionError):
            return cls("the request is nested too deeply")
        if isinstance(error, MoepackError):
            return cls(str(error), 500, code="pack_failed")
        return cls("a defect of moe-run; its log says more", 500, code="defect")

    def document(self, path: str) -> dict[str, Any]:
        """The body for a request of `path`."""
        if path.startswith(ANTHROPIC):
            default = "api_error" if self.status >= 500 else "invalid_request_error"
            kind = _ANTHROPIC_TYPES.get(self.status, default)
            return {"type": "error", "error": {"type": kind, "message": self.message}}
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        kind = "rate_limit_error" if self.status == 429 else kind
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def unsupported(param: str, why: str) -> ApiError:
    """A field of the protocol that asks for what this server does not do."""
    return ApiError(f"{param}: {why}", param=param, code="unsupported_parameter")
