"""How far the users of a room have read: all of them at once, or some after the other."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TypeAlias

from sqlalchemy import Connection, and_, bindparam, func, literal_column, or_, select

from homeserver.storage.tables import Name, Nid, events, receipts, room_members

ReadUpTo: TypeAlias = tuple[str, str, int, int, int | None, str | None]
"""A read receipt, as far as it says who has read up to where: user ID, thread ID (``''`` for an unthreaded one), time,
position of the receipt in the stream of all changes, position of the event that it names (None for one that is not
here), display name. A tuple, since there are many of them."""

_named = events.alias("named")
_BY_NAME = (
    select(_named.c.event_nid)
    .where(_named.c.event_id == receipts.c.event_id, _named.c.room_nid == receipts.c.room_nid)
    .correlate(receipts)
    .scalar_subquery()
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
        # What came before the event cannot name it or a later one, unless it came before the event that it names.
        # This saves looking for the events of all who have not read so far.
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
    """The m.read receipts of these threads of a room, by user ID; so many at most of the users who follow another.

    Receipts that cannot name the event at a position or a later one are left out, as far as that is told easily.
    """
    values = {"room_nid": room_nid, "thread_ids": list(thread_ids), "position": position, "after": after}
    if most is None:
        return connection.execute(_READ, values).all()
    return connection.execute(_SOME_READ, {**values, "most": most}).all()
