"""Check 7: which policy server a room uses, which events it must sign, and whether it has signed one.

The rules are the same in all room versions. The key is in the room's state, so it need not be fetched.

https://spec.matrix.org/v1.19/server-server-api/#policy-servers
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from typing import Any, Final

from homeserver.errors import InvalidSignature
from homeserver.protocol.events import Event, StateKey
from homeserver.protocol.hashes import reference_bytes
from homeserver.protocol.json_types import JsonObject
from homeserver.protocol.signatures import POLICY_SERVER_KEY_ID, is_signature_of, parse_verify_key, signatures_of

POLICY: Final[StateKey] = ("m.room.policy", "")


@dataclass(frozen=True, slots=True)
class PolicyServer:
    """The policy server that a room uses."""

    name: str
    public_key: str
    """The ed25519 key in the room's state; if it is malformed, no signature is valid."""


def policy_server_of(policy: JsonObject, joined_servers: Container[str]) -> PolicyServer | None:
    """The policy server of a room with this ``m.room.policy`` content in its current state, or None.

    https://spec.matrix.org/v1.19/server-server-api/#determining-if-a-policy-server-is-enabled-in-a-room
    """
    # "Valid means content contains at least: A string value for via. An object value for public_keys containing at
    # least a string value for ed25519."
    name, keys = policy.get("via"), policy.get("public_keys")
    if not isinstance(name, str) or not isinstance(keys, dict):
        return None
    public_key = keys.get("ed25519")
    if not isinstance(public_key, str):
        return None
    # "The server name denoted by the m.room.policy state event's via has at least one joined user in the room"
    return PolicyServer(name, public_key) if name in joined_servers else None


def is_for_policy_server(event: Event) -> bool:
    """Whether a policy server must sign the event: any but the one that sets the room's policy server."""
    # "This endpoint MUST NOT be called for events which have a type of m.room.policy and an empty string state_key."
    return event.state_key is None or event.key != POLICY


def is_recommended(event: Event, server: PolicyServer) -> bool:
    """Whether the event holds the policy server's signature.

    https://spec.matrix.org/v1.19/server-server-api/#validating-policy-server-signatures
    """
    return _is_signed_with(event, server, signatures_of(event.pdu, server.name).get(POLICY_SERVER_KEY_ID))


def with_recommendation(event: Event, server: PolicyServer, answer: JsonObject) -> Event:
    """The event with the signature from the policy server's answer added.

    Raises ``InvalidSignature`` if the answer does not hold one by the key in the room's state.

    https://spec.matrix.org/v1.19/server-server-api/#post_matrixpolicyv1sign
    """
    signature = signatures_of({"signatures": answer}, server.name).get(POLICY_SERVER_KEY_ID)
    if signature is None or not _is_signed_with(event, server, signature):
        raise InvalidSignature(f"{server.name} did not sign with the key that the room's m.room.policy names")
    signatures = event.pdu["signatures"]
    # "The policy server name might be the same as the event's origin […] Those existing signatures might not be
    # returned by the policy server, but should be retained to validate the event."
    of_server = {**signatures.get(server.name, {}), POLICY_SERVER_KEY_ID: signature}
    pdu = {**event.pdu, "signatures": {**signatures, server.name: of_server}}
    return Event(pdu, event.version, event.event_id, event.room_id)


def _is_signed_with(event: Event, server: PolicyServer, signature: Any) -> bool:
    if not isinstance(signature, str):
        return False
    try:
        key = parse_verify_key(server.public_key)
    except ValueError:
        return False
    return is_signature_of(reference_bytes(event.pdu, event.version), signature, key)
