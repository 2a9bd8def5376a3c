"""Two of our servers: an invitation, messages before the answer, the join, the history, the answer."""

from __future__ import annotations

import asyncio

import pytest

from homeserver.membership.membership import Memberships
from homeserver.storage import user_rooms
from homeserver.storage.database import Database
from tests.fakes.servers import OurServer, Servers, eventually
from tests.postgresql import PostgresqlServer

ONE, TWO, THREE = "one.test:8448", "two.test:8448", "three.test:8448"


async def standing(server: OurServer, user_id: str, room_id: str) -> str | None:
    found = await server.get(Database).read(user_rooms.standing_of, user_id, room_id)
    return found.membership if found is not None else None


@pytest.mark.parametrize("version", ["1", "2", "3", "6", "10", "11", "12"])
def test_invitation_join_history_answer(servers: Servers, version: str) -> None:
    async def story() -> None:
        async with servers:
            one, two = await servers.ours(ONE), await servers.ours(TWO)
            alice, bob = await one.user("alice"), await two.user("bob")
            room_id = await one.room(alice, version=version, preset="private_chat", name="Plans")
            await one.get(Memberships).invite(alice, room_id, bob)
            assert await standing(two, bob, room_id) == "invite"
            sent = [await one.send(alice, room_id, f"message {number}") for number in range(3)]

            await two.join(bob, room_id)
            assert await standing(two, bob, room_id) == "join"
            assert await one.membership(room_id, bob) == "join"
            assert await two.backfill(room_id)
            for event_id in sent:
                stored = await two.wait_for(event_id)
                assert stored.visible
                assert stored.event.content["body"].startswith("message")

            answer = await two.send(bob, room_id, "answer")
            assert (await one.wait_for(answer)).event.content["body"] == "answer"
            again = await one.send(alice, room_id, "and back")
            assert (await two.wait_for(again)).visible
            assert (await one.head(room_id)).state == (await two.head(room_id)).state

    asyncio.run(story())


def test_a_third_server_hears_of_joins_and_messages(servers: Servers) -> None:
    async def story() -> None:
        async with servers:
            one, two, three = [await servers.ours(name) for name in (ONE, TWO, THREE)]
            alice, bob, carol = await one.user("alice"), await two.user("bob"), await three.user("carol")
            room_id = await one.room(alice)
            await two.join(bob, room_id, ONE)
            await three.join(carol, room_id, ONE)

            async def two_knows_carol() -> bool:
                return await two.membership(room_id, carol) == "join"

            await eventually(two_knows_carol)
            event_id = await three.send(carol, room_id)
            for server in (one, two):
                assert (await server.wait_for(event_id)).visible
            states = [(await server.head(room_id)).state for server in (one, two, three)]
            assert states[0] == states[1] == states[2]

    asyncio.run(story())


def test_the_story_on_postgresql(servers: Servers, postgresql_server: PostgresqlServer) -> None:
    template = postgresql_server.migrated_template()

    async def story(one_url: str, two_url: str) -> None:
        async with servers:
            one = await servers.ours(ONE, database={"url": one_url})
            two = await servers.ours(TWO, database={"url": two_url})
            alice, bob = await one.user("alice"), await two.user("bob")
            room_id = await one.room(alice, preset="private_chat")
            await one.get(Memberships).invite(alice, room_id, bob)
            sent = [await one.send(alice, room_id, f"message {number}") for number in range(3)]
            await two.join(bob, room_id)
            assert await two.backfill(room_id)
            for event_id in sent:
                assert (await two.wait_for(event_id)).visible
            answer = await two.send(bob, room_id, "answer")
            assert (await one.wait_for(answer)).visible
            servers.network.split(ONE, TWO)
            missed = [await one.send(alice, room_id, f"missed {number}") for number in range(3)]
            other = await two.send_state(bob, room_id, "m.room.member", {"membership": "join", "displayname": "B"}, bob)
            servers.network.heal(ONE, TWO)
            await one.wait_for(other)
            for event_id in missed:
                assert (await two.wait_for(event_id)).visible

    with postgresql_server.database(template) as one_url, postgresql_server.database(template) as two_url:
        asyncio.run(story(one_url, two_url))
