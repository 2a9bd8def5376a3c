"""Room upgrades where the old room uses a policy server."""

from __future__ import annotations

import asyncio

import pytest

from homeserver.errors import NotRecommended
from homeserver.protocol.room_versions import ROOM_VERSIONS
from homeserver.rooms.old_rooms import UpgradeRequest
from homeserver.rooms.upgrades import RoomUpgrades
from homeserver.storage.database import Database
from homeserver.storage.integrity import find_problems
from tests.fakes.servers import Servers
from tests.graph.test_sending_with_a_policy_server import Scene, play

BOTH_WAYS = pytest.mark.parametrize(("old_version", "new_version"), [("1", "11"), ("11", "12"), ("12", "11")])


async def upgrade(at: Scene, version: str) -> str:
    return await at.ours.get(RoomUpgrades).upgrade(UpgradeRequest(at.alice, at.room_id, ROOM_VERSIONS[version]))


async def check(at: Scene, new: str) -> None:
    """Both rooms are as they should be, and the end of the old one is signed."""
    head = await at.ours.head(at.room_id)
    for event_type in ("m.room.tombstone", "m.room.power_levels"):
        stored = await at.ours.event(head.state[event_type, ""])
        assert stored is not None
        assert at.is_recommended(stored.event)
    assert (await at.ours.get_state(head, "m.room.tombstone"))["replacement_room"] == new
    assert (await at.ours.get_state(head, "m.room.power_levels"))["events_default"] == 50
    created = await at.ours.head(new)
    predecessor = (await at.ours.get_state(created, "m.room.create"))["predecessor"]
    assert predecessor["room_id"] == at.room_id
    assert predecessor.get("event_id") in (None, head.state["m.room.tombstone", ""])
    assert ("m.room.policy", "") not in created.state
    assert await at.ours.get(Database).read(find_problems) == []


@BOTH_WAYS
def test_the_end_of_the_old_room_is_signed(servers: Servers, old_version: str, new_version: str) -> None:
    async def story(at: Scene) -> None:
        new = await upgrade(at, new_version)
        assert [pdu["type"] for pdu in at.policy.asked] == ["m.room.tombstone", "m.room.power_levels"]
        await check(at, new)

    play(servers, story, old_version)


@BOTH_WAYS
def test_the_room_goes_on_meanwhile(servers: Servers, old_version: str, new_version: str) -> None:
    async def story(at: Scene) -> None:
        asked, held = at.policy.hold()
        upgrading = asyncio.create_task(upgrade(at, new_version))
        await asked.wait()
        at.policy.judge = None
        await at.send("meanwhile")
        held.set()
        await check(at, await upgrading)

    play(servers, story, old_version)


def test_a_refusal_leaves_everything_as_it_was(servers: Servers) -> None:
    async def story(at: Scene) -> None:
        tip = await at.extremities()
        at.policy.refuse(containing="replacement_room")
        with pytest.raises(NotRecommended):
            await upgrade(at, "12")
        assert await at.extremities() == tip

    play(servers, story)
