"""The rule for m.room.create.

https://spec.matrix.org/v1.19/rooms/v12/#authorisation-rules
"""

from __future__ import annotations

from homeserver.errors import NotAuthorized
from homeserver.protocol.events import Event
from homeserver.protocol.identifiers import is_valid_user_id
from homeserver.protocol.room_versions import ROOM_VERSIONS


def check_create(event: Event) -> None:
    """Rule 1: whether a room can begin with this event. Raises ``NotAuthorized``."""
    version = event.version
    # If it has any prev_events, reject.
    if event.prev_events:
        raise NotAuthorized("a create event must be the first of its room")
    if version.room_id_is_create_hash:
        # (since version 12) If the event has a room_id, reject.
        if "room_id" in event.pdu:
            raise NotAuthorized("a create event must not name a room ID")
    # (versions 1 to 11) If the domain of the room_id does not match the domain of the sender, reject.
    elif event.room_id.partition(":")[2] != event.sender_domain:
        raise NotAuthorized("the room ID is not of the creator's server")
    # If content.room_version is present and is not a recognised version, reject.
    if "room_version" in event.content:
        wanted = event.content["room_version"]
        if not isinstance(wanted, str) or wanted not in ROOM_VERSIONS:
            raise NotAuthorized("the create event asks for an unknown room version")
    # (versions 1 to 10) If content has no creator property, reject.
    if not version.creator_is_sender and "creator" not in event.content:
        raise NotAuthorized("the create event names no creator")
    # (since version 12) If additional_creators is present in content and is not an array of strings where each string
    # passes the same user ID validation applied to sender, reject.
    if version.creators_have_infinite_power and "additional_creators" in event.content:
        additional = event.content["additional_creators"]
        if not isinstance(additional, list) or not all(is_valid_user_id(user_id) for user_id in additional):
            raise NotAuthorized("additional_creators is not a list of user IDs")
    # Otherwise, allow.
