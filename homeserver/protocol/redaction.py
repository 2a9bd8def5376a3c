"""Redaction: which parts of an event it keeps.

https://spec.matrix.org/v1.19/client-server-api/#redactions, and the section "Redactions" of each room version, which is
data in ``room_versions``.
"""

from __future__ import annotations

from typing import Any

from homeserver.protocol.events import Event
from homeserver.protocol.json_types import JsonObject
from homeserver.protocol.room_versions import RedactionRules, RoomVersion

_KEEP_NONE: frozenset[str] = frozenset()


def redact(pdu: JsonObject, version: RoomVersion) -> JsonObject:
    """The PDU reduced to what a redaction keeps. The argument is not changed; kept values are shared, not copied."""
    rules = version.redaction
    top_level = rules.top_level
    redacted = {key: value for key, value in pdu.items() if key in top_level}
    if "content" in redacted:
        redacted["content"] = _redact_content(redacted["content"], redacted.get("type"), rules)
    return redacted


def redact_event(event: Event) -> Event:
    """The event reduced to what a redaction keeps; its ID stays the same."""
    return Event(redact(event.pdu, event.version), event.version, event.event_id, event.room_id)


def _redact_content(content: Any, event_type: Any, rules: RedactionRules) -> JsonObject:
    if not isinstance(content, dict) or not isinstance(event_type, str):
        return {}
    kept_keys = rules.content.get(event_type, _KEEP_NONE)
    if kept_keys is None:
        return content
    kept = {key: content[key] for key in kept_keys if key in content}
    if rules.keep_third_party_signed and event_type == "m.room.member":
        # "The third_party_invite key of m.room.member events is no longer redacted, but will only contain the signed
        # key after redaction."
        third_party_invite = content.get("third_party_invite")
        if isinstance(third_party_invite, dict):
            kept["third_party_invite"] = {key: value for key, value in third_party_invite.items() if key == "signed"}
    return kept
