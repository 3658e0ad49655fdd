"""How soon an answer to a longer conversation begins, and how fast eight come at once: over HTTP, on loopback.

A conversation of 2,000 tokens, continued by 50: from scratch, by the server that had it, and by the next one with its
state. Then one stream and eight, with the pack in memory and with a quarter of its experts. Medians of alternating
rounds; answers must be the same in all of them. Run by `make serving`, which can be given names of packs: demo,
trained (where it is at hand), mid (made for `make bench`, or found where MOEPACK_MID says).
"""

import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing.pool import Pool as Clients
from pathlib import Path
from typing import Any

import httpx2 as httpx
import numpy as np
from extended.performance import subjects
from server.hosting import KEY, Hosted, hosted

PROMPT, MORE, ANSWER = 2000, 50, 8  # tokens
STREAMS, LENGTH = 8, 40
ROUNDS = {"mid": 3}
DEFAULT_ROUNDS = 7


@dataclass(frozen=True)
class Answer:
    """The tokens of a stream, with their log probabilities, when each came and when the request was sent."""

    tokens: list[tuple[Any, ...]]
    times: list[float]
    sent: float

    @property
    def first(self) -> float:
        """Seconds to the first token."""
        return self.times[0] - self.sent


@dataclass
class Continued:
    """Seconds to the first token, round by round."""

    scratch: list[float] = field(default_factory=list)
    continued: list[float] = field(default_factory=list)
    restarted: list[float] = field(default_factory=list)


def asked(url: str, path: str, body: dict[str, Any]) -> Answer:
    """A streamed answer, on a connection that is open already; what came is read once all has come."""
    with httpx.Client(base_url=url, headers={"authorization": f"Bearer {KEY}"}, timeout=600) as client:
        client.get("/health")
        sent, came = time.perf_counter(), list[tuple[float, bytes]]()
        with client.stream("POST", path, json={**body, "model": "x", "temperature": 0, "stream": True}) as answer:
            assert answer.status_code == 200, answer.read()
            came += [(time.perf_counter(), part) for part in answer.iter_raw()]
    return Answer(*_read(came), sent)


def _read(came: Sequence[tuple[float, bytes]]) -> tuple[list[tuple[Any, ...]], list[float]]:
    """The tokens of a stream, and when each one's line was whole."""
    tokens, times, rest = list[tuple[Any, ...]](), list[float](), b""
    for moment, part in came:
        *lines, rest = (rest + part).split(b"\n")
        found = [token for line in lines for token in _tokens(line.decode())]
        tokens += found
        times += [moment] * len(found)
    return tokens, times


def _tokens(line: str) -> list[tuple[Any, ...]]:
    """The tokens that a line of a stream tells."""
    if not line.startswith("data: {"):
        return []
    [choice] = json.loads(line[6:])["choices"] or [{}]
    logprobs = choice.get("logprobs") or {}
    chat = [(entry["token"], entry["logprob"]) for entry in logprobs.get("content") or ()]
    return chat or list(zip(logprobs.get("tokens") or (), logprobs.get("token_logprobs") or (), strict=True))


class Conversation:
    """Two requests, the second of which continues the first, as a chat where the pack has a template, else as text."""

    def __init__(self, server: Hosted, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self._server = server
        self.chat = server.service.language.template is not None
        self.first, self.second = self._chats() if self.chat else self._texts()

    @property
    def path(self) -> str:
        return "/v1/chat/completions" if self.chat else "/v1/completions"

    def _texts(self) -> tuple[dict[str, Any], dict[str, Any]]:
        vocabulary = self._server.service.engine.model.vocab_size
        tokens = self._random.integers(0, vocabulary, PROMPT + MORE).tolist()
        common = {"max_tokens": ANSWER, "logprobs": 0}
        return {**common, "prompt": tokens[:PROMPT]}, {**common, "prompt": tokens}

    def _chats(self) -> tuple[dict[str, Any], dict[str, Any]]:
        turns = [{"role": "system", "content": f"You are the assistant of {self._words(3)}."}]
        while self._size(turns) < PROMPT:
            turns += [{"role": "user", "content": self._words(12)}, {"role": "assistant", "content": self._words(20)}]
        turns.append({"role": "user", "content": self._words(5)})
        more = [{"role": "assistant", "content": self._words(1)}, {"role": "user", "content": ""}]
        while self._size([*turns, *more]) < self._size(turns) + MORE:
            more[-1]["content"] += self._words(1) + " "
        common = {"max_tokens": ANSWER, "logprobs": True}
        return {**common, "messages": turns}, {**common, "messages": [*turns, *more]}

    def _words(self, count: int) -> str:
        words = ["weather", "Paris", "tomorrow", "python", "tell", "me", "about", "the", "message", "Ann", "in", "Oslo"]
        return " ".join(self._random.choice(words, count))

    def _size(self, turns: list[dict[str, Any]]) -> int:
        language = self._server.service.language
        assert language.template is not None
        return len(language.tokenizer.encode(language.template.render(turns), add_special_tokens=False))


def continued(pack: Path, rounds: int, clients: Clients) -> Continued:
    """Every round has a conversation of its own, and two servers; who begins from scratch is always there."""
    found = Continued()
    with (
        tempfile.TemporaryDirectory() as folder,
        hosted(pack, parallel=1, context=4096, prefix_bytes=0) as scratch,
    ):
        for seed in range(rounds + 1):  # the first is for warming up
            kept = {"parallel": 1, "context": 4096, "state": Path(folder) / str(seed)}
            talk = Conversation(scratch, seed)
            wanted = clients.apply(asked, (scratch.url, talk.path, talk.second))
            with hosted(pack, **kept) as server:
                clients.apply(asked, (server.url, talk.path, talk.first))
                same = clients.apply(asked, (server.url, talk.path, talk.second))
            with hosted(pack, **kept) as server:
                again = clients.apply(asked, (server.url, talk.path, talk.second))
            assert same.tokens == again.tokens == wanted.tokens
            if seed:
                found.scratch.append(wanted.first)
                found.continued.append(same.first)
                found.restarted.append(again.first)
    return found


@dataclass
class Streams:
    """Tokens per second of one stream and of all together, and megabytes read per token, round by round."""

    one: list[float] = field(default_factory=list)
    all: list[float] = field(default_factory=list)
    read_one: list[float] = field(default_factory=list)
    read_all: list[float] = field(default_factory=list)


def streams(pack: Path, rounds: int, slots: int | None, clients: Clients) -> Streams:
    """One, then eight, in turn; each of the eight says what it says alone."""
    found = Streams()
    with hosted(pack, parallel=STREAMS, context=512, slots=slots, prefix_bytes=0) as server:
        prompts, alone = zip(*_lasting(server, clients), strict=True)
        for index in range(rounds):
            before = server.service.engine.stats.bytes_read
            one = clients.apply(asked, (server.url, "/v1/completions", prompts[index % STREAMS]))
            between = server.service.engine.stats.bytes_read
            together = clients.apply(_together, (server.url, prompts))
            after = server.service.engine.stats.bytes_read
            assert [each.tokens for each in together] == [each.tokens for each in alone]
            found.one.append((len(one.times) - 1) / (one.times[-1] - one.times[0]))
            found.all.append(_rate(together))
            found.read_one.append((between - before) / LENGTH / 1e6)
            found.read_all.append((after - between) / LENGTH / STREAMS / 1e6)
    return found


def _lasting(server: Hosted, clients: Clients) -> Iterator[tuple[dict[str, Any], Answer]]:
    """Prompts whose answers are as long as they may be, with these."""
    random, vocabulary, count = np.random.default_rng(1), server.service.engine.model.vocab_size, 0
    while count < STREAMS:
        body = {"prompt": random.integers(0, vocabulary, 12).tolist(), "max_tokens": LENGTH, "logprobs": 0}
        answer = clients.apply(asked, (server.url, "/v1/completions", body))
        if len(answer.tokens) == LENGTH:
            count += 1
            yield body, answer


def _together(url: str, prompts: Sequence[dict[str, Any]]) -> list[Answer]:
    with ThreadPoolExecutor(len(prompts)) as threads:
        return list(threads.map(lambda body: asked(url, "/v1/completions", body), prompts))


def _rate(answers: Sequence[Answer]) -> float:
    """Tokens per second while all of them come."""
    begin, end = max(each.times[0] for each in answers), min(each.times[-1] for each in answers)
    return sum(begin < moment <= end for each in answers for moment in each.times) / (end - begin)


def packs(names: Sequence[str]) -> Iterator[tuple[str, Path]]:
    """By name; without names all that there are."""
    made = {"demo": subjects.demo, "trained": subjects.trained, "mid": _mid}
    for name in names or made:
        if (path := made[name]()) is not None:
            yield name, path


def _mid() -> Path:
    return Path(os.environ["MOEPACK_MID"]) if "MOEPACK_MID" in os.environ else subjects.MID.pack


def main() -> None:
    with multiprocessing.get_context("spawn").Pool(1) as clients:  # a process of its own, as clients are
        _print(list(packs(sys.argv[1:])), clients)


def _print(chosen: Sequence[tuple[str, Path]], clients: Clients) -> None:
    print("| seconds to the first token | from scratch | continued | ratio | after a restart | ratio |")
    print("|---|---:|---:|---:|---:|---:|")
    for name, path in chosen:
        times = continued(path, ROUNDS.get(name, DEFAULT_ROUNDS), clients)
        scratch, *others = (statistics.median(each) for each in (times.scratch, times.continued, times.restarted))
        ratios = " | ".join(f"{other:.3f} | {scratch / other:.1f}" for other in others)
        print(f"| {name} | {scratch:.3f} | {ratios} |", flush=True)
    print()
    print("| tokens per second | one stream | eight | ratio | MB read per token | of eight |")
    print("|---|---:|---:|---:|---:|---:|")
    for name, path in chosen:
        for memory, part in (("in memory", 1), ("a quarter in memory", 4)):
            slots = _experts(path) // part if part > 1 else None
            rates = streams(path, ROUNDS.get(name, DEFAULT_ROUNDS), slots, clients)
            one, every = statistics.median(rates.one), statistics.median(rates.all)
            read = " | ".join(f"{statistics.median(each):.2f}" for each in (rates.read_one, rates.read_all))
            print(f"| {name}, {memory} | {one:.1f} | {every:.1f} | {every / one:.2f} | {read} |", flush=True)


def _experts(pack: Path) -> int:
    from moepack.layout.reader import Pack

    with Pack.open(pack) as opened:
        return opened.model.num_experts * opened.model.num_layers


if __name__ == "__main__":
    main()
