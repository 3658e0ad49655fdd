"""A server in this process, on a port of its own, and the official clients of it."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anthropic
import openai

from moepack.layout.reader import Pack
from moepack.runtime.engine import EngineOptions, Session
from moepack.runtime.language import Language
from moepack.runtime.server import running, service
from moepack.runtime.server.settings import Settings

KEY = "sesame"
WEATHER: dict[str, Any] = {
    "name": "get_weather",
    "description": "Get the weather forecast for a city",
    "parameters": {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "day": {"type": "string"},
            "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
        },
        "required": ["city"],
    },
}
MESSAGE: dict[str, Any] = {
    "name": "send_message",
    "description": "Send a text message to a person",
    "parameters": {
        "type": "object",
        "properties": {"person": {"type": "string"}, "text": {"type": "string"}},
        "required": ["person", "text"],
    },
}
QUESTION = "What is the weather in Paris tomorrow?"


def function(tool: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A tool as chats have it."""
    return {"type": "function", "function": {**tool, **more}}


@dataclass
class Hosted:
    """A running server."""

    service: service.Service
    url: str

    def openai(self, key: str = KEY) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=60)

    def anthropic(self, key: str = KEY) -> anthropic.Anthropic:
        return anthropic.Anthropic(base_url=self.url, api_key=key, max_retries=0, timeout=60)

    def filled(self) -> None:
        """Return once nothing is left to be read before it is needed; there must be no request."""
        while self.service.scheduler.filling:
            time.sleep(0.001)

    def session(self) -> Session:
        """Of the server's engine, for a test's own thread while there is no request."""
        self.filled()
        return self.service.engine.new_session()


@contextmanager
def hosted(
    pack: Path,
    *,
    parallel: int = 2,
    context: int = 1024,
    slots: int | None = None,
    chunk: int | None = None,
    send_buffer: int | None = None,
    **settings: Any,
) -> Iterator[Hosted]:
    """Serve until the block ends."""
    chosen = Settings(port=0, **{"key": KEY, "prefix_bytes": 100_000_000, **settings})
    options = EngineOptions(
        threads=2, context=context, slots=slots, chunk=chunk, sessions=parallel, memory=4_000_000_000
    )
    with ExitStack() as resources:
        opened = resources.enter_context(Pack.open(pack))
        bound = resources.enter_context(running.listening(chosen))
        if send_buffer is not None:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)  # connections have it from here
        served = resources.enter_context(service.serving(opened, Language.of(opened), options, chosen))
        server, url = running.server(served), running.address(bound)
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([bound])))
        thread.start()
        try:
            while not server.started:
                thread.join(0.01)
                assert thread.is_alive()
            yield Hosted(served, url)
        finally:
            server.should_exit = True
            thread.join()


@contextmanager
def unread(server: Hosted, path: str, *bodies: dict[str, Any], window: int | None = 2048) -> Iterator[socket.socket]:
    """A client that has read nothing of its answers yet; a second body is a completion's."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.socket() as client:
        if window is not None:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
        client.connect((host, int(port)))
        for to, body in zip((path, "/v1/completions"), bodies, strict=False):
            sent = json.dumps({"model": "demo", **body}).encode()
            head = f"POST {to} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n"
            head += f"content-type: application/json\r\ncontent-length: {len(sent)}\r\n\r\n"
            client.sendall(head.encode() + sent)
        yield client
