"""A server under mixed load on loopback for some minutes: nothing fails, nobody is stuck, and memory stays flat.

Streams and whole answers in all four protocols, several prompts in one request, prompts whose logprobs are told, chats
with strict tools and schemas, conversations that grow until the context is full, clients that leave in the middle or
while they wait, bodies that are none, and bodies whose fields are anything.
Run by `make soak`; tests/runtime/server/test_soak.py runs some seconds of it.
"""

import json
import random
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2 as httpx

PROGRAMS = Path(sys.executable).parent
CLIENTS = 6
CONTEXT, PARALLEL = 4096, 4
PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses")
ANYTHING: list[Any] = [
    None,
    True,
    -1,
    0,
    3,
    2**65,
    0.5,
    1e300,
    "",
    "x",
    "\ud7ff\x00",
    [],
    [[]],
    [1],
    {},
    {"a": {"b": [None]}},
]
FLAT = 0.02  # of resident memory, between the second third and the last one
ALLOWED = {200, 400, 429}
WORDS = ["weather", "Paris", "tomorrow", "python", "tell", "me", "about", "the", "messages", "to", "Ann", "in", "Oslo"]
FIELDS = ["model", "messages", "prompt", "input", "max_tokens", "max_output_tokens", "temperature", "top_p", "top_k"]
FIELDS += ["seed", "stop", "n", "logprobs", "top_logprobs", "tools", "tool_choice", "response_format", "stream", "user"]
FIELDS += ["stream_options", "logit_bias", "presence_penalty", "reasoning_effort", "thinking", "system", "echo", "x"]
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


@dataclass
class Outcome:
    """What came of it. `stuck`: requests, and bytes for their logprobs, that were there when every client was gone."""

    statuses: Counter[int] = field(default_factory=Counter)
    left: int = 0
    resident: list[int] = field(default_factory=list)
    stuck: float = 0.0
    errors: list[str] = field(default_factory=list)

    @property
    def growth(self) -> float:
        """Of the median resident memory, from the second third to the last one."""
        third = len(self.resident) // 3
        earlier, later = self.resident[third : 2 * third], self.resident[2 * third :]
        return statistics.median(later) / statistics.median(earlier) - 1


@contextmanager
def server(folder: Path) -> Iterator[tuple[str, int]]:
    """A server of the shipped model in a process of its own: its address and process id."""
    pack = folder / "demo"
    subprocess.run([PROGRAMS / "moe-pack", "demo", pack], check=True, capture_output=True)
    options = ["--port", "0", "--context", str(CONTEXT), "--parallel", str(PARALLEL), "--queue", "4"]
    options += ["--prefix-memory", "8MB", "--memory", "1GB"]
    state = ["--state-dir", str(folder / "state"), "--state-size", "16MB"]
    command = [PROGRAMS / "moe-run", "serve", pack, *options, *state]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        url = next(line for line in process.stderr if "listening on" in line).split()[-1]
        threading.Thread(target=shutil.copyfileobj, args=(process.stderr, sys.stderr), daemon=True).start()
        yield url, process.pid
    finally:
        process.terminate()
        assert process.wait(30) == 0


def soak(url: str, pid: int, seconds: float, clients: int = CLIENTS) -> Outcome:
    """Load a server for so long."""
    _fill(url)
    outcome, end = Outcome(), time.monotonic() + seconds
    threads = [threading.Thread(target=_client, args=(url, seed, end, outcome)) for seed in range(clients)]
    for thread in threads:
        thread.start()
    while time.monotonic() < end:
        outcome.resident.append(_resident(pid))
        time.sleep(min(1.0, seconds / 60))
    for thread in threads:
        thread.join()
    time.sleep(1)
    metrics = httpx.get(f"{url}/metrics").text
    left = re.findall(r"^moepack_(?:running|waiting|logprob_bytes) (\S+)", metrics, re.M)
    outcome.stuck = sum(map(float, left))
    return outcome


def _fill(url: str) -> None:
    """Use all of the context that is planned, once: the system counts memory when it is first written to."""

    def ask(token: int) -> int:
        body = {"model": "x", "prompt": [token] * (CONTEXT - 9), "max_tokens": 8}
        while (status := httpx.post(f"{url}/v1/completions", json=body, timeout=120).status_code) == 429:
            time.sleep(0.1)
        return status

    with ThreadPoolExecutor(PARALLEL) as clients:
        assert set(clients.map(ask, range(PARALLEL))) == {200}


def _client(url: str, seed: int, end: float, outcome: Outcome) -> None:
    order = random.Random(seed)
    turns: list[dict[str, Any]] = []
    with httpx.Client(base_url=url, timeout=120) as client:
        while time.monotonic() < end:
            does = order.choice(ACTS)
            try:
                does(client, order, turns, outcome)
            except Exception as error:
                outcome.errors.append(f"{does.__name__}: {type(error).__name__}: {error}"[:200])


def _malformed(client: httpx.Client, order: random.Random, turns: list[dict[str, Any]], outcome: Outcome) -> None:
    path = order.choice(PATHS)
    good = json.dumps({"model": "x", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1})
    at = order.randrange(len(good) - 1)
    cut = good[:at] + order.choice(["", "}", '"', "\\", "\x00", "[[[["])
    answer = client.post(path, content=cut, headers={"content-type": "application/json"})
    outcome.statuses[answer.status_code] += 1


def _anything(client: httpx.Client, order: random.Random, turns: list[dict[str, Any]], outcome: Outcome) -> None:
    """A good body with some fields of another kind."""
    path, body = order.choice(list(_good(order).items()))
    for name in order.sample(FIELDS, order.randrange(1, 4)):
        body[name] = order.choice(ANYTHING)
    with client.stream("POST", path, json=body) as answer:
        outcome.statuses[answer.status_code] += 1
        for _ in zip(answer.iter_raw(), range(30), strict=False):
            pass


def _good(order: random.Random) -> dict[str, dict[str, Any]]:
    """A short request to each path."""
    said, short = [{"role": "user", "content": _words(order)}], {"model": "x", "stream": order.random() < 0.5}
    return {
        "/v1/chat/completions": {**short, "messages": said, "max_tokens": 20},
        "/v1/completions": {**short, "prompt": _words(order), "max_tokens": 20},
        "/v1/messages": {**short, "messages": said, "max_tokens": 20},
        "/v1/responses": {**short, "input": said, "max_output_tokens": 20},
    }


def _message(client: httpx.Client, order: random.Random, turns: list[dict[str, Any]], outcome: Outcome) -> None:
    tools = [{"name": "get_weather", "input_schema": TOOL["function"]["parameters"]}]
    body = {**_good(order)["/v1/messages"], "system": _words(order), "tools": tools, "max_tokens": 60}
    outcome.statuses[client.post("/v1/messages", json=body).status_code] += 1


def _response(client: httpx.Client, order: random.Random, turns: list[dict[str, Any]], outcome: Outcome) -> None:
    body = {
        **_good(order)["/v1/responses"],
        "tools": [{"type": "function", **TOOL["function"]}],
        "max_output_tokens": 60,
    }
    if order.random() < 0.2:
        body |= {"include": ["message.output_text.logprobs"], "top_logprobs": order.choice([0, 5, 20])}
    outcome.statuses[client.post("/v1/responses", json=body).status_code] += 1


def _text(client: httpx.Client, order: random.Random, turns: list[dict[str, Any]], outcome: Outcome) -> None:
    asked = {"model": "x", "prompt": _words(order), "max_tokens": order.randrange(1, 60), "temperature": 1.0}
    asked["stream"] = order.random() < 0.5
    outcome.statuses[client.post("/v1/completions", json=asked).status_code] += 1


def _batch(client: httpx.Client, order: random.Random, turns: list[dict[str, Any]], outcome: Outcome) -> None:
    """Several prompts in one request, scored as a harness does, or one with the best of several answers."""
    prompts = [_words(order) for _ in range(order.randrange(1, 4))]  # 3 answers are what the queue takes of a client
    ways = [{"prompt": prompts}, {"prompt": prompts, "echo": True, "logprobs": 5}]
    ways += [{"prompt": prompts, "stream": True, "logprobs": 1}, {"prompt": prompts[0], "n": 2, "best_of": 3}]
    asked = {"model": "x", "max_tokens": 8} | order.choice(ways)
    outcome.statuses[client.post("/v1/completions", json=asked).status_code] += 1


def _schema(client: httpx.Client, order: random.Random, turns: list[dict[str, Any]], outcome: Outcome) -> None:
    asked = {**_good(order)["/v1/chat/completions"], "max_tokens": 60, "temperature": 1.2}
    schema = {"name": "city", "strict": True, "schema": TOOL["function"]["parameters"]}
    asked["response_format"] = order.choice([{"type": "json_object"}, {"type": "json_schema", "json_schema": schema}])
    outcome.statuses[client.post("/v1/chat/completions", json=asked).status_code] += 1


def _around(client: httpx.Client, order: random.Random, turns: list[dict[str, Any]], outcome: Outcome) -> None:
    """What monitors and editors ask beside."""
    for path in ("/health", "/metrics", "/v1/models"):
        outcome.statuses[client.get(path).status_code] += 1
    outcome.statuses[client.post("/tokenize", json={"content": _words(order)}).status_code] += 1


def _chat(client: httpx.Client, order: random.Random, turns: list[dict[str, Any]], outcome: Outcome) -> None:
    """One more turn of a conversation, which begins anew when the context is full."""
    turns.append({"role": "user", "content": _words(order)})
    asked: dict[str, Any] = {"model": "x", "messages": turns, "max_tokens": 60, "temperature": order.choice([0, 1.2])}
    if order.random() < 0.2:
        asked |= {"logprobs": True, "top_logprobs": order.choice([0, 5, 20])}
    if order.random() < 0.5:
        asked |= {"tools": [TOOL], "tool_choice": order.choice(["auto", "required"])}
    answer = client.post("/v1/chat/completions", json=asked)
    outcome.statuses[answer.status_code] += 1
    if answer.status_code == 200:
        turns.append(answer.json()["choices"][0]["message"])
        turns += [{"role": "tool", "tool_call_id": each["id"], "content": "ok"} for each in _whole_calls(turns[-1])]
    else:
        turns.clear()


def _whole_calls(message: dict[str, Any]) -> list[dict[str, Any]]:
    return message.get("tool_calls") or []


def _leaver(client: httpx.Client, order: random.Random, turns: list[dict[str, Any]], outcome: Outcome) -> None:
    asked = {"model": "x", "prompt": _words(order), "max_tokens": 500, "temperature": 1.5, "stream": True}
    asked |= {"logprobs": 5} if order.random() < 0.2 else {}
    with client.stream("POST", "/v1/completions", json=asked) as answer:
        outcome.statuses[answer.status_code] += 1
        for count, _ in enumerate(answer.iter_raw()):
            if count > order.randrange(20):
                outcome.left += 1
                return


def _crowd(client: httpx.Client, order: random.Random, turns: list[dict[str, Any]], outcome: Outcome) -> None:
    """Some who leave before they are answered, most of them out of the queue."""
    asked = {"model": "x", "prompt": _words(order), "max_tokens": 300, "temperature": 1.5}
    asked |= {"logprobs": 5, "echo": order.random() < 0.5} if order.random() < 0.2 else {}
    body = json.dumps(asked).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: {client.base_url.host}\r\ncontent-type: application/json\r\n"
    for _ in range(order.randrange(1, 12)):
        with socket.create_connection((client.base_url.host, client.base_url.port), timeout=30) as leaver:
            leaver.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
            time.sleep(order.choice([0, 0.01, 0.05]))
            outcome.left += 1


def _words(order: random.Random) -> str:
    return " ".join(order.choices(WORDS, k=order.randrange(1, 40)))


ACTS = [_malformed, _anything, _text, _batch, _chat, _chat, _schema, _message, _response, _leaver, _crowd, _around]


def _resident(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0])


def faults(outcome: Outcome, flat: float = FLAT) -> list[str]:
    """What should not have been."""
    found = [f"status {status}: {count}" for status, count in outcome.statuses.items() if status not in ALLOWED]
    found += outcome.errors[:5]
    if outcome.stuck:
        found.append(f"{outcome.stuck:.0f} requests or bytes of logprobs are stuck")
    if outcome.growth > flat:
        found.append(f"resident memory grew by {outcome.growth:.1%}")
    return found


def main() -> None:
    minutes = float(sys.argv[1]) if len(sys.argv) > 1 else 60.0
    with tempfile.TemporaryDirectory() as folder, server(Path(folder)) as (url, pid):
        outcome = soak(url, pid, minutes * 60)
    print(f"{sum(outcome.statuses.values())} requests in {minutes:g} minutes, by status {dict(outcome.statuses)},")
    print(f"{outcome.left} left in the middle; resident {outcome.resident[-1]} kB, {outcome.growth:+.2%}")
    if found := faults(outcome):
        sys.exit("\n".join(found))


if __name__ == "__main__":
    main()
