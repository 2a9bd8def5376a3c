"""People with accounts on our servers, who use the client-server API and the governance API."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from homeserver.protocol.json_types import JsonObject
from tests.fakes.servers import OurServer, Servers, eventually

ONE, TWO, THREE = "one.test:8448", "two.test:8448", "three.test:8448"
PASSWORD = "correct horse"

_txn_ids = itertools.count(1)


class Refused(Exception):
    """An answer other than 200."""

    def __init__(self, response: httpx.Response) -> None:
        self.status = response.status_code
        self.body: JsonObject = response.json()
        self.errcode: str = self.body.get("errcode", "")
        super().__init__(f"{self.status} {response.text}")


class Person:
    """One logged-in device."""

    def __init__(self, http: httpx.AsyncClient, registered: JsonObject, server: OurServer) -> None:
        self._http = http
        self._headers = {"Authorization": f"Bearer {registered['access_token']}"}
        self.user_id: str = registered["user_id"]
        self.server = server

    async def ask(self, method: str, path: str, body: Any = None, **query: Any) -> Any:
        """A request with a whole path. Raises ``Refused``."""
        query = {name.rstrip("_"): value for name, value in query.items()}
        response = await self._http.request(method, path, json=body, params=query, headers=self._headers)
        if response.status_code != 200:
            raise Refused(response)
        return response.json()

    async def client(self, method: str, path: str, body: Any = None, **query: Any) -> Any:
        return await self.ask(method, f"/_matrix/client/v3{path}", body, **query)

    async def room(self, method: str, room_id: str, path: str, body: Any = None, **query: Any) -> Any:
        """A request of the client-server API below a room."""
        return await self.client(method, f"/rooms/{quote(room_id)}/{path}", body, **query)

    async def governed(self, method: str, room_id: str, path: str, body: Any = None, **query: Any) -> Any:
        """A request of the governance API below a room."""
        return await self.ask(method, f"/_homeserver/v1/rooms/{quote(room_id)}/{path}", body, **query)

    # -- rooms ---------------------------------------------------------------------------------------------------------

    async def create_room(self, preset: str = "private_chat", **options: Any) -> str:
        return str((await self.client("POST", "/createRoom", {"preset": preset, **options}))["room_id"])

    async def invite(self, room_id: str, other: Person, **body: Any) -> None:
        await self.room("POST", room_id, "invite", {"user_id": other.user_id, **body})

    async def join(self, room_id: str, *, via: str = ONE) -> None:
        await self.client("POST", f"/join/{quote(room_id)}", {}, via=via)

    async def leave(self, room_id: str, **body: Any) -> None:
        await self.room("POST", room_id, "leave", body)

    async def kick(self, room_id: str, other: Person, **body: Any) -> None:
        await self.room("POST", room_id, "kick", {"user_id": other.user_id, **body})

    async def ban(self, room_id: str, other: Person, **body: Any) -> None:
        await self.room("POST", room_id, "ban", {"user_id": other.user_id, **body})

    async def unban(self, room_id: str, other: Person) -> None:
        await self.room("POST", room_id, "unban", {"user_id": other.user_id})

    async def send(self, room_id: str, text: str = "hello", **content: Any) -> str:
        body = {"msgtype": "m.text", "body": text, **content}
        return str((await self.room("PUT", room_id, f"send/m.room.message/t{next(_txn_ids)}", body))["event_id"])

    async def put_state(self, room_id: str, kind: str, content: JsonObject, key: str = "") -> str:
        return str((await self.room("PUT", room_id, f"state/{kind}/{quote(key)}", content))["event_id"])

    async def state(self, room_id: str, kind: str, key: str = "") -> JsonObject:
        content: JsonObject = await self.room("GET", room_id, f"state/{kind}/{quote(key)}")
        return content

    async def levels(self, room_id: str) -> JsonObject:
        return await self.state(room_id, "m.room.power_levels")

    async def membership(self, room_id: str, other: Person) -> str | None:
        return await self.server.membership(room_id, other.user_id)

    async def sees(self, room_id: str, other: Person, membership: str) -> None:
        """The server of this person comes to know a membership."""

        async def probe() -> bool:
            return await self.membership(room_id, other) == membership

        await eventually(probe)

    async def sync(self, since: str | None = None) -> JsonObject:
        answer: JsonObject = await self.client("GET", "/sync", **({"since": since} if since else {}))
        return answer

    async def sees_invitation(self, room_id: str) -> None:
        async def probe() -> bool:
            return room_id in (await self.sync()).get("rooms", {}).get("invite", {})

        await eventually(probe)

    # -- governance ----------------------------------------------------------------------------------------------------

    async def roles(self, room_id: str, **query: Any) -> JsonObject:
        answer: JsonObject = await self.governed("GET", room_id, "roles", **query)
        return answer

    async def give(self, room_id: str, other: Person, role: str, **options: Any) -> str | None:
        body = {"role": role, **options}
        answer: JsonObject = await self.governed("PUT", room_id, f"roles/{quote(other.user_id)}", body)
        assert set(answer) == {"event_id"}
        event_id: str | None = answer["event_id"]
        return event_id

    async def invitations(self, room_id: str) -> list[JsonObject]:
        found: list[JsonObject] = (await self.governed("GET", room_id, "invitations"))["invitations"]
        return found

    async def statuses(self, room_id: str) -> dict[str, str]:
        """The localpart of each invited user, and where the invitation stands."""
        return {i["user_id"][1:].partition(":")[0]: i["status"] for i in await self.invitations(room_id)}

    async def revoke(self, room_id: str, other: Person, **body: Any) -> str:
        answer = await self.governed("DELETE", room_id, f"invitations/{quote(other.user_id)}", body)
        return str(answer["event_id"])

    async def bans(self, room_id: str) -> list[JsonObject]:
        found: list[JsonObject] = (await self.governed("GET", room_id, "bans"))["bans"]
        return found

    async def readers(self, room_id: str, event_id: str) -> list[str]:
        """The localparts of who has read an event."""
        found = await self.governed("GET", room_id, f"events/{quote(event_id)}/receipts")
        return [r["user_id"][1:].partition(":")[0] for r in found["receipts"]]


class World:
    """Servers on one network, and people on them."""

    def __init__(self, servers: Servers, stack: AsyncExitStack) -> None:
        self.servers = servers
        self._stack = stack
        self._running: dict[str, tuple[OurServer, httpx.AsyncClient]] = {}

    async def server(self, name: str = ONE, **settings: Any) -> OurServer:
        """One of our servers, with open registration."""
        if name not in self._running:
            ours = await self.servers.ours(name, registration={"enabled": True}, **settings)
            http = httpx.AsyncClient(transport=httpx.ASGITransport(ours.app), base_url=f"http://{name}")
            self._running[name] = (ours, await self._stack.enter_async_context(http))
        return self._running[name][0]

    async def person(self, localpart: str, server: str = ONE) -> Person:
        """A new account."""
        ours = await self.server(server)
        http = self._running[server][1]
        body = {"username": localpart, "password": PASSWORD, "auth": {"type": "m.login.dummy"}}
        registered = await http.post("/_matrix/client/v3/register", json=body)
        assert registered.status_code == 200, registered.text
        return Person(http, registered.json(), ours)

    async def room_of(self, owner: Person, *others: Person, **options: Any) -> str:
        """A room that the owner makes and the others join."""
        room_id = await owner.create_room("public_chat", **options)
        for other in others:
            await other.join(room_id)
            for witness in (owner, *others[: others.index(other)]):
                await witness.sees(room_id, other, "join")
        return room_id


def tell(servers: Servers, story: Callable[[World], Awaitable[None]]) -> None:
    """Run a story."""

    async def run() -> None:
        async with servers, AsyncExitStack() as stack:
            await story(World(servers, stack))

    asyncio.run(run())


async def refused(attempt: Awaitable[Any], status: int = 403, errcode: str = "M_FORBIDDEN", **extra: Any) -> JsonObject:
    """The body of the refusal that an attempt meets."""
    with pytest.raises(Refused) as caught:
        await attempt
    refusal = caught.value
    assert (refusal.status, refusal.errcode) == (status, errcode), str(refusal)
    for name, value in extra.items():
        assert refusal.body.get(name) == value, str(refusal)
    return refusal.body
