"""/sync, /messages and the other endpoints that clients read from, over HTTP."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from homeserver.app import build_app
from homeserver.config import Config
from homeserver.protocol.json_types import JsonObject
from homeserver.signing import SigningKeys
from tests.waiting import WAIT_S

BASE = "/_matrix/client/v3"


class Client:
    """One logged-in device."""

    def __init__(self, http: httpx.AsyncClient, registered: JsonObject) -> None:
        self._http = http
        self.user_id: str = registered["user_id"]
        self._headers = {"Authorization": f"Bearer {registered['access_token']}"}

    async def ask(self, method: str, path: str, body: Any = None, **query: Any) -> httpx.Response:
        return await self._http.request(method, BASE + path, json=body, params=query, headers=self._headers)

    async def __call__(self, method: str, path: str, body: Any = None, **query: Any) -> Any:
        response = await self.ask(method, path, body, **query)
        assert response.status_code == 200, response.text
        return response.json()

    async def refused(self, status: int, errcode: str, method: str, path: str, body: Any = None, **query: Any) -> None:
        response = await self.ask(method, path, body, **query)
        assert (response.status_code, response.json()["errcode"]) == (status, errcode), response.text


Story = Callable[[Client, Client, str], Awaitable[None]]


@pytest.fixture
def tell(tmp_path: Path, migrated_sqlite_file: Path) -> Callable[[Story], None]:
    """Runs a story of alice and bob, who are in a room."""

    async def run(story: Story) -> None:
        shutil.copyfile(migrated_sqlite_file, tmp_path / "homeserver.db")
        settings = {"server_name": "example.org", "data_dir": ".", "registration": {"enabled": True}}
        config = Config.parse(settings, tmp_path)
        SigningKeys.load(config.keys_dir, config.server_name).generate(1)
        app = build_app(config)
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://x") as http,
        ):
            clients = []
            for name in ("alice", "bob"):
                body = {"username": name, "password": "correct horse", "auth": {"type": "m.login.dummy"}}
                clients.append(Client(http, (await http.post(f"{BASE}/register", json=body)).json()))
            alice, bob = clients
            room = (await alice("POST", "/createRoom", {"preset": "public_chat", "name": "A room"}))["room_id"]
            await bob("POST", f"/join/{quote(room)}", {})
            await story(alice, bob, room)

    return lambda story: asyncio.run(run(story))


async def send(client: Client, room: str, body: str) -> str:
    content = {"msgtype": "m.text", "body": body}
    event_id: str = (await client("PUT", f"/rooms/{room}/send/m.room.message/{body}", content))["event_id"]
    return event_id


def test_sync_and_long_poll(tell: Callable[[Story], None]) -> None:
    async def story(alice: Client, bob: Client, room: str) -> None:
        first = await bob("GET", "/sync", filter='{"room":{"timeline":{"limit":1}}}')
        assert len(first["rooms"]["join"][room]["timeline"]["events"]) == 1
        poll = asyncio.create_task(bob("GET", "/sync", since=first["next_batch"], timeout=30_000))
        event_id = await send(alice, room, "news")
        events = (await asyncio.wait_for(poll, WAIT_S))["rooms"]["join"][room]["timeline"]["events"]
        assert [event["event_id"] for event in events] == [event_id]
        mine = await alice("GET", "/sync", since=first["next_batch"], use_state_after="true")
        assert mine["rooms"]["join"][room]["timeline"]["events"][0]["unsigned"]["transaction_id"] == "news"
        assert "state_after" in mine["rooms"]["join"][room]
        unstable = await alice("GET", "/sync", **{"org.matrix.msc4222.use_state_after": "true"})
        assert "state_after" in unstable["rooms"]["join"][room]
        filter_id = (await bob("POST", f"/user/{bob.user_id}/filter", {"room": {"rooms": []}}))["filter_id"]
        assert "rooms" not in await bob("GET", "/sync", filter=filter_id)
        assert "rooms" in (await bob.ask("GET", "/sync", set_presence="offline", full_state="true")).json()

    tell(story)


def test_logout_ends_a_long_poll(tell: Callable[[Story], None]) -> None:
    async def story(alice: Client, bob: Client, room: str) -> None:
        since = (await bob("GET", "/sync"))["next_batch"]
        poll = asyncio.create_task(bob.ask("GET", "/sync", since=since, timeout=30_000))
        await send(alice, room, "one event, so that the poll begins")
        since = (await poll).json()["next_batch"]
        poll = asyncio.create_task(bob.ask("GET", "/sync", since=since, timeout=30_000))
        await asyncio.sleep(0)
        await bob("POST", "/logout", {})
        response = await asyncio.wait_for(poll, WAIT_S)
        assert (response.status_code, response.json()["errcode"]) == (401, "M_UNKNOWN_TOKEN")

    tell(story)


@pytest.mark.parametrize(
    ("query", "errcode"),
    [
        ({"since": "nonsense"}, "M_INVALID_PARAM"),
        ({"since": "s99999999"}, "M_UNKNOWN_POS"),
        ({"timeout": "soon"}, "M_INVALID_PARAM"),
        ({"timeout": "-1"}, "M_INVALID_PARAM"),
        ({"full_state": "maybe"}, "M_INVALID_PARAM"),
        ({"set_presence": "gone"}, "M_INVALID_PARAM"),
        ({"filter": "{"}, "M_NOT_JSON"),
        ({"filter": '{"room":[]}'}, "M_BAD_JSON"),
        ({"filter": "unknown"}, "M_INVALID_PARAM"),
    ],
)
def test_bad_sync_parameters(tell: Callable[[Story], None], query: dict[str, str], errcode: str) -> None:
    async def story(alice: Client, bob: Client, room: str) -> None:
        await alice.refused(400, errcode, "GET", "/sync", **query)

    tell(story)


def test_getting_events(tell: Callable[[Story], None]) -> None:
    async def story(alice: Client, bob: Client, room: str) -> None:
        event_id = await send(alice, room, "hello")
        path = f"/rooms/{quote(room)}"
        page = await bob("GET", f"{path}/messages", dir="b", limit=2)
        assert page["chunk"][0]["event_id"] == event_id
        assert page["chunk"][0]["room_id"] == room
        older = await bob("GET", f"{path}/messages", dir="b", **{"from": page["end"]}, filter='{"types":["m.room.*"]}')
        assert "end" not in older
        assert older["chunk"][-1]["type"] == "m.room.create"
        assert (await bob("GET", f"{path}/event/{quote(event_id)}"))["content"]["body"] == "hello"
        assert {event["type"] for event in await bob("GET", f"{path}/state")} >= {"m.room.create", "m.room.name"}
        assert await bob("GET", f"{path}/state/m.room.name") == {"name": "A room"}
        assert await bob("GET", f"{path}/state/m.room.name/") == {"name": "A room"}
        whole = await bob("GET", f"{path}/state/m.room.member/{quote(alice.user_id)}", format="event")
        assert (whole["room_id"], whole["sender"]) == (room, alice.user_id)
        members = await bob("GET", f"{path}/members", membership="join")
        assert {event["state_key"] for event in members["chunk"]} == {alice.user_id, bob.user_id}
        joined = (await bob("GET", f"{path}/joined_members"))["joined"]
        assert set(joined) == {alice.user_id, bob.user_id}
        assert await bob("GET", "/joined_rooms") == {"joined_rooms": [room]}

    tell(story)


def test_refusals(tell: Callable[[Story], None]) -> None:
    async def story(alice: Client, bob: Client, room: str) -> None:
        path = f"/rooms/{quote(room)}"
        await bob.refused(400, "M_MISSING_PARAM", "GET", f"{path}/messages")
        await bob.refused(400, "M_INVALID_PARAM", "GET", f"{path}/messages", dir="x")
        await bob.refused(400, "M_INVALID_PARAM", "GET", f"{path}/messages", dir="b", **{"from": "x"})
        await bob.refused(400, "M_NOT_JSON", "GET", f"{path}/messages", dir="b", filter="{")
        await bob.refused(400, "M_INVALID_PARAM", "GET", f"{path}/members", membership="friend")
        await bob.refused(404, "M_NOT_FOUND", "GET", f"{path}/event/$unknown")
        await bob.refused(404, "M_NOT_FOUND", "GET", f"{path}/state/m.room.topic")
        for rest in ("messages", "state", "members", "joined_members", "state/m.room.name"):
            await bob.refused(403, "M_FORBIDDEN", "GET", f"/rooms/!other:example.org/{rest}", dir="b")
        await bob.refused(404, "M_NOT_FOUND", "GET", "/rooms/!other:example.org/event/$x")
        await bob("POST", f"{path}/leave", {})
        await bob("GET", f"{path}/messages", dir="b")
        await bob("POST", f"{path}/forget", {})
        await bob.refused(403, "M_FORBIDDEN", "GET", f"{path}/messages", dir="b")

    tell(story)


def test_receipts(tell: Callable[[Story], None]) -> None:
    async def story(alice: Client, bob: Client, room: str) -> None:
        event_id = await send(alice, room, "hello")
        since = (await alice("GET", "/sync"))["next_batch"]
        path = f"/rooms/{quote(room)}/receipt"
        assert await bob("POST", f"{path}/m.read/{event_id}", {"thread_id": "main"}) == {}
        assert await bob("POST", f"{path}/m.fully_read/{event_id}") == {}
        news = (await alice("GET", "/sync", since=since))["rooms"]["join"][room]
        (receipt,) = news["ephemeral"]["events"]
        assert receipt["content"][event_id]["m.read"][bob.user_id]["thread_id"] == "main"
        assert "account_data" not in news
        own = (await bob("GET", "/sync", since=since))["rooms"]["join"][room]["account_data"]["events"]
        assert own == [{"type": "m.fully_read", "content": {"event_id": event_id}}]
        for thread_id in ("", 1, None, event_id + "x"):
            await bob.refused(400, "M_INVALID_PARAM", "POST", f"{path}/m.read/{event_id}", {"thread_id": thread_id})
        body = {"thread_id": "main"}
        await bob.refused(400, "M_INVALID_PARAM", "POST", f"{path}/m.fully_read/{event_id}", body)
        await bob.refused(400, "M_INVALID_PARAM", "POST", f"{path}/m.nonsense/{event_id}", {})
        await bob.refused(400, "M_INVALID_PARAM", "POST", f"{path}/m.read/$unknown", {})
        await bob.refused(403, "M_FORBIDDEN", "POST", f"/rooms/!other:example.org/receipt/m.read/{event_id}", {})

    tell(story)


def test_typing(tell: Callable[[Story], None]) -> None:
    async def story(alice: Client, bob: Client, room: str) -> None:
        since = (await alice("GET", "/sync"))["next_batch"]
        path = f"/rooms/{quote(room)}/typing/{quote(bob.user_id)}"
        await bob("PUT", path, {"typing": True, "timeout": 30_000})
        news = (await alice("GET", "/sync", since=since))["rooms"]["join"][room]
        assert news["ephemeral"]["events"] == [{"type": "m.typing", "content": {"user_ids": [bob.user_id]}}]
        await bob("PUT", path, {"typing": False})
        await alice.refused(403, "M_FORBIDDEN", "PUT", path, {"typing": True})
        await bob.refused(400, "M_MISSING_PARAM", "PUT", path, {})
        await bob.refused(400, "M_BAD_JSON", "PUT", path, {"typing": "yes"})
        await bob.refused(400, "M_BAD_JSON", "PUT", path, {"typing": True, "timeout": -1})

    tell(story)
