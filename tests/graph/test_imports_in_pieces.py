"""homeserver/graph/imports.py, storage/room_imports.py: a joined room is stored in pieces that others do not notice."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest
from sqlalchemy import Connection, delete

from homeserver.graph import imports
from homeserver.graph.given_events import GivenRoom
from homeserver.protocol.events import Event
from homeserver.storage import room_imports, user_rooms
from homeserver.storage.database import Database
from homeserver.storage.event_graph import StoredEvent
from homeserver.storage.integrity import find_problems
from homeserver.storage.tables import under_way
from tests.factories.rooms import RoomFactory
from tests.fakes.homeserver import ALICE, BOB, ZOE, CoreServer, add_users

NAMES = (f"pieces{number}" for number in itertools.count())
MEMBERS = [f"@member{number}:other.org" for number in range(8)]


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imports, "EVENTS_PER_PIECE", 2)
    monkeypatch.setattr(imports, "_next_size", lambda *_: 2)
    monkeypatch.setattr(imports, "ROWS_PER_PIECE", 2)


@pytest.fixture
def server(shared_database: Database) -> CoreServer:
    add_users(shared_database, ALICE, BOB)
    return CoreServer(shared_database)


def zoes_room(version: str = "11") -> RoomFactory:
    name = next(NAMES)
    room = RoomFactory(version, "other.org", room_localpart=name, ts=1_600_000_000_000 + 1000 * int(name[6:]))
    room.create(ZOE, history_visibility="shared")
    for member in MEMBERS:
        room.join(member)
    room.state_event(ZOE, "m.room.name", {"name": "Elsewhere"})
    return room


async def import_room(server: CoreServer, room: RoomFactory, join: Event) -> StoredEvent | None:
    state = room.state_before(join)
    return await server.imports.import_room(
        room.version, join, GivenRoom.of(state, room.auth_chain([join, *state.values()]))
    )


async def check_is_here(server: CoreServer, room: RoomFactory, join: Event) -> None:
    """Every process sees the room as the other server has it."""
    for process in (server, CoreServer(server.database)):
        head = await process.heads.get(room.room_id)
        assert dict(head.state) == {key: e.event_id for key, e in room.state_after(join).items()}
        members = {key[1] for key, e in room.state_after(join).items() if e.membership == "join"}
        assert set(head.joined) == members
    assert server.database.read_now(find_problems) == []


def test_others_write_between_the_pieces(server: CoreServer) -> None:
    async def story() -> None:
        other = await server.create_room()
        room = zoes_room()
        join = room.join(ALICE)
        importing = asyncio.create_task(import_room(server, room, join))
        for _ in range(3):
            await server.send(other)
            assert not importing.done()
            assert await CoreServer(server.database).heads.find(room.room_id) is None  # nobody sees half a room
        assert await importing is not None
        await check_is_here(server, room, join)

    asyncio.run(story())


NEXT_SIZE = imports._next_size


def test_pieces_are_as_large_as_time_allows() -> None:
    size = 192
    assert NEXT_SIZE(size, imports.PIECE_S) == size
    assert NEXT_SIZE(size, imports.PIECE_S / 1.5) == 288
    assert NEXT_SIZE(size, imports.PIECE_S / 100) == 2 * size
    assert NEXT_SIZE(size, 0) == 2 * size
    assert NEXT_SIZE(size, 1) == imports.EVENTS_PER_PIECE_MIN


class Crash(Exception):
    """The process dies here."""


@pytest.mark.parametrize(
    ("piece", "count"),
    [
        ("store_piece", 0),
        ("store_piece", 1),
        ("store_entries", 1),
        ("put_current", 1),
        ("switch", 0),
    ],
)
def test_an_import_that_breaks_off_leaves_nothing_to_be_seen(
    server: CoreServer, monkeypatch: pytest.MonkeyPatch, piece: str, count: int
) -> None:
    left = count

    async def story() -> None:
        room = zoes_room()
        kept = getattr(room_imports, piece)

        def crash(*arguments: Any) -> Any:
            nonlocal left
            if left == 0:
                raise Crash
            left -= 1
            return kept(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(room_imports, piece, crash)
            with pytest.raises(Crash):
                await import_room(server, room, room.join(ALICE))
        restarted = CoreServer(server.database)
        assert await restarted.heads.find(room.room_id) is None
        assert await restarted.database.read(user_rooms.standing_of, ALICE, room.room_id) is None
        # The room has gone on when it is joined again: what was left behind is brought in line.
        room.leave(ALICE)
        room.leave(MEMBERS[0])
        room.state_event(ZOE, "m.room.name", {"name": "Changed"})
        room.invite(ZOE, BOB)
        join = room.join(ALICE)
        assert await import_room(restarted, room, join) is not None
        await check_is_here(restarted, room, join)

    asyncio.run(story())


def test_state_that_a_broken_off_import_has_left_and_the_room_has_no_longer(
    server: CoreServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        first = zoes_room()
        extra = first.state_event(ZOE, "org.example.custom", {"a": 1}, "key")
        join = first.join(ALICE)
        state = first.state_before(join)
        with monkeypatch.context() as patch:
            patch.setattr(room_imports, "switch", _crash)
            with pytest.raises(Crash):
                await import_room(server, first, join)
        # Another server says that the state is another one: some keys are not there at all.
        fewer = {key: e for key, e in state.items() if e is not extra and key[1] != MEMBERS[1]}
        chain = first.auth_chain([join, *fewer.values()])
        assert await server.imports.import_room(first.version, join, GivenRoom.of(fewer, chain)) is not None
        head = await CoreServer(server.database).heads.get(first.room_id)
        expected = {**{key: e.event_id for key, e in fewer.items()}, join.key: join.event_id}
        assert dict(head.state) == expected
        assert MEMBERS[1] not in head.joined
        assert server.database.read_now(find_problems) == []

    asyncio.run(story())


def _crash(*_: object) -> Any:
    raise Crash


def test_who_loses_its_lease_begins_anew(server: CoreServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process was stopped for so long that another one could have begun to import the room."""
    kept = room_imports.add_group
    losses = 0

    def lose(connection: Connection, *arguments: Any) -> Any:
        nonlocal losses
        losses += 1
        if losses == 1:
            connection.execute(delete(under_way))
        return kept(connection, *arguments)

    monkeypatch.setattr(room_imports, "add_group", lose)

    async def story() -> None:
        room = zoes_room()
        join = room.join(ALICE)
        assert await import_room(server, room, join) is not None
        assert losses == 2
        await check_is_here(server, room, join)

    asyncio.run(story())


def test_a_room_that_another_process_has_imported_meanwhile_is_left_alone(server: CoreServer) -> None:
    async def story() -> None:
        room = zoes_room()
        alices, bobs = room.join(ALICE), room.join(BOB)
        other = CoreServer(server.database)
        outcomes = await asyncio.gather(import_room(server, room, alices), import_room(other, room, bobs))
        assert sum(outcome is None for outcome in outcomes) == 1
        head = await CoreServer(server.database).heads.get(room.room_id)
        assert len(head.joined_local) >= 1
        assert server.database.read_now(find_problems) == []

    asyncio.run(story())
