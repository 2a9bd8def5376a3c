"""Receipts and typing notices of other servers."""

from __future__ import annotations

from collections.abc import Iterator

from homeserver.protocol.json_types import JsonObject
from tests.abuse.attack import attack
from tests.abuse.remote import RemoteServer
from tests.abuse.stage import MIB, Stage

EDUS_PER_TRANSACTION = 100


def receipt(event_id: str, **data: object) -> JsonObject:
    """Of one user, for one event."""
    return {"event_ids": [event_id], "data": {"ts": 1, **data}}


@attack(quick=True, databases=("sqlite", "postgresql"))
def receipts_in_rooms_that_nobody_knows(stage: Stage) -> Iterator[None]:
    """One transaction with a receipt in each of 8,000 rooms that do not exist, and typing in 99 others."""
    mallory = stage.remote()
    user_id = f"@mallory:{mallory.server_name}"
    rooms = {f"!{number}:nowhere.example": {"m.read": {user_id: receipt("$x")}} for number in range(8_000)}
    typing = [
        {"edu_type": "m.typing", "content": {"room_id": room_id, "user_id": user_id, "typing": True}}
        for room_id in list(rooms)[: EDUS_PER_TRANSACTION - 1]
    ]
    yield
    mallory.send(stage.server, edus=[{"edu_type": "m.receipt", "content": rooms}, *typing])


def _invented_threads(mallory: RemoteServer, room_id: str, user_id: str, event_id: str, first: int) -> list[JsonObject]:
    return [
        {
            "edu_type": "m.receipt",
            "content": {room_id: {"m.read": {user_id: receipt(event_id, thread_id=f"${number:043d}")}}},
        }
        for number in range(first, first + EDUS_PER_TRANSACTION)
    ]


@attack(databases=("sqlite", "postgresql"), rows_max=300)
def receipts_in_threads_that_do_not_exist(stage: Stage) -> Iterator[None]:
    """5,000 receipts of one user of another server, each in a thread of its own."""
    mallory, victim = stage.remote(), stage.user()
    room = mallory.room()
    mallory.let_join(victim, room)
    creator = room.user("creator")
    event_id = room.extremities[0]
    transactions = [
        _invented_threads(mallory, room.room_id, creator, event_id, first) for first in range(0, 5_000, 100)
    ]
    yield
    for edus in transactions:
        mallory.send(stage.server, edus=edus)
    first_sync = victim.call("GET", "/sync")
    assert len(first_sync.body) < MIB / 4, f"the first sync of somebody in the room has {len(first_sync.body)} bytes"
