"""What servers in a room may see of its history: events, states and auth chains.

A server that has left the room still gets the events from while it was in it: it may have been down when its last user
was removed, and needs the earlier events to accept the removal.

https://spec.matrix.org/v1.19/server-server-api/#retrieving-events
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from sqlalchemy import Connection

from homeserver.caches import WeightedCache
from homeserver.errors import Forbidden, NotFound
from homeserver.graph.events import Events
from homeserver.graph.server_access import ServerAccess, member_keys
from homeserver.graph.state import RoomHead, RoomHeads, StateReader, StateSnapshot
from homeserver.protocol.events import Event, StateKey
from homeserver.protocol.history_visibility import effective_visibility, server_may_see_event
from homeserver.protocol.redaction import redact_event
from homeserver.protocol.room_versions import RoomVersion
from homeserver.reading.state_chains import CacheKey, StateChains, key_of
from homeserver.storage import federation_queries
from homeserver.storage.database import Database
from homeserver.storage.event_graph import StoredEvent, Verdict

BACKFILL_MAX = 100
MISSING_EVENTS_MAX = 50
START_EVENTS_MAX = 50
"""How many events one request may start from."""
RENDERED_BYTES_MAX = 24 * 2**20
"""How much memory the rendered states may use, which servers that have missed something all ask for."""
VISIBILITY: StateKey = ("m.room.history_visibility", "")


class SharedHistory:
    """Answers other servers that are or were in a room."""

    def __init__(
        self, database: Database, heads: RoomHeads, events: Events, states: StateReader, access: ServerAccess
    ) -> None:
        self._database = database
        self._heads = heads
        self._events = events
        self._states = states
        self._access = access
        self._chains = StateChains(database)
        self._rendered: WeightedCache[CacheKey, bytes] = WeightedCache(
            "states for other servers", RENDERED_BYTES_MAX, len
        )
        """By room and state group, until an event is redacted."""
        self._changes = 0
        events.watch(self._forget_rendered)

    async def backfill(self, origin: str, room_id: str, event_ids: Sequence[str], limit: int) -> list[bytes]:
        """Events and their ancestors. Events that the server may not see are redacted, which keeps the graph connected.

        https://spec.matrix.org/v1.19/server-server-api/#get_matrixfederationv1backfillroomid
        """
        head = await self._access.known_room(room_id, origin)
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
        head = await self._access.known_room(room_id, origin)
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
        for stored in await self._events.in_any_room(event_id):
            if stored.verdict & Verdict.REJECTED:
                continue
            try:
                head = await self._access.known_room(stored.event.room_id, origin)
            except (Forbidden, NotFound):
                continue  # a server that may not see the event must not learn that it exists
            if shown := await self._shown(head, origin, [stored.event_nid]):
                return shown[0]
        raise NotFound("Event not found")

    async def state(self, origin: str, room_id: str, event_id: str) -> bytes:
        """The state before an event, and its auth chain, as JSON: ``{"auth_chain", "pdus"}``.

        https://spec.matrix.org/v1.19/server-server-api/#get_matrixfederationv1stateroomid
        """
        head = await self._access.known_room(room_id, origin)
        before = await self._state_before(head, origin, event_id)
        key = key_of(head.room_nid, before, event_id)
        known = self._rendered.get(key)
        if known is not None:
            return known
        chain = await self._chains.of_state(head.room_nid, before, event_id)
        changes = self._changes
        rendered = await self._database.read(
            _rendered_state, head.room_nid, head.version, list(before.state.values()), chain
        )
        # An event that was redacted meanwhile must not stay in memory as it was.
        if key[1] is not None and changes == self._changes and len(rendered) <= RENDERED_BYTES_MAX:
            self._rendered.put(key, rendered)
        return rendered

    def _forget_rendered(self, _event_id: str) -> None:
        self._changes += 1
        self._rendered.clear()

    async def state_ids(self, origin: str, room_id: str, event_id: str) -> tuple[Sequence[str], Sequence[str]]:
        """The state before an event and its auth chain, as event IDs.

        https://spec.matrix.org/v1.19/server-server-api/#get_matrixfederationv1state_idsroomid
        """
        head = await self._access.known_room(room_id, origin)
        before = await self._state_before(head, origin, event_id)
        chain = await self._chains.of_state(head.room_nid, before, event_id)
        return list(before.state.values()), chain

    async def event_auth(self, origin: str, room_id: str, event_id: str) -> list[bytes]:
        """The auth chain of an event.

        https://spec.matrix.org/v1.19/server-server-api/#get_matrixfederationv1event_authroomideventid
        """
        head = await self._access.known_room(room_id, origin)
        stored = await self._in_room(head, origin, event_id)
        chain = await self._database.read(
            federation_queries.auth_chain_through, head.room_nid, stored.event.auth_events
        )
        return await self._database.read(federation_queries.pdus_by_nid, head.room_nid, head.version, chain)

    async def _state_before(self, head: RoomHead, origin: str, event_id: str) -> StateSnapshot:
        stored = await self._in_room(head, origin, event_id)
        if stored.state_group is None:
            raise NotFound("The state at that event is not known here")
        return await self._states.before(stored)

    async def _in_room(self, head: RoomHead, origin: str, event_id: str) -> StoredEvent:
        stored = await self._events.get(head.room_id, event_id)
        # Another server must not build on the state at a rejected event. (A soft-failed event is part of the room, and
        # other servers may have accepted it.)
        if stored is None or stored.verdict & Verdict.REJECTED:
            raise NotFound(f"Could not find event {event_id[:255]}")
        if origin not in head.joined_servers and not await self._was_there(_Viewer(head, origin), stored):
            raise Forbidden("Your server is not in this room")
        return stored

    # -- visibility ----------------------------------------------------------------------------------------------------

    async def _shown(self, head: RoomHead, origin: str, nids: Sequence[int]) -> list[bytes]:
        """Events as a server may see them: whole, or redacted, or left out if the server has left the room."""
        viewer = _Viewer(head, origin)
        found = await self._events.by_nid(nids)
        shown: list[bytes] = []
        for nid in nids:
            if (stored := found.get(nid)) is None:
                continue
            may_see = await self._may_see(viewer, stored)
            if may_see or viewer.is_inside:
                shown.append(stored.event.json if may_see else redact_event(stored.event).json)
        return shown

    async def _may_see(self, viewer: _Viewer, stored: StoredEvent) -> bool:
        """https://spec.matrix.org/v1.19/server-server-api/#backfilling-and-retrieving-missing-events"""
        if stored.state_group is None:
            return viewer.is_inside  # an auth event: every server in the room needs it
        if not viewer.is_inside:
            _, _, server_name = (stored.event.state_key or "").partition(":")
            is_its_member = stored.event.type == "m.room.member" and server_name == viewer.server_name
            return is_its_member or await self._was_there(viewer, stored)
        visibility = await self._visibility_before(stored)
        if effective_visibility(visibility) in ("world_readable", "shared"):
            return True
        memberships = await self._memberships_at(viewer, stored)
        return server_may_see_event(stored.event, viewer.server_name, visibility, memberships)

    async def _was_there(self, viewer: _Viewer, stored: StoredEvent) -> bool:
        """Whether a server that has left the room had joined users at an event."""
        if stored.state_group is None:
            return False
        event_ids = set((await self._states.lookup(stored.state_group, viewer.member_keys)).values())
        members = [*(await self._events.by_id(stored.event.room_id, event_ids - {stored.event.event_id})).values()]
        if stored.event.event_id in event_ids and stored.replaces_nid is not None:
            members.extend((await self._events.by_nid([stored.replaces_nid])).values())
        return any(member.event.membership == "join" for member in members)

    async def _visibility_before(self, stored: StoredEvent) -> str | None:
        assert stored.state_group is not None
        event: Event | None = None
        if stored.event.is_state and stored.event.key == VISIBILITY:
            if stored.replaces_nid is not None:
                replaced = await self._events.by_nid([stored.replaces_nid])
                event = replaced[stored.replaces_nid].event
        else:
            event_id = (await self._states.lookup(stored.state_group, [VISIBILITY])).get(VISIBILITY)
            known = await self._events.get(stored.event.room_id, event_id) if event_id is not None else None
            event = known.event if known is not None else None
        value = event.content.get("history_visibility") if event is not None else None
        return value if isinstance(value, str) else None

    async def _memberships_at(self, viewer: _Viewer, stored: StoredEvent) -> list[str | None]:
        """The memberships of the server's users at an event."""
        assert stored.state_group is not None
        event_ids = await self._states.lookup(stored.state_group, viewer.member_keys)
        found = await self._events.by_id(stored.event.room_id, event_ids.values())
        return [member.event.membership for member in found.values()]


def _rendered_state(
    connection: Connection, room_nid: int, version: RoomVersion, state_ids: Sequence[str], chain_ids: Sequence[str]
) -> bytes:
    # Joined here, on the database's thread: the answer may have tens of megabytes.
    state = federation_queries.pdus_by_id(connection, room_nid, version, state_ids)
    chain = federation_queries.pdus_by_id(connection, room_nid, version, chain_ids)
    return b'{"auth_chain":[%s],"pdus":[%s]}' % (b",".join(chain), b",".join(state))


class _Viewer:
    """A requesting server, and whether it is in the room."""

    def __init__(self, head: RoomHead, server_name: str) -> None:
        self.server_name = server_name
        self.is_inside = server_name in head.joined_servers
        self._head = head

    @cached_property
    def member_keys(self) -> list[StateKey]:
        """The state keys of its users' member events; found by going through all of the room's state."""
        return member_keys(self._head, self.server_name)
