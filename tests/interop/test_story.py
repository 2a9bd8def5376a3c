"""The story that a homeserver exists for: a direct message across servers, and nothing lost when both are killed."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from tests.interop.client import MatrixClient, MatrixError
from tests.interop.conftest import Connect, Fleet, Pair
from tests.interop.rooms import everything_arrives, invited, room_of
from tests.interop.servers import OurServer
from tests.postgresql import PostgresqlServer

pytestmark = pytest.mark.anyio

SENDERS = 4
SENT_BEFORE_THE_KILL = 40


async def test_direct_message(pair: Pair, alice: MatrixClient, bob: MatrixClient) -> None:
    await tell(pair, alice, bob)


async def test_direct_message_on_postgresql(
    fleet: Fleet, postgresql_server: PostgresqlServer, connect: Connect
) -> None:
    with postgresql_server.database(template=None) as url:
        ours = OurServer("postgresql", fleet.directory, fleet.authority, database_url=url)
        fleet.servers["postgresql"] = ours
        ours.start()
        try:
            pair = Pair(ours, fleet.running("synapse"))
            await tell(pair, await connect(pair.home, "alice"), await connect(pair.away, "bob"))
        finally:
            ours.kill()


async def tell(pair: Pair, alice: MatrixClient, bob: MatrixClient) -> None:
    """The whole story."""
    await alice.set_display_name("Alice")
    room_id = await alice.create_room(preset="trusted_private_chat", is_direct=True, name="Alice and Bob")
    await alice.invite(room_id, bob.user_id)
    before = [f"are you there? {number}" for number in range(3)]
    for text in before:
        await alice.send(room_id, text)

    await invited(bob, room_id)
    invitation = bob.room(room_id).invite_state
    assert invitation["m.room.name", ""]["content"] == {"name": "Alice and Bob"}
    assert invitation["m.room.member", bob.user_id]["sender"] == alice.user_id
    await alice.until(lambda: alice.room(room_id).member(bob.user_id) == "invite")

    await bob.join(room_id)
    await bob.until(lambda: bob.room(room_id).membership == "join")
    assert (await bob.message_bodies(room_id))[-3:] == before
    answer = asyncio.create_task(alice.until(lambda: "yes, I am" in alice.bodies(room_id)))
    await bob.send(room_id, "yes, I am")
    await answer

    acknowledged = await converse_until_killed(pair, alice, bob, room_id)
    pair.home.start()
    pair.away.start()
    await alice.send(room_id, "we are back")
    await bob.until(lambda: "we are back" in bob.bodies(room_id))
    await bob.send(room_id, "so are we")
    await alice.until(lambda: "so are we" in alice.bodies(room_id))
    for client in (alice, bob):
        await everything_arrives(client, room_id, acknowledged)


async def converse_until_killed(pair: Pair, alice: MatrixClient, bob: MatrixClient, room_id: str) -> set[str]:
    """Both talk, several messages at a time, until both servers are killed. What was answered with 200."""
    acknowledged: set[str] = set()
    enough = asyncio.Event()

    async def keep_sending(client: MatrixClient, number: int) -> None:
        count = 0
        while True:
            text = f"{client.user_id} {number} {count}"
            try:
                await client.send(room_id, text)
            except (httpx.TransportError, MatrixError):
                assert enough.is_set(), "a message was refused before the kill"
                return
            acknowledged.add(text)
            count += 1
            if len(acknowledged) >= SENT_BEFORE_THE_KILL:
                enough.set()

    async with asyncio.timeout(90), asyncio.TaskGroup() as group:
        for client in (alice, bob):
            for number in range(SENDERS):
                group.create_task(keep_sending(client, number))
        await enough.wait()
        pair.home.kill()
        pair.away.kill()
    return acknowledged


async def test_join_room_later_and_read_on(alice: MatrixClient, bob: MatrixClient) -> None:
    """A user logs in anew and finds the conversation."""
    room_id = await room_of(alice, bob)
    await alice.send(room_id, "kept")
    await bob.until(lambda: "kept" in bob.bodies(room_id))
    await bob.login(bob.user_id)
    bob.since, bob.rooms = None, {}
    await bob.until(lambda: "kept" in bob.bodies(room_id))
