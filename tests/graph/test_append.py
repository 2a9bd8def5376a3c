"""homeserver/graph/append.py: the one door into the event graph."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator, Sequence

import pytest
from sqlalchemy import Connection, func, select

from homeserver.errors import Forbidden, NotFound
from homeserver.graph.append import RACES_MAX
from homeserver.graph.working_head import NewEvent, WorkingHead
from homeserver.notifier import StateEffect, Stream
from homeserver.protocol.events import EventDraft
from homeserver.storage import event_graph
from homeserver.storage.appends import TransactionKey
from homeserver.storage.database import Database
from homeserver.storage.event_graph import StoredEvent, Verdict
from homeserver.storage.integrity import find_problems
from homeserver.storage.tables import backward_extremities, event_edges, events, room_members, rooms
from tests.factories.rooms import RoomFactory
from tests.fakes.homeserver import ALICE, BOB, CAROL, ZOE, CoreServer, add_users

NAMES = (f"append{number}" for number in itertools.count())


@pytest.fixture
def server(shared_database: Database) -> CoreServer:
    add_users(shared_database, ALICE, BOB, CAROL)
    return CoreServer(shared_database)


@pytest.fixture
def other(server: CoreServer, shared_database_url: str) -> Iterator[CoreServer]:
    """A second process on the same database, which hears nothing of the first."""
    database = Database(shared_database_url)
    yield CoreServer(database)
    database.close()


def key(room_id: str, txn_id: str, device_id: str = "D", user_id: str = ALICE) -> TransactionKey:
    return TransactionKey(user_id, device_id, f"send/{room_id}", txn_id, 0)


def graph_of(connection: Connection, room_nid: int) -> tuple[set[int], set[tuple[int, int]]]:
    nids = set(connection.scalars(select(events.c.event_nid).where(events.c.room_nid == room_nid)))
    edges = connection.execute(select(event_edges).where(event_edges.c.event_nid.in_(nids)))
    return nids, {(row.event_nid, row.prev_nid) for row in edges}


# -- several processes -------------------------------------------------------------------------------------------------


def test_two_processes_write_to_one_room(server: CoreServer, other: CoreServer) -> None:
    each = 25

    async def talk(process: CoreServer, room_id: str, user: str) -> list[str]:
        sent: list[str] = []
        for number in range(5):
            batch = [process.send(room_id, user, f"{number}-{index}") for index in range(each // 5)]
            sent += [stored.event_id for stored in await asyncio.gather(*batch)]
        return sent

    async def story() -> None:
        room_id = await server.create_room(preset="public_chat")
        await server.memberships.join(BOB, room_id)
        before = await server.heads.get(room_id)
        sent = await asyncio.gather(talk(server, room_id, ALICE), talk(other, room_id, BOB))
        last = await server.send(room_id)

        found = await CoreServer(server.database).events.by_id(room_id, [*sent[0], *sent[1]])
        assert len(found) == 2 * each
        assert {stored.verdict for stored in found.values()} == {Verdict.ACCEPTED}
        nids, edges = server.database.read_now(graph_of, before.room_nid)
        # One line: every event but the first has one before it, and all but the last one after it.
        assert {child for child, _ in edges} == nids - {min(nids)}
        assert {parent for _, parent in edges} == nids - {last.event_nid}
        head = await server.heads.get(room_id)
        assert [extremity.event_id for extremity in head.extremities] == [last.event_id]
        assert last.event.depth == len(nids)
        assert server.database.read_now(find_problems) == []

    asyncio.run(story())


def test_a_slow_process_gets_its_turn_though_another_is_always_faster(postgresql_url: str) -> None:
    """SQLite is not asked: there, one process has the database for itself."""

    async def story(fast: CoreServer, slow: CoreServer) -> None:
        add_users(fast.database, ALICE, BOB, CAROL)
        room_id = await fast.create_room(preset="public_chat")
        runs = 0
        overtaking: list[asyncio.Task[StoredEvent]] = []

        async def job(working: WorkingHead) -> Sequence[NewEvent]:
            nonlocal runs
            runs += 1
            new = await slow.sender.compose(working, EventDraft("m.room.message", ALICE, {"body": "slow"}))
            overtaking.append(asyncio.create_task(fast.send(room_id)))
            await asyncio.wait(overtaking[-1:], timeout=0.5 if runs > RACES_MAX else None)
            return [new]

        (stored,) = await slow.writers.submit(room_id, job)
        assert runs == RACES_MAX + 1
        others = await asyncio.gather(*overtaking)
        positions = [event.stream_position or 0 for event in (*others[:-1], stored, others[-1])]
        assert positions == sorted(positions)
        await fast.send(room_id)  # the lock was given back
        assert fast.database.read_now(find_problems) == []

    databases = [Database(postgresql_url) for _ in range(2)]
    try:
        asyncio.run(story(*map(CoreServer, databases)))
    finally:
        for database in databases:
            database.close()


def test_what_a_late_event_follows_is_no_extremity_any_longer(server: CoreServer) -> None:
    async def story() -> None:
        room = factory_room()
        await server.adopt(room)
        (before,) = (await server.heads.get(room.room_id)).extremities
        late = room.send(ZOE, "late")
        following = room.send(ZOE, "early")
        assert late.prev_events == (before.event_id,)

        async def job(working: WorkingHead) -> Sequence[NewEvent]:
            return [NewEvent(following, working.head.snapshot)]

        async def late_job(working: WorkingHead) -> Sequence[NewEvent]:
            return [NewEvent(late, working.head.snapshot, extends=False)]

        await server.writers.submit(room.room_id, job)
        head = await server.heads.get(room.room_id)
        assert {e.event_id for e in head.extremities} == {before.event_id, following.event_id}
        await server.writers.submit(room.room_id, late_job)
        head = await server.heads.get(room.room_id)
        assert {e.event_id for e in head.extremities} == {following.event_id}
        server.heads.forget(room.room_id)
        stored = (await server.heads.get(room.room_id)).extremities
        assert [e.event_nid for e in stored] == [e.event_nid for e in head.extremities]

    asyncio.run(story())


def test_two_processes_change_the_state_of_one_room(server: CoreServer, other: CoreServer) -> None:
    async def story() -> None:
        room_id = await server.create_room()
        changes = [
            process.set_state(room_id, "org.example.note", {"n": number}, f"{name}{number}")
            for number in range(12)
            for process, name in ((server, "a"), (other, "b"))
        ]
        stored = await asyncio.gather(*changes)
        await server.send(room_id)
        head = await server.heads.get(room_id)
        notes = {key[1]: event_id for key, event_id in head.state.items() if key[0] == "org.example.note"}
        assert notes == {event.event.state_key: event.event_id for event in stored}
        for event in stored:
            assert event.state_group is not None
            assert (await other.states.snapshot(event.state_group)).state[event.event.key] == event.event_id
        assert server.database.read_now(find_problems) == []

    asyncio.run(story())


# -- transaction IDs ---------------------------------------------------------------------------------------------------


def test_a_repeated_transaction_is_answered_with_the_same_event(server: CoreServer, other: CoreServer) -> None:
    async def story() -> None:
        room_id = await server.create_room()
        first = await server.send(room_id, txn=key(room_id, "1"))
        assert first.txn == (ALICE, "D", "1")
        again = await server.send(room_id, txn=key(room_id, "1"))
        elsewhere = await other.send(room_id, txn=key(room_id, "1"))
        restarted = await CoreServer(server.database).send(room_id, txn=key(room_id, "1"))
        assert first.event_id == again.event_id == elsewhere.event_id == restarted.event_id
        assert restarted.txn == (ALICE, "D", "1")
        assert (await server.send(room_id, txn=key(room_id, "2"))).event_id != first.event_id
        assert (await server.send(room_id, txn=key(room_id, "1", "E"))).event_id != first.event_id

    asyncio.run(story())


def test_the_same_transaction_at_once_sends_one_event(server: CoreServer, other: CoreServer) -> None:
    async def story() -> None:
        room_id = await server.create_room()
        before = await server.database.read(lambda c: c.scalar(select(func.count()).select_from(events)))
        sends = [
            process.send(room_id, body=f"body of {number}", txn=key(room_id, str(number // 2)))
            for number in range(8)
            for process in (server, other)
        ]
        stored = await asyncio.gather(*sends)
        by_txn: dict[str, set[str]] = {}
        for event in stored:
            assert event.txn is not None
            by_txn.setdefault(event.txn[2], set()).add(event.event_id)
        assert {txn_id: len(event_ids) for txn_id, event_ids in by_txn.items()} == dict.fromkeys("0123", 1)
        after = await server.database.read(lambda c: c.scalar(select(func.count()).select_from(events)))
        assert after - before == 4

    asyncio.run(story())


def test_a_repeated_transaction_needs_no_permission_any_more(server: CoreServer) -> None:
    async def story() -> None:
        room_id = await server.create_room(preset="public_chat")
        await server.memberships.join(BOB, room_id)
        sent = await server.send(room_id, BOB, txn=key(room_id, "1", user_id=BOB))
        await server.memberships.kick(ALICE, room_id, BOB)
        assert (await server.send(room_id, BOB, txn=key(room_id, "1", user_id=BOB))).event_id == sent.event_id
        with pytest.raises(Forbidden):
            await server.send(room_id, BOB, txn=key(room_id, "2", user_id=BOB))

    asyncio.run(story())


def test_transaction_ids_may_be_any_text(server: CoreServer) -> None:
    async def story() -> None:
        room_id = await server.create_room()
        odd = key(room_id, "a\0b\ufdd0")
        sent = await server.send(room_id, txn=odd)
        assert (await server.send(room_id, txn=odd)).event_id == sent.event_id
        read_back = (await CoreServer(server.database).events.by_id(room_id, [sent.event_id]))[sent.event_id]
        assert read_back.txn == (ALICE, "D", "a\0b\ufdd0")

    asyncio.run(story())


# -- jobs of one batch -------------------------------------------------------------------------------------------------


def test_jobs_that_wait_are_written_together_each_on_top_of_the_one_before(server: CoreServer) -> None:
    async def story() -> None:
        room_id = await server.create_room()
        generation = (await server.heads.get(room_id)).generation
        stored = await asyncio.gather(*(server.send(room_id, body=str(number)) for number in range(20)))
        depths = [event.event.depth for event in stored]
        assert depths == list(range(depths[0], depths[0] + 20))
        assert all(later.event.prev_events == (e.event_id,) for e, later in itertools.pairwise(stored))
        positions = [event.stream_position for event in stored]
        assert positions == list(range(positions[0] or 0, (positions[0] or 0) + 20))
        # The first goes at once; those who come while it is written share the next transaction.
        assert (await server.heads.get(room_id)).generation - generation <= 2

    asyncio.run(story())


def test_a_job_that_fails_leaves_the_others_as_they_were(server: CoreServer) -> None:
    async def story() -> None:
        room_id = await server.create_room()

        async def failing(working: WorkingHead) -> Sequence[NewEvent]:
            for number in (1, 2):
                draft = EventDraft("org.example.note", ALICE, {"n": number}, "failed")
                await working.take_in(await server.sender.compose(working, draft))
            raise ValueError("changed my mind")

        results = await asyncio.gather(
            server.set_state(room_id, "org.example.note", {}, "first"),
            server.writers.submit(room_id, failing),
            server.send(room_id, CAROL),
            server.set_state(room_id, "org.example.note", {}, "last"),
            return_exceptions=True,
        )
        first, failed, forbidden, last = results
        assert isinstance(failed, ValueError)
        assert isinstance(forbidden, Forbidden)
        assert last.event.prev_events == (first.event_id,)  # type: ignore[union-attr]
        state = await server.state(room_id)
        assert {k[1] for k in state if k[0] == "org.example.note"} == {"first", "last"}
        server.heads.forget(room_id)
        assert await server.state(room_id) == state
        assert server.database.read_now(find_problems) == []

    asyncio.run(story())


def test_who_goes_away_does_not_take_the_event_back(server: CoreServer) -> None:
    async def story() -> None:
        room_id = await server.create_room()
        tasks = [asyncio.create_task(server.send(room_id, body=str(number))) for number in range(5)]
        await asyncio.sleep(0)
        for task in tasks[:4]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert [task.cancelled() for task in tasks] == [True] * 4 + [False]
        assert tasks[4].result().event.depth == 6 + 5
        await server.writers.idle()
        assert (await server.send(room_id)).event.depth == 6 + 6

    asyncio.run(story())


def test_somebody_who_needs_the_room_alone_waits_and_is_waited_for(server: CoreServer) -> None:
    async def story() -> None:
        room_id = await server.create_room()
        order: list[str] = []

        async def send(name: str) -> None:
            async def job(working: WorkingHead) -> Sequence[NewEvent]:
                order.append(name)
                return [await server.sender.compose(working, EventDraft("m.room.message", ALICE, {"body": name}))]

            await server.writers.submit(room_id, job)

        async def action() -> str:
            order.append("alone")
            return "done"

        async def fail() -> None:
            raise KeyError("no")

        results = await asyncio.gather(
            send("a"),
            server.writers.alone(room_id, action),
            server.writers.alone(room_id, fail),
            send("b"),
            return_exceptions=True,
        )
        assert results[1] == "done"
        assert isinstance(results[2], KeyError)
        assert order == ["a", "alone", "b"]

    asyncio.run(story())


def test_unknown_rooms_cannot_be_written_to(server: CoreServer) -> None:
    async def nothing(_: WorkingHead) -> Sequence[NewEvent]:
        return []

    with pytest.raises(NotFound):
        asyncio.run(server.writers.submit("!unheard:of.org", nothing))


def test_a_job_may_find_nothing_to_do(server: CoreServer) -> None:
    async def nothing(_: WorkingHead) -> Sequence[NewEvent]:
        return []

    async def story() -> None:
        room_id = await server.create_room()
        generation = (await server.heads.get(room_id)).generation
        assert await server.writers.submit(room_id, nothing) == []
        assert (await server.heads.get(room_id)).generation == generation

    asyncio.run(story())


# -- forks and gaps ----------------------------------------------------------------------------------------------------


def factory_room(version: str = "11") -> RoomFactory:
    room = RoomFactory(version, room_localpart=next(NAMES))
    room.create("alice")
    room.join(ZOE)
    return room


def test_branches_meet_in_the_next_event(server: CoreServer) -> None:
    async def story() -> None:
        room = factory_room()
        await server.adopt(room)
        start = room.extremities
        left = room.send(ZOE, "left", prev_events=start)
        right = room.state_event("alice", "m.room.topic", {"topic": "right"}, prev_events=start)
        await server.receive(left, right)
        head = await server.heads.get(room.room_id)
        assert {extremity.event_id for extremity in head.extremities} == {left.event_id, right.event_id}
        assert head.state["m.room.topic", ""] == right.event_id
        merged = await server.send(room.room_id)
        assert set(merged.event.prev_events) == {left.event_id, right.event_id}
        head = await server.heads.get(room.room_id)
        assert [extremity.event_id for extremity in head.extremities] == [merged.event_id]
        assert server.database.read_now(find_problems) == []

    asyncio.run(story())


def test_refused_events_are_stored_but_lead_nowhere(server: CoreServer) -> None:
    async def story() -> None:
        room = factory_room()
        await server.adopt(room)
        start = room.extremities
        position = server.notifier.position
        banned = room.ban("alice", ZOE)
        late = room.state_event(ZOE, "org.example.note", {}, prev_events=start)  # before the ban: not allowed anyway
        evading = room.send(ZOE, "I was here", prev_events=start)  # allowed back then, not any more
        _, rejected, soft_failed = await server.receive(banned, late, evading)
        assert rejected.verdict == Verdict.REJECTED
        assert soft_failed.verdict == Verdict.SOFT_FAILED
        head = await server.heads.get(room.room_id)
        assert [extremity.event_id for extremity in head.extremities] == [banned.event_id]
        assert ("org.example.note", "") not in head.state
        reasons = [server.database.read_now(event_graph.rejection_reason, e.event_nid) for e in (rejected, soft_failed)]
        assert all(reasons)
        changes = server.notifier.changes_since(position)
        assert changes is not None
        assert [(change.wakes_room, change.effect) for change in changes] == [
            (True, StateEffect.OWN),
            (False, StateEffect.NONE),
            (False, StateEffect.NONE),
        ]
        assert server.database.read_now(find_problems) == []

    asyncio.run(story())


def test_a_missing_event_that_comes_later_takes_its_place(server: CoreServer) -> None:
    async def story() -> None:
        room = factory_room()
        await server.adopt(room)
        missing = room.send(ZOE, "late")
        following = room.send(ZOE, "early")
        rejected = room.state_event(ZOE, "org.example.note", {}, prev_events=[missing])

        async def job(working: WorkingHead) -> Sequence[NewEvent]:
            before = working.head.snapshot
            return [NewEvent(rejected, before, Verdict.REJECTED, "no"), NewEvent(following, before)]

        await server.writers.submit(room.room_id, job)
        gaps = select(backward_extremities.c.missing_event_id).distinct()
        gaps = gaps.where(backward_extremities.c.missing_event_id.in_(room.events))
        assert list(server.database.read_now(lambda c: c.scalars(gaps).all())) == [missing.event_id]
        (stored,) = await server.receive(missing)
        assert server.database.read_now(lambda c: c.scalars(gaps).all()) == []
        _, edges = server.database.read_now(graph_of, stored.room_nid)
        assert {child for child, parent in edges if parent == stored.event_nid} == {
            event.event_nid
            for event in (await server.events.by_id(room.room_id, [following.event_id, rejected.event_id])).values()
        }
        assert server.database.read_now(find_problems) == []

    asyncio.run(story())


def test_backfilled_events_come_before_everything_and_wake_nobody(server: CoreServer) -> None:
    async def story() -> None:
        room = factory_room()
        await server.adopt(room)
        position = server.notifier.position
        older = [room.send(ZOE, str(number)) for number in range(3)]
        head = await server.heads.get(room.room_id)

        async def job(working: WorkingHead) -> Sequence[NewEvent]:
            return [NewEvent(event, working.head.snapshot, backfilled=True) for event in older]

        first = await server.writers.submit(room.room_id, job)
        last = first[-1].stream_position
        assert last is not None
        assert [stored.stream_position for stored in first] == [last - 2, last - 1, last]
        older = [room.send(ZOE, str(number)) for number in range(3, 5)]
        assert [e.stream_position for e in await server.writers.submit(room.room_id, job)] == [last - 4, last - 3]
        assert (await server.heads.get(room.room_id)).extremities == head.extremities
        assert server.notifier.position == position

    asyncio.run(story())


def test_an_outlier_finds_its_place_later(server: CoreServer) -> None:
    async def story() -> None:
        room = factory_room()
        await server.adopt(room)
        event = room.state_event("alice", "m.room.topic", {"topic": "later"})

        async def outlier(_: WorkingHead) -> Sequence[NewEvent]:
            return [NewEvent(event, None, Verdict.OUTLIER)]

        (stored,) = await server.writers.submit(room.room_id, outlier)
        assert (stored.verdict, stored.stream_position, stored.state_group) == (Verdict.OUTLIER, None, None)
        assert not stored.visible
        (again,) = await server.writers.submit(room.room_id, outlier)
        assert again.event_nid == stored.event_nid
        (placed,) = await server.receive(event)
        assert placed.event_nid == stored.event_nid
        assert placed.verdict == Verdict.ACCEPTED
        for process in (server, CoreServer(server.database)):
            found = (await process.events.by_id(room.room_id, [event.event_id]))[event.event_id]
            assert (found.stream_position, found.state_group) == (placed.stream_position, placed.state_group)
        assert (await server.heads.get(room.room_id)).state["m.room.topic", ""] == event.event_id
        assert server.database.read_now(find_problems) == []

    asyncio.run(story())


@pytest.mark.parametrize("nobody", ["no user", "", "@nowhere", "@a\0b:other.org", ":example.org"])
def test_members_that_are_no_users_do_no_harm(server: CoreServer, nobody: str) -> None:
    async def story() -> None:
        for membership in ("ban", "invite"):
            room = factory_room()
            room.set_power_levels("alice", {ZOE: 100})
            await server.adopt(room)
            (stored,) = await server.receive(room.event(ZOE, "m.room.member", {"membership": membership}, nobody))
            assert stored.verdict == Verdict.ACCEPTED
            await server.send(room.room_id)
            server.heads.forget(room.room_id)
            head = await server.heads.get(room.room_id)
            assert head.state["m.room.member", nobody] == stored.event_id
            assert set(head.joined) == {ALICE, ZOE}

    asyncio.run(story())


# -- redactions --------------------------------------------------------------------------------------------------------


async def redactor(server: CoreServer, event_id: str) -> str | None:
    """The redaction of an event, as this process and a new one see it."""
    found = []
    for process in (server, CoreServer(server.database)):
        (stored,) = await process.events.in_any_room(event_id)
        found.append(stored.redacted_by.event_id if stored.redacted_by else None)
    assert found[0] == found[1]
    return found[0]


@pytest.mark.parametrize("version", ["1", "3", "11", "12"])
def test_a_redaction_takes_effect(server: CoreServer, version: str) -> None:
    async def story() -> None:
        room_id = await server.create_room(version=version, preset="public_chat")
        await server.memberships.join(BOB, room_id)
        message = await server.send(room_id, BOB)
        assert await redactor(server, message.event_id) is None
        redaction = await server.redact(room_id, message.event_id)
        assert await redactor(server, message.event_id) == redaction.event_id

    asyncio.run(story())


def test_a_redaction_that_is_not_allowed_has_no_effect(server: CoreServer) -> None:
    async def story() -> None:
        room = factory_room()
        message = room.send("alice", "mine")
        elsewhere = RoomFactory(room_localpart=next(NAMES))
        elsewhere.create(ZOE)
        await server.adopt(room)
        await server.adopt(elsewhere)
        other_room = elsewhere.redact(ZOE, message)
        redaction = room.redact(ZOE, message)
        stored = await server.receive(redaction, other_room)
        assert [event.verdict for event in stored] == [Verdict.ACCEPTED, Verdict.ACCEPTED]
        assert await redactor(server, message.event_id) is None

    asyncio.run(story())


def test_a_soft_failed_redaction_has_no_effect(server: CoreServer) -> None:
    async def story() -> None:
        room = factory_room()
        room.set_power_levels("alice", {ZOE: 50})
        message = room.send("alice", "mine")
        await server.adopt(room)
        start = room.extremities
        ban = room.ban("alice", ZOE)
        evading = room.redact(ZOE, message, prev_events=start)
        _, stored = await server.receive(ban, evading)
        assert stored.verdict == Verdict.SOFT_FAILED
        assert await redactor(server, message.event_id) is None

    asyncio.run(story())


@pytest.mark.parametrize("together", [False, True])
def test_a_redaction_may_come_before_its_target(server: CoreServer, together: bool) -> None:
    async def story() -> None:
        room = factory_room()
        room.join("@mallory:third.org")
        await server.adopt(room)
        start = room.extremities
        message = room.send(ZOE, "oops")
        redaction = room.redact(ZOE, message, prev_events=start)
        refused = room.redact("@mallory:third.org", message, prev_events=start)
        if together:
            await server.receive(refused, redaction, message)
        else:
            await server.receive(refused)
            await server.receive(redaction)
            await server.receive(message)
        assert await redactor(server, message.event_id) == redaction.event_id

    asyncio.run(story())


def test_a_redacted_member_has_no_name(server: CoreServer) -> None:
    async def story() -> None:
        room = factory_room()
        joined = room.join(ZOE, content={"displayname": "something rude", "avatar_url": "mxc://other.org/a"})
        await server.adopt(room)
        redaction = room.redact("alice", joined)
        await server.receive(redaction)

        def names(connection: Connection) -> list[tuple[str | None, str | None]]:
            nid = select(rooms.c.room_nid).where(rooms.c.room_id == room.room_id).scalar_subquery()
            statement = select(room_members.c.display_name, room_members.c.avatar_url).where(
                room_members.c.user_id == ZOE, room_members.c.room_nid == nid
            )
            return [tuple(row) for row in connection.execute(statement)]

        assert server.database.read_now(names) == [(None, None)]
        assert server.database.read_now(find_problems) == []

    asyncio.run(story())


# -- who is woken ------------------------------------------------------------------------------------------------------


def test_everybody_concerned_is_told(server: CoreServer) -> None:
    async def story() -> None:
        room_id = await server.create_room(preset="public_chat")
        await server.memberships.join(BOB, room_id)
        position = server.notifier.position
        message = await server.send(room_id)
        await server.memberships.invite(ALICE, room_id, CAROL)
        await server.memberships.leave(BOB, room_id)
        changes = server.notifier.changes_since(position)
        assert changes is not None
        assert [(c.position, c.stream, c.room_id, c.users, c.wakes_room) for c in changes] == [
            (position + 1, Stream.EVENTS, room_id, (), True),
            (position + 2, Stream.EVENTS, room_id, (CAROL,), True),
            (position + 3, Stream.EVENTS, room_id, (BOB,), True),
        ]
        assert changes[0].event_id == message.event_id
        assert [change.effect for change in changes] == [StateEffect.NONE, StateEffect.OWN, StateEffect.OWN]

    asyncio.run(story())
