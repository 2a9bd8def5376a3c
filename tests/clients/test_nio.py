"""A client of somebody else's, matrix-nio, works with our server as it is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import nio
import pytest

from tests.interop.servers import Authority, OurServer

PASSWORD = "a password for nio 1"
SYNC_MS = 10_000

R = TypeVar("R")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[OurServer]:
    server = OurServer("nio", tmp_path, Authority(tmp_path / "authority"))
    server.start()
    yield server
    server.kill()


def test_two_clients_talk(server: OurServer) -> None:
    asyncio.run(_talk(server))


async def _talk(server: OurServer) -> None:
    async with _registered(server, "alice") as alice, _registered(server, "bob") as bob:
        created = _good(
            await alice.room_create(name="Nio", is_direct=True, invite=[bob.user_id]), nio.RoomCreateResponse
        )
        room_id = created.room_id

        _good(await bob.sync(timeout=SYNC_MS), nio.SyncResponse)
        assert bob.invited_rooms[room_id].inviter == alice.user_id
        assert bob.invited_rooms[room_id].name == "Nio"
        _good(await bob.join(room_id), nio.JoinResponse)
        first = _good(await bob.sync(timeout=SYNC_MS, full_state=True), nio.SyncResponse)
        assert room_id in bob.rooms
        assert set(bob.rooms[room_id].users) == {alice.user_id, bob.user_id}

        heard: list[tuple[str, str]] = []
        bob.add_event_callback(lambda room, event: heard.append((event.sender, event.body)), nio.RoomMessageText)
        waiting = asyncio.create_task(bob.sync(timeout=SYNC_MS, since=first.next_batch))
        content = {"msgtype": "m.text", "body": "said by nio"}
        sent = _good(await alice.room_send(room_id, "m.room.message", content), nio.RoomSendResponse)
        _good(await waiting, nio.SyncResponse)
        assert heard == [(alice.user_id, "said by nio")]

        _good(await bob.update_receipt_marker(room_id, sent.event_id), nio.UpdateReceiptMarkerResponse)
        _good(await bob.room_typing(room_id), nio.RoomTypingResponse)
        history = _good(await bob.room_messages(room_id, start=bob.next_batch), nio.RoomMessagesResponse)
        assert sent.event_id in [event.event_id for event in history.chunk]
        _good(await alice.room_redact(room_id, sent.event_id, reason="oops"), nio.RoomRedactResponse)
        _good(await bob.room_leave(room_id), nio.RoomLeaveResponse)
        _good(await alice.logout(), nio.LogoutResponse)


@asynccontextmanager
async def _registered(server: OurServer, localpart: str) -> AsyncIterator[nio.AsyncClient]:
    """A user who has registered, and logged in with the password."""
    user_id = f"@{localpart}:{server.server_name}"
    client = nio.AsyncClient(server.base_url, user_id)
    try:
        _good(await client.register(localpart, PASSWORD), nio.RegisterResponse)
        _good(await client.login(PASSWORD, device_name="a test"), nio.LoginResponse)
        assert client.user_id == user_id
        yield client
    finally:
        await client.close()


def _good(response: object, kind: type[R]) -> R:
    """The response, which must be of this kind: nio returns errors, it does not raise them."""
    assert isinstance(response, kind), response
    return response
