"""Which users type where, and until when: shared with the other processes on this database, and kept across
restarts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, delete, func, select

from homeserver.storage import streams
from homeserver.storage.database import PAIRS_AT_ONCE_MAX, among, in_slices, upsert
from homeserver.storage.tables import rooms, typing

STOPPED_KEPT = 50_000
"""For how many positions it is kept that a user has stopped, for clients that were offline."""

_Key = tuple[int, str]


@dataclass(frozen=True, slots=True)
class TypingNotice:
    """A user types in a room until a time, in milliseconds since the epoch; 0: the user has stopped."""

    room_nid: int
    user_id: str
    expires_ts: int
    now_ms: int

    @property
    def key(self) -> _Key:
        """There is one state for each key."""
        return (self.room_nid, self.user_id)


@dataclass(frozen=True, slots=True)
class TypingUser:
    """A user who types in a room."""

    room_id: str
    room_nid: int
    user_id: str
    expires_ts: int
    position: int


def store(connection: Connection, notices: Sequence[TypingNotice]) -> list[int | None]:
    """Store notices (a batch handler). Returns for each its position, or None if the set of typing users did not
    change.

    A user who types on only extends the time.
    """
    until = _read(connection, {notice.key for notice in notices})
    changed: list[TypingNotice] = []
    prolonged: dict[_Key, TypingNotice] = {}
    for notice in notices:
        typed = until.get(notice.key, (0, 0))[0] > notice.now_ms
        # A user whose time ran out is still shown until that is recorded, so a stop is a change.
        shown = until.get(notice.key, (0, 0))[0] > 0
        if notice.expires_ts and typed:
            prolonged[notice.key] = notice
        elif notice.expires_ts or shown:
            changed.append(notice)
        until[notice.key] = (notice.expires_ts, until.get(notice.key, (0, 0))[1])
    positions: dict[int, int] = {}
    if changed:
        positions = dict(zip(map(id, changed), streams.take(connection, "stream", len(changed)), strict=True))
        for notice in changed:
            until[notice.key] = (until[notice.key][0], positions[id(notice)])
    keys = {notice.key for notice in changed} | prolonged.keys()
    rows = [
        {"room_nid": key[0], "user_id": key[1], "expires_ts": until[key][0], "position": until[key][1]} for key in keys
    ]
    upsert(connection, typing, rows, ["room_nid", "user_id"])
    return [positions.get(id(notice)) for notice in notices]


def expire(connection: Connection, keys: Iterable[_Key], now_ms: int) -> dict[_Key, tuple[int, int | None]]:
    """Record that those of ``keys`` have stopped whose time has run out.

    Returns for each the time until which the user types (0: not at all), and the position of the stop if this call
    recorded it; another process may have recorded it first, or that the user types on.
    """
    until = _read(connection, keys)
    due = [key for key, (expires_ts, _) in until.items() if 0 < expires_ts <= now_ms]
    answers: dict[_Key, tuple[int, int | None]] = {
        key: (until[key][0] if key in until else 0, None) for key in keys if key not in due
    }
    if due:
        positions = streams.take(connection, "stream", len(due))
        rows = [
            {"room_nid": key[0], "user_id": key[1], "expires_ts": 0, "position": position}
            for key, position in zip(due, positions, strict=True)
        ]
        upsert(connection, typing, rows, ["room_nid", "user_id"])
        answers.update((key, (0, position)) for key, position in zip(due, positions, strict=True))
    return answers


def _read(connection: Connection, keys: Iterable[_Key]) -> dict[_Key, tuple[int, int]]:
    found: dict[_Key, tuple[int, int]] = {}
    for part in in_slices(list(keys), PAIRS_AT_ONCE_MAX):
        statement = select(typing.c.room_nid, typing.c.user_id, typing.c.expires_ts, typing.c.position).where(
            among((typing.c.room_nid, typing.c.user_id), part)
        )
        found.update(((row[0], row[1]), (row[2], row[3])) for row in connection.execute(statement))
    return found


_TYPING = select(
    rooms.c.room_id, typing.c.room_nid, typing.c.user_id, typing.c.expires_ts, typing.c.position
).join_from(typing, rooms, rooms.c.room_nid == typing.c.room_nid)


def typing_in(connection: Connection, room_id: str) -> list[TypingUser]:
    """All stored entries of a room: users who type, and with ``expires_ts`` 0 those who have stopped."""
    return [TypingUser(*row) for row in connection.execute(_TYPING.where(rooms.c.room_id == room_id))]


def typing_at(connection: Connection, positions: Sequence[int]) -> list[TypingUser]:
    """The entries stored at these positions and not replaced since; ``expires_ts`` is 0 for users who have stopped."""
    found: list[TypingUser] = []
    for part in in_slices(positions):
        statement = _TYPING.where(typing.c.position.in_(part)).order_by(typing.c.position)
        found.extend(TypingUser(*row) for row in connection.execute(statement))
    return found


def all_typing(connection: Connection) -> list[TypingUser]:
    """All users who type, in all rooms."""
    return [TypingUser(*row) for row in connection.execute(_TYPING.where(typing.c.expires_ts != 0))]


def last_changes(connection: Connection, room_nids: Sequence[int]) -> dict[int, int]:
    """The position of the last change in each room that has one."""
    found: dict[int, int] = {}
    for part in in_slices(room_nids):
        statement = (
            select(typing.c.room_nid, func.max(typing.c.position))
            .where(typing.c.room_nid.in_(part))
            .group_by(typing.c.room_nid)
        )
        found.update((row[0], row[1]) for row in connection.execute(statement))
    return found


def forget_stopped(connection: Connection) -> None:
    """Delete the entries of users who stopped long ago."""
    upto = streams.current_position(connection) - STOPPED_KEPT
    connection.execute(delete(typing).where(typing.c.expires_ts == 0, typing.c.position < upto))
