"""How far the users of a room have read: of all users at once, or page by page."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TypeAlias

from sqlalchemy import Connection, and_, bindparam, func, literal_column, or_, select

from homeserver.storage.tables import Name, Nid, events, receipts, room_members

ReadUpTo: TypeAlias = tuple[str, str, int, int, int | None, str | None]
"""A read receipt, reduced to who has read up to where: user ID, thread ID (``''`` for an unthreaded one), time,
position of the receipt in the stream of all changes, position of the event that it names (None if the event is not
stored), display name. A tuple, since there are many of them.
"""

_named = events.alias("named")
_BY_NAME = (
    select(_named.c.event_nid)
    .where(
        _named.c.event_id == receipts.c.event_id,
        _named.c.room_nid == receipts.c.room_nid,
        _named.c.claimed_version == "",
    )
    .correlate(receipts)
    .scalar_subquery()
)
"""A receipt may arrive before its event."""
_EVENT_POSITION = (
    select(events.c.stream_position)
    .where(
        # Go through the room's receipts and look up the event of each; the other way round would be slow.
        events.c.event_nid == func.coalesce(receipts.c.event_nid, _BY_NAME),
        events.c.room_nid == receipts.c.room_nid,
    )
    .correlate(receipts)
    .scalar_subquery()
)
_READ = (
    select(
        receipts.c.user_id,
        receipts.c.thread_id,
        receipts.c.ts,
        receipts.c.position,
        _EVENT_POSITION.label("event_position"),
        room_members.c.display_name,
    )
    .outerjoin(
        room_members, and_(room_members.c.room_nid == receipts.c.room_nid, room_members.c.user_id == receipts.c.user_id)
    )
    .where(
        receipts.c.room_nid == bindparam("room_nid"),
        receipts.c.receipt_type == literal_column("'m.read'"),
        receipts.c.user_id > bindparam("after", type_=Name),
        receipts.c.thread_id.in_(bindparam("thread_ids", expanding=True)),
        # A receipt from before the event cannot name it or a later one, unless it arrived before the event that it
        # names. This condition saves looking up the events of all users who have not read so far.
        or_(receipts.c.position > bindparam("position", type_=Nid), receipts.c.event_nid.is_(None)),
    )
    # The order of the primary key.
    .order_by(receipts.c.user_id, receipts.c.thread_id)
)
_SOME_READ = _READ.limit(bindparam("most", type_=Nid))


def read_receipts_of(
    connection: Connection,
    room_nid: int,
    thread_ids: Collection[str],
    position: int,
    after: str = "",
    most: int | None = None,
) -> Sequence[ReadUpTo]:
    """The m.read receipts of these threads of a room, by user ID; at most ``most`` of the users after another one.

    Leaves out receipts that cannot name the event at a position or a later one, as far as a cheap condition can tell.
    """
    values = {"room_nid": room_nid, "thread_ids": list(thread_ids), "position": position, "after": after}
    if most is None:
        return connection.execute(_READ, values).all()
    return connection.execute(_SOME_READ, {**values, "most": most}).all()
