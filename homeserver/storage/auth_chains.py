"""The chain cover of the auth graph: computes auth chains without walking the graph.

Every state event has a place ``(chain, sequence)``; an event reaches all earlier ones of its own chain, and whatever
the links of its chain lead to (those from the event itself or an earlier one). A set of events is thus summed up as a
*reach*: for each chain, the highest sequence that is reached. Auth chains, differences and subgraphs are ranges on
chains.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

from sqlalchemy import Connection, TextClause, bindparam, func, select, text

from homeserver.storage.database import in_slices
from homeserver.storage.prepared import PreparedSelect, prepared_insert
from homeserver.storage.tables import auth_chain_links, auth_chain_positions

Reach = dict[int, int]
"""Chain to the highest sequence reached on it."""

_Links = dict[int, list[tuple[int, int, int]]]
"""Chain to the links from it: own sequence, the other chain, the sequence on that chain."""

_RANGES_MAX = 200
"""The most ranges in one statement."""
_POSITIONS = PreparedSelect(
    select(auth_chain_positions.c.event_nid, auth_chain_positions.c.chain, auth_chain_positions.c.sequence).where(
        auth_chain_positions.c.event_nid.in_(bindparam("wanted", expanding=True))
    )
)
_TIPS = PreparedSelect(
    select(auth_chain_positions.c.chain, func.max(auth_chain_positions.c.sequence))
    .where(auth_chain_positions.c.chain.in_(bindparam("wanted", expanding=True)))
    .group_by(auth_chain_positions.c.chain)
)
_INSERT_POSITIONS = prepared_insert(auth_chain_positions)
_INSERT_LINKS = prepared_insert(auth_chain_links)


def assign_positions(
    connection: Connection, new: Sequence[tuple[int, Sequence[int]]], new_chains: Iterator[int]
) -> None:
    """Assign places to state events. ``new`` holds ``(event_nid, auth event nids)``, auth events first."""
    positions = positions_of(connection, {auth for _, auths in new for auth in auths})
    tips = _tips(connection, {chain for chain, _ in positions.values()})
    rows: list[dict[str, Any]] = []
    links: list[dict[str, Any]] = []
    for nid, auths in new:
        reached: Reach = {}
        for auth in auths:
            if (place := positions.get(auth)) is not None and place[1] > reached.get(place[0], 0):
                reached[place[0]] = place[1]
        extended = None
        for chain, sequence in reached.items():
            if tips[chain] == sequence and (extended is None or chain < extended):
                extended = chain
        if extended is None:
            chain, sequence = next(new_chains), 1
        else:
            chain, sequence = extended, reached.pop(extended) + 1
        positions[nid] = (chain, sequence)
        tips[chain] = sequence
        rows.append({"event_nid": nid, "chain": chain, "sequence": sequence})
        for target, target_sequence in reached.items():
            links.append(
                {
                    "origin_chain": chain,
                    "origin_sequence": sequence,
                    "target_chain": target,
                    "target_sequence": target_sequence,
                }
            )
    _INSERT_POSITIONS.run(connection, rows)
    _INSERT_LINKS.run(connection, links)


def positions_of(connection: Connection, nids: Iterable[int]) -> dict[int, tuple[int, int]]:
    """``(chain, sequence)`` of events."""
    return {row[0]: (row[1], row[2]) for row in _POSITIONS.rows(connection, wanted=nids)}


def _tips(connection: Connection, chains: Iterable[int]) -> dict[int, int]:
    return {row[0]: row[1] for row in _TIPS.rows(connection, wanted=chains)}


def reach_of(connection: Connection, nids: Iterable[int]) -> Reach:
    """The reach of a set of events: themselves and their auth chains."""
    start: Reach = {}
    for chain, sequence in positions_of(connection, nids).values():
        start[chain] = max(sequence, start.get(chain, 0))
    return _close(connection, {}, start)


def _close(connection: Connection, reach: Reach, grown: Reach) -> Reach:
    """Extend ``reach`` by the links from ``grown``, and by theirs, until nothing is added."""
    while grown:
        reach.update(grown)
        found: Reach = {}
        for chain, sequence in links_from(connection, grown):
            if sequence > reach.get(chain, 0):
                found[chain] = max(sequence, found.get(chain, 0))
        grown = found
    return reach


def links_from(connection: Connection, reach: Reach) -> Iterator[tuple[int, int]]:
    """Where the links from the events of a reach lead: chains, each with the highest sequence; a chain may come several
    times.
    """
    table = auth_chain_links.c
    for part in in_slices(list(reach.items()), _RANGES_MAX):
        condition = _within(((c, 1, s) for c, s in part), "origin_chain", "origin_sequence")
        rows = connection.execute(
            select(table.target_chain, func.max(table.target_sequence)).where(condition).group_by(table.target_chain)
        )
        yield from ((row[0], row[1]) for row in rows)


def auth_difference(connection: Connection, state_sets: Sequence[frozenset[int]]) -> set[int]:
    """The events that are in the full auth chain of one of the states but not of all."""
    shared = frozenset.intersection(*state_sets)
    return difference_beyond(connection, shared, [state_set - shared for state_set in state_sets])


def difference_beyond(
    connection: Connection, shared: AbstractSet[int], own_sets: Sequence[AbstractSet[int]]
) -> set[int]:
    """The auth difference of states, given the events that they share and for each state the others.

    If ``shared`` is only a part of what they share, the result is the auth difference and perhaps more: events that the
    rest of it reaches.
    """
    common = reach_of(connection, shared) if shared else {}
    places = positions_of(connection, set().union(*own_sets))
    starts = [_beyond(common, (places[nid] for nid in own if nid in places)) for own in own_sets]
    links = _links_beyond(connection, common, _beyond(common, (place for start in starts for place in start.items())))
    reaches = [_reach_beyond(common, start, links) for start in starts]
    ranges = []
    for chain in {chain for reach in reaches for chain in reach}:
        ends = [reach.get(chain, common.get(chain, 0)) for reach in reaches]
        if min(ends) < max(ends):
            ranges.append((chain, min(ends) + 1, max(ends)))
    return set(_events_in(connection, ranges))


def _beyond(common: Reach, places: Iterable[tuple[int, int]]) -> Reach:
    """For each chain the highest of the sequences, if it is beyond ``common``."""
    highest: Reach = {}
    for chain, sequence in places:
        if sequence > highest.get(chain, common.get(chain, 0)):
            highest[chain] = sequence
    return highest


def _links_beyond(connection: Connection, common: Reach, start: Reach) -> _Links:
    """The links from ``start``, and on from their ends, as far as they lead beyond ``common``."""
    links: _Links = {}
    table = auth_chain_links.c
    columns = (table.origin_chain, table.origin_sequence, table.target_chain, table.target_sequence)
    known = dict(common)
    grown = start
    while grown:
        ranges = [(chain, known.get(chain, 0) + 1, sequence) for chain, sequence in grown.items()]
        known.update(grown)
        found: list[tuple[int, int]] = []
        for part in in_slices(ranges, _RANGES_MAX):
            rows = connection.execute(select(*columns).where(_within(part, "origin_chain", "origin_sequence")))
            for origin, origin_sequence, target, target_sequence in rows:
                if target_sequence > common.get(target, 0):
                    links.setdefault(origin, []).append((origin_sequence, target, target_sequence))
                    found.append((target, target_sequence))
        grown = _beyond(known, found)
    return links


def _reach_beyond(common: Reach, start: Reach, links: _Links) -> Reach:
    """The reach of ``start`` as far as it is beyond ``common``."""
    reach: Reach = {}
    todo = list(start.items())
    while todo:
        chain, sequence = todo.pop()
        if sequence <= reach.get(chain, common.get(chain, 0)):
            continue
        reach[chain] = sequence
        todo.extend((target, end) for origin, target, end in links.get(chain, ()) if origin <= sequence)
    return reach


def conflicted_subgraph(connection: Connection, conflicted: Iterable[int], starts: Iterable[int] = ()) -> set[int]:
    """All events on a path of auth events from one conflicted event to another, ends included.

    ``starts`` are events through which paths from conflicted events that are not committed yet may pass.
    """
    places = positions_of(connection, conflicted)
    reached = reach_of(connection, places.keys() | set(starts))
    leads: Reach = {}  # chain to the lowest sequence from which a conflicted event is reached
    for chain, sequence in places.values():
        leads[chain] = min(sequence, leads.get(chain, sequence))
    inward = _links_between(connection, reached)
    grown = dict(leads)
    while grown:
        found: Reach = {}
        for target, lowest in grown.items():
            for origin, origin_sequence, target_sequence in inward.get(target, ()):
                better = origin_sequence < leads.get(origin, origin_sequence + 1)
                if target_sequence >= lowest and better:
                    found[origin] = leads[origin] = origin_sequence
        grown = found
    ranges = [(chain, lowest, reached[chain]) for chain, lowest in leads.items() if lowest <= reached.get(chain, 0)]
    return set(_events_in(connection, ranges))


def _links_between(connection: Connection, reached: Reach) -> dict[int, list[tuple[int, int, int]]]:
    """The links from the reached part of each chain: target chain to (origin, its sequence, target's sequence)."""
    inward: dict[int, list[tuple[int, int, int]]] = {}
    table = auth_chain_links.c
    for part in in_slices(list(reached.items()), _RANGES_MAX):
        condition = _within(((c, 1, s) for c, s in part), "origin_chain", "origin_sequence")
        rows = connection.execute(
            select(table.target_chain, table.origin_chain, table.origin_sequence, table.target_sequence).where(
                condition
            )
        )
        for target, origin, origin_sequence, target_sequence in rows:
            inward.setdefault(target, []).append((origin, origin_sequence, target_sequence))
    return inward


def auth_chain_nids(connection: Connection, nids: Iterable[int]) -> set[int]:
    """The events themselves and their whole auth chains."""
    return events_of_reach(connection, reach_of(connection, nids))


def events_of_reach(connection: Connection, reach: Mapping[int, int]) -> set[int]:
    """All events in a reach."""
    return set(_events_in(connection, [(chain, 1, sequence) for chain, sequence in reach.items()]))


def _events_in(connection: Connection, ranges: Sequence[tuple[int, int, int]]) -> Iterator[int]:
    table = auth_chain_positions.c
    for part in in_slices(ranges, _RANGES_MAX):
        condition = _within(part, "chain", "sequence")
        yield from connection.execute(select(table.event_nid).where(condition)).scalars()


def _within(ranges: Iterable[tuple[int, int, int]], chain: str, sequence: str) -> TextClause:
    """The condition that columns are within one of the ranges, ends included.

    It is text, because building hundreds of expressions takes longer than the query itself.
    """
    return text(
        "("
        + " OR ".join(f"({chain} = {c:d} AND {sequence} BETWEEN {low:d} AND {high:d})" for c, low, high in ranges)
        + ")"
    )
