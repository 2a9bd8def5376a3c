"""How far each user has read, in each room and thread."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, and_, delete, or_, select

from homeserver.storage import streams
from homeserver.storage.database import among, in_slices, upsert
from homeserver.storage.event_graph import IN_GRAPH
from homeserver.storage.tables import events, receipts, rooms

RECEIPTS_PER_READ_MAX = 20_000
"""How many receipts one read returns; the newest come first."""
KEYS_AT_ONCE_MAX = 10
"""How many receipts one statement looks for; see ``among``."""
THREADS_PER_USER_MAX = 100
"""In how many threads of a room a user has receipts of one type; further ones replace those that were stored first."""
NOT_THREADS = ("", "main")
KEY_COLUMNS = ["room_nid", "receipt_type", "user_id", "thread_id"]

_Key = tuple[int, str, str, str]


@dataclass(frozen=True, slots=True)
class NewReceipt:
    """A user has read up to an event."""

    room_nid: int
    receipt_type: str
    user_id: str
    thread_id: str
    """``''`` for an unthreaded receipt."""
    event_id: str
    ts: int

    @property
    def key(self) -> _Key:
        """The receipt replaces an older one with the same key."""
        return (self.room_nid, self.receipt_type, self.user_id, self.thread_id)


@dataclass(frozen=True, slots=True)
class StoredReceipt:
    """How far a user has read, stored at a position."""

    room_id: str
    receipt_type: str
    user_id: str
    thread_id: str
    event_id: str
    ts: int
    position: int


@dataclass(frozen=True, slots=True)
class _Place:
    """Where an event is; the position is None for events that are not in the graph."""

    event_nid: int | None
    stream_position: int | None

    @property
    def placed_nid(self) -> int | None:
        """The numeric ID of an event in the graph; its receipts always have later positions than the event itself."""
        return self.event_nid if self.stream_position is not None else None


_NOWHERE = _Place(None, None)
_Places = dict[tuple[int, str], _Place]
"""Room and event ID to the place of the event."""


def store(connection: Connection, batches: Sequence[Sequence[NewReceipt]]) -> list[list[int | None]]:
    """Store receipts (a batch handler). Returns for each its position, or None if it is not news.

    "Each user_id, receipt_type, and categorisation (unthreaded, or thread_id) tuple must be associated with only a
    single event_id", and never goes back to an older event.
    """
    wanted = [receipt for batch in batches for receipt in batch]
    newest = _read(connection, {receipt.key for receipt in wanted})
    named = {(receipt.room_nid, receipt.event_id) for receipt in wanted}
    named |= {(key[0], event_id) for key, (event_id, _) in newest.items()}
    places = _places(connection, named)
    accepted: list[NewReceipt] = []
    for receipt in wanted:
        if _says_something_new(receipt, newest.get(receipt.key), places):
            accepted.append(receipt)
            newest[receipt.key] = (receipt.event_id, receipt.ts)
    if not accepted:
        return [[None] * len(batch) for batch in batches]
    positions = dict(zip(map(id, accepted), streams.take(connection, "stream", len(accepted)), strict=True))
    # Of two receipts with the same key, the later row wins.
    rows = {
        receipt.key: {
            "room_nid": receipt.room_nid,
            "receipt_type": receipt.receipt_type,
            "user_id": receipt.user_id,
            "thread_id": receipt.thread_id,
            "event_id": receipt.event_id,
            "event_nid": places.get((receipt.room_nid, receipt.event_id), _NOWHERE).placed_nid,
            "ts": receipt.ts,
            "position": positions[id(receipt)],
        }
        for receipt in accepted
    }
    upsert(connection, receipts, list(rows.values()), KEY_COLUMNS)
    for key in {key[:3] for key in rows if key[3] not in NOT_THREADS}:
        _limit_threads(connection, key)
    return [[positions.get(id(receipt)) for receipt in batch] for batch in batches]


def _limit_threads(connection: Connection, key: tuple[int, str, str]) -> None:
    of_user = and_(
        receipts.c.room_nid == key[0],
        receipts.c.receipt_type == key[1],
        receipts.c.user_id == key[2],
        receipts.c.thread_id.not_in(NOT_THREADS),
    )
    newest_first = select(receipts.c.position).where(of_user).order_by(receipts.c.position.desc())
    oldest_kept = connection.execute(newest_first.offset(THREADS_PER_USER_MAX - 1).limit(1)).scalar()
    if oldest_kept is not None:
        connection.execute(delete(receipts).where(of_user, receipts.c.position < oldest_kept))


def _says_something_new(receipt: NewReceipt, known: tuple[str, int] | None, places: _Places) -> bool:
    place = places.get((receipt.room_nid, receipt.event_id), _NOWHERE)
    if known is None:
        return True
    event_id, _ = known
    if event_id == receipt.event_id:
        return False
    old = places.get((receipt.room_nid, event_id), _NOWHERE)
    if place.stream_position is None or old.stream_position is None:
        return True  # their order is unknown here: trust the user's own server, which says that this is the latest
    return place.stream_position > old.stream_position


def _read(connection: Connection, keys: Iterable[_Key]) -> dict[_Key, tuple[str, int]]:
    columns = (receipts.c.room_nid, receipts.c.receipt_type, receipts.c.user_id, receipts.c.thread_id)
    found: dict[_Key, tuple[str, int]] = {}
    for part in in_slices(list(keys), KEYS_AT_ONCE_MAX):
        statement = select(*columns, receipts.c.event_id, receipts.c.ts).where(among(columns, part))
        for row in connection.execute(statement):
            found[row[0], row[1], row[2], row[3]] = (row[4], row[5])
    return found


def _places(connection: Connection, named: Iterable[tuple[int, str]]) -> _Places:
    """The places of the events that receipts name. A receipt never refers to an event of another room."""
    wanted = set(named)
    room_nids = {room_nid for room_nid, _ in wanted}
    found: _Places = {}
    for part in in_slices(list({event_id for _, event_id in wanted})):
        rows = connection.execute(
            select(events.c.event_id, events.c.event_nid, events.c.room_nid, events.c.stream_position).where(
                events.c.event_id.in_(part), events.c.room_nid.in_(room_nids), IN_GRAPH
            )
        )
        found.update(((row[2], row[0]), _Place(row[1], row[3])) for row in rows if (row[2], row[0]) in wanted)
    return found


_STORED = select(
    rooms.c.room_id,
    receipts.c.receipt_type,
    receipts.c.user_id,
    receipts.c.thread_id,
    receipts.c.event_id,
    receipts.c.ts,
    receipts.c.position,
).join_from(receipts, rooms, rooms.c.room_nid == receipts.c.room_nid)


def receipts_at(connection: Connection, positions: Sequence[int]) -> list[StoredReceipt]:
    """The receipts that were stored at these positions and not replaced since."""
    found: list[StoredReceipt] = []
    for part in in_slices(positions):
        statement = _STORED.where(receipts.c.position.in_(part)).order_by(receipts.c.position)
        found.extend(StoredReceipt(*row) for row in connection.execute(statement))
    return found


def receipts_since(
    connection: Connection, room_nids: Sequence[int], user_id: str, after: int, upto: int
) -> list[StoredReceipt]:
    """The receipts in rooms that changed with ``after`` < position ≤ ``upto`` and that the user may see.

    "Servers MUST NOT send the m.read.private receipt to any other user than the one which originally sent it."
    """
    found: list[StoredReceipt] = []
    for part in in_slices(room_nids):
        statement = (
            _STORED.where(
                receipts.c.room_nid.in_(part),
                and_(receipts.c.position > after, receipts.c.position <= upto),
                or_(receipts.c.receipt_type == "m.read", receipts.c.user_id == user_id),
            )
            .order_by(receipts.c.position.desc())
            .limit(RECEIPTS_PER_READ_MAX)
        )
        found.extend(StoredReceipt(*row) for row in connection.execute(statement))
    found.sort(key=lambda receipt: receipt.position)
    return found
