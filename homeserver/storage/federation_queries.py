"""Queries for requests of other servers: walks back through the event graph, auth chains, and events as stored bytes.

Events are not parsed without need: a room's whole state is sent as the bytes in the database.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from sqlalchemy import Column, Connection, select

from homeserver.protocol.redaction import redact
from homeserver.protocol.room_versions import RoomVersion
from homeserver.storage import auth_chains
from homeserver.storage.database import in_slices
from homeserver.storage.event_graph import IN_GRAPH, WALK_STEPS_MAX, Verdict, nids_of
from homeserver.storage.room_state import event_ids_of
from homeserver.storage.tables import (
    backward_extremities,
    event_edges,
    events,
    redactions,
)

JOINS_MAX = 20
"""How many joins are examined to find where our users came into a room."""


# -- walks -------------------------------------------------------------------------------------------------------------


def walk_back(connection: Connection, room_nid: int, start: Iterable[str], limit: int) -> list[int]:
    """Numeric IDs of events and of their ancestors, deepest first; rejected events are skipped.

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
        for prev, depth, prev_verdict in _previous(connection, room_nid, [nid]):
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
    """Numeric IDs of the ancestors of the latest events, without the earliest ones, breadth first.

    https://spec.matrix.org/v1.19/server-server-api/#post_matrixfederationv1get_missing_eventsroomid
    """
    layer = [nid for nid, _, _ in _placed(connection, room_nid, latest)]
    seen = {*layer, *(nid for nid, _, _ in _placed(connection, room_nid, earliest))}
    found: list[int] = []
    steps = 0
    while layer and len(found) < limit and steps < WALK_STEPS_MAX:
        steps += len(layer)
        following: list[int] = []
        for nid, depth, verdict in _previous(connection, room_nid, layer):
            if nid in seen or depth < min_depth:
                continue
            seen.add(nid)
            following.append(nid)
            if not verdict & Verdict.REJECTED:
                found.append(nid)
        layer = following
    return found[:limit]


def _placed(connection: Connection, room_nid: int, event_ids: Iterable[str]) -> list[tuple[int, int, int]]:
    """``(nid, depth, verdict)`` of those events that are in the graph of the room."""
    found: list[tuple[int, int, int]] = []
    for part in in_slices(list(event_ids)):
        statement = select(events.c.event_nid, events.c.depth, events.c.verdict).where(
            events.c.event_id.in_(part), events.c.room_nid == room_nid, events.c.stream_position.is_not(None)
        )
        found.extend((row[0], row[1], row[2]) for row in connection.execute(statement))
    return found


def _previous(connection: Connection, room_nid: int, nids: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """``(nid, depth, verdict)`` of the prev_events that are in the graph of the room, deepest first."""
    for part in in_slices(nids):
        statement = (
            select(events.c.event_nid, events.c.depth, events.c.verdict)
            .join_from(event_edges, events, events.c.event_nid == event_edges.c.prev_nid)
            .where(event_edges.c.event_nid.in_(part), events.c.room_nid == room_nid)
            .order_by(events.c.depth.desc(), events.c.event_nid.desc())
        )
        for row in connection.execute(statement):
            yield row[0], row[1], row[2]


def is_followed_by_accepted(connection: Connection, room_nid: int, event_id: str) -> bool:
    """Whether an accepted event in the graph of the room names this one among its prev_events.

    Soft-failed and rejected events do not count: otherwise the sender of such an event could remove the event that it
    names from the forward extremities.
    """
    waiting = (
        select(events.c.event_nid)
        .join_from(backward_extremities, events, events.c.event_nid == backward_extremities.c.event_nid)
        .where(
            backward_extremities.c.room_nid == room_nid,
            backward_extremities.c.missing_event_id == event_id,
            events.c.verdict == 0,
        )
    )
    if connection.execute(waiting.limit(1)).first():
        return True
    earlier = events.alias("earlier")
    following = (
        select(events.c.event_nid)
        .join_from(event_edges, events, events.c.event_nid == event_edges.c.event_nid)
        .join(earlier, earlier.c.event_nid == event_edges.c.prev_nid)
        .where(
            earlier.c.event_id == event_id,
            earlier.c.room_nid == room_nid,
            events.c.room_nid == room_nid,
            events.c.verdict == 0,
        )
    )
    return connection.execute(following.limit(1)).first() is not None


def joins_before_gaps(connection: Connection, room_nid: int) -> list[int]:
    """Numeric IDs of the oldest accepted member events that have prev_events missing in the graph.

    If a user of ours joined through another server, the join is among them.
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


def pdus_by_id(connection: Connection, room_nid: int, version: RoomVersion, event_ids: Iterable[str]) -> list[bytes]:
    """PDUs of a room as they are sent, redacted if they have been; in the order of the IDs."""
    return _pdus(connection, room_nid, version, events.c.event_id, list(event_ids))


def pdus_by_nid(connection: Connection, room_nid: int, version: RoomVersion, nids: Iterable[int]) -> list[bytes]:
    """The same by numeric ID, in that order."""
    return _pdus(connection, room_nid, version, events.c.event_nid, list(nids))


def event_ids_in_order(connection: Connection, nids: Sequence[int]) -> list[str]:
    """The event IDs of numeric IDs, in the same order."""
    names = event_ids_of(connection, nids)
    return [names[nid] for nid in nids if nid in names]


def _pdus(
    connection: Connection, room_nid: int, version: RoomVersion, column: Column[Any], wanted: Sequence[object]
) -> list[bytes]:
    found: dict[object, tuple[str, bytes]] = {}
    for part in in_slices(wanted):
        statement = select(column, events.c.event_id, events.c.json).where(
            column.in_(part), events.c.room_nid == room_nid, IN_GRAPH
        )
        found.update((row[0], (row[1], bytes(row[2]))) for row in connection.execute(statement))
    redacted = _redacted(connection, room_nid, [event_id for event_id, _ in found.values()])
    ordered = (found[key] for key in wanted if key in found)
    if not redacted:
        return [json for _, json in ordered]
    return [_redact_bytes(json, version) if event_id in redacted else json for event_id, json in ordered]


def _redacted(connection: Connection, room_nid: int, event_ids: Sequence[str]) -> set[str]:
    found: set[str] = set()
    for part in in_slices(event_ids):
        statement = select(redactions.c.redacted_event_id).where(
            redactions.c.redacted_event_id.in_(part), redactions.c.room_nid == room_nid, redactions.c.applied
        )
        found.update(connection.execute(statement).scalars())
    return found


def _redact_bytes(json: bytes, version: RoomVersion) -> bytes:
    return orjson.dumps(redact(orjson.loads(json), version))


# -- auth chains -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ChainSummary:
    """The reach of the auth chains of a set of events, such as the events of a state. See ``auth_chains``."""

    start: auth_chains.Reach
    """The events themselves: for each chain, the highest sequence of any of them."""
    linked: auth_chains.Reach
    """What is reached through links: for each chain, the highest sequence."""


def auth_chain_of(
    connection: Connection, room_nid: int, event_ids: Collection[str], *, besides: bool = True
) -> list[int]:
    """Numeric IDs of all events in the auth chains of state events of a room, oldest first.

    The events themselves are included if they are in the auth chain of another; never, if ``besides`` is False.
    """
    nids = set(nids_of(connection, room_nid, event_ids).values())
    found = _events_of(connection, _summary(auth_chains.positions_of(connection, nids), connection))
    return sorted(found if besides else found - nids)


def chain_summary(connection: Connection, room_nid: int, event_ids: Collection[str]) -> ChainSummary:
    """Summarise the auth chains of events of a room."""
    nids = nids_of(connection, room_nid, event_ids).values()
    return _summary(auth_chains.positions_of(connection, nids), connection)


def changed_summary(
    connection: Connection, room_nid: int, summary: ChainSummary, added: Collection[str], removed: Collection[str]
) -> ChainSummary | None:
    """The summary of a set of events that differs a little from another one, without reading the whole set.

    None if it must be computed from scratch, because an event was removed that the summary depends on.
    """
    if not added and not removed:
        return summary
    grown: auth_chains.Reach = {}
    added_nids = nids_of(connection, room_nid, added).values()
    removed_nids = nids_of(connection, room_nid, removed).values()
    for chain, sequence in auth_chains.positions_of(connection, added_nids).values():
        grown[chain] = max(sequence, grown.get(chain, 0))
    for chain, sequence in auth_chains.positions_of(connection, removed_nids).values():
        if sequence >= summary.start.get(chain, 0) and grown.get(chain, 0) < sequence:
            return None
    grown = {chain: sequence for chain, sequence in grown.items() if sequence > summary.start.get(chain, 0)}
    return ChainSummary({**summary.start, **grown}, _linked(connection, summary.linked, summary.start, grown))


def chain_event_ids(connection: Connection, summary: ChainSummary) -> list[str]:
    """The event IDs of all events in the summarised auth chains, oldest first; see ``auth_chain_of``."""
    return event_ids_in_order(connection, sorted(_events_of(connection, summary)))


def _summary(places: Mapping[int, tuple[int, int]], connection: Connection) -> ChainSummary:
    start: auth_chains.Reach = {}
    for chain, sequence in places.values():
        start[chain] = max(sequence, start.get(chain, 0))
    return ChainSummary(start, _linked(connection, {}, {}, start))


def _events_of(connection: Connection, summary: ChainSummary) -> set[int]:
    # On each chain, everything that is linked to is reached, and everything before the events themselves.
    before = {
        chain: reached
        for chain, sequence in summary.start.items()
        if (reached := max(sequence - 1, summary.linked.get(chain, 0)))
    }
    return auth_chains.events_of_reach(connection, {**summary.linked, **before})


def _linked(
    connection: Connection, linked: auth_chains.Reach, start: auth_chains.Reach, grown: auth_chains.Reach
) -> auth_chains.Reach:
    """The reach through links alone of ``start`` and ``grown``, given that of ``start`` (``linked``)."""
    reached = {**start}
    for chain, sequence in linked.items():
        reached[chain] = max(sequence, reached.get(chain, 0))
    linked = {**linked}
    while grown:
        reached.update(grown)
        found: auth_chains.Reach = {}
        for chain, sequence in auth_chains.links_from(connection, grown):
            linked[chain] = max(sequence, linked.get(chain, 0))
            if sequence > reached.get(chain, 0):
                found[chain] = max(sequence, found.get(chain, 0))
        grown = found
    return linked


def auth_chain_through(connection: Connection, room_nid: int, auth_event_ids: Collection[str]) -> list[int]:
    """Numeric IDs of auth events of a room and of their auth chains, oldest first."""
    return sorted(auth_chains.auth_chain_nids(connection, nids_of(connection, room_nid, auth_event_ids).values()))
