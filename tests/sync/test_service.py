"""``/sync`` as clients see it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from homeserver.errors import UnknownPos, UnknownToken
from homeserver.protocol.json_types import JsonObject
from homeserver.reading.tokens import parse_sync_token
from homeserver.storage.appends import TransactionKey
from homeserver.storage.database import Database
from tests.fakes.reading_server import ReadingServer, bodies, joined, types, user
from tests.waiting import WAIT_S

LAZY: JsonObject = {"room": {"state": {"lazy_load_members": True}}}
REDUNDANT: JsonObject = {"room": {"state": {"lazy_load_members": True, "include_redundant_members": True}}}


def members_in(events: list[JsonObject]) -> set[str]:
    return {event["state_key"] for event in events if event["type"] == "m.room.member"}


async def waiting(server: ReadingServer, who: str, since: str, check: Callable[[], Awaitable[object]]) -> asyncio.Task:
    """A long poll that has begun to wait."""
    request = server.request(who, since)
    task = asyncio.create_task(server.sync_service.sync(request, 30_000, check))
    for _ in range(200):
        await asyncio.sleep(0)
    assert not task.done()
    return task


async def nothing_to_check() -> None:
    return None


def test_first_sync_and_what_comes_then(database: Database) -> None:
    async def story() -> None:
        server = ReadingServer(database)
        room = await server.create_room("alice", join=["bob"], name="A room")
        for n in range(12):
            await server.send(room, "alice", f"message {n}")
        first = await server.sync("bob")
        shown = joined(first, room)
        assert bodies(shown) == [f"message {n}" for n in range(2, 12)]
        assert shown["timeline"]["limited"] is True
        assert sorted(types(shown["state"]["events"])) == [
            "m.room.create",
            "m.room.join_rules",
            "m.room.member",
            "m.room.member",
            "m.room.name",
            "m.room.power_levels",
        ]
        assert shown["summary"] == {"m.joined_member_count": 2, "m.invited_member_count": 0}
        await server.send(room, "alice", "news")
        then = await server.sync("bob", first["next_batch"])
        assert bodies(joined(then, room)) == ["news"]
        assert joined(then, room)["state"]["events"] == []
        assert joined(then, room)["timeline"]["limited"] is False
        nothing = await server.sync("bob", then["next_batch"])
        assert "rooms" not in nothing
        assert nothing["device_unused_fallback_key_types"] == []

    asyncio.run(story())


def test_whole_short_room_is_not_limited_and_has_no_state_before_it(database: Database) -> None:
    async def story() -> None:
        server = ReadingServer(database)
        room = await server.create_room("alice")
        shown = joined(await server.sync("alice"), room)
        assert types(shown["timeline"]["events"])[0] == "m.room.create"
        assert shown["timeline"]["limited"] is False
        assert shown["state"]["events"] == []

    asyncio.run(story())


def test_gap_comes_with_the_state_that_changed_in_it(database: Database) -> None:
    async def story() -> None:
        server = ReadingServer(database)
        room = await server.create_room("alice", join=["bob"])
        since = (await server.sync("bob"))["next_batch"]
        await server.event(room, "alice", "m.room.topic", {"topic": "old"}, "")
        await server.event(room, "alice", "m.room.name", {"name": "in the gap"}, "")
        for n in range(9):
            await server.send(room, "alice", f"message {n}")
        await server.event(room, "alice", "m.room.topic", {"topic": "new"}, "")
        shown = joined(await server.sync("bob", since), room)
        assert shown["timeline"]["limited"] is True
        assert len(shown["timeline"]["events"]) == 10
        state = {event["type"]: event["content"] for event in shown["state"]["events"]}
        # The topic in the timeline comes on top of the one from the gap.
        assert state == {"m.room.topic": {"topic": "old"}, "m.room.name": {"name": "in the gap"}}
        after = joined(await server.sync("bob", since, state_after=True), room)
        assert "state" not in after
        told = {event["type"]: event["content"] for event in after["state_after"]["events"]}
        assert told == {"m.room.topic": {"topic": "new"}, "m.room.name": {"name": "in the gap"}}

    asyncio.run(story())


def test_state_after_of_what_is_answered_from_memory(database: Database) -> None:
    async def story() -> None:
        server = ReadingServer(database)
        room = await server.create_room("alice", join=["bob"], name="named")
        since = (await server.sync("bob", state_after=True))["next_batch"]
        await server.event(room, "alice", "m.room.topic", {"topic": "news"}, "")
        shown = joined(await server.sync("bob", since, state_after=True), room)
        assert types(shown["timeline"]["events"]) == types(shown["state_after"]["events"]) == ["m.room.topic"]

    asyncio.run(story())


def test_newly_joined_room_comes_whole(database: Database) -> None:
    async def story() -> None:
        server = ReadingServer(database)
        room = await server.create_room("alice", name="Come in")
        for n in range(15):
            await server.send(room, "alice", f"message {n}")
        since = (await server.sync("bob"))["next_batch"]
        await server.join(room, "bob")
        await server.send(room, "alice", "welcome")
        shown = joined(await server.sync("bob", since), room)
        assert bodies(shown) == [f"message {n}" for n in range(7, 15)] + ["welcome"]
        assert shown["timeline"]["limited"] is True
        assert "m.room.create" in types(shown["state"]["events"])
        assert shown["summary"]["m.joined_member_count"] == 2
        memberships = [event["unsigned"]["membership"] for event in shown["timeline"]["events"]]
        assert memberships == ["leave"] * 8 + ["join", "join"]

    asyncio.run(story())


@pytest.mark.parametrize(("visibility", "expected"), [("joined", ["after"]), ("invited", ["invited", "after"])])
def test_history_visibility_holds_for_newly_joined_rooms(
    database: Database, visibility: str, expected: list[str]
) -> None:
    async def story() -> None:
        server = ReadingServer(database)
        room = await server.create_room("alice", visibility=visibility)
        await server.send(room, "alice", "before")
        await server.invite(room, "alice", "bob")
        await server.send(room, "alice", "invited")
        since = (await server.sync("bob"))["next_batch"]
        await server.join(room, "bob")
        await server.send(room, "alice", "after")
        assert bodies(joined(await server.sync("bob", since), room)) == expected
        assert bodies(joined(await server.sync("bob"), room)) == expected

    asyncio.run(story())


def test_left_room_ends_with_the_event_that_ended_the_stay(database: Database) -> None:
    async def story() -> None:
        server = ReadingServer(database)
        room = await server.create_room("alice", join=["bob"])
        since = (await server.sync("bob"))["next_batch"]
        await server.send(room, "alice", "seen")
        await server.event(room, "alice", "m.room.topic", {"topic": "seen"}, "")
        await server.leave(room, "bob")
        await server.send(room, "alice", "not seen")
        await server.event(room, "alice", "m.room.topic", {"topic": "not seen"}, "")
        await server.member(room, "alice", "bob", "ban")
        response = await server.sync("bob", since)
        assert list(response["rooms"]) == ["leave"]
        left = response["rooms"]["leave"][room]
        assert types(left["timeline"]["events"]) == ["m.room.message", "m.room.topic", "m.room.member", "m.room.member"]
        assert left["timeline"]["events"][-1]["content"]["membership"] == "ban"
        assert "rooms" not in await server.sync("bob", response["next_batch"])
        assert "rooms" not in await server.sync("bob")
        filter: JsonObject = {"room": {"include_leave": True, "timeline": {"limit": 4}}}
        archived = (await server.sync("bob", filter=filter))["rooms"]["leave"][room]
        assert bodies(archived) == ["seen"]
        assert [e["content"] for e in archived["state"]["events"] if e["type"] == "m.room.topic"] == []
        assert "m.room.create" in types(archived["state"]["events"])

    asyncio.run(story())


def test_invitation_and_its_end(database: Database) -> None:
    async def story() -> None:
        server = ReadingServer(database)
        room = await server.create_room("alice", name="Secret", join_rule="invite")
        since = (await server.sync("bob"))["next_batch"]
        await server.invite(room, "alice", "bob")
        response = await server.sync("bob", since)
        stripped = {e["type"]: e for e in response["rooms"]["invite"][room]["invite_state"]["events"]}
        assert stripped["m.room.name"]["content"] == {"name": "Secret"}
        assert "m.room.create" in stripped
        assert all(set(event) == {"type", "state_key", "sender", "content"} for event in stripped.values())
        invitation = response["rooms"]["invite"][room]["invite_state"]["events"][-1]
        assert (invitation["state_key"], invitation["content"]["membership"]) == (user("bob"), "invite")
        await server.leave(room, "bob")
        response = await server.sync("bob", response["next_batch"])
        left = response["rooms"]["leave"][room]
        assert [e["content"]["membership"] for e in left["timeline"]["events"]] == ["leave"]
        assert left["state"]["events"] == []

    asyncio.run(story())


def test_ignored_users_are_not_heard_and_cannot_invite(database: Database) -> None:
    async def story() -> None:
        server = ReadingServer(database)
        room = await server.create_room("alice", join=["bob", "mallory"], name="named")
        since = (await server.sync("bob"))["next_batch"]
        ignored = {"ignored_users": {user("mallory"): {}}}
        await server.set_account_data("bob", "m.ignored_user_list", ignored)
        await server.send(room, "mallory", "spam")
        await server.send(room, "alice", "hello")
        await server.event(
            room, "mallory", "m.room.member", {"membership": "join", "displayname": "M"}, user("mallory")
        )
        await server.invite(await server.create_room("mallory"), "mallory", "bob")
        response = await server.sync("bob", since)
        assert list(response["rooms"]) == ["join"]
        assert bodies(joined(response, room)) == ["hello"]
        assert members_in(joined(response, room)["timeline"]["events"]) == {user("mallory")}
        assert types(response["account_data"]["events"]) == ["m.ignored_user_list"]
        await server.send(room, "mallory", "more spam")
        assert "rooms" not in await server.sync("bob", response["next_batch"])
        assert bodies(joined(await server.sync("bob"), room)) == ["hello"]

    asyncio.run(story())


def test_only_the_sending_device_is_told_its_transaction_id(database: Database) -> None:
    async def story() -> None:
        server = ReadingServer(database)
        room = await server.create_room("alice", join=["bob"], name="named")
        since = (await server.sync("alice"))["next_batch"]
        txn = TransactionKey(user("alice"), "PHONE", "send", "m1", 0)
        await server.event(room, "alice", "m.room.message", {"body": "hi", "msgtype": "m.text"}, txn=txn)
        found = {}
        for who, device in (("bob", "PHONE"), ("alice", "LAPTOP"), ("alice", "PHONE"), ("alice", "LAPTOP")):
            for start in (since, None):
                response = await server.sync(who, start, device=device)
                unsigned = joined(response, room)["timeline"]["events"][-1]["unsigned"]
                found[who, device, start is None] = unsigned.get("transaction_id")
        assert {key for key, txn_id in found.items() if txn_id} == {("alice", "PHONE", False), ("alice", "PHONE", True)}

    asyncio.run(story())


def test_redacted_event_is_told_as_redacted(database: Database) -> None:
    async def story() -> None:
        server = ReadingServer(database)
        room = await server.create_room("alice", join=["bob"], name="named")
        message = await server.send(room, "alice", "oops")
        await server.sync("bob")
        await server.redact(room, "alice", message)
        events = joined(await server.sync("bob"), room)["timeline"]["events"]
        shown = next(event for event in events if event["event_id"] == message.event_id)
        assert shown["content"] == {}
        assert shown["unsigned"]["redacted_because"]["type"] == "m.room.redaction"

    asyncio.run(story())


def test_waits_for_news_and_no_longer(database: Database) -> None:
    async def story() -> None:
        server = ReadingServer(database)
        room = await server.create_room("alice", join=["bob"], name="named")
        other = await server.create_room("alice")
        since = (await server.sync("bob"))["next_batch"]
        poll = asyncio.create_task(server.sync("bob", since, timeout_ms=30_000))
        await asyncio.sleep(0)
        await server.send(other, "alice", "of no interest")
        await server.send(room, "alice", "news")
        assert bodies(joined(await asyncio.wait_for(poll, WAIT_S), room)) == ["news"]
        since = (await server.sync("bob"))["next_batch"]
        await server.send(other, "alice", "of no interest")
        response = await asyncio.wait_for(server.sync("bob", since, timeout_ms=10), WAIT_S)
        assert "rooms" not in response
        assert parse_sync_token(response["next_batch"]).events > parse_sync_token(since).events

    asyncio.run(story())


def test_filter_that_hides_the_news_goes_on_waiting(database: Database) -> None:
    async def story() -> None:
        server = ReadingServer(database)
        room = await server.create_room("alice", join=["bob"], name="named")
        since = (await server.sync("bob"))["next_batch"]
        filter: JsonObject = {"room": {"timeline": {"types": ["m.room.message"]}}}
        poll = asyncio.create_task(server.sync("bob", since, timeout_ms=30_000, filter=filter))
        await asyncio.sleep(0)
        await server.event(room, "alice", "m.reaction", {})
        for _ in range(50):
            await asyncio.sleep(0)
        assert not poll.done()
        await server.send(room, "alice", "news")
        assert bodies(joined(await asyncio.wait_for(poll, WAIT_S), room)) == ["news"]

    asyncio.run(story())


def test_logout_ends_the_poll_of_that_device_only(database: Database) -> None:
    async def story() -> None:
        server = ReadingServer(database)
        await server.create_room("alice")
        since = (await server.sync("alice"))["next_batch"]

        async def logged_out() -> None:
            raise UnknownToken()

        stays = await waiting(server, "alice", since, nothing_to_check)
        goes = await waiting(server, "alice", since, logged_out)
        server.notifier.wake_user(user("alice"))
        with pytest.raises(UnknownToken):
            await asyncio.wait_for(goes, WAIT_S)
        assert not stays.done()
        server.notifier.close()
        assert b"rooms" not in await asyncio.wait_for(stays, 25)  # sooner than by itself

    asyncio.run(story())


def test_position_from_the_future(database: Database) -> None:
    async def story() -> None:
        server = ReadingServer(database)
        await server.create_room("alice")
        with pytest.raises(UnknownPos):
            await server.sync("alice", "s999999")

    asyncio.run(story())


def test_other_process_on_the_same_database(database: Database) -> None:
    async def story() -> None:
        server = ReadingServer(database)
        room = await server.create_room("alice", join=["bob"], name="named")
        other = ReadingServer(database)
        since = (await other.sync("bob"))["next_batch"]
        message = await server.send(room, "alice", "from elsewhere")
        await server.redact(room, "alice", await server.send(room, "alice", "oops"))
        await server.receipts.post(user("alice"), room, "m.read", message.event_id)
        await server.set_account_data("bob", "org.example", {})
        poll = asyncio.create_task(other.sync("bob", since, timeout_ms=30_000))
        await other.notifier.catch_up(server.notifier.position)
        response = await asyncio.wait_for(poll, WAIT_S)
        assert bodies(joined(response, room))[0] == "from elsewhere"
        assert types(joined(response, room)["ephemeral"]["events"]) == ["m.receipt"]
        assert types(response["account_data"]["events"]) == ["org.example"]
        # A client that comes from a process which is ahead.
        await server.send(room, "alice", "more")
        ahead = (await server.sync("bob", response["next_batch"]))["next_batch"]
        assert "rooms" not in await other.sync("bob", ahead)
        assert (await other.heads.get(room)).generation == (await server.heads.get(room)).generation

    asyncio.run(story())


def test_full_state_leaves_the_timeline_as_it_is(database: Database) -> None:
    async def story() -> None:
        server = ReadingServer(database)
        room = await server.create_room("alice", join=["bob"], name="named")
        since = (await server.sync("bob"))["next_batch"]
        await server.send(room, "alice", "news")
        shown = joined(await server.sync("bob", since, full_state=True), room)
        assert bodies(shown) == ["news"]
        assert len(shown["timeline"]["events"]) == 1
        assert set(types(shown["state"]["events"])) >= {"m.room.create", "m.room.name", "m.room.member"}

    asyncio.run(story())


def test_event_format_and_fields(database: Database) -> None:
    async def story() -> None:
        server = ReadingServer(database)
        room = await server.create_room("alice", name="named")
        message = await server.send(room, "alice", "hello")
        raw = joined(await server.sync("alice", filter={"event_format": "federation"}), room)
        assert raw["timeline"]["events"][-1]["prev_events"] == message.event.pdu["prev_events"]
        some = joined(await server.sync("alice", filter={"event_fields": ["content.body"]}), room)
        assert some["timeline"]["events"][-1] == {"content": {"body": "hello"}}

    asyncio.run(story())


def test_filters_for_rooms_types_and_limits(database: Database) -> None:
    async def story() -> None:
        server = ReadingServer(database)
        room = await server.create_room("alice", name="named")
        other = await server.create_room("alice", name="other")
        for n in range(80):
            await server.send(room, "alice", f"message {n}")
            await server.event(room, "alice", "m.reaction", {})
        filter: JsonObject = {
            "room": {
                "not_rooms": [other],
                "timeline": {"types": ["m.room.message"], "limit": 60},
                "state": {"not_types": ["m.room.*"]},
            }
        }
        response = await server.sync("alice", filter=filter)
        assert list(response["rooms"]["join"]) == [room]
        assert bodies(joined(response, room)) == [f"message {n}" for n in range(20, 80)]
        assert joined(response, room)["state"]["events"] == []

    asyncio.run(story())


# -- lazily loaded members ---------------------------------------------------------------------------------------------


def test_lazy_first_sync_has_senders_and_oneself(database: Database) -> None:
    async def story() -> None:
        server = ReadingServer(database)
        room = await server.create_room("alice", join=["bob", "carol", "dave"], name="named")
        for n in range(10):
            await server.send(room, "carol", f"message {n}")
        response = await server.sync("bob", filter=LAZY)
        assert members_in(joined(response, room)["state"]["events"]) == {user("bob"), user("carol")}
        await server.send(room, "carol", "again")
        response = await server.sync("bob", response["next_batch"], filter=LAZY)
        assert joined(response, room)["state"]["events"] == []
        await server.send(room, "alice", "first")
        response = await server.sync("bob", response["next_batch"], filter=LAZY)
        assert members_in(joined(response, room)["state"]["events"]) == {user("alice")}

    asyncio.run(story())


def test_lazy_members_of_a_lost_response_are_sent_again(database: Database) -> None:
    async def story() -> None:
        server = ReadingServer(database)
        room = await server.create_room("alice", join=["bob", "carol"], name="named")
        for n in range(10):
            await server.send(room, "bob", f"message {n}")
        first = await server.sync("bob", filter=LAZY)
        await server.send(room, "carol", "hello")
        for _ in range(2):
            response = await server.sync("bob", first["next_batch"], filter=LAZY)
            assert members_in(joined(response, room)["state"]["events"]) == {user("carol")}
        await server.send(room, "carol", "again")
        response = await server.sync("bob", response["next_batch"], filter=LAZY)
        assert joined(response, room)["state"]["events"] == []
        # Another device knows nothing of that.
        response = await server.sync("bob", first["next_batch"], filter=LAZY, device="OTHER")
        assert members_in(joined(response, room)["state"]["events"]) == {user("carol")}

    asyncio.run(story())


def test_redundant_members_are_sent_if_the_filter_asks_for_them(database: Database) -> None:
    async def story() -> None:
        server = ReadingServer(database)
        room = await server.create_room("alice", join=["bob"], name="named")
        response = await server.sync("bob", filter=REDUNDANT)
        for _ in range(2):
            await server.send(room, "alice", "hello")
            response = await server.sync("bob", response["next_batch"], filter=REDUNDANT)
            assert members_in(joined(response, room)["state"]["events"]) == {user("alice")}

    asyncio.run(story())


def test_lazy_gap_has_all_member_changes_in_it(database: Database) -> None:
    async def story() -> None:
        server = ReadingServer(database)
        room = await server.create_room("alice", join=["bob", "carol"], name="named")
        since = (await server.sync("bob", filter=LAZY))["next_batch"]
        await server.leave(room, "carol")
        await server.join(room, "dave")
        for n in range(10):
            await server.send(room, "alice", f"message {n}")
        shown = joined(await server.sync("bob", since, filter=LAZY), room)
        assert members_in(shown["state"]["events"]) >= {user("carol"), user("dave")}
        assert shown["summary"]["m.joined_member_count"] == 3

    asyncio.run(story())


def test_lazy_member_is_as_before_the_timeline(database: Database) -> None:
    async def story() -> None:
        server = ReadingServer(database)
        room = await server.create_room("alice", join=["bob", "carol"], name="named")
        for n in range(10):
            await server.send(room, "bob", f"message {n}")
        since = (await server.sync("bob", filter=LAZY))["next_batch"]
        await server.send(room, "carol", "under my old name")
        await server.member(room, "carol", "carol", "join", displayname="new name")
        await server.send(room, "carol", "under my new name")
        shown = joined(await server.sync("bob", since, filter=LAZY), room)
        names = [e["content"]["displayname"] for e in shown["state"]["events"] if e["type"] == "m.room.member"]
        assert names == ["carol"]
        after = joined(await server.sync("bob", since, filter=LAZY, state_after=True, device="OTHER"), room)
        names = [e["content"]["displayname"] for e in after["state_after"]["events"] if e["type"] == "m.room.member"]
        assert names == ["new name"]

    asyncio.run(story())


def test_heroes_of_a_room_without_a_name(database: Database) -> None:
    async def story() -> None:
        server = ReadingServer(database)
        room = await server.create_room("alice", join=["bob", "carol"])
        for n in range(10):
            await server.send(room, "bob", f"message {n}")
        response = await server.sync("bob", filter=LAZY)
        assert joined(response, room)["summary"]["m.heroes"] == [user("alice"), user("carol")]
        assert members_in(joined(response, room)["state"]["events"]) == {user("alice"), user("bob"), user("carol")}
        await server.join(room, "dave")
        response = await server.sync("bob", response["next_batch"], filter=LAZY)
        assert joined(response, room)["summary"]["m.heroes"] == [user("alice"), user("carol"), user("dave")]
        await server.event(room, "alice", "m.room.name", {"name": "named"}, "")
        response = await server.sync("bob", response["next_batch"], filter=LAZY)
        assert "m.heroes" not in joined(response, room).get("summary", {})
        # (The creator, the room's last owner, cannot leave the others.)
        for who in ("bob", "carol", "dave"):
            await server.leave(room, who)
        alone = joined(await server.sync("alice"), room)["summary"]
        assert alone == {"m.joined_member_count": 1, "m.invited_member_count": 0}
        # "When no joined or invited members are available, this should consist of the banned and left users."
        other = await server.create_room("alice", join=["bob"])
        await server.leave(other, "bob")
        assert joined(await server.sync("alice"), other)["summary"]["m.heroes"] == [user("bob")]

    asyncio.run(story())
