"""Signing keys that change while servers talk."""

from __future__ import annotations

import pytest

from tests.interop.conftest import Connect, Fleet
from tests.interop.rooms import room_of, talk_both_ways
from tests.interop.servers import OurServer

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("other", ["synapse", "ours2"])
async def test_rotation(other: str, fleet: Fleet, connect: Connect) -> None:
    """Others take what the new key signs, and still what the old one has signed."""
    ours, remote = fleet.running("ours"), fleet.running(other)
    assert isinstance(ours, OurServer)
    alice, bob, late = await connect(ours, "alice"), await connect(remote, "bob"), await connect(remote, "late")
    room_id = await room_of(alice, bob, preset="public_chat")
    await alice.send(room_id, "signed with the old key")
    ours.command_line("keys", "rotate")
    ours.restart()
    await talk_both_ways(alice, bob, room_id)
    another = await room_of(alice, bob)
    await talk_both_ways(alice, bob, another)
    await late.join(room_id, via=ours.server_name)
    assert "signed with the old key" in await late.message_bodies(room_id)
