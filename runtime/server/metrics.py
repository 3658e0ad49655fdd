"""What a server has done and is doing, as Prometheus' text."""

from collections import Counter
from collections.abc import Iterator

from .service import Service

TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Responses:
    """Counts responses by endpoint and status; of unknown paths together, so that nobody can fill the memory."""

    def __init__(self, paths: frozenset[str]) -> None:
        self._paths = paths
        self.counts: Counter[tuple[str, int]] = Counter()

    def count(self, path: str, status: int) -> None:
        """One more."""
        self.counts[path if path in self._paths else "other", status] += 1


def text(service: Service, responses: Responses) -> str:
    """All of them."""
    return "\n".join([*_lines(service), *_response_lines(responses)]) + "\n"


def _lines(service: Service) -> Iterator[str]:
    scheduler, read = service.scheduler, service.engine.stats
    counts = scheduler.counts
    for name, value, what in (
        ("steps", counts.steps, "Steps of the batch"),
        ("prompt_tokens", counts.prompt_tokens, "Prompt tokens computed"),
        ("cached_tokens", counts.cached_tokens, "Prompt tokens found remembered"),
        ("answer_tokens", counts.answer_tokens, "Answer tokens computed with"),
        ("finished", counts.finished, "Answers that ended"),
        ("failed", counts.failed, "Answers that failed"),
        ("cancelled", counts.cancelled, "Answers that nobody waited for"),
        ("records_read", read.records_read, "Expert records read"),
        ("bytes_read", read.bytes_read, "Bytes of expert records read"),
        ("slot_hits", read.slot_hits, "Experts found in memory"),
    ):
        yield from _metric(f"{name}_total", "counter", value, what)
    yield from _metric("running", "gauge", scheduler.running, "Requests that are computed")
    yield from _metric("waiting", "gauge", scheduler.waiting, "Requests in the queue")
    yield from _metric("prefix_bytes", "gauge", service.prefixes.size, "Memory of remembered prompts")
    yield from _metric("logprob_bytes", "gauge", service.logprob_bytes, "Memory planned for logprobs that is taken")


def _metric(name: str, kind: str, value: float, what: str) -> list[str]:
    return [f"# HELP moepack_{name} {what}.", f"# TYPE moepack_{name} {kind}", f"moepack_{name} {value}"]


def _response_lines(responses: Responses) -> Iterator[str]:
    yield "# HELP moepack_responses_total HTTP responses."
    yield "# TYPE moepack_responses_total counter"
    for (path, status), count in sorted(responses.counts.items()):
        yield f'moepack_responses_total{{path="{path}",status="{status}"}} {count}'
