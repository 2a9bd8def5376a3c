"""Parses and checks the keys that a server publishes.

https://spec.matrix.org/v1.19/server-server-api/#publishing-keys
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from homeserver.errors import InvalidEvent, InvalidSignature
from homeserver.protocol.canonical_json import encode_canonical_json
from homeserver.protocol.json_types import JsonObject
from homeserver.protocol.signatures import (
    VerifyKeyData,
    is_signature_of,
    parse_verify_key,
    signatures_of,
    signed_bytes,
)

VALIDITY_MS_MAX = 7 * 24 * 3600 * 1000
"""How far into the future a key can be valid, whatever its server claims."""
VERIFY_KEYS_MAX = 50
OLD_VERIFY_KEYS_MAX = 500
PUBLISHED_BYTES_MAX = 16 * 1024
"""The largest object that this server passes on as a notary: enough for a hundred keys."""
_PUBLISHED_FIELDS = frozenset(
    {"server_name", "valid_until_ts", "verify_keys", "old_verify_keys", "signatures", "tls_fingerprints"}
)
_KEY_FIELDS = frozenset({"key", "expired_ts"})

_KEY_ID = re.compile(r"ed25519:[a-zA-Z0-9_]{1,128}\Z")


@dataclass(frozen=True, slots=True)
class ServerKeys:
    """The keys of one server, as it published them."""

    server_name: str
    verify_keys: Mapping[str, VerifyKeyData]
    """Key ID to key, with the validity to use."""
    old_verify_keys: Mapping[str, VerifyKeyData]
    """Keys that are valid for events only, until they expired."""
    valid_until_ts: int
    published: bytes | None
    """The object itself as canonical JSON, with only the server's own signatures. None if it is more than keys: as a
    notary, this server passes on nothing that anybody may have put there.
    """


def is_key_id(text: str) -> bool:
    """Whether the text is the ID of a key of a supported algorithm: ``ed25519:version``."""
    return _KEY_ID.match(text) is not None


def parse_server_keys(response: Any, server_name: str, now_ms: int) -> ServerKeys:
    """Parse and check an object that is said to be the published keys of a server.

    A key counts only if the object is signed with it. Raises ``InvalidSignature`` if no key counts, a signature is
    wrong, or the object is malformed.
    """
    if not isinstance(response, dict) or response.get("server_name") != server_name:
        raise InvalidSignature(f"not the keys of {server_name}")
    valid_until_ts = response.get("valid_until_ts")
    if not isinstance(valid_until_ts, int) or isinstance(valid_until_ts, bool):
        raise InvalidSignature(f"the keys of {server_name} have no valid_until_ts")
    # "Servers MUST use the lesser of this field and 7 days into the future when determining if a key is valid."
    valid_until_ts = max(0, min(valid_until_ts, now_ms + VALIDITY_MS_MAX))
    signatures = signatures_of(response, server_name)
    verify_keys = _signing_keys(response, server_name, signatures, valid_until_ts)
    if not verify_keys:
        raise InvalidSignature(f"the keys of {server_name} are not signed with any of them")
    own = {key_id: signatures[key_id] for key_id in verify_keys}
    return ServerKeys(
        server_name=server_name,
        verify_keys=verify_keys,
        old_verify_keys=_old_keys(response, now_ms, verify_keys),
        valid_until_ts=valid_until_ts,
        published=_published(response, {server_name: own}),
    )


def _published(response: JsonObject, signatures: JsonObject) -> bytes | None:
    known = {name: value for name, value in response.items() if name != "unsigned"}  # which nobody has signed
    entries = [entry for name in ("verify_keys", "old_verify_keys") for entry in (response.get(name) or {}).values()]
    if not known.keys() <= _PUBLISHED_FIELDS or not all(
        isinstance(entry, dict) and entry.keys() <= _KEY_FIELDS for entry in entries
    ):
        return None
    published = encode_canonical_json({**known, "signatures": signatures})
    return published if len(published) <= PUBLISHED_BYTES_MAX else None


def _signing_keys(
    response: JsonObject, server_name: str, signatures: Mapping[str, str], valid_until_ts: int
) -> dict[str, VerifyKeyData]:
    published = response.get("verify_keys")
    if not isinstance(published, dict) or len(published) > VERIFY_KEYS_MAX:
        raise InvalidSignature(f"the keys of {server_name} have no verify_keys, or too many")
    try:
        message = signed_bytes(response)
    except InvalidEvent as error:
        raise InvalidSignature(f"the keys of {server_name} have no canonical form") from error
    keys: dict[str, VerifyKeyData] = {}
    for key_id, entry in published.items():
        data = _parse_entry(key_id, entry, valid_until_ts)
        if data is None or key_id not in signatures:
            continue  # without a signature, the server does not prove that it has the key
        if not is_signature_of(message, signatures[key_id], data.key):
            raise InvalidSignature(f"the keys of {server_name}: wrong signature with {key_id}")
        keys[key_id] = data
    return keys


def _old_keys(response: JsonObject, now_ms: int, verify_keys: Mapping[str, VerifyKeyData]) -> dict[str, VerifyKeyData]:
    published = response.get("old_verify_keys", {})
    if not isinstance(published, dict) or len(published) > OLD_VERIFY_KEYS_MAX:
        raise InvalidSignature("old_verify_keys is not an object, or has too many keys")
    keys: dict[str, VerifyKeyData] = {}
    for key_id, entry in published.items():
        expired_ts = entry.get("expired_ts") if isinstance(entry, dict) else None
        if key_id in verify_keys or not isinstance(expired_ts, int):
            continue
        data = _parse_entry(key_id, entry, max(0, min(expired_ts, now_ms)), is_old=True)
        if data is not None:
            keys[key_id] = data
    return keys


def _parse_entry(key_id: str, entry: Any, valid_until_ts: int, *, is_old: bool = False) -> VerifyKeyData | None:
    encoded = entry.get("key") if isinstance(entry, dict) else None
    if not isinstance(encoded, str) or not is_key_id(key_id):
        return None
    try:
        return VerifyKeyData(parse_verify_key(encoded), valid_until_ts, is_old)
    except ValueError:
        return None
