"""The endpoints: who may ask, which protocol a path speaks, and what comes back when it cannot be met."""

import asyncio
import hmac
import logging
from collections.abc import Awaitable, Callable, Sequence, Sized
from datetime import UTC, datetime
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ...manifests.errors import MoepackError
from . import chat, completions, messages, metrics, responses, tokens
from .delivery import GONE, Streamed, Whole
from .failures import ApiError
from .reading import body_of
from .service import Service
from .settings import is_loopback
from .shape import Shape
from .wishes import Ask

log = logging.getLogger("moepack.server")
Endpoint = Callable[[Request], Awaitable[Any]]
OPEN_PATHS = frozenset({"/health"})  # without a key


def application(service: Service) -> "Guard":
    """The server's ASGI application."""
    endpoints = Endpoints(service)
    routes = [Route(path, endpoint, methods=[method]) for method, path, endpoint in endpoints.table()]
    expected = (ApiError, MoepackError, HTTPException, ClientDisconnect, RecursionError)
    handlers: dict[Any, Any] = dict.fromkeys((*expected, Exception), _refusal)
    app = Starlette(routes=routes, exception_handlers=handlers)
    app.router.redirect_slashes = False
    endpoints.responses = metrics.Responses(frozenset(route.path for route in routes))
    return Guard(app, service, endpoints.responses)


class Endpoints:
    """One method for each path."""

    responses: metrics.Responses

    def __init__(self, service: Service) -> None:
        self._service = service
        self._tokenizer = service.language.tokenizer
        self._limits = service.settings.limits

    def table(self) -> list[tuple[str, str, Endpoint]]:
        """Method, path and endpoint."""
        return [
            ("POST", "/v1/chat/completions", self.chat),
            ("POST", "/v1/completions", self.completions),
            ("POST", "/v1/responses", self.answers),
            ("POST", "/v1/messages", self.messages),
            ("POST", "/v1/messages/count_tokens", self.count_tokens),
            ("POST", "/tokenize", self.tokenize),
            ("GET", "/v1/models", self.models),
            ("GET", "/v1/models/{name:path}", self.model),
            ("GET", "/health", self.health),
            ("GET", "/metrics", self.metrics),
        ]

    async def chat(self, request: Request) -> Any:
        """OpenAI's chats."""
        body = await body_of(request, chat.ChatRequest, self._limits)
        ask = await asyncio.to_thread(lambda: self._service.chat(chat.wish(body)))
        shape = chat.ChatShape(self._service.name, ask, body, self._tokenizer)
        return await self._answered(request, [ask], shape, stream=body.stream)

    async def completions(self, request: Request) -> Any:
        """OpenAI's texts to be continued."""
        body = await body_of(request, completions.CompletionRequest, self._limits)
        prompts, wish = completions.prompts(body), completions.wish(body)
        asks = await asyncio.to_thread(self._service.texts, prompts, wish)
        shape = completions.CompletionShape(self._service.name, asks, body, self._tokenizer)
        return await self._answered(request, asks, shape, stream=body.stream)

    async def answers(self, request: Request) -> Any:
        """OpenAI's responses."""
        body = await body_of(request, responses.ResponseRequest, self._limits)
        ask = await asyncio.to_thread(lambda: self._service.chat(responses.wish(body)))
        shape = responses.ResponseShape(self._service.name, ask, body, self._tokenizer)
        return await self._answered(request, [ask], shape, stream=body.stream)

    async def messages(self, request: Request) -> Any:
        """Anthropic's messages."""
        body = await body_of(request, messages.MessagesRequest, self._limits)
        ask = await asyncio.to_thread(lambda: self._service.chat(messages.wish(body)))
        return await self._answered(request, [ask], messages.MessageShape(self._service.name, ask), stream=body.stream)

    async def count_tokens(self, request: Request) -> Any:
        """How many tokens Anthropic's messages are."""
        body = await body_of(request, messages.CountRequest, self._limits)
        found = await asyncio.to_thread(lambda: self._service.counted(messages.counted(body)))
        return _json({"input_tokens": len(found)})

    async def tokenize(self, request: Request) -> Any:
        """The tokens of a text or chat."""
        body = await body_of(request, tokens.TokenizeRequest, self._limits)
        return _json(await asyncio.to_thread(tokens.document, body, self._service))

    async def models(self, request: Request) -> Any:
        """The one model, in both protocols' forms at once."""
        name = self._service.name
        return _json({"object": "list", "data": [self._model()], "has_more": False, "first_id": name, "last_id": name})

    async def model(self, request: Request) -> Any:
        """The model by its name."""
        if (name := request.path_params["name"]) != self._service.name:
            raise ApiError(f"there is no model {name!r:.100} here, only {self._service.name!r}", 404, "model")
        return _json(self._model())

    async def health(self, request: Request) -> Any:
        """Whether requests are taken."""
        if self._service.scheduler.closed:
            raise ApiError("nothing is taken any more: the server ends, or its log says why not", 503, code="closing")
        return _json({"status": "ok"})

    async def metrics(self, request: Request) -> Any:
        """For Prometheus."""
        return Response(metrics.text(self._service, self.responses), media_type=metrics.TYPE)

    def _model(self) -> dict[str, Any]:
        name, created = self._service.name, self._service.created
        at = datetime.fromtimestamp(created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        anthropic = {"type": "model", "display_name": name, "created_at": at}
        return {"id": name, "object": "model", "created": created, "owned_by": "moepack", **anthropic}

    async def _answered(self, request: Request, asks: Sequence[Ask], shape: Shape, *, stream: bool | None) -> Any:
        pending = self._service.begin(asks, request.client.host if request.client else "")
        return (Streamed if stream else Whole)(pending, shape, self._limits)


class Guard:
    """Before everything: the key, and the name by which a browser's page may reach a server that has none.

    `connections`: those that are open, of which whoever serves tells.
    """

    connections: Sized = ()

    def __init__(self, app: ASGIApp, service: Service, counted: metrics.Responses) -> None:
        self._app, self._responses = app, counted
        self._limits = service.settings.limits
        self._key = None if service.settings.key is None else service.settings.key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def counting(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._responses.count(scope["path"], message["status"])
            await send(message)

        try:
            self._check(Request(scope))
        except ApiError as error:
            await _refused(scope["path"], error)(scope, receive, counting)
            return
        await self._app(scope, receive, counting)

    def _check(self, request: Request) -> None:
        if len(self.connections) > (most := self._limits.connections):
            then = {"connection": "close", "retry-after": "1"}
            raise ApiError(f"more than {most} connections are open; try again", 503, None, "connections", then)
        if sum(len(name) + len(value) for name, value in request.headers.raw) > (most := self._limits.header_bytes):
            raise ApiError(f"the headers have more than {most} bytes", 431)
        if self._key is None:
            host = request.headers.get("host", "").rpartition(":")
            name = (host[0] if host[0] and host[2].isdigit() else "".join(host)).strip("[]")
            if not is_loopback(name):
                raise ApiError(f"a server without a key answers to localhost only, not to {name!r:.100}", 403)
        elif request.url.path not in OPEN_PATHS and not self._known(request):
            raise ApiError("the API key is missing or wrong", 401, code="invalid_api_key")

    def _known(self, request: Request) -> bool:
        assert self._key is not None
        bearer = request.headers.get("authorization", "")
        keys = [bearer[7:].strip()] if bearer[:7].lower() == "bearer " else []
        keys.append(request.headers.get("x-api-key", ""))  # clients may send both, of which one is another server's
        return any(hmac.compare_digest(key.encode(), self._key) for key in keys)


async def _refusal(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        said = {404: f"there is no {request.url.path!r:.100} here", 405: f"{request.method} is not for this path"}
        told = error.headers or {}  # which methods a path has
        error = ApiError(said.get(error.status_code, error.detail), error.status_code, headers=told)
    if isinstance(error, ClientDisconnect):
        return Response(status_code=GONE)
    found = ApiError.of(error)
    if found.status >= 500:
        log.error("%s %s: %s", request.method, request.url.path, error)
    return _refused(request.url.path, found)


def _refused(path: str, error: ApiError) -> Response:
    return _json(error.document(path), error.status, dict(error.headers))


def _json(document: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(document), status, headers, "application/json")
