"""Room versions 1 to 12 as data: each is the version before it with some changes.

Code checks ``version.restricted_join_rule``, never the version's number.

https://spec.matrix.org/v1.19/rooms/
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from types import MappingProxyType


class EventIdFormat(Enum):
    """Where an event ID comes from."""

    IN_EVENT = "in the event, chosen by its sender's server"
    HASH_BASE64 = "the reference hash in unpadded base64"
    HASH_URLSAFE = "the reference hash in URL-safe unpadded base64"


class StateResolution(Enum):
    """The algorithm that resolves the state where branches meet."""

    V1 = "1"
    V2 = "2"
    V2_1 = "2.1"


KEEP_ALL: frozenset[str] | None = None
"""In a redaction table: every key of the content is kept."""


@dataclass(frozen=True, slots=True)
class RedactionRules:
    """Which parts of an event a redaction keeps."""

    top_level: frozenset[str]
    content: Mapping[str, frozenset[str] | None]
    """Event type to the content keys that are kept; ``None`` keeps all. For other types, none is kept."""
    keep_third_party_signed: bool = False
    """Whether ``third_party_invite.signed`` of a membership is kept."""

    def changed(self, **content: frozenset[str] | None) -> RedactionRules:
        """These rules with other content keys for some types (``m_room_create`` stands for ``m.room.create``)."""
        renamed = {name.replace("m_room_", "m.room.", 1): keys for name, keys in content.items()}
        return replace(self, content=MappingProxyType({**self.content, **renamed}))


@dataclass(frozen=True, slots=True)
class RoomVersion:
    """Everything in which room versions differ."""

    identifier: str
    event_id_format: EventIdFormat
    redaction: RedactionRules
    state_resolution: StateResolution
    # -- event format
    references_with_hashes: bool = False
    """prev_events and auth_events hold ``[event_id, {"sha256": hash}]`` pairs."""
    room_id_is_create_hash: bool = False
    """The room ID is the create event's ID with another sigil, and the create event has no ``room_id``."""
    redacts_in_content: bool = False
    """A redaction names its target in ``content.redacts``, not at the top level."""
    strict_canonical_json: bool = False
    """Floats and integers beyond 53 bits make an event invalid."""
    limits_in_bytes: bool = False
    """Sender, type and state key have at most 255 bytes; in earlier versions, servers allowed 255 code points."""
    # -- signatures
    enforce_key_validity: bool = False
    """A key counts only for events not newer than its ``valid_until_ts``."""
    # -- authorization
    aliases_rule: bool = False
    """m.room.aliases has an authorization rule of its own."""
    redaction_rule: bool = False
    """m.room.redaction has an authorization rule of its own."""
    notifications_need_power: bool = False
    """The ``notifications`` of m.room.power_levels are protected like ``events``."""
    integer_power_levels: bool = False
    """Power levels must be integers; in earlier versions, strings and floats are read as numbers."""
    knock_join_rule: bool = False
    restricted_join_rule: bool = False
    knock_restricted_join_rule: bool = False
    creator_is_sender: bool = False
    """The creator is the sender of m.room.create, not its ``content.creator``."""
    creators_have_infinite_power: bool = False
    """The create event's sender and ``additional_creators`` stand above every power level."""

    @property
    def knows_rooms_by_domain(self) -> bool:
        """Whether room IDs end in the server name of the creator."""
        return not self.room_id_is_create_hash


_REDACTION_V1 = RedactionRules(
    top_level=frozenset(
        {
            "event_id", "type", "room_id", "sender", "state_key", "content", "hashes", "signatures", "depth",
            "prev_events", "prev_state", "auth_events", "origin", "origin_server_ts", "membership",
        }
    ),
    content=MappingProxyType(
        {
            "m.room.member": frozenset({"membership"}),
            "m.room.create": frozenset({"creator"}),
            "m.room.join_rules": frozenset({"join_rule"}),
            "m.room.power_levels": frozenset(
                {"ban", "events", "events_default", "kick", "redact", "state_default", "users", "users_default"}
            ),
            "m.room.aliases": frozenset({"aliases"}),
            "m.room.history_visibility": frozenset({"history_visibility"}),
        }
    ),
)  # fmt: skip
_REDACTION_V6 = _REDACTION_V1.changed(m_room_aliases=frozenset())
_REDACTION_V8 = _REDACTION_V6.changed(m_room_join_rules=frozenset({"join_rule", "allow"}))
_REDACTION_V9 = _REDACTION_V8.changed(m_room_member=frozenset({"membership", "join_authorised_via_users_server"}))
_REDACTION_V11 = replace(
    _REDACTION_V9.changed(
        m_room_create=KEEP_ALL,
        m_room_redaction=frozenset({"redacts"}),
        m_room_power_levels=frozenset(
            {
                "ban", "events", "events_default", "invite", "kick", "redact", "state_default", "users",
                "users_default",
            }
        ),
    ),
    top_level=_REDACTION_V1.top_level - {"prev_state", "origin", "membership"},
    keep_third_party_signed=True,
)  # fmt: skip

V1 = RoomVersion(
    "1",
    EventIdFormat.IN_EVENT,
    _REDACTION_V1,
    StateResolution.V1,
    references_with_hashes=True,
    aliases_rule=True,
    redaction_rule=True,
)
V2 = replace(V1, identifier="2", state_resolution=StateResolution.V2)
V3 = replace(
    V2,
    identifier="3",
    event_id_format=EventIdFormat.HASH_BASE64,
    references_with_hashes=False,
    redaction_rule=False,
)
V4 = replace(V3, identifier="4", event_id_format=EventIdFormat.HASH_URLSAFE)
V5 = replace(V4, identifier="5", enforce_key_validity=True)
V6 = replace(
    V5,
    identifier="6",
    redaction=_REDACTION_V6,
    aliases_rule=False,
    notifications_need_power=True,
    strict_canonical_json=True,
)
V7 = replace(V6, identifier="7", knock_join_rule=True)
V8 = replace(V7, identifier="8", redaction=_REDACTION_V8, restricted_join_rule=True)
V9 = replace(V8, identifier="9", redaction=_REDACTION_V9)
V10 = replace(V9, identifier="10", integer_power_levels=True, knock_restricted_join_rule=True)
V11 = replace(
    V10,
    identifier="11",
    redaction=_REDACTION_V11,
    creator_is_sender=True,
    redacts_in_content=True,
    limits_in_bytes=True,
)
V12 = replace(
    V11,
    identifier="12",
    room_id_is_create_hash=True,
    creators_have_infinite_power=True,
    state_resolution=StateResolution.V2_1,
)

ROOM_VERSIONS: Mapping[str, RoomVersion] = MappingProxyType(
    {version.identifier: version for version in (V1, V2, V3, V4, V5, V6, V7, V8, V9, V10, V11, V12)}
)
"""Every room version that this server takes part in, by identifier."""
