"""How far the users of a room have read, all of them at once."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from sqlalchemy import Connection, and_, func, select

from homeserver.storage.tables import events, receipts, room_members


class ReadUpTo(NamedTuple):
    """A read receipt, as far as it says who has read up to where."""

    user_id: str
    thread_id: str
    """``''`` for an unthreaded one."""
    ts: int
    position: int
    """Of the receipt, in the stream of all changes."""
    event_position: int | None
    """Of the event that it names; None for one that is not here."""
    display_name: str | None


_named = events.alias("named")
_BY_NAME = (
    select(_named.c.event_nid).where(_named.c.event_id == receipts.c.event_id).correlate(receipts).scalar_subquery()
)
"""A receipt may come before its event."""
_EVENT_POSITION = (
    select(events.c.stream_position)
    .where(
        # The room's receipts are gone through, and the event of each is looked up; never the other way round.
        events.c.event_nid == func.coalesce(receipts.c.event_nid, _BY_NAME),
        events.c.room_nid == receipts.c.room_nid,
    )
    .correlate(receipts)
    .scalar_subquery()
)
_READ = select(
    receipts.c.user_id,
    receipts.c.thread_id,
    receipts.c.ts,
    receipts.c.position,
    _EVENT_POSITION.label("event_position"),
    room_members.c.display_name,
).outerjoin(
    room_members, and_(room_members.c.room_nid == receipts.c.room_nid, room_members.c.user_id == receipts.c.user_id)
)


def read_receipts_of(connection: Connection, room_nid: int, thread_ids: Collection[str]) -> list[ReadUpTo]:
    """The m.read receipts of these threads of a room."""
    statement = _READ.where(
        receipts.c.room_nid == room_nid,
        receipts.c.receipt_type == "m.read",
        receipts.c.thread_id.in_(list(thread_ids)),
    )
    return list(map(ReadUpTo._make, connection.execute(statement)))
