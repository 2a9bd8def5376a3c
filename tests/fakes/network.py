"""A network of homeservers in one process: requests go from application to application, unless they are stopped."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import httpx
from starlette.types import ASGIApp


@dataclass(frozen=True, slots=True)
class Sent:
    """A request that somebody made."""

    source: str
    destination: str
    method: str
    path: str
    body: bytes


class FakeNetwork:
    """Delivers requests by server name; names have an explicit port, so that nobody asks the DNS."""

    def __init__(self) -> None:
        self.apps: dict[str, ASGIApp] = {}
        self.sent: list[Sent] = []
        self._cut: set[tuple[str, str]] = set()
        self._held: dict[tuple[str, str], asyncio.Event] = {}
        self.tamper: Callable[[Sent], Sent] = lambda sent: sent
        """Changes requests on their way."""

    def transport(self, source: str) -> httpx.AsyncBaseTransport:
        """The network as one server sees it."""
        return _Link(self, source)

    def split(self, one: str, other: str) -> None:
        """Neither reaches the other any more."""
        self._cut |= {(one, other), (other, one)}

    def heal(self, one: str, other: str) -> None:
        """They reach each other again."""
        self._cut -= {(one, other), (other, one)}

    def hold(self, source: str, destination: str) -> asyncio.Event:
        """Requests wait until the event is set."""
        self._held[source, destination] = held = asyncio.Event()
        return held

    def requests(self, destination: str | None = None, path: str = "") -> list[Sent]:
        """What was sent, to a server, with a path that holds this."""
        return [s for s in self.sent if destination in (None, s.destination) and path in s.path]

    async def deliver(self, source: str, request: httpx.Request) -> httpx.Response:
        destination = request.url.netloc.decode()
        body = b"".join([chunk async for chunk in request.stream])  # type: ignore[union-attr]
        sent = Sent(source, destination, request.method, request.url.raw_path.decode(), body)
        self.sent.append(sent)
        if (source, destination) in self._cut or destination not in self.apps:
            raise httpx.ConnectError("no way there")
        if (held := self._held.get((source, destination))) is not None:
            await held.wait()
        sent = self.tamper(sent)
        url = f"https://{destination}{sent.path}"
        headers = [(n, v) for n, v in request.headers.raw if n.lower() not in (b"content-length", b"host")]
        forwarded = httpx.Request(sent.method, url, headers=headers, content=sent.body or None)
        return await httpx.ASGITransport(self.apps[destination]).handle_async_request(forwarded)


class _Link(httpx.AsyncBaseTransport):
    def __init__(self, network: FakeNetwork, source: str) -> None:
        self._network = network
        self._source = source

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return await self._network.deliver(self._source, request)
