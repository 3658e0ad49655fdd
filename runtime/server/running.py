"""A server from its socket to its end, on uvicorn."""

import asyncio
import contextlib
import errno
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from ...manifests.errors import StorageError
from .._native import trim_heap
from ..serving.scheduler import Scheduler
from .app import application
from .service import Service
from .settings import Limits, Settings

GRACE = 3  # seconds for answers under way, at the end
TELLING = 2  # seconds more, for those that did not end to say so
UNSENT_BYTES = 65536
TRIM_SECONDS = 30
UNTAKEN = "ASGI callable returned without completing response."  # uvicorn's words for it
LEFT = "socket.send() raised exception."  # asyncio's, for pieces that were on their way to who went away


class Server(uvicorn.Server):
    """Ends on SIGINT and SIGTERM, and then returns, so that all that is open is closed in order."""

    def __init__(self, config: uvicorn.Config, scheduler: Scheduler) -> None:
        super().__init__(config)
        self._scheduler = scheduler

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take nothing any more; answers that are not done in time are told that the server ends."""
        self._scheduler.stop_taking()
        loop = asyncio.get_running_loop()
        telling = loop.call_later(GRACE, lambda: loop.run_in_executor(None, self._scheduler.close))
        await super().shutdown(sockets)
        telling.cancel()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handlers for as long as it runs, where there can be any."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def listening(settings: Settings) -> socket.socket:
    """The socket, bound. Raises StorageError if the port is taken, or the host is unknown or not this machine's."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=128)
    except (OSError, OverflowError, TypeError) as error:  # the last is a name's that cannot be encoded
        why = getattr(error, "strerror", None) or str(error)
        at_fault = "--port" if _of_port(error) else "--host"
        raise StorageError(
            f"{settings.host}:{settings.port} cannot be listened on: {why}; give another {at_fault}"
        ) from error


def _of_port(error: Exception) -> bool:
    """Whether another port may do: this one is taken, for others to take, or no port at all."""
    return isinstance(error, OverflowError) or getattr(error, "errno", None) in (errno.EADDRINUSE, errno.EACCES)


def address(bound: socket.socket) -> str:
    """What a client is pointed at."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def server(service: Service) -> Server:
    """For one service."""
    limits = service.settings.limits
    app = application(service)
    config = uvicorn.Config(
        app,
        loop="asyncio",
        http=protocol(limits),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=limits.idle_seconds,
        timeout_graceful_shutdown=GRACE + TELLING,
        callback_notify=_trim,
        timeout_notify=TRIM_SECONDS,
        h11_max_incomplete_event_size=limits.header_bytes,
    )
    for name in ("uvicorn.error", "asyncio"):
        logging.getLogger(name).addFilter(_plain)
    found = Server(config, service.scheduler)
    app.connections = found.server_state.connections
    return found


def _plain(record: logging.LogRecord) -> bool:
    """Whether to log what libraries take for the application's fault; who left, did not read, or is cut off is none.

    That answers are cut off at the end is told by uvicorn, once for all.
    """
    if record.msg == UNTAKEN:
        record.msg = "a client did not take its answer in time, and was hung up on"
    cut_off = record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError)
    return not cut_off and record.msg != LEFT


async def _trim() -> None:
    """Give back to the system what requests left free between what is kept, which else adds up; takes milliseconds."""
    trim_heap()


def run(service: Service, bound: socket.socket, ready: Callable[[], None]) -> None:
    """Serve until a signal ends it."""
    asyncio.run(_run(server(service), bound, ready))


async def _run(served: Server, bound: socket.socket, ready: Callable[[], None]) -> None:
    serving = asyncio.ensure_future(served.serve([bound]))
    while not served.started and not serving.done():
        await asyncio.sleep(0.01)
    ready()
    await serving


def protocol(limits: Limits) -> type[H11Protocol]:
    """HTTP/1.1 that hangs up on who does not finish a request's head in its time, the first or a later one."""

    class Prompt(H11Protocol):
        _due: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            _tune(transport.get_extra_info("socket"), limits)
            self._expect()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._expect()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            if self._due is not None:
                self._due.cancel()

        def _unsupported_upgrade_warning(self) -> None:
            """No word of it: whoever asks for a WebSocket would fill the log with advice to install one."""

        def _expect(self) -> None:
            if self._due is not None:
                self._due.cancel()
            self._due = self.loop.call_later(limits.header_seconds, self._hang_up)

        def _hang_up(self) -> None:
            if self.cycle is None or self.cycle.response_complete:
                self.transport.close()

    return Prompt


def _tune(connection: socket.socket, limits: Limits) -> None:
    """As far as this system knows the options.

    Small pieces of a stream are sent at once: held back for the client's acknowledgement, each takes up to 40 ms
    (asyncio does so only for sockets that name their protocol, which accepted ones do as the listening one does). A
    piece is taken when little is left unsent, not when the client has a megabyte of what is before it. Who takes
    nothing is given up by the kernel, too, which else keeps what is closed until it is sent.
    """
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for name, value in (("TCP_NOTSENT_LOWAT", UNSENT_BYTES), ("TCP_USER_TIMEOUT", int(limits.send_seconds * 1000))):
        if option := getattr(socket, name, None):
            connection.setsockopt(socket.IPPROTO_TCP, option, value)
