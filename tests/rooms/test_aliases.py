"""homeserver/rooms/aliases.py: https://spec.matrix.org/v1.19/client-server-api/#room-aliases"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from homeserver.errors import (
    Forbidden,
    InvalidParam,
    NotFound,
    RemoteFailed,
    RemoteRefused,
    RemoteUnreachable,
    RoomInUse,
)
from homeserver.protocol.json_types import JsonObject
from homeserver.storage.database import Database
from tests.factories.rooms import RoomFactory
from tests.fakes.homeserver import ALICE, BOB, CAROL, ZOE, CoreServer, add_users


@pytest.fixture
def server(database: Database) -> CoreServer:
    add_users(database, ALICE, BOB, CAROL)
    return CoreServer(database)


def test_an_alias_points_to_its_room_and_to_servers_in_it(server: CoreServer) -> None:
    async def story() -> None:
        room = RoomFactory()
        room.create("alice")
        room.join(ZOE)
        await server.adopt(room)
        await server.aliases.add("#name:example.org", room.room_id, ALICE)
        target = await server.aliases.resolve("#name:example.org")
        assert target.room_id == room.room_id
        assert sorted(target.servers) == ["example.org", "other.org"]
        await server.aliases.add("#another:example.org", room.room_id, ALICE)
        head = await server.heads.get(room.room_id)
        assert await server.aliases.of_room(head) == ["#another:example.org", "#name:example.org"]
        assert await server.aliases.is_taken("#name:example.org")

    asyncio.run(story())


def test_aliases_that_cannot_be_given(server: CoreServer) -> None:
    async def story() -> None:
        room_id = await server.create_room()
        add = server.aliases.add
        for alias in ("name", "#name", "#name:elsewhere.org", "#\0:example.org", "#" + "x" * 255 + ":example.org"):
            with pytest.raises(InvalidParam):
                await add(alias, room_id, ALICE)
        with pytest.raises(NotFound):
            await add("#name:example.org", "!unheard:of.org", ALICE)
        with pytest.raises(Forbidden):
            await add("#name:example.org", room_id, BOB)
        results = await asyncio.gather(
            *(add("#name:example.org", room_id, ALICE) for _ in range(3)), return_exceptions=True
        )
        assert sum(isinstance(result, RoomInUse) for result in results) == 2

    asyncio.run(story())


def test_who_may_take_an_alias_away(server: CoreServer) -> None:
    async def story() -> None:
        room_id = await server.create_room(preset="public_chat")
        await server.memberships.join(BOB, room_id)
        remove = server.aliases.remove
        for alias, creator in (("#a:example.org", BOB), ("#b:example.org", BOB), ("#c:example.org", ALICE)):
            await server.aliases.add(alias, room_id, creator)
        for user in (CAROL, BOB):
            with pytest.raises(Forbidden):
                await remove("#c:example.org", user)
        await remove("#a:example.org", BOB)  # its creator
        await remove("#b:example.org", ALICE)  # may set the canonical alias
        for alias in ("#a:example.org", "#b:example.org"):
            assert not await server.aliases.is_taken(alias)
            with pytest.raises(NotFound):
                await remove(alias, ALICE)
            with pytest.raises(NotFound):
                await server.aliases.resolve(alias)

    asyncio.run(story())


def test_an_alias_that_is_taken_away_leaves_the_canonical_alias(server: CoreServer) -> None:
    async def story() -> None:
        room_id = await server.create_room(preset="public_chat")
        await server.memberships.join(BOB, room_id)
        one, two, other = "#one:example.org", "#two:example.org", "#other:elsewhere.org"
        for alias in (one, two):
            await server.aliases.add(alias, room_id, BOB)

        async def canonical() -> JsonObject:
            return (await server.state(room_id))["m.room.canonical_alias", ""].content

        named = {"alias": one, "alt_aliases": [two, other], "org.example": 1}
        await server.set_state(room_id, "m.room.canonical_alias", named)
        # Who may not change the state can take the alias away all the same, if it is theirs.
        await server.aliases.remove(two, BOB)
        assert await canonical() == named
        await server.aliases.add(two, room_id, ALICE)
        await server.aliases.remove(two, ALICE)
        assert await canonical() == {"alias": one, "alt_aliases": [other], "org.example": 1}
        await server.aliases.remove(one, ALICE)
        assert await canonical() == {"alt_aliases": [other], "org.example": 1}
        await server.aliases.add(one, room_id, ALICE)
        await server.set_state(room_id, "m.room.canonical_alias", {"alt_aliases": [one]})
        before = (await server.state(room_id))["m.room.canonical_alias", ""]
        await server.aliases.add(two, room_id, ALICE)
        await server.aliases.remove(two, ALICE)  # which it does not name
        assert (await server.state(room_id))["m.room.canonical_alias", ""].event_id == before.event_id
        await server.aliases.remove(one, ALICE)
        assert await canonical() == {}

    asyncio.run(story())


def test_aliases_of_other_servers(server: CoreServer) -> None:
    async def story() -> None:
        answers = server.directory.answers
        answers["#a:other.org"] = {"room_id": "!r:third.org", "servers": ["third.org", 7, "fourth.org"]}
        target = await server.aliases.resolve("#a:other.org")
        assert (target.room_id, target.servers) == ("!r:third.org", ["third.org", "fourth.org", "other.org"])
        answers["#a:other.org"] = {"room_id": "!r:third.org", "servers": [f"s{n}.org" for n in range(1000)]}
        assert len((await server.aliases.resolve("#a:other.org")).servers) <= 51

    asyncio.run(story())


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (RemoteRefused("other.org", 404, "M_NOT_FOUND", ""), NotFound),
        (RemoteRefused("other.org", 500, "M_UNKNOWN", ""), RemoteFailed),
        (RemoteUnreachable("other.org", "no answer"), RemoteFailed),
        ({"room_id": "no room", "servers": []}, RemoteFailed),
        ({"room_id": "!r:other.org"}, RemoteFailed),
        ({"servers": ["other.org"]}, RemoteFailed),
    ],
)
def test_answers_that_lead_nowhere(sqlite_url: str, answer: Any, error: type[Exception]) -> None:
    database = Database(sqlite_url)
    server = CoreServer(database)
    server.directory.answers["#a:other.org"] = answer
    with pytest.raises(error):
        asyncio.run(server.aliases.resolve("#a:other.org"))
    with pytest.raises(InvalidParam):
        asyncio.run(server.aliases.resolve("no alias"))
    database.close()
