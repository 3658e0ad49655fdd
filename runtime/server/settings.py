"""What whoever starts a server decides: where it listens, who may ask, and how much anybody may."""

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path

from ...manifests.errors import UsageError

MEGABYTE = 1_000_000
PART_FOR_OTHERS = 4  # one place of the queue in four


@dataclass(frozen=True)
class Limits:
    """Of one request and one connection; `parts` of an answer wait at most for a client that does not read."""

    body_bytes: int = 4 * MEGABYTE
    body_seconds: float = 60.0
    header_bytes: int = 65536
    header_seconds: float = 30.0
    idle_seconds: int = 30
    send_seconds: float = 60.0
    connections: int = 512
    parts: int = 4096
    ping_seconds: float = 15.0


@dataclass(frozen=True)
class Settings:
    """Raises UsageError for a host that others reach without a key, and for a key that nobody can give."""

    host: str = "127.0.0.1"
    port: int = 8080
    key: str | None = None
    queue: int = 32
    prefix_bytes: int = 256 * MEGABYTE
    state: Path | None = None
    state_bytes: int = 10_000 * MEGABYTE
    limits: Limits = field(default_factory=Limits)

    @property
    def queue_each(self) -> int:
        """How many of the queue's places one client may take: some are left to others."""
        return max(1, self.queue * (PART_FOR_OTHERS - 1) // PART_FOR_OTHERS)

    def __post_init__(self) -> None:
        if self.key is not None:
            _check_key(self.key)
        if not is_loopback(self.host) and self.key is None:
            raise UsageError(
                f"{self.host} can be reached from other machines, so a key is needed: give --api-key or MOE_API_KEY"
            )
        if self.queue < 1:
            raise UsageError(f"a queue of {self.queue} takes no request; give 1 or more")


def _check_key(key: str) -> None:
    """Refuse a key that no client could give."""
    if not key.strip():
        raise UsageError("the API key is empty; give another, or none")
    if key != key.strip():
        raise UsageError("the API key begins or ends with a blank or a line end, which HTTP drops; give it without")
    if not (key.isascii() and key.replace("\t", " ").isprintable()):
        raise UsageError("the API key has characters that no HTTP header carries; give one of printable ASCII")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a host."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"  # names have no case
