"""Memberships of our users in rooms that this server is not in: invitations that come, and what becomes of them.

https://spec.matrix.org/v1.19/server-server-api/#inviting-to-a-room
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import orjson
from sqlalchemy import Connection

from homeserver.errors import (
    Forbidden,
    HomeserverError,
    IncompatibleRoomVersion,
    InvalidEvent,
    InvalidParam,
    InvalidSignature,
    NotAuthorized,
    TooLarge,
)
from homeserver.graph.events import Events
from homeserver.graph.imports import RoomImports
from homeserver.graph.incoming_events import IncomingEvents, parse_submitted
from homeserver.graph.server_access import ServerAccess
from homeserver.graph.state import RoomHeads
from homeserver.membership.doubtful_revocations import DoubtfulRevocations
from homeserver.membership.resident import shown_to_outsiders
from homeserver.protocol.compose import add_signature
from homeserver.protocol.event_format import PDU_BYTES_MAX, parse_event
from homeserver.protocol.events import Event, Signer
from homeserver.protocol.identifiers import is_valid_user_id, server_of
from homeserver.protocol.json_types import JsonObject
from homeserver.protocol.room_versions import ROOM_VERSIONS, RoomVersion
from homeserver.reading.client_events import stripped_event
from homeserver.storage import accounts, out_of_band_events, room_state, user_rooms
from homeserver.storage import delivery as store
from homeserver.storage.database import Database
from homeserver.storage.user_rooms import Standing

ROOM_STATE_EVENTS_MAX = 100
ROOM_STATE_BYTES_MAX = 512 * 1024


class OutOfBand:
    """Takes invitations from other servers, and the events that end them."""

    def __init__(
        self,
        server_name: str,
        database: Database,
        heads: RoomHeads,
        events: Events,
        imports: RoomImports,
        incoming: IncomingEvents,
        access: ServerAccess,
        doubtful: DoubtfulRevocations,
        signer: Signer,
        is_local: Callable[[str], bool],
    ) -> None:
        self._doubtful = doubtful
        self._server_name = server_name
        self._database = database
        self._heads = heads
        self._events = events
        self._imports = imports
        self._incoming = incoming
        self._access = access
        self._signer = signer
        self._is_local = is_local

    # -- invitations ---------------------------------------------------------------------------------------------------

    async def receive_invite(
        self, origin: str, room_id: str, event_id: str, pdu: JsonObject, room_version: str, room_state: Sequence[Any]
    ) -> Event:
        """Take an invitation of one of our users; returns it with our signature.

        Raises ``IncompatibleRoomVersion``, ``InvalidParam`` for what is not an invitation from that server,
        ``Forbidden`` where the user cannot be invited.

        https://spec.matrix.org/v1.19/server-server-api/#put_matrixfederationv2inviteroomideventid
        """
        version = ROOM_VERSIONS.get(room_version)
        if version is None:
            raise IncompatibleRoomVersion(
                "This server does not support the features required to take part in this room",
                room_version=room_version,
            )
        event = await self._check_invite(origin, room_id, event_id, pdu, version)
        user_id = event.state_key
        assert user_id is not None
        if user_id not in await self._database.read(accounts.existing_users, [user_id]):
            raise Forbidden("The user cannot be invited")
        shown = await self._check_room_state(version, room_id, room_state)
        signed = add_signature(event, self._signer)
        if len(signed.json) > PDU_BYTES_MAX:
            raise InvalidParam("The event is too large to be signed by another server")
        head = await self._heads.find(room_id)
        if head is not None and head.joined_local:
            # It is taken into the graph that we have, see ``incoming_invitations``.
            if not await self._access.is_allowed(head, origin):
                raise Forbidden("Your server is not allowed in this room")
            if user_id in head.joined:
                raise Forbidden("The user is in the room already")
            return signed
        if head is not None and head.version is not version:
            raise InvalidParam("The room has another version")
        await self._take_in(signed, shown)
        return signed

    async def _take_in(self, invitation: Event, shown: Sequence[JsonObject]) -> None:
        await self._imports.out_of_band(invitation.version, invitation, shown)
        await self._database.write(store.cancel_requests, invitation.room_id, invitation.state_key or "")

    async def _check_invite(
        self, origin: str, room_id: str, event_id: str, pdu: JsonObject, version: RoomVersion
    ) -> Event:
        """ "Servers MUST apply certain validation to ensure they don't accidentally sign non-invite events" """
        event = parse_submitted(pdu, version, room_id, event_id)
        # "The event type is not m.room.member. The membership field inside the event content is not invite."
        if event.type != "m.room.member" or event.membership != "invite":
            raise InvalidParam("Not an invitation")
        # "The event sender is not a user ID on the origin server."
        if event.sender_domain != origin:
            raise Forbidden("The invitation is not from a user of your server")
        # "The state_key is not a user ID on the receiving server."
        if not is_valid_user_id(event.state_key or "") or not self._is_local(event.state_key or ""):
            raise InvalidParam("The invited user is not one of this server")
        # "The invite event fails a signature check."
        (outcome,) = await self._incoming.verify([event])
        if isinstance(outcome, InvalidSignature):
            raise Forbidden(f"The event is not properly signed: {outcome}")
        return event

    async def _check_room_state(
        self, version: RoomVersion, room_id: str, room_state: Sequence[Any]
    ) -> list[JsonObject]:
        """The state that the user is shown of the room.

        "which servers MAY apply to room versions 1 through 11 and SHOULD apply to all other room versions": there, all
        of it must be events of the room, the create event among them. Otherwise what cannot be used is left out.
        """
        entries = [entry for entry in room_state[:ROOM_STATE_EVENTS_MAX] if isinstance(entry, dict)]
        _check_version_in(entries, version)
        if version.room_id_is_create_hash:
            return await self._check_strictly(version, room_id, entries)
        shown = [stripped for entry in entries if (stripped := _stripped(entry, room_id)) is not None]
        if sum(len(orjson.dumps(entry)) for entry in shown) > ROOM_STATE_BYTES_MAX:
            raise TooLarge("The state that comes with the invitation is too large")
        return shown

    async def _check_strictly(
        self, version: RoomVersion, room_id: str, entries: Sequence[JsonObject]
    ) -> list[JsonObject]:
        try:
            events = [parse_event(entry, version, room_id=room_id) for entry in entries]
        except InvalidEvent as error:
            raise InvalidParam(f"invite_room_state holds what is not an event of the room: {error}") from error
        if not any(event.type == "m.room.create" for event in events):
            raise InvalidParam("Create event not among invite state entries.")
        outcomes = await self._incoming.verify([event for event in events if event.is_state])
        failed = [outcome for outcome in outcomes if isinstance(outcome, InvalidSignature)]
        if failed:
            raise InvalidParam(f"invite_room_state holds an event that is not properly signed: {failed[0]}")
        return [stripped_event(outcome) for outcome in outcomes if isinstance(outcome, Event)]

    # -- what ends them ------------------------------------------------------------------------------------------------

    async def version_for(self, room_id: str, user_id: str | None) -> str | None:
        """The room version of what comes about a user's membership in a room that this server is not in.

        It is the one that the user's invitation or knock came with, which counts for nobody else.
        """
        if user_id is not None and is_valid_user_id(user_id):
            standing = await self._database.read(user_rooms.standing_of, user_id, room_id)
            if standing is not None:
                return standing.version
        return await self._database.read(_version_of, room_id)

    async def receive(self, origin: str, event: Event) -> None:
        """An event of a room that this server is not in, which matters only if it is about one of our users there.

        Raises ``HomeserverError`` where it changes nothing.
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
            raise NotAuthorized("The event does not end how the user stands to the room")

    async def _receive_late(self, origin: str, invitation: Event) -> None:
        """An invitation that we signed while we were in the room, and that comes when the last of our users has left.

        What its user is shown of the room is what we knew of it in the end.
        """
        head = await self._heads.find(invitation.room_id)
        is_signed = add_signature(invitation, self._signer).pdu == invitation.pdu
        # From elsewhere, or a second time, it may be an old one that the user has long answered.
        if head is None or not is_signed or origin != invitation.sender_domain:
            raise HomeserverError("This server is not in the room")
        if await self._database.read(out_of_band_events.is_known, invitation.room_id, invitation.event_id):
            return
        shown = await shown_to_outsiders(self._heads, head, invitation.sender)
        await self._take_in(invitation, [stripped_event(event) for event in shown])

    async def _end(self, event: Event, standing: Standing) -> None:
        stored = await self._imports.out_of_band(event.version, event, ends=standing.event_id)
        if stored is not None and event.state_key is not None:
            await self._database.write(store.cancel_requests, event.room_id, event.state_key)


def _ends(event: Event, standing: Standing) -> bool:
    """Whether an event surely ends how the user stands to the room: we know of the room only what came with that.

    Who answers an invitation, a knock or a ban has seen it: that event is among the auth events of the answer. (What
    does not cite it may be from before it.) An invitation is taken back by who sent it.
    """
    cites = standing.event_id in event.auth_events
    if standing.membership == "invite":
        return cites and event.sender == standing.sender
    if standing.membership == "knock":
        return cites
    if standing.membership == "ban":
        return event.membership == "leave" and (cites or event.sender == standing.sender)
    return False


def _stripped(entry: JsonObject, room_id: str) -> JsonObject | None:
    """What the user is shown of an entry of ``invite_room_state``, be it a PDU or stripped already."""
    event_type, state_key, content, sender = (entry.get(name) for name in ("type", "state_key", "content", "sender"))
    if not isinstance(event_type, str) or not isinstance(state_key, str) or not isinstance(sender, str):
        return None
    if not isinstance(content, dict) or not is_valid_user_id(sender) or entry.get("room_id", room_id) != room_id:
        return None
    return {"content": content, "sender": sender, "state_key": state_key, "type": event_type}


def _check_version_in(entries: Sequence[JsonObject], version: RoomVersion) -> None:
    """The create event among the state that is shown, if there is one, must be of the version that is claimed."""
    for entry in entries:
        content: Any = entry.get("content")
        is_create = entry.get("type") == "m.room.create" and isinstance(content, dict)
        if is_create and content.get("room_version", "1") != version.identifier:
            raise InvalidParam("The room's create event is of another room version")


def _version_of(connection: Connection, room_id: str) -> str | None:
    row = room_state.room_row(connection, room_id)
    return None if row is None else row[1]


def servers_in(state: bytes | None) -> list[str]:
    """The servers of those who have sent the state that came with an invitation."""
    if state is None:
        return []
    senders = (entry.get("sender") for entry in orjson.loads(state) if isinstance(entry, dict))
    return list(dict.fromkeys(server_of(s) for s in senders if isinstance(s, str) and is_valid_user_id(s)))
