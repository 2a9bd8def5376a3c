"""The auth chains of the states that other servers request, cached by state group.

Servers that have missed events request the states at many events of the same room, one after the other or all at once.
Consecutive states differ in few events, and so do their auth chains: only the differences are read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from immutables import Map
from sqlalchemy import Connection

from homeserver.caches import WeightedCache
from homeserver.federation.caching import SingleFlight
from homeserver.graph.state import StateSnapshot
from homeserver.protocol.events import StateKey
from homeserver.storage import federation_queries
from homeserver.storage.database import Database
from homeserver.storage.federation_queries import ChainSummary

CHAINS_BYTES_MAX = 8 * 2**20
"""How much memory the cached auth chains may use."""
SUMMARIES_BYTES_MAX = 12 * 2**20
"""How much memory the cached summaries of rooms may use, from which further chains are computed."""
EVENT_ID_BYTES = 110
REACH_BYTES = 150
"""The approximate memory of one chain in a summary."""
STATE_ENTRY_BYTES = 60
"""The approximate memory of a state entry, most of which is shared with other states."""

State = Map[StateKey, str]
CacheKey = tuple[int, int | None, str]
"""A room, a state group, and the event before which the state is, if it is not the group's own."""


def key_of(room_nid: int, snapshot: StateSnapshot, at: str) -> CacheKey:
    """The key under which to keep what belongs to the state before an event ``at``; without a group, it is not kept."""
    # The state before a state event has no group of its own: it is the one after it, changed back.
    after = snapshot.base.group if snapshot.group is None and snapshot.base is not None else None
    return (room_nid, snapshot.group or after, "" if snapshot.group is not None else at)


@dataclass(frozen=True, slots=True)
class _Latest:
    """The state of a room that was requested last, and the summary of its auth chains."""

    state: State
    summary: ChainSummary


class StateChains:
    """Finds the auth chains of states."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._chains: WeightedCache[CacheKey, Sequence[str]] = WeightedCache(
            "auth chains of states", CHAINS_BYTES_MAX, lambda event_ids: EVENT_ID_BYTES * len(event_ids)
        )
        """Event IDs by room and state."""
        self._latest: WeightedCache[int, _Latest] = WeightedCache("auth chains of rooms", SUMMARIES_BYTES_MAX, _weigh)
        """By numeric room ID."""
        self._flights: SingleFlight[CacheKey, Sequence[str]] = SingleFlight()

    async def of_state(self, room_nid: int, snapshot: StateSnapshot, at: str) -> Sequence[str]:
        """The event IDs of all events in the auth chains of a state's events, oldest first.

        Events of the state itself are included if they are in the auth chain of another one. ``at`` is the event
        before which this is the state: simultaneous requests for the same state share one read.
        """
        key = key_of(room_nid, snapshot, at)
        known = self._chains.get(key)
        if known is not None:
            return known
        return await self._flights.run(key, lambda: self._find(key, room_nid, snapshot))

    async def _find(self, key: CacheKey, room_nid: int, snapshot: StateSnapshot) -> Sequence[str]:
        latest = self._latest.get(room_nid)
        found, event_ids = await self._database.read(_find_chain, room_nid, latest, snapshot.state)
        self._latest.put(room_nid, found)
        if key[1] is not None:
            self._chains.put(key, event_ids)
        return event_ids


def _weigh(latest: _Latest) -> int:
    summary = latest.summary
    return STATE_ENTRY_BYTES * len(latest.state) + REACH_BYTES * (len(summary.start) + len(summary.linked))


def _find_chain(
    connection: Connection, room_nid: int, latest: _Latest | None, state: State
) -> tuple[_Latest, list[str]]:
    summary: ChainSummary | None = None
    if latest is not None:
        summary = federation_queries.changed_summary(
            connection, room_nid, latest.summary, _only_in(state, latest.state), _only_in(latest.state, state)
        )
    if summary is None:
        summary = federation_queries.chain_summary(connection, room_nid, list(state.values()))
    return _Latest(state, summary), federation_queries.chain_event_ids(connection, summary)


def _only_in(state: Mapping[StateKey, str], other: Mapping[StateKey, str]) -> list[str]:
    return [event_id for key, event_id in state.items() if other.get(key) != event_id]
