"""What other servers ask of the event graph: walks back through it, auth chains, and events as stored bytes.

Nothing here is parsed that need not be: a room's whole state goes from the database to the wire as it is.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import orjson
from sqlalchemy import Connection, and_, func, or_, select

from homeserver.protocol.redaction import redact
from homeserver.protocol.room_versions import RoomVersion
from homeserver.storage import auth_chains
from homeserver.storage.database import in_slices
from homeserver.storage.event_graph import Verdict
from homeserver.storage.room_state import event_ids_of
from homeserver.storage.tables import (
    auth_chain_links,
    backward_extremities,
    event_edges,
    events,
    redactions,
)

WALK_STEPS_MAX = 500
"""Events that one walk looks at, whatever comes of it."""
RANGES_MAX = 200
"""Ranges of auth chains in one statement."""
JOINS_MAX = 20
"""Joins that are looked at to find where our users came into a room."""


# -- walks -------------------------------------------------------------------------------------------------------------


def walk_back(connection: Connection, room_nid: int, start: Iterable[str], limit: int) -> list[int]:
    """Numeric IDs of events and of what comes before them, deepest first; rejected events are passed over.

    https://spec.matrix.org/v1.19/server-server-api/#get_matrixfederationv1backfillroomid
    """
    heap = [(-depth, nid, verdict) for nid, depth, verdict in _placed(connection, room_nid, start)]
    heapq.heapify(heap)
    seen = {nid for _, nid, _ in heap}
    found: list[int] = []
    for _ in range(WALK_STEPS_MAX):
        if not heap or len(found) == limit:
            break
        _, nid, verdict = heapq.heappop(heap)
        if not verdict & Verdict.REJECTED:
            found.append(nid)
        for prev, depth, prev_verdict in _previous(connection, [nid]):
            if prev not in seen:
                seen.add(prev)
                heapq.heappush(heap, (-depth, prev, prev_verdict))
    return found


def walk_between(
    connection: Connection,
    room_nid: int,
    latest: Iterable[str],
    earliest: Iterable[str],
    min_depth: int,
    limit: int,
) -> list[int]:
    """Numeric IDs of what comes before the latest events and is not among the earliest, breadth first.

    https://spec.matrix.org/v1.19/server-server-api/#post_matrixfederationv1get_missing_eventsroomid
    """
    layer = [nid for nid, _, _ in _placed(connection, room_nid, latest)]
    seen = {*layer, *(nid for nid, _, _ in _placed(connection, room_nid, earliest))}
    found: list[int] = []
    steps = 0
    while layer and len(found) < limit and steps < WALK_STEPS_MAX:
        steps += len(layer)
        following: list[int] = []
        for nid, depth, verdict in _previous(connection, layer):
            if nid in seen or depth < min_depth:
                continue
            seen.add(nid)
            following.append(nid)
            if not verdict & Verdict.REJECTED:
                found.append(nid)
        layer = following
    return found[:limit]


def _placed(connection: Connection, room_nid: int, event_ids: Iterable[str]) -> list[tuple[int, int, int]]:
    """``(nid, depth, verdict)`` of those events that stand in the graph of the room."""
    found: list[tuple[int, int, int]] = []
    for part in in_slices(list(event_ids)):
        statement = select(events.c.event_nid, events.c.depth, events.c.verdict).where(
            events.c.event_id.in_(part), events.c.room_nid == room_nid, events.c.stream_position.is_not(None)
        )
        found.extend((row[0], row[1], row[2]) for row in connection.execute(statement))
    return found


def _previous(connection: Connection, nids: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """``(nid, depth, verdict)`` of the prev_events that are in the graph, deepest first."""
    for part in in_slices(nids):
        statement = (
            select(events.c.event_nid, events.c.depth, events.c.verdict)
            .join_from(event_edges, events, events.c.event_nid == event_edges.c.prev_nid)
            .where(event_edges.c.event_nid.in_(part))
            .order_by(events.c.depth.desc(), events.c.event_nid.desc())
        )
        for row in connection.execute(statement):
            yield row[0], row[1], row[2]


def is_followed_by_accepted(connection: Connection, event_id: str) -> bool:
    """Whether an accepted event that stands in the graph names this one among its prev_events.

    Soft-failed and rejected ones do not count: otherwise who sends such an event could keep the one it names out of
    the forward extremities.
    """
    waiting = (
        select(events.c.event_nid)
        .join_from(backward_extremities, events, events.c.event_nid == backward_extremities.c.event_nid)
        .where(backward_extremities.c.missing_event_id == event_id, events.c.verdict == 0)
    )
    if connection.execute(waiting.limit(1)).first():
        return True
    earlier = events.alias("earlier")
    following = (
        select(events.c.event_nid)
        .join_from(event_edges, events, events.c.event_nid == event_edges.c.event_nid)
        .join(earlier, earlier.c.event_nid == event_edges.c.prev_nid)
        .where(earlier.c.event_id == event_id, events.c.verdict == 0)
    )
    return connection.execute(following.limit(1)).first() is not None


@dataclass(frozen=True, slots=True)
class Gap:
    """An event that the graph lacks, and the deepest of those that name it."""

    missing_event_id: str
    event_nid: int
    depth: int


def gaps_below(connection: Connection, room_nid: int, depth: int, limit: int) -> list[Gap]:
    """Where history is missing at or before a depth, the deepest first."""
    table = backward_extremities.c
    statement = (
        select(table.missing_event_id, func.max(table.event_nid), func.max(events.c.depth).label("deepest"))
        .join_from(backward_extremities, events, events.c.event_nid == table.event_nid)
        .where(table.room_nid == room_nid, events.c.depth <= depth)
        .group_by(table.missing_event_id)
        .order_by(func.max(events.c.depth).desc(), table.missing_event_id)
        .limit(limit)
    )
    return [Gap(row[0], row[1], row[2]) for row in connection.execute(statement)]


def joins_before_gaps(connection: Connection, room_nid: int) -> list[int]:
    """Numeric IDs of the oldest accepted member events of whose prev_events the graph lacks one.

    Where a user of ours has joined through another server, their join is among them.
    """
    statement = (
        select(events.c.event_nid)
        .join_from(backward_extremities, events, events.c.event_nid == backward_extremities.c.event_nid)
        .where(backward_extremities.c.room_nid == room_nid, events.c.verdict == 0, events.c.type == "m.room.member")
        .distinct()
        .order_by(events.c.event_nid)
        .limit(JOINS_MAX)
    )
    return list(connection.execute(statement).scalars())


# -- events as bytes ---------------------------------------------------------------------------------------------------


def pdus_by_id(connection: Connection, version: RoomVersion, event_ids: Iterable[str]) -> list[bytes]:
    """PDUs as they go over the wire, redacted where they have been."""
    return _pdus(connection, version, events.c.event_id, list(event_ids))


def pdus_by_nid(connection: Connection, version: RoomVersion, nids: Iterable[int]) -> list[bytes]:
    """The same, by numeric ID, and in that order."""
    return _pdus(connection, version, events.c.event_nid, list(nids))


def event_ids_in_order(connection: Connection, nids: Sequence[int]) -> list[str]:
    """The event IDs of numeric IDs, in the same order."""
    names = event_ids_of(connection, nids)
    return [names[nid] for nid in nids if nid in names]


def _pdus(connection: Connection, version: RoomVersion, column: object, wanted: Sequence[object]) -> list[bytes]:
    found: dict[object, tuple[str, bytes]] = {}
    for part in in_slices(wanted):
        statement = select(column, events.c.event_id, events.c.json).where(column.in_(part))  # type: ignore[call-overload,attr-defined]
        found.update((row[0], (row[1], bytes(row[2]))) for row in connection.execute(statement))
    redacted = _redacted(connection, [event_id for event_id, _ in found.values()])
    ordered = (found[key] for key in wanted if key in found)
    if not redacted:
        return [json for _, json in ordered]
    return [_redact_bytes(json, version) if event_id in redacted else json for event_id, json in ordered]


def _redacted(connection: Connection, event_ids: Sequence[str]) -> set[str]:
    found: set[str] = set()
    for part in in_slices(event_ids):
        statement = select(redactions.c.redacted_event_id).where(
            redactions.c.redacted_event_id.in_(part), redactions.c.applied
        )
        found.update(connection.execute(statement).scalars())
    return found


def _redact_bytes(json: bytes, version: RoomVersion) -> bytes:
    return orjson.dumps(redact(orjson.loads(json), version))


# -- auth chains -------------------------------------------------------------------------------------------------------


def auth_chain_of(connection: Connection, event_ids: Collection[str], *, besides: bool = True) -> list[int]:
    """Numeric IDs of all events in the auth chains of state events, oldest first.

    Of the events themselves it holds those that are in the auth chain of another; none, if ``besides`` is False.
    """
    nids = _nids(connection, event_ids)
    start: auth_chains.Reach = {}
    for chain, sequence in auth_chains.positions_of(connection, nids).values():
        start[chain] = max(sequence, start.get(chain, 0))
    linked = _linked(connection, start)
    # On each chain all that is linked to is reached, and all that comes before where we started.
    before = {chain: max(sequence - 1, linked.get(chain, 0)) for chain, sequence in start.items()}
    found = auth_chains.events_of_reach(connection, {**linked, **before})
    return sorted(found if besides else found - nids)


def _linked(connection: Connection, start: Mapping[int, int]) -> auth_chains.Reach:
    """What is reached through links alone: for each chain, the highest sequence."""
    table = auth_chain_links.c
    reached: auth_chains.Reach = {}
    linked: auth_chains.Reach = {}
    grown = dict(start)
    while grown:
        reached.update(grown)
        found: auth_chains.Reach = {}
        for part in in_slices(list(grown.items()), RANGES_MAX):
            condition = or_(*(and_(table.origin_chain == c, table.origin_sequence <= s) for c, s in part))
            rows = connection.execute(
                select(table.target_chain, func.max(table.target_sequence))
                .where(condition)
                .group_by(table.target_chain)
            )
            for chain, sequence in rows:
                linked[chain] = max(sequence, linked.get(chain, 0))
                if sequence > reached.get(chain, 0):
                    found[chain] = max(sequence, found.get(chain, 0))
        grown = found
    return linked


def auth_chain_through(connection: Connection, auth_event_ids: Collection[str]) -> list[int]:
    """Numeric IDs of auth events and of their auth chains, oldest first."""
    return sorted(auth_chains.auth_chain_nids(connection, _nids(connection, auth_event_ids)))


def _nids(connection: Connection, event_ids: Collection[str]) -> set[int]:
    found: set[int] = set()
    for part in in_slices(list(event_ids)):
        found.update(connection.execute(select(events.c.event_nid).where(events.c.event_id.in_(part))).scalars())
    return found
