"""Makes hashed and signed events out of drafts and templates.

https://spec.matrix.org/v1.19/server-server-api/#adding-hashes-and-signatures-to-outgoing-events
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256

from homeserver.errors import BadJson, InvalidEvent, TooLarge
from homeserver.protocol.canonical_json import check_strict, compact, encode_strict_json
from homeserver.protocol.event_format import (
    AUTH_EVENTS_MAX,
    PDU_BYTES_MAX,
    PREV_EVENTS_MAX,
    STATE_KEY_BYTES_MAX,
    TYPE_BYTES_MAX,
    depth_max,
    parse_event,
    room_id_of,
)
from homeserver.protocol.events import Event, EventDraft, Signer, references
from homeserver.protocol.hashes import encode_checked, event_id_from_reference_hash, reference_bytes, unpadded_base64
from homeserver.protocol.identifiers import fits_in_bytes
from homeserver.protocol.json_types import JsonObject
from homeserver.protocol.room_versions import EventIdFormat, RoomVersion
from homeserver.protocol.signatures import with_signature

_TEMPLATE_FIELDS = ("auth_events", "content", "depth", "prev_events", "room_id", "sender", "state_key", "type")
"""The fields that are taken from a template; this server does not sign any others."""


def compose_event(
    draft: EventDraft,
    version: RoomVersion,
    *,
    room_id: str | None,
    prev_events: Sequence[tuple[str, str]],
    auth_events: Sequence[tuple[str, str]],
    depth: int,
    origin_server_ts: int,
    signer: Signer,
    event_id_localpart: str | None = None,
) -> Event:
    """The event for a draft at a place in the graph: with its references, hashed and signed.

    ``prev_events`` and ``auth_events`` are pairs of event ID and reference hash; the hash matters in room versions 1
    and 2 only, and so does ``event_id_localpart``, from which those make the event ID. ``room_id`` is ``None`` for the
    create event of room version 12. ``origin_server_ts`` is the current time, for drafts that set none.

    Raises ``BadJson`` if the content is not strictly canonical, ``TooLarge`` if a size limit is exceeded, and
    ``ValueError`` for a place in the graph that no event may have.
    """
    if len(prev_events) > PREV_EVENTS_MAX or len(auth_events) > AUTH_EVENTS_MAX:
        raise ValueError(f"{len(prev_events)} prev_events and {len(auth_events)} auth_events are too many")
    _check_lengths(draft)
    chosen_ts = origin_server_ts if draft.origin_server_ts is None else draft.origin_server_ts
    pdu: JsonObject = {
        "auth_events": references(version, auth_events),
        "content": draft.content,
        "depth": min(depth, depth_max(version)),
        "origin_server_ts": chosen_ts,
        "prev_events": references(version, prev_events),
        "sender": draft.sender,
        "type": draft.type,
    }
    if draft.state_key is not None:
        pdu["state_key"] = draft.state_key
    if room_id is not None:
        pdu["room_id"] = room_id
    elif not (version.room_id_is_create_hash and draft.type == "m.room.create"):
        raise ValueError("only the create event of a room version with hashes as room IDs has no room ID yet")
    if draft.type == "m.room.member" and draft.content.get("membership") == "invite":
        # /invite requires it, though the event format does not.
        pdu["origin"] = signer.server_name
    if draft.redacts is not None:
        if version.redacts_in_content:
            pdu["content"] = {**draft.content, "redacts": draft.redacts}
        else:
            pdu["redacts"] = draft.redacts
    return _seal(pdu, version, signer, event_id_localpart)


def add_signature(event: Event, signer: Signer) -> Event:
    """The event with the signer's signature added, as for an invitation that this server co-signs."""
    signature = signer.sign(reference_bytes(event.pdu, event.version))
    signatures = with_signature(event.pdu["signatures"], signer, signature)
    pdu = {**event.pdu, "signatures": signatures}
    return Event(pdu, event.version, event.event_id, event.room_id)


def finish_template(
    template: JsonObject,
    version: RoomVersion,
    signer: Signer,
    origin_server_ts: int,
    event_id_localpart: str | None = None,
) -> Event:
    """Turn another server's template (make_join, make_leave, make_knock) into our own signed event.

    The caller has checked that the template is what it requested: room, type, sender, state key and membership. Unknown
    fields are left out; ``origin``, ``origin_server_ts``, ``event_id``, ``hashes`` and ``signatures`` are our own.

    Raises ``InvalidEvent`` if no event of the room version can be made of it, or its sender is not one of our users.

    https://spec.matrix.org/v1.19/server-server-api/#joining-rooms
    """
    if not isinstance(template, dict):
        raise InvalidEvent("the template is not a JSON object")
    pdu = {field: template[field] for field in _TEMPLATE_FIELDS if field in template}
    # /send_join and /send_leave still require it, though the event format does not.
    pdu["origin"] = signer.server_name
    pdu["origin_server_ts"] = origin_server_ts
    # Check the future event before signing it, with stand-ins for the fields that sealing adds.
    stand_in = {**pdu, "hashes": {"sha256": ""}, "signatures": {}}
    if version.event_id_format is EventIdFormat.IN_EVENT:
        stand_in["event_id"] = f"${event_id_localpart}:{signer.server_name}"
    if parse_event(stand_in, version).sender_domain != signer.server_name:
        raise InvalidEvent(f"the template's sender is not a user of {signer.server_name}")
    try:
        return _seal(pdu, version, signer, event_id_localpart)
    except (BadJson, TooLarge) as error:
        raise InvalidEvent(error.message) from error


def _seal(pdu: JsonObject, version: RoomVersion, signer: Signer, event_id_localpart: str | None) -> Event:
    """Hash and sign the PDU, modifying it, with as few encodings as possible: three."""
    if version.event_id_format is EventIdFormat.IN_EVENT:
        if not event_id_localpart:
            raise ValueError("this room version's event IDs are chosen by the sender's server")
        pdu["event_id"] = f"${event_id_localpart}:{signer.server_name}"
    try:
        hashed = _encode_strictly(pdu, version)
    except InvalidEvent as error:
        raise BadJson(f"The event is not canonical JSON: {error}") from error
    # Check before signing: hashes and signatures only add to the size.
    if len(hashed) > PDU_BYTES_MAX:
        raise TooLarge("The event is larger than 65536 bytes")
    pdu["hashes"] = {"sha256": unpadded_base64(sha256(hashed).digest())}
    signed = reference_bytes(pdu, version)
    pdu["signatures"] = {signer.server_name: {signer.key_id: signer.sign(signed)}}
    json = encode_checked(pdu, version)
    if len(json) > PDU_BYTES_MAX:
        raise TooLarge("The event is larger than 65536 bytes")
    if version.event_id_format is EventIdFormat.IN_EVENT:
        event_id: str = pdu["event_id"]
    else:
        event_id = event_id_from_reference_hash(sha256(signed).digest(), version)
    return Event(pdu, version, event_id, room_id_of(pdu, version, event_id), compact(json))


def _encode_strictly(pdu: JsonObject, version: RoomVersion) -> bytes:
    # The content of our users' events is strictly canonical in every room version, whether the version enforces it or
    # not; the depth of an old room may be beyond that range.
    if version.strict_canonical_json:
        return encode_strict_json(pdu)
    check_strict(pdu["content"])
    return encode_checked(pdu, version)


def _check_lengths(draft: EventDraft) -> None:
    # https://spec.matrix.org/v1.19/client-server-api/#size-limits
    if not fits_in_bytes(draft.type, TYPE_BYTES_MAX):
        raise TooLarge("The event type is longer than 255 bytes")
    if draft.state_key is not None and not fits_in_bytes(draft.state_key, STATE_KEY_BYTES_MAX):
        raise TooLarge("The state key is longer than 255 bytes")
