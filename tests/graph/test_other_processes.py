"""homeserver/graph/other_processes.py: what one process writes, another one on the same database knows of."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator

import pytest
from sqlalchemy import text

from homeserver.graph import other_processes
from homeserver.graph.working_head import NewEvent
from homeserver.notifier import StateEffect, Stream
from homeserver.storage import account_data, receipts, streams
from homeserver.storage.changes import Announcement, parse_announcement
from homeserver.storage.database import Database
from homeserver.storage.event_graph import Verdict
from homeserver.storage.receipts import NewReceipt
from tests.factories.rooms import RoomFactory
from tests.fakes.homeserver import ALICE, BOB, CAROL, ZOE, CoreServer, add_users
from tests.storage.test_database import terminate_connections
from tests.waiting import WAIT_S


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite is looked at more often than in earnest."""
    monkeypatch.setattr(other_processes, "POLL_S", 0.02)
    monkeypatch.setattr(other_processes, "RECONNECT_S", 0.02)


@pytest.fixture
def pair(database: Database, database_url: str) -> Iterator[tuple[CoreServer, CoreServer]]:
    """Two processes on one database."""
    add_users(database, ALICE, BOB, CAROL)
    second = Database(database_url)
    yield CoreServer(database), CoreServer(second)
    second.close()


@contextlib.asynccontextmanager
async def following(*servers: CoreServer) -> AsyncIterator[None]:
    for server in servers:
        server.others.start(server.notifier)
    try:
        yield
    finally:
        for server in servers:
            await server.others.stop()


async def until_at(server: CoreServer, position: int | None) -> None:
    """Wait until a process knows of everything up to a position."""
    reader = server.notifier.reader()
    async with asyncio.timeout(WAIT_S):
        while server.notifier.position != position:
            await reader.wait()
            reader.clear()


async def wakes(
    server: CoreServer, user: str, do: Callable[[], Awaitable[object]], rooms: Collection[str] = ()
) -> bool:
    """Whether something that happens elsewhere wakes a user's request here."""
    waiting = asyncio.create_task(server.notifier.wait_for_user(user, WAIT_S, rooms))
    await asyncio.sleep(0)
    await do()
    return await waiting


def test_a_request_here_wakes_on_a_message_there(pair: tuple[CoreServer, CoreServer]) -> None:
    here, there = pair

    async def story() -> None:
        async with following(here, there):
            room_id = await there.create_room(preset="public_chat")
            await there.memberships.join(BOB, room_id)
            await until_at(here, there.notifier.position)
            position = here.notifier.position
            assert await wakes(here, BOB, lambda: there.send(room_id), [room_id])
            changes = here.notifier.changes_since(position)
            assert changes is not None
            (change,) = changes
            assert (change.position, change.stream, change.room_id) == (position + 1, Stream.EVENTS, room_id)
            assert (change.users, change.wakes_room) == ((), True)
            assert change.effect is StateEffect.UNKNOWN
            assert change.event_id == (await here.heads.get(room_id)).extremities[0].event_id
            # And the other way round.
            assert await wakes(there, ALICE, lambda: here.send(room_id, BOB), [room_id])

    asyncio.run(story())


def test_all_kinds_of_changes_and_whom_they_concern(pair: tuple[CoreServer, CoreServer]) -> None:
    here, there = pair

    async def story() -> None:
        room_id = await there.create_room(preset="public_chat")
        await there.memberships.join(BOB, room_id)
        message = await there.send(room_id)
        nid = (await there.heads.get(room_id)).room_nid
        start = there.database.read_now(streams.current_position)
        await there.memberships.invite(ALICE, room_id, CAROL)
        await there.memberships.leave(BOB, room_id)
        for kind, thread in (("m.read", ""), ("m.read.private", "")):
            new = NewReceipt(nid, kind, ALICE, thread, message.event_id, 1)
            await there.database.write_batched(receipts.store, [new])
        await there.database.write(account_data.put_account_data, BOB, "", "a", b"{}")
        await there.database.write(account_data.put_account_data, BOB, room_id, "a", b"{}")
        elsewhere = RoomFactory("11", "other.org")
        elsewhere.create(ZOE)
        await there.out_of_band.store(elsewhere.version, elsewhere.invite(ZOE, BOB))
        # Replaced before anybody looked: nothing is left at the position of the first.
        await there.database.write(account_data.put_account_data, BOB, "", "b", b"{}")
        await there.database.write(account_data.put_account_data, BOB, "", "b", b"[]")

        upto = there.database.read_now(streams.current_position)
        changes = await here.others.load_changes(start, upto)
        assert [(c.position - start, c.stream, c.room_id, c.users, c.wakes_room) for c in changes] == [
            (1, Stream.EVENTS, room_id, (CAROL,), True),
            (2, Stream.EVENTS, room_id, (BOB,), True),
            (3, Stream.RECEIPTS, room_id, (), True),
            (4, Stream.RECEIPTS, room_id, (ALICE,), False),
            (5, Stream.ACCOUNT_DATA, None, (BOB,), False),
            (6, Stream.ACCOUNT_DATA, room_id, (BOB,), False),
            (7, Stream.MEMBERSHIP, elsewhere.room_id, (BOB,), False),
            (9, Stream.ACCOUNT_DATA, None, (BOB,), False),
        ]
        assert [c.position - start for c in await here.others.load_changes(start + 2, start + 4)] == [3, 4]
        assert await here.others.load_changes(upto, upto) == []

    asyncio.run(story())


def test_refused_events_wake_nobody(pair: tuple[CoreServer, CoreServer]) -> None:
    here, there = pair

    async def story() -> None:
        room = RoomFactory()
        room.create("alice")
        room.join(ZOE)
        await there.adopt(room)
        start = there.notifier.position
        rejected = room.state_event(ZOE, "m.room.topic", {"topic": "mine"})
        (stored,) = await there.receive(rejected)
        assert stored.verdict == Verdict.REJECTED
        (change,) = await here.others.load_changes(start, start + 1)
        assert (change.users, change.wakes_room) == ((), False)
        assert (change.effect, change.event_id) == (StateEffect.NONE, rejected.event_id)

    asyncio.run(story())


def test_caches_are_true_to_what_others_wrote(pair: tuple[CoreServer, CoreServer]) -> None:
    here, there = pair

    async def story() -> None:
        async with following(here, there):
            room_id = await here.create_room(preset="public_chat")
            message = await here.send(room_id)
            old = await here.heads.get(room_id)
            await there.memberships.join(BOB, room_id)
            redaction = await there.redact(room_id, message.event_id)
            last = await there.set_state(room_id, "m.room.topic", {"topic": "new"})
            await until_at(here, last.stream_position)
            head = await here.heads.get(room_id)
            assert head.generation > old.generation
            assert set(head.joined_local) == {ALICE, BOB}
            assert head.state["m.room.topic", ""] == last.event_id
            stored = await here.events.get(room_id, message.event_id)
            assert stored is not None
            assert stored.redacted_by is not None
            assert stored.redacted_by.event_id == redaction.event_id
            # What this process writes now needs no second try.
            assert (await here.send(room_id)).event.prev_events == (last.event_id,)

    asyncio.run(story())


def test_an_outlier_that_another_process_placed(pair: tuple[CoreServer, CoreServer]) -> None:
    here, there = pair

    async def story() -> None:
        room = RoomFactory()
        room.create("alice")
        await here.adopt(room)
        topic = room.state_event("alice", "m.room.topic", {"topic": "later"})
        await here.append(NewEvent(topic, None, Verdict.OUTLIER))
        async with following(here, there):
            (placed,) = await there.receive(topic)
            await until_at(here, placed.stream_position)
            stored = await here.events.get(room.room_id, topic.event_id)
            assert stored is not None
            assert (stored.verdict, stored.stream_position) == (Verdict.ACCEPTED, placed.stream_position)

    asyncio.run(story())


def test_nothing_is_lost_or_told_twice_while_both_write(pair: tuple[CoreServer, CoreServer]) -> None:
    here, there = pair

    async def story() -> None:
        async with following(here, there):
            rooms = [await here.create_room(), await there.create_room()]
            start = there.database.read_now(streams.current_position)
            for server in (here, there):
                await server.notifier.catch_up(start)
            seen: dict[str, list[int]] = {"here": [], "there": []}

            async def watch(name: str, server: CoreServer, until_position: int) -> None:
                position = start
                while position < until_position:
                    changes = server.notifier.changes_since(position)
                    assert changes is not None
                    if changes:
                        seen[name] += [change.position for change in changes]
                        position = server.notifier.position
                    else:
                        assert await server.notifier.wait_for_user(ALICE, WAIT_S, rooms)

            end = start + 60
            watching = [
                asyncio.create_task(watch("here", here, end)),
                asyncio.create_task(watch("there", there, end)),
            ]
            for _ in range(6):
                await asyncio.gather(
                    *(here.send(rooms[0]) for _ in range(5)), *(there.send(rooms[1]) for _ in range(5))
                )
            await asyncio.gather(*watching)
            assert seen["here"] == seen["there"] == list(range(start + 1, end + 1))

    asyncio.run(story())


def test_what_was_said_while_the_connection_was_lost(postgresql_url: str) -> None:
    here, there = (CoreServer(Database(postgresql_url)) for _ in range(2))
    add_users(here.database, ALICE)

    async def story() -> None:
        async with following(here):
            room_id = await there.create_room()
            await until_at(here, there.notifier.position)
            for _ in range(3):
                await asyncio.to_thread(terminate_connections, postgresql_url)
                sent = await there.send(room_id)
                await until_at(here, sent.stream_position)
            assert here.notifier.changes_since(0) is not None

    asyncio.run(story())
    here.database.close()
    there.database.close()


def test_what_others_say_on_the_channel_does_no_harm(postgresql_url: str) -> None:
    here, there = (CoreServer(Database(postgresql_url)) for _ in range(2))
    add_users(here.database, ALICE)

    async def story() -> None:
        async with following(here):
            for payload in ("", "hello", "-5 x", "٣ x", "9" * 25 + " x"):
                with there.database.begin() as connection:
                    connection.execute(text("SELECT pg_notify('homeserver', :payload)"), {"payload": payload})
            sent = await there.send(await there.create_room())
            await until_at(here, sent.stream_position)

    asyncio.run(story())
    here.database.close()
    there.database.close()


def test_announcements() -> None:
    assert parse_announcement("7 abc") == Announcement(7, "abc")
    assert parse_announcement("7") == Announcement(7, "")
    assert parse_announcement("seven abc") is None


def test_following_ends(pair: tuple[CoreServer, CoreServer]) -> None:
    here, _ = pair

    async def story() -> None:
        await here.others.stop()
        here.others.start(here.notifier)
        await asyncio.sleep(0)
        await here.others.stop()
        await here.others.stop()

    asyncio.run(story())
