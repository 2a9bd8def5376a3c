"""A remote server that asks ours, for tests of endpoints."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx

from homeserver.protocol.compose import finish_template
from homeserver.protocol.events import Event
from homeserver.protocol.room_versions import ROOM_VERSIONS
from tests.factories.rooms import server_key
from tests.fakes.servers import OurServer, RemoteServer, Servers

OURS, REMOTE = "ours.test:8448", "remote.test:8448"
V1, V2 = "/_matrix/federation/v1", "/_matrix/federation/v2"
BOB = f"@bob:{REMOTE}"


@dataclass
class Asking:
    """Our server with alice, and a remote server that asks it."""

    servers: Servers
    ours: OurServer
    remote: RemoteServer
    alice: str

    async def get(self, *path: str, query: str = "", prefix: str = V1) -> httpx.Response:
        return await self.remote.request("GET", OURS, _uri(prefix, path, query))

    async def put(self, content: Any, *path: str, query: str = "", prefix: str = V2) -> httpx.Response:
        return await self.remote.request("PUT", OURS, _uri(prefix, path, query), content)

    async def post(self, content: Any, *path: str) -> httpx.Response:
        return await self.remote.request("POST", OURS, _uri(V1, path, ""), content)

    async def template(self, kind: str, room_id: str, user_id: str = BOB, version: str = "11") -> Event:
        """Our answer to make_join and its like, signed by the remote server."""
        response = await self.get(f"make_{kind}", room_id, user_id, query=f"ver={version}")
        assert response.status_code == 200, response.text
        answer = response.json()
        assert answer["room_version"] == version
        localpart = "chosen" if version in ("1", "2") else None
        return finish_template(
            answer["event"], ROOM_VERSIONS[version], server_key(user_id.partition(":")[2]), 1_700_000_000_000, localpart
        )

    async def join(self, room_id: str, user_id: str = BOB, version: str = "11", query: str = "") -> dict[str, Any]:
        event = await self.template("join", room_id, user_id, version)
        response = await self.put(event.pdu, "send_join", room_id, event.event_id, query=query)
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer


def _uri(prefix: str, path: tuple[str, ...], query: str) -> str:
    uri = "/".join((prefix, *(quote(segment, safe="") for segment in path)))
    return f"{uri}?{query}" if query else uri


def ask(servers: Servers, story: Callable[[Asking], Awaitable[None]]) -> None:
    async def run() -> None:
        async with servers:
            ours = await servers.ours(OURS)
            await story(Asking(servers, ours, servers.remote(REMOTE), await ours.user("alice")))

    asyncio.run(run())


def refused(response: httpx.Response, status: int, errcode: str) -> dict[str, Any]:
    assert (response.status_code, response.json().get("errcode")) == (status, errcode), response.text
    body: dict[str, Any] = response.json()
    return body
