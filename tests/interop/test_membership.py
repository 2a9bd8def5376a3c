"""Invitations, their rejection and revocation, bans, kicks, leaving and coming back, across servers."""

from __future__ import annotations

import pytest

from tests.interop.client import MatrixClient, MatrixError
from tests.interop.conftest import Pair
from tests.interop.rooms import invited, joined, room_of, talk_both_ways

pytestmark = pytest.mark.anyio


async def seen_as(client: MatrixClient, room_id: str, member: MatrixClient, membership: str) -> None:
    """``client`` sees that ``member`` has this membership."""
    await client.until(lambda: client.room(room_id).member(member.user_id) == membership)


async def out_of(client: MatrixClient, room_id: str) -> None:
    """``client`` sees that it is not in the room any more."""
    await client.until(lambda: client.room(room_id).membership == "leave")


async def invitation(alice: MatrixClient, bob: MatrixClient) -> str:
    """A room to which alice has invited bob."""
    room_id = await alice.create_room(preset="private_chat", name="Invitation")
    await alice.sync()
    await alice.invite(room_id, bob.user_id)
    await invited(bob, room_id)
    return room_id


async def test_reject(alice: MatrixClient, bob: MatrixClient) -> None:
    room_id = await invitation(alice, bob)
    await bob.leave(room_id)
    await out_of(bob, room_id)
    await seen_as(alice, room_id, bob, "leave")
    event = alice.room(room_id).state["m.room.member", bob.user_id]
    assert event["sender"] == bob.user_id


async def test_reject_while_the_inviting_server_is_down(pair: Pair, alice: MatrixClient, bob: MatrixClient) -> None:
    room_id = await invitation(alice, bob)
    pair.home.kill()
    try:
        await bob.leave(room_id)
        await out_of(bob, room_id)
    finally:
        pair.home.start()
    if pair.away.kind == "ours":  # Synapse does not try again
        await seen_as(alice, room_id, bob, "leave")
        assert alice.room(room_id).state["m.room.member", bob.user_id]["sender"] == bob.user_id


async def test_invite_again_after_rejection(alice: MatrixClient, bob: MatrixClient) -> None:
    room_id = await invitation(alice, bob)
    await bob.leave(room_id)
    await seen_as(alice, room_id, bob, "leave")
    await out_of(bob, room_id)
    await alice.invite(room_id, bob.user_id)
    await invited(bob, room_id)
    await bob.join(room_id)
    await seen_as(alice, room_id, bob, "join")
    await seen_as(bob, room_id, bob, "join")
    await talk_both_ways(alice, bob, room_id)


async def test_revoke(alice: MatrixClient, bob: MatrixClient) -> None:
    room_id = await invitation(alice, bob)
    await alice.kick(room_id, bob.user_id, "changed my mind")
    await out_of(bob, room_id)
    with pytest.raises(MatrixError) as refused:
        await bob.join(room_id)
    assert refused.value.status in (403, 404)
    await alice.invite(room_id, bob.user_id)
    await invited(bob, room_id)


async def test_ban_unban_and_invite_again(alice: MatrixClient, bob: MatrixClient) -> None:
    room_id = await room_of(alice, bob)
    await alice.ban(room_id, bob.user_id, "flooding")
    await out_of(bob, room_id)
    assert bob.room(room_id).content("m.room.member", bob.user_id)["reason"] == "flooding"
    await alice.send(room_id, "not for bob")
    for attempt in (bob.send(room_id, "I am back"), bob.join(room_id), alice.invite(room_id, bob.user_id)):
        with pytest.raises(MatrixError) as refused:
            await attempt
        assert refused.value.status in (403, 404), str(refused.value)
    await alice.unban(room_id, bob.user_id)
    await seen_as(alice, room_id, bob, "leave")
    await alice.invite(room_id, bob.user_id)
    await invited(bob, room_id)
    await bob.join(room_id)
    await seen_as(alice, room_id, bob, "join")
    await seen_as(bob, room_id, bob, "join")
    await talk_both_ways(alice, bob, room_id)


async def test_ban_of_an_invited_user(alice: MatrixClient, bob: MatrixClient) -> None:
    room_id = await invitation(alice, bob)
    await alice.ban(room_id, bob.user_id)
    with pytest.raises(MatrixError) as refused:
        await bob.join(room_id)
    assert refused.value.status in (403, 404)
    await alice.unban(room_id, bob.user_id)
    await alice.invite(room_id, bob.user_id)
    await invited(bob, room_id)
    await bob.join(room_id)
    await seen_as(alice, room_id, bob, "join")


async def test_kick_and_rejoin(alice: MatrixClient, bob: MatrixClient) -> None:
    room_id = await room_of(alice, bob, preset="public_chat")
    await alice.kick(room_id, bob.user_id, "be quiet")
    await out_of(bob, room_id)
    await alice.send(room_id, "while bob is away")
    await bob.join(room_id, via=alice.user_id.partition(":")[2])
    await seen_as(alice, room_id, bob, "join")
    await bob.until(lambda: bob.room(room_id).membership == "join")
    assert "while bob is away" in await bob.message_bodies(room_id)
    await talk_both_ways(alice, bob, room_id)


async def test_leave_and_rejoin(alice: MatrixClient, bob: MatrixClient) -> None:
    room_id = await room_of(alice, bob, preset="public_chat")
    await bob.leave(room_id)
    await out_of(bob, room_id)
    await seen_as(alice, room_id, bob, "leave")
    for number in range(3):
        await alice.send(room_id, f"missed {number}")
        await alice.set_state(room_id, "m.room.topic", {"topic": f"topic {number}"})
    await bob.join(room_id, via=alice.user_id.partition(":")[2])
    await seen_as(alice, room_id, bob, "join")
    await bob.until(lambda: bob.room(room_id).content("m.room.topic") == {"topic": "topic 2"})
    assert {"missed 0", "missed 1", "missed 2"} <= set(await bob.message_bodies(room_id))
    await talk_both_ways(alice, bob, room_id)


async def test_moderator_from_the_other_server(pair: Pair, alice: MatrixClient, bob: MatrixClient) -> None:
    """Bob is made a moderator and bans a third user, of alice's own server."""
    async with MatrixClient(pair.home.base_url) as carol:
        await carol.register(f"carol-{bob.user_id[1:].partition(':')[0]}")
        room_id = await room_of(alice, bob, carol)
        levels = alice.room(room_id).content("m.room.power_levels")
        await alice.set_state(
            room_id, "m.room.power_levels", {**levels, "users": {**levels.get("users", {}), bob.user_id: 50}}
        )
        await bob.until(
            lambda: bob.room(room_id).content("m.room.power_levels").get("users", {}).get(bob.user_id) == 50
        )
        await bob.ban(room_id, carol.user_id)
        await out_of(carol, room_id)
        await seen_as(alice, room_id, carol, "ban")


async def test_invited_by_a_member_of_the_other_server(pair: Pair, alice: MatrixClient, bob: MatrixClient) -> None:
    """Bob invites a second user of alice's server into her room."""
    async with MatrixClient(pair.home.base_url) as carol:
        await carol.register(f"carol-{bob.user_id[1:].partition(':')[0]}")
        room_id = await room_of(alice, bob, power_level_content_override={"invite": 0})
        await bob.invite(room_id, carol.user_id)
        await invited(carol, room_id)
        await carol.join(room_id)
        await joined(bob, room_id, carol)
        await joined(alice, room_id, carol)


async def test_last_member_of_a_server_leaves_and_another_is_invited(
    pair: Pair, alice: MatrixClient, bob: MatrixClient
) -> None:
    """A server that was in the room, and is not any more, joins it again for somebody else."""
    async with MatrixClient(pair.away.base_url) as dora:
        await dora.register(f"dora-{bob.user_id[1:].partition(':')[0]}")
        room_id = await room_of(alice, bob)
        await bob.leave(room_id)
        await seen_as(alice, room_id, bob, "leave")
        await alice.set_state(room_id, "m.room.name", {"name": "Without bob"})
        await alice.invite(room_id, dora.user_id)
        await invited(dora, room_id)
        assert dora.room(room_id).invite_state["m.room.name", ""]["content"]["name"] == "Without bob"
        await dora.join(room_id)
        await joined(alice, room_id, dora)
        await dora.until(lambda: dora.room(room_id).content("m.room.name") == {"name": "Without bob"})
        await talk_both_ways(alice, dora, room_id)
