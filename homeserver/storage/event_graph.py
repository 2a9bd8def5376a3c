"""Stored events, and reading them. ``graph_writes`` writes them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntFlag
from typing import Any, TypeAlias

import orjson
from sqlalchemy import Connection, Select, bindparam, literal_column, select

from homeserver.protocol.events import Event
from homeserver.protocol.redaction import redact_event
from homeserver.protocol.room_versions import ROOM_VERSIONS
from homeserver.storage.database import in_slices
from homeserver.storage.prepared import PreparedSelect
from homeserver.storage.tables import (
    backward_extremities,
    client_transactions,
    event_edges,
    events,
    forward_extremities,
    redactions,
    rejections,
    rooms,
)

WALK_STEPS_MAX = 500
"""How many events one walk back through the graph visits at most."""
SAME_ID_MAX = 10
"""In how many rooms an event ID is looked up, if the request does not say the room."""


class Verdict(IntFlag):
    """The result of the checks on receipt of an event, and whether it is in the graph."""

    ACCEPTED = 0
    OUTLIER = 1
    """Stored, but not placed in the graph: an auth event, or an invitation from another server."""
    REJECTED = 2
    SOFT_FAILED = 4


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """An event with its place in this server's graph.

    ``event`` is what is shown of it: its redacted form, once a redaction of it was applied. What was signed is
    ``original``. That is for authorization, state resolution and hashes, and is shown to nobody.
    """

    original: Event
    event_nid: int
    room_nid: int
    verdict: Verdict
    stream_position: int | None
    """None for outliers, negative for backfilled events."""
    state_group: int | None
    """The state after the event; None for outliers."""
    place: int | None = None
    """The place in the room's history; None for outliers."""
    replaces_nid: int | None = None
    """The state event that this one replaced."""
    redacted_by: Event | None = None
    """A redaction of this event that is allowed."""
    txn: tuple[str, str, str] | None = None
    """``(user_id, device_id, txn_id)`` if a client of ours sent it."""
    is_out_of_band: bool = False
    """Whether it arrived outside the room's graph, and is not part of it: see ``out_of_band_events``."""
    is_idle_redaction: bool = False
    """Whether it is a redaction that was not allowed to take effect, or waits for its target."""
    event: Event = field(init=False)
    """What is shown."""

    def __post_init__(self) -> None:
        """Make what is shown."""
        shown = self.original if self.redacted_by is None else redact_event(self.original)
        object.__setattr__(self, "event", shown)

    @property
    def event_id(self) -> str:
        """The event's ID."""
        return self.original.event_id

    @property
    def visible(self) -> bool:
        """Whether it was accepted. Only then may clients and other servers see it."""
        return self.verdict == Verdict.ACCEPTED

    @property
    def is_for_clients(self) -> bool:
        """Whether clients may hear of it.

        Since room version 3 a redaction is shown when it has taken effect: other servers get it before, clients do not.
        https://spec.matrix.org/v1.19/rooms/v3/#handling-redactions
        """
        return self.visible and (not self.is_idle_redaction or self.original.version.redaction_rule)


_COLUMNS = (
    events.c.event_nid,
    events.c.event_id,
    events.c.room_nid,
    events.c.verdict,
    events.c.stream_position,
    events.c.state_group,
    events.c.replaces_nid,
    events.c.json,
    rooms.c.room_id,
    rooms.c.version,
    events.c.place,
    events.c.claimed_version,
    events.c.type,
)
IN_GRAPH = events.c.claimed_version == literal_column("''")
"""The condition for events of a room's graph, outliers included, as opposed to out-of-band ones."""
_STORED = select(*_COLUMNS).join_from(events, rooms, rooms.c.room_nid == events.c.room_nid)
_BY_NID = PreparedSelect(_STORED.where(events.c.event_nid.in_(bindparam("wanted", expanding=True))))
_BY_ID = PreparedSelect(
    _STORED.where(
        rooms.c.room_id == bindparam("room_id"), events.c.event_id.in_(bindparam("wanted", expanding=True)), IN_GRAPH
    )
)
_IN_ANY_ROOM = _STORED.where(events.c.event_id == bindparam("event_id"), IN_GRAPH).limit(SAME_ID_MAX)
_TXNS = PreparedSelect(
    select(
        client_transactions.c.event_nid,
        client_transactions.c.user_id,
        client_transactions.c.device_id,
        client_transactions.c.txn_id,
    ).where(client_transactions.c.event_nid.in_(bindparam("wanted", expanding=True)))
)
_redaction_events = events.alias("redaction_events")
_VERDICTS = PreparedSelect(
    select(events.c.event_id, events.c.event_nid, events.c.verdict, events.c.room_nid).where(
        events.c.event_id.in_(bindparam("wanted", expanding=True)),
        events.c.room_nid.in_(bindparam("room_nids", expanding=True)),
        IN_GRAPH,
    )
)
_REDACTIONS = PreparedSelect(
    select(
        redactions.c.room_nid, redactions.c.redacted_event_id, _redaction_events.c.event_id, _redaction_events.c.json
    )
    .join_from(redactions, _redaction_events, _redaction_events.c.event_nid == redactions.c.redaction_nid)
    .where(
        redactions.c.redacted_event_id.in_(bindparam("wanted", expanding=True)),
        redactions.c.room_nid.in_(bindparam("room_nids", expanding=True)),
        redactions.c.applied,
    )
    # Of several redactions, the one that was stored first is shown: later rows are overwritten by earlier ones.
    .order_by(redactions.c.redaction_nid.desc())
)

_EXTREMITIES = PreparedSelect(
    select(
        forward_extremities.c.room_nid,
        events.c.event_id,
        events.c.event_nid,
        events.c.depth,
        events.c.state_group,
    )
    .join_from(forward_extremities, events, events.c.event_nid == forward_extremities.c.event_nid)
    .where(forward_extremities.c.room_nid.in_(bindparam("wanted", expanding=True)))
    .order_by(events.c.event_nid)
)


def events_by_nid(connection: Connection, nids: Iterable[int]) -> list[StoredEvent]:
    """The events with these numeric IDs, in no particular order."""
    return from_rows(connection, _BY_NID.rows(connection, wanted=nids))


def events_by_id(connection: Connection, room_id: str, event_ids: Iterable[str]) -> list[StoredEvent]:
    """The events of a room with these IDs, as far as they are stored. Events of other rooms are left out."""
    return from_rows(connection, _BY_ID.rows(connection, room_id=room_id, wanted=event_ids))


def events_in_any_room(connection: Connection, event_id: str) -> list[StoredEvent]:
    """The events with an ID, at most ``SAME_ID_MAX`` of them. Only for requests that do not name the room."""
    return from_rows(connection, connection.execute(_IN_ANY_ROOM, {"event_id": event_id}).all())


def from_rows(connection: Connection, rows: Sequence[Any]) -> list[StoredEvent]:
    """Stored events of rows with the columns of ``stored_events_select``."""
    if not rows:
        return []
    live = [row[0] for row in rows if row[4] is not None and row[4] > 0]
    txns = {row[0]: (row[1], row[2], row[3]) for row in (_TXNS.rows(connection, wanted=live) if live else ())}
    rooms_of = {row[2]: (ROOM_VERSIONS[row[9]], row[8]) for row in rows}
    redacted_by: dict[tuple[int, str], Event] = {}
    found = _REDACTIONS.rows(connection, wanted=[row[1] for row in rows], room_nids=rooms_of)
    for room_nid, target, redaction_id, json in found:
        version, room_id = rooms_of[room_nid]
        redacted_by[room_nid, target] = Event(orjson.loads(json), version, redaction_id, room_id, bytes(json))
    idle = _idle_redactions(connection, rows)
    return [
        StoredEvent(
            original=Event(orjson.loads(row[7]), ROOM_VERSIONS[row[11] or row[9]], row[1], row[8], bytes(row[7])),
            event_nid=row[0],
            room_nid=row[2],
            verdict=Verdict(row[3]),
            stream_position=row[4],
            state_group=row[5],
            place=row[10],
            replaces_nid=row[6],
            redacted_by=None if row[11] else redacted_by.get((row[2], row[1])),
            txn=txns.get(row[0]),
            is_out_of_band=bool(row[11]),
            is_idle_redaction=row[0] in idle,
        )
        for row in rows
    ]


def _idle_redactions(connection: Connection, rows: Sequence[Any]) -> set[int]:
    """The numeric IDs of those of the events that are redactions and have not taken effect."""
    asked: dict[int, str] = {}
    for row in rows:
        if row[12] == "m.room.redaction":
            redaction = Event(orjson.loads(row[7]), ROOM_VERSIONS[row[11] or row[9]], row[1], row[8])
            asked[row[0]] = redaction.redacts or ""
    if not asked:
        return set()
    applied: set[int] = set()
    for targets in in_slices(list(set(asked.values()))):
        statement = select(redactions.c.redaction_nid).where(
            redactions.c.redacted_event_id.in_(targets), redactions.c.room_nid.in_({row[2] for row in rows})
        )
        applied.update(connection.execute(statement.where(redactions.c.applied)).scalars())
    return asked.keys() - applied


def stored_events_select() -> Select[Any]:
    """A ``SELECT`` of the columns that ``from_rows`` reads, from ``events`` joined with ``rooms``; add a condition to
    it.
    """
    return _STORED


KnownEvents: TypeAlias = dict[str, tuple[int, Verdict]]
"""Event ID to numeric ID and verdict, of the events of one room."""


def nids_of(connection: Connection, room_nid: int, event_ids: Iterable[str]) -> dict[str, int]:
    """Numeric IDs of those of the events of a room that are stored, outliers included."""
    return {event_id: nid for event_id, (nid, _) in nids_and_verdicts(connection, room_nid, event_ids).items()}


def nids_and_verdicts(connection: Connection, room_nid: int, event_ids: Iterable[str]) -> KnownEvents:
    """Numeric ID and verdict of those of the events of a room that are stored."""
    return known_events(connection, {room_nid: list(event_ids)})[room_nid]


def known_events(connection: Connection, wanted: Mapping[int, Collection[str]]) -> dict[int, KnownEvents]:
    """The stored events of several rooms; ``wanted`` maps each room to event IDs."""
    found: dict[int, KnownEvents] = {room_nid: {} for room_nid in wanted}
    wanted = {room_nid: frozenset(event_ids) for room_nid, event_ids in wanted.items()}  # looked up for each row
    all_ids = {event_id for event_ids in wanted.values() for event_id in event_ids}
    for event_id, nid, verdict, room_nid in _VERDICTS.rows(connection, wanted=all_ids, room_nids=wanted):
        # The ID wanted in one room may belong to an event of another one.
        if event_id in wanted[room_nid]:
            found[room_nid][event_id] = (nid, Verdict(verdict))
    return found


def placed_ids(connection: Connection, room_id: str, event_ids: Iterable[str]) -> set[str]:
    """Those of the events that are in the graph of a room."""
    found: set[str] = set()
    for part in in_slices(list(event_ids)):
        statement = (
            select(events.c.event_id)
            .join_from(events, rooms, rooms.c.room_nid == events.c.room_nid)
            .where(rooms.c.room_id == room_id, events.c.event_id.in_(part), events.c.stream_position.is_not(None))
        )
        found.update(connection.execute(statement).scalars())
    return found


@dataclass(frozen=True, slots=True)
class ExtremityRow:
    """A forward extremity as stored."""

    event_id: str
    event_nid: int
    depth: int
    state_group: int
    is_late: bool = False
    """Whether an accepted event follows it, which was here before it."""


def forward_extremities_of(connection: Connection, room_nids: Sequence[int]) -> dict[int, list[ExtremityRow]]:
    """The forward extremities of rooms, by room."""
    found: dict[int, list[ExtremityRow]] = {room_nid: [] for room_nid in room_nids}
    for room_nid, event_id, event_nid, depth, group in _EXTREMITIES.rows(connection, wanted=room_nids):
        found[room_nid].append(ExtremityRow(event_id, event_nid, depth, group))
    # One alone is followed by nothing. So rooms without branches, which are most, cost no further query.
    several = [row.event_nid for rows in found.values() if len(rows) > 1 for row in rows]
    late = _followed_by_accepted(connection, several)
    if late:
        for room_nid, rows in found.items():
            found[room_nid] = [replace(row, is_late=row.event_nid in late) for row in rows]
    return found


def _followed_by_accepted(connection: Connection, event_nids: Sequence[int]) -> set[int]:
    found: set[int] = set()
    for part in in_slices(event_nids):
        statement = (
            select(event_edges.c.prev_nid)
            .join_from(event_edges, events, events.c.event_nid == event_edges.c.event_nid)
            .where(event_edges.c.prev_nid.in_(part), events.c.verdict == 0)
        )
        found.update(connection.execute(statement).scalars())
    return found


def ancestors_among(connection: Connection, room_nid: int, start: Iterable[str], wanted: Collection[str]) -> set[str]:
    """Those of the ``wanted`` events of a room that are among the ``start`` events or their ancestors.

    The walk ends after ``WALK_STEPS_MAX`` events: what is older counts as no ancestor.
    """
    found = set(wanted).intersection(start)
    left = set(wanted) - found
    layer = [nid for nid, _ in nids_and_verdicts(connection, room_nid, start).values()]
    seen = set(layer)
    while layer and left and len(seen) <= WALK_STEPS_MAX:
        before: set[int] = set()
        for part in in_slices(layer):
            # An event that is being written now still counts as missing for those that name it.
            missing = select(backward_extremities.c.missing_event_id).where(
                backward_extremities.c.event_nid.in_(part), backward_extremities.c.missing_event_id.in_(left)
            )
            found.update(connection.execute(missing).scalars())
            edges = (
                select(events.c.event_nid, events.c.event_id)
                .join_from(event_edges, events, events.c.event_nid == event_edges.c.prev_nid)
                .where(event_edges.c.event_nid.in_(part), events.c.room_nid == room_nid)
            )
            for nid, event_id in connection.execute(edges):
                before.add(nid)
                if event_id in left:
                    found.add(event_id)
        left -= found
        layer = list(before - seen)
        seen |= before
    return found


def is_of_another_room(connection: Connection, event_id: str, room_id: str) -> bool:
    """Whether an event with this ID is stored here for any other room."""
    statement = select(events.c.event_nid).join(rooms, rooms.c.room_nid == events.c.room_nid)
    statement = statement.where(events.c.event_id == event_id, rooms.c.room_id != room_id).limit(1)
    return connection.execute(statement).first() is not None


def rejection_reason(connection: Connection, event_nid: int) -> str | None:
    """Why an event was rejected or soft-failed."""
    statement = select(rejections.c.reason).where(rejections.c.event_nid == event_nid)
    return connection.execute(statement).scalar_one_or_none()


def pending_redactions(connection: Connection, room_nid: int, event_ids: Iterable[str]) -> list[StoredEvent]:
    """Redactions of these events of a room that arrived before them.

    Some may have been applied already, to events that were here as outliers and find their places only now.
    """
    nids: list[int] = []
    for part in in_slices(list(event_ids)):
        nids.extend(
            connection.execute(
                select(redactions.c.redaction_nid).where(
                    redactions.c.room_nid == room_nid,
                    redactions.c.redacted_event_id.in_(part),
                )
            ).scalars()
        )
    return events_by_nid(connection, nids)
