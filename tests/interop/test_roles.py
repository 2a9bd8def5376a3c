"""Roles, and the last owner, with users on two servers. What our governance API says is asked of ours."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.interop.client import Json, MatrixClient, MatrixError
from tests.interop.conftest import Connect, Fleet, Pair, pairs
from tests.interop.governance import give, has_role, ours, ownerless, promote, refused, roles, soon
from tests.interop.rooms import joined, room_of, talk_both_ways
from tests.interop.servers import OurServer
from tests.interop.test_outages import converge, island

pytestmark = pytest.mark.anyio


def group(found: Json, name: str) -> list[tuple[str, bool]]:
    return [(member["user_id"], member["is_remote"]) for member in found[name]]


async def sees_level(client: MatrixClient, room_id: str, user_id: str, level: int) -> None:
    await client.until(
        lambda: client.room(room_id).content("m.room.power_levels").get("users", {}).get(user_id) == level
    )


# -- roles -------------------------------------------------------------------------------------------------------------


async def test_roles(pair: Pair, alice: MatrixClient, bob: MatrixClient) -> None:
    room_id = await room_of(alice, bob, room_version="11")
    await promote(pair, alice, room_id, bob.user_id, "moderator", 50)
    for client in ours(pair, alice, bob):
        await has_role(client, room_id, bob.user_id, "moderators")
        found = await roles(client, room_id)
        assert group(found, "owners") == [(alice.user_id, client is not alice)]
        assert group(found, "moderators") == [(bob.user_id, client is not bob)]
        assert found["members"] == []
        assert found["my_role"] == ("owner" if client is alice else "moderator")
    if isinstance(pair.away, OurServer):
        await refused(give(bob, room_id, alice.user_id, "member"), "not_owner")
    await promote(pair, alice, room_id, bob.user_id, "owner", 100)
    for client in ours(pair, alice, bob):
        await has_role(client, room_id, bob.user_id, "owners")
        other = bob if client is alice else alice
        await refused(give(client, room_id, other.user_id, "member"), "equal_role")
        with pytest.raises(MatrixError) as asked:
            await give(client, room_id, client.user_id, "member")
        assert (asked.value.status, asked.value.errcode) == (409, "HOMESERVER_LOSING_PRIVILEGES")
    await sees_level(bob, room_id, bob.user_id, 100)


async def test_custom_levels_and_unknown_keys_survive(
    pair: Pair, alice: MatrixClient, bob: MatrixClient, connect: Connect
) -> None:
    """Alice's server sets them; whoever has the governance API then changes somebody else's role, on either side."""
    carol, dora = await connect(pair.home, "carol"), await connect(pair.away, "dora")
    room_id = await room_of(alice, bob, carol, dora, room_version="11")
    before = alice.room(room_id).content("m.room.power_levels")
    levels = {
        **before,
        "users": {alice.user_id: 100, bob.user_id: 100, carol.user_id: 75},
        "notifications": {"room": 60},
        "org.example.kept": {"as": ["it", "is"]},
    }
    await alice.set_state(room_id, "m.room.power_levels", levels)
    actors = ours(pair, alice, bob)
    for actor in actors:
        await has_role(actor, room_id, carol.user_id, "moderators")
        await has_role(actor, room_id, bob.user_id, "owners")
        await give(actor, room_id, dora.user_id, "moderator")
    changed = {**levels, "users": {**levels["users"], dora.user_id: 50}}
    for client in (alice, bob, carol, dora):
        await sees_level(client, room_id, dora.user_id, 50)
        assert client.room(room_id).content("m.room.power_levels") == changed


async def test_creators(pair: Pair, alice: MatrixClient, bob: MatrixClient) -> None:
    """Who has created a room of version 12 is its owner for ever, wherever that user is."""
    room_id = await room_of(alice, bob, room_version="12", creation_content={"additional_creators": [bob.user_id]})
    for client in ours(pair, alice, bob):
        found = await roles(client, room_id)
        assert {(m["user_id"], m["is_creator"], m["is_remote"]) for m in found["owners"]} == {
            (alice.user_id, True, client is not alice),
            (bob.user_id, True, client is not bob),
        }
        await refused(give(client, room_id, (bob if client is alice else alice).user_id, "member"), "creator")


async def test_owners_of_two_servers_change_roles_at_the_same_moment(fleet: Fleet, connect: Connect) -> None:
    """Of two power levels events one holds; the change that is lost is made again, once, by the server that lost it."""
    async with island(fleet, "ours ours") as (servers, cables):
        alice, carol = await connect(servers[0], "alice"), await connect(servers[0], "carol")
        bob, dora = await connect(servers[1], "bob"), await connect(servers[1], "dora")
        room_id = await room_of(alice, bob, carol, dora, preset="public_chat", room_version="11")
        await give(alice, room_id, bob.user_id, "owner")
        await has_role(bob, room_id, bob.user_id, "owners")
        for cable in cables:
            cable.pull()
        await give(alice, room_id, carol.user_id, "moderator")
        await give(bob, room_id, dora.user_id, "owner")
        assert dora.user_id not in [member["user_id"] for member in (await roles(alice, room_id))["owners"]]
        for cable in cables:
            cable.plug_in()
        for client in (alice, bob):  # whose server waits before it tries again hears that the other is there
            await client.send(room_id, "we are back")
        for client in (alice, bob):
            await has_role(client, room_id, carol.user_id, "moderators")
            await has_role(client, room_id, dora.user_id, "owners")
        await talk_both_ways(alice, bob, room_id)
        await converge((alice, bob), room_id)
        sent = [event["sender"] for event in await alice.history(room_id) if event["type"] == "m.room.power_levels"]
        assert sent.count(alice.user_id) + sent.count(bob.user_id) == 5  # the first, Bob's role, both, and one again


# -- the last owner ----------------------------------------------------------------------------------------------------


@pairs(home="ours")
async def test_others_of_another_server_would_be_left_behind(
    pair: Pair, alice: MatrixClient, bob: MatrixClient
) -> None:
    room_id = await room_of(alice, bob, room_version="11")
    levels = alice.room(room_id).content("m.room.power_levels")
    for attempt in (
        alice.leave(room_id),
        give(alice, room_id, alice.user_id, "member", confirm=True),
        alice.set_state(room_id, "m.room.power_levels", {**levels, "users": {}}),
        alice.kick(room_id, alice.user_id),
    ):
        await refused(attempt, "last_owner")
    await give(alice, room_id, bob.user_id, "owner")
    await alice.leave(room_id)
    await bob.until(lambda: bob.room(room_id).member(alice.user_id) == "leave")


@pairs(away="ours")
async def test_last_owner_of_a_room_that_another_server_has_made(
    pair: Pair, alice: MatrixClient, bob: MatrixClient
) -> None:
    room_id = await room_of(alice, bob, room_version="11")
    await promote(pair, alice, room_id, bob.user_id, "owner", 100)
    await has_role(bob, room_id, bob.user_id, "owners")
    levels = (await alice.state(room_id))["m.room.power_levels", ""]["content"]
    await alice.set_state(room_id, "m.room.power_levels", {**levels, "users": {bob.user_id: 100}})
    await has_role(bob, room_id, alice.user_id, "members")
    await refused(bob.leave(room_id), "last_owner")
    await refused(bob.set_state(room_id, "m.room.power_levels", {**levels, "users": {}}), "last_owner")
    await give(bob, room_id, alice.user_id, "owner")
    await give(bob, room_id, bob.user_id, "member", confirm=True)
    await sees_level(alice, room_id, alice.user_id, 100)
    await has_role(bob, room_id, bob.user_id, "members")
    await bob.leave(room_id)


@pairs(home="ours", away="synapse")
async def test_the_other_server_takes_the_last_owner_away(
    pair: Pair, alice: MatrixClient, bob: MatrixClient, connect: Connect
) -> None:
    """What cannot be refused is listed, and marked; whoever comes back is owner again."""
    assert isinstance(pair.home, OurServer)
    carol = await connect(pair.home, "carol")
    room_id = await room_of(alice, bob, carol, room_version="11", preset="public_chat")
    await give(alice, room_id, bob.user_id, "owner")
    await sees_level(bob, room_id, bob.user_id, 100)
    await alice.leave(room_id)
    await bob.until(lambda: bob.room(room_id).member(alice.user_id) == "leave")
    assert room_id not in ownerless(pair.home)
    await bob.leave(room_id)
    await carol.until(lambda: carol.room(room_id).member(bob.user_id) == "leave")
    found = await roles(carol, room_id)
    assert (found["ownerless"], found["owners"]) == (True, [])
    assert room_id in ownerless(pair.home)
    shown = json.loads(pair.home.command_line("rooms", "show", room_id, "--json"))
    assert [user["user_id"] for user in shown["could_have_prevented"]] == [alice.user_id]
    assert shown["could_have_prevented"][0]["is_owner_on_return"] is True
    await alice.join(room_id)
    assert "ownerless" not in await roles(alice, room_id)
    assert room_id not in ownerless(pair.home)


@pairs(home="ours", away="ours")
async def test_owners_of_two_servers_leave_at_the_same_moment(
    pair: Pair, alice: MatrixClient, bob: MatrixClient, connect: Connect
) -> None:
    """Neither server knows of the other in time: both let their owner go, and both list the room."""
    carol, dora = await connect(pair.home, "carol"), await connect(pair.away, "dora")
    room_id = await room_of(alice, bob, carol, dora, room_version="11", preset="public_chat")
    await give(alice, room_id, bob.user_id, "owner")
    await has_role(bob, room_id, bob.user_id, "owners")
    pair.away.kill()
    try:
        await alice.leave(room_id)
        pair.home.kill()
        pair.away.start()
        await bob.leave(room_id)
    finally:
        pair.home.start()
    for client, server in ((carol, pair.home), (dora, pair.away)):

        async def marked(client: MatrixClient = client) -> Any:
            return (await roles(client, room_id)).get("ownerless")

        await soon(marked, True)
        assert room_id in ownerless(server)
    await alice.join(room_id)
    await joined(dora, room_id, alice)
