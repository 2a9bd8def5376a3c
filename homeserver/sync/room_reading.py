"""Reads news from the database, all in one transaction."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from homeserver.storage import account_data, history_lanes, streams, sync_streams
from homeserver.storage.account_data import AccountDataRow
from homeserver.storage.event_graph import StoredEvent
from homeserver.storage.receipts import receipts_since
from homeserver.storage.sync_streams import Standing
from homeserver.sync.news import BEFORE_ALL, News, RoomNews
from homeserver.sync.summaries import SUMMARY_TYPES
from homeserver.sync.views import IGNORED_USERS_TYPE, ignored_users

GONE = frozenset({"leave", "ban"})


@dataclass(frozen=True, slots=True)
class Question:
    """What to read."""

    user_id: str
    since: int | None
    full_state: bool
    include_left: bool
    """Also read rooms that the user left before ``since`` or before the first sync."""
    with_members: bool
    """Whole states include all members."""
    count: int
    """How many events of each room to read, at least one more than a timeline may have."""
    with_receipts: bool
    allows_room: Callable[[str], bool]
    may_have_changed: Callable[[Iterable[str], int], Iterable[str]]
    """Takes rooms that the user was in all the time and a position; returns those that may have changed by then."""


@dataclass(slots=True)
class Reading:
    """What was read."""

    news: News
    standings: list[Standing]
    """The user's membership in every room that has one."""


def read(connection: Connection, question: Question) -> Reading:
    """Read everything that may be part of the answer to a request."""
    reading = _read_account(connection, question)
    for standing in reading.standings:
        if question.allows_room(standing.room_id):
            _sort_in(connection, question, reading.news, standing)
    news = reading.news
    _read_data_of_fresh_rooms(connection, question, news)
    _drop_quiet_rooms(question, news)
    _read_timelines(connection, news.rooms, question.count)
    _read_states(connection, question, news.rooms)
    _read_receipts(connection, question, news.rooms)
    stripped_of = [standing.room_nid for standing in (*news.invited, *news.knocked)]
    if stripped_of:
        news.stripped = sync_streams.stripped_states(connection, question.user_id, stripped_of)
    return reading


def read_ongoing(connection: Connection, question: Question, rooms: Sequence[RoomNews]) -> Sequence[RoomNews]:
    """Read what happened in rooms that the user is in and that the client already knows."""
    _read_timelines(connection, rooms, question.count)
    _read_states(connection, question, rooms)
    _read_receipts(connection, question, rooms)
    return rooms


@dataclass(frozen=True, slots=True)
class OwnChanges:
    """What changed in a user's own data between two positions: account data, and memberships in rooms."""

    account_data: list[AccountDataRow]
    standings: list[Standing]
    stripped: dict[int, bytes | None]
    moved: frozenset[str]
    """The rooms that the user joined or left."""


def read_own(connection: Connection, user_id: str, after: int, upto: int) -> OwnChanges:
    """Read what changed in a user's own data with ``after`` < position ≤ ``upto``."""
    rows = account_data.account_data_since(connection, user_id, after, upto)
    standings = sync_streams.standings_since(connection, user_id, after, upto)
    moved: set[str] = set()
    for standing in standings:
        # A user who was in the room all the time has only changed their name or picture.
        if standing.membership in GONE or (
            standing.membership == "join"
            and not sync_streams.was_joined_all_the_time(connection, standing, user_id, after, upto)
        ):
            moved.add(standing.room_id)
    waiting = [standing.room_nid for standing in standings if standing.membership in ("invite", "knock")]
    stripped = sync_streams.stripped_states(connection, user_id, waiting) if waiting else {}
    return OwnChanges(rows, standings, stripped, frozenset(moved))


def _read_account(connection: Connection, question: Question) -> Reading:
    position = streams.current_position(connection)
    user_id, since = question.user_id, question.since
    if since is None:
        rows = account_data.all_account_data(connection, user_id)
    else:
        rows = account_data.account_data_since(connection, user_id, since, position)
    ignored = account_data.get_account_data(connection, user_id, account_data.GLOBAL, IGNORED_USERS_TYPE)
    standings = sync_streams.standings_of(connection, user_id)
    joined = frozenset([standing.room_id for standing in standings if standing.membership == "join"])
    return Reading(News(position, ignored_users(ignored), joined, rows), standings)


def _read_data_of_fresh_rooms(connection: Connection, question: Question, news: News) -> None:
    """Read all account data, however old, of rooms that the client does not know yet."""
    since = question.since
    fresh = {room.room_id for room in news.rooms if room.is_fresh}
    if since is not None and fresh:
        rows = account_data.all_account_data(connection, question.user_id)
        news.account_data += [row for row in rows if row[0] in fresh and row[3] <= since]


def _sort_in(connection: Connection, question: Question, news: News, standing: Standing) -> None:
    """Add a room to the news, as joined, left, invited or knocked, if the client is to be told about it."""
    since = question.since
    is_new = since is None or standing.position > since
    membership = standing.membership
    if membership == "join":
        was_joined = since is not None
        if since is not None and is_new:
            was_joined = sync_streams.membership_at(connection, standing, question.user_id, since) == "join"
        after = BEFORE_ALL if since is None or not was_joined else since
        news.rooms.append(RoomNews(standing.room_id, standing.room_nid, after, news.position, not was_joined))
    elif membership in GONE:
        # A device that has not heard yet that a room was left is told once, even if the room is forgotten already. On
        # later first syncs, "include_leave" does not include forgotten rooms.
        if is_new and (since is not None or (question.include_left and not standing.forgotten)):
            news.rooms.append(_left_room(connection, question, standing))
    elif is_new and standing.sender not in news.ignored:
        # "Servers must not send room invites from ignored users to clients."
        (news.invited if membership == "invite" else news.knocked).append(standing)


def _left_room(connection: Connection, question: Question, standing: Standing) -> RoomNews:
    since = question.since
    history = sync_streams.membership_history(connection, standing.event_nid, -1 if since is None else since)
    departure = _departure(history)
    was_joined = (
        since is not None and sync_streams.membership_at(connection, standing, question.user_id, since) == "join"
    )
    room = RoomNews(standing.room_id, standing.room_nid, standing.position, standing.position, has_left=True)
    room.standing_nid = standing.event_nid
    # If the user was never in the room, or had left before, only the current member event is sent.
    if departure is not None and departure.stream_position is not None:
        room.departure = departure
        room.is_fresh = not was_joined
        room.after = since if was_joined and since is not None else BEFORE_ALL
        room.upto = departure.stream_position
    return room


def _departure(history: list[StoredEvent]) -> StoredEvent | None:
    later: StoredEvent | None = None
    for stored in history:
        if stored.event.membership == "join":
            return later
        later = stored if stored.stream_position is not None else later
    return None


def _drop_quiet_rooms(question: Question, news: News) -> None:
    """Remove the rooms in which nothing can have happened."""
    if question.since is None or question.full_state:
        return
    ongoing = {room.room_id for room in news.rooms if not room.is_fresh and not room.has_left}
    quiet = ongoing.difference(question.may_have_changed(ongoing, news.position))
    quiet.difference_update(room_id for room_id, _, _, _ in news.account_data)
    if quiet:
        news.rooms = [room for room in news.rooms if room.room_id not in quiet]


def _read_timelines(connection: Connection, rooms: Sequence[RoomNews], count: int) -> None:
    for (after, upto), some in _by_span(rooms).items():
        nids = [room.room_nid for room in some]
        found = sync_streams.newest_events(connection, nids, after, upto, count)
        holes = history_lanes.last_lanes(connection, nids, after, upto)
        for room in some:
            room.hole = holes.get(room.room_nid)
            newest = found.get(room.room_nid, [])
            room.newest = [(nid, position) for nid, position in newest if position > room.timeline_after]
            room.is_whole = len(room.newest) < count


def _read_states(connection: Connection, question: Question, rooms: Sequence[RoomNews]) -> None:
    whole = [room for room in rooms if not room.has_left and (room.is_fresh or question.full_state)]
    if whole:
        nids = [room.room_nid for room in whole]
        states = sync_streams.state_of_rooms(connection, nids, members=question.with_members)
        for room in whole:
            room.state = states[room.room_nid]
    ongoing = [room for room in rooms if room.state is None and not room.is_fresh]
    for (after, upto), some in _by_span(ongoing).items():
        changes = sync_streams.state_changes(connection, [room.room_nid for room in some], after, upto)
        for room in some:
            room.changes = changes.get(room.room_nid, [])
    counted = [
        room
        for room in rooms
        if not room.has_left and (room.state is not None or any(c.key[0] in SUMMARY_TYPES for c in room.changes))
    ]
    if counted:
        counts = sync_streams.member_counts(connection, [room.room_nid for room in counted])
        names = sync_streams.name_events(connection, [room.room_nid for room in counted])
        for room in counted:
            room.counts = counts[room.room_nid]
            room.names = names.get(room.room_nid, [])


def _by_span(rooms: Iterable[RoomNews]) -> dict[tuple[int, int], list[RoomNews]]:
    """Rooms by ``after`` and ``upto``, so that those with the same span can be read together."""
    together: dict[tuple[int, int], list[RoomNews]] = {}
    for room in rooms:
        if room.after < room.upto:
            together.setdefault((room.after, room.upto), []).append(room)
    return together


def _read_receipts(connection: Connection, question: Question, rooms: Sequence[RoomNews]) -> None:
    if not question.with_receipts:
        return
    present = [room for room in rooms if not room.has_left]
    for (after, upto), some in _by_span(present).items():
        by_id = {room.room_id: room for room in some}
        nids = [room.room_nid for room in some]
        for receipt in receipts_since(connection, nids, question.user_id, after, upto):
            by_id[receipt.room_id].receipts.append(receipt)
