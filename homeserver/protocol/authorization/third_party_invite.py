"""The rule for m.room.third_party_invite, and for the invitations that refer to one.

https://spec.matrix.org/v1.19/server-server-api/#verifying-the-invite
"""

from __future__ import annotations

import binascii
from base64 import b64decode
from collections.abc import Iterator
from typing import Any

from nacl.exceptions import CryptoError
from nacl.signing import VerifyKey

from homeserver.errors import InvalidEvent, NotAuthorized
from homeserver.protocol.canonical_json import encode_canonical_json
from homeserver.protocol.events import Event, StateEvents
from homeserver.protocol.json_types import JsonObject
from homeserver.protocol.power_levels import PowerLevels

SIGNATURE_CHECKS_MAX = 1000
"""How many pairs of a key and a signature are tried for one invitation, some 60 ms of work. Identity servers give two
keys and one signature; an event of 64 KiB could hold 600,000 pairs.
"""
_ED25519_BYTES = 32


def check_third_party_invite(event: Event, levels: PowerLevels) -> None:
    """The rule for m.room.third_party_invite itself. Raises ``NotAuthorized``."""
    # Allow if and only if sender's current power level is greater than or equal to the invite level.
    if levels.of_user(event.sender) < levels.invite:
        raise NotAuthorized("the sender's power level is too low to invite")


def check_third_party_invitation(event: Event, state: StateEvents, target_membership: str | None) -> None:
    """The rule for a membership ``invite`` with a ``third_party_invite``: the owner of an invited e-mail address is now
    known.

    Raises ``NotAuthorized``.
    """
    # If target user is banned, reject.
    if target_membership == "ban":
        raise NotAuthorized("the invited user is banned")
    # If content.third_party_invite does not have a signed property, reject.
    invite = event.content["third_party_invite"]
    signed = invite.get("signed") if isinstance(invite, dict) else None
    if not isinstance(signed, dict):
        raise NotAuthorized("the third-party invitation has no signed part")
    # If signed does not have mxid and token properties, reject.
    mxid, token = signed.get("mxid"), signed.get("token")
    if not isinstance(mxid, str) or not isinstance(token, str):
        raise NotAuthorized("the third-party invitation has no mxid or no token")
    # If mxid does not match state_key, reject.
    if mxid != event.state_key:
        raise NotAuthorized("the third-party invitation is for another user")
    # If there is no m.room.third_party_invite event in the current room state with state_key matching token, reject.
    promise = state.get(("m.room.third_party_invite", token))
    if promise is None:
        raise NotAuthorized("the room has no third-party invitation with this token")
    # If sender does not match sender of the m.room.third_party_invite, reject.
    if promise.sender != event.sender:
        raise NotAuthorized("the third-party invitation was made by another user")
    # If any signature in signed matches any public key in the m.room.third_party_invite event, allow.
    # Otherwise, reject.
    if not _signed_by_any(signed, list(_public_keys(promise.content))):
        raise NotAuthorized("the third-party invitation is not signed by its identity server")


def _public_keys(content: JsonObject) -> Iterator[VerifyKey]:
    # The public keys are in content of m.room.third_party_invite as:
    # A single public key in the public_key property.
    encoded = [content.get("public_key")]
    # A list of public keys in the public_keys property.
    listed = content.get("public_keys")
    if isinstance(listed, list):
        encoded += [entry.get("public_key") for entry in listed if isinstance(entry, dict)]
    for text in encoded:
        key = _decode_base64(text)
        if key is not None and len(key) == _ED25519_BYTES:
            yield VerifyKey(key)


def _signed_by_any(signed: JsonObject, keys: list[VerifyKey]) -> bool:
    try:
        message = encode_canonical_json({k: v for k, v in signed.items() if k not in ("signatures", "unsigned")})
    except InvalidEvent:
        return False
    # NOTSPEC: the number of checks is bounded, or one small event would take half a minute of CPU.
    pairs = ((key, signature) for signature in _signatures(signed.get("signatures")) for key in keys)
    for (key, signature), _ in zip(pairs, range(SIGNATURE_CHECKS_MAX), strict=False):
        try:
            key.verify(message, signature)
        except (CryptoError, ValueError):
            continue
        return True
    return False


def _signatures(by_server: Any) -> Iterator[bytes]:
    if not isinstance(by_server, dict):
        return
    for by_key in by_server.values():
        if not isinstance(by_key, dict):
            continue
        for key_id, text in by_key.items():
            signature = _decode_base64(text)
            if key_id.startswith("ed25519:") and signature is not None:
                yield signature


def _decode_base64(text: Any) -> bytes | None:
    """Base64 in either alphabet, with or without padding."""
    if not isinstance(text, str):
        return None
    standard = text.rstrip("=").replace("-", "+").replace("_", "/")
    try:
        return b64decode(standard + "=" * (-len(standard) % 4), validate=True)
    except (binascii.Error, ValueError):
        return None
