from __future__ import annotations

import asyncio
from typing import Any

import pytest

from homeserver.ephemeral.local_updates import ROOMS_NOT_SHARED_MAX
from homeserver.ephemeral.receipts import ENTRIES_PER_TRANSACTION_MAX, _named
from homeserver.errors import Forbidden, InvalidParam
from homeserver.protocol.json_types import JsonObject
from homeserver.storage.database import Database
from homeserver.storage.event_graph import StoredEvent
from homeserver.storage.receipts import THREADS_PER_USER_MAX
from tests.fakes.reading_server import SERVER_NAME, ReadingServer, joined, user

REMOTE = "other.org"
MARY = f"@mary:{REMOTE}"


def receipts_in(response: JsonObject, room_id: str) -> list[tuple[str, str, str, Any]]:
    """``(event_id, type, user_id, thread_id)`` of all receipts in a response."""
    events = joined(response, room_id).get("ephemeral", {}).get("events", []) if "rooms" in response else []
    return [
        (event_id, receipt_type, user_id, data.get("thread_id"))
        for event in events
        if event["type"] == "m.receipt"
        for event_id, by_type in event["content"].items()
        for receipt_type, by_user in by_type.items()
        for user_id, data in by_user.items()
    ]


async def room_with_messages(server: ReadingServer, count: int = 3) -> tuple[str, list[StoredEvent]]:
    room = await server.create_room("alice", join=["bob"], name="named")
    return room, [await server.send(room, "alice", f"message {n}") for n in range(count)]


async def join_from_outside(server: ReadingServer, room_id: str, user_id: str) -> None:
    """A user of another server joins (through our own signature, which nobody checks here)."""
    await server.member(room_id, user_id, user_id, "join")


def edu(room_id: str, user_id: str, event_ids: list[str], **data: Any) -> JsonObject:
    content = {room_id: {"m.read": {user_id: {"event_ids": event_ids, "data": {"ts": 1, **data}}}}}
    return {"edu_type": "m.receipt", "content": content}


def test_receipt_reaches_everybody_and_never_goes_back(database: Database) -> None:
    async def story() -> None:
        server = ReadingServer(database)
        room, (old, new, _) = await room_with_messages(server)
        since = (await server.sync("alice"))["next_batch"]
        await server.receipts.post(user("bob"), room, "m.read", new.event_id)
        await server.receipts.post(user("bob"), room, "m.read", old.event_id)
        expected = [(new.event_id, "m.read", user("bob"), None)]
        for start in (since, None):  # from memory, and from the database
            assert receipts_in(await server.sync("alice", start), room) == expected
        assert [(r.user_id, r.event_id) for r in server.delivery.receipts] == [(user("bob"), new.event_id)]

    asyncio.run(story())


def test_private_receipt_is_shown_to_its_user_alone(database: Database) -> None:
    async def story() -> None:
        server = ReadingServer(database)
        room, (_, message, _) = await room_with_messages(server)
        since = (await server.sync("alice"))["next_batch"]
        await server.receipts.post(user("bob"), room, "m.read.private", message.event_id)
        expected = [(message.event_id, "m.read.private", user("bob"), None)]
        for start in (since, None):
            assert receipts_in(await server.sync("alice", start), room) == []
            assert receipts_in(await server.sync("bob", start), room) == expected
        assert server.delivery.receipts == []

    asyncio.run(story())


def test_threads_have_receipts_of_their_own(database: Database) -> None:
    async def story() -> None:
        server = ReadingServer(database)
        room, (root, other, _) = await room_with_messages(server)
        relation = {"m.relates_to": {"rel_type": "m.thread", "event_id": root.event_id}}
        reply = await server.send(room, "alice", "in the thread", **relation)
        reaction_to = {"m.relates_to": {"rel_type": "m.annotation", "event_id": reply.event_id, "key": "x"}}
        reaction = await server.event(room, "alice", "m.reaction", reaction_to)
        since = (await server.sync("bob"))["next_batch"]
        for event, thread in ((root, "main"), (reaction, root.event_id), (root, root.event_id), (other, None)):
            await server.receipts.post(user("bob"), room, "m.read", event.event_id, thread)
        found = receipts_in(await server.sync("alice", since), room)
        assert sorted(found, key=str) == sorted(
            [
                (root.event_id, "m.read", user("bob"), "main"),
                (reaction.event_id, "m.read", user("bob"), root.event_id),
                (other.event_id, "m.read", user("bob"), None),
            ],
            key=str,
        )
        for event, thread in ((reply, "main"), (other, root.event_id), (reply, other.event_id)):
            with pytest.raises(InvalidParam):
                await server.receipts.post(user("bob"), room, "m.read", event.event_id, thread)

    asyncio.run(story())


def test_who_may_send_which_receipt(database: Database) -> None:
    async def story() -> None:
        server = ReadingServer(database)
        room, (message, *_) = await room_with_messages(server)
        elsewhere = await server.send(await server.create_room("bob"), "bob")
        with pytest.raises(Forbidden):
            await server.receipts.post(user("carol"), room, "m.read", message.event_id)
        for receipt_type, event_id in (
            ("m.seen", message.event_id),
            ("m.read", elsewhere.event_id),
            ("m.read", "$unknown"),
            ("m.read", "$" + "x" * 300),
        ):
            with pytest.raises(InvalidParam):
                await server.receipts.post(user("bob"), room, receipt_type, event_id)

    asyncio.run(story())


def test_receipts_of_other_servers(database: Database) -> None:
    async def story() -> None:
        server = ReadingServer(database)
        room, (old, middle, new) = await room_with_messages(server)
        await join_from_outside(server, room, MARY)
        since = (await server.sync("alice"))["next_batch"]
        await server.receipts.receive(REMOTE, edu(room, MARY, [middle.event_id, old.event_id]))
        first = await server.sync("alice", since)
        assert receipts_in(first, room) == [(middle.event_id, "m.read", MARY, None)]
        await server.receipts.receive(REMOTE, edu(room, MARY, [old.event_id]))
        await server.receipts.receive("evil.org", edu(room, MARY, [new.event_id]))
        await server.receipts.receive(REMOTE, edu(room, user("alice"), [new.event_id]))
        await server.receipts.receive(REMOTE, edu(room, f"@stranger:{REMOTE}", [new.event_id]))
        await server.receipts.receive(REMOTE, edu("!nowhere:other.org", MARY, [new.event_id]))
        private = {"content": {room: {"m.read.private": {MARY: {"event_ids": [new.event_id]}}}}}
        await server.receipts.receive(REMOTE, private)
        assert "rooms" not in await server.sync("alice", first["next_batch"])
        await server.receipts.receive(REMOTE, edu(room, MARY, ["$of_an_event_to_come"], thread_id="main"))
        then = await server.sync("alice", first["next_batch"])
        assert receipts_in(then, room) == [("$of_an_event_to_come", "m.read", MARY, "main")]
        assert server.delivery.receipts == []

    asyncio.run(story())


@pytest.mark.parametrize(
    "content",
    [
        None,
        [],
        {"!room1:example.org": None},
        {"!room1:example.org": {"m.read": []}},
        {"!room1:example.org": {"m.read": {MARY: None}}},
        {"!room1:example.org": {"m.read": {MARY: {"event_ids": "x"}}}},
        {"!room1:example.org": {"m.read": {MARY: {"event_ids": [1, None, "", "$" + "x" * 300]}}}},
        {"!room1:example.org": {"m.read": {MARY: {"event_ids": ["$x"], "data": {"thread_id": 1}}}}},
        {"!room1:example.org": {"m.read": {"mary": {"event_ids": ["$x"]}, "": {"event_ids": ["$x"]}}}},
    ],
)
def test_malformed_edus_are_dropped(sqlite_url: str, content: Any) -> None:
    async def story() -> None:
        server = ReadingServer(database)
        room, _ = await room_with_messages(server)
        await join_from_outside(server, room, MARY)
        position = server.notifier.position
        await server.receipts.receive(REMOTE, {"edu_type": "m.receipt", "content": content})
        assert server.notifier.position == position

    database = Database(sqlite_url)
    try:
        asyncio.run(story())
    finally:
        database.close()


def thread(number: int) -> str:
    """What looks like the ID of a thread's root."""
    return f"${number:043d}"


def test_threads_that_others_invent_are_bounded(database: Database) -> None:
    async def story() -> None:
        server = ReadingServer(database)
        room, (message, *_) = await room_with_messages(server)
        await join_from_outside(server, room, MARY)
        for start in range(0, 150, 50):
            edus = [edu(room, MARY, [message.event_id], thread_id=thread(n)) for n in range(start, start + 50)]
            await server.receipts.receive(REMOTE, *edus)
        for thread_id in ("main", "", "$short", "x" * 44, "$" + "ü" * 43, 1):
            await server.receipts.receive(REMOTE, edu(room, MARY, [message.event_id], thread_id=thread_id))
        await server.receipts.receive(REMOTE, edu(room, MARY, [message.event_id]))
        shown = {thread_id for *_, thread_id in receipts_in(await server.sync("alice"), room)}
        assert shown == {None, "main", *(thread(number) for number in range(150 - THREADS_PER_USER_MAX, 150))}

    asyncio.run(story())


def test_rooms_that_are_not_shared_cost_one_look_up_together(sqlite_url: str) -> None:
    """Nor do they cost those that are shared their place."""

    async def story() -> None:
        server = ReadingServer(database)
        room, (message, *_) = await room_with_messages(server)
        await join_from_outside(server, room, MARY)
        others = [await server.create_room("bob") for _ in range(ROOMS_NOT_SHARED_MAX)]
        reads = 0
        read = database.read

        async def counted(*args: Any) -> Any:
            nonlocal reads
            reads += 1
            return await read(*args)

        unknown = {f"!{number}:nowhere.org": {"m.read": {MARY: {"event_ids": ["$x"]}}} for number in range(400)}
        content = {**unknown, **edu(room, MARY, [message.event_id])["content"]}
        since = (await server.sync("alice"))["next_batch"]
        database.read = counted  # type: ignore[method-assign]
        await server.receipts.receive(REMOTE, {"content": content})
        assert reads <= 3
        reads = 0
        typing = [{"content": {"room_id": i, "user_id": MARY, "typing": True}} for i in unknown]
        await server.typing.receive(REMOTE, *typing)
        assert reads == 1
        reads = 0
        private = {i: {"m.read": {MARY: {"event_ids": ["$x"]}}} for i in others}
        await server.receipts.receive(REMOTE, {"content": private})
        assert reads <= 2 + ROOMS_NOT_SHARED_MAX
        database.read = read  # type: ignore[method-assign]
        assert receipts_in(await server.sync("alice", since), room) == [(message.event_id, "m.read", MARY, None)]

    database = Database(sqlite_url)
    try:
        asyncio.run(story())
    finally:
        database.close()


def test_all_that_a_transaction_names_counts() -> None:
    receipt = {"event_ids": ["$x"] * 100}
    for edus in (
        [{"content": {f"!{n}:x": {} for n in range(100_000)}}, {"content": {"!last:x": {"m.read": {MARY: receipt}}}}],
        [{"content": {"!a:x": {"m.read": {f"@{n}:evil.org": receipt for n in range(100_000)}}}}] * 2,
        [{"content": {f"!{n}:x": {"m.read": {MARY: receipt}}}} for n in range(100_000)],
    ):
        named = _named(edus, REMOTE)
        assert sum(1 + len(each.event_ids) for each in named) <= ENTRIES_PER_TRANSACTION_MAX


def test_server_acl_holds_for_edus(database: Database) -> None:
    async def story() -> None:
        server = ReadingServer(database)
        room, (message, *_) = await room_with_messages(server)
        await join_from_outside(server, room, MARY)
        await server.event(room, "alice", "m.room.server_acl", {"allow": [SERVER_NAME]}, "")
        position = server.notifier.position
        await server.receipts.receive(REMOTE, edu(room, MARY, [message.event_id]))
        await server.typing.receive(
            REMOTE, {"edu_type": "m.typing", "content": {"room_id": room, "user_id": MARY, "typing": True}}
        )
        assert server.notifier.position == position

    asyncio.run(story())


def test_switched_off(database: Database) -> None:
    async def story() -> None:
        server = ReadingServer(database)
        room, (message, *_) = await room_with_messages(server)
        await server.receipts.post(user("bob"), room, "m.read", message.event_id)
        server = ReadingServer(database, receipts_enabled=False)
        await join_from_outside(server, room, MARY)
        position = server.notifier.position
        await server.receipts.post(user("alice"), room, "m.read", message.event_id)
        await server.receipts.receive(REMOTE, edu(room, MARY, [message.event_id]))
        assert server.notifier.position == position
        assert server.delivery.receipts == []
        assert receipts_in(await server.sync("alice"), room) == []

    asyncio.run(story())


def test_many_at_once_share_a_write_and_all_arrive(database: Database) -> None:
    async def story() -> None:
        server = ReadingServer(database)
        room, messages = await room_with_messages(server, 10)
        since = (await server.sync("alice"))["next_batch"]
        await asyncio.gather(
            *(server.receipts.post(user(who), room, "m.read", m.event_id) for m in messages for who in ("alice", "bob"))
        )
        last = messages[-1].event_id
        expected = {(last, "m.read", user("alice"), None), (last, "m.read", user("bob"), None)}
        for start in (since, None):
            assert set(receipts_in(await server.sync("alice", start), room)) == expected

    asyncio.run(story())
