"""An upgrade must not lose the owners of a room, and makes nobody one. (docs/decisions/0008-room-upgrades.md)"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest
from structlog.testing import capture_logs

from homeserver.accounts.administration import Accounts
from homeserver.governance.last_owner import MESSAGE
from homeserver.governance.room_upgrades import NOT_OWNER
from homeserver.protocol.json_types import JsonObject
from homeserver.storage.database import Database
from homeserver.storage.ownership import ownerless_rooms
from tests.fakes.servers import OurServer, Servers, eventually
from tests.governance_api.people import ONE, TWO, Person, World, refused, tell

AWAY = pytest.mark.parametrize("away", [ONE, TWO], ids=["same server", "other server"])


async def upgrade(person: Person, room: str, version: str, *creators: Person) -> str:
    body: JsonObject = {"new_version": version}
    if creators:
        body["additional_creators"] = [creator.user_id for creator in creators]
    return str((await person.room("POST", room, "upgrade", body))["replacement_room"])


async def with_replaceable_by_moderators(world: World, away: str, version: str = "11") -> tuple[Person, Person, str]:
    """An owner on some server, a moderator on ours, and their room, which moderators may end."""
    bob, alice = await world.person("bob"), await world.person("alice", away)
    room = await world.room_of(alice, room_version=version)
    await bob.join(room, via=away)
    await alice.sees(room, bob, "join")
    levels = await alice.levels(room)
    users = {**levels["users"], bob.user_id: 50}
    levels = {**levels, "users": users, "events": {**levels["events"], "m.room.tombstone": 50}}
    await alice.put_state(room, "m.room.power_levels", levels)

    async def knows() -> bool:
        return await bob.levels(room) == levels

    await eventually(knows)
    return alice, bob, room


async def ownerless(server: OurServer) -> list[str]:
    """What ``homeserver rooms ownerless`` lists."""
    found = await server.get(Database).read(ownerless_rooms, server.name)
    return [room.room_id for room in found]


async def owners(person: Person, room: str) -> list[str]:
    return [owner["user_id"] for owner in (await person.roles(room))["owners"]]


@pytest.mark.parametrize(("old_version", "new_version"), [("11", "11"), ("10", "11"), ("11", "12"), ("12", "12")])
@AWAY
def test_owners_stay_owners(servers: Servers, away: str, old_version: str, new_version: str) -> None:
    async def story(world: World) -> None:
        alice, bob, carol = [await world.person("alice"), await world.person("bob", away), await world.person("carol")]
        room = await world.room_of(alice, bob, carol, room_version=old_version)
        await alice.give(room, bob, "owner")
        new = await upgrade(alice, room, new_version)
        assert await owners(alice, new) == [alice.user_id]
        await bob.join(new)
        await carol.join(new)
        await carol.sees(new, bob, "join")
        assert sorted(await owners(carol, new)) == sorted([alice.user_id, bob.user_id])
        # The other one, too, was an owner, and may go on from there where the room does not keep that for creators.
        await alice.leave(new)
        assert await owners(carol, new) == [bob.user_id]

    tell(servers, story)


@pytest.mark.parametrize(("version", "reason"), [("11", "last_owner"), ("6", "last_owner"), ("12", "not_owner")])
@AWAY
def test_moderators_lose_the_owners_or_become_one(servers: Servers, away: str, version: str, reason: str) -> None:
    async def story(world: World) -> None:
        alice, bob, room = await with_replaceable_by_moderators(world, away)
        body = await refused(upgrade(bob, room, version), 403, "M_FORBIDDEN", reason=reason)
        assert body["error"] == (MESSAGE if reason == "last_owner" else NOT_OWNER)
        # Also where he names the owner as a creator: that is not for him to say either.
        await refused(upgrade(bob, room, version, alice), 403, "M_FORBIDDEN", reason=reason)
        assert "m.room.tombstone" not in {kind for kind, _ in (await bob.server.head(room)).state}
        assert (await bob.client("GET", "/joined_rooms"))["joined_rooms"] == [room]
        # Once he is an owner he may.
        await alice.give(room, bob, "owner")

        async def knows() -> bool:
            return (await bob.roles(room))["my_role"] == "owner"

        await eventually(knows)
        new = await upgrade(bob, room, version)
        assert await owners(bob, new) == [bob.user_id]
        await alice.join(new)
        await bob.sees(new, alice, "join")
        assert sorted(await owners(bob, new)) == sorted([alice.user_id, bob.user_id])

    tell(servers, story)


@pytest.mark.parametrize("version", ["11", "12"])
def test_alone_everything_is_allowed(servers: Servers, version: str) -> None:
    async def story(world: World) -> None:
        alice, bob, room = await with_replaceable_by_moderators(world, ONE)
        await alice.give(room, bob, "owner")
        await alice.leave(room)
        await bob.give(room, bob, "moderator", confirm=True)
        await bob.invite(room, alice)  # who is invited is not there yet
        new = await upgrade(bob, room, version)
        roles = await bob.roles(new)
        assert (roles["my_role"], roles.get("ownerless")) == (
            ("owner", None) if version == "12" else ("moderator", True)
        )
        if version == "11":
            assert new in await ownerless(bob.server)
            # Who was owner of the old room is owner of the new one on coming.
            await bob.invite(new, alice)
            await alice.join(new)
            assert await owners(bob, new) == [alice.user_id]

    tell(servers, story)


@pytest.mark.parametrize("version", ["11", "12"])
def test_a_room_that_has_no_owner_may_be_replaced(servers: Servers, version: str) -> None:
    """docs/governance.md, "A room without an Owner": *may replace*."""

    async def story(world: World) -> None:
        alice, bob, room = await with_replaceable_by_moderators(world, ONE)
        carol = await world.person("carol")
        await carol.join(room)
        await refused(upgrade(bob, room, version))
        await refused(upgrade(carol, room, version))
        await alice.server.get(Accounts).deactivate(alice.user_id)
        assert await ownerless(bob.server) == [room]
        await refused(upgrade(carol, room, version), reason=None)
        new = await upgrade(bob, room, version)
        assert (await bob.roles(new))["my_role"] == ("owner" if version == "12" else "moderator")

    tell(servers, story)


@pytest.mark.parametrize(("mode", "warns"), [("warn", True), ("off", False)])
def test_modes(servers: Servers, mode: str, warns: bool) -> None:
    async def story(world: World) -> None:
        await world.server(ONE, governance={"last_owner_protection": mode})
        alice, bob, room = await with_replaceable_by_moderators(world, ONE)
        # Rule 1 holds in all modes: nobody makes himself an owner.
        await refused(upgrade(bob, room, "12"), reason="not_owner")
        with capture_logs() as logs:
            new = await upgrade(bob, room, "11")
        warned = [entry for entry in logs if entry["event"] == "room loses its last owner"]
        assert [(entry["room_id"], entry["sender"]) for entry in warned] == ([(room, bob.user_id)] if warns else [])
        assert await ownerless(bob.server) == [new]
        assert (await bob.roles(new))["ownerless"] is True
        await alice.join(new)
        assert await ownerless(bob.server) == []
        assert await owners(bob, new) == [alice.user_id]

    tell(servers, story)


@AWAY
def test_creators_who_are_not_named_stay_owners(servers: Servers, away: str) -> None:
    """ "If the room being upgraded has additional creators, they are *not* automatically copied to the new room." """

    async def story(world: World) -> None:
        alice, bob = await world.person("alice"), await world.person("bob", away)
        content: dict[str, Any] = {"additional_creators": [bob.user_id]}
        room = await world.room_of(alice, bob, room_version="12", creation_content=content)
        for creators in ((), (bob,)):
            new = await upgrade(alice, room, "12", *creators)
            await bob.join(new)
            await alice.sees(new, bob, "join")
            found = {owner["user_id"]: owner["is_creator"] for owner in (await alice.roles(new))["owners"]}
            assert found == {alice.user_id: True, bob.user_id: bool(creators)}
            await refused(alice.give(new, bob, "member"), reason="creator" if creators else "equal_role")
            room = new
        # And so do both where a room has no such creators any more.
        new = await upgrade(alice, room, "11")
        await bob.join(new)
        await alice.sees(new, bob, "join")
        assert len(await owners(alice, new)) == 2
        await bob.sees(new, alice, "join")
        await upgrade(bob, new, "11")

    tell(servers, story)


def test_users_of_other_servers_follow(servers: Servers) -> None:
    async def story(world: World) -> None:
        alice, zoe, eve = await world.person("alice"), await world.person("zoe", TWO), await world.person("eve", TWO)
        room = await world.room_of(alice, zoe, eve, name="A room")
        await alice.ban(room, eve, reason="spam")
        await zoe.sees(room, eve, "ban")
        new = await upgrade(alice, room, "12")

        async def knows() -> bool:
            return "m.room.tombstone" in {kind for kind, _ in (await zoe.server.head(room)).state}

        await eventually(knows)
        assert (await zoe.state(room, "m.room.tombstone"))["replacement_room"] == new
        assert (await zoe.levels(room))["events_default"] == 50
        await refused(zoe.send(room, "anybody here?"))
        await zoe.client("PUT", f"/user/{zoe.user_id}/rooms/{quote(room)}/account_data/m.tag", {"tags": {"u.a": {}}})
        await zoe.join(new)
        assert (await zoe.state(new, "m.room.create"))["predecessor"] == {"room_id": room}
        assert (await zoe.state(new, "m.room.name"))["name"] == "A room"
        tags = await zoe.client("GET", f"/user/{zoe.user_id}/rooms/{quote(new)}/account_data/m.tag")
        assert tags == {"tags": {"u.a": {}}}
        assert [ban["user_id"] for ban in await zoe.bans(new)] == [eve.user_id]
        await refused(eve.join(new))
        event = await zoe.send(new, "here")
        await alice.server.wait_for(event)

    tell(servers, story)


def test_another_owner_may_replace_it_again(servers: Servers) -> None:
    async def story(world: World) -> None:
        alice, bob = await world.person("alice"), await world.person("bob")
        room = await world.room_of(alice, bob)
        await alice.give(room, bob, "owner")
        first, second = await upgrade(alice, room, "11"), await upgrade(bob, room, "11")
        assert first != second
        assert (await alice.state(room, "m.room.tombstone"))["replacement_room"] == second

    tell(servers, story)
