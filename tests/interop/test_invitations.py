"""Where invitations stand, on two servers and on five. What our governance API says is asked of ours."""

from __future__ import annotations

import pytest

from tests.interop.client import MatrixClient, MatrixError
from tests.interop.conftest import Connect, Fleet, Pair, pairs
from tests.interop.governance import governed, ours, revoke, soon, statuses
from tests.interop.rooms import ARRIVE_SECONDS_MAX, everything_arrives, invited, joined, room_of
from tests.interop.servers import OurServer

pytestmark = pytest.mark.anyio

FIVE_SERVERS = ("ours", "synapse", "ours2", "synapse2", "ours3")


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
            await soon(lambda witness=witness: statuses(witness, room_id), expected)

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


# -- servers that are down ---------------------------------------------------------------------------------------------


@pairs(home="ours")
async def test_invited_server_is_down(pair: Pair, alice: MatrixClient, bob: MatrixClient) -> None:
    room_id = await alice.create_room(preset="private_chat")
    before = (await alice.state(room_id)).keys()
    pair.away.kill()
    try:
        with pytest.raises(MatrixError) as caught:
            await alice.invite(room_id, bob.user_id)
        assert caught.value.status in (502, 504)
        assert pair.away.server_name in caught.value.body["error"]
        assert await statuses(alice, room_id) == {}
        assert (await alice.state(room_id)).keys() == before
    finally:
        pair.away.start()
    await alice.invite(room_id, bob.user_id)
    await invited(bob, room_id)
    await bob.join(room_id)
    await joined(alice, room_id, bob)


async def test_revoked_while_the_invited_server_is_down(pair: Pair, alice: MatrixClient, bob: MatrixClient) -> None:
    room_id = await alice.create_room(preset="private_chat")
    await alice.invite(room_id, bob.user_id)
    await invited(bob, room_id)
    pair.away.kill()
    try:
        if isinstance(pair.home, OurServer):
            await revoke(alice, room_id, bob.user_id)
            assert await statuses(alice, room_id) == {bob.user_id: "revoked"}
        else:
            await alice.kick(room_id, bob.user_id)
    finally:
        pair.away.start()
    # It hears of it as soon as the two servers speak again.
    await bob.profile(alice.user_id)
    await bob.until(lambda: bob.room(room_id).membership == "leave", ARRIVE_SECONDS_MAX)
    with pytest.raises(MatrixError):
        await bob.join(room_id, via=pair.home.server_name)


@pairs(away="ours")
async def test_inviting_server_is_gone(pair: Pair, alice: MatrixClient, bob: MatrixClient) -> None:
    """The invitation cannot be accepted, and the error says why; the user gets rid of it."""
    room_id = await alice.create_room(preset="private_chat")
    await alice.invite(room_id, bob.user_id)
    await invited(bob, room_id)
    pair.home.kill()
    try:
        with pytest.raises(MatrixError) as caught:
            await bob.join(room_id)
        assert caught.value.status in (502, 504)
        assert pair.home.server_name in caught.value.body["error"]
        await bob.sync()
        assert bob.room(room_id).membership == "invite"
        await bob.leave(room_id)
        await bob.until(lambda: bob.room(room_id).membership == "leave")
        bob.since, bob.rooms = None, {}
        await bob.sync()
        assert room_id not in bob.rooms
    finally:
        pair.home.start()


# -- what the invited user reads, and who is invited -------------------------------------------------------------------


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


@pytest.mark.parametrize("host", ["ours", "synapse"])
async def test_group_direct_message_of_five_servers(host: str, fleet: Fleet, connect: Connect) -> None:
    """Each who comes reads all that was said before, also by others who were invited, and all know of all."""
    names = sorted(FIVE_SERVERS, key=lambda name: name != host)
    alice, *others = everybody = [await connect(fleet.running(name), f"on-{name}") for name in names]
    room_id = await alice.create_room(
        preset="trusted_private_chat", is_direct=True, invite=[other.user_id for other in others]
    )
    said = [f"while all are pending {number}" for number in range(3)]
    for text in said:
        await alice.send(room_id, text)
    for other in others:
        await invited(other, room_id)
        invitation = other.room(room_id).invite_state["m.room.member", other.user_id]
        assert (invitation["sender"], invitation["content"]["is_direct"]) == (alice.user_id, True)
    for other in others:
        await other.join(room_id)
        await other.until(lambda other=other: other.room(room_id).membership == "join")
        await everything_arrives(other, room_id, set(said))
        said.append(f"{other.user_id} is here")
        await other.send(room_id, said[-1])
        await alice.until(lambda: said[-1] in alice.bodies(room_id))
    for client in everybody:
        await everything_arrives(client, room_id, set(said))
        await soon(lambda client=client: client.joined_members(room_id), {c.user_id for c in everybody})
    for client, name in zip(everybody, names, strict=True):
        if name.startswith("ours"):
            accepted = {other.user_id: "accepted" for other in others}
            await soon(lambda client=client: statuses(client, room_id), accepted)
    await others[-1].send(room_id, "we are all here")
    for client in everybody:
        await client.until(lambda client=client: "we are all here" in client.bodies(room_id))


async def test_rooms_that_are_closed_to_other_servers(
    pair: Pair, alice: MatrixClient, bob: MatrixClient, connect: Connect
) -> None:
    carol = await connect(pair.home, "carol")
    room_id = await alice.create_room(preset="public_chat", creation_content={"m.federate": False})
    with pytest.raises(MatrixError) as caught:
        await alice.invite(room_id, bob.user_id)
    assert (caught.value.status, caught.value.errcode) == (403, "M_FORBIDDEN")
    if isinstance(pair.home, OurServer):
        assert "closed to other servers" in caught.value.body["error"]
        assert await statuses(alice, room_id) == {}
    with pytest.raises(MatrixError) as caught:
        await bob.join(room_id, via=pair.home.server_name)
    assert caught.value.status in (403, 404)
    await bob.sync()
    assert bob.room(room_id).membership == ""
    await carol.join(room_id)
    assert await alice.joined_members(room_id) == {alice.user_id, carol.user_id}
