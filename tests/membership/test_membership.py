"""homeserver/membership/membership.py: https://spec.matrix.org/v1.19/client-server-api/#room-membership"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable

import pytest

from homeserver.errors import Forbidden, InvalidParam, MatrixError, NotFound, RemoteFailed, UnknownError
from homeserver.protocol.events import EventDraft
from homeserver.storage import user_rooms
from homeserver.storage.database import Database
from tests.factories.rooms import RoomFactory
from tests.fakes.homeserver import ALICE, BOB, CAROL, DAVE, ZOE, CoreServer, add_users

NAMES = (f"members{number}" for number in itertools.count())


@pytest.fixture
def server(shared_database: Database) -> CoreServer:
    add_users(shared_database, ALICE, BOB, CAROL, DAVE)
    return CoreServer(shared_database)


async def refused(awaitable: Awaitable[object], error: type[MatrixError] = Forbidden) -> MatrixError:
    with pytest.raises(error) as caught:
        await awaitable
    return caught.value


async def changed(server: CoreServer, do: Callable[[], Awaitable[object]]) -> int:
    """How many events something makes."""
    before = server.notifier.position
    await do()
    return server.notifier.position - before


def test_join_and_leave(server: CoreServer) -> None:
    async def story() -> None:
        memberships = server.memberships
        room_id = await server.create_room(preset="public_chat")
        assert await changed(server, lambda: memberships.join(BOB, room_id, reason="hello")) == 1
        member = (await server.state(room_id))["m.room.member", BOB]
        assert member.content == {"membership": "join", "reason": "hello"}
        assert await changed(server, lambda: memberships.join(BOB, room_id)) == 0
        assert await changed(server, lambda: memberships.leave(BOB, room_id, "bye")) == 1
        member = (await server.state(room_id))["m.room.member", BOB]
        assert member.content == {"membership": "leave", "reason": "bye"}
        assert await changed(server, lambda: memberships.leave(BOB, room_id)) == 0
        await refused(memberships.leave(DAVE, room_id), NotFound)

    asyncio.run(story())


def test_the_same_user_joins_several_times_at_once(server: CoreServer) -> None:
    async def story() -> None:
        room_id = await server.create_room(preset="public_chat")

        async def join() -> None:
            await asyncio.gather(*(server.memberships.join(BOB, room_id) for _ in range(5)))

        assert await changed(server, join) == 1

    asyncio.run(story())


def test_the_profile_goes_with_the_membership(server: CoreServer) -> None:
    async def story() -> None:
        room_id = await server.create_room(preset="public_chat")
        with server.database.begin() as connection:
            connection.exec_driver_sql(
                "UPDATE users SET display_name = 'Carol', avatar_url = 'mxc://a/b' WHERE user_id = '@carol:example.org'"
            )
        await server.memberships.join(CAROL, room_id)
        profile = {"displayname": "Carol", "avatar_url": "mxc://a/b"}
        assert (await server.state(room_id))["m.room.member", CAROL].content == {"membership": "join", **profile}
        with server.database.begin() as connection:
            connection.exec_driver_sql(
                "UPDATE users SET display_name = 'C', avatar_url = NULL WHERE user_id = '@carol:example.org'"
            )
        await server.memberships.refresh_profile(CAROL)
        assert (await server.state(room_id))["m.room.member", CAROL].content == {
            "membership": "join",
            "displayname": "C",
        }
        assert await changed(server, lambda: server.memberships.refresh_profile(CAROL)) == 0

    asyncio.run(story())


def test_private_rooms_are_joined_by_invitation(server: CoreServer) -> None:
    async def story() -> None:
        memberships = server.memberships
        room_id = await server.create_room()
        await refused(memberships.join(BOB, room_id))
        await refused(memberships.invite(BOB, room_id, CAROL))
        await memberships.invite(ALICE, room_id, BOB, reason="come", is_direct=True)
        member = (await server.state(room_id))["m.room.member", BOB]
        assert member.content == {"membership": "invite", "reason": "come", "is_direct": True}
        await refused(memberships.invite(BOB, room_id, CAROL))
        await memberships.join(BOB, room_id)
        await refused(memberships.invite(BOB, room_id, CAROL))  # joined, but only Moderators invite
        await refused(memberships.invite(ALICE, room_id, BOB))  # is there already
        assert await server.membership(room_id, BOB) == "join"

    asyncio.run(story())


def test_invitations_are_rejected_and_taken_back(server: CoreServer) -> None:
    async def story() -> None:
        memberships = server.memberships
        room_id = await server.create_room(invite=[BOB, CAROL])
        await memberships.leave(BOB, room_id)
        assert await server.membership(room_id, BOB) == "leave"
        await memberships.kick(ALICE, room_id, CAROL, "a mistake")
        assert (await server.state(room_id))["m.room.member", CAROL].content == {
            "membership": "leave",
            "reason": "a mistake",
        }
        for user in (BOB, CAROL):
            await refused(memberships.join(user, room_id))
        await memberships.invite(ALICE, room_id, BOB)
        assert await server.membership(room_id, BOB) == "invite"

    asyncio.run(story())


def test_who_can_be_invited(server: CoreServer) -> None:
    async def story() -> None:
        room_id = await server.create_room()
        await refused(server.memberships.invite(ALICE, room_id, "@nobody:example.org"), NotFound)
        await refused(server.memberships.invite(ALICE, room_id, "bob"), InvalidParam)
        await refused(server.memberships.invite(ALICE, "!unheard:of.org", BOB))

    asyncio.run(story())


def test_bans(server: CoreServer) -> None:
    async def story() -> None:
        memberships = server.memberships
        room_id = await server.create_room(preset="public_chat")
        await memberships.join(BOB, room_id)
        await refused(memberships.ban(BOB, room_id, ALICE))
        await refused(memberships.ban(CAROL, room_id, BOB))
        await memberships.ban(ALICE, room_id, BOB, "spam")
        assert (await server.state(room_id))["m.room.member", BOB].content == {"membership": "ban", "reason": "spam"}
        assert await changed(server, lambda: memberships.ban(ALICE, room_id, BOB, "spam")) == 0
        await refused(memberships.join(BOB, room_id))
        await refused(memberships.leave(BOB, room_id))
        await refused(server.send(room_id, BOB))
        banned = await refused(memberships.invite(ALICE, room_id, BOB))
        assert banned.body()["reason"] == "banned"
        by_state = EventDraft("m.room.member", ALICE, {"membership": "invite"}, BOB)
        assert (await refused(memberships.send_member(room_id, by_state))).body()["reason"] == "banned"
        await refused(memberships.kick(ALICE, room_id, BOB))
        await refused(memberships.unban(ALICE, room_id, CAROL))
        await memberships.unban(ALICE, room_id, BOB)
        assert await server.membership(room_id, BOB) == "leave"
        await refused(memberships.unban(ALICE, room_id, BOB))
        await memberships.invite(ALICE, room_id, BOB)
        await memberships.ban(ALICE, room_id, DAVE)  # was never there
        assert await server.membership(room_id, DAVE) == "ban"
        await refused(memberships.ban(ALICE, room_id, "dave"), InvalidParam)

    asyncio.run(story())


def test_kicks(server: CoreServer) -> None:
    async def story() -> None:
        memberships = server.memberships
        room_id = await server.create_room(preset="public_chat")
        for user in (BOB, CAROL):
            await memberships.join(user, room_id)
        await refused(memberships.kick(BOB, room_id, CAROL))
        await refused(memberships.kick(ALICE, room_id, DAVE))
        await memberships.kick(ALICE, room_id, BOB)
        await refused(memberships.kick(ALICE, room_id, BOB))
        await memberships.join(BOB, room_id)
        assert await server.membership(room_id, BOB) == "join"

    asyncio.run(story())


def test_only_rooms_that_were_left_are_forgotten(server: CoreServer) -> None:
    async def story() -> None:
        memberships = server.memberships
        room_id = await server.create_room(invite=[BOB])
        await refused(memberships.forget(ALICE, room_id), UnknownError)
        await refused(memberships.forget(BOB, room_id), UnknownError)
        await refused(memberships.forget(CAROL, room_id), NotFound)
        await memberships.leave(BOB, room_id)
        await memberships.forget(BOB, room_id)
        await memberships.forget(BOB, room_id)
        standing = await server.database.read(user_rooms.standing_of, BOB, room_id)
        assert standing is not None
        assert standing.forgotten
        await memberships.invite(ALICE, room_id, BOB)
        standing = await server.database.read(user_rooms.standing_of, BOB, room_id)
        assert standing is not None
        assert not standing.forgotten

    asyncio.run(story())


def test_who_goes_leaves_everything(server: CoreServer) -> None:
    async def story() -> None:
        public = await server.create_room(preset="public_chat")
        private = await server.create_room(invite=[DAVE])
        banned = await server.create_room()
        await server.memberships.ban(ALICE, banned, DAVE)
        await server.memberships.join(DAVE, public)
        await server.memberships.leave_all(DAVE)
        assert [await server.membership(room_id, DAVE) for room_id in (public, private, banned)] == [
            "leave",
            "leave",
            "ban",
        ]

    asyncio.run(story())


def test_member_events_that_clients_write_themselves(server: CoreServer) -> None:
    async def story() -> None:
        send = server.memberships.send_member
        room_id = await server.create_room(preset="public_chat")

        def draft(sender: str, membership: str, target: str, **content: object) -> EventDraft:
            return EventDraft("m.room.member", sender, {"membership": membership, **content}, target)

        event_id = await send(room_id, draft(BOB, "join", BOB, displayname="in this room only"))
        member = (await server.state(room_id))["m.room.member", BOB]
        assert (member.event_id, member.content["displayname"]) == (event_id, "in this room only")
        await refused(send(room_id, draft(BOB, "join", CAROL)))
        await refused(send(room_id, draft(ALICE, "invite", "@nobody:example.org")), NotFound)
        assert await send(room_id, draft(ALICE, "invite", CAROL))
        assert await send(room_id, draft(BOB, "leave", BOB))
        assert await server.membership(room_id, CAROL) == "invite"
        invitation = await send(room_id, draft(ALICE, "invite", ZOE))
        stored = (await server.events.by_id(room_id, [invitation or ""]))[invitation or ""]
        assert set(stored.event.pdu["signatures"]) == {"example.org", "other.org"}

    asyncio.run(story())


# -- other servers -----------------------------------------------------------------------------------------------------


def test_rooms_elsewhere_are_joined_through_other_servers(server: CoreServer) -> None:
    async def story() -> None:
        await server.memberships.join(BOB, "!unheard:of.org", ["of.org", *(f"s{n}.org" for n in range(40))], "hi")
        ((room_id, user_id, content, servers),) = server.remote.joins
        assert (room_id, user_id) == ("!unheard:of.org", BOB)
        assert content == {"membership": "join", "reason": "hi"}
        assert servers[0] == "of.org"
        assert len(servers) == 20

    asyncio.run(story())


def test_a_room_that_all_of_us_left_is_one_elsewhere(server: CoreServer) -> None:
    async def story() -> None:
        room = RoomFactory(room_localpart=next(NAMES))
        room.create("alice")
        room.join(ZOE)
        room.leave("alice")
        await server.adopt(room)
        await server.memberships.join(BOB, room.room_id, ["other.org"])
        assert [join[0] for join in server.remote.joins] == [room.room_id]

    asyncio.run(story())


def test_invitations_to_other_servers(server: CoreServer) -> None:
    async def story() -> None:
        room_id = await server.create_room()
        server.remote.refusal = RemoteFailed("nobody there")
        await refused(server.memberships.invite(ALICE, room_id, ZOE), RemoteFailed)
        assert await server.membership(room_id, ZOE) is None
        server.remote.refusal = None

        async def go_on() -> None:
            await server.send(room_id, body="while the other server thinks about it")

        server.remote.before_signing = go_on
        await server.memberships.invite(ALICE, room_id, ZOE)
        assert await server.membership(room_id, ZOE) == "invite"
        # The invitation is a branch of its own; the next event brings both together.
        assert len((await server.send(room_id)).event.prev_events) == 2

    asyncio.run(story())


def test_an_invitation_that_came_too_late(server: CoreServer) -> None:
    async def story() -> None:
        room_id = await server.create_room()

        async def ban() -> None:
            await server.memberships.ban(ALICE, room_id, ZOE)

        server.remote.before_signing = ban
        error = await refused(server.memberships.invite(ALICE, room_id, ZOE))
        assert error.body()["reason"] == "banned"
        assert await server.membership(room_id, ZOE) == "ban"

    asyncio.run(story())


def test_closed_rooms_are_closed_to_other_servers(server: CoreServer) -> None:
    async def story() -> None:
        room_id = await server.create_room(creation_content={"m.federate": False})
        error = await refused(server.memberships.invite(ALICE, room_id, ZOE))
        assert "closed to other servers" in error.message

    asyncio.run(story())
