"""Events of other servers that cannot be judged yet, because events that they refer to are missing.

They are kept until the missing events arrive or are given up. See ``graph.waiting_events``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass

import orjson
from sqlalchemy import ColumnElement, Connection, delete, func, select, update

from homeserver.storage.database import in_slices
from homeserver.storage.database import insert as insert_or
from homeserver.storage.tables import waiting_events

_COLUMNS = (
    waiting_events.c.room_id,
    waiting_events.c.event_id,
    waiting_events.c.origin,
    waiting_events.c.json,
    waiting_events.c.lacks,
    waiting_events.c.attempts,
    waiting_events.c.retry_at_ts,
    waiting_events.c.received_ts,
)


@dataclass(frozen=True, slots=True)
class WaitingEvent:
    """An event that waits for others. Its signatures have been checked."""

    room_id: str
    event_id: str
    origin: str
    """The server that sent it."""
    json: bytes
    lacks: frozenset[str]
    """The IDs of the events that were missing at the last attempt."""
    attempts: int
    retry_at_ts: int
    received_ts: int


def keep(
    connection: Connection, waiting: Sequence[WaitingEvent], members: Container[str], origin_max: int, room_max: int
) -> dict[str, frozenset[str]]:
    """Keep events of one room and origin, as many as there is space for. Those that wait already stay as they are.

    ``members`` are the servers in the room; all others share the space of one, since anybody can make up more of them.
    Where the room has no space left, whoever has the most events there makes room for those that have fewer: nobody
    can keep the events of others from waiting. Returns what each event lacks of those that are kept now.
    """
    if not waiting:
        return {}
    room_id, origin = waiting[0].room_id, waiting[0].origin
    kept = known_of(connection, room_id, [event.event_id for event in waiting])
    counts = _counts(connection, room_id, members)
    owner = _owner(origin, members)
    space = max(0, origin_max - counts.get(owner, 0))
    new = [event for event in waiting if event.event_id not in kept][:space]
    free = max(0, room_max - sum(counts.values()))
    if len(new) > free:
        counts[owner] += free
        new = new[: free + _make_space(connection, room_id, members, counts, owner, len(new) - free)]
    rows = [
        {
            "room_id": event.room_id,
            "event_id": event.event_id,
            "origin": event.origin,
            "json": event.json,
            "lacks": orjson.dumps(sorted(event.lacks)),
            "attempts": event.attempts,
            "retry_at_ts": event.retry_at_ts,
            "received_ts": event.received_ts,
        }
        for event in new
    ]
    if rows:
        connection.execute(insert_or(connection, waiting_events).on_conflict_do_nothing(), rows)
    kept.update(event.event_id for event in new)
    return {event.event_id: event.lacks for event in waiting if event.event_id in kept}


def _owner(origin: str, members: Container[str]) -> str | None:
    """Whose space an event takes up: its server's, or None for that of all servers that are not in the room."""
    return origin if origin in members else None


def _counts(connection: Connection, room_id: str, members: Container[str]) -> Counter[str | None]:
    """How many events wait in a room, by whose space they take up."""
    table = waiting_events.c
    statement = select(table.origin, func.count()).where(table.room_id == room_id).group_by(table.origin)
    counts: Counter[str | None] = Counter()
    for origin, count in connection.execute(statement):
        counts[_owner(origin, members)] += count
    return counts


def _make_space(
    connection: Connection,
    room_id: str,
    members: Container[str],
    counts: Counter[str | None],
    owner: str | None,
    wanted: int,
) -> int:
    """Let events go of those that have more than ``owner`` would have, the newest first. Returns how many went."""
    excess: Counter[str | None] = Counter()
    others = Counter({name: count for name, count in counts.items() if name != owner})
    for number in range(wanted):
        largest = max(others, key=others.__getitem__, default=None)
        if others[largest] <= counts[owner] + number + 1:
            break
        others[largest] -= 1
        excess[largest] += 1
    if not excess:
        return 0
    table = waiting_events.c
    newest_first = (
        select(table.event_id, table.origin)
        .where(table.room_id == room_id)
        .order_by(table.received_ts.desc(), table.event_id)
    )
    going: list[str] = []
    for event_id, origin in connection.execute(newest_first):
        name = _owner(origin, members)
        if excess[name] > 0:
            excess[name] -= 1
            going.append(event_id)
    remove(connection, room_id, going)
    return len(going)


def known_of(connection: Connection, room_id: str, event_ids: Iterable[str]) -> set[str]:
    """Those of the events that wait in the room."""
    found: set[str] = set()
    for part in in_slices(list(event_ids)):
        statement = select(waiting_events.c.event_id).where(
            waiting_events.c.room_id == room_id, waiting_events.c.event_id.in_(part)
        )
        found.update(connection.execute(statement).scalars())
    return found


def all_lacking(connection: Connection) -> list[tuple[str, str, frozenset[str]]]:
    """For every waiting event: its room, its ID and what it lacks."""
    rows = connection.execute(select(waiting_events.c.room_id, waiting_events.c.event_id, waiting_events.c.lacks))
    return [(row[0], row[1], frozenset(orjson.loads(row[2]))) for row in rows]


def claim_due(connection: Connection, now_ms: int, until_ms: int, limit: int) -> list[WaitingEvent]:
    """The events that are due, the longest due first. Other processes do not get them before ``until_ms``."""
    table = waiting_events.c
    statement = select(*_COLUMNS).where(table.retry_at_ts <= now_ms).order_by(table.retry_at_ts).limit(limit)
    due = [WaitingEvent(*row[:4], frozenset(orjson.loads(row[4])), *row[5:]) for row in connection.execute(statement)]
    claimed: list[WaitingEvent] = []
    for event in due:
        claim = (
            update(waiting_events)
            .where(*_is(event.room_id, event.event_id), table.retry_at_ts == event.retry_at_ts)
            .values(retry_at_ts=until_ms)
        )
        if connection.execute(claim).rowcount == 1:
            claimed.append(event)
    return claimed


def postpone(connection: Connection, event: WaitingEvent, lacks: Iterable[str], retry_at_ts: int) -> None:
    """Count a failed attempt, and schedule the next one."""
    connection.execute(
        update(waiting_events)
        .where(*_is(event.room_id, event.event_id))
        .values(attempts=event.attempts + 1, lacks=orjson.dumps(sorted(lacks)), retry_at_ts=retry_at_ts)
    )


def make_due(connection: Connection, room_id: str, event_ids: Iterable[str], now_ms: int) -> None:
    """Make events due at once."""
    for part in in_slices(list(event_ids)):
        connection.execute(
            update(waiting_events)
            .where(
                waiting_events.c.room_id == room_id,
                waiting_events.c.event_id.in_(part),
                waiting_events.c.retry_at_ts > now_ms,
            )
            .values(retry_at_ts=now_ms)
        )


def remove(connection: Connection, room_id: str, event_ids: Iterable[str]) -> None:
    """Delete waiting events."""
    for part in in_slices(list(event_ids)):
        connection.execute(
            delete(waiting_events).where(waiting_events.c.room_id == room_id, waiting_events.c.event_id.in_(part))
        )


def next_ts(connection: Connection) -> int | None:
    """When the next attempt is due."""
    value = connection.execute(select(func.min(waiting_events.c.retry_at_ts))).scalar_one_or_none()
    return None if value is None else int(value)


def _is(room_id: str, event_id: str) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return waiting_events.c.room_id == room_id, waiting_events.c.event_id == event_id
