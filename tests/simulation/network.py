"""A network that delays, loses, repeats and reorders what is sent, and that can be cut, one way or both.

Every request has a delay of its own, so requests overtake each other. What is lost on the way there never arrives;
what is lost on the way back has happened at the other side, and the sender does not know.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from typing import Any

import httpx
from starlette.types import ASGIApp

from tests.simulation.trace import Trace
from tests.simulation.virtual_loop import Life

NO_ANSWER_S = 20.0
"""How long a server waits for an answer that does not come."""


@dataclass(slots=True)
class Weather:
    """How bad the network is: chances between 0 and 1, and the longest delay."""

    delay_s: float = 0.05
    lose_request: float = 0.0
    lose_answer: float = 0.0
    repeat: float = 0.0


@dataclass(slots=True)
class Answer:
    """An HTTP response."""

    status: int
    body: bytes
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)


@dataclass(slots=True)
class Host:
    """An application that runs, and the life in which it does."""

    app: ASGIApp
    life: Life


class Network:
    """Joins applications by server name."""

    def __init__(self, chance: random.Random, trace: Trace) -> None:
        self._chance = chance
        self._trace = trace
        self.hosts: dict[str, Host] = {}
        self.weather = Weather()
        self.cut: set[tuple[str, str]] = set()
        """Pairs of source and destination between which nothing gets through."""

    def split(self, one: str, other: str) -> None:
        """Neither reaches the other any more."""
        self.cut |= {(one, other), (other, one)}

    def heal(self) -> None:
        """Everybody reaches everybody, in good weather."""
        self.cut.clear()
        self.weather = Weather()

    def transport(self, source: str) -> httpx.AsyncBaseTransport:
        """The network as one server sees it."""
        return _Link(self, source)

    async def deliver(self, source: str, request: httpx.Request) -> Answer:
        """Carry a server's request to another. Raises ``httpx.TransportError`` where no answer comes back."""
        destination = request.url.netloc.decode()
        body = b"".join([chunk async for chunk in request.stream])  # type: ignore[union-attr]
        target = request.url.raw_path.decode()
        what = f"{source} -> {destination} {request.method} {target}"
        weather = self.weather
        await self._delay()
        if (source, destination) in self.cut or self._chance.random() < weather.lose_request:
            self._trace.note(f"{what} lost")
            await asyncio.sleep(self._chance.uniform(0.1, NO_ANSWER_S))
            raise httpx.ReadTimeout("lost on the way there")
        headers = [(name.lower(), value) for name, value in request.headers.raw]
        if self._chance.random() < weather.repeat:
            again = self._later(destination, request.method, target, headers, body)
            asyncio.get_running_loop().create_task(again)
        try:
            answer = await self.ask(destination, request.method, target, headers, body)
        except ConnectionError as error:
            self._trace.note(f"{what} {error}")
            raise httpx.ConnectError(str(error)) from error
        await self._delay()
        if (destination, source) in self.cut or self._chance.random() < weather.lose_answer:
            self._trace.note(f"{what} answer lost")
            await asyncio.sleep(self._chance.uniform(0.1, NO_ANSWER_S))
            raise httpx.ReadTimeout("the answer was lost")
        self._trace.note(f"{what} {answer.status}", body, answer.body)
        return answer

    async def ask(
        self, destination: str, method: str, target: str, headers: list[tuple[bytes, bytes]], body: bytes
    ) -> Answer:
        """Have an application answer a request, in its own life. Raises ``ConnectionError`` where it is not running."""
        host = self.hosts.get(destination)
        if host is None or host.life.is_over:
            raise ConnectionError("nobody is there")
        answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        host.life.tell_at_end(answered)
        host.life.spawn(_answer(host.app, method, target, headers, body, answered))
        return await answered

    async def _later(self, *request: Any) -> None:
        await asyncio.sleep(self._chance.uniform(0, 5))
        try:
            await self.ask(*request)
        except ConnectionError:
            return

    async def _delay(self) -> None:
        await asyncio.sleep(self._chance.uniform(0.001, self.weather.delay_s))


class _Link(httpx.AsyncBaseTransport):
    def __init__(self, network: Network, source: str) -> None:
        self._network = network
        self._source = source

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        answer = await self._network.deliver(self._source, request)
        return httpx.Response(answer.status, headers=answer.headers, content=answer.body)


async def _answer(
    app: ASGIApp,
    method: str,
    target: str,
    headers: list[tuple[bytes, bytes]],
    body: bytes,
    answered: asyncio.Future[Answer],
) -> None:
    raw_path, _, query = target.partition("?")
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "https",
        "path": httpx.URL(f"https://x{raw_path}").path,
        "raw_path": raw_path.encode(),
        "query_string": query.encode(),
        "headers": headers,
        "client": ("198.51.100.1", 1),
        "server": ("198.51.100.2", 443),
    }
    response = Answer(0, b"")
    has_read = False

    async def receive() -> dict[str, Any]:
        nonlocal has_read
        if has_read:
            await asyncio.get_running_loop().create_future()  # the client stays
        has_read = True
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            response.status, response.headers = message["status"], list(message.get("headers", ()))
        else:
            response.body += message.get("body", b"")

    try:
        await app(scope, receive, send)
    except Exception as error:
        if not answered.done():
            answered.set_exception(error)
        return
    if not answered.done():
        answered.set_result(response)
