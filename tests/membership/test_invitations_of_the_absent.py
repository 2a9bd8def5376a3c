"""Invitations that outlive the inviter, that the room's state does not have, and what other servers say to a join."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from homeserver.errors import Forbidden, MatrixError, NotFound
from homeserver.membership.membership import Memberships
from homeserver.protocol.events import Event
from homeserver.storage import delivery, user_rooms
from homeserver.storage.database import Database
from tests.factories.rooms import RoomFactory
from tests.fakes.servers import OurServer, RemoteServer, Servers, eventually

OURS, REMOTE, OTHER = "ours.test:8448", "remote.test:8448", "other.test:8448"
MARY = f"@mary:{REMOTE}"
VERSIONS = pytest.mark.parametrize("version", ["1", "11", "12"])


async def standing(server: OurServer, user_id: str, room_id: str) -> str | None:
    found = await server.get(Database).read(user_rooms.standing_of, user_id, room_id)
    return found.membership if found is not None else None


def play(servers: Servers, story: Callable[[OurServer], Awaitable[None]]) -> None:
    async def run() -> None:
        async with servers:
            await story(await servers.ours(OURS))

    asyncio.run(run())


# -- when everybody has left -------------------------------------------------------------------------------------------


@VERSIONS
def test_an_invitation_stays_good_when_everybody_has_left(servers: Servers, version: str) -> None:
    async def story(ours: OurServer) -> None:
        alice, bob, carol = [await ours.user(name) for name in ("alice", "bob", "carol")]
        room_id = await ours.room(alice, version=version, preset="private_chat", invite=[bob, carol])
        memberships = ours.get(Memberships)
        await memberships.leave(alice, room_id)
        await memberships.leave(carol, room_id)
        assert await ours.membership(room_id, carol) == "leave"
        with pytest.raises(Forbidden):
            await memberships.join(carol, room_id)
        await memberships.join(bob, room_id)
        assert await standing(ours, bob, room_id) == "join"
        await ours.send(bob, room_id)

    play(servers, story)


def test_a_public_room_that_everybody_has_left_can_be_entered(servers: Servers) -> None:
    async def story(ours: OurServer) -> None:
        alice, bob = await ours.user("alice"), await ours.user("bob")
        room_id = await ours.room(alice)
        await ours.get(Memberships).leave(alice, room_id)
        await ours.join(bob, room_id, OURS)  # as an alias of this server says
        await ours.join(alice, room_id)
        await ours.send(alice, room_id)
        for user_id in (bob, alice):
            await ours.get(Memberships).leave(user_id, room_id)
        await ours.join(bob, room_id, "gone.test:1")
        assert await standing(ours, bob, room_id) == "join"

    play(servers, story)


@VERSIONS
@pytest.mark.parametrize("answer", ["join", "leave"])
def test_a_user_of_another_server_answers_when_the_inviter_has_left(
    servers: Servers, version: str, answer: str
) -> None:
    async def story(ours: OurServer) -> None:
        theirs = await servers.ours(OTHER)
        alice, bob = await ours.user("alice"), await theirs.user("bob")
        room_id = await ours.room(alice, version=version, preset="private_chat")
        await ours.get(Memberships).invite(alice, room_id, bob)
        await ours.get(Memberships).leave(alice, room_id)
        if answer == "join":
            await theirs.join(bob, room_id)
            await theirs.send(bob, room_id)
        else:
            await theirs.get(Memberships).leave(bob, room_id)

            async def is_told() -> bool:
                return await ours.membership(room_id, bob) == "leave"

            await eventually(is_told)
        assert await standing(theirs, bob, room_id) == answer

    play(servers, story)


def test_who_was_not_invited_gets_no_help_into_a_room_that_everybody_has_left(servers: Servers) -> None:
    async def story(ours: OurServer) -> None:
        remote = servers.remote(REMOTE)
        alice = await ours.user("alice")
        room_id = await ours.room(alice)
        await ours.get(Memberships).leave(alice, room_id)
        for kind in ("join", "leave", "knock"):
            uri = f"/_matrix/federation/v1/make_{kind}/{room_id}/{MARY}?ver=11"
            assert (await remote.request("GET", OURS, uri)).status_code == 404

    play(servers, story)


# -- invitations that the room's state does not have -------------------------------------------------------------------


class Scene:
    """A remote room, into which alice is invited without the room's own server knowing; bob joins it."""

    def __init__(self, ours: OurServer, remote: RemoteServer, room: RoomFactory, invitation: Event) -> None:
        self.ours = ours
        self.remote = remote
        self.room = room
        self.invitation = invitation
        self.alice, self.bob = f"@alice:{OURS}", f"@bob:{OURS}"


def with_a_lost_invitation(servers: Servers, story: Callable[[Scene], Awaitable[None]]) -> None:
    async def run(ours: OurServer) -> None:
        room = RoomFactory("11", REMOTE)
        room.create("mary", join_rule="invite")
        bob, alice = await ours.user("bob"), await ours.user("alice")
        room.invite(MARY, bob)
        remote = servers.remote(REMOTE, room)
        kept = (dict(room.events), list(room.extremities), dict(room._state_before), dict(room._state_after))
        invitation = room.event(MARY, "m.room.member", {"membership": "invite"}, alice)
        room.events, room.extremities, room._state_before, room._state_after = kept
        shown = [room.state["m.room.create", ""].pdu]
        body = {"event": invitation.pdu, "room_version": "11", "invite_room_state": shown}
        uri = f"/_matrix/federation/v2/invite/{room.room_id}/{invitation.event_id.replace('$', '%24')}"
        assert (await remote.request("PUT", OURS, uri, body)).status_code == 200
        await ours.join(bob, room.room_id, REMOTE)
        assert await standing(ours, alice, room.room_id) == "invite"
        await story(Scene(ours, remote, room, invitation))

    play(servers, run)


def test_an_invitation_that_the_room_does_not_have_can_be_dismissed(servers: Servers) -> None:
    async def story(at: Scene) -> None:
        await at.ours.get(Memberships).leave(at.alice, at.room.room_id)
        assert await standing(at.ours, at.alice, at.room.room_id) == "leave"
        assert await at.ours.membership(at.room.room_id, at.bob) == "join"

        async def is_settled() -> bool:
            return await at.ours.get(Database).read(delivery.next_request_ts) is None

        await eventually(is_settled)  # the inviting server was told

    with_a_lost_invitation(servers, story)


def test_an_invitation_that_the_room_does_not_have_is_accepted_through_its_server(servers: Servers) -> None:
    async def story(at: Scene) -> None:
        # By now the room's own server has it, and only the news of it has not come.
        at.room.invite(MARY, at.alice)
        await at.ours.join(at.alice, at.room.room_id)
        assert await at.ours.membership(at.room.room_id, at.alice) == "join"

    with_a_lost_invitation(servers, story)


# -- whom to ask, and what they say ------------------------------------------------------------------------------------


def test_servers_that_the_client_names_come_first(servers: Servers) -> None:
    async def story(ours: OurServer) -> None:
        bob = await ours.user("bob")
        room = RoomFactory("11", REMOTE)
        room.create("mary")
        remote = servers.remote(REMOTE, room)
        event = room.event(MARY, "m.room.member", {"membership": "invite"}, bob)
        body = {"event": event.pdu, "room_version": "11", "invite_room_state": []}
        uri = f"/_matrix/federation/v2/invite/{room.room_id}/{event.event_id.replace('$', '%24')}"
        assert (await remote.request("PUT", OURS, uri, body)).status_code == 200
        asked: list[str] = []

        def asking(name: str) -> Callable[[Request], Awaitable[Response]]:
            async def refuse(_: Request) -> Response:
                asked.append(name)
                return JSONResponse({"errcode": "M_NOT_FOUND", "error": "?"}, 404)

            return refuse

        for name in ("one.test", "two.test"):
            servers.remote(name, room).replaced["make_join"] = asking(name)
        remote.replaced["make_join"] = asking(REMOTE)
        with pytest.raises(NotFound):
            await ours.join(bob, room.room_id, "two.test", "one.test")
        assert asked == ["two.test", "one.test", REMOTE]

    play(servers, story)


@pytest.mark.parametrize(
    ("status", "errcode", "expected"),
    [
        (403, "M_FORBIDDEN", (403, "M_FORBIDDEN")),
        (403, "ORG.EXAMPLE.TOO_YOUNG", (403, "ORG.EXAMPLE.TOO_YOUNG")),
        (403, "M_CONSENT_NOT_GIVEN", (403, "M_CONSENT_NOT_GIVEN")),
        (404, "M_NOT_FOUND", (404, "M_NOT_FOUND")),
        (400, "M_BAD_STATE", (400, "M_BAD_STATE")),
        (409, "M_BAD_STATE", (409, "M_BAD_STATE")),
        # Of these our user's client would think that they are about itself.
        (401, "M_UNKNOWN_TOKEN", (502, "M_UNKNOWN")),
        (403, "M_USER_DEACTIVATED", (403, "M_FORBIDDEN")),
        (400, "M_INVALID_PARAM", (502, "M_UNKNOWN")),
        (404, "M_UNRECOGNIZED", (502, "M_UNKNOWN")),
        (400, "<script>", (502, "M_UNKNOWN")),
        (503, "M_FORBIDDEN", (502, "M_UNKNOWN")),
    ],
)
def test_what_another_server_says_reaches_the_client(
    servers: Servers, status: int, errcode: str, expected: tuple[int, str]
) -> None:
    async def refuse(_: Request) -> Response:
        return JSONResponse({"errcode": errcode, "error": "because"}, status)

    async def story(ours: OurServer) -> None:
        room = RoomFactory("11", REMOTE)
        room.create("mary")
        servers.remote(REMOTE, room).replaced["make_join"] = refuse
        with pytest.raises(MatrixError) as raised:
            await ours.join(await ours.user("bob"), room.room_id, REMOTE)
        assert (raised.value.status, raised.value.errcode) == expected

    play(servers, story)
