"""Filling the gaps in a room's history when somebody scrolls back to them.

https://spec.matrix.org/v1.19/server-server-api/#backfilling-and-retrieving-missing-events
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from weakref import WeakValueDictionary

import structlog

from homeserver.errors import RemoteError
from homeserver.federation.client import FederationClient
from homeserver.graph.events import Events
from homeserver.graph.incoming_events import IncomingEvents
from homeserver.graph.judgement import prev_events_first
from homeserver.graph.placement import Placer
from homeserver.graph.state import RoomHead, RoomHeads
from homeserver.protocol.events import CREATE, POWER_LEVELS
from homeserver.protocol.identifiers import server_of
from homeserver.protocol.power_levels import power_levels_of
from homeserver.storage import federation_queries
from homeserver.storage.database import Database
from homeserver.storage.event_graph import StoredEvent
from homeserver.storage.federation_queries import Gap

logger = structlog.get_logger(__name__)

EVENTS_PER_BACKFILL = 100
GAPS_PER_BACKFILL_MAX = 10
SERVERS_TRIED_MAX = 5
BACKFILL_SECONDS_MAX = 30.0
"""How long somebody who scrolls back waits for other servers."""


class Backfiller:
    """Fetches older events of rooms that this server joined later."""

    def __init__(
        self,
        server_name: str,
        database: Database,
        heads: RoomHeads,
        events: Events,
        client: FederationClient,
        incoming: IncomingEvents,
        placer: Placer,
    ) -> None:
        self._server_name = server_name
        self._database = database
        self._heads = heads
        self._events = events
        self._client = client
        self._incoming = incoming
        self._placer = placer
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def backfill(self, room_id: str, before_depth: int) -> bool:
        """Fetch history from where it was seen to be missing at or before a depth.

        Returns whether there may be more now than was seen. Never fails: a server that does not answer is passed over.
        """
        try:
            async with asyncio.timeout(BACKFILL_SECONDS_MAX):
                return await self._backfill(room_id, before_depth)
        except TimeoutError:
            logger.info("history not given in time", room_id=room_id)
            return False

    async def _backfill(self, room_id: str, before_depth: int) -> bool:
        async with self._locks.setdefault(room_id, asyncio.Lock()):
            head = await self._heads.find(room_id)
            if head is None or not head.joined_local:
                return False
            gaps = await self._gaps(head, before_depth)
            for server_name in (await self._candidates(head, gaps))[:SERVERS_TRIED_MAX] if gaps else ():
                if await self._backfill_from(server_name, head, gaps):
                    return True
            # Whoever asks has seen a gap: if it is another one by now, another request, or process, was faster.
            return not gaps or await self._gaps(head, before_depth) != gaps

    async def _gaps(self, head: RoomHead, before_depth: int) -> list[Gap]:
        return await self._database.read(
            federation_queries.gaps_below, head.room_nid, before_depth, GAPS_PER_BACKFILL_MAX
        )

    async def _backfill_from(self, server_name: str, head: RoomHead, gaps: Sequence[Gap]) -> bool:
        wanted = [gap.missing_event_id for gap in gaps]
        try:
            pdus = await self._client.backfill(server_name, head.room_id, wanted, EVENTS_PER_BACKFILL)
        except RemoteError as error:
            logger.info("no history given", room_id=head.room_id, server=server_name, reason=error.message)
            return False
        found = await self._incoming.check(pdus[:EVENTS_PER_BACKFILL], head.version, head.room_id, is_history=True)
        ordered = prev_events_first({event.event_id: event for event in found})
        outcomes = await self._placer.place(server_name, head.room_id, ordered, is_past=True)
        return any(isinstance(outcome, StoredEvent) for outcome in outcomes.values())

    async def _candidates(self, head: RoomHead, gaps: Sequence[Gap]) -> list[str]:
        """The servers to ask, the likeliest first: those of powerful members, of the events at the gap, the largest."""
        stored = await self._events.by_nid([gap.event_nid for gap in gaps])
        ranked = [
            *await self._servers_of_powerful_members(head),
            *(server_of(event.event.sender) for event in stored.values()),
            *sorted(head.joined_servers, key=lambda name: (-head.joined_servers[name], name)),
        ]
        return _distinct(name for name in ranked if name != self._server_name and name in head.joined_servers)

    async def _servers_of_powerful_members(self, head: RoomHead) -> list[str]:
        keys = (CREATE, POWER_LEVELS)
        state = await self._heads.state_events(head, keys)
        power = state.get(keys[1])
        levels = power_levels_of(head.version, state.get(keys[0]), power)
        listed = power.content.get("users") if power is not None else None
        named = [*levels.creators, *(listed if isinstance(listed, dict) else ())]
        joined = [user_id for user_id in named if user_id in head.joined]
        joined.sort(key=lambda user_id: (-levels.of_user(user_id), user_id))
        return [server_of(user_id) for user_id in joined]


def _distinct(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
