"""Invitations of our users into rooms that this server is not in.

https://spec.matrix.org/v1.19/server-server-api/#inviting-to-a-room
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import orjson

from homeserver.errors import (
    Forbidden,
    IncompatibleRoomVersion,
    InvalidEvent,
    InvalidParam,
    InvalidSignature,
    TooLarge,
)
from homeserver.graph.incoming_events import IncomingEvents, parse_submitted
from homeserver.graph.out_of_band import OutOfBandMemberships
from homeserver.graph.server_access import ServerAccess
from homeserver.graph.state import RoomHeads
from homeserver.protocol.compose import add_signature
from homeserver.protocol.event_format import PDU_BYTES_MAX, parse_event
from homeserver.protocol.events import Event, Signer
from homeserver.protocol.identifiers import is_valid_user_id, server_of
from homeserver.protocol.json_types import JsonObject
from homeserver.protocol.room_versions import ROOM_VERSIONS, RoomVersion
from homeserver.reading.client_events import stripped_event
from homeserver.storage import accounts
from homeserver.storage import delivery as store
from homeserver.storage.database import Database

ROOM_STATE_EVENTS_MAX = 100
ROOM_STATE_BYTES_MAX = 512 * 1024


class OutOfBandInvitations:
    """Accepts invitations from other servers."""

    def __init__(
        self,
        database: Database,
        heads: RoomHeads,
        memberships: OutOfBandMemberships,
        incoming: IncomingEvents,
        access: ServerAccess,
        signer: Signer,
        is_local: Callable[[str], bool],
    ) -> None:
        self._database = database
        self._heads = heads
        self._memberships = memberships
        self._incoming = incoming
        self._access = access
        self._signer = signer
        self._is_local = is_local

    async def receive_invite(
        self, origin: str, room_id: str, event_id: str, pdu: JsonObject, room_version: str, room_state: Sequence[Any]
    ) -> Event:
        """Accept an invitation of one of our users; returns it with our signature.

        Raises ``IncompatibleRoomVersion``, ``InvalidParam`` if it is not an invitation from that server, ``Forbidden``
        if the user cannot be invited.

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
            # We are in the room: ``incoming_invitations`` adds it to the graph.
            if not await self._access.is_allowed(head, origin):
                raise Forbidden("Your server is not allowed in this room")
            if user_id in head.joined:
                raise Forbidden("The user is in the room already")
            member = await self._heads.state_event(head, "m.room.member", user_id)
            if member is not None and member.membership == "ban":
                raise Forbidden("The user is banned from this room")
            return signed
        if head is not None and head.version is not version:
            raise InvalidParam("The room has another version")
        await self.take_in(signed, shown)
        return signed

    async def take_in(self, invitation: Event, shown: Sequence[JsonObject]) -> None:
        """Store a checked and signed invitation, with the state that the user is shown."""
        await self._memberships.store(invitation.version, invitation, shown)
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
        """The state that is shown to the invited user.

        "which servers MAY apply to room versions 1 through 11 and SHOULD apply to all other room versions": for those,
        all entries must be events of the room, including the create event. For others, invalid entries are left out.
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
            raise InvalidParam(f"invite_room_state holds an entry that is not an event of the room: {error}") from error
        if not any(event.type == "m.room.create" for event in events):
            raise InvalidParam("Create event not among invite state entries.")
        outcomes = await self._incoming.verify([event for event in events if event.is_state])
        failed = [outcome for outcome in outcomes if isinstance(outcome, InvalidSignature)]
        if failed:
            raise InvalidParam(f"invite_room_state holds an event that is not properly signed: {failed[0]}")
        return [stripped_event(outcome) for outcome in outcomes if isinstance(outcome, Event)]


def _stripped(entry: JsonObject, room_id: str) -> JsonObject | None:
    """An entry of ``invite_room_state``, which is a PDU or stripped, as stripped state; None if it is invalid."""
    event_type, state_key, content, sender = (entry.get(name) for name in ("type", "state_key", "content", "sender"))
    if not isinstance(event_type, str) or not isinstance(state_key, str) or not isinstance(sender, str):
        return None
    if not isinstance(content, dict) or not is_valid_user_id(sender) or entry.get("room_id", room_id) != room_id:
        return None
    return {"content": content, "sender": sender, "state_key": state_key, "type": event_type}


def _check_version_in(entries: Sequence[JsonObject], version: RoomVersion) -> None:
    """Raise ``InvalidParam`` if the shown state has a create event of another version than the claimed one."""
    for entry in entries:
        content: Any = entry.get("content")
        is_create = entry.get("type") == "m.room.create" and isinstance(content, dict)
        if is_create and content.get("room_version", "1") != version.identifier:
            raise InvalidParam("The room's create event is of another room version")


def servers_in(state: bytes | None) -> list[str]:
    """The servers of the users who sent the state that came with an invitation; ``state`` is a JSON list."""
    if state is None:
        return []
    senders = (entry.get("sender") for entry in orjson.loads(state) if isinstance(entry, dict))
    return list(dict.fromkeys(server_of(s) for s in senders if isinstance(s, str) and is_valid_user_id(s)))
