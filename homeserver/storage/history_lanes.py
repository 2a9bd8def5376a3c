"""The lanes of a room's history: where prev_events are missing, and the places for events that are backfilled there.

See ``places`` for what a lane is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, delete, func, select, update

from homeserver.storage.database import in_slices, insert
from homeserver.storage.places import floor_of_lane, lane_of, place_of
from homeserver.storage.tables import backward_extremities, events, history_lanes

_GAPS = backward_extremities.c


@dataclass(frozen=True, slots=True)
class Gap:
    """An event that is missing in the graph, and the place of the event that names it."""

    missing_event_id: str
    event_nid: int
    depth: int
    """The depth of the event that names it."""
    place: int
    fruitless: int = 0
    """How many servers were asked for it in vain."""


def take_places(connection: Connection, room_nid: int, counts: Mapping[int, int]) -> dict[int, range]:
    """Reserve this many places in each lane, by position of the live event at its top, below those reserved before.

    Returns the places in ascending order: the first is for the oldest event. A lane without enough places is left out.
    Reserved places that are not used stay empty.
    """
    taken: dict[int, range] = {}
    for position, count in counts.items():
        statement = insert(connection, history_lanes).values(
            room_nid=room_nid, position=position, lowest=place_of(position) - count
        )
        lowest: int = connection.execute(
            statement.on_conflict_do_update(
                index_elements=["room_nid", "position"], set_={"lowest": history_lanes.c.lowest - count}
            ).returning(history_lanes.c.lowest)
        ).scalar_one()
        if lowest > floor_of_lane(position):
            taken[position] = range(lowest, lowest + count)
    return taken


def close_lanes(connection: Connection, room_nid: int, event_nids: Sequence[int]) -> None:
    """Let timelines run across the lanes of live events before which nothing is missing any longer.

    Where something was backfilled, the lane stays: that is no part of a timeline.
    """
    for part in in_slices(event_nids):
        statement = select(events.c.stream_position, events.c.place).where(
            events.c.event_nid.in_(part), events.c.stream_position > 0, events.c.place.is_not(None)
        )
        for position, place in connection.execute(statement).all():
            has_gap = select(_GAPS.event_nid).where(_GAPS.room_nid == room_nid, _GAPS.place == place).exists()
            connection.execute(
                delete(history_lanes).where(
                    history_lanes.c.room_nid == room_nid,
                    history_lanes.c.position == position,
                    history_lanes.c.lowest == place,
                    ~has_gap,
                )
            )


def last_lanes(connection: Connection, room_nids: Sequence[int], after: int, upto: int) -> dict[int, int]:
    """The greatest position with ``after`` < position ≤ ``upto`` before which history is or was missing, by room.

    Not all of what is before it was stored when the event arrived: a timeline that starts earlier would have a hole.
    """
    found: dict[int, int] = {}
    for part in in_slices(room_nids):
        statement = (
            select(history_lanes.c.room_nid, func.max(history_lanes.c.position))
            .where(
                history_lanes.c.room_nid.in_(part),
                history_lanes.c.position > after,
                history_lanes.c.position <= upto,
            )
            .group_by(history_lanes.c.room_nid)
        )
        found.update((row[0], row[1]) for row in connection.execute(statement))
    return found


def places_naming(connection: Connection, room_nid: int, event_ids: Collection[str]) -> dict[str, int]:
    """For each event that is missing in the graph, the lowest place of an event that names it; others are left out."""
    found: dict[str, int] = {}
    for part in in_slices(list(event_ids)):
        statement = (
            select(_GAPS.missing_event_id, func.min(events.c.place))
            .join_from(backward_extremities, events, events.c.event_nid == _GAPS.event_nid)
            .where(_GAPS.missing_event_id.in_(part), _GAPS.room_nid == room_nid, events.c.place.is_not(None))
            .group_by(_GAPS.missing_event_id)
        )
        found.update((row[0], row[1]) for row in connection.execute(statement))
    return found


def gaps_between(
    connection: Connection, room_nid: int, low: int, high: int, now_ms: int, limit: int, *, highest_first: bool
) -> list[Gap]:
    """The gaps of a room with ``low`` < place ≤ ``high`` that a server may be asked about now."""
    if not limit:
        return []
    statement = (
        select(_GAPS.missing_event_id, _GAPS.event_nid, events.c.depth, _GAPS.place, _GAPS.fruitless)
        .join_from(backward_extremities, events, events.c.event_nid == _GAPS.event_nid)
        .where(_GAPS.room_nid == room_nid, _GAPS.place > low, _GAPS.place <= high, _GAPS.retry_ts <= now_ms)
        .order_by(_GAPS.place.desc() if highest_first else _GAPS.place, _GAPS.missing_event_id)
        .limit(limit)
    )
    return [Gap(*row) for row in connection.execute(statement)]


def least_asked(connection: Connection, room_nid: int, high: int) -> int | None:
    """The least number of servers that were asked in vain for one of the events missing at or below ``high``.

    None if no event is missing.
    """
    statement = select(func.min(_GAPS.fruitless)).where(_GAPS.room_nid == room_nid, _GAPS.place <= high)
    found: int | None = connection.execute(statement).scalar_one()
    return found


def note_fruitless(connection: Connection, room_nid: int, retry_ts: Mapping[str, int], servers: int) -> None:
    """Store that this many more servers did not have these missing events, and until when not to ask for each."""
    for event_id, ts in retry_ts.items():
        connection.execute(
            update(backward_extremities)
            .where(_GAPS.room_nid == room_nid, _GAPS.missing_event_id == event_id)
            .values(fruitless=_GAPS.fruitless + servers, retry_ts=ts)
        )


def still_missing(connection: Connection, room_nid: int, event_ids: Iterable[str]) -> set[str]:
    """Those of the events that are missing in the graph."""
    found: set[str] = set()
    for part in in_slices(list(event_ids)):
        statement = select(_GAPS.missing_event_id).where(_GAPS.room_nid == room_nid, _GAPS.missing_event_id.in_(part))
        found.update(connection.execute(statement).scalars())
    return found


def group_above(connection: Connection, room_nid: int, place: int) -> int | None:
    """The state group of the event that comes right after a place in a room's history."""
    statement = (
        select(events.c.state_group)
        .where(events.c.room_nid == room_nid, events.c.place > place, events.c.state_group.is_not(None))
        .order_by(events.c.place)
        .limit(1)
    )
    return connection.execute(statement).scalar_one_or_none()


@dataclass(frozen=True, slots=True)
class GivenEvent:
    """An event in an answer to /backfill."""

    event_id: str
    prev_events: Sequence[str]
    depth: int
    is_wanted: bool
    """False for an event that is not to be stored, but shows which events come before it."""


def loose_events(
    connection: Connection, room_nid: int, given: Sequence[GivenEvent], asked: Sequence[Gap]
) -> list[GivenEvent]:
    """The events in an answer to /backfill that nothing which is here, and nothing else in the answer, leads to.

    Only those whose depth allows that they are ancestors of the requested events. ``given`` has ancestors first, the
    result has them last.
    """
    event_ids = [event.event_id for event in given]
    linked = {*places_naming(connection, room_nid, event_ids), *_placed(connection, room_nid, event_ids)}
    deepest = max((gap.depth for gap in asked), default=0)
    loose: list[GivenEvent] = []
    for event in reversed(given):
        if event.event_id in linked:
            linked.update(event.prev_events)
        elif event.depth < deepest:
            loose.append(event)
    return loose


def place_history(
    connection: Connection,
    room_nid: int,
    given: Sequence[GivenEvent],
    asked: Sequence[Gap],
    believed: Collection[str] = (),
) -> dict[str, int]:
    """Reserve places for those events in an answer to /backfill that fill gaps, and for their ancestors in it.

    ``given`` has ancestors first. An event goes into the lane of the event that names it as missing or follows it in
    the answer: the lowest of those, so that it precedes all of them. ``believed`` are IDs of events that no other leads
    to, and that count as ancestors of the requested events nevertheless, if their depth allows that. An event that is
    in the graph, or is not known to be such an ancestor, gets no place.
    """
    event_ids = [event.event_id for event in given]
    named = places_naming(connection, room_nid, event_ids)
    placed = _placed(connection, room_nid, event_ids)
    lanes: dict[str, int] = {}
    inherited: dict[str, int] = {}
    for event in reversed(given):
        if event.event_id in placed:
            continue
        known = [inherited[event.event_id]] if event.event_id in inherited else []
        if event.event_id in named:
            known.append(lane_of(named[event.event_id]))
        if not known and event.event_id in believed:
            known = [lane_of(gap.place) for gap in asked if event.depth < gap.depth]
        if not known:
            continue
        lane = lanes[event.event_id] = min(known)
        for prev in event.prev_events:
            inherited[prev] = min(lane, inherited.get(prev, lane))
    wanted = [event.event_id for event in given if event.is_wanted and event.event_id in lanes]
    counts = Counter(lanes[event_id] for event_id in wanted)
    taken = {lane: iter(places) for lane, places in take_places(connection, room_nid, counts).items()}
    return {event_id: next(taken[lanes[event_id]]) for event_id in wanted if lanes[event_id] in taken}


def _placed(connection: Connection, room_nid: int, event_ids: Sequence[str]) -> set[str]:
    found: set[str] = set()
    for part in in_slices(event_ids):
        statement = select(events.c.event_id).where(
            events.c.event_id.in_(part), events.c.room_nid == room_nid, events.c.place.is_not(None)
        )
        found.update(connection.execute(statement).scalars())
    return found
