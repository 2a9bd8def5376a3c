"""Content hashes, reference hashes and the event IDs made from them (check 3).

https://spec.matrix.org/v1.19/server-server-api/#signing-events
"""

from __future__ import annotations

import binascii
from base64 import b64encode, urlsafe_b64encode
from hashlib import sha256

from homeserver.errors import InvalidEvent
from homeserver.protocol.canonical_json import encode_canonical_json, encode_checked_json
from homeserver.protocol.events import Event
from homeserver.protocol.json_types import JsonObject
from homeserver.protocol.redaction import redact
from homeserver.protocol.room_versions import EventIdFormat, RoomVersion

BASE64_CHARACTERS_MAX = 65_536
"""The longest Base64 that is decoded: none in Matrix is longer than the event that holds it."""

_NOT_IN_CONTENT_HASH = frozenset({"unsigned", "signatures", "hashes"})
_TO_STANDARD_ALPHABET = str.maketrans("-_", "+/")


def unpadded_base64(data: bytes) -> str:
    """The bytes in unpadded Base64. https://spec.matrix.org/v1.19/appendices/#unpadded-base64"""
    return b64encode(data).decode("ascii").rstrip("=")


def urlsafe_unpadded_base64(data: bytes) -> str:
    """The bytes in URL-safe unpadded Base64. https://spec.matrix.org/v1.19/appendices/#url-safe-unpadded-base64"""
    return urlsafe_b64encode(data).decode("ascii").rstrip("=")


def decode_unpadded_base64(text: str, *, any_alphabet: bool = False) -> bytes:
    """Decode Base64 with or without padding ("SHOULD accept input with or without padding").

    ``any_alphabet`` accepts the URL-safe alphabet too, where the specification allows either, as for the keys of
    third-party invites.

    Raises ``ValueError`` for text that is not Base64 or longer than any in Matrix.
    """
    if not isinstance(text, str) or len(text) > BASE64_CHARACTERS_MAX:
        raise ValueError("not Base64, or too long")
    if any_alphabet:
        text = text.translate(_TO_STANDARD_ALPHABET)
    # Strict mode, because otherwise unknown characters are skipped. It raises binascii.Error, a ValueError.
    return binascii.a2b_base64(text + "=" * (-len(text) % 4), strict_mode=True)


def content_hash(pdu: JsonObject, version: RoomVersion) -> str:
    """The hash of the whole event, in unpadded Base64.

    https://spec.matrix.org/v1.19/server-server-api/#calculating-the-content-hash-for-an-event
    """
    covered = {key: value for key, value in pdu.items() if key not in _NOT_IN_CONTENT_HASH}
    return unpadded_base64(sha256(encode_checked(covered, version)).digest())


def reference_bytes(pdu: JsonObject, version: RoomVersion) -> bytes:
    """The canonical JSON of the redacted event without signatures: what is signed, and what the event ID is made of.

    https://spec.matrix.org/v1.19/server-server-api/#calculating-the-reference-hash-for-an-event
    """
    redacted = redact(pdu, version)  # this drops `unsigned` in every version
    redacted.pop("signatures", None)
    return encode_checked(redacted, version)


def reference_hash(pdu: JsonObject, version: RoomVersion) -> bytes:
    """The SHA-256 of ``reference_bytes``."""
    return sha256(reference_bytes(pdu, version)).digest()


def event_id_of(pdu: JsonObject, version: RoomVersion) -> str:
    """The ID of an event: from the PDU itself, or its reference hash, depending on the room version.

    Raises ``InvalidEvent`` if the PDU must contain it and does not.
    """
    if version.event_id_format is EventIdFormat.IN_EVENT:
        event_id = pdu.get("event_id")
        if not isinstance(event_id, str):
            raise InvalidEvent("event_id is not a string")
        return event_id
    return event_id_from_reference_hash(reference_hash(pdu, version), version)


def event_id_from_reference_hash(digest: bytes, version: RoomVersion) -> str:
    """The event ID that follows from a reference hash, in the versions that derive it."""
    if version.event_id_format is EventIdFormat.HASH_BASE64:
        return "$" + unpadded_base64(digest)
    return "$" + urlsafe_unpadded_base64(digest)


def has_intact_content(event: Event) -> bool:
    """Whether the content hash in the event is the right one; if not, the event must be redacted (check 3).

    https://spec.matrix.org/v1.19/server-server-api/#validating-hashes-and-signatures-on-received-events
    """
    claimed = event.pdu["hashes"].get("sha256")
    computed = content_hash(event.pdu, event.version)
    if claimed == computed:
        return True
    # "is base64-decoded, and the two are compared": padding, for instance, makes no difference.
    try:
        return decode_unpadded_base64(claimed) == decode_unpadded_base64(computed)
    except ValueError:
        return False


def encode_checked(value: JsonObject, version: RoomVersion) -> bytes:
    """The canonical JSON of an event, or part of one, that is known to be valid in its room version."""
    # Events of the strict versions have passed the strict check before, in `parse_event` or `compose_event`.
    return encode_checked_json(value) if version.strict_canonical_json else encode_canonical_json(value)
