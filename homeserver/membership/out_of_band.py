"""Events that change the memberships of our users in rooms that this server is not in.

https://spec.matrix.org/v1.19/server-server-api/#inviting-to-a-room
"""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import Connection

from homeserver.errors import HomeserverError, NotAuthorized
from homeserver.graph.out_of_band import OutOfBandMemberships
from homeserver.graph.state import RoomHeads
from homeserver.membership.doubtful_revocations import DoubtfulRevocations
from homeserver.membership.out_of_band_invitations import OutOfBandInvitations
from homeserver.membership.resident import shown_to_outsiders
from homeserver.protocol.compose import add_signature
from homeserver.protocol.events import Event, Signer
from homeserver.protocol.identifiers import is_valid_user_id
from homeserver.reading.client_events import stripped_event
from homeserver.storage import delivery as store
from homeserver.storage import out_of_band_events, room_state, user_rooms
from homeserver.storage.database import Database
from homeserver.storage.user_rooms import Standing


class OutOfBand:
    """Accepts events that end invitations, knocks and bans, and invitations that arrive late."""

    def __init__(
        self,
        database: Database,
        heads: RoomHeads,
        memberships: OutOfBandMemberships,
        invitations: OutOfBandInvitations,
        doubtful: DoubtfulRevocations,
        signer: Signer,
        is_local: Callable[[str], bool],
    ) -> None:
        self._database = database
        self._heads = heads
        self._memberships = memberships
        self._invitations = invitations
        self._doubtful = doubtful
        self._signer = signer
        self._is_local = is_local

    async def version_for(self, room_id: str, user_id: str | None) -> str | None:
        """The room version of what comes about a user's membership in a room that this server is not in.

        It is the version that the user's invitation or knock came with, which does not count for other users.
        """
        if user_id is not None and is_valid_user_id(user_id):
            standing = await self._database.read(user_rooms.standing_of, user_id, room_id)
            if standing is not None:
                return standing.version
        return await self._database.read(_version_of, room_id)

    async def receive(self, origin: str, event: Event) -> None:
        """Accept an event of a room that this server is not in, if it changes the membership of one of our users.

        Raises ``HomeserverError`` if it changes nothing.
        """
        user_id = event.state_key
        is_ours = user_id is not None and is_valid_user_id(user_id) and self._is_local(user_id)
        if event.type != "m.room.member" or user_id is None or not is_ours:
            raise HomeserverError("This server is not in the room")
        if event.membership == "invite":
            await self._receive_late(origin, event)
            return
        if event.membership not in ("leave", "ban"):
            raise HomeserverError("This server is not in the room")
        standing = await self._database.read(user_rooms.standing_of, user_id, event.room_id)
        if standing is None or standing.version != event.version.identifier:
            raise HomeserverError("This server is not in the room")
        if standing.event_id == event.event_id:
            return
        if _ends(event, standing):
            await self._end(event, standing)
        elif standing.membership == "invite" and standing.event_id in event.auth_events:
            self._doubtful.settle(standing, user_id, lambda: self._end(event, standing))
        else:
            raise NotAuthorized("The event does not end the user's membership")

    async def _receive_late(self, origin: str, invitation: Event) -> None:
        """Accept an invitation that we signed while in the room, but that arrives after our last user has left it.

        The invited user is shown the state of the room that we knew last.
        """
        head = await self._heads.find(invitation.room_id)
        is_signed = add_signature(invitation, self._signer).pdu == invitation.pdu
        # From another server, or a second time, it may be an old invitation that the user has answered already.
        if head is None or not is_signed or origin != invitation.sender_domain:
            raise HomeserverError("This server is not in the room")
        if await self._database.read(out_of_band_events.is_known, invitation.room_id, invitation.event_id):
            return
        shown = await shown_to_outsiders(self._heads, head, invitation.sender)
        await self._invitations.take_in(invitation, [stripped_event(event) for event in shown])

    async def _end(self, event: Event, standing: Standing) -> None:
        stored = await self._memberships.store(event.version, event, ends=standing.event_id)
        if stored is not None and event.state_key is not None:
            await self._database.write(store.cancel_requests, event.room_id, event.state_key)


def _ends(event: Event, standing: Standing) -> bool:
    """Whether an event certainly ends a membership; all that we know of the room is what came with that membership.

    The answer to an invitation, knock or ban has it among its auth events; an event that does not may be older. An
    invitation is taken back by the user who sent it.
    """
    cites = standing.event_id in event.auth_events
    if standing.membership == "invite":
        return cites and event.sender == standing.sender
    if standing.membership == "knock":
        return cites
    if standing.membership == "ban":
        return event.membership == "leave" and (cites or event.sender == standing.sender)
    return False


def _version_of(connection: Connection, room_id: str) -> str | None:
    row = room_state.room_row(connection, room_id)
    return None if row is None else row[1]
