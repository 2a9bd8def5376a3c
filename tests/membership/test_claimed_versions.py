"""A room's version comes from its create event, whatever an invitation or a template says."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from homeserver.errors import MatrixError
from homeserver.membership.membership import Memberships
from homeserver.protocol.events import Event
from homeserver.storage import user_rooms
from homeserver.storage.database import Database
from homeserver.storage.event_graph import Verdict
from homeserver.storage.integrity import find_problems
from homeserver.storage.user_rooms import Standing
from tests.factories.rooms import RoomFactory
from tests.fakes.servers import OurServer, RemoteServer, Servers, eventually

OURS, REMOTE, EVIL = "ours.test:8448", "remote.test:8448", "evil.test:8448"
MARY, MALLORY = f"@mary:{REMOTE}", f"@mallory:{EVIL}"
PAIRS = pytest.mark.parametrize(
    ("claimed", "real"), [("1", "11"), ("11", "1"), ("2", "6"), ("10", "11"), ("3", "1"), ("1", "2")]
)


class Scene:
    """A room of a remote server, and a server that is not in it but invites to it."""

    def __init__(self, servers: Servers, ours: OurServer, claimed: str, real: str) -> None:
        self.ours, self.claimed = ours, claimed
        self.room = RoomFactory(real, REMOTE)
        self.room.create("mary")
        self.remote = servers.remote(REMOTE, self.room)
        self.forged = RoomFactory(claimed, EVIL)
        self.evil = servers.remote(EVIL, self.forged)

    def forged_invitation(self, user_id: str) -> Event:
        """An invitation to the remote room as if it were one of the claimed version and of the evil server."""
        self.forged.room_id = self.room.room_id
        self.forged.event(MALLORY, "m.room.create", {"creator": MALLORY, "room_version": self.claimed}, "")
        self.forged.join(MALLORY)
        return self.forged.event(MALLORY, "m.room.member", {"membership": "invite"}, user_id)

    async def invite(
        self, server: RemoteServer, event: Event, version: str, state: list[dict[str, Any]] | None = None
    ) -> httpx.Response:
        signature = {server.name: event.pdu["signatures"][server.name]}
        uri = f"/_matrix/federation/v2/invite/{quote(event.room_id, safe='')}/{quote(event.event_id, safe='')}"
        body = {"event": {**event.pdu, "signatures": signature}, "room_version": version}
        return await server.request("PUT", OURS, uri, {**body, "invite_room_state": state or []})

    async def standing(self, user_id: str) -> Standing | None:
        return await self.ours.get(Database).read(user_rooms.standing_of, user_id, self.room.room_id)


def play(servers: Servers, story: Callable[[Scene], Awaitable[None]], claimed: str, real: str) -> None:
    async def run() -> None:
        async with servers:
            scene = Scene(servers, await servers.ours(OURS), claimed, real)
            await story(scene)
            assert await scene.ours.get(Database).read(find_problems) == []

    asyncio.run(run())


@PAIRS
def test_an_invitation_does_not_decide_about_a_room(servers: Servers, claimed: str, real: str) -> None:
    async def story(at: Scene) -> None:
        alice, bob = await at.ours.user("alice"), await at.ours.user("bob")
        response = await at.invite(at.evil, at.forged_invitation(bob), claimed)
        assert response.status_code == 200
        await at.ours.join(alice, at.room.room_id, REMOTE)
        head = await at.ours.head(at.room.room_id)
        assert head.version.identifier == real
        assert dict(head.state) == dict(at.room.current_state)
        # Both ways it is one room.
        message = at.room.send(MARY, "hello")
        assert await at.remote.transaction(OURS, [message]) == {message.event_id: {}}
        await at.ours.send(alice, at.room.room_id)
        assert await eventually(lambda: got(at.remote))
        # The forged invitation is no part of the room, but its user still has it, until they dismiss it.
        standing = await at.standing(bob)
        assert standing is not None
        assert (standing.membership, standing.version) == ("invite", claimed)

    async def got(remote: RemoteServer) -> list[Any]:
        return [pdu for pdu in remote.got() if pdu["type"] == "m.room.message"]

    play(servers, story, claimed, real)


@PAIRS
def test_a_forged_invitation_keeps_no_real_one_out(servers: Servers, claimed: str, real: str) -> None:
    async def story(at: Scene) -> None:
        bob, carol, dora = [await at.ours.user(name) for name in ("bob", "carol", "dora")]
        assert (await at.invite(at.evil, at.forged_invitation(bob), claimed)).status_code == 200
        create = at.room.create_event
        assert create is not None
        for user in (bob, carol, dora):
            invitation = at.room.invite("mary", user)
            response = await at.invite(at.remote, invitation, real, [create.pdu])
            assert response.status_code == 200, response.text
            standing = await at.standing(user)
            assert standing is not None
            assert (standing.event_id, standing.version) == (invitation.event_id, real)
        # What ends an invitation is read by the version that this invitation came with.
        revocation = at.room.kick("mary", dora)
        assert await at.remote.transaction(OURS, [revocation]) == {revocation.event_id: {}}
        standing = await at.standing(dora)
        assert standing is not None
        assert standing.membership == "leave"
        for user in (bob, carol):
            await at.ours.join(user, at.room.room_id)
        head = await at.ours.head(at.room.room_id)
        assert (head.version.identifier, set(head.joined_local)) == (real, {bob, carol})

    play(servers, story, claimed, real)


@PAIRS
def test_what_came_out_of_band_is_no_event_of_the_room(servers: Servers, claimed: str, real: str) -> None:
    async def story(at: Scene) -> None:
        alice, bob = await at.ours.user("alice"), await at.ours.user("bob")
        forged = at.forged_invitation(bob)
        await at.invite(at.evil, forged, claimed)
        genuine = at.room.invite("mary", alice)
        create = at.room.create_event
        assert create is not None
        await at.invite(at.remote, genuine, real, [create.pdu])
        await at.ours.join(alice, at.room.room_id)
        assert await at.ours.event(forged.event_id) is None
        stored = await at.ours.event(genuine.event_id)
        assert stored is not None
        assert not stored.is_out_of_band
        assert stored.verdict == Verdict.OUTLIER
        uri = f"/_matrix/federation/v1/event/{quote(forged.event_id, safe='')}"
        assert (await at.remote.request("GET", OURS, uri)).status_code == 404

    play(servers, story, claimed, real)


@PAIRS
def test_a_create_event_of_another_version_belies_the_invitation(servers: Servers, claimed: str, real: str) -> None:
    async def story(at: Scene) -> None:
        bob = await at.ours.user("bob")
        create = at.room.create_event
        assert create is not None
        shown = {name: create.pdu[name] for name in ("content", "sender", "state_key", "type")}
        response = await at.invite(at.evil, at.forged_invitation(bob), claimed, [shown])
        assert (response.status_code, response.json()["errcode"]) == (400, "M_INVALID_PARAM")
        assert await at.standing(bob) is None

    play(servers, story, claimed, real)


@PAIRS
def test_a_template_does_not_decide_about_a_room(servers: Servers, claimed: str, real: str) -> None:
    async def story(at: Scene) -> None:
        alice = await at.ours.user("alice")
        make_join = at.remote._make_join

        async def lying(request: Request) -> Response:
            import orjson

            answer = orjson.loads((await make_join(request)).body)
            return JSONResponse({**answer, "room_version": claimed})

        at.remote.replaced["make_join"] = lying

        async def state(request: Request) -> Response:
            before = [event.pdu for event in at.room.state.values()]
            return JSONResponse({"state": before, "auth_chain": before, "event": await request.json()})

        at.remote.replaced["send_join"] = state
        with pytest.raises(MatrixError):
            await at.ours.join(alice, at.room.room_id, REMOTE)
        at.remote.replaced.clear()
        await at.ours.join(alice, at.room.room_id, REMOTE)
        assert (await at.ours.head(at.room.room_id)).version.identifier == real

    play(servers, story, claimed, real)


def test_a_room_keeps_its_create_event(servers: Servers) -> None:
    async def story(at: Scene) -> None:
        alice = await at.ours.user("alice")
        await at.ours.join(alice, at.room.room_id, REMOTE)
        await at.ours.get(Memberships).leave(alice, at.room.room_id)
        head = await at.ours.head(at.room.room_id)
        second = RoomFactory("11", REMOTE)
        second.create("mary", content={"again": True})
        assert second.room_id == at.room.room_id
        at.remote.room = second
        with pytest.raises(MatrixError):
            await at.ours.join(alice, at.room.room_id, REMOTE)
        assert (await at.ours.head(at.room.room_id)).state == head.state

    play(servers, story, "11", "11")
