"""Leaving rooms that this server is not in: our users reject invitations and take back knocks.

https://spec.matrix.org/v1.19/server-server-api/#leaving-rooms-rejecting-invites
"""

from __future__ import annotations

from homeserver.clock import Clock
from homeserver.federation.client import FederationClient
from homeserver.graph.events import Events
from homeserver.graph.out_of_band import OutOfBandMemberships
from homeserver.graph.send import new_event_id_localpart
from homeserver.graph.state import RoomHeads
from homeserver.membership.handshakes import Handshakes
from homeserver.membership.owed_requests import LEAVE, OwedRequests
from homeserver.protocol.compose import compose_event
from homeserver.protocol.event_format import depth_after
from homeserver.protocol.events import Event, EventDraft, Signer
from homeserver.protocol.hashes import reference_hash, unpadded_base64
from homeserver.protocol.json_types import JsonObject
from homeserver.protocol.room_versions import ROOM_VERSIONS
from homeserver.storage.user_rooms import Standing


class RemoteLeaves:
    """Lets our users leave rooms that this server is not in, and tells a server that is."""

    def __init__(
        self,
        handshakes: Handshakes,
        heads: RoomHeads,
        events: Events,
        memberships: OutOfBandMemberships,
        client: FederationClient,
        owed: OwedRequests,
        signer: Signer,
        clock: Clock,
    ) -> None:
        self._handshakes = handshakes
        self._heads = heads
        self._events = events
        self._memberships = memberships
        self._client = client
        self._owed = owed
        self._signer = signer
        self._clock = clock

    async def leave(self, standing: Standing, user_id: str, reason: str | None) -> None:
        """Leave a room that this server is not in: reject an invitation, or take back a knock.

        For the user it ends at once. The other servers are told as soon as one of them can be reached.
        """
        content: JsonObject = {"membership": "leave", **({"reason": reason} if reason is not None else {})}
        head = await self._heads.find(standing.room_id)
        known = list(head.joined_servers) if head is not None else []
        candidates = self._handshakes.candidates(standing.room_id, (), standing, known)
        if candidates:
            await self._owed.owe(LEAVE, standing.room_id, user_id, candidates, content)
        await self.leave_here(standing, user_id, reason)

    async def leave_here(self, standing: Standing, user_id: str, reason: str | None) -> None:
        """End the user's membership on this server only, with an event that no other server gets."""
        version = ROOM_VERSIONS[standing.version]
        ended = (await self._events.by_nid([standing.event_nid]))[standing.event_nid].original
        reference = (ended.event_id, unpadded_base64(reference_hash(ended.pdu, version)))
        content: JsonObject = {"membership": "leave", **({"reason": reason} if reason is not None else {})}
        event = compose_event(
            EventDraft("m.room.member", user_id, content, user_id),
            version,
            room_id=standing.room_id,
            prev_events=[reference],
            auth_events=[reference],
            depth=depth_after([ended.depth], version),
            origin_server_ts=self._clock.now_ms(),
            signer=self._signer,
            event_id_localpart=new_event_id_localpart(version),
        )
        await self._memberships.store(version, event)

    async def finish_leave(self, server_name: str, room_id: str, user_id: str, content: JsonObject) -> bool:
        """Tell a server that our user leaves (a ``Handshake``). Raises ``RemoteError``, ``UnusableAnswer``."""
        event = await self.leave_event(server_name, room_id, user_id, content)
        async with self._handshakes.turn(room_id):
            # While that server made the template, the user may have been invited again, or have joined: the leave would
            # end that.
            if await self._owed.is_owed(LEAVE, room_id, user_id):
                await self.send(server_name, event)
        return True

    async def leave_event(self, server_name: str, room_id: str, user_id: str, content: JsonObject) -> Event:
        """A leave of our user, made from a template of a server. Raises ``RemoteError``, ``UnusableAnswer``."""
        answer = await self._client.make_leave(server_name, room_id, user_id)
        _, event = self._handshakes.finish(server_name, answer, room_id, user_id, content)
        return event

    async def send(self, server_name: str, leave: Event) -> None:
        """Send a leave to a server that is in the room. Raises ``RemoteError``."""
        await self._client.send_leave(server_name, leave.room_id, leave.event_id, leave.pdu)
