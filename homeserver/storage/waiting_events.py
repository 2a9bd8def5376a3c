"""Events of other servers that cannot be judged yet, because events that they refer to are missing.

They are kept until the missing events arrive or are given up. See ``graph.waiting_events``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
    connection: Connection, waiting: Sequence[WaitingEvent], origin_max: int, room_max: int
) -> dict[str, frozenset[str]]:
    """Store events of one room and origin, within the limits. Those that wait already are not changed.

    Returns what each stored event lacks.
    """
    if not waiting:
        return {}
    room_id, origin = waiting[0].room_id, waiting[0].origin
    wanted = [event.event_id for event in waiting]
    kept = known_of(connection, room_id, wanted)
    table = waiting_events.c
    of_room = connection.execute(select(func.count()).where(table.room_id == room_id)).scalar_one()
    of_origin = connection.execute(
        select(func.count()).where(table.room_id == room_id, table.origin == origin)
    ).scalar_one()
    space = max(0, min(room_max - of_room, origin_max - of_origin))
    new = [event for event in waiting if event.event_id not in kept][:space]
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
