"""homeserver/storage/graph_writes.py: appends of several rooms in one transaction, and what stands against them."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence

import pytest
from sqlalchemy import Connection, func, select

from homeserver.protocol.events import Event
from homeserver.storage import aliases, auth_chains, event_graph, room_state, user_rooms
from homeserver.storage.appends import (
    AliasTaken,
    AlreadySent,
    Appended,
    CurrentChange,
    EventWrite,
    GroupRef,
    GroupWrite,
    NewAlias,
    NewRoom,
    RoomAppend,
    StaleHead,
    TransactionKey,
)
from homeserver.storage.database import Database
from homeserver.storage.event_graph import Verdict
from homeserver.storage.graph_writes import GraphWriter, event_of_transaction
from homeserver.storage.integrity import find_problems
from homeserver.storage.tables import events, rooms
from tests.factories.rooms import RoomFactory

ALICE = "@alice:example.org"
NAMES = (f"graph{number}" for number in itertools.count())


@pytest.fixture
def writer() -> GraphWriter:
    return GraphWriter(lambda user_id: user_id.endswith(":example.org"))


def new_room(alias: str | None = None) -> tuple[RoomFactory, RoomAppend]:
    """A room of two events, and the append that makes it."""
    room = RoomFactory(room_localpart=next(NAMES))
    room.create("alice", bare=True)
    room.join("alice")
    named = NewAlias(alias, ALICE) if alias else None
    append = RoomAppend(0, 0, new_room=NewRoom(room.room_id, "11", 0, alias=named))
    add_events(append, list(room.events.values()))
    append.extremities = (frozenset(), frozenset(room.extremities))
    return room, append


def add_events(append: RoomAppend, new: Sequence[Event], state_group: int | None = None) -> None:
    """Add state events to an append, each on top of the one before."""
    last: GroupRef | None = GroupRef(state_group) if state_group is not None else None
    for event in new:
        append.groups.append(GroupWrite(last, {event.key: event.event_id}))
        append.changes.append(CurrentChange(event.key, event, event.event_id))
        last = GroupRef(index=len(append.groups) - 1)
        append.events.append(EventWrite(event, Verdict.ACCEPTED, last))
    append.current = last


def write(database: Database, writer: GraphWriter, *appends: RoomAppend) -> list[Appended | BaseException]:
    with database.begin() as connection:
        return writer.append(connection, appends)


def made(outcome: Appended | BaseException) -> Appended:
    assert isinstance(outcome, Appended), outcome
    return outcome


def message(room: RoomFactory, first: Appended, generation: int = 1, txn: TransactionKey | None = None) -> RoomAppend:
    before = frozenset(room.extremities)
    event = room.send("alice")
    append = RoomAppend(first.room_nid, generation)
    append.events = [EventWrite(event, Verdict.ACCEPTED, GroupRef(first.groups[-1]), txn=txn)]
    append.extremities = (before, frozenset(room.extremities))
    return append


def test_rooms_are_written_together_and_refused_one_by_one(database: Database, writer: GraphWriter) -> None:
    (one, first), (two, second) = new_room(), new_room()
    outcomes = write(database, writer, first, second)
    places = [made(outcome) for outcome in outcomes]
    assert places[0].room_nid != places[1].room_nid
    positions = [*places[0].positions.values(), *places[1].positions.values()]
    assert positions == [1, 2, 3, 4]

    stale = message(one, places[0], generation=0)
    fresh = message(two, places[1])
    refused, written = write(database, writer, stale, fresh)
    assert isinstance(refused, StaleHead)
    assert list(made(written).positions.values()) == [5]
    assert database.read_now(find_problems) == []


def test_one_append_of_a_room_in_one_transaction(database: Database, writer: GraphWriter) -> None:
    room, append = new_room()
    place = made(write(database, writer, append)[0])
    first = message(room, place)
    outcomes = write(database, writer, first, first)
    assert isinstance(outcomes[0], Appended)
    assert isinstance(outcomes[1], StaleHead)


def test_an_event_that_stands_is_not_written_again(database: Database, writer: GraphWriter) -> None:
    room, append = new_room()
    place = made(write(database, writer, append)[0])
    first = message(room, place)
    made(write(database, writer, first)[0])
    first.generation = 2
    (again,) = write(database, writer, first)
    assert isinstance(again, StaleHead)


def test_a_transaction_id_is_used_once(database: Database, writer: GraphWriter) -> None:
    room, append = new_room()
    place = made(write(database, writer, append)[0])
    first = message(room, place, txn=TransactionKey(ALICE, "D", "send", "\0", 5))
    sent = made(write(database, writer, first)[0])
    again = message(room, place, 2, TransactionKey(ALICE, "D", "send", "\0", 9))
    (outcome,) = write(database, writer, again)
    assert isinstance(outcome, AlreadySent)
    assert outcome.sent == {again.events[0].event.event_id: sent.nids[first.events[0].event.event_id]}


def test_who_repeats_a_request_holds_up_nobody_else(database: Database, writer: GraphWriter) -> None:
    (room, append), (other_room, other_append) = new_room(), new_room()
    place, other_place = (made(outcome) for outcome in write(database, writer, append, other_append))
    first = message(room, place, txn=TransactionKey(ALICE, "D", "send/1", "t", 5))
    sent = made(write(database, writer, first)[0])
    again = message(room, place, 2, TransactionKey(ALICE, "D", "send/1", "t", 9))
    other = message(other_room, other_place, txn=TransactionKey(ALICE, "D", "send/2", "t", 9))
    repeated, appended = write(database, writer, again, other)
    assert isinstance(repeated, AlreadySent)
    assert list(repeated.sent.values()) == [sent.nids[first.events[0].event.event_id]]
    (event_id,) = made(appended).nids
    claimed = database.read_now(event_of_transaction, TransactionKey(ALICE, "D", "send/2", "t", 0))
    assert claimed == made(appended).nids[event_id]
    assert database.read_now(event_graph.nids_of, again.room_nid, [again.events[0].event.event_id]) == {}
    assert database.read_now(find_problems) == []


def test_a_room_whose_alias_is_taken_is_not_added(database: Database, writer: GraphWriter) -> None:
    (_, first), (_, second), (_, third) = new_room("#a:example.org"), new_room("#a:example.org"), new_room()
    outcomes = write(database, writer, first, second, third)
    assert [type(outcome) for outcome in outcomes] == [Appended, AliasTaken, Appended]
    assert database.read_now(lambda c: c.scalar(select(func.count()).select_from(rooms))) == 2
    assert database.read_now(find_problems) == []


def test_the_same_room_is_not_made_twice(database: Database, writer: GraphWriter) -> None:
    room, append = new_room()
    made(write(database, writer, append)[0])
    append.generation = 0
    append.new_room = NewRoom(room.room_id, "11", 0, alias=NewAlias("#b:example.org", ALICE))
    (outcome,) = write(database, writer, append)
    assert isinstance(outcome, StaleHead)
    assert database.read_now(aliases.alias_row, "#b:example.org") is None


def test_state_keys_that_were_rolled_back_are_not_remembered(database: Database, writer: GraphWriter) -> None:
    """A number that a transaction gave out and took back must not be used again."""
    room, append = new_room()

    def fail(connection: Connection) -> None:
        made(writer.append(connection, [append])[0])
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        asyncio.run(database.write(fail))
    with database.begin() as connection:
        room_state.intern_state_keys(connection, [("somebody", "else's"), ("took", "the numbers")])
    place = made(write(database, writer, append)[0])
    writer.remember(place.state_keys)
    state = database.read_now(room_state.read_group, place.groups[-1])
    assert state == {event.key: event.event_id for event in room.events.values()}
    assert database.read_now(find_problems) == []


def test_a_state_entry_that_goes_away(database: Database, writer: GraphWriter) -> None:
    """Where branches meet, a user may turn out never to have joined."""
    room, append = new_room()
    joined = room.join("bob")
    append.groups.append(GroupWrite(GroupRef(index=len(append.groups) - 1), {joined.key: joined.event_id}))
    append.events.append(EventWrite(joined, Verdict.ACCEPTED, GroupRef(index=len(append.groups) - 1)))
    append.changes.append(CurrentChange(joined.key, joined, joined.event_id))
    append.current = GroupRef(index=len(append.groups) - 1)
    append.extremities = (frozenset(), frozenset(room.extremities))
    place = made(write(database, writer, append)[0])
    bob = "@bob:example.org"
    standing = database.read_now(user_rooms.standing_of, bob, room.room_id)
    assert standing is not None
    assert standing.membership == "join"

    gone = message(room, place)
    gone.groups = [GroupWrite(GroupRef(place.groups[-1]), {joined.key: None})]
    gone.current = GroupRef(index=0)
    gone.changes = [CurrentChange(joined.key, None, gone.events[0].event.event_id)]
    made(write(database, writer, gone)[0])
    standing = database.read_now(user_rooms.standing_of, bob, room.room_id)
    assert standing is not None
    assert standing.membership == "leave"
    assert joined.key not in database.read_now(room_state.read_current_state, place.room_nid)
    assert database.read_now(find_problems) == []


def test_a_rejected_outlier_that_is_accepted_later_is_part_of_auth_chains(
    database: Database, writer: GraphWriter
) -> None:
    room, append = new_room()
    place = made(write(database, writer, append)[0])
    before = frozenset(room.extremities)
    topic = room.state_event("alice", "m.room.topic", {"topic": "t"})
    outlier = RoomAppend(place.room_nid, 1)
    outlier.events = [EventWrite(topic, Verdict.OUTLIER | Verdict.REJECTED, None, reason="unknown")]
    nid = made(write(database, writer, outlier)[0]).nids[topic.event_id]
    assert database.read_now(auth_chains.positions_of, [nid]) == {}
    placed = RoomAppend(place.room_nid, 2)
    add_events(placed, [topic], place.groups[-1])
    placed.extremities = (before, frozenset(room.extremities))
    made(write(database, writer, placed)[0])
    chain = database.read_now(auth_chains.auth_chain_nids, [nid])
    ids = database.read_now(room_state.event_ids_of, chain)
    assert set(ids.values()) == {topic.event_id, *(event.event_id for event in room.auth_chain([topic]))}
    assert database.read_now(event_graph.rejection_reason, nid) == "unknown"


def test_numbers_are_taken_for_what_is_written_only(database: Database, writer: GraphWriter) -> None:
    room, append = new_room()
    place = made(write(database, writer, append)[0])
    append = message(room, place, generation=0)
    write(database, writer, append)
    append.generation = 1
    last = made(write(database, writer, append)[0])
    assert list(last.positions.values()) == [3]
    nids = database.read_now(lambda c: list(c.scalars(select(events.c.event_nid).order_by(events.c.event_nid))))
    assert nids == [1, 2, 3]
