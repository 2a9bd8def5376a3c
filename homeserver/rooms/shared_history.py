"""What servers in a room may see of its history: events, states and auth chains.

https://spec.matrix.org/v1.19/server-server-api/#retrieving-events
"""

from __future__ import annotations

from collections.abc import Sequence

from homeserver.errors import Forbidden, NotFound
from homeserver.protocol.events import Event, StateKey
from homeserver.protocol.history_visibility import effective_visibility, server_may_see_event
from homeserver.protocol.redaction import redact_event
from homeserver.rooms.events import Events
from homeserver.rooms.server_access import ServerAccess
from homeserver.rooms.state import RoomHead, RoomHeads, StateReader
from homeserver.storage import federation_queries
from homeserver.storage.database import Database
from homeserver.storage.event_graph import StoredEvent, Verdict

BACKFILL_MAX = 100
MISSING_EVENTS_MAX = 50
START_EVENTS_MAX = 50
"""Events that one question may start from."""
VISIBILITY: StateKey = ("m.room.history_visibility", "")


class SharedHistory:
    """Answers servers that are in a room."""

    def __init__(
        self, database: Database, heads: RoomHeads, events: Events, states: StateReader, access: ServerAccess
    ) -> None:
        self._database = database
        self._heads = heads
        self._events = events
        self._states = states
        self._access = access

    async def backfill(self, origin: str, room_id: str, event_ids: Sequence[str], limit: int) -> list[bytes]:
        """Events and what precedes them. What the server may not see comes redacted, to keep the graph in one piece.

        https://spec.matrix.org/v1.19/server-server-api/#get_matrixfederationv1backfillroomid
        """
        head = await self._access.shared_room(room_id, origin)
        nids = await self._database.read(
            federation_queries.walk_back, head.room_nid, event_ids[:START_EVENTS_MAX], min(limit, BACKFILL_MAX)
        )
        return await self._shown(head, origin, nids)

    async def missing_events(
        self,
        origin: str,
        room_id: str,
        *,
        earliest: Sequence[str],
        latest: Sequence[str],
        min_depth: int,
        limit: int,
    ) -> list[bytes]:
        """Events between others, oldest first.

        https://spec.matrix.org/v1.19/server-server-api/#post_matrixfederationv1get_missing_eventsroomid
        """
        head = await self._access.shared_room(room_id, origin)
        nids = await self._database.read(
            federation_queries.walk_between,
            head.room_nid,
            latest[:START_EVENTS_MAX],
            earliest[:START_EVENTS_MAX],
            min_depth,
            min(limit, MISSING_EVENTS_MAX),
        )
        return await self._shown(head, origin, nids[::-1])

    async def event(self, origin: str, event_id: str) -> bytes:
        """One event.

        https://spec.matrix.org/v1.19/server-server-api/#get_matrixfederationv1eventeventid
        """
        stored = await self._events.get(event_id)
        if stored is None or stored.verdict & Verdict.REJECTED:
            raise NotFound("Event not found")
        try:
            head = await self._access.shared_room(stored.event.room_id, origin)
        except Forbidden as error:
            raise NotFound("Event not found") from error  # nor does a stranger learn that it exists
        return (await self._shown(head, origin, [stored.event_nid]))[0]

    async def state(self, origin: str, room_id: str, event_id: str) -> tuple[list[bytes], list[bytes]]:
        """The state before an event, and its auth chain.

        https://spec.matrix.org/v1.19/server-server-api/#get_matrixfederationv1stateroomid
        """
        head = await self._access.shared_room(room_id, origin)
        state_ids = await self._state_before(head, event_id)
        state = await self._database.read(federation_queries.pdus_by_id, head.version, state_ids)
        chain = await self._database.read(federation_queries.auth_chain_of, state_ids)
        return state, await self._database.read(federation_queries.pdus_by_nid, head.version, chain)

    async def state_ids(self, origin: str, room_id: str, event_id: str) -> tuple[list[str], list[str]]:
        """The same as event IDs.

        https://spec.matrix.org/v1.19/server-server-api/#get_matrixfederationv1state_idsroomid
        """
        head = await self._access.shared_room(room_id, origin)
        state_ids = await self._state_before(head, event_id)
        chain = await self._database.read(federation_queries.auth_chain_of, state_ids)
        return state_ids, await self._database.read(federation_queries.event_ids_in_order, chain)

    async def event_auth(self, origin: str, room_id: str, event_id: str) -> list[bytes]:
        """The auth chain of an event.

        https://spec.matrix.org/v1.19/server-server-api/#get_matrixfederationv1event_authroomideventid
        """
        head = await self._access.shared_room(room_id, origin)
        stored = await self._in_room(head, event_id)
        chain = await self._database.read(federation_queries.auth_chain_through, stored.event.auth_events)
        return await self._database.read(federation_queries.pdus_by_nid, head.version, chain)

    async def _state_before(self, head: RoomHead, event_id: str) -> list[str]:
        stored = await self._in_room(head, event_id)
        if stored.state_group is None:
            raise NotFound("The state at that event is not known here")
        return list((await self._states.before(stored)).state.values())

    async def _in_room(self, head: RoomHead, event_id: str) -> StoredEvent:
        stored = await self._events.get(event_id)
        if stored is None or stored.room_nid != head.room_nid:
            raise NotFound(f"Could not find event {event_id[:255]}")
        return stored

    # -- visibility ----------------------------------------------------------------------------------------------------

    async def _shown(self, head: RoomHead, origin: str, nids: Sequence[int]) -> list[bytes]:
        """Events as a server may see them: whole, or redacted."""
        found = await self._events.by_nid(nids)
        shown: list[bytes] = []
        for nid in nids:
            if (stored := found.get(nid)) is None:
                continue
            is_whole = stored.redacted_by is None and await self._may_see(head, origin, stored)
            shown.append(stored.event.json if is_whole else redact_event(stored.event).json)
        return shown

    async def _may_see(self, head: RoomHead, origin: str, stored: StoredEvent) -> bool:
        """https://spec.matrix.org/v1.19/server-server-api/#backfilling-and-retrieving-missing-events"""
        if stored.state_group is None:
            return True  # an auth event, which is part of what every server in the room must know
        visibility = await self._visibility_before(stored)
        if effective_visibility(visibility) in ("world_readable", "shared"):
            return True
        memberships = await self._memberships_at(head, origin, stored.state_group)
        return server_may_see_event(stored.event, origin, visibility, memberships)

    async def _visibility_before(self, stored: StoredEvent) -> str | None:
        assert stored.state_group is not None
        event: Event | None = None
        if stored.event.is_state and stored.event.key == VISIBILITY:
            if stored.replaces_nid is not None:
                replaced = await self._events.by_nid([stored.replaces_nid])
                event = replaced[stored.replaces_nid].event
        else:
            event_id = (await self._states.lookup(stored.state_group, [VISIBILITY])).get(VISIBILITY)
            known = await self._events.get(event_id) if event_id is not None else None
            event = known.event if known is not None else None
        value = event.content.get("history_visibility") if event is not None else None
        return value if isinstance(value, str) else None

    async def _memberships_at(self, head: RoomHead, server_name: str, state_group: int) -> list[str | None]:
        """Of the server's users, at an event. Whoever was ever a member has an entry in the current state."""
        suffix = ":" + server_name
        keys = [key for key in head.state if key[0] == "m.room.member" and key[1].endswith(suffix)]
        event_ids = await self._states.lookup(state_group, keys)
        found = await self._events.by_id(event_ids.values())
        return [stored.event.membership for stored in found.values()]
