"""Room upgrades with users of another server in the room: who may, and that everybody finds the new room."""

from __future__ import annotations

import pytest

from tests.interop.client import Json, MatrixClient, quoted
from tests.interop.conftest import Connect, Pair, pairs
from tests.interop.governance import has_role, promote, refused, soon
from tests.interop.rooms import joined, room_of
from tests.interop.servers import Server

pytestmark = pytest.mark.anyio

OWNER, MODERATOR = 100, 50


async def upgrade(client: MatrixClient, room_id: str, version: str = "11") -> str:
    path = f"/v3/rooms/{quoted(room_id)}/upgrade"
    return str((await client.call("POST", path, {"new_version": version}))["replacement_room"])


async def levels(client: MatrixClient, room_id: str) -> Json:
    content: Json = (await client.state(room_id))["m.room.power_levels", ""]["content"]
    return content


async def let_moderators_replace_it(owner: MatrixClient, room_id: str) -> None:
    content = await levels(owner, room_id)
    await owner.set_state(
        room_id, "m.room.power_levels", {**content, "events": {**content["events"], "m.room.tombstone": MODERATOR}}
    )


async def follow(client: MatrixClient, room_id: str, new_id: str, server: Server) -> None:
    """The client sees where the room has gone, and goes there."""
    await client.until(lambda: client.room(room_id).content("m.room.tombstone").get("replacement_room") == new_id)
    assert await client.join(new_id, via=server.server_name) == new_id


async def has_roles(client: MatrixClient, room_id: str, expected: dict[str, int]) -> None:
    """Whom the client's server knows by name in the power levels."""

    async def probe() -> Json:
        return dict((await levels(client, room_id))["users"])

    await soon(probe, expected)


@pairs(home="ours")
async def test_the_only_owner_takes_a_room_along(
    pair: Pair, alice: MatrixClient, bob: MatrixClient, connect: Connect
) -> None:
    carol = await connect(pair.home, "carol")
    room_id = await room_of(alice, carol, bob, preset="public_chat", room_version="11")
    await promote(pair, alice, room_id, carol.user_id, "moderator", MODERATOR)
    await promote(pair, alice, room_id, bob.user_id, "moderator", MODERATOR)
    await let_moderators_replace_it(alice, room_id)
    await refused(upgrade(carol, room_id), "last_owner")
    new_id = await upgrade(alice, room_id)
    await follow(bob, room_id, new_id, pair.home)
    expected = {alice.user_id: OWNER, carol.user_id: MODERATOR, bob.user_id: MODERATOR}
    await has_roles(bob, new_id, expected)
    await joined(alice, new_id, bob)
    await has_role(alice, new_id, bob.user_id, "moderators")
    await has_role(alice, new_id, alice.user_id, "owners")


@pairs(away="ours")
async def test_a_moderator_of_ours_does_not_leave_the_owner_of_another_server_behind(
    pair: Pair, alice: MatrixClient, bob: MatrixClient
) -> None:
    room_id = await room_of(alice, bob, preset="public_chat", room_version="11")
    await promote(pair, alice, room_id, bob.user_id, "moderator", MODERATOR)
    await let_moderators_replace_it(alice, room_id)

    async def may_replace() -> bool:
        return (await levels(bob, room_id))["events"].get("m.room.tombstone") == MODERATOR

    await soon(may_replace, True)
    await refused(upgrade(bob, room_id), "last_owner")
    await promote(pair, alice, room_id, bob.user_id, "owner", OWNER)
    await has_role(bob, room_id, bob.user_id, "owners")
    new_id = await upgrade(bob, room_id)
    await follow(alice, room_id, new_id, pair.away)
    await has_roles(alice, new_id, {alice.user_id: OWNER, bob.user_id: OWNER})
    await joined(bob, new_id, alice)
    for user in (alice, bob):
        await has_role(bob, new_id, user.user_id, "owners")
