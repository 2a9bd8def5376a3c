from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest

from homeserver.accounts.access_tokens import Requester
from homeserver.errors import Forbidden, InvalidParam, NotFound
from homeserver.graph.working_head import NewEvent
from homeserver.protocol.compose import compose_event
from homeserver.protocol.events import EventDraft
from homeserver.protocol.filters import parse_room_event_filter
from homeserver.protocol.json_types import JsonObject
from homeserver.reading.paging import PageRequest
from homeserver.reading.tokens import SyncToken, history_token, parse_sync_token, parse_token, sync_token
from homeserver.storage.database import Database
from homeserver.storage.event_graph import StoredEvent
from homeserver.storage.places import HIGHEST, LOWEST, place_of
from tests.factories.rooms import server_key
from tests.fakes.reading_server import VERSION, ReadingServer, joined, user


async def page(
    server: ReadingServer,
    who: str,
    room_id: str,
    start: str | None = None,
    *,
    end: str | None = None,
    dir: str = "b",
    limit: int = 10,
    filter: JsonObject | None = None,
) -> JsonObject:
    requester = Requester(user(who), "DEVICE")
    request = PageRequest(
        parse_token(start) if start else None,
        parse_token(end) if end else None,
        dir == "b",
        limit,
        parse_room_event_filter(filter or {}),
    )
    found = await server.history.messages(requester, room_id, request)
    answer: JsonObject = orjson.loads(await server.history.render_page(requester, found))
    return answer


async def all_pages(server: ReadingServer, who: str, room_id: str, **options: Any) -> list[JsonObject]:
    events: list[JsonObject] = []
    start = options.pop("start", None)
    while True:
        answer = await page(server, who, room_id, start, **options)
        events += answer["chunk"]
        start = answer.get("end")
        if start is None or (options.get("dir") == "f" and not answer["chunk"]):
            return events


def texts(events: list[JsonObject]) -> list[str]:
    return [event["content"]["body"] for event in events if event["type"] == "m.room.message"]


async def fork(server: ReadingServer, room_id: str, after: StoredEvent, body: str) -> StoredEvent:
    """A message of a user of another server that comes after an old event."""
    assert after.state_group is not None
    event = compose_event(
        EventDraft("m.room.message", "@mary:other.org", {"body": body, "msgtype": "m.text"}),
        VERSION,
        room_id=room_id,
        prev_events=[(after.event_id, "")],
        auth_events=[],
        depth=after.event.depth + 1,
        origin_server_ts=server.clock.now_ms(),
        signer=server_key("other.org"),
    )
    return (await server.append(room_id, [NewEvent(event, await server.states.snapshot(after.state_group))]))[0]


def test_whole_room_back_and_forth(database: Database) -> None:
    async def story() -> None:
        server = ReadingServer(database)
        room = await server.create_room("alice", join=["bob"])
        expected = [(await server.send(room, "alice", f"message {n}")).event_id for n in range(25)]
        back = await all_pages(server, "bob", room, limit=7)
        assert back[-1]["type"] == "m.room.create"
        assert [e["event_id"] for e in reversed(back) if e["type"] == "m.room.message"] == expected
        forth = await all_pages(server, "bob", room, dir="f", limit=4)
        assert forth == list(reversed(back))
        assert all(event["room_id"] == room for event in back)
        assert {event["unsigned"]["membership"] for event in back[:25]} == {"join"}

    asyncio.run(story())


def test_tokens_of_sync_lead_into_the_history(database: Database) -> None:
    async def story() -> None:
        server = ReadingServer(database)
        room = await server.create_room("alice", join=["bob"])
        for n in range(15):
            await server.send(room, "alice", f"message {n}")
        first = await server.sync("bob")
        before = await page(server, "bob", room, joined(first, room)["timeline"]["prev_batch"], limit=3)
        assert texts(before["chunk"]) == ["message 4", "message 3", "message 2"]
        for n in range(15, 35):
            await server.send(room, "alice", f"message {n}")
        then = await server.sync("bob", first["next_batch"])
        prev_batch = joined(then, room)["timeline"]["prev_batch"]
        gap = await all_pages(server, "bob", room, start=prev_batch, end=first["next_batch"], limit=4)
        assert texts(gap) == [f"message {n}" for n in range(24, 14, -1)]
        gap = await all_pages(server, "bob", room, start=first["next_batch"], end=prev_batch, dir="f", limit=4)
        assert texts(gap) == [f"message {n}" for n in range(15, 25)]

    asyncio.run(story())


def test_late_event_of_a_branch_is_in_the_gap_in_which_it_came(database: Database) -> None:
    async def story() -> None:
        server = ReadingServer(database)
        room = await server.create_room("alice", join=["bob"])
        await server.member(room, "@mary:other.org", "@mary:other.org", "join")
        old = await server.send(room, "alice", "old")
        for n in range(12):
            await server.send(room, "alice", f"message {n}")
        since = (await server.sync("bob"))["next_batch"]
        await fork(server, room, old, "late")
        for n in range(12, 24):
            await server.send(room, "alice", f"message {n}")
        then = joined(await server.sync("bob", since), room)
        assert "late" not in texts(then["timeline"]["events"])
        gap = await all_pages(server, "bob", room, start=then["timeline"]["prev_batch"], end=since)
        assert texts(gap) == ["message 13", "message 12", "late"]
        back = texts(await all_pages(server, "bob", room))
        assert len(back) == 26
        assert back[11:14] == ["message 12", "late", "message 11"], "it stands where it arrived"

    asyncio.run(story())


def test_branches_that_meet_reach_the_client(database: Database) -> None:
    async def story() -> None:
        server = ReadingServer(database)
        room = await server.create_room("alice", join=["bob"], name="named")
        await server.member(room, "@mary:other.org", "@mary:other.org", "join")
        old = await server.send(room, "alice", "old")
        await server.event(room, "alice", "m.room.topic", {"topic": "new"}, "")
        since = (await server.sync("bob"))["next_batch"]
        await fork(server, room, old, "late")
        response = joined(await server.sync("bob", since), room)
        assert texts(response["timeline"]["events"]) == ["late"]
        head = await server.heads.get(room)
        assert ("m.room.topic", "") in head.state
        assert len(head.extremities) == 2

    asyncio.run(story())


def test_filters_and_lazily_loaded_members(database: Database) -> None:
    async def story() -> None:
        server = ReadingServer(database)
        room = await server.create_room("alice", join=["bob", "carol"])
        for n in range(150):
            await server.send(room, "alice" if n % 2 else "carol", f"message {n}")
            await server.event(room, "alice", "m.reaction", {})
        filter: JsonObject = {"types": ["m.room.message"], "senders": [user("carol")], "lazy_load_members": True}
        answer = await page(server, "bob", room, filter=filter, limit=60)
        assert texts(answer["chunk"]) == [f"message {n}" for n in range(148, 28, -2)]
        assert [event["state_key"] for event in answer["state"]] == [user("carol")]
        rest = await page(server, "bob", room, answer["end"], filter=filter, limit=60)
        assert texts(rest["chunk"]) == [f"message {n}" for n in range(28, -2, -2)]
        assert "end" not in rest
        assert "state" not in await page(server, "bob", room, filter={"types": ["m.room.message"]})

    asyncio.run(story())


def test_who_left_sees_up_to_that(database: Database) -> None:
    async def story() -> None:
        server = ReadingServer(database)
        room = await server.create_room("alice", join=["bob"])
        seen = await server.send(room, "alice", "seen")
        await server.event(room, "alice", "m.room.topic", {"topic": "then"}, "")
        await server.leave(room, "bob")
        hidden = await server.send(room, "alice", "not seen")
        await server.event(room, "alice", "m.room.topic", {"topic": "now"}, "")
        await server.join(room, "carol")
        last = (await server.sync("alice"))["next_batch"]
        for start in (None, last):
            events = await all_pages(server, "bob", room, start=start)
            assert texts(events) == ["seen"]
            assert events[0]["content"]["membership"] == "leave"
        bob = Requester(user("bob"), "DEVICE")
        assert b'"seen"' in await server.history.event(bob, room, seen.event_id)
        with pytest.raises(NotFound):
            await server.history.event(bob, room, hidden.event_id)
        topic = await server.state_and_members.state_event(bob.user_id, room, ("m.room.topic", ""))
        assert topic.event.content == {"topic": "then"}
        state = orjson.loads(await server.state_and_members.state(bob.user_id, room))
        assert {e["content"].get("topic") for e in state if e["type"] == "m.room.topic"} == {"then"}
        members = orjson.loads(await server.state_and_members.members(bob.user_id, room, at=parse_token(last)))
        assert {event["state_key"] for event in members} == {user("alice"), user("bob")}
        with pytest.raises(Forbidden):
            await server.state_and_members.joined_members(bob.user_id, room)

    asyncio.run(story())


def test_ban_after_leaving_opens_nothing(database: Database) -> None:
    async def story() -> None:
        server = ReadingServer(database)
        room = await server.create_room("alice", join=["bob"])
        await server.leave(room, "bob")
        await server.send(room, "alice", "not seen")
        await server.member(room, "alice", "bob", "ban")
        assert texts(await all_pages(server, "bob", room)) == []

    asyncio.run(story())


def test_outsiders(database: Database) -> None:
    async def story() -> None:
        server = ReadingServer(database)
        room = await server.create_room("alice")
        await server.send(room, "alice", "before")
        await server.invite(room, "alice", "bob")
        for room_id, who in ((room, "carol"), (room, "bob"), ("!unknown:example.org", "carol")):
            with pytest.raises(Forbidden):
                await page(server, who, room_id)
            with pytest.raises(Forbidden):
                await server.state_and_members.state(user(who), room_id)
        visibility = {"history_visibility": "world_readable"}
        await server.event(room, "alice", "m.room.history_visibility", visibility, "")
        await server.send(room, "alice", "for everybody")
        events = await all_pages(server, "carol", room)
        assert texts(events) == ["for everybody"]
        assert {event["unsigned"]["membership"] for event in events} == {"leave"}
        assert b"world_readable" in await server.state_and_members.state(user("carol"), room)

    asyncio.run(story())


@pytest.mark.parametrize(
    ("visibility", "expected"),
    [("shared", ["before", "invited", "after"]), ("invited", ["invited", "after"]), ("joined", ["after"])],
)
def test_history_visibility(database: Database, visibility: str, expected: list[str]) -> None:
    async def story() -> None:
        server = ReadingServer(database)
        room = await server.create_room("alice", visibility=visibility)
        await server.send(room, "alice", "before")
        await server.invite(room, "alice", "bob")
        await server.send(room, "alice", "invited")
        await server.join(room, "bob")
        await server.send(room, "alice", "after")
        assert texts(await all_pages(server, "bob", room, dir="f")) == expected

    asyncio.run(story())


def test_backfill_is_asked_for_where_history_is_missing(database: Database) -> None:
    async def story() -> None:
        server = ReadingServer(database)
        room = await server.create_room("alice", join=["bob"])
        await server.member(room, "@mary:other.org", "@mary:other.org", "join")
        head = await server.heads.get(room)
        orphan = compose_event(
            EventDraft("m.room.message", "@mary:other.org", {"body": "orphan", "msgtype": "m.text"}),
            VERSION,
            room_id=room,
            prev_events=[("$missing", "")],
            auth_events=[],
            depth=40,
            origin_server_ts=server.clock.now_ms(),
            signer=server_key("other.org"),
        )
        await server.append(room, [NewEvent(orphan, head.snapshot)])
        await server.send(room, "alice", "after it")
        assert texts((await page(server, "bob", room, limit=2))["chunk"]) == ["after it", "orphan"]
        assert server.backfiller.asked == []
        stuck = await page(server, "bob", room, limit=3)
        assert texts(stuck["chunk"]) == ["after it", "orphan"]
        assert server.backfiller.asked == [(room, ["$missing"])]
        again = await page(server, "bob", room, stuck["end"])
        assert (again["chunk"], again["end"]) == ([], stuck["end"])
        forth = await page(server, "bob", room, dir="f", limit=100)
        assert forth["chunk"][-1]["type"] == "m.room.member"
        assert len(server.backfiller.asked) == 3

    asyncio.run(story())


@pytest.mark.parametrize(
    "token",
    [
        "",
        "x",
        "s",
        "s-1",
        "s1_2",
        "s1_1_1",
        "s1_1_1_1_1",
        "s2_1_1_1",
        "t1",
        "t1_",
        "t_1",
        "s1\n",
        "s" + "9" * 30,
        "t1_2_3",
    ],
)
def test_tokens_that_were_never_given_out(token: str) -> None:
    with pytest.raises(InvalidParam):
        parse_token(token)


def test_tokens_of_older_forms_are_still_read() -> None:
    assert parse_sync_token("s5") == SyncToken(5, 0, 5) == parse_sync_token(sync_token(5, 0))
    assert parse_token("s5") == parse_token("s1_5_8_9") == parse_token("t99_5") == place_of(5)
    assert parse_sync_token("s1_7_5_6").position == 6
    assert [parse_token(history_token(place)) for place in (77, -3, LOWEST, HIGHEST)] == [77, -3, LOWEST, HIGHEST]
