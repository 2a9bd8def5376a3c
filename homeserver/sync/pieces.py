"""Parts of an answer that are made the same way whether they come from memory or from the database."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import orjson

from homeserver.ephemeral.receipts import receipt_content, split_by_thread
from homeserver.protocol.events import Event
from homeserver.protocol.json_types import JsonObject
from homeserver.storage.event_graph import StoredEvent
from homeserver.storage.receipts import StoredReceipt
from homeserver.sync.rendering import event_bytes
from homeserver.sync.sent_members import Members
from homeserver.sync.updates import RoomUpdate, SyncRequest


def allows_ephemeral(request: SyncRequest, event_type: str, room_id: str) -> bool:
    """Whether the filter lets an ephemeral event of a room through."""
    return request.filter.room.ephemeral.allows(event_type, None, room_id, {})


def receipt_events(request: SyncRequest, room_id: str, receipts: Sequence[StoredReceipt]) -> list[bytes]:
    """The m.receipt events that tell of receipts, which are in the order of their positions."""
    if not receipts or not allows_ephemeral(request, "m.receipt", room_id):
        return []
    # Somebody may have read on within the window: only the last word of each counts.
    newest = {(receipt.receipt_type, receipt.user_id, receipt.thread_id): receipt for receipt in receipts}
    batches = split_by_thread(newest.values())
    return [event_bytes("m.receipt", orjson.dumps(receipt_content(batch))) for batch in batches]


def is_name(event: Event) -> bool:
    """Whether a state event gives its room a name, so that clients need not make up one from the members.

    Heroes are "required if the room's m.room.name or m.room.canonical_alias state events are unset or empty".
    """
    return bool(event.content.get("name" if event.type == "m.room.name" else "alias"))


def summary(joined: int, invited: int, heroes: Sequence[str] | None) -> JsonObject:
    """A room's summary, with heroes if it has no name."""
    found: JsonObject = {"m.joined_member_count": joined, "m.invited_member_count": invited}
    if heroes is not None:
        found["m.heroes"] = list(heroes)
    return found


def member_events(stored: Iterable[StoredEvent]) -> Members:
    """The member events among some events: numeric IDs by user, of several the last."""
    return {
        event.event.state_key: event.event_nid
        for event in stored
        if event.event.type == "m.room.member" and event.event.state_key is not None
    }


def members_in(update: RoomUpdate, *, state_after: bool) -> Members:
    """What a client that gets this update knows of the members then."""
    in_timeline = member_events(seen.stored for seen in update.timeline)
    in_state = member_events(update.state)
    return {**in_timeline, **in_state} if state_after else {**in_state, **in_timeline}
