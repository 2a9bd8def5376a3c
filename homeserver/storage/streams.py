"""Positions in streams, and the other numbers that the database assigns.

All streams share one counter, so positions alone give the order of all changes. The row stays locked until the
transaction ends, so that positions become visible in the order in which they were assigned, in every process.

Take positions late in a transaction: from then on every other writer waits.
"""

from __future__ import annotations

from typing import Literal

from sqlalchemy import Connection, Text, bindparam, cast, func, literal, select, update

from homeserver.storage.tables import counters

Counter = Literal["stream", "event", "state_group", "auth_chain"]

_TAKE = {
    name: update(counters).values({name: counters.c[name] + 1}).returning(counters.c[name])
    for name in ("stream", "event", "state_group", "auth_chain")
}
_CURRENT = select(counters.c.stream)
CHANNEL = "homeserver"
"""The PostgreSQL channel on which writers announce the last position of the streams."""
_ANNOUNCE = select(
    counters.c.stream,
    func.pg_notify(literal(CHANNEL), cast(counters.c.stream, Text) + literal(" ") + bindparam("sender", type_=Text)),
).where(counters.c.stream > bindparam("announced"))


def take(connection: Connection, counter: Counter, count: int = 1) -> range:
    """The next ``count`` numbers of a counter, ascending."""
    if count == 1:
        last = connection.execute(_TAKE[counter]).scalar_one()
    else:
        column = counters.c[counter]
        last = connection.execute(update(counters).values({counter: column + count}).returning(column)).scalar_one()
    return range(last - count + 1, last + 1)


def take_backfill(connection: Connection, count: int) -> range:
    """The next ``count`` positions for backfilled events, descending from the last one assigned."""
    column = counters.c.backfill
    last = connection.execute(update(counters).values(backfill=column - count).returning(column)).scalar_one()
    return range(last + count - 1, last - 1, -1)


def next_position(connection: Connection) -> int:
    """One position in the stream."""
    return take(connection, "stream")[0]


def current_position(connection: Connection) -> int:
    """The last position whose changes are all visible to this transaction."""
    return int(connection.execute(_CURRENT).scalar_one())


def announce(connection: Connection, announced: int, sender: str) -> int:
    """Announce the last position to all who listen on ``CHANNEL``, once this transaction commits (PostgreSQL only).

    Sends nothing if that was ``announced`` before; returns the announced position. The message is ``position sender``.
    """
    position = connection.execute(_ANNOUNCE, {"announced": announced, "sender": sender}).scalar()
    return announced if position is None else int(position)
