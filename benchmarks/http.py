"""An HTTP/1.1 client that costs so little that it is not what is measured: asyncio, and a parser in C."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import httptools
import orjson

SECONDS_MAX = 120.0


class RequestFailed(Exception):
    """No answer, or not the one that was needed."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A response, and when its request began and its last byte came (``time.perf_counter``)."""

    status: int
    body: bytes
    began: float
    ended: float

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.ended - self.began

    def json(self) -> Any:
        """The body, parsed."""
        return orjson.loads(self.body)


class _Connection(asyncio.Protocol):
    """One request after the other."""

    def __init__(self) -> None:
        self.is_open = False
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[tuple[int, bytes, float]] | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._pieces: list[bytes] = []

    def exchange(self, request: bytes) -> asyncio.Future[tuple[int, bytes, float]]:
        """Send a request; the future has status, body and the time of the last byte."""
        assert self._transport is not None
        self._parser = httptools.HttpResponseParser(self)
        self._pieces = []
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._answer

    def close(self) -> None:
        """Hang up."""
        self.is_open = False
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """By asyncio."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        self.is_open = True

    def data_received(self, data: bytes) -> None:
        """By asyncio."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self.close()
            self._fail(f"not HTTP: {error}")

    def connection_lost(self, error: Exception | None) -> None:
        """By asyncio."""
        self.is_open = False
        self._fail("the connection was closed")

    def on_body(self, piece: bytes) -> None:
        """By the parser."""
        self._pieces.append(piece)

    def on_message_complete(self) -> None:
        """By the parser."""
        now = time.perf_counter()
        if not self._parser.should_keep_alive():
            self.close()
        if self._answer is not None and not self._answer.done():
            self._answer.set_result((self._parser.get_status_code(), b"".join(self._pieces), now))

    def _fail(self, reason: str) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(RequestFailed(reason))


class HttpClient:
    """Keeps as many connections to one server as there are requests at a time."""

    def __init__(self, host: str, port: int, tls: ssl.SSLContext | None = None) -> None:
        self._host, self._port, self._tls = host, port, tls
        self._idle: list[_Connection] = []

    async def request(
        self, method: str, path: str, *, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Send a request, ``body`` as JSON; raises RequestFailed when no answer comes."""
        payload = b"" if body is None else orjson.dumps(body)
        head = [f"{method} {path} HTTP/1.1", f"Host: {self._host}:{self._port}", f"Content-Length: {len(payload)}"]
        head += [f"{name}: {value}" for name, value in (headers or {}).items()]
        request = "\r\n".join((*head, "", "")).encode() + payload
        connection = await self._connection()
        began = time.perf_counter()
        try:
            async with asyncio.timeout(SECONDS_MAX):
                status, answer, ended = await connection.exchange(request)
        except BaseException as error:
            connection.close()
            if isinstance(error, TimeoutError):
                raise RequestFailed(f"{method} {path}: no answer in {SECONDS_MAX} s") from None
            raise
        if connection.is_open:
            self._idle.append(connection)
        return Answer(status, answer, began, ended)

    def close(self) -> None:
        """Close what is open."""
        while self._idle:
            self._idle.pop().close()

    async def _connection(self) -> _Connection:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                return connection
        try:
            _, connection = await asyncio.get_running_loop().create_connection(
                _Connection, self._host, self._port, ssl=self._tls, server_hostname=self._host if self._tls else None
            )
        except OSError as error:
            raise RequestFailed(f"cannot connect to {self._host}:{self._port}: {error}") from error
        return connection
