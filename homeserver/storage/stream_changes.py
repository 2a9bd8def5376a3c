"""What happened between two positions of the stream, of all kinds: for a process that was not told of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import Connection, Table, select

from homeserver.storage.database import in_slices
from homeserver.storage.tables import account_data, events, receipts, rooms, state_keys, typing, user_rooms


@dataclass(frozen=True, slots=True)
class EventChange:
    """An event took its place in the graph."""

    position: int
    room_nid: int
    room_id: str
    event_id: str
    event_type: str
    state_key: str | None
    verdict: int


@dataclass(frozen=True, slots=True)
class OtherChange:
    """Something else happened: in a room, to a user, or both."""

    position: int
    room_nid: int | None
    room_id: str | None
    user_id: str
    receipt_type: str | None = None


@dataclass(frozen=True, slots=True)
class StreamChanges:
    """All that happened."""

    events: list[EventChange]
    receipts: list[OtherChange]
    typing: list[OtherChange]
    account_data: list[OtherChange]
    standings: list[OtherChange]
    """Of our users to rooms, without an event of the stream: invitations from outside and their end."""
    joined_local: dict[int, frozenset[str]]
    """Our users in the rooms in which something happened."""


def changes_between(connection: Connection, after: int, upto: int) -> StreamChanges:
    """All changes with ``after`` < position ≤ ``upto``."""
    found_events = _events(connection, after, upto)
    found_receipts = _in_rooms(connection, receipts, after, upto)
    found_typing = _in_rooms(connection, typing, after, upto)
    explained = {change.position for change in found_events}
    explained.update(change.position for change in (*found_receipts, *found_typing))
    # These tables are searched by user otherwise: only asked when something is not explained yet.
    unexplained = upto - after > len(explained)
    found_data = _account_data(connection, after, upto) if unexplained else []
    standings = _in_rooms(connection, user_rooms, after, upto) if unexplained else []
    nids = {change.room_nid for change in (*found_receipts, *found_typing) if change.room_nid is not None}
    nids.update(change.room_nid for change in found_events)
    return StreamChanges(
        found_events,
        found_receipts,
        found_typing,
        found_data,
        [change for change in standings if change.position not in explained],
        _joined_local(connection, nids),
    )


def _events(connection: Connection, after: int, upto: int) -> list[EventChange]:
    statement = (
        select(
            events.c.stream_position,
            events.c.room_nid,
            rooms.c.room_id,
            events.c.event_id,
            events.c.type,
            state_keys.c.state_key,
            events.c.verdict,
        )
        .select_from(
            events.join(rooms, rooms.c.room_nid == events.c.room_nid).outerjoin(
                state_keys, state_keys.c.state_key_nid == events.c.state_key_nid
            )
        )
        .where(events.c.stream_position > after, events.c.stream_position <= upto)
    )
    return [EventChange(*row) for row in connection.execute(statement)]


def _in_rooms(connection: Connection, table: Table, after: int, upto: int) -> list[OtherChange]:
    columns = [table.c.position, table.c.room_nid, rooms.c.room_id, table.c.user_id]
    if "receipt_type" in table.c:
        columns.append(table.c.receipt_type)
    statement = (
        select(*columns)
        .join_from(table, rooms, rooms.c.room_nid == table.c.room_nid)
        .where(table.c.position > after, table.c.position <= upto)
    )
    return [OtherChange(*row) for row in connection.execute(statement)]


def _account_data(connection: Connection, after: int, upto: int) -> list[OtherChange]:
    statement = select(account_data.c.position, account_data.c.room_id, account_data.c.user_id).where(
        account_data.c.position > after, account_data.c.position <= upto
    )
    return [OtherChange(row[0], None, row[1] or None, row[2]) for row in connection.execute(statement)]


def _joined_local(connection: Connection, room_nids: Iterable[int]) -> dict[int, frozenset[str]]:
    found: dict[int, set[str]] = {}
    for part in in_slices(list(room_nids)):
        statement = select(user_rooms.c.room_nid, user_rooms.c.user_id).where(
            user_rooms.c.room_nid.in_(part), user_rooms.c.membership == "join"
        )
        for room_nid, user_id in connection.execute(statement):
            found.setdefault(room_nid, set()).add(user_id)
    return {room_nid: frozenset(users) for room_nid, users in found.items()}
