"""Roles, invitations, bans and receipts, with users on two servers. What our governance API says is asked of ours."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.interop.client import MatrixClient, MatrixError
from tests.interop.conftest import Connect, Pair
from tests.interop.governance import bans, give, governed, readers, revoke, roles, soon, statuses
from tests.interop.rooms import invited, joined, room_of
from tests.interop.servers import OurServer, Server

pytestmark = pytest.mark.anyio

LAST_OWNER = "This is the last owner. Please set a new owner before removing this one."


def ours(pair: Pair, alice: MatrixClient, bob: MatrixClient) -> list[MatrixClient]:
    """Those of the two whose server has the governance API."""
    return [client for client, server in ((alice, pair.home), (bob, pair.away)) if isinstance(server, OurServer)]


def group(found: dict[str, Any], name: str) -> list[tuple[str, bool]]:
    return [(member["user_id"], member["is_remote"]) for member in found[name]]


async def promote(pair: Pair, alice: MatrixClient, room_id: str, user_id: str, role: str, level: int) -> None:
    """Alice gives somebody a role, by what her server offers for that."""
    if isinstance(pair.home, OurServer):
        await give(alice, room_id, user_id, role)
        return
    levels = (await alice.state(room_id))["m.room.power_levels", ""]["content"]
    users = {**levels.get("users", {}), user_id: level}
    await alice.set_state(room_id, "m.room.power_levels", {**levels, "users": users})


async def has_role(client: MatrixClient, room_id: str, user_id: str, name: str) -> None:
    """The client's server has come to know of a role."""

    async def probe() -> bool:
        return user_id in [member["user_id"] for member in (await roles(client, room_id))[name]]

    await soon(probe, True)


async def refused(attempt: Any, reason: str) -> None:
    with pytest.raises(MatrixError) as caught:
        await attempt
    assert (caught.value.status, caught.value.errcode) == (403, "M_FORBIDDEN")
    assert caught.value.body["reason"] == reason
    assert reason != "last_owner" or caught.value.body["error"] == LAST_OWNER


def ownerless(server: Server) -> list[str]:
    assert isinstance(server, OurServer)
    return [room["room_id"] for room in json.loads(server.command_line("rooms", "ownerless", "--json"))]


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
    await promote(pair, alice, room_id, bob.user_id, "owner", 100)
    for client in ours(pair, alice, bob):
        await has_role(client, room_id, bob.user_id, "owners")
        other = bob if client is alice else alice
        await refused(give(client, room_id, other.user_id, "member"), "equal_role")
    await bob.until(lambda: bob.room(room_id).content("m.room.power_levels")["users"].get(bob.user_id) == 100)


async def test_last_owner(pair: Pair, alice: MatrixClient, bob: MatrixClient) -> None:
    """Who is left behind is on the other server; then it is the other way round."""
    room_id = await room_of(alice, bob, room_version="11")
    if isinstance(pair.home, OurServer):
        await refused(alice.leave(room_id), "last_owner")
        await refused(give(alice, room_id, alice.user_id, "member", confirm=True), "last_owner")
        levels = alice.room(room_id).content("m.room.power_levels")
        await refused(alice.set_state(room_id, "m.room.power_levels", {**levels, "users": {}}), "last_owner")
    await promote(pair, alice, room_id, bob.user_id, "owner", 100)
    await bob.until(lambda: bob.room(room_id).content("m.room.power_levels")["users"].get(bob.user_id) == 100)
    if isinstance(pair.away, OurServer):
        levels = bob.room(room_id).content("m.room.power_levels")
        await has_role(bob, room_id, bob.user_id, "owners")
        users = {alice.user_id: 100}  # its own role may go, for there is another owner
        await bob.set_state(room_id, "m.room.power_levels", {**levels, "users": users})
        await has_role(bob, room_id, bob.user_id, "members")
        if isinstance(pair.home, OurServer):
            await has_role(alice, room_id, bob.user_id, "members")
            await refused(alice.leave(room_id), "last_owner")


async def test_the_other_server_takes_the_last_owner_away(
    pair: Pair, alice: MatrixClient, bob: MatrixClient, connect: Connect
) -> None:
    """What cannot be refused is listed, and marked; whoever comes back is owner again."""
    if not isinstance(pair.home, OurServer) or pair.away.kind != "Synapse":
        pytest.skip("both would refuse it, or nobody would list it")
    carol = await connect(pair.home, "carol")
    room_id = await room_of(alice, bob, carol, room_version="11", preset="public_chat")
    await give(alice, room_id, bob.user_id, "owner")
    await bob.until(lambda: bob.room(room_id).content("m.room.power_levels")["users"].get(bob.user_id) == 100)
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


# -- invitations -------------------------------------------------------------------------------------------------------


async def test_where_invitations_stand(pair: Pair, alice: MatrixClient, bob: MatrixClient, connect: Connect) -> None:
    carol, dora, emil = [await connect(pair.away, name) for name in ("carol", "dora", "emil")]
    room_id = await room_of(alice, bob, room_version="11")
    witnesses = ours(pair, alice, bob)
    for guest in (carol, dora, emil):
        await alice.invite(room_id, guest.user_id)
        await invited(guest, room_id)
    expected = {bob.user_id: "accepted"} | dict.fromkeys((g.user_id for g in (carol, dora, emil)), "pending")

    async def all_know() -> None:
        for witness in witnesses:
            await soon(lambda witness=witness: statuses(witness, room_id), expected)  # type: ignore[misc]

    await all_know()
    await carol.join(room_id)
    expected[carol.user_id] = "accepted"
    await dora.leave(room_id)
    expected[dora.user_id] = "rejected"
    await all_know()
    if isinstance(pair.home, OurServer):
        await revoke(alice, room_id, emil.user_id, "a mistake")
    else:
        await alice.kick(room_id, emil.user_id, "a mistake")
    expected[emil.user_id] = "revoked"
    await all_know()
    await emil.until(lambda: emil.room(room_id).membership == "leave")
    for witness in witnesses:
        found = (await governed(witness, "GET", room_id, "invitations"))["invitations"]
        (mine,) = [invitation for invitation in found if invitation["user_id"] == emil.user_id]
        assert (mine["invited_by"], mine["reason"]) == (alice.user_id, "a mistake")
        assert mine["updated_at"] > mine["invited_at"]
    await alice.invite(room_id, dora.user_id)
    await invited(dora, room_id)
    expected[dora.user_id] = "pending"
    await all_know()
    await alice.ban(room_id, dora.user_id, "after all")
    expected[dora.user_id] = "revoked"
    await all_know()
    # A revoked or rejected invitation touches no one but its user.
    await carol.send(room_id, "I am still here")
    await bob.until(lambda: "I am still here" in bob.bodies(room_id))


async def test_invited_server_is_down(pair: Pair, alice: MatrixClient, bob: MatrixClient) -> None:
    if not isinstance(pair.home, OurServer):
        pytest.skip("it is our server that has to be clear about it")
    room_id = await alice.create_room(preset="private_chat")
    pair.away.kill()
    try:
        with pytest.raises(MatrixError) as caught:
            await alice.invite(room_id, bob.user_id)
        assert caught.value.status in (502, 504)
        assert pair.away.server_name in caught.value.body["error"]
        assert await statuses(alice, room_id) == {}
    finally:
        pair.away.start()
    await alice.invite(room_id, bob.user_id)
    await invited(bob, room_id)
    pair.away.kill()
    await revoke(alice, room_id, bob.user_id)
    assert await statuses(alice, room_id) == {bob.user_id: "revoked"}
    pair.away.start()
    # It hears of it as soon as the two servers speak again.
    await bob.profile(alice.user_id)
    await bob.until(lambda: bob.room(room_id).membership == "leave", 60)


@pytest.mark.parametrize(("visibility", "readable"), [("shared", 3), ("invited", 2), ("joined", 0)])
async def test_messages_while_the_invitation_is_pending(
    alice: MatrixClient, bob: MatrixClient, visibility: str, readable: int
) -> None:
    history = {"type": "m.room.history_visibility", "content": {"history_visibility": visibility}}
    room_id = await alice.create_room(preset="private_chat", initial_state=[history], room_version="11")
    await alice.send(room_id, "before")
    await alice.invite(room_id, bob.user_id)
    await alice.send(room_id, "while pending 0")
    await alice.send(room_id, "while pending 1")
    await invited(bob, room_id)
    await bob.join(room_id)
    await bob.until(lambda: bob.room(room_id).membership == "join")
    assert await bob.message_bodies(room_id) == ["before", "while pending 0", "while pending 1"][3 - readable :]


async def test_rooms_that_are_closed_to_other_servers(alice: MatrixClient, bob: MatrixClient) -> None:
    room_id = await alice.create_room(preset="private_chat", creation_content={"m.federate": False})
    with pytest.raises(MatrixError) as caught:
        await alice.invite(room_id, bob.user_id)
    assert caught.value.status == 403


# -- bans --------------------------------------------------------------------------------------------------------------


async def test_bans(pair: Pair, alice: MatrixClient, bob: MatrixClient, connect: Connect) -> None:
    carol, stranger = await connect(pair.away, "carol"), await connect(pair.away, "stranger")
    room_id = await room_of(alice, bob, carol, room_version="11", preset="public_chat")
    await alice.ban(room_id, carol.user_id, "flooding")
    await alice.ban(room_id, stranger.user_id, "known elsewhere")
    expected = [
        (stranger.user_id, alice.user_id, "known elsewhere"),
        (carol.user_id, alice.user_id, "flooding"),
    ]

    def told(client: MatrixClient) -> Any:
        async def probe() -> list[tuple[str, str, str]]:
            return [(ban["user_id"], ban["banned_by"], ban["reason"]) for ban in await bans(client, room_id)]

        return probe

    for client in ours(pair, alice, bob):
        await soon(told(client), expected)
    await carol.until(lambda: carol.room(room_id).membership == "leave")
    last = carol.room(room_id).timeline[-1]
    assert last["content"] == {"membership": "ban", "reason": "flooding"}
    await alice.send(room_id, "not for carol")
    await bob.until(lambda: "not for carol" in bob.bodies(room_id))
    await carol.sync()
    assert carol.room(room_id).timeline[-1] == last
    for outcast in (carol, stranger):
        with pytest.raises(MatrixError) as caught:
            await outcast.join(room_id, via=pair.home.server_name)
        assert caught.value.status in (403, 404)
        with pytest.raises(MatrixError) as caught:
            await alice.invite(room_id, outcast.user_id)
        assert caught.value.status == 403
        if isinstance(pair.home, OurServer):
            assert (caught.value.errcode, caught.value.body["reason"]) == ("M_FORBIDDEN", "banned")
    await alice.unban(room_id, carol.user_id)
    for client in ours(pair, alice, bob):
        await soon(told(client), expected[:1])
    await bob.until(lambda: bob.room(room_id).member(carol.user_id) == "leave")
    await carol.sync()  # Synapse forgets an invitation that comes while it tells of the end of the ban
    await alice.invite(room_id, carol.user_id)
    await invited(carol, room_id)
    # Synapse cannot make a join of an invitation that it was asked to sign, but that has not come to the room yet.
    await bob.until(lambda: bob.room(room_id).member(carol.user_id) == "invite")
    await carol.join(room_id)
    await joined(alice, room_id, carol)


# -- receipts and typing -----------------------------------------------------------------------------------------------


async def test_receipts_and_typing(pair: Pair, alice: MatrixClient, bob: MatrixClient) -> None:
    room_id = await room_of(alice, bob, room_version="11")
    first = await alice.send(room_id, "first")
    second = await alice.send(room_id, "second")
    await bob.until(lambda: "second" in bob.bodies(room_id))
    await bob.read(room_id, second)
    for client in ours(pair, alice, bob):

        async def who(client: MatrixClient = client) -> list[str]:
            return list(await readers(client, room_id, first))

        await soon(who, [bob.user_id])
    times = [(await readers(client, room_id, second))[bob.user_id] for client in ours(pair, alice, bob)]
    assert len(set(times)) == 1
    await bob.typing(room_id)
    await alice.until(lambda: alice.room(room_id).typing == {bob.user_id})
    await bob.typing(room_id, typing=False)
    await alice.until(lambda: alice.room(room_id).typing == set())
