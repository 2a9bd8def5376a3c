"""Which servers must sign an event, signing, and verifying signatures (check 2).

https://spec.matrix.org/v1.19/server-server-api/#validating-hashes-and-signatures-on-received-events
https://spec.matrix.org/v1.19/appendices/#signing-json
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from nacl.exceptions import BadSignatureError
from nacl.exceptions import ValueError as NaclValueError
from nacl.signing import VerifyKey

from homeserver.errors import InvalidSignature
from homeserver.protocol.canonical_json import encode_canonical_json
from homeserver.protocol.events import Event, Signer
from homeserver.protocol.hashes import decode_unpadded_base64, reference_bytes
from homeserver.protocol.identifiers import is_valid_user_id, server_of
from homeserver.protocol.json_types import JsonObject
from homeserver.protocol.room_versions import EventIdFormat

ALGORITHM = "ed25519"
POLICY_SERVER_KEY_ID = "ed25519:policy_server"
"""The ID of every policy server's key. That key is in the room's state; the server itself does not publish it."""
_KEY_ID_PREFIX = ALGORITHM + ":"
_SIGNATURE_BYTES = 64


@dataclass(frozen=True, slots=True)
class VerifyKeyData:
    """A server's public key, and until when it is valid."""

    key: VerifyKey
    valid_until_ts: int | None = None
    """Milliseconds since the epoch; ``None`` for no limit."""
    is_old: bool = False
    """Whether its server has retired it: it is then valid for events only, not for requests."""


@lru_cache(maxsize=4096)
def parse_verify_key(encoded: str) -> VerifyKey:
    """The ed25519 public key in unpadded Base64. Raises ``ValueError`` for any other text."""
    try:
        return VerifyKey(decode_unpadded_base64(encoded))
    except NaclValueError as error:
        raise ValueError(f"not an ed25519 public key: {error}") from error


def sign_json(obj: JsonObject, signer: Signer) -> JsonObject:
    """A copy of the object with the signer's signature added; it keeps other signatures and ``unsigned``.

    https://spec.matrix.org/v1.19/appendices/#signing-details
    """
    return {**obj, "signatures": with_signature(obj.get("signatures"), signer, signer.sign(signed_bytes(obj)))}


def verify_json(obj: JsonObject, server_name: str, key_id: str, verify_key: VerifyKey) -> None:
    """Check the signature that the object holds under that server name and key ID.

    Raises ``InvalidSignature`` if it is missing or wrong.

    https://spec.matrix.org/v1.19/appendices/#checking-for-a-signature
    """
    signature = signatures_of(obj, server_name).get(key_id)
    if signature is None:
        raise InvalidSignature(f"no signature of {server_name} with {key_id}")
    if not is_signature_of(signed_bytes(obj), signature, verify_key):
        raise InvalidSignature(f"wrong signature of {server_name} with {key_id}")


def signed_bytes(obj: JsonObject) -> bytes:
    """The bytes that a signature of a JSON object covers: its canonical JSON without ``signatures`` and
    ``unsigned``.
    """
    return encode_canonical_json({key: value for key, value in obj.items() if key not in ("signatures", "unsigned")})


def signatures_of(obj: JsonObject, server_name: str) -> dict[str, str]:
    """Key ID to signature, of one server, for the supported algorithms. Empty if there is none."""
    signatures = obj.get("signatures")
    of_server = signatures.get(server_name) if isinstance(signatures, dict) else None
    if not isinstance(of_server, dict):
        return {}
    return {
        key_id: signature
        for key_id, signature in of_server.items()
        if isinstance(signature, str) and key_id.startswith(_KEY_ID_PREFIX)
    }


def with_signature(signatures: JsonObject | None, signer: Signer, signature: str) -> JsonObject:
    """A copy of the ``signatures`` object with one signature added."""
    signatures = signatures or {}
    return {**signatures, signer.server_name: {**signatures.get(signer.server_name, {}), signer.key_id: signature}}


def is_signature_of(message: bytes, signature: str, verify_key: VerifyKey) -> bool:
    """Whether the signature, in unpadded Base64, is one of these bytes by that key."""
    try:
        decoded = decode_unpadded_base64(signature)
    except ValueError:
        return False
    if len(decoded) != _SIGNATURE_BYTES:
        return False
    try:
        verify_key.verify(message, decoded)
    except BadSignatureError:
        return False
    return True


def required_signers(event: Event) -> frozenset[str]:
    """The servers that must have signed the event, or else it is dropped. Usually none for third-party invites.

    Raises ``InvalidSignature`` if the user who authorises the join, by the event, has no valid user ID.

    https://spec.matrix.org/v1.19/server-server-api/#validating-hashes-and-signatures-on-received-events
    """
    signers: set[str] = set()
    # "unless the event is a 3rd party invite, only the signature(s) from the originating server (the server the
    # `sender` belongs to) are required"
    if not _is_third_party_invite(event):
        signers.add(event.sender_domain)
    # "Room versions 1 and 2 also require that a signature is present from the domain in the `event_id`, if it differs
    # from the originating server."
    if event.version.event_id_format is EventIdFormat.IN_EVENT:
        domain = server_of(event.event_id)
        if domain != event.sender_domain:
            signers.add(domain)
    # "If `content` has a `join_authorised_via_users_server` key: if the event is not validly signed by the homeserver
    # of the user ID denoted by the key, reject."
    if _is_vouched_for(event):
        authorising_user = event.content["join_authorised_via_users_server"]
        if not is_valid_user_id(authorising_user):
            raise InvalidSignature("join_authorised_via_users_server is not a user ID")
        signers.add(server_of(authorising_user))
    return frozenset(signers)


def event_signatures(event: Event, server_name: str) -> dict[str, str]:
    """Key ID to signature, of one server, for the supported algorithms: the keys to fetch."""
    signatures = signatures_of(event.pdu, server_name)
    # "the policy server key is not expected to be published and therefore should be skipped at this stage"
    signatures.pop(POLICY_SERVER_KEY_ID, None)
    return signatures


def verify_event_signature(event: Event, server_name: str, keys: Mapping[str, VerifyKeyData]) -> None:
    """Check that the server has signed the event with one of its keys, given by key ID.

    Signatures by keys that are not given, or were not valid any more when the event was made, are skipped; there must
    be at least one other, and none may be wrong.

    Raises ``InvalidSignature``.

    https://spec.matrix.org/v1.19/server-server-api/#validating-hashes-and-signatures-on-received-events
    """
    signatures = event_signatures(event, server_name)
    if not signatures:
        raise InvalidSignature(f"{event.event_id} is not signed by {server_name}")
    # "If a signature is from an unknown or expired key, it is skipped."
    usable = {key_id: data.key for key_id in signatures if (data := keys.get(key_id)) and _may_have_signed(data, event)}
    if not usable:
        raise InvalidSignature(f"{event.event_id} is not signed with a known, valid key of {server_name}")
    message = reference_bytes(event.pdu, event.version)
    # "If all signatures from known unexpired keys from the originating server(s) are found to be valid"
    for key_id, verify_key in usable.items():
        if not is_signature_of(message, signatures[key_id], verify_key):
            raise InvalidSignature(f"{event.event_id}: wrong signature of {server_name} with {key_id}")


def _may_have_signed(data: VerifyKeyData, event: Event) -> bool:
    # "servers MUST enforce the `valid_until_ts` property from a key request is at least as large as the
    # `origin_server_ts` for the event being validated" (room version 5 and later)
    if not event.version.enforce_key_validity or data.valid_until_ts is None:
        return True
    return data.valid_until_ts >= event.origin_server_ts


def _is_vouched_for(event: Event) -> bool:
    return (
        event.version.restricted_join_rule
        and event.type == "m.room.member"
        and "join_authorised_via_users_server" in event.content
    )


def _is_third_party_invite(event: Event) -> bool:
    return event.type == "m.room.member" and event.membership == "invite" and "third_party_invite" in event.content
