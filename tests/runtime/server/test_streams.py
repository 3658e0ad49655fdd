"""Eight streams at once: each says what it says alone, and what they read of the disk they share. And their memory."""

import re
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import httpx2 as httpx
import pytest
from moe_run_program import MOE_RUN
from server.hosting import QUESTION, WEATHER, Hosted, function, hosted

T = TypeVar("T")
STREAMS, LENGTH = 8, 24
LINUX = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from Linux's /proc")


def at_once(work: Callable[[int], T], count: int) -> list[T]:
    found: dict[int, T] = {}
    threads = [threading.Thread(target=lambda i=i: found.update({i: work(i)})) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[index] for index in range(count)]


def streamed(server: Hosted, index: int) -> list[tuple[str, float]]:
    """The tokens of a greedy stream, and their log probabilities."""
    asked = {"model": "demo", "prompt": f"{'Paris is ' * (index + 1)}{index}", "temperature": 0, "max_tokens": LENGTH}
    found = list[tuple[str, float]]()
    for chunk in server.openai().completions.create(**asked, stream=True, logprobs=0):
        logprobs: Any = chunk.choices[0].logprobs
        if logprobs is not None:
            found += zip(logprobs.tokens, logprobs.token_logprobs, strict=True)
    return found


def test_eight_streams_say_what_each_says_alone_and_read_less(demo: Path) -> None:
    with hosted(demo, parallel=STREAMS, slots=8, prefix_bytes=0) as server:
        alone = [streamed(server, index) for index in range(STREAMS)]
        before = server.service.engine.stats.bytes_read
        assert at_once(lambda index: streamed(server, index), STREAMS) == alone
        together = server.service.engine.stats.bytes_read - before
        steps = server.service.scheduler.counts.steps
    assert together < before / 2
    assert steps < sum(map(len, alone)) + sum(map(len, alone)) / 2  # they were computed together, not in turn


@LINUX
def test_a_server_under_load_stays_within_the_smallest_budget(demo: Path) -> None:
    command = [MOE_RUN, "serve", str(demo), "--port", "0", "--context", "1024", "--prefix-memory", "8MB", "--memory"]
    refused = subprocess.run([*command, "1MB"], capture_output=True, text=True)
    budget = re.search(r"--memory (\S+)GB", refused.stderr)[1]
    process = subprocess.Popen([*command, f"{budget}GB"], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        url = next(line for line in process.stderr if "listening on" in line).split()[-1]
        asked = {
            "model": "demo",
            "messages": [{"role": "user", "content": f"{QUESTION} " * 50}],
            "tools": [function(WEATHER, strict=True)],
            "tool_choice": "required",
            "max_tokens": 60,
            "temperature": 1.5,
            "logprobs": True,
            "top_logprobs": 20,
        }
        answers = at_once(lambda _: httpx.post(f"{url}/v1/chat/completions", json=asked, timeout=300), STREAMS)
        assert [answer.status_code for answer in answers] == [200] * STREAMS
        told = {"model": "demo", "prompt": "x = 1\n" * 200, "max_tokens": 1, "logprobs": 5, "echo": True}
        answers = at_once(lambda _: httpx.post(f"{url}/v1/completions", json=told, timeout=300), STREAMS)
        assert {200} <= {answer.status_code for answer in answers} <= {200, 429}
        status = Path(f"/proc/{process.pid}/status").read_text()
    finally:
        process.terminate()
        process.communicate()
    assert int(status.split("VmHWM:")[1].split()[0]) * 1024 <= float(budget) * 1e9
