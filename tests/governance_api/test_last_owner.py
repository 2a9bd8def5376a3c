from __future__ import annotations

import asyncio
from typing import Any

import pytest
from signedjson.key import encode_verify_key_base64, generate_signing_key, get_verify_key
from signedjson.sign import sign_json
from structlog.testing import capture_logs

from homeserver.accounts.administration import Accounts
from homeserver.governance.last_owner import MESSAGE
from homeserver.protocol.json_types import JsonObject
from homeserver.storage import accounts
from homeserver.storage.database import Database
from homeserver.storage.ownership import ownerless_rooms
from tests.fakes.servers import OurServer, Servers, eventually
from tests.governance_api.people import ONE, TWO, Person, World, refused, tell

AWAY = pytest.mark.parametrize("away", [ONE, TWO], ids=["same server", "other server"])


async def refused_as_last_owner(attempt: Any) -> None:
    body = await refused(attempt, 403, "M_FORBIDDEN", reason="last_owner")
    assert body["error"] == MESSAGE == "This is the last owner. Please set a new owner before removing this one."


async def ownerless(server: OurServer) -> list[str]:
    """What ``homeserver rooms ownerless`` lists."""
    found = await server.get(Database).read(ownerless_rooms, server.name)
    return [room.room_id for room in found]


async def raw(person: Person, room: str, **changes: Any) -> str:
    """The power levels as they are, with changes."""
    return await person.put_state(room, "m.room.power_levels", {**await person.levels(room), **changes})


@AWAY
@pytest.mark.parametrize("version", ["6", "11"])
def test_every_way_out(servers: Servers, away: str, version: str) -> None:
    async def story(world: World) -> None:
        alice, bob = await world.person("alice"), await world.person("bob", away)
        room = await world.room_of(alice, bob, room_version=version)
        await refused_as_last_owner(alice.leave(room))
        await refused_as_last_owner(alice.put_state(room, "m.room.member", {"membership": "leave"}, alice.user_id))
        await refused_as_last_owner(alice.give(room, alice, "member", confirm=True))
        for users in ({}, {alice.user_id: 99}, {alice.user_id: 0, bob.user_id: 50}, {"@gone:two.test": 100}):
            await refused_as_last_owner(raw(alice, room, users=users))
        # Invited, or gone, is not joined.
        carol = await world.person("carol")
        await alice.invite(room, carol)
        await refused_as_last_owner(raw(alice, room, users={carol.user_id: 100}))
        await raw(alice, room, users={alice.user_id: 100, carol.user_id: 100})
        await refused_as_last_owner(alice.leave(room))
        await carol.join(room)
        await alice.leave(room)
        assert await alice.membership(room, alice) == "leave"
        await refused_as_last_owner(carol.leave(room))
        await bob.leave(room)
        await carol.sees(room, bob, "leave")
        await carol.leave(room)
        assert await ownerless(alice.server) == []

    tell(servers, story)


def test_alone_everything_is_allowed(servers: Servers) -> None:
    async def story(world: World) -> None:
        alice, bob = await world.person("alice"), await world.person("bob")
        room = await alice.create_room(invite=[bob.user_id])
        await raw(alice, room, users={})
        roles = await alice.roles(room)
        assert (roles["my_role"], roles["ownerless"]) == ("member", True)
        await alice.leave(room)

    tell(servers, story)


def test_defaults_cannot_be_used_to_get_around_it(servers: Servers) -> None:
    async def story(world: World) -> None:
        alice, bob, carol = [await world.person(name) for name in ("alice", "bob", "carol")]
        room = await world.room_of(alice, bob)
        await raw(alice, room, users={}, users_default=100)
        assert (await bob.roles(room))["my_role"] == "owner"
        # They are equals now: nobody lowers the others.
        await refused(raw(alice, room, users_default=0), reason="equal_role")
        await refused(raw(alice, room, users={bob.user_id: 0}), reason="equal_role")
        await refused(raw(alice, room, users={alice.user_id: 100}, users_default=50), reason="equal_role")
        await bob.leave(room)
        await alice.leave(room)  # alone again
        room = await world.room_of(carol, bob)
        await raw(carol, room, users={}, users_default=100)
        await raw(carol, room, users={carol.user_id: 0})
        await refused_as_last_owner(bob.leave(room))

    tell(servers, story)


def test_other_events_of_that_name_change_nothing(servers: Servers) -> None:
    async def story(world: World) -> None:
        alice, bob = await world.person("alice"), await world.person("bob")
        room = await world.room_of(alice, bob)
        await alice.put_state(room, "m.room.power_levels", {"users": {}}, "another key")
        assert (await alice.roles(room))["my_role"] == "owner"
        await refused_as_last_owner(alice.leave(room))

    tell(servers, story)


@pytest.mark.parametrize("version", ["2", "10", "11"])
def test_redacting_the_power_levels_leaves_the_owner(servers: Servers, version: str) -> None:
    async def story(world: World) -> None:
        alice, bob = await world.person("alice"), await world.person("bob", TWO)
        room = await world.room_of(alice, bob, room_version=version)
        event = (await alice.server.head(room)).state["m.room.power_levels", ""]
        redaction = (await alice.room("PUT", room, f"redact/{event}/r1", {}))["event_id"]
        await bob.server.wait_for(redaction)
        for person in (alice, bob):
            roles = await person.roles(room)
            assert [m["user_id"] for m in roles["owners"]] == [alice.user_id]
        await refused_as_last_owner(alice.leave(room))

    tell(servers, story)


def test_an_owner_who_is_put_out_from_above(servers: Servers) -> None:
    async def story(world: World) -> None:
        alice, bob, carol = [await world.person(name) for name in ("alice", "bob", "carol")]
        room = await world.room_of(alice, bob, carol, room_version="12")
        await alice.give(room, bob, "owner")
        await alice.leave(room)
        await refused_as_last_owner(bob.leave(room))
        await alice.join(room)
        await alice.ban(room, bob)
        await refused_as_last_owner(alice.leave(room))

    tell(servers, story)


def test_owners_who_go_at_the_same_moment(servers: Servers) -> None:
    async def story(world: World) -> None:
        people = [await world.person(f"owner{number}") for number in range(4)]
        carol = await world.person("carol")
        room = await world.room_of(*people, carol)
        for person in people[1:]:
            await people[0].give(room, person, "owner")
        attempts = [
            people[0].leave(room),
            people[1].give(room, people[1], "member", confirm=True),
            people[2].leave(room),
            people[3].put_state(room, "m.room.member", {"membership": "leave"}, people[3].user_id),
        ]
        outcomes = await asyncio.gather(*attempts, return_exceptions=True)
        failed = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
        assert len(failed) == 1
        assert getattr(failed[0], "body", {}).get("reason") == "last_owner"
        assert len((await carol.roles(room))["owners"]) == 1

    tell(servers, story)


@pytest.mark.parametrize(("mode", "warns"), [("warn", True), ("off", False)])
def test_modes(servers: Servers, mode: str, warns: bool) -> None:
    async def story(world: World) -> None:
        await world.server(ONE, governance={"last_owner_protection": mode})
        alice, bob = await world.person("alice"), await world.person("bob")
        room = await world.room_of(alice, bob)
        with capture_logs() as logs:
            await alice.leave(room)
        warned = [entry for entry in logs if entry["event"] == "room loses its last owner"]
        assert [(entry["room_id"], entry["sender"]) for entry in warned] == ([(room, alice.user_id)] if warns else [])
        assert await ownerless(alice.server) == [room]
        assert (await bob.roles(room))["ownerless"] is True

    tell(servers, story)


def test_closed_accounts(servers: Servers) -> None:
    async def story(world: World) -> None:
        alice, bob, carol, zoe = [await world.person(name) for name in ("alice", "bob", "carol", "zoe")]
        room = await world.room_of(alice, bob, carol)
        alone = await alice.create_room()
        await alice.server.get(Accounts).deactivate(alice.user_id)
        assert await bob.membership(room, alice) == "leave"
        assert await ownerless(alice.server) == [room]
        assert alone not in await ownerless(alice.server)
        assert (await bob.roles(room))["ownerless"] is True

        # The command line closes the account, and leaves the rooms to the running server.
        room = await world.room_of(zoe, bob, carol)
        await zoe.give(room, bob, "owner")
        await close(zoe)
        assert room not in await ownerless(zoe.server)
        await refused_as_last_owner(bob.leave(room))
        await refused_as_last_owner(bob.give(room, bob, "member", confirm=True))
        await close(bob)
        assert room in await ownerless(zoe.server)
        assert (await carol.roles(room))["ownerless"] is True

    tell(servers, story)


async def close(person: Person) -> None:
    """What ``homeserver users deactivate`` does, but for the token."""
    await person.server.get(Database).write(accounts.deactivate_user, person.user_id, 1)


def test_what_other_servers_do_is_taken_and_listed(servers: Servers) -> None:
    async def story(world: World) -> None:
        await world.server(TWO, governance={"last_owner_protection": "off"})
        alice, bob, zoe = await world.person("alice"), await world.person("bob"), await world.person("zoe", TWO)
        room = await world.room_of(alice, bob, zoe)
        await alice.give(room, zoe, "owner")

        async def zoe_knows() -> bool:
            return (await zoe.roles(room))["my_role"] == "owner"

        await eventually(zoe_knows)
        assert "ownerless" not in await bob.roles(room)
        await alice.leave(room)
        await zoe.sees(room, alice, "leave")
        assert await ownerless(bob.server) == []
        await zoe.leave(room)
        await bob.sees(room, zoe, "leave")
        assert await ownerless(bob.server) == [room]
        roles = await bob.roles(room)
        assert (roles["ownerless"], roles["owners"]) == (True, [])
        # Who comes back is Owner again.
        await alice.join(room)
        assert await ownerless(bob.server) == []
        assert (await alice.roles(room))["my_role"] == "owner"
        assert "ownerless" not in await alice.roles(room)

    tell(servers, story)


def test_third_party_invitations_do_not_unseat(servers: Servers) -> None:
    """Matrix lets a valid third-party invitation turn a joined user into an invited one."""

    async def story(world: World) -> None:
        alice, bob = await world.person("alice"), await world.person("bob")
        room = await world.room_of(alice, bob, power_level_content_override={"invite": 0})
        content: JsonObject = signed_third_party_invite(alice.user_id)
        key = {"public_key": content["public_key"], "key_validity_url": "https://x", "display_name": "a"}
        await bob.put_state(room, "m.room.third_party_invite", key, "token")
        invitation = {"membership": "invite", "third_party_invite": content["third_party_invite"]}
        await refused_as_last_owner(bob.put_state(room, "m.room.member", invitation, alice.user_id))
        assert await bob.membership(room, alice) == "join"

    tell(servers, story)


def signed_third_party_invite(mxid: str) -> JsonObject:
    key = generate_signing_key("0")
    signed = sign_json({"mxid": mxid, "token": "token"}, "id.test", key)
    return {
        "public_key": encode_verify_key_base64(get_verify_key(key)),
        "third_party_invite": {"display_name": "a", "signed": signed},
    }
