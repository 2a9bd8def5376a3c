"""homeserver/graph/state.py and append.py: whatever happens, the state is what the specification makes of it.

Rooms with random forks are appended, with several events in one transaction, and held against states that were worked
out with everything in hand.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, insert, select

from homeserver.errors import NotFound
from homeserver.graph.full_conflicts import full_conflict
from homeserver.graph.judgement import Judge
from homeserver.graph.state import RoomHead, RoomHeads, StateSnapshot
from homeserver.graph.working_head import NewEvent, WorkingHead
from homeserver.protocol.events import Event, StateKey
from homeserver.protocol.room_versions import ROOM_VERSIONS
from homeserver.protocol.state_resolution import conflicted_subgraph_of, split_states
from homeserver.storage import auth_chains, room_state, streams
from homeserver.storage.database import Database
from homeserver.storage.event_graph import StoredEvent, Verdict
from homeserver.storage.integrity import find_problems
from homeserver.storage.tables import current_state_changes, events, room_members, state_keys, user_rooms
from tests.factories.random_rooms import RandomRoom, with_chains
from tests.fakes.homeserver import ALICE, CoreServer, is_local
from tests.protocol import symbolic

VERDICTS = {
    "accepted": Verdict.ACCEPTED,
    "rejected": Verdict.REJECTED,
    "soft-failed": Verdict.SOFT_FAILED,
}
V12 = ROOM_VERSIONS["12"]
NAMES = (f"random{number}" for number in itertools.count())


class Appender:
    """Appends the events of a random room as they would be received."""

    def __init__(self, server: CoreServer, room: RandomRoom) -> None:
        self.server = server
        self.room = room
        self.judge = Judge(server.events, server.states)

    async def begin(self) -> None:
        """Make the room of its opening events."""

        async def job(working: WorkingHead) -> Sequence[NewEvent]:
            for event in list(self.room.events.values()):
                await working.take_in(await self.compose(working, event))
            return []

        factory = self.room.room
        await self.server.writers.create(factory.room_id, factory.version, job, 0)

    async def append(self, batch: Sequence[Event]) -> None:
        """Append events in order; all of them wait in line at once."""

        async def submit(event: Event) -> list[StoredEvent]:
            async def job(working: WorkingHead) -> Sequence[NewEvent]:
                return [await self.compose(working, event)]

            return await self.server.writers.submit(event.room_id, job)

        for (stored,), event in zip(await asyncio.gather(*map(submit, batch)), batch, strict=True):
            assert stored.event is event
            assert stored.verdict == VERDICTS[self.room.verdicts[event.event_id]]

    async def compose(self, working: WorkingHead, event: Event) -> NewEvent:
        if not event.prev_events:
            return NewEvent(event, working.head.snapshot)
        before = await self.judge.state_before(working, event)
        assert dict(before.state) == self.room.before[event.event_id]
        ruling = await self.judge.judge(working, event, before)
        return NewEvent(event, before, ruling.verdict, ruling.reason)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(version=st.sampled_from(["1", "2", "6", "11", "12"]), seed=st.integers(0, 2**32), size=st.integers(1, 8))
def test_the_state_is_what_the_rules_say(shared_database: Database, version: str, seed: int, size: int) -> None:
    server = CoreServer(shared_database)
    room = RandomRoom(version, seed, next(NAMES))

    async def story() -> None:
        appender = Appender(server, room)
        await appender.begin()
        for _ in range(max(2, 24 // size)):
            await appender.append(room.grow(size))
            await check_head(server, room)
        await check_history(server, room)

    asyncio.run(story())
    shared_database.read_now(check_tables, room, asyncio.run(server.heads.get(room.room.room_id)))
    assert shared_database.read_now(find_problems) == []


async def check_head(server: CoreServer, room: RandomRoom) -> None:
    room_id = room.room.room_id
    head = await server.heads.get(room_id)
    fresh = await RoomHeads(server.database, server.events, is_local).get(room_id)
    for found in (head, fresh):
        assert dict(found.state) == room.current
        assert {extremity.event_id for extremity in found.extremities} == set(room.extremities)
        assert set(found.joined) == room.joined()
        assert set(found.joined_local) == {user for user in room.joined() if is_local(user)}
        servers: dict[str, int] = {}
        for user in room.joined():
            servers[user.partition(":")[2]] = servers.get(user.partition(":")[2], 0) + 1
        assert dict(found.joined_servers) == servers
    assert head.invited == fresh.invited
    assert (head.generation, head.room_nid) == (fresh.generation, fresh.room_nid)
    for extremity in fresh.extremities:
        assert dict((await server.states.after_extremity(extremity)).state) == room.after[extremity.event_id]


async def check_history(server: CoreServer, room: RandomRoom) -> None:
    """The state before and after every event, read back by a process that knows nothing yet."""
    other = CoreServer(server.database)
    stored = await other.events.by_id(room.room.room_id, room.events)
    assert stored.keys() == room.events.keys()
    for event_id, event in stored.items():
        assert event.state_group is not None
        assert dict((await other.states.snapshot(event.state_group)).state) == room.after[event_id]
        assert dict((await other.states.before(event)).state) == room.before[event_id]
        keys: list[StateKey] = [("m.room.topic", ""), ("m.room.member", ALICE), ("no", "such")]
        looked_up = await other.states.lookup(event.state_group, keys)
        assert looked_up == {key: room.after[event_id][key] for key in keys if key in room.after[event_id]}
        assert await other.states.lookup(event.state_group, keys) == looked_up


def check_tables(connection: Connection, room: RandomRoom, head: RoomHead) -> None:
    """What the database holds for fast reads is the current state, and its changes lead to it."""
    nid = head.room_nid
    replayed: dict[StateKey, int] = {}
    changes = (
        select(
            state_keys.c.type,
            state_keys.c.state_key,
            current_state_changes.c.event_nid,
            current_state_changes.c.position,
        )
        .join_from(
            current_state_changes, state_keys, state_keys.c.state_key_nid == current_state_changes.c.state_key_nid
        )
        .where(current_state_changes.c.room_nid == nid)
        .order_by(current_state_changes.c.position)
    )
    last_of_user: dict[str, int] = {}
    for event_type, state_key, event_nid, position in connection.execute(changes):
        if event_type == "m.room.member":
            last_of_user[state_key] = position
        if event_nid is None:
            del replayed[event_type, state_key]
        else:
            replayed[event_type, state_key] = event_nid
    ids = room_state.event_ids_of(connection, replayed.values())
    assert {key: ids[event_nid] for key, event_nid in replayed.items()} == room.current

    members = {key[1]: room.events[i] for key, i in room.current.items() if key[0] == "m.room.member"}
    rows = connection.execute(
        select(room_members.c.user_id, room_members.c.membership, room_members.c.display_name, events.c.event_id)
        .join_from(room_members, events, events.c.event_nid == room_members.c.event_nid)
        .where(room_members.c.room_nid == nid)
    )
    assert {row[0]: tuple(row[1:]) for row in rows} == {
        user: (event.membership, event.content.get("displayname"), event.event_id) for user, event in members.items()
    }
    standings = {
        row[0]: (row[1], row[2])
        for row in connection.execute(
            select(user_rooms.c.user_id, user_rooms.c.membership, user_rooms.c.position).where(
                user_rooms.c.room_nid == nid
            )
        )
    }
    expected = {
        user: (members[user].membership if user in members else "leave", position)
        for user, position in last_of_user.items()
        if is_local(user) and (user in members or user in standings)  # came and went in one transaction: nothing
    }
    assert standings == expected


GRAPHS = st.lists(st.sets(st.integers(1, 8), max_size=4), min_size=2, max_size=22)
"""Auth graphs: how far before each event its auth events stand."""


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(graph=GRAPHS, committed=st.floats(0, 1), seed=st.integers(0, 2**32))
def test_events_that_are_not_committed_yet_count_like_all_others(
    database: Database, graph: list[set[int]], committed: float, seed: int
) -> None:
    """Where branches meet within one transaction, the auth chains go through what is only about to be stored."""
    choose, prefix = random.Random(seed), next(NAMES)
    names = [f"${prefix}-{index}" for index in range(len(graph))]
    made = {
        names[index]: symbolic.event(
            V12, "t", ALICE, state_key=names[index], event_id=names[index],
            auth=[names[index - back] for back in sorted(backs) if back <= index],
        )
        for index, backs in enumerate(graph)
    }  # fmt: skip
    stored = names[: round(committed * len(names))]
    with database.begin() as connection:
        store_auth_graph(connection, [made[name] for name in stored])
    states = [
        {("t", name): name for index, name in enumerate(names) if choose.random() < 0.3 or index % 9 == 8}
        for _ in range(choose.randint(2, 3))
    ]
    conflicted = split_states(states).conflicted_ids
    unstored = {name: event for name, event in made.items() if name not in stored}
    likely = choose.sample(sorted(states[0]), choose.randint(0, len(states[0])))
    difference, subgraph = asyncio.run(full_conflict(database, 0, V12, states, conflicted, likely, unstored))
    chains = [with_chains(made, state.values()) for state in states]
    # Whether a conflicted event is in the difference makes no difference: together they are the full conflicted set.
    assert difference | conflicted == set().union(*chains) - chains[0].intersection(*chains) | conflicted
    assert subgraph == conflicted_subgraph_of(conflicted, made)


def store_auth_graph(connection: Connection, made: Sequence[Event]) -> None:
    """Store just so much of events that their auth chains are known."""
    nids = {event.event_id: nid for event, nid in zip(made, streams.take(connection, "event", len(made)), strict=True)}
    row = {"room_nid": 0, "type": "t", "depth": 1, "origin_server_ts": 0, "json": b"{}"}
    if made:
        connection.execute(insert(events), [{"event_nid": nid, "event_id": i, **row} for i, nid in nids.items()])
    new = [(nids[event.event_id], [nids[cited] for cited in event.auth_events]) for event in made]
    auth_chains.assign_positions(connection, new, iter(streams.take(connection, "auth_chain", len(made) + 1)))


# -- snapshots ---------------------------------------------------------------------------------------------------------

NAME, TOPIC = ("m.room.name", ""), ("m.room.topic", "")


def test_a_changed_snapshot_says_what_changed() -> None:
    base = StateSnapshot.whole({NAME: "$1"})
    changed = base.changed({NAME: "$2", TOPIC: "$3"})
    assert dict(base.state) == {NAME: "$1"}
    assert dict(changed.state) == {NAME: "$2", TOPIC: "$3"}
    assert (changed.base, changed.delta) == (base, {NAME: "$2", TOPIC: "$3"})
    assert changed.changed({NAME: "$2", ("no", "such"): None}) is changed
    removed = changed.changed({NAME: None})
    assert dict(removed.state) == {TOPIC: "$3"}
    assert removed.delta == {NAME: None}


def test_a_snapshot_towards_another_state() -> None:
    base = StateSnapshot.whole({NAME: "$1", TOPIC: "$2"})
    other = base.towards({TOPIC: "$3"})
    assert dict(other.state) == {TOPIC: "$3"}
    assert other.delta == {TOPIC: "$3", NAME: None}
    assert base.towards({NAME: "$1", TOPIC: "$2"}) is base


def test_a_stored_snapshot_needs_no_base() -> None:
    changed = StateSnapshot.whole({}).changed({NAME: "$1"})
    changed.stored_as(7)
    assert (changed.group, changed.base, changed.delta) == (7, None, None)


# -- heads -------------------------------------------------------------------------------------------------------------


def test_rooms_that_nobody_here_was_in_have_no_head(shared_database: Database) -> None:
    async def story() -> None:
        server = CoreServer(shared_database)
        assert await server.heads.find("!unheard:of.org") is None
        assert await server.heads.of_many(["!unheard:of.org"]) == {}
        with pytest.raises(NotFound):
            await server.heads.get("!unheard:of.org")

    asyncio.run(story())


def test_heads_of_many_rooms(shared_database: Database) -> None:
    async def story() -> None:
        server = CoreServer(shared_database)
        rooms = [await server.create_room() for _ in range(3)]
        server.heads.forget(rooms[1])
        found = await server.heads.of_many([*rooms, "!unheard:of.org"])
        assert found.keys() == set(rooms)
        assert server.heads.cached(rooms[1]) is found[rooms[1]]
        power_levels = await server.heads.state_event(found[rooms[1]], "m.room.power_levels")
        assert power_levels is not None
        assert power_levels.content["users"] == {ALICE: 100}
        assert await server.heads.state_event(found[rooms[1]], "m.room.name") is None

    asyncio.run(story())


def test_an_old_head_does_not_take_the_place_of_a_newer_one(shared_database: Database) -> None:
    async def story() -> None:
        server = CoreServer(shared_database)
        room_id = await server.create_room()
        old = await server.heads.get(room_id)
        await server.send(room_id)
        new = await server.heads.get(room_id)
        assert server.heads.keep(old) is new
        # Another process went on: what was read before that must not be kept, however late it arrives.
        server.heads.forget(room_id, new.generation + 1)
        assert server.heads.cached(room_id) is None
        server.heads.keep(new)
        assert server.heads.cached(room_id) is None

    asyncio.run(story())


def test_a_head_that_is_new_enough_stays(shared_database: Database) -> None:
    async def story() -> None:
        server = CoreServer(shared_database)
        room_id = await server.create_room()
        head = await server.heads.get(room_id)
        server.heads.forget(room_id, head.generation)
        assert server.heads.cached(room_id) is head

    asyncio.run(story())
