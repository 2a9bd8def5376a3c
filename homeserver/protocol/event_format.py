"""Check 1: a valid event of its room version.

https://spec.matrix.org/v1.19/server-server-api/#checks-performed-on-receipt-of-a-pdu,
the section "Event format" of each room version, and https://spec.matrix.org/v1.19/client-server-api/#size-limits
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from homeserver.errors import InvalidEvent
from homeserver.protocol.canonical_json import INTEGER_MAX, compact, encode_canonical_json, encode_strict_json
from homeserver.protocol.events import Event
from homeserver.protocol.hashes import event_id_of
from homeserver.protocol.identifiers import (
    IDENTIFIER_BYTES_MAX,
    fits_in_bytes,
    is_hash_room_id,
    is_valid_event_id,
    is_valid_room_id,
    is_valid_user_id,
)
from homeserver.protocol.json_types import JsonObject
from homeserver.protocol.room_versions import EventIdFormat, RoomVersion

PDU_BYTES_MAX = 65_536
TYPE_BYTES_MAX = 255
STATE_KEY_BYTES_MAX = 255
PREV_EVENTS_MAX = 20
AUTH_EVENTS_MAX = 10
INT64_MAX = 2**63 - 1


def parse_event(
    pdu: JsonObject, version: RoomVersion, *, room_id: str | None = None, is_history: bool = False
) -> Event:
    """The event of a PDU that fits the event format of the room version.

    ``unsigned``, which no signature covers, is not part of the event; nor is an ``event_id`` in the versions whose PDUs
    have none. ``room_id`` is the room that the event must belong to, if that is known. The argument is not changed.
    ``is_history`` skips the limits on references, because old events may exceed them.

    Raises ``InvalidEvent``, of which ``NotCanonical`` is a subclass.
    """
    if not isinstance(pdu, dict):
        raise InvalidEvent("not a JSON object")
    pdu = dict(pdu)
    pdu.pop("unsigned", None)
    if version.event_id_format is not EventIdFormat.IN_EVENT:
        # "When events are sent over federation, the `event_id` field is no longer included."
        pdu.pop("event_id", None)
    # Check this first: an event that is not canonical is answered with its own error code.
    json = encode_strict_json(pdu) if version.strict_canonical_json else encode_canonical_json(pdu)
    if len(json) > PDU_BYTES_MAX:
        raise InvalidEvent(f"larger than {PDU_BYTES_MAX} bytes")
    _check_fields(pdu, version)
    _check_hashes_and_signatures(pdu)
    _check_references("prev_events", pdu, version, None if is_history else PREV_EVENTS_MAX)
    _check_references("auth_events", pdu, version, None if is_history else AUTH_EVENTS_MAX)
    if not pdu["prev_events"] and pdu["type"] != "m.room.create":
        # Only the create event begins the graph of a room: another event without prev_events has no state before it,
        # and any server that is asked for one could invent it.
        raise InvalidEvent("prev_events is empty, which only a create event's may be")
    event_id = _event_id(pdu, version)
    event_room_id = room_id_of(pdu, version, event_id)
    if room_id is not None and event_room_id != room_id:
        raise InvalidEvent(f"not an event of {room_id}")
    return Event(pdu, version, event_id, event_room_id, compact(json))


def room_id_of(pdu: JsonObject, version: RoomVersion, event_id: str) -> str:
    """The room of an event: the one in its PDU, or for the create event of room version 12 the one that its ID
    gives.
    """
    if version.room_id_is_create_hash and pdu["type"] == "m.room.create":
        # "room IDs are simply the event ID of the `m.room.create` event using `!` as the sigil instead of `$`"
        return "!" + event_id[1:]
    room_id: str = pdu["room_id"]
    return room_id


def depth_max(version: RoomVersion) -> int:
    """The largest depth of an event: 2^63 - 1, or 2^53 - 1 in versions with strict canonical JSON.

    "If the room's depth is already at the limit, the depth must be set to the limit."
    """
    return INTEGER_MAX if version.strict_canonical_json else INT64_MAX


def depth_after(depths: Iterable[int], version: RoomVersion) -> int:
    """The depth of an event whose prev_events have these depths: one more than the greatest, or the limit.

    Without the limit, a member could send an event of the greatest depth and so stop all others from sending.
    """
    return min(1 + max(depths, default=0), depth_max(version))


def _check_fields(pdu: JsonObject, version: RoomVersion) -> None:
    if not _fits(pdu.get("type"), TYPE_BYTES_MAX, version):
        raise InvalidEvent("type is not a string of at most 255 bytes")
    if "state_key" in pdu and not _fits(pdu["state_key"], STATE_KEY_BYTES_MAX, version):
        raise InvalidEvent("state_key is not a string of at most 255 bytes")
    sender = pdu.get("sender", "")
    if not is_valid_user_id(sender) or not _fits(sender, IDENTIFIER_BYTES_MAX, version):
        raise InvalidEvent("sender is not a user ID")
    if type(pdu.get("content")) is not dict:
        raise InvalidEvent("content is not an object")
    _check_room_id(pdu, version)
    depth = pdu.get("depth")
    if type(depth) is not int or not 0 <= depth <= depth_max(version):
        raise InvalidEvent(f"depth is not an integer from 0 to {depth_max(version)}")
    timestamp = pdu.get("origin_server_ts")
    if type(timestamp) is not int or not -INT64_MAX <= timestamp <= INT64_MAX:
        raise InvalidEvent("origin_server_ts is not an integer of 64 bits")
    if not version.redacts_in_content and not isinstance(pdu.get("redacts", ""), str):
        raise InvalidEvent("redacts is not a string")


def _check_room_id(pdu: JsonObject, version: RoomVersion) -> None:
    if not version.room_id_is_create_hash:
        room_id = pdu.get("room_id")
        if not isinstance(room_id, str) or ":" not in room_id or not is_valid_room_id(room_id):
            raise InvalidEvent("room_id is not a room ID with a domain")
    elif pdu["type"] == "m.room.create":
        if "room_id" in pdu:
            raise InvalidEvent("a create event of this room version has no room_id")
    elif not isinstance(pdu.get("room_id"), str) or not is_hash_room_id(pdu["room_id"]):
        raise InvalidEvent("room_id is not made from a create event's ID")


def _check_hashes_and_signatures(pdu: JsonObject) -> None:
    hashes = pdu.get("hashes")
    if type(hashes) is not dict or not isinstance(hashes.get("sha256"), str):
        raise InvalidEvent("hashes has no sha256")
    signatures = pdu.get("signatures")
    if type(signatures) is not dict:
        raise InvalidEvent("signatures is not an object")
    for of_server in signatures.values():
        if type(of_server) is not dict or not all(isinstance(signature, str) for signature in of_server.values()):
            raise InvalidEvent("signatures is not an object of objects of strings")


def _check_references(field: str, pdu: JsonObject, version: RoomVersion, maximum: int | None) -> None:
    references = pdu.get(field)
    if type(references) is not list or (maximum is not None and len(references) > maximum):
        raise InvalidEvent(f"{field} is not a list of at most {maximum} events")
    if version.references_with_hashes:
        if not all(_is_reference_with_hash(reference) for reference in references):
            raise InvalidEvent(f"{field} does not consist of pairs of an event ID and a hash")
        return
    for event_id in references:
        if not _is_short_string(event_id, IDENTIFIER_BYTES_MAX) or not event_id.startswith("$"):
            raise InvalidEvent(f"{field} does not consist of event IDs")


def _is_reference_with_hash(reference: Any) -> bool:
    return (
        type(reference) is list
        and len(reference) == 2
        and is_valid_event_id(reference[0])
        and type(reference[1]) is dict
        and all(isinstance(digest, str) for digest in reference[1].values())
    )


def _event_id(pdu: JsonObject, version: RoomVersion) -> str:
    event_id = event_id_of(pdu, version)
    if version.event_id_format is not EventIdFormat.IN_EVENT:
        return event_id
    # "$opaque_id:domain"; check 2 asks for the signature of that domain.
    if not is_valid_event_id(event_id) or ":" not in event_id:
        raise InvalidEvent("event_id is not an event ID with a domain")
    return event_id


def _fits(value: Any, maximum: int, version: RoomVersion) -> bool:
    """Whether a value is a string within a limit, counted in bytes, or in code points in the versions that count those.

    "`type` MUST NOT exceed 255 bytes", but for years servers counted code points. Rooms of those versions hold such
    events, and a server that rejects them splits off from the room. Storage has room for them: a code point has at most
    four bytes.
    """
    if not isinstance(value, str):
        return False
    return fits_in_bytes(value, maximum if version.limits_in_bytes else 4 * maximum) and len(value) <= maximum


def _is_short_string(value: Any, bytes_max: int) -> bool:
    return isinstance(value, str) and fits_in_bytes(value, bytes_max)
