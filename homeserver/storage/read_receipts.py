"""Who has read up to an event of a room, or past it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import Connection, and_, func, select

from homeserver.storage.tables import events, receipts, room_members


@dataclass(frozen=True, slots=True)
class ReceiptPast:
    """A receipt at an event or at a later one."""

    user_id: str
    thread_id: str
    """``''`` for an unthreaded one."""
    event_id: str
    ts: int
    position: int
    display_name: str | None
    member_position: int | None
    """The position of the user's present member event; None if it came with the state of the room."""


_named = events.alias("named")
_member_events = events.alias("member_events")
_BY_NAME = select(_named.c.event_nid).where(_named.c.event_id == receipts.c.event_id).scalar_subquery()
"""A receipt may come before its event."""
_PAST = (
    select(
        receipts.c.user_id,
        receipts.c.thread_id,
        receipts.c.event_id,
        receipts.c.ts,
        receipts.c.position,
        room_members.c.display_name,
        _member_events.c.stream_position,
    )
    .join_from(receipts, events, events.c.event_nid == func.coalesce(receipts.c.event_nid, _BY_NAME))
    .outerjoin(
        room_members,
        and_(room_members.c.room_nid == receipts.c.room_nid, room_members.c.user_id == receipts.c.user_id),
    )
    .outerjoin(_member_events, _member_events.c.event_nid == room_members.c.event_nid)
)


def receipts_past(
    connection: Connection, room_nid: int, position: int, thread_ids: Collection[str]
) -> list[ReceiptPast]:
    """The m.read receipts of these threads at the event with this position or at later ones, latest change first."""
    statement = _PAST.where(
        receipts.c.room_nid == room_nid,
        receipts.c.receipt_type == "m.read",
        receipts.c.thread_id.in_(list(thread_ids)),
        events.c.room_nid == room_nid,
        events.c.stream_position >= position,
    ).order_by(receipts.c.position.desc())
    return [ReceiptPast(*row) for row in connection.execute(statement)]
