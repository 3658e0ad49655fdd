"""Failures that a test orders: command buffers that end midway, allocations that are refused."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Failure:
    """The `at`-th command buffer to be committed from now ends after `after` of its commands, with this error."""

    at: int
    after: int
    sentence: str
    code: int


@dataclass
class Ordered:
    """What is still to fail."""

    failures: tuple[Failure, ...] = ()
    granted: int = 0  # allocations still to be granted before
    refused: int = 0  # so many are refused

    def committed(self) -> Failure | None:
        """The failure of the command buffer being committed, if it shall have one."""
        now = [failure for failure in self.failures if failure.at == 1]
        self.failures = tuple(replace(failure, at=failure.at - 1) for failure in self.failures if failure.at > 1)
        return now[0] if now else None

    def refuses(self) -> bool:
        """Whether the allocation being made shall be refused."""
        if self.granted:
            self.granted -= 1
            return False
        refuse = self.refused > 0
        self.refused -= refuse
        return refuse


ordered = Ordered()


def forget() -> None:
    """Nothing shall fail any more."""
    ordered.failures, ordered.granted, ordered.refused = (), 0, 0
