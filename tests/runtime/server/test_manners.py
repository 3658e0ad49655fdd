"""What a server lets nobody do: ask without the key, ask too much, leave and be computed for, break it with a body."""

import asyncio.selector_events
import errno
import inspect
import json
import logging
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx2 as httpx
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from moe_run_program import called
from server.hosting import KEY, QUESTION, Hosted, hosted, unread
from uvicorn.protocols.http.h11_impl import H11Protocol

from moepack.manifests.errors import StorageError, UsageError
from moepack.runtime.engine import Engine
from moepack.runtime.server import chat, running
from moepack.runtime.server.settings import Limits, Settings
from moepack.runtime.serving.batch import Batch

HEADERS = {"authorization": f"Bearer {KEY}"}
PATIENCE = 30.0
LONG: dict[str, Any] = {"model": "demo", "prompt": "Once", "temperature": 2, "max_tokens": 900, "seed": 1}
LONG["extra_body"] = {"stop": None}
POSTS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/tokenize")


def until(true: Any) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def ended(server: Hosted) -> int:
    counts = server.service.scheduler.counts
    return counts.failed + counts.cancelled + counts.finished


@pytest.mark.parametrize("key", ["wrong", KEY[:-1], KEY + "x", "é"])
def test_a_wrong_key_is_refused(server: Hosted, key: str) -> None:
    headers = {"authorization": f"Bearer {key}".encode()}
    answer = httpx.get(f"{server.url}/v1/models", headers=headers)
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize(
    "headers",
    [
        {"x-api-key": KEY},
        {"authorization": f"bearer {KEY}"},
        {"authorization": "Bearer another-servers", "x-api-key": KEY},
        {"authorization": f"Bearer {KEY}", "x-api-key": "another-servers"},
    ],
)
def test_the_key_is_taken_from_either_header(server: Hosted, headers: dict[str, str]) -> None:
    assert httpx.get(f"{server.url}/v1/models", headers=headers).status_code == 200


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/tokenize"])
def test_a_text_that_cannot_fit_is_refused_before_it_is_encoded_whole(
    server: Hosted, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "a " * 1_000_000
    encoded: list[int] = []
    tokenizer = type(server.service.language.tokenizer)
    whole = tokenizer._encoding

    def counted(self: Any, text: str, **options: Any) -> Any:
        encoded.append(len(text))
        return whole(self, text, **options)

    monkeypatch.setattr(tokenizer, "_encoding", counted)
    asked = {"messages": [{"role": "user", "content": text}]} if "chat" in path else {"prompt": text}
    answer = httpx.post(f"{server.url}{path}", json={"model": "demo", **asked}, headers=HEADERS, timeout=60)
    assert answer.status_code == 400
    assert "context" in answer.json()["error"]["message"]
    assert sum(encoded) < 100_000


def test_without_a_key_only_a_local_name_is_answered(demo: Path) -> None:
    with hosted(demo, key=None) as server:
        assert httpx.get(f"{server.url}/v1/models").status_code == 200
        port = server.url.rpartition(":")[2]
        local = (f"localhost:{port}", f"LocalHost:{port}", "LOCALHOST", f"[::1]:{port}")
        for host, status in {**dict.fromkeys(local, 200), "evil.example": 403}.items():
            assert httpx.get(f"{server.url}/health", headers={"host": host}).status_code == status
        answer = httpx.get(f"{server.url}/health", headers={"origin": "http://evil.example"})
        assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize(("host", "key"), [("0.0.0.0", None), ("192.168.0.9", None), ("::", None), ("127.0.0.1", " ")])
def test_settings_that_let_anybody_in_are_refused(host: str, key: str | None) -> None:
    with pytest.raises(UsageError, match="key"):
        Settings(host=host, key=key)


@pytest.mark.parametrize(
    ("key", "told"),
    [
        ("", "is empty"),
        (" ", "is empty"),
        (" abc", "begins or ends with a blank"),
        ("abc\n", "begins or ends with a blank or a line end"),
        ("abc\x1f", "begins or ends"),
        ("a\nc", "no HTTP header carries"),
        ("a\x7fc", "no HTTP header carries"),
        ("schlüssel", "no HTTP header carries"),
    ],
)
def test_a_key_that_no_client_can_give_is_refused(key: str, told: str) -> None:
    with pytest.raises(UsageError, match=f"the API key .*{told}"):
        Settings(key=key)


def test_any_other_key_lets_in(demo: Path) -> None:
    with hosted(demo, key="a b\t=/+~") as server:
        assert server.openai("a b\t=/+~").models.list().data


def test_a_port_that_is_taken_is_told(demo: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        run = called("serve", demo, "--port", taken.getsockname()[1])
    assert run.returncode == 4
    assert "give another --port" in run.stderr
    run = called("serve", demo, "--host", "0.0.0.0")
    assert (run.returncode, run.stdout) == (2, "")


@pytest.mark.parametrize("host", ["203.0.113.7", "2001:db8::7", "example.invalid", "é..example"])
def test_a_host_that_is_not_this_machine_s_is_told(host: str) -> None:
    with pytest.raises(StorageError, match=r"cannot be listened on: .*; give another --host$"):
        running.listening(Settings(host=host, port=0, key=KEY))


@pytest.mark.parametrize("fault", [PermissionError(errno.EACCES, "Permission denied"), OverflowError("0-65535")])
def test_a_port_that_others_alone_may_take_is_told(monkeypatch: pytest.MonkeyPatch, fault: Exception) -> None:
    def refused(*_: object, **__: object) -> socket.socket:
        raise fault

    monkeypatch.setattr(socket, "create_server", refused)
    with pytest.raises(StorageError, match=r"; give another --port$"):
        running.listening(Settings())


def test_who_goes_away_is_computed_for_no_longer(server: Hosted) -> None:
    scheduler = server.service.scheduler
    before = scheduler.counts.cancelled
    stream = server.openai().completions.create(**LONG, stream=True)
    next(iter(stream))
    stream.close()
    until(lambda: scheduler.running == 0)
    with pytest.raises(openai.APITimeoutError):
        server.openai().with_options(timeout=0.05).completions.create(**{**LONG, "seed": 2})
    until(lambda: scheduler.running == 0)
    assert scheduler.counts.cancelled >= before + 1


def test_a_full_queue_says_when_to_come_back(demo: Path) -> None:
    with hosted(demo, parallel=1, queue=1) as server:
        gate = threading.Event()
        step = server.service.scheduler._batch.step  # held, so that nothing here depends on how fast a machine is
        server.service.scheduler._batch.step = lambda: gate.wait(PATIENCE) and step()  # type: ignore[method-assign]
        asked = {**LONG, "max_tokens": 2}
        threads = [
            threading.Thread(target=lambda: server.openai().completions.create(**asked), daemon=True) for _ in range(2)
        ]
        threads[0].start()
        until(lambda: server.service.scheduler.running == 1)
        threads[1].start()
        until(lambda: server.service.scheduler.waiting == 1)
        with pytest.raises(openai.RateLimitError) as busy:
            server.openai().completions.create(**asked)
        assert int(busy.value.response.headers["retry-after"]) >= 1
        gate.set()
        for thread in threads:
            thread.join(PATIENCE)
        until(lambda: server.service.scheduler.counts.finished == 2)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have one address of their own only")
def test_one_client_s_many_requests_hold_off_nobody(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one slot and ten of a client's waiting, another's is next but one."""
    begun: list[str] = []
    admit = Batch.admit

    def noted(batch: Batch, request: Any) -> None:
        begun.append(request.client.removeprefix("127.0.0."))
        admit(batch, request)

    monkeypatch.setattr(Batch, "admit", noted)
    with hosted(demo, parallel=1, queue=16) as server:
        scheduler, gate = server.service.scheduler, threading.Event()
        step = scheduler._batch.step
        scheduler._batch.step = lambda: gate.wait(PATIENCE) and step()  # type: ignore[method-assign]

        def ask(address: str) -> None:
            body = {"model": "demo", "prompt": "Once", "max_tokens": 2}
            with httpx.Client(transport=httpx.HTTPTransport(local_address=address), timeout=PATIENCE) as client:
                assert client.post(f"{server.url}/v1/completions", json=body, headers=HEADERS).status_code == 200

        threads = [threading.Thread(target=ask, args=(f"127.0.0.{1 + number // 11}",)) for number in range(12)]
        for number, thread in enumerate(threads):
            thread.start()
            until(lambda number=number: scheduler.running + scheduler.waiting == number + 1)
        gate.set()
        for thread in threads:
            thread.join(PATIENCE)
    assert "".join(begun) == "11" + "2" + "1" * 9


def test_a_client_that_does_not_read_is_let_go(demo: Path) -> None:
    asked = {"prompt": "Once", "temperature": 2, "stream": True, "logprobs": 5, "seed": 1, "max_tokens": 900}
    with (
        hosted(demo, send_buffer=4096, limits=Limits(parts=8, send_seconds=0.5)) as server,
        unread(server, "/v1/completions", asked),
    ):
        until(lambda: ended(server) == 1)
        assert server.service.scheduler.counts.finished == 0


@contextmanager
def unread_for_long(demo: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A server with a client that reads nothing of an answer of megabytes, and outlives it."""
    monkeypatch.setattr(chat.ChatShape, "document", lambda self: "x" * 6_000_000)
    monkeypatch.delattr(socket, "TCP_USER_TIMEOUT", raising=False)  # by which the kernel gives such a client up as soon
    with ExitStack() as client, hosted(demo, send_buffer=4096, limits=Limits(send_seconds=1.0)) as server:
        asked = {"messages": [{"role": "user", "content": "Once"}], "max_tokens": 1}
        client.enter_context(unread(server, "/v1/chat/completions", asked))
        until(lambda: ended(server) == 1)
        yield


def test_who_does_not_take_a_whole_answer_is_logged_in_a_line(
    demo: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with unread_for_long(demo, monkeypatch):
        until(lambda: caplog.messages)
        assert caplog.messages == ["a client did not take its answer in time, and was hung up on"]


def test_an_answer_that_is_cut_off_at_the_end_is_no_traceback(
    demo: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "GRACE", 0.1)
    monkeypatch.setattr(running, "TELLING", 0.1)
    with unread_for_long(demo, monkeypatch):
        pass
    assert caplog.messages == ["Cancel 1 running task(s), timeout graceful shutdown exceeded"]
    assert "Traceback" not in caplog.text


def test_who_goes_away_with_pieces_on_their_way_is_no_line_in_the_log(
    server: Hosted, caplog: pytest.LogCaptureFixture
) -> None:
    """asyncio's warning comes when the kernel refuses the fifth, of which nobody can be sure; its words are its own."""
    assert running.LEFT in inspect.getsource(asyncio.selector_events)
    logging.getLogger("asyncio").warning(running.LEFT)
    assert caplog.messages == []


def test_a_websocket_is_answered_without_a_line_in_the_log(demo: Path, caplog: pytest.LogCaptureFixture) -> None:
    upgrade = {"connection": "upgrade", "upgrade": "websocket", "sec-websocket-key": "x", "sec-websocket-version": "13"}
    with hosted(demo) as server:
        assert httpx.get(f"{server.url}/health", headers=upgrade).status_code == 200
    assert caplog.messages == []


def test_what_is_too_much_or_too_slow_is_refused(demo: Path) -> None:
    with hosted(demo, limits=Limits(body_bytes=1000, body_seconds=0.3, header_seconds=0.3)) as server:
        sent = {**HEADERS, "content-type": "application/json"}
        assert httpx.post(f"{server.url}/tokenize", content=b" " * 1001, headers=sent).status_code == 413
        assert httpx.post(f"{server.url}/tokenize", content=b"{}", headers=HEADERS).status_code == 415
        assert httpx.get(f"{server.url}/health", headers={"x": "y" * 70_000}).status_code == 431
        address = server.url.removeprefix("http://").split(":")
        head = f"POST /tokenize HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n"
        for said, wanted in {
            head: b"",
            "": b"",
            f"{head}content-type: application/json\r\ncontent-length: 9\r\n\r\n{{": b"HTTP/1.1 408",
        }.items():
            with socket.create_connection((address[0], int(address[1])), timeout=PATIENCE) as client:
                client.sendall(said.encode())
                assert client.recv(1000).startswith(wanted)
                assert wanted or client.recv(1000) == b""


def test_free_memory_is_given_back_now_and_then(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = list[None]()
    monkeypatch.setattr(running, "TRIM_SECONDS", 0)
    monkeypatch.setattr(running, "trim_heap", lambda: given.append(None))
    with hosted(demo):
        until(lambda: len(given) > 1)


def test_small_pieces_are_sent_at_once(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a stream's first token waits for the client's acknowledgement of the head, 40 ms."""
    made, begin = list[Any](), H11Protocol.connection_made
    monkeypatch.setattr(H11Protocol, "connection_made", lambda self, to: (made.append(to), begin(self, to)))
    with hosted(demo) as server, httpx.Client(base_url=server.url) as client:
        assert client.get("/health").status_code == 200
        [transport] = made
        assert transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_more_connections_than_allowed_are_told_so(demo: Path) -> None:
    with hosted(demo, limits=Limits(connections=2)) as server:
        host, port = server.url.removeprefix("http://").split(":")
        with (
            socket.create_connection((host, int(port)), timeout=PATIENCE),
            socket.create_connection((host, int(port)), timeout=PATIENCE),
        ):
            with pytest.raises(openai.InternalServerError, match="more than 2 connections are open") as refused:
                server.openai().completions.create(model="demo", prompt="Once", max_tokens=1)
            assert (refused.value.status_code, refused.value.code) == (503, "connections")
            assert refused.value.response.headers["connection"] == "close"
        until(lambda: httpx.get(f"{server.url}/health").status_code == 200)
        assert server.openai().completions.create(model="demo", prompt="Once", max_tokens=1).choices


NESTED = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 2**65) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=8,
)
SHARED = ["model", "max_tokens", "tools", "tool_choice", "temperature", "stream", "seed"]
SOME = ["messages", "prompt", "input", "content", "response_format", "text", "stop", "system", "logprobs", "thinking"]
OTHERS = ["top_logprobs", "reasoning", "instructions", "stop_sequences", "chat_template_kwargs"]
BENDING = ["presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias", "n", "best_of", "echo"]
FIELDS = st.sampled_from([*SHARED, *SOME, *OTHERS, *BENDING])
CALL = {"id": 1, "function": {"name": "a", "arguments": "{"}}
VALID = {"model": "demo", "messages": [{"role": "user", "content": "x"}], "prompt": "x", "input": "x", "max_tokens": 2}
TYPED = st.sampled_from(
    [
        [{"role": "user", "content": "x"}],
        [
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": 1, "function": {"name": "a", "arguments": "{"}}],
            }
        ],
        [{"role": "tool", "content": [{"type": "text", "text": "x"}], "tool_call_id": "a"}],
        [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": 5}]}],
        [{"type": "function", "function": {"name": "a", "strict": True, "parameters": {"type": 5}}}],
        [{"type": "function", "name": "a", "strict": True, "parameters": {"properties": {"b": 7}}}],
        [{"name": "a", "input_schema": {"properties": {"b": {"$ref": "#/properties/b"}}}, "strict": True}],
        {"type": "json_schema", "json_schema": {"schema": {"type": "object", "required": 7}}},
        {"format": {"type": "json_schema", "schema": {"enum": []}}},
        {"type": "function", "function": {"name": "a"}},
        {"0": 100, "5": -100.0},
        ["a", "b"],
        [[5], [6, 7]],
        [[5], "a", 6],
        "required",
    ]
)
KEYS = {
    "/v1/chat/completions": {"model", "messages", "max_tokens"},
    "/v1/completions": {"model", "prompt", "max_tokens"},
    "/v1/responses": {"model", "input"},
    "/v1/messages": {"model", "messages", "max_tokens"},
    "/tokenize": {"prompt"},
}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=st.sampled_from(POSTS), changes=st.dictionaries(FIELDS, TYPED | NESTED, max_size=4))
def test_no_body_makes_the_server_fail(server: Hosted, path: str, changes: dict[str, Any]) -> None:
    body = {name: value for name, value in VALID.items() if name in KEYS[path]} | changes
    if not isinstance(body.get("max_tokens", 2), int) or body.get("max_tokens", 2) > 2:
        body.pop("max_tokens", None)
    if path == "/v1/responses":
        body["max_output_tokens"] = 2
    answer = httpx.post(f"{server.url}{path}", json=body, headers=HEADERS, timeout=PATIENCE)
    assert answer.status_code in (200, 400), answer.text
    if "text/event-stream" in answer.headers["content-type"]:
        assert "data: " in answer.text
    elif answer.status_code == 400:
        assert answer.json()["error"]["message"]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=st.sampled_from(POSTS), content=st.binary(max_size=60) | st.integers(1, 9000).map(lambda n: b"[" * n))
def test_what_is_no_json_is_refused(server: Hosted, path: str, content: bytes) -> None:
    sent = {**HEADERS, "content-type": "application/json"}
    assert httpx.post(f"{server.url}{path}", content=content, headers=sent).status_code == 400


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/v1/chat/completions", 405), ("POST", "/", 404), ("GET", "/../x", 404)]
)
def test_other_paths_and_methods_are_refused(server: Hosted, method: str, path: str, status: int) -> None:
    answer = httpx.request(method, f"{server.url}{path}", headers=HEADERS)
    assert answer.status_code == status
    assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/chat/completions", {"POST"}),
        ("DELETE", "/tokenize", {"POST"}),
        ("POST", "/v1/models", {"GET", "HEAD"}),
        ("PUT", "/v1/models/demo", {"GET", "HEAD"}),
    ],
)
def test_which_methods_a_path_has_is_told(server: Hosted, method: str, path: str, allowed: set[str]) -> None:
    answer = httpx.request(method, f"{server.url}{path}", headers=HEADERS)
    assert answer.status_code == 405
    assert set(answer.headers["allow"].split(", ")) == allowed


def test_a_failure_of_the_pack_is_a_documented_one(server: Hosted, monkeypatch: pytest.MonkeyPatch) -> None:
    from moepack.manifests.errors import MismatchError
    from moepack.runtime.engine import Engine

    def damaged(*_: object) -> None:
        raise MismatchError("layer 3 is damaged")

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "extend", damaged)
        with pytest.raises(openai.InternalServerError, match="layer 3 is damaged"):
            server.openai().completions.create(model="demo", prompt=QUESTION)
        with pytest.raises(openai.APIError, match="layer 3 is damaged"):
            list(server.openai().completions.create(model="demo", prompt=QUESTION, stream=True))
    assert server.openai().completions.create(model="demo", prompt=QUESTION, max_tokens=1).choices


def test_answers_that_are_not_done_at_the_end_are_told_so(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "GRACE", 0.2)
    extend = Engine.extend

    def slowly(engine: Engine, *given: Any) -> Any:
        time.sleep(0.02)
        return extend(engine, *given)

    monkeypatch.setattr(Engine, "extend", slowly)
    answers: dict[bool, httpx.Response] = {}
    with hosted(demo) as server:

        def ask(stream: bool) -> None:
            body = {"model": "demo", "prompt": "Once", "temperature": 2, "seed": 1, "max_tokens": 900, "stream": stream}
            answers[stream] = httpx.post(f"{server.url}/v1/completions", json=body, headers=HEADERS, timeout=60)

        threads = [threading.Thread(target=ask, args=(stream,)) for stream in (False, True)]
        for thread in threads:
            thread.start()
        until(lambda: server.service.scheduler.running == 2)
    for thread in threads:
        thread.join()
    assert (answers[False].status_code, answers[False].json()["error"]["code"]) == (503, "closing")
    *_, last = (line for line in answers[True].text.splitlines() if line.startswith("data: "))
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "closing"
