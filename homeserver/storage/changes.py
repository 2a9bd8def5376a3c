"""What was written to the streams between two positions, by whichever process, and the users and rooms it concerns.

A process knows its own writes. It reads those of other processes on the same database with ``load_changes``; on
PostgreSQL it is notified of them (``listening``). Nothing is read here for each member of a room.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from dataclasses import dataclass, field
from typing import Any

import psycopg
from sqlalchemy import Column, Connection, and_, select
from sqlalchemy.engine import URL

from homeserver.storage import notices, streams
from homeserver.storage.database import in_slices
from homeserver.storage.event_graph import Verdict
from homeserver.storage.tables import account_data, events, receipts, redactions, rooms, state_keys, user_rooms

SILENCE_MAX_S = 30.0
"""After this long without an announcement, a listener checks whether its connection still works."""
PRIVATE_RECEIPT = "m.read.private"


@dataclass(slots=True)
class WrittenChange:
    """A change at a position. ``stream`` is the name of a ``notifier.Stream`` in lower case."""

    position: int
    stream: str
    room_id: str | None
    users: set[str] = field(default_factory=set)
    """Our users whom it concerns directly."""
    wakes_room: bool = False
    """Whether it concerns everybody in the room."""
    event_id: str | None = None
    is_hidden: bool = False
    """Whether it is an event that was rejected or soft-failed."""


@dataclass(slots=True)
class Written:
    """What was written between two positions."""

    changes: list[WrittenChange]
    generations: dict[str, int]
    """The rooms that changed, with their new generation."""
    redacted: set[str]
    """Events that were redacted."""


@dataclass(slots=True)
class _Found:
    """The changes found so far, by position."""

    changes: dict[int, WrittenChange] = field(default_factory=dict)
    touched: set[int] = field(default_factory=set)
    """Rooms that changed."""


def load_changes(connection: Connection, after: int, upto: int) -> Written:
    """The changes with ``after`` < position ≤ ``upto``, ordered by position.

    A position may be missing, if something later replaced what was written there.
    """
    found = _Found()
    _find_events(connection, after, upto, found)
    _find_receipts(connection, after, upto, found)
    _find_account_data(connection, after, upto, found)
    _find_standings(connection, after, upto, found)
    return Written(
        changes=[found.changes[position] for position in sorted(found.changes)],
        generations=_generations(connection, found.touched),
        redacted=_redacted(connection, after, upto),
    )


def _between(column: Column[int], after: int, upto: int) -> Any:
    return and_(column > after, column <= upto)


def _find_events(connection: Connection, after: int, upto: int, found: _Found) -> None:
    statement = (
        select(
            events.c.stream_position,
            events.c.room_nid,
            rooms.c.room_id,
            events.c.event_id,
            events.c.verdict,
            state_keys.c.type,
            state_keys.c.state_key,
        )
        .join_from(events, rooms, rooms.c.room_nid == events.c.room_nid)
        .outerjoin(state_keys, state_keys.c.state_key_nid == events.c.state_key_nid)
        .where(_between(events.c.stream_position, after, upto))
    )
    for position, room_nid, room_id, event_id, verdict, event_type, state_key in connection.execute(statement):
        change = WrittenChange(position, "events", room_id, event_id=event_id)
        found.changes[position] = change
        found.touched.add(room_nid)
        if verdict != Verdict.ACCEPTED:
            change.is_hidden = True
            continue
        change.wakes_room = True
        if event_type == "m.room.member":
            change.users.add(state_key)  # if this is not a user of ours, no request waits under the name


def _find_receipts(connection: Connection, after: int, upto: int, found: _Found) -> None:
    statement = (
        select(receipts.c.position, rooms.c.room_id, receipts.c.user_id, receipts.c.receipt_type)
        .join_from(receipts, rooms, rooms.c.room_nid == receipts.c.room_nid)
        .where(_between(receipts.c.position, after, upto))
    )
    for position, room_id, user_id, receipt_type in connection.execute(statement):
        is_private = receipt_type == PRIVATE_RECEIPT
        users = {user_id} if is_private else set()
        found.changes[position] = WrittenChange(position, "receipts", room_id, users, not is_private)


def _find_account_data(connection: Connection, after: int, upto: int, found: _Found) -> None:
    statement = select(account_data.c.position, account_data.c.room_id, account_data.c.user_id).where(
        _between(account_data.c.position, after, upto)
    )
    for position, room_id, user_id in connection.execute(statement):
        found.changes[position] = WrittenChange(position, "account_data", room_id or None, {user_id})


def _find_standings(connection: Connection, after: int, upto: int, found: _Found) -> None:
    """Memberships without an event in the graph; those with an event of the room share its position."""
    statement = (
        select(user_rooms.c.position, user_rooms.c.room_nid, rooms.c.room_id, user_rooms.c.user_id)
        .join_from(user_rooms, rooms, rooms.c.room_nid == user_rooms.c.room_nid)
        .where(_between(user_rooms.c.position, after, upto))
    )
    for position, room_nid, room_id, user_id in connection.execute(statement):
        change = found.changes.get(position)
        if change is None:
            found.changes[position] = change = WrittenChange(position, "membership", room_id)
        change.users.add(user_id)
        found.touched.add(room_nid)


def _generations(connection: Connection, room_nids: Iterable[int]) -> dict[str, int]:
    found: dict[str, int] = {}
    for part in in_slices(list(room_nids)):
        rows = connection.execute(select(rooms.c.room_id, rooms.c.generation).where(rooms.c.room_nid.in_(part)))
        found.update((row[0], row[1]) for row in rows)
    return found


def _redacted(connection: Connection, after: int, upto: int) -> set[str]:
    statement = (
        select(redactions.c.redacted_event_id)
        .join_from(events, redactions, redactions.c.redaction_nid == events.c.event_nid)
        .where(
            _between(events.c.stream_position, after, upto),
            events.c.type == "m.room.redaction",
            redactions.c.applied,
        )
    )
    return set(connection.execute(statement).scalars())


@dataclass(frozen=True, slots=True)
class Announcement:
    """A process has committed changes up to a position."""

    position: int
    sender: str
    """The ``Database.name`` of that process."""


@dataclass(frozen=True, slots=True)
class Notice:
    """A process has sent a message that is not stored, see ``notices``."""

    sender: str
    body: str


@contextlib.asynccontextmanager
async def listening(url: URL) -> AsyncIterator[AsyncIterator[Announcement | Notice | None]]:
    """Listen to what the processes on a PostgreSQL database announce, and to their notices; also this process's own.

    Yields None from time to time when there is nothing. What was committed before the listening begins is not
    announced, so check once after it has begun. Raises ``OSError`` when the connection is lost.
    """
    try:
        async with await psycopg.AsyncConnection.connect(notices.conninfo_of(url), autocommit=True) as connection:
            await connection.execute(f"LISTEN {streams.CHANNEL}")
            await connection.execute(f"LISTEN {notices.CHANNEL}")
            # Close the announcements before the connection, because they lock it for as long as they are open.
            async with contextlib.aclosing(_announcements(connection)) as announcements:
                yield announcements
    except psycopg.Error as error:
        raise ConnectionError(str(error)) from error


async def _announcements(connection: psycopg.AsyncConnection[Any]) -> AsyncGenerator[Announcement | Notice | None]:
    while True:
        async with contextlib.aclosing(connection.notifies(timeout=SILENCE_MAX_S)) as notifications:
            async for notification in notifications:
                if notification.channel == notices.CHANNEL:
                    sender, _, body = notification.payload.partition(" ")
                    yield Notice(sender, body)
                elif (announcement := parse_announcement(notification.payload)) is not None:
                    yield announcement
        await connection.execute("SELECT 1")
        yield None


def parse_announcement(payload: str) -> Announcement | None:
    """Parse a message of ``streams.announce``; None for any other message on its channel."""
    position, _, sender = payload.partition(" ")
    return (
        Announcement(int(position), sender)
        if position.isdecimal() and position.isascii() and len(position) < 20
        else None
    )
