"""Listening: all listeners of one process, with and without TLS, in one event loop, and a clean stop.

On SIGTERM or SIGINT the listeners close, long polls end, open requests get ``GRACEFUL_STOP_SECONDS`` to finish, and
then the application closes its resources. A second signal stops without waiting for open requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import gc
import resource
import signal
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, cast

import orjson
import structlog
import uvicorn
import uvloop
from starlette.applications import Starlette
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from homeserver.config import Config, ListenerConfig, Service
from homeserver.errors import (
    ConfigurationError,
    HomeserverError,
    LimitExceeded,
    MatrixError,
    TooLarge,
    Unrecognized,
)
from homeserver.web.client_addresses import ClientAddresses
from homeserver.web.edge import CORS_HEADERS
from homeserver.web.large_answers import ABORT
from homeserver.web.responses import json_response

logger = structlog.get_logger(__name__)

GRACEFUL_STOP_SECONDS = 10
STOPS = {"errcode": "M_UNKNOWN", "error": "The server stops"}
"""The answer to a request that did not finish within that time."""
KEEP_ALIVE_SECONDS = 75
"""How long an idle connection stays open: a little longer than the reverse proxies in front of us keep theirs."""
REQUEST_WAIT_SECONDS = 30
"""How long the head of a request may take to arrive; in such a time each, a body must make progress."""
BODY_BYTES_PER_SECOND_MIN = 1024
"""How fast a body must arrive, after its first ``REQUEST_WAIT_SECONDS``. (Those that take memory must be faster: see
``web.bodies``.)
"""
READER_WAIT_SECONDS = 60
"""How long a reader may leave about 50 KiB of its answer unread before its connection is closed."""
HEADERS_MAX = 100
"""How many headers a request may have."""
CONNECTIONS_PER_ADDRESS_MAX = 1_000
"""Connections of one address at one listener, unless it is a trusted proxy; further ones are closed."""
REQUEST_HEAD_BYTES_MAX = 64 * 1024
"""The limit for a head that arrives in several pieces."""
CONNECTIONS_MAX = 20_000
"""Connections and requests in progress at each listener; beyond that the answer is 503."""
BACKLOG = 2048
FREE_BYTES_MAX = 24 * 1024 * 1024
"""How much free memory each heap of the C library keeps: a little more than a password hash takes."""
ARENAS_MAX = 2
"""How many heaps the C library keeps for all threads."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # from glibc's malloc.h
OBJECTS_PER_COLLECTION = 10_000
"""How many new objects (lists, dictionaries and so on) start a collection of the youngest generation."""

SERVICE_PREFIXES: tuple[tuple[str, Service], ...] = (
    ("/_matrix/media/", "media"),
    ("/_matrix/client/v1/media/", "media"),
    ("/_matrix/federation/v1/media/", "media"),
    ("/_matrix/client/", "client"),
    ("/_matrix/federation/", "federation"),
    ("/_matrix/key/", "federation"),
    ("/.well-known/matrix/client", "client"),
    ("/.well-known/matrix/support", "client"),
    ("/.well-known/matrix/server", "federation"),
    ("/_homeserver/metrics", "metrics"),
    ("/_homeserver/console", "console"),
    ("/_homeserver/", "client"),
    ("/metrics", "metrics"),
)
"""The service that a path belongs to, by the first matching prefix. A path without one is open at every listener."""


def run(build_app: Callable[[], Starlette], config: Config) -> None:
    """Serve the application on every listener of ``config`` until SIGTERM or SIGINT.

    ``build_app`` is called in the running event loop. The application's lifespan spans all listeners. If
    ``app.state.begin_shutdown`` is there, it is called (without arguments) when the stop begins.

    Raises ConfigurationError for TLS files that cannot be used, HomeserverError when an address is not to be had.
    """
    _allow_many_files()
    return_freed_memory()
    for listener in config.listeners:
        _check_tls(listener)
    with contextlib.ExitStack() as sockets:
        bound = [(listener, sockets.enter_context(_bind(listener))) for listener in config.listeners]
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(build_app, bound, config))


async def _serve(
    build_app: Callable[[], Starlette], bound: list[tuple[ListenerConfig, socket.socket]], config: Config
) -> None:
    app = build_app()
    async with app.router.lifespan_context(app):
        for listener, sock in bound:
            _listen(listener, sock)
        servers = [(_Server(app, listener, config.trusted_proxies), sock) for listener, sock in bound]
        with _stop_on_signals(app, [server for server, _ in servers]):
            _settle_garbage_collector()
            async with asyncio.TaskGroup() as group:
                for server, sock in servers:
                    group.create_task(server.serve(sockets=[sock]))
        logger.info("stopping")
    logger.info("stopped")


class _Server(uvicorn.Server):
    """A uvicorn server for one of several listeners in a process; it leaves signals to ``run``."""

    def __init__(self, app: ASGIApp, listener: ListenerConfig, trusted_proxies: tuple[str, ...]) -> None:
        super().__init__(_uvicorn_config(app, listener, trusted_proxies))
        self._listener = listener

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for sock in sockets or []:
            bind, port = sock.getsockname()[:2]
            serves = sorted(self._listener.serves)
            logger.info("listening", bind=bind, port=port, tls=self._listener.is_tls, serves=serves)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _uvicorn_config(app: ASGIApp, listener: ListenerConfig, trusted_proxies: tuple[str, ...]) -> uvicorn.Config:
    return uvicorn.Config(
        OnlyServing(app, listener.serves),
        http=type("ListenersHttp", (BoundedHttp,), {"counts": ConnectionCounts(trusted_proxies)}),
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # ``web.ClientAddresses`` reads X-Forwarded-For where an address is needed
        limit_concurrency=CONNECTIONS_MAX,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=GRACEFUL_STOP_SECONDS,
        ssl_certfile=listener.tls_certificate,
        ssl_keyfile=listener.tls_private_key,
    )


class ConnectionCounts:
    """How many connections each address has at one listener."""

    def __init__(self, trusted_proxies: tuple[str, ...] = ()) -> None:
        self._addresses = ClientAddresses(trusted_proxies)
        self._counts: Counter[str] = Counter()

    def enter(self, peer: tuple[str, int] | None) -> str | None:
        """Count a connection; returns what to ``leave`` with, or None if it is not counted.

        Raises ``LimitExceeded`` if the address has too many.
        """
        if peer is None or self._addresses.is_trusted(peer[0]):
            return None
        address = self._addresses.of({"client": peer, "headers": ()})
        if self._counts[address] >= CONNECTIONS_PER_ADDRESS_MAX:
            raise LimitExceeded
        self._counts[address] += 1
        return address

    def leave(self, address: str | None) -> None:
        """Count a connection no longer."""
        if address is not None:
            self._counts[address] -= 1
            if not self._counts[address]:
                del self._counts[address]


class BoundedHttp(HttpToolsProtocol):
    """HTTP/1.1 for connections that may be hostile.

    Bounds the size of a request's head, the time that a request takes to arrive, how much of its body is in memory
    before the application asks for it, and the time in which a reader reads nothing. Input that is not HTTP is answered
    with a Matrix error too.
    """

    counts = ConnectionCounts()
    """Of the listener; a subclass for each listener has its own."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._is_coming = False
        """Whether a request has begun and is not complete."""
        self._head_bytes: int | None = None
        """How many bytes of its head have arrived, while the head is incomplete."""
        self._deadline: asyncio.TimerHandle | None = None
        self._has_too_many_headers = False
        self._body_bytes = 0
        """How many bytes of its body have arrived since the timer was started."""
        self._reader_deadline: asyncio.TimerHandle | None = None
        self._address: str | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as the base class
        """https://docs.python.org/3/library/asyncio-protocol.html"""
        super().connection_made(transport)
        try:
            self._address = self.counts.enter(self.client)
        except LimitExceeded:
            transport.abort()
            return
        self._wait(KEEP_ALIVE_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the timers."""
        self._stop_waiting()
        self._stop_waiting_for_reader()
        self.counts.leave(self._address)
        self._address = None
        if self.scope is not None:
            cast(dict[str, Any], self.scope).pop(ABORT, None)  # it refers to this object, which ends here
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The reader does not keep up: it has some time to read what is buffered."""
        super().pause_writing()
        self._wait_for_reader()

    def resume_writing(self) -> None:
        """The reader has read most of what was buffered."""
        super().resume_writing()
        self._stop_waiting_for_reader()

    def on_response_complete(self) -> None:
        """An answer is written, but perhaps not read."""
        super().on_response_complete()
        if self.transport.get_write_buffer_size():
            self._wait_for_reader()

    def timeout_keep_alive_handler(self) -> None:
        """Nothing has come for a while: close the connection."""
        super().timeout_keep_alive_handler()
        self._wait_for_reader()

    def data_received(self, data: bytes) -> None:
        """Parse the bytes; close the connection if a request takes too long or its head is too large."""
        was_in_body = self._is_coming and self._head_bytes is None
        super().data_received(data)
        if self.transport.is_closing():
            return
        if not self._is_coming:  # nearly always: a request arrives in one piece
            self._stop_waiting()
        elif self._head_bytes is None:
            if was_in_body and self._deadline is not None:
                self._body_bytes += len(data)
            else:
                self._stop_waiting()
                self._body_bytes = len(data)
                self._wait(REQUEST_WAIT_SECONDS)
            if not self.cycle.response_complete:
                self.flow.pause_reading()  # until the application asks for more
        else:
            self._head_bytes += len(data)
            if self._head_bytes > REQUEST_HEAD_BYTES_MAX:
                self._refuse(431, TooLarge("The head of the request is too large"))
            elif self._deadline is None:
                self._wait(REQUEST_WAIT_SECONDS)

    def on_message_begin(self) -> None:
        """A request begins: start the timer."""
        super().on_message_begin()
        cast(dict[str, Any], self.scope)[ABORT] = self._abort
        self._is_coming, self._head_bytes = True, 0

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header has arrived."""
        super().on_header(name, value)
        if len(self.headers) > HEADERS_MAX:
            self._has_too_many_headers = True
            raise ValueError("too many headers")  # the parser gives up, and calls ``send_400_response``

    def on_headers_complete(self) -> None:
        """The head of the request is complete."""
        self._head_bytes = None
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The whole request has arrived."""
        self._is_coming = False
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer input that is not HTTP, or that the parser gave up."""
        if self._has_too_many_headers:
            self._refuse(431, TooLarge(f"A request may have {HEADERS_MAX} headers"))
        else:
            self._refuse(400, Unrecognized(msg))

    def _wait(self, seconds: float) -> None:
        self._deadline = self.loop.call_later(seconds, self._give_up)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _give_up(self) -> None:
        is_in_body = self._is_coming and self._head_bytes is None
        # If this side has paused reading, it is not the client that is slow.
        if self.flow.read_paused or (
            is_in_body and self._body_bytes >= BODY_BYTES_PER_SECOND_MIN * REQUEST_WAIT_SECONDS
        ):
            self._body_bytes = 0
            self._wait(REQUEST_WAIT_SECONDS)
        elif not self.transport.is_closing():
            self.transport.close()
            self._wait_for_reader()

    def _wait_for_reader(self) -> None:
        if self._reader_deadline is None and self.transport.get_write_buffer_size():
            self._reader_deadline = self.loop.call_later(READER_WAIT_SECONDS, self._abort_if_unread)

    def _stop_waiting_for_reader(self) -> None:
        if self._reader_deadline is not None:
            self._reader_deadline.cancel()
            self._reader_deadline = None

    def _abort_if_unread(self) -> None:
        self._reader_deadline = None
        if self.transport.get_write_buffer_size():
            self._abort()

    def _abort(self) -> None:
        self.transport.abort()

    def _refuse(self, status: int, error: MatrixError) -> None:
        body = orjson.dumps(error.body())
        headers = [
            *self.server_state.default_headers,
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
            *CORS_HEADERS,
        ]
        lines = b"".join(b"%s: %s\r\n" % header for header in headers)
        self.transport.write(b"%s%s\r\n%s" % (STATUS_LINE[status], lines, body))
        self.transport.close()
        self._wait_for_reader()


def _check_tls(listener: ListenerConfig) -> None:
    """Raise ConfigurationError for unusable TLS files before anything else has started."""
    if listener.tls_certificate is None:
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(listener.tls_certificate, listener.tls_private_key)
    except OSError as error:  # ssl.SSLError is one
        raise ConfigurationError(
            f"listeners.tls_certificate = {str(listener.tls_certificate)!r}, tls_private_key = "
            f"{str(listener.tls_private_key)!r}: expected a PEM certificate and its private key ({error})"
        ) from error


@contextlib.contextmanager
def _stop_on_signals(app: Starlette, servers: list[_Server]) -> Iterator[None]:
    """Stop all servers at the first signal; the second signal does not wait for open requests."""
    loop = asyncio.get_running_loop()

    def stop() -> None:
        for server in servers:
            server.force_exit = server.should_exit
            server.should_exit = True
        if begin_shutdown := getattr(app.state, "begin_shutdown", None):
            begin_shutdown()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


class OnlyServing:
    """An ASGI application that lets through the paths that a listener serves; others get 404 M_UNRECOGNIZED."""

    def __init__(self, app: ASGIApp, serves: frozenset[Service]) -> None:
        self._app = app
        self._closed_prefixes = tuple(prefix for prefix, service in SERVICE_PREFIXES if service not in serves)
        self._serves = serves

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """https://asgi.readthedocs.io/en/latest/specs/www.html"""
        # Most listeners leave out nothing but metrics: then one comparison is enough.
        if (
            scope["type"] == "http"
            and scope["path"].startswith(self._closed_prefixes)
            and self._is_closed(scope["path"])
        ):
            await json_response(Unrecognized().body(), Unrecognized.status, CORS_HEADERS)(scope, receive, send)
        else:
            try:
                await self._app(scope, receive, send)
            except asyncio.CancelledError:
                await _say_that_the_server_stops(scope, receive, send)

    def _is_closed(self, path: str) -> bool:
        for prefix, service in SERVICE_PREFIXES:
            if path.startswith(prefix):
                return service not in self._serves
        return False


async def _say_that_the_server_stops(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a request that uvicorn has cancelled, because the time for a stop is over; nothing else cancels requests.

    Uvicorn would log the cancellation as an error of the application, with a traceback.
    """
    logger.info("a request was given up because the server stops", method=scope["method"], path=scope["path"])
    with contextlib.suppress(RuntimeError):  # uvicorn's, if the answer has begun already
        await json_response(STOPS, 503, CORS_HEADERS)(scope, receive, send)


def _bind(listener: ListenerConfig) -> socket.socket:
    """A socket that is bound, but does not listen yet: no client connects before the application has started."""
    bind, port = listener.bind, listener.port
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            bind, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if bind == "::" and socket.has_dualstack_ipv6():
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            sock.bind(address)
        except OSError:
            sock.close()
            raise
    except OSError as error:
        raise _cannot_listen(listener, error) from error
    return sock


def _listen(listener: ListenerConfig, sock: socket.socket) -> None:
    """Let clients connect. Two sockets can be bound to the same address, but only one of them can listen there."""
    try:
        sock.listen(BACKLOG)
    except OSError as error:
        raise _cannot_listen(listener, error) from error


def _cannot_listen(listener: ListenerConfig, error: OSError) -> HomeserverError:
    reason = "the port is taken" if error.errno == errno.EADDRINUSE else error.strerror
    return HomeserverError(f"cannot listen on {listener.bind} port {listener.port}: {reason}")


def _allow_many_files() -> None:
    """Raise the soft limit on open files, often 1,024: every connection is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = CONNECTIONS_MAX * 2 if hard == resource.RLIM_INFINITY else min(hard, CONNECTIONS_MAX * 2)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        # macOS may refuse a limit that it reports as possible: then keep the old one
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def return_freed_memory() -> None:
    """Have the C library return freed memory to the system. Does nothing if that is not glibc.

    glibc makes up to eight heaps for each core, and adapts to the blocks that are freed: after the first password hash,
    which takes 19 MiB, each heap keeps 38 MiB. To keep less than one hash takes would cost more than it is worth: each
    page that is given back has to be cleared when it is needed again.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    mallopt(_M_TRIM_THRESHOLD, FREE_BYTES_MAX)
    mallopt(_M_MMAP_THRESHOLD, FREE_BYTES_MAX)
    mallopt(_M_ARENA_MAX, ARENAS_MAX)


def _settle_garbage_collector() -> None:
    """Exclude what start-up made (modules, routes, schemas) from every collection: it lives as long as the process.

    Reference counts free nearly everything that requests leave behind. Looking for cycles after every 700 objects,
    Python's default, would take a tenth of the time of joining a large room.
    """
    gc.freeze()
    gc.set_threshold(OBJECTS_PER_COLLECTION)
