"""homeserver/graph/imports.py: whole rooms through other servers, and memberships in rooms that we are not in."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from sqlalchemy import select

from homeserver.graph.given_events import GivenRoom
from homeserver.graph.working_head import NewEvent, WorkingHead
from homeserver.notifier import Stream
from homeserver.protocol.events import Event
from homeserver.storage import room_state, user_rooms
from homeserver.storage.database import Database
from homeserver.storage.event_graph import StoredEvent, Verdict
from homeserver.storage.integrity import find_problems
from homeserver.storage.tables import backward_extremities
from tests.factories.rooms import RoomFactory
from tests.fakes.homeserver import ALICE, BOB, CAROL, ZOE, CoreServer, add_users

NAMES = (f"imported{number}" for number in itertools.count())
VERSIONS = ["1", "6", "11", "12"]


@pytest.fixture
def server(shared_database: Database) -> CoreServer:
    add_users(shared_database, ALICE, BOB, CAROL)
    return CoreServer(shared_database)


def zoes_room(version: str = "11") -> RoomFactory:
    """A room on another server."""
    name = next(NAMES)
    room = RoomFactory(version, "other.org", room_localpart=name, ts=1_600_000_000_000 + 1000 * int(name[8:]))
    room.create(ZOE, history_visibility="shared")
    room.state_event(ZOE, "m.room.name", {"name": "Elsewhere"})
    room.send(ZOE, "nobody here hears that")
    return room


async def import_room(server: CoreServer, room: RoomFactory, join: Event) -> StoredEvent:
    state = room.state_before(join)
    return await server.imports.import_room(
        room.version, join, GivenRoom.of(state, room.auth_chain([join, *state.values()]))
    )


@pytest.mark.parametrize("version", VERSIONS)
def test_a_join_through_another_server(server: CoreServer, version: str) -> None:
    async def story() -> None:
        room = zoes_room(version)
        (unknown,) = room.extremities
        join = room.join(ALICE)
        position = server.notifier.position
        stored = await import_room(server, room, join)
        assert stored.verdict == Verdict.ACCEPTED
        assert stored.stream_position == position + 1
        changes = server.notifier.changes_since(position)
        assert changes is not None
        assert [(c.stream, c.room_id, c.users, c.wakes_room) for c in changes] == [
            (Stream.EVENTS, room.room_id, (ALICE,), True)
        ]
        for process in (server, CoreServer(server.database)):
            head = await process.heads.get(room.room_id)
            assert head.version is room.version
            assert dict(head.state) == dict(room.current_state)
            assert [extremity.event_id for extremity in head.extremities] == [join.event_id]
            assert (set(head.joined), set(head.joined_local)) == ({ZOE, ALICE}, {ALICE})
            before = await process.states.before(stored)
            assert dict(before.state) == {key: e.event_id for key, e in room.state_before(join).items()}
            outliers = await process.events.by_id(room.room_id, (e.event_id for e in room.auth_chain([join])))
            assert {event.verdict for event in outliers.values()} == {Verdict.OUTLIER}
        standing = await server.database.read(user_rooms.standing_of, ALICE, room.room_id)
        assert standing is not None
        assert (standing.membership, standing.position) == ("join", stored.stream_position)
        gaps = select(backward_extremities.c.missing_event_id, backward_extremities.c.event_nid).where(
            backward_extremities.c.room_nid == stored.room_nid
        )
        assert [tuple(row) for row in server.database.read_now(lambda c: c.execute(gaps).all())] == [
            (unknown, stored.event_nid)
        ]
        sent = await server.send(room.room_id)
        assert sent.event.prev_events == (join.event_id,)
        assert server.database.read_now(find_problems) == []

    asyncio.run(story())


def test_our_second_user_joins_as_in_any_room_of_ours(server: CoreServer) -> None:
    async def story() -> None:
        room = zoes_room()
        await import_room(server, room, room.join(ALICE))
        await server.memberships.join(BOB, room.room_id)
        assert set((await server.heads.get(room.room_id)).joined_local) == {ALICE, BOB}
        assert server.remote.joins == []

    asyncio.run(story())


def test_a_join_after_everybody_had_left(server: CoreServer) -> None:
    """What happened meanwhile is not known here; the state is that of the servers that stayed."""

    async def story() -> None:
        room = zoes_room()
        await import_room(server, room, room.join(ALICE))
        (left,) = await server.receive(room.leave(ALICE))
        assert not (await server.heads.get(room.room_id)).joined_local
        room.kick(ZOE, BOB)
        room.ban(ZOE, CAROL)
        room.state_event(ZOE, "m.room.name", {"name": "Changed"})
        topic = room.state_event(ZOE, "m.room.topic", {"topic": "New"})
        join = room.join(ALICE)
        stored = await import_room(server, room, join)
        for process in (server, CoreServer(server.database)):
            head = await process.heads.get(room.room_id)
            assert dict(head.state) == dict(room.current_state)
            assert head.state["m.room.topic", ""] == topic.event_id
            assert [extremity.event_id for extremity in head.extremities] == [join.event_id]
            assert set(head.joined) == {ZOE, ALICE}
        # What was before can still be read.
        assert (await server.states.before(left)).state["m.room.name", ""] != (
            await server.states.before(stored)
        ).state["m.room.name", ""]
        standings = {
            user: await server.database.read(user_rooms.standing_of, user, room.room_id) for user in (ALICE, BOB, CAROL)
        }
        assert standings[ALICE] is not None
        assert standings[ALICE].membership == "join"
        # Of what happened to those who had nothing to do with the room here there is nothing to tell.
        assert standings[BOB] is standings[CAROL] is None
        assert server.database.read_now(find_problems) == []

    asyncio.run(story())


def test_a_ban_while_nobody_of_us_was_there_is_known_after_the_next_join(server: CoreServer) -> None:
    async def story() -> None:
        room = zoes_room()
        await import_room(server, room, room.join(ALICE))
        await server.receive(room.join(BOB), room.leave(BOB), room.leave(ALICE))
        before = await server.database.read(user_rooms.standing_of, BOB, room.room_id)
        assert before is not None
        assert before.membership == "leave"
        room.ban(ZOE, BOB)
        await import_room(server, room, room.join(ALICE))
        after = await server.database.read(user_rooms.standing_of, BOB, room.room_id)
        assert after is not None
        assert after.membership == "ban"

    asyncio.run(story())


def test_old_departures_are_no_news(server: CoreServer) -> None:
    async def story() -> None:
        room = zoes_room()
        await import_room(server, room, room.join(ALICE))
        await server.receive(room.join(BOB), room.leave(BOB), room.leave(ALICE))
        before = await server.database.read(user_rooms.standing_of, BOB, room.room_id)
        await import_room(server, room, room.join(ALICE))
        assert await server.database.read(user_rooms.standing_of, BOB, room.room_id) == before

    asyncio.run(story())


def test_an_outlier_of_the_import_is_placed_later(server: CoreServer) -> None:
    async def story() -> None:
        room = zoes_room()
        join = room.join(ALICE)
        await import_room(server, room, join)
        named = room.state["m.room.name", ""]
        assert (await server.events.by_id(room.room_id, [named.event_id]))[named.event_id].verdict == Verdict.OUTLIER
        head = await server.heads.get(room.room_id)
        state = await server.states.resolve(head, [head.snapshot])
        before = state.towards({key: e.event_id for key, e in room.state_before(named).items()})

        async def job(_: WorkingHead) -> list[NewEvent]:
            return [NewEvent(named, before, extends=False, backfilled=True)]

        (stored,) = await server.writers.submit(room.room_id, job)
        assert stored.stream_position is not None
        assert stored.stream_position < 0
        fresh = (await CoreServer(server.database).events.by_id(room.room_id, [named.event_id]))[named.event_id]
        assert (fresh.verdict, fresh.stream_position) == (Verdict.ACCEPTED, stored.stream_position)
        assert fresh.state_group is not None
        read = server.database.read_now(room_state.read_group, fresh.state_group)
        assert read == {key: e.event_id for key, e in room.state_after(named).items()}
        assert server.database.read_now(find_problems) == []

    asyncio.run(story())


# -- out of band -------------------------------------------------------------------------------------------------------

STRIPPED = [{"type": "m.room.name", "state_key": "", "sender": ZOE, "content": {"name": "Elsewhere\0"}}]


@pytest.mark.parametrize("version", VERSIONS)
def test_an_invitation_from_outside_and_its_end(server: CoreServer, version: str) -> None:
    async def story() -> None:
        room = zoes_room(version)
        invitation = room.invite(ZOE, ALICE)
        position = server.notifier.position
        stored = await server.out_of_band.store(room.version, invitation, STRIPPED)
        assert stored.verdict == Verdict.OUTLIER
        assert await server.heads.find(room.room_id) is None
        standing = await server.database.read(user_rooms.standing_of, ALICE, room.room_id)
        assert standing is not None
        assert (standing.membership, standing.event_id, standing.sender) == ("invite", invitation.event_id, ZOE)
        assert (standing.version, standing.position) == (version, position + 1)
        shown = standing.stripped_state
        assert shown is not None
        changes = server.notifier.changes_since(position)
        assert changes is not None
        assert [(c.stream, c.room_id, c.users, c.wakes_room) for c in changes] == [
            (Stream.MEMBERSHIP, room.room_id, (ALICE,), False)
        ]
        assert await server.database.read(user_rooms.rooms_of, ALICE, "invite") == [room.room_id]

        again = await server.out_of_band.store(room.version, invitation, STRIPPED)
        assert again.event_nid == stored.event_nid
        refusal = room.leave(ALICE)
        await server.out_of_band.store(room.version, refusal)
        standing = await server.database.read(user_rooms.standing_of, ALICE, room.room_id)
        assert standing is not None
        assert (standing.membership, standing.event_id) == ("leave", refusal.event_id)
        assert standing.stripped_state == shown
        assert server.notifier.position == position + 3
        # Nothing more is left to reject, and it can be forgotten.
        await server.memberships.leave(ALICE, room.room_id)
        assert server.remote.leaves == []
        await server.memberships.forget(ALICE, room.room_id)
        assert server.database.read_now(find_problems) == []

    asyncio.run(story())


@pytest.mark.parametrize("version", VERSIONS)
def test_a_join_after_an_invitation(server: CoreServer, version: str) -> None:
    async def story() -> None:
        room = zoes_room(version)
        invitation = room.invite(ZOE, ALICE)
        await server.out_of_band.store(room.version, invitation, STRIPPED)
        join = room.join(ALICE)
        stored = await import_room(server, room, join)
        assert (
            stored.replaces_nid
            == (await server.events.by_id(room.room_id, [invitation.event_id]))[invitation.event_id].event_nid
        )
        standing = await server.database.read(user_rooms.standing_of, ALICE, room.room_id)
        assert standing is not None
        assert (standing.membership, standing.stripped_state) == ("join", None)
        assert set((await server.heads.get(room.room_id)).joined_local) == {ALICE}
        assert server.database.read_now(find_problems) == []

    asyncio.run(story())


def test_a_pending_invitation_of_another_user_comes_with_the_room(server: CoreServer) -> None:
    async def story() -> None:
        room = zoes_room()
        room.invite(ZOE, BOB)
        position = server.notifier.position
        await import_room(server, room, room.join(ALICE))
        # The invited user's requests are woken, and told, as well.
        changes = server.notifier.changes_since(position)
        assert changes is not None
        assert [set(change.users) for change in changes] == [{ALICE, BOB}]
        standing = await server.database.read(user_rooms.standing_of, BOB, room.room_id)
        assert standing is not None
        assert standing.membership == "invite"
        assert set((await server.heads.get(room.room_id)).invited) == {BOB}

    asyncio.run(story())


def test_what_waits_for_the_room_finds_it_imported(server: CoreServer) -> None:
    async def story() -> None:
        room = zoes_room()
        await import_room(server, room, room.join(ALICE))
        await server.receive(room.leave(ALICE))
        room.state_event(ZOE, "m.room.name", {"name": "Changed"})
        join = room.join(ALICE)
        imported, sent = await asyncio.gather(import_room(server, room, join), server.send(room.room_id))
        assert sent.event.prev_events == (imported.event_id,)

    asyncio.run(story())
