"""Positions in streams, and the other numbers that the database gives out.

All streams share one counter, so a position alone says what happened before what. The row stays locked until the
transaction ends: positions become visible in the order in which they were given out, whichever process asks.

Take positions late in a transaction: from then on every other writer waits.
"""

from __future__ import annotations

from typing import Literal

from sqlalchemy import Connection, select, update

from homeserver.storage.tables import counters

Counter = Literal["stream", "event", "state_group", "auth_chain"]

_TAKE = {
    name: update(counters).values({name: counters.c[name] + 1}).returning(counters.c[name])
    for name in ("stream", "event", "state_group", "auth_chain")
}
_CURRENT = select(counters.c.stream)


def take(connection: Connection, counter: Counter, count: int = 1) -> range:
    """The next ``count`` numbers of a counter, ascending."""
    if count == 1:
        last = connection.execute(_TAKE[counter]).scalar_one()
    else:
        column = counters.c[counter]
        last = connection.execute(update(counters).values({counter: column + count}).returning(column)).scalar_one()
    return range(last - count + 1, last + 1)


def take_backfill(connection: Connection, count: int) -> range:
    """The next ``count`` positions for events from before, descending from the last given out."""
    column = counters.c.backfill
    last = connection.execute(update(counters).values(backfill=column - count).returning(column)).scalar_one()
    return range(last + count - 1, last - 1, -1)


def next_position(connection: Connection) -> int:
    """One position in the stream."""
    return take(connection, "stream")[0]


def current_position(connection: Connection) -> int:
    """The last position whose changes are all visible to this transaction."""
    return int(connection.execute(_CURRENT).scalar_one())
