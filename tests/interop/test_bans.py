"""Bans, with users on two servers. What our governance API says is asked of ours."""

from __future__ import annotations

from typing import Any

import pytest

from tests.interop.client import MatrixClient, MatrixError
from tests.interop.conftest import Connect, Fleet, Pair
from tests.interop.governance import bans, ours, soon
from tests.interop.rooms import ARRIVE_SECONDS_MAX, invited, joined, room_of
from tests.interop.servers import OurServer

pytestmark = pytest.mark.anyio


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


async def test_banned_while_the_server_of_the_user_is_down(pair: Pair, alice: MatrixClient, bob: MatrixClient) -> None:
    await ban_while_down(pair, alice, bob)


@pytest.mark.parametrize("other", ["ours", "synapse"])
async def test_banned_in_a_long_outage(other: str, fleet: Fleet, connect: Connect) -> None:
    """Then our server sends the ban only; the other fetches what came before, though it is out of the room by now."""
    constants = {"homeserver.federation.destination_queue.CATCH_UP_AFTER_MS": 0}
    with fleet.visiting(f"catches-{other}-up", constants=constants) as home:
        pair = Pair(home, fleet.running(other))
        await ban_while_down(pair, await connect(pair.home, "alice"), await connect(pair.away, "bob"))


async def ban_while_down(pair: Pair, alice: MatrixClient, bob: MatrixClient) -> None:
    """Bob's server hears of the ban when it is back, though it is not in the room any more, and of nothing after it."""
    room_id = await room_of(alice, bob, room_version="11", preset="public_chat")
    for_bob = [f"bob may read this {number}" for number in range(3)]
    pair.away.kill()
    try:
        for text in for_bob:
            await alice.send(room_id, text)
        await alice.ban(room_id, bob.user_id, "flooding")
        await alice.send(room_id, "not for bob")
    finally:
        pair.away.start()
    await bob.profile(alice.user_id)  # whose server is heard of again is tried again
    await bob.until(lambda: bob.room(room_id).membership == "leave", ARRIVE_SECONDS_MAX)
    last = bob.room(room_id).timeline[-1]
    assert (last["sender"], last["content"]) == (alice.user_id, {"membership": "ban", "reason": "flooding"})
    with pytest.raises(MatrixError) as caught:
        await bob.join(room_id, via=pair.home.server_name)
    assert caught.value.status == 403
    assert bob.bodies(room_id) == for_bob
    await alice.unban(room_id, bob.user_id)
    await bob.join(room_id, via=pair.home.server_name)
    await joined(alice, room_id, bob)
