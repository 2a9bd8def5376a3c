"""Reads from the database, at one position, what a request of /sync is about."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from sqlalchemy import Connection

from homeserver.storage import account_data, streams, sync_streams
from homeserver.storage.account_data import AccountDataRow
from homeserver.storage.event_graph import StoredEvent
from homeserver.storage.receipts import StoredReceipt, receipts_since
from homeserver.storage.sync_streams import Standing, StateChange
from homeserver.storage.typing import last_changes
from homeserver.sync.views import IGNORED_USERS_TYPE, ignored_users

BEFORE_ALL = 0
"""Before the first position. (What was backfilled has positions below, and is no part of /sync.)"""
SUMMARY_TYPES = frozenset({"m.room.member", "m.room.name", "m.room.canonical_alias"})
"""State that a room's summary depends on."""
GONE = frozenset({"leave", "ban"})


@dataclass(frozen=True, slots=True)
class Question:
    """What is to be read."""

    user_id: str
    since: int | None
    full_state: bool
    include_left: bool
    """Rooms that the user left before ``since`` or before the first sync, too."""
    with_members: bool
    """Whole states are to hold all members."""
    count: int
    """How many events of each room to read, at least one more than a timeline may have."""
    with_receipts: bool
    allows_room: Callable[[str], bool]
    may_have_changed: Callable[[Iterable[str], int], Iterable[str]]
    """Of rooms that the user is in all the time, those that may have changed by a position."""


@dataclass(slots=True)
class RoomReading:
    """What was read of a room that the user is in, or was in."""

    standing: Standing
    is_fresh: bool
    """The client knows nothing of the room yet."""
    after: int
    upto: int
    """The timeline is out of ``after`` < position ≤ ``upto``."""
    newest: list[tuple[int, int]] = field(default_factory=list)
    """``(event_nid, position)`` of the events in it, newest first."""
    is_whole: bool = True
    """There are no more."""
    state: list[int] | None = None
    """The whole state at ``upto``, if it is wanted."""
    changes: list[StateChange] = field(default_factory=list)
    """How the state changed since ``after``."""
    counts: tuple[int, int] | None = None
    """How many have joined and are invited, if that may have changed."""
    names: list[int] = field(default_factory=list)
    """Then also the events that may give the room a name."""
    receipts: list[StoredReceipt] = field(default_factory=list)
    typing_position: int = 0
    """When somebody last began to type or stopped; 0 if nobody did."""
    departure: StoredEvent | None = None
    """The event with which the user stopped being in the room."""
    has_left: bool = False
    was_absent: bool = False
    """The user was not in the room during all of the time that the timeline is about."""


@dataclass(slots=True)
class Reading:
    """What was read, all of it as of ``position``."""

    position: int
    standings: list[Standing]
    ignored: frozenset[str]
    account_data: list[AccountDataRow]
    rooms: list[RoomReading] = field(default_factory=list)
    invited: list[Standing] = field(default_factory=list)
    knocked: list[Standing] = field(default_factory=list)
    stripped: dict[int, bytes | None] = field(default_factory=dict)


def read(connection: Connection, question: Question) -> Reading:
    """Read it all, in one transaction."""
    reading = _read_account(connection, question)
    for standing in reading.standings:
        if question.allows_room(standing.room_id) and not standing.forgotten:
            _sort_in(connection, question, reading, standing)
    _read_data_of_fresh_rooms(connection, question, reading)
    _drop_quiet_rooms(question, reading)
    _read_timelines(connection, question, reading)
    _read_states(connection, question, reading)
    _read_ephemeral(connection, question, reading)
    stripped_of = [standing.room_nid for standing in (*reading.invited, *reading.knocked)]
    if stripped_of:
        reading.stripped = sync_streams.stripped_states(connection, question.user_id, stripped_of)
    return reading


def _read_account(connection: Connection, question: Question) -> Reading:
    position = streams.current_position(connection)
    user_id, since = question.user_id, question.since
    if since is None:
        rows = account_data.all_account_data(connection, user_id)
    else:
        rows = account_data.account_data_since(connection, user_id, since, position)
    ignored = account_data.get_account_data(connection, user_id, account_data.GLOBAL, IGNORED_USERS_TYPE)
    standings = sync_streams.standings_of(connection, user_id)
    return Reading(position, standings, ignored_users(ignored), rows)


def _read_data_of_fresh_rooms(connection: Connection, question: Question, reading: Reading) -> None:
    """Of rooms that the client knows nothing of yet it gets all account data, however old."""
    since = question.since
    fresh = {room.standing.room_id for room in reading.rooms if room.is_fresh}
    if since is not None and fresh:
        rows = account_data.all_account_data(connection, question.user_id)
        reading.account_data += [row for row in rows if row[0] in fresh and row[3] <= since]


def _sort_in(connection: Connection, question: Question, reading: Reading, standing: Standing) -> None:
    """Find out what of a room the client is to be told."""
    since = question.since
    is_new = since is None or standing.position > since
    membership = standing.membership
    if membership == "join":
        was_joined = since is not None
        if since is not None and is_new:
            history = sync_streams.membership_history(connection, standing.event_nid, since)
            was_joined = _membership_at(history, since) == "join"
        after = BEFORE_ALL if since is None or not was_joined else since
        room = RoomReading(standing, not was_joined, after, reading.position)
        room.was_absent = is_new
        reading.rooms.append(room)
    elif membership in GONE:
        if is_new and (since is not None or question.include_left):
            left = _left_room(connection, question, standing)
            if left is not None:
                reading.rooms.append(left)
    elif is_new and standing.sender not in reading.ignored:
        # "Servers must not send room invites from ignored users to clients."
        (reading.invited if membership == "invite" else reading.knocked).append(standing)


def _left_room(connection: Connection, question: Question, standing: Standing) -> RoomReading | None:
    since = question.since
    history = sync_streams.membership_history(connection, standing.event_nid, -1 if since is None else since)
    departure = _departure(history)
    was_joined = since is not None and _membership_at(history, since) == "join"
    if departure is None or departure.stream_position is None:
        # It was invited, or had left before: all there is to tell is how it stands to the room now.
        if since is None:
            return None
        return RoomReading(standing, False, standing.position, standing.position, has_left=True)
    after = since if was_joined and since is not None else BEFORE_ALL
    room = RoomReading(standing, not was_joined, after, departure.stream_position, has_left=True, was_absent=True)
    room.departure = departure
    return room


def _membership_at(history: list[StoredEvent], position: int) -> str | None:
    for stored in history:
        if stored.stream_position is not None and stored.stream_position <= position:
            return stored.event.membership
    return None


def _departure(history: list[StoredEvent]) -> StoredEvent | None:
    later: StoredEvent | None = None
    for stored in history:
        if stored.event.membership == "join":
            return later
        later = stored if stored.stream_position is not None else later
    return None


def _drop_quiet_rooms(question: Question, reading: Reading) -> None:
    """Leave out the rooms in which nothing can have happened."""
    if question.since is None or question.full_state:
        return
    ongoing = {room.standing.room_id for room in reading.rooms if not room.is_fresh and not room.has_left}
    quiet = ongoing.difference(question.may_have_changed(ongoing, reading.position))
    quiet.difference_update(room_id for room_id, _, _, _ in reading.account_data)
    if quiet:
        reading.rooms = [room for room in reading.rooms if room.standing.room_id not in quiet]


def _read_timelines(connection: Connection, question: Question, reading: Reading) -> None:
    together: dict[tuple[int, int], list[RoomReading]] = {}
    for room in reading.rooms:
        together.setdefault((room.after, room.upto), []).append(room)
    for (after, upto), rooms in together.items():
        nids = [room.standing.room_nid for room in rooms]
        found = sync_streams.newest_events(connection, nids, after, upto, question.count)
        for room in rooms:
            room.newest = found.get(room.standing.room_nid, [])
            room.is_whole = len(room.newest) < question.count


def _read_states(connection: Connection, question: Question, reading: Reading) -> None:
    whole = [room for room in reading.rooms if not room.has_left and (room.is_fresh or question.full_state)]
    if whole:
        nids = [room.standing.room_nid for room in whole]
        states = sync_streams.state_of_rooms(connection, nids, members=question.with_members)
        for room in whole:
            room.state = states[room.standing.room_nid]
    together: dict[tuple[int, int], list[RoomReading]] = {}
    for room in reading.rooms:
        if room.state is None and not room.is_fresh and room.after < room.upto:
            together.setdefault((room.after, room.upto), []).append(room)
    for (after, upto), rooms in together.items():
        changes = sync_streams.state_changes(connection, [room.standing.room_nid for room in rooms], after, upto)
        for room in rooms:
            room.changes = changes.get(room.standing.room_nid, [])
    counted = [
        room
        for room in reading.rooms
        if not room.has_left and (room.state is not None or any(c.key[0] in SUMMARY_TYPES for c in room.changes))
    ]
    if counted:
        counts = sync_streams.member_counts(connection, [room.standing.room_nid for room in counted])
        names = sync_streams.name_events(connection, [room.standing.room_nid for room in counted])
        for room in counted:
            room.counts = counts[room.standing.room_nid]
            room.names = names.get(room.standing.room_nid, [])


def _read_ephemeral(connection: Connection, question: Question, reading: Reading) -> None:
    typing = last_changes(connection, [room.standing.room_nid for room in reading.rooms])
    for room in reading.rooms:
        room.typing_position = typing.get(room.standing.room_nid, 0)
    if not question.with_receipts:
        return
    together: dict[int, list[RoomReading]] = {}
    for room in reading.rooms:
        if not room.has_left:
            together.setdefault(room.after, []).append(room)
    for after, rooms in together.items():
        by_id = {room.standing.room_id: room for room in rooms}
        nids = [room.standing.room_nid for room in rooms]
        for receipt in receipts_since(connection, nids, question.user_id, after, reading.position):
            by_id[receipt.room_id].receipts.append(receipt)
