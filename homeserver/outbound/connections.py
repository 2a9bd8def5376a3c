"""HTTP/1.1 connections that stay open between requests, as a transport for httpx.

A destination says separately where to connect, and which name the certificate must have: federation reaches
``matrix.example.org`` at the host and port of an SRV record, and still wants a certificate for ``matrix.example.org``.
Connections are kept by destination as a whole, so one whose certificate was checked for one name is never used for
another.

httptools (llhttp) parses the answers: one exchange takes about a tenth of the CPU of httpx's own transport.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import cast

import httptools
import httpx

from homeserver.outbound.addresses import AddressResolver

CONNECTIONS_PER_DESTINATION_MAX = 64
"""How many requests to one destination run at the same time; others wait. ``places`` has the bounds by purpose, which
together are fewer: nobody waits here for somebody else's purpose.
"""
CONNECTIONS_IN_USE_MAX = 1024
"""How many requests run at the same time in all; the same is true of this."""
CONNECTIONS_IDLE_MAX = 256
"""How many connections are kept open unused; beyond that, the one that was used longest ago is closed."""
IDLE_SECONDS_MAX = 60.0
"""How long a connection is kept open unused."""
CONNECT_SECONDS_MAX = 60.0
"""How long connecting may take if the request sets no limit."""
HEAD_BYTES_MAX = 64 * 1024
"""How many bytes may come without any of the body: head, chunk headers or trailers."""
HEADERS_MAX = 200
READ_BUFFER_BYTES_MAX = 1024 * 1024
"""How much of a body is buffered before reading from the socket is paused."""

_IDEMPOTENT = frozenset({"GET", "PUT", "DELETE"})
_UNSAFE_IN_HEADER = re.compile(rb"[\r\n\0]")


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a request goes, and which certificate is expected there."""

    tls_name: str
    """The name, or the IP literal without brackets, that the certificate must be for."""
    host_header: str
    """The ``Host`` header: a name with or without a port."""
    addresses: tuple[tuple[str, int], ...]
    """Hosts (names, or IP literals without brackets) and ports, in the order to try them."""
    is_tls: bool = True


class ConnectionPool(httpx.AsyncBaseTransport):
    """Sends each request over a connection to ``request.extensions["destination"]``.

    ``request.extensions["timeout"]`` has ``connect`` and ``read`` in seconds, as httpx writes them; ``read`` is how
    long the other side may send nothing. Raises ``httpx.TransportError`` for every failure.
    """

    def __init__(
        self, ssl_context: ssl.SSLContext, resolver: AddressResolver, *, idle_max: int = CONNECTIONS_IDLE_MAX
    ) -> None:
        self._ssl_context = ssl_context
        self._resolver = resolver
        self._idle_max = idle_max
        self._lanes: dict[Destination, _Lane] = {}
        self._idle: OrderedDict[_Connection, float] = OrderedDict()
        self._open: set[_Connection] = set()
        self._in_use = asyncio.Semaphore(CONNECTIONS_IN_USE_MAX)
        self._sweep_timer: asyncio.TimerHandle | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send the request; the answer's body is read from ``response.stream``, which must be closed."""
        destination: Destination = request.extensions["destination"]
        message = _serialize(request)
        lane = self._lanes.get(destination)
        if lane is None:
            lane = self._lanes[destination] = _Lane(destination)
        lane.users += 1
        try:
            await lane.free.acquire()
            try:
                await self._in_use.acquire()
                try:
                    return await self._exchange(request, message, lane)
                except BaseException:
                    self._in_use.release()
                    raise
            except BaseException:
                lane.free.release()
                raise
        except BaseException:
            self._leave(lane)
            raise

    async def _exchange(self, request: httpx.Request, message: bytes, lane: _Lane) -> httpx.Response:
        timeouts = request.extensions.get("timeout", {})
        read_timeout: float | None = timeouts.get("read")
        connection = self._take_idle(lane)
        if connection is not None:
            try:
                exchange = await connection.send(message, read_timeout)
            except _Stale as error:
                # The other side closed the connection just as we sent the request; it may have been processed.
                if request.method not in _IDEMPOTENT:
                    raise httpx.RemoteProtocolError(str(error)) from error
                connection = None
        if connection is None:
            connection = await self._connect(lane.destination, timeouts.get("connect"))
            try:
                exchange = await connection.send(message, read_timeout)
            except _Stale as error:
                raise httpx.RemoteProtocolError(str(error)) from error
        body = _Body(self, lane, connection, exchange, read_timeout)
        return httpx.Response(exchange.status, headers=exchange.headers, stream=body, request=request)

    async def _connect(self, destination: Destination, seconds_max: float | None) -> _Connection:
        """Try one address after the other; each gets its share of the time that is left."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + (seconds_max if seconds_max is not None else CONNECT_SECONDS_MAX)
        failure: Exception = httpx.ConnectError("no address to connect to")
        for position, (host, port) in enumerate(destination.addresses):
            hosts_left = len(destination.addresses) - position
            try:
                async with asyncio.timeout((deadline - loop.time()) / hosts_left):
                    addresses = await self._resolver.resolve(host)
            except TimeoutError:
                failure = httpx.ConnectTimeout(f"{host} did not resolve in time")
                continue
            except httpx.ConnectError as error:
                failure = error
                continue
            for tried, address in enumerate(addresses):
                share = (deadline - loop.time()) / (hosts_left * (len(addresses) - tried))
                try:
                    return await self._connect_to(destination, address, port, share)
                except httpx.TransportError as error:
                    failure = error
        raise failure

    async def _connect_to(self, destination: Destination, address: str, port: int, seconds_max: float) -> _Connection:
        where = f"{address} port {port}"
        connection = _Connection(self)
        try:
            async with asyncio.timeout(seconds_max):
                await asyncio.get_running_loop().create_connection(
                    lambda: connection,
                    address,
                    port,
                    ssl=self._ssl_context if destination.is_tls else None,
                    server_hostname=destination.tls_name if destination.is_tls else None,
                )
        except TimeoutError as error:
            raise httpx.ConnectTimeout(f"no connection to {where} in time") from error
        except ssl.SSLCertVerificationError as error:
            reason = f"the certificate at {where} is not valid for {destination.tls_name}: {error.verify_message}"
            raise httpx.ConnectError(reason) from error
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError; ValueError is a name that TLS cannot use
            raise httpx.ConnectError(f"no connection to {where}: {error}") from error
        return connection

    # -- connections that wait for the next request --------------------------------------------------------------------

    def _take_idle(self, lane: _Lane) -> _Connection | None:
        while lane.idle:
            connection = lane.idle.pop()
            self._idle.pop(connection, None)
            connection.idle_in = None
            if connection.is_usable:
                return connection
        return None

    def _put_idle(self, connection: _Connection, lane: _Lane) -> None:
        loop = asyncio.get_running_loop()
        connection.idle_in = lane
        lane.idle.append(connection)
        self._idle[connection] = loop.time() + IDLE_SECONDS_MAX
        if len(self._idle) > self._idle_max:
            self._close_idle(next(iter(self._idle)))
        if self._sweep_timer is None:
            self._sweep_timer = loop.call_later(IDLE_SECONDS_MAX, self._sweep)

    def _close_idle(self, connection: _Connection) -> None:
        self._forget_idle(connection)
        connection.abort()

    def _forget_idle(self, connection: _Connection) -> None:
        self._idle.pop(connection, None)
        lane, connection.idle_in = connection.idle_in, None
        if lane is not None:
            lane.idle.remove(connection)
            self._drop_if_unused(lane)

    def connection_opened(self, connection: _Connection) -> None:
        """Called by each new connection, so that ``aclose`` can close it."""
        self._open.add(connection)

    def connection_closed(self, connection: _Connection) -> None:
        """Called by each connection when it is closed, by either side."""
        self._open.discard(connection)
        self._forget_idle(connection)

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        self._sweep_timer = None
        for connection, expires_at in list(self._idle.items()):
            if expires_at > loop.time():
                self._sweep_timer = loop.call_at(expires_at, self._sweep)
                return
            self._close_idle(connection)

    def release(self, connection: _Connection, lane: _Lane, *, reusable: bool) -> None:
        """Called when an exchange is over: keep the connection if it is reusable, and let the next request run."""
        if reusable and connection.is_usable:
            self._put_idle(connection, lane)
        else:
            connection.abort()
        self._in_use.release()
        lane.free.release()
        self._leave(lane)

    def _leave(self, lane: _Lane) -> None:
        lane.users -= 1
        self._drop_if_unused(lane)

    def _drop_if_unused(self, lane: _Lane) -> None:
        if not lane.users and not lane.idle:
            self._lanes.pop(lane.destination, None)

    async def aclose(self) -> None:
        """Close every connection."""
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
            self._sweep_timer = None
        connections = list(self._open)
        for connection in connections:
            connection.abort()
        if connections:
            await asyncio.wait([connection.closed for connection in connections], timeout=1)
        self._resolver.close()


@dataclass(slots=True, eq=False)
class _Lane:
    """The connections to one destination."""

    destination: Destination
    free: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(CONNECTIONS_PER_DESTINATION_MAX))
    idle: list[_Connection] = field(default_factory=list)
    users: int = 0
    """How many requests run or wait."""


class _Stale(Exception):
    """The connection was closed before the first byte of an answer."""


class _Connection(asyncio.Protocol):
    """One connection, with one exchange at a time."""

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool = pool
        self._transport: asyncio.Transport | None = None
        self._exchange: _Exchange | None = None
        self.idle_in: _Lane | None = None
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def is_usable(self) -> bool:
        """Whether another request can be sent over it."""
        return self._transport is not None and not self._transport.is_closing()

    async def send(self, message: bytes, read_timeout: float | None) -> _Exchange:
        """Send a request and wait for the head of its answer. Raises ``httpx.TransportError`` or ``_Stale``."""
        assert self._transport is not None
        exchange = self._exchange = _Exchange(self._transport)
        try:
            self._transport.write(message)
            await exchange.wait_for_head(read_timeout)
        except BaseException:
            self.abort()
            raise
        return exchange

    def finish_exchange(self) -> None:
        """Called when the answer was read to its end or abandoned."""
        self._exchange = None

    def abort(self) -> None:
        """Close the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    # -- asyncio.Protocol ----------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's transports are not subclasses
        self._pool.connection_opened(self)

    def data_received(self, data: bytes) -> None:
        if self._exchange is None or self._exchange.is_complete:
            self.abort()  # unsolicited bytes must not be taken for the answer to the next request
            return
        self._exchange.feed(data)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        if self._exchange is not None:
            self._exchange.connection_lost(error)
        self._pool.connection_closed(self)
        if not self.closed.done():
            self.closed.set_result(None)


class _Exchange:
    """The answer to one request as it comes in: the parser calls it on one side, the reader on the other."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._parser = httptools.HttpResponseParser(self)
        self._waiter: asyncio.Future[None] | None = None
        self._chunks: deque[bytes] = deque()
        self._buffered_bytes = 0
        self._silent_bytes = 0
        self._is_paused = False
        self._has_begun = False
        self._failure: Exception | None = None
        self.status = 0
        """0 until the head is complete."""
        self.headers: list[tuple[bytes, bytes]] = []
        self.is_complete = False
        self.keeps_alive = False

    # -- the reader ----------------------------------------------------------------------------------------------------

    async def wait_for_head(self, silence_max: float | None) -> None:
        """Return when ``status`` and ``headers`` are complete."""
        while not self.status:
            await self._wait(silence_max)

    async def next_chunk(self, silence_max: float | None) -> bytes:
        """The next piece of the body; empty at its end."""
        while not self._chunks:
            if self.is_complete:
                return b""
            await self._wait(silence_max)
        chunk = self._chunks.popleft()
        self._buffered_bytes -= len(chunk)
        if self._is_paused and self._buffered_bytes < READ_BUFFER_BYTES_MAX:
            self._is_paused = False
            self._transport.resume_reading()
        return chunk

    async def _wait(self, silence_max: float | None) -> None:
        if self._failure is not None:
            raise self._failure
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(silence_max):
                await self._waiter
        except TimeoutError as error:
            raise httpx.ReadTimeout("no answer in time") from error
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, failure: Exception) -> None:
        self._failure = self._failure or failure
        self._wake()

    # -- the connection ------------------------------------------------------------------------------------------------

    def feed(self, data: bytes) -> None:
        """Parse bytes from the other side."""
        self._has_begun = True
        self._silent_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(httpx.RemoteProtocolError(f"not an HTTP answer: {error}"))
        if self._silent_bytes > HEAD_BYTES_MAX or len(self.headers) > HEADERS_MAX:
            self._fail(httpx.RemoteProtocolError("the head of the answer is too large"))
        if self._failure is not None:
            self._transport.abort()
        elif self._buffered_bytes > READ_BUFFER_BYTES_MAX and not self._is_paused and not self.is_complete:
            self._is_paused = True
            self._transport.pause_reading()

    def connection_lost(self, error: Exception | None) -> None:
        """The connection was closed: no more bytes will come."""
        if self.is_complete:
            return
        if not self._has_begun:
            self._fail(_Stale("the connection was closed without an answer"))
        elif error is None and self.status and not self._is_framed():
            self.is_complete = True  # the end of the connection ends a body without a length
            self._wake()
        else:
            self._fail(httpx.ReadError("the connection was closed in the middle of the answer"))

    def _is_framed(self) -> bool:
        return any(name.lower() in {b"content-length", b"transfer-encoding"} for name, _ in self.headers)

    # -- httptools.HttpResponseParser ----------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """The answer begins. A second answer was not asked for, so the connection must not be reused."""
        if self.is_complete:
            self.keeps_alive = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header. After the body it is a trailer, which is ignored."""
        if not self.status:
            self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """The head is complete; a 1xx answer only announces the real one."""
        if self.is_complete:
            return
        status = self._parser.get_status_code()
        if status < 200:
            self.headers.clear()
            return
        self.status = status
        self._wake()

    def on_body(self, data: bytes) -> None:
        """A piece of the body."""
        if self.is_complete:
            return
        self._silent_bytes = 0
        self._chunks.append(data)
        self._buffered_bytes += len(data)
        self._wake()

    def on_message_complete(self) -> None:
        """The answer is complete."""
        if not self.status or self.is_complete:
            return
        self.is_complete = True
        self.keeps_alive = self._parser.should_keep_alive()
        self._wake()


class _Body(httpx.AsyncByteStream):
    """The body of an answer; closing it releases the connection."""

    def __init__(
        self,
        pool: ConnectionPool,
        lane: _Lane,
        connection: _Connection,
        exchange: _Exchange,
        read_timeout: float | None,
    ) -> None:
        self._pool = pool
        self._lane = lane
        self._connection = connection
        self._exchange = exchange
        self._read_timeout = read_timeout
        self._is_closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while chunk := await self._exchange.next_chunk(self._read_timeout):
            yield chunk

    async def aclose(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        self._connection.finish_exchange()
        reusable = self._exchange.is_complete and self._exchange.keeps_alive
        self._pool.release(self._connection, self._lane, reusable=reusable)


def _serialize(request: httpx.Request) -> bytes:
    """The request as bytes. Its body must have been given as bytes."""
    lines = [b"%s %s HTTP/1.1" % (request.method.encode("ascii"), request.url.raw_path)]
    lines += [b"%s: %s" % header for header in request.headers.raw]
    if any(_UNSAFE_IN_HEADER.search(line) for line in lines):
        raise httpx.LocalProtocolError("a header contains a line break")
    lines += [b"", request.content]
    return b"\r\n".join(lines)
