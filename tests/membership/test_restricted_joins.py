"""homeserver/membership/restricted_joins.py: https://spec.matrix.org/v1.19/client-server-api/#restricted-rooms"""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest

from homeserver.errors import Forbidden, UnableToAuthoriseJoin, UnableToGrantJoin
from homeserver.membership.joins import VOUCHER
from homeserver.protocol.events import EventDraft
from homeserver.storage.database import Database
from tests.factories.rooms import RoomFactory
from tests.fakes.homeserver import ALICE, BOB, CAROL, ZOE, CoreServer, add_users

NAMES = (f"restricted{number}" for number in itertools.count())


@pytest.fixture
def server(shared_database: Database) -> CoreServer:
    add_users(shared_database, ALICE, BOB, CAROL)
    return CoreServer(shared_database)


def rule(*room_ids: str, kind: str = "restricted") -> tuple[str, str, dict[str, Any]]:
    allow = [{"type": "m.room_membership", "room_id": room_id} for room_id in room_ids]
    return ("m.room.join_rules", "", {"join_rule": kind, "allow": allow})


async def voucher(server: CoreServer, room_id: str, user: str) -> str | None:
    return (await server.state(room_id))["m.room.member", user].content.get(VOUCHER)


@pytest.mark.parametrize(("version", "kind"), [("8", "restricted"), ("11", "knock_restricted"), ("12", "restricted")])
def test_members_of_the_other_room_are_let_in(server: CoreServer, version: str, kind: str) -> None:
    async def story() -> None:
        space = await server.create_room(preset="public_chat", version=version)
        room_id = await server.create_room(version=version, initial_state=[rule(space, kind=kind)])
        with pytest.raises(Forbidden, match="conditions"):
            await server.memberships.join(BOB, room_id)
        await server.memberships.join(BOB, space)
        await server.memberships.join(BOB, room_id)
        assert await voucher(server, room_id, BOB) == ALICE
        await server.memberships.leave(BOB, space)
        await server.memberships.leave(BOB, room_id)
        with pytest.raises(Forbidden):
            await server.memberships.join(BOB, room_id)

    asyncio.run(story())


def test_invited_users_need_nobody_to_vouch_for_them(server: CoreServer) -> None:
    async def story() -> None:
        room_id = await server.create_room(initial_state=[rule()], invite=[BOB])
        await server.memberships.join(BOB, room_id)
        assert await voucher(server, room_id, BOB) is None

    asyncio.run(story())


def test_banned_users_stay_out(server: CoreServer) -> None:
    async def story() -> None:
        space = await server.create_room(preset="public_chat")
        room_id = await server.create_room(initial_state=[rule(space)])
        await server.memberships.join(BOB, space)
        await server.memberships.ban(ALICE, room_id, BOB)
        with pytest.raises(Forbidden):
            await server.memberships.join(BOB, room_id)

    asyncio.run(story())


def test_old_room_versions_know_no_such_rule(server: CoreServer) -> None:
    async def story() -> None:
        space = await server.create_room(preset="public_chat")
        room_id = await server.create_room(version="7", initial_state=[rule(space)])
        await server.memberships.join(BOB, space)
        head = await server.heads.get(room_id)
        assert not await server.restricted.needs_authorisation(head, BOB)
        with pytest.raises(Forbidden):
            await server.memberships.join(BOB, room_id)

    asyncio.run(story())


def test_clients_cannot_write_the_voucher_themselves(server: CoreServer) -> None:
    async def story() -> None:
        space = await server.create_room(preset="public_chat")
        room_id = await server.create_room(initial_state=[rule(space)])
        forged = EventDraft("m.room.member", BOB, {"membership": "join", VOUCHER: ALICE}, BOB)
        with pytest.raises(Forbidden):
            await server.memberships.send_member(room_id, forged)
        await server.memberships.join(BOB, space)
        plain = EventDraft("m.room.member", BOB, {"membership": "join", "displayname": "B"}, BOB)
        await server.memberships.send_member(room_id, plain)
        assert await voucher(server, room_id, BOB) == ALICE
        # Who is in the room changes the profile without a voucher, which another server might have to sign.
        await server.memberships.send_member(room_id, forged)
        assert await voucher(server, room_id, BOB) is None

    asyncio.run(story())


def test_a_changed_profile_names_no_voucher(server: CoreServer) -> None:
    async def story() -> None:
        space = await server.create_room(preset="public_chat")
        room_id = await server.create_room(initial_state=[rule(space)])
        await server.memberships.join(CAROL, space)
        await server.memberships.join(CAROL, room_id)
        await server.memberships.refresh_profile(CAROL)
        assert await voucher(server, room_id, CAROL) is None
        assert await server.membership(room_id, CAROL) == "join"

    asyncio.run(story())


def test_the_user_with_the_most_power_vouches(server: CoreServer) -> None:
    async def story() -> None:
        space = await server.create_room(preset="public_chat")
        levels = {"users": {ALICE: 60, BOB: 70}, "invite": 50, "events": {}}
        room_id = await server.create_room(initial_state=[rule(space)], power_levels=levels, invite=[BOB])
        for user in (BOB, CAROL):
            await server.memberships.join(user, space)
        await server.memberships.join(BOB, room_id)
        assert await server.restricted.authorising_user(await server.heads.get(room_id), CAROL) == BOB

    asyncio.run(story())


def test_what_this_server_cannot_decide(server: CoreServer) -> None:
    async def story() -> None:
        room = RoomFactory(room_localpart=next(NAMES))
        room.create(ZOE)
        room.join(ALICE)
        room.state_event(ZOE, "m.room.join_rules", rule("!unheard:of.org")[2])
        await server.adopt(room)
        head = await server.heads.get(room.room_id)
        with pytest.raises(UnableToAuthoriseJoin):
            await server.restricted.authorising_user(head, BOB)
        # Another server in the room may know.
        await server.memberships.join(BOB, room.room_id)
        ((room_id, _, content, servers),) = server.remote.joins
        assert (room_id, servers) == (room.room_id, ["other.org"])
        assert VOUCHER not in content

    asyncio.run(story())


def test_nobody_here_may_invite(server: CoreServer) -> None:
    async def story() -> None:
        space = await server.create_room(preset="public_chat")
        await server.memberships.join(BOB, space)
        room = RoomFactory(room_localpart=next(NAMES))
        room.create(ZOE, power_levels={"invite": 50})
        room.join(ALICE)
        room.state_event(ZOE, "m.room.join_rules", rule(space)[2])
        await server.adopt(room)
        with pytest.raises(UnableToGrantJoin):
            await server.restricted.authorising_user(await server.heads.get(room.room_id), BOB)

    asyncio.run(story())


@pytest.mark.parametrize("allow", [None, "all", [None, {}, {"type": "m.room_membership", "room_id": 7}, {"type": "x"}]])
def test_conditions_that_make_no_sense_let_nobody_in(server: CoreServer, allow: Any) -> None:
    async def story() -> None:
        content = {"join_rule": "restricted", "allow": allow}
        room_id = await server.create_room(initial_state=[("m.room.join_rules", "", content)])
        with pytest.raises(Forbidden):
            await server.memberships.join(BOB, room_id)

    asyncio.run(story())
