"""The services behind the governance API, on each kind of database: what they read is SQL."""

from __future__ import annotations

import asyncio

import pytest

from homeserver.ephemeral.who_has_read import WhoHasRead
from homeserver.errors import Forbidden, InvalidParam
from homeserver.governance.roles import Role
from homeserver.protocol.events import EventDraft
from homeserver.reading.listings import PageRequest, place_of, token_of
from homeserver.reading.visible_events import VisibleEvents
from homeserver.storage import accounts, user_rooms
from homeserver.storage.database import Database
from homeserver.storage.ownership import FormerOwner, OwnerlessRoom, ownerless_rooms, ownership_of
from tests.factories.rooms import RoomFactory
from tests.fakes.governed_server import GovernedServer, tell
from tests.fakes.homeserver import ALICE, BOB, CAROL, DAVE, SERVER_NAME, ZOE
from tests.fakes.reading_server import ReadingServer, user
from tests.storage.stored_rooms import store_room

ALL = PageRequest()


def test_roles(database: Database) -> None:
    async def story(server: GovernedServer) -> None:
        room = await server.create_room(preset="public_chat")
        for member in (BOB, CAROL, DAVE):
            await server.memberships.join(member, room)
        assert await server.roles.give(ALICE, room, CAROL, Role.MODERATOR)
        assert await server.roles.give(ALICE, room, DAVE, Role.OWNER)
        found = await server.roles.of_room(BOB, room, ALL)
        assert [m["user_id"] for m in found["owners"]] == [ALICE, DAVE]
        assert [m["user_id"] for m in found["moderators"]] == [CAROL]
        assert [m["user_id"] for m in found["members"]] == [BOB]
        page = await server.roles.of_room(BOB, room, PageRequest(3))
        rest = await server.roles.of_room(BOB, room, PageRequest(3, page["next"]))
        assert [m["user_id"] for m in rest["members"]] == [BOB]
        assert rest["owners"] == rest["moderators"] == []
        with pytest.raises(Forbidden):
            await server.roles.of_room(ZOE, room, ALL)

    tell(database, story)


def test_levels_beyond_what_json_can_hold(database: Database) -> None:
    """Strings of old room versions know no bounds."""

    async def story(server: GovernedServer) -> None:
        room = RoomFactory("9", "other.org")
        room.create("@host:other.org")
        room.join(ALICE)
        users = {"@host:other.org": "9" * 300, ALICE: "-" + "9" * 300}
        room.event("@host:other.org", "m.room.power_levels", {"users": users}, "")
        await server.adopt(room)
        found = await server.roles.of_room(ALICE, room.room_id, ALL)
        assert [m["power_level"] for m in (*found["owners"], *found["members"])] == [2**53 - 1, -(2**53) + 1]

    tell(database, story)


def test_invitations_and_bans(database: Database) -> None:
    async def story(server: GovernedServer) -> None:
        room = await server.create_room()
        for number, member in enumerate((BOB, CAROL, ZOE)):
            server.clock.advance(10)  # type: ignore[attr-defined]
            await server.memberships.invite(ALICE, room, member, reason=f"reason {number}")
        await server.memberships.join(BOB, room)
        await server.memberships.leave(CAROL, room)
        found = await server.invitations.of_room(ALICE, room, ALL)
        assert [(i["user_id"], i["status"], i["reason"], i["is_remote"]) for i in found["invitations"]] == [
            (ZOE, "pending", "reason 2", True),
            (CAROL, "rejected", "reason 1", False),
            (BOB, "accepted", "reason 0", False),
        ]
        page = await server.invitations.of_room(ALICE, room, PageRequest(2))
        rest = await server.invitations.of_room(ALICE, room, PageRequest(2, page["next"]))
        assert page["invitations"] + rest["invitations"] == found["invitations"]
        assert "next" not in rest
        await server.invitations.revoke(ALICE, room, ZOE, "changed")
        for number, member in enumerate((ZOE, CAROL, DAVE)):
            server.clock.advance(10)  # type: ignore[attr-defined]
            await server.memberships.ban(ALICE, room, member, f"ban {number}")
        bans = (await server.bans.of_room(BOB, room, ALL))["bans"]
        assert [(b["user_id"], b["banned_by"], b["reason"], b["is_remote"]) for b in bans] == [
            (DAVE, ALICE, "ban 2", False),
            (CAROL, ALICE, "ban 1", False),
            (ZOE, ALICE, "ban 0", True),
        ]
        ban = (await server.state(room))["m.room.member", CAROL]
        await server.redact(room, ban.event_id)
        page = await server.bans.of_room(BOB, room, PageRequest(2))
        assert [b["reason"] for b in page["bans"]] == ["ban 2", None]
        rest = await server.bans.of_room(BOB, room, PageRequest(2, page["next"]))
        assert [b["user_id"] for b in rest["bans"]] == [ZOE]
        with pytest.raises(InvalidParam):
            await server.bans.of_room(BOB, room, PageRequest(2, token_of(("x", 1))))

    tell(database, story)


def test_who_has_read(database: Database) -> None:
    async def story() -> None:
        server = ReadingServer(database)
        who = WhoHasRead(
            database,
            server.heads,
            server.events,
            server.states,
            VisibleEvents(database, server.events, server.heads),
            server.receipts,
            SERVER_NAME,
        )
        room = await server.create_room("alice", join=["bob"])
        early = await server.send(room, "alice", "early")
        await server.join(room, "carol")
        late = await server.send(room, "alice", "late")
        for reader in ("bob", "carol"):
            await server.receipts.post(user(reader), room, "m.read", late.event_id)
        await server.receipts.post(user("alice"), room, "m.read.private", late.event_id)

        async def readers(event_id: str) -> list[str]:
            answer = await who.of_event(user("alice"), room, event_id, ALL)
            return [r["user_id"] for r in answer["receipts"]]

        assert await readers(late.event_id) == [user("carol"), user("bob")]
        assert await readers(early.event_id) == [user("bob")]
        # A receipt may come before its event.
        await server.member(room, "@mary:other.org", "@mary:other.org", "join")
        coming = await server.send(room, "alice", "coming")
        data = {"event_ids": [coming.event_id], "data": {"ts": 5}}
        await server.receipts.receive("other.org", {"content": {room: {"m.read": {"@mary:other.org": data}}}})
        with database.begin() as connection:
            connection.exec_driver_sql("UPDATE receipts SET event_nid = NULL WHERE ts = 5")
        assert await readers(coming.event_id) == ["@mary:other.org"]
        assert await readers(late.event_id) == [user("carol"), user("bob")]

    asyncio.run(story())


def test_ownerless_rooms(database: Database) -> None:
    async def story(server: GovernedServer) -> None:
        rooms = [await server.create_room(preset="public_chat") for _ in range(5)]
        owned, left, given_up, closed, open_to_all = rooms
        for room in rooms:
            await server.memberships.join(BOB, room)
        await server.memberships.leave(ALICE, left, is_governed=False)
        draft = EventDraft("m.room.power_levels", ALICE, {"users": {ALICE: 99, ZOE: 100}}, "")
        await server.sender.send(given_up, draft, is_governed=False)
        await server.roles.give(ALICE, closed, BOB, Role.OWNER)
        await server.memberships.leave(ALICE, closed)
        await server.memberships.join(CAROL, closed)
        draft = EventDraft("m.room.power_levels", ALICE, {"users": {ALICE: 0}, "users_default": 100}, "")
        await server.sender.send(open_to_all, draft, is_governed=False)
        assert server.database.read_now(ownerless_rooms, SERVER_NAME) == [
            OwnerlessRoom(left, 1, 1),
            OwnerlessRoom(given_up, 2, 2),
        ]
        await server.database.write(accounts.deactivate_user, BOB, 1)
        found = {room.room_id: room for room in server.database.read_now(ownerless_rooms, SERVER_NAME)}
        assert found == {
            given_up: OwnerlessRoom(given_up, 1, 1),
            closed: OwnerlessRoom(closed, 1, 1),
            open_to_all: OwnerlessRoom(open_to_all, 1, 1),
        }
        assert (await server.roles.of_room(CAROL, closed, ALL))["ownerless"] is True
        assert "ownerless" not in await server.roles.of_room(ALICE, owned, ALL)
        assert server.database.read_now(user_rooms.closed_accounts_in_rooms) == [BOB]
        await server.memberships.leave_for_closed_accounts()
        assert server.database.read_now(user_rooms.closed_accounts_in_rooms) == []
        assert await server.membership(closed, BOB) == "leave"

    tell(database, story)


def test_who_could_have_prevented_it_and_who_can_repair_it(database: Database) -> None:
    async def story(server: GovernedServer) -> None:
        room = await server.create_room(preset="public_chat")
        for member in (BOB, CAROL, DAVE):
            await server.memberships.join(member, room)
        await server.roles.give(ALICE, room, BOB, Role.OWNER)
        await server.roles.give(ALICE, room, CAROL, Role.MODERATOR)
        found = server.database.read_now(ownership_of, room, SERVER_NAME)
        assert found is not None
        assert (found.ownerless, found.owners, found.could_have_prevented) == (False, [ALICE, BOB], [])
        assert found.may_give_owner == found.may_replace == [ALICE, BOB]
        await server.roles.give(ALICE, room, ALICE, Role.MEMBER, is_confirmed=True)
        await server.memberships.leave(BOB, room, is_governed=False)
        await server.database.write(accounts.deactivate_user, ALICE, 1)
        found = server.database.read_now(ownership_of, room, SERVER_NAME)
        assert found is not None
        assert (found.ownerless, found.owners) == (True, [])
        assert found.could_have_prevented == [
            FormerOwner(ALICE, "join", is_owner_on_return=False, is_closed=True),
            FormerOwner(BOB, "leave", is_owner_on_return=True, is_closed=False),
        ]
        assert (found.may_give_owner, found.may_invite, found.may_replace) == ([], [CAROL], [])
        assert server.database.read_now(ownership_of, "!nowhere:x", SERVER_NAME) is None

    tell(database, story)


def test_a_room_that_another_server_left_without_owner(database: Database) -> None:
    room = RoomFactory("12", "other.org")
    room.create("@host:other.org")
    room.join(ALICE)
    room.leave("@host:other.org")
    store_room(database, room)
    assert database.read_now(ownerless_rooms, SERVER_NAME) == [OwnerlessRoom(room.room_id, 1, 1)]


@pytest.mark.parametrize("token", ["", "x", "é", "WzFd", "bnVsbA", token_of((1, 2, 3)), token_of((1, "x"))])
def test_tokens_that_were_never_given_out(token: str) -> None:
    with pytest.raises(InvalidParam):
        place_of(token, (int, int))


def test_tokens() -> None:
    assert place_of(token_of((-3, "naïve \0 \U0001f600", "@a:b")), (int, str, str)) == (
        -3,
        "naïve \0 \U0001f600",
        "@a:b",
    )
