"""POST /rooms/{roomId}/upgrade over HTTP. https://spec.matrix.org/v1.19/client-server-api/#room-upgrades"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from homeserver.app import build_app
from homeserver.config import Config
from homeserver.signing import SigningKeys
from tests.client_api.test_reading import BASE, Client


class PlainClient(Client):
    """One that can send what is no JSON."""

    async def post_text(self, path: str, text: bytes) -> httpx.Response:
        return await self._http.post(BASE + path, content=text, headers=self._headers)


Story = Callable[[PlainClient, PlainClient, str], Awaitable[None]]


@pytest.fixture
def tell(tmp_path: Path, database_url: str) -> Callable[[Story], None]:
    """Runs a story of alice and bob, who are in a room of alice's, on each kind of database."""

    async def run(story: Story) -> None:
        settings = {
            "server_name": "example.org",
            "data_dir": ".",
            "database": {"url": database_url},
            "registration": {"enabled": True},
        }
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
                clients.append(PlainClient(http, (await http.post(f"{BASE}/register", json=body)).json()))
            alice, bob = clients
            wanted = {"preset": "public_chat", "name": "A room", "room_alias_name": "room"}
            room = (await alice("POST", "/createRoom", wanted))["room_id"]
            await bob("POST", f"/join/{quote(room)}", {})
            await story(alice, bob, room)

    return lambda story: asyncio.run(run(story))


async def upgrade(client: Client, room: str, version: str, **body: Any) -> str:
    answer = await client("POST", f"/rooms/{quote(room)}/upgrade", {"new_version": version, **body})
    assert set(answer) == {"replacement_room"}
    new: str = answer["replacement_room"]
    return new


def test_what_clients_see_of_it(tell: Callable[[Story], None]) -> None:
    async def story(alice: Client, bob: Client, room: str) -> None:
        since = {client: (await client("GET", "/sync"))["next_batch"] for client in (alice, bob)}
        poll = asyncio.create_task(bob("GET", "/sync", since=since[bob], timeout=30_000))
        new = await upgrade(alice, room, "12")
        assert (await alice("GET", "/directory/room/%23room:example.org"))["room_id"] == new

        joined = (await alice("GET", "/sync", since=since[alice]))["rooms"]["join"]
        assert set(joined) == {room, new}
        opening = [*joined[new].get("state", {}).get("events", []), *joined[new]["timeline"]["events"]]
        create = next(event for event in opening if event["type"] == "m.room.create")
        assert create["content"] == {"room_version": "12", "predecessor": {"room_id": room}}
        assert {"m.room.name", "m.room.power_levels", "m.room.canonical_alias"} <= {e["type"] for e in opening}

        seen = (await asyncio.wait_for(poll, 5))["rooms"]["join"]
        timeline = seen[room]["timeline"]["events"]
        assert [event["type"] for event in timeline] == [
            "m.room.tombstone", "m.room.canonical_alias", "m.room.power_levels",
        ]  # fmt: skip
        assert timeline[0]["content"]["replacement_room"] == new
        await bob.refused(403, "M_FORBIDDEN", "PUT", f"/rooms/{quote(room)}/send/m.room.message/1", {"body": "x"})
        await bob("POST", f"/join/{quote(new)}", {})
        await bob("PUT", f"/rooms/{quote(new)}/send/m.room.message/2", {"body": "x", "msgtype": "m.text"})
        # Links into the old room go on leading somewhere.
        await bob("GET", f"/rooms/{quote(room)}/event/{quote(timeline[0]['event_id'])}")

    tell(story)


def test_down_and_up_again(tell: Callable[[Story], None]) -> None:
    async def story(alice: Client, bob: Client, room: str) -> None:
        # "When upgrading to a room version which doesn't support additional creators, this field is ignored"
        for version, creators in (("12", [bob.user_id]), ("1", "nonsense"), ("11", [7]), ("12", []), ("12", None)):
            await bob("POST", f"/join/{quote(room)}", {})
            room = await upgrade(alice, room, version, additional_creators=creators)
            state = await alice("GET", f"/rooms/{quote(room)}/state")
            content = {event["type"]: event["content"] for event in state}
            assert content["m.room.create"].get("room_version") == version
            expected = [bob.user_id] if creators == [bob.user_id] else None
            assert content["m.room.create"].get("additional_creators") == expected
            assert content["m.room.name"] == {"name": "A room"}
        await alice("PUT", f"/rooms/{quote(room)}/state/m.room.name", {"name": "Another"})

    tell(story)


@pytest.mark.parametrize(
    ("body", "status", "errcode"),
    [
        ({}, 400, "M_MISSING_PARAM"),
        ([], 400, "M_BAD_JSON"),
        ({"new_version": 12}, 400, "M_BAD_JSON"),
        ({"new_version": ""}, 400, "M_UNSUPPORTED_ROOM_VERSION"),
        ({"new_version": "13"}, 400, "M_UNSUPPORTED_ROOM_VERSION"),
        ({"new_version": "org.example.none"}, 400, "M_UNSUPPORTED_ROOM_VERSION"),
        ({"new_version": "12", "additional_creators": "@bob:example.org"}, 400, "M_BAD_JSON"),
        ({"new_version": "12", "additional_creators": [1]}, 400, "M_BAD_JSON"),
        ({"new_version": "12", "additional_creators": ["bob"]}, 400, "M_INVALID_PARAM"),
        ({"new_version": "12", "additional_creators": ["@b\0b:example.org"]}, 400, "M_INVALID_PARAM"),
        (
            {"new_version": "12", "additional_creators": [f"@{n:0200}:example.org" for n in range(400)]},
            413,
            "M_TOO_LARGE",
        ),
    ],
)
def test_requests_that_make_no_room(tell: Callable[[Story], None], body: Any, status: int, errcode: str) -> None:
    async def story(alice: Client, bob: Client, room: str) -> None:
        before = (await alice("GET", "/joined_rooms"))["joined_rooms"]
        await alice.refused(status, errcode, "POST", f"/rooms/{quote(room)}/upgrade", body)
        assert (await alice("GET", "/joined_rooms"))["joined_rooms"] == before
        await alice.refused(404, "M_NOT_FOUND", "GET", f"/rooms/{quote(room)}/state/m.room.tombstone")
        assert (await alice("GET", "/directory/room/%23room:example.org"))["room_id"] == room

    tell(story)


def test_who_may_not(tell: Callable[[Story], None]) -> None:
    async def story(alice: Client, bob: Client, room: str) -> None:
        body = {"new_version": "11"}
        await bob.refused(403, "M_FORBIDDEN", "POST", f"/rooms/{quote(room)}/upgrade", body)
        await alice.refused(403, "M_FORBIDDEN", "POST", "/rooms/!nowhere:example.org/upgrade", body)
        await alice.refused(403, "M_FORBIDDEN", "POST", f"/rooms/!{'a' * 43}/upgrade", body)
        await alice.refused(400, "M_INVALID_PARAM", "POST", "/rooms/nonsense/upgrade", body)
        await bob("POST", f"/rooms/{quote(room)}/leave", {})
        await bob.refused(403, "M_FORBIDDEN", "POST", f"/rooms/{quote(room)}/upgrade", body)
        mine = (await bob("POST", "/createRoom", {"preset": "private_chat"}))["room_id"]
        await alice.refused(403, "M_FORBIDDEN", "POST", f"/rooms/{quote(mine)}/upgrade", body)
        answer = await bob.ask("POST", f"/rooms/{quote(mine)}/upgrade", {"new_version": "99"})
        assert answer.json()["error"] == "Room version '99' is not supported"

    tell(story)


def test_a_body_that_is_no_json(tell: Callable[[Story], None]) -> None:
    async def story(alice: PlainClient, bob: Client, room: str) -> None:
        for text in (b"", b"{", b"\xff"):
            response = await alice.post_text(f"/rooms/{quote(room)}/upgrade", text)
            assert (response.status_code, response.json()["errcode"]) == (400, "M_NOT_JSON")

    tell(story)
