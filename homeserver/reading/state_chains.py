"""The auth chains of the states that other servers ask for, remembered by state group.

Servers that have missed something ask for the states at many events of the same room, one after the other or all at
once. States that follow each other differ in a few events: so does what their auth chains reach, and only that is
looked up.
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
"""What the auth chains of states may take of memory."""
SUMMARIES_BYTES_MAX = 12 * 2**20
"""What may be kept of rooms to find further chains from."""
EVENT_ID_BYTES = 110
REACH_BYTES = 150
"""About what one chain in a reach takes."""
STATE_ENTRY_BYTES = 60
"""About what an entry of a state takes that most others share."""

State = Map[StateKey, str]


@dataclass(frozen=True, slots=True)
class _Latest:
    """The state of a room that was asked for last, and what its auth chains reach."""

    state: State
    summary: ChainSummary


class StateChains:
    """Finds the auth chains of states."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._chains: WeightedCache[int, Sequence[str]] = WeightedCache(
            "auth chains of states", CHAINS_BYTES_MAX, lambda event_ids: EVENT_ID_BYTES * len(event_ids)
        )
        """Event IDs by state group."""
        self._latest: WeightedCache[int, _Latest] = WeightedCache("auth chains of rooms", SUMMARIES_BYTES_MAX, _weigh)
        """By numeric room ID."""
        self._flights: SingleFlight[tuple[int, int | str], Sequence[str]] = SingleFlight()

    async def of_state(self, room_nid: int, snapshot: StateSnapshot, at: str) -> Sequence[str]:
        """The event IDs of all events in the auth chains of a state's events, oldest first.

        Those of the state's own events are among them that are in the auth chain of another one. ``at`` is the event
        before which that is the state: equal questions at the same time are answered together.
        """
        group = snapshot.group
        known = self._chains.get(group) if group is not None else None
        if known is not None:
            return known
        key = (room_nid, at if group is None else group)
        return await self._flights.run(key, lambda: self._find(room_nid, snapshot))

    async def _find(self, room_nid: int, snapshot: StateSnapshot) -> Sequence[str]:
        latest = self._latest.get(room_nid)
        found, event_ids = await self._database.read(_find_chain, room_nid, latest, snapshot.state)
        self._latest.put(room_nid, found)
        if snapshot.group is not None:
            self._chains.put(snapshot.group, event_ids)
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
