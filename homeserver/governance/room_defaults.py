"""The power levels of new rooms, which give Owners, Moderators and Members different rights.

Rule 6 of the governance API: only Owners (100) assign roles and change join rules and history visibility; Moderators
(50) invite, remove, ban and name the room; Members (0) send messages.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from homeserver.protocol.json_types import JsonObject
from homeserver.protocol.room_versions import RoomVersion

OWNER = 100
MODERATOR = 50
MEMBER = 0
CREATORS_ONLY = 150
"""Above every Owner where the room version sets creators above all levels: only creators may end the room."""

_FOR_MODERATORS = ("m.room.name", "m.room.topic", "m.room.avatar", "m.room.canonical_alias")
_FOR_OWNERS = (
    "m.room.power_levels",
    "m.room.join_rules",
    "m.room.history_visibility",
    "m.room.guest_access",
    "m.room.encryption",
    "m.room.server_acl",
    "m.room.tombstone",
)


def default_power_levels(version: RoomVersion, owners: Iterable[str], override: JsonObject | None) -> JsonObject:
    """The content of a new room's first m.room.power_levels.

    ``owners`` start with level 100; if the version gives creators infinite power, they must not be among them.
    ``override`` is the client's ``power_level_content_override``, and replaces the default key by key.
    """
    events: dict[str, Any] = {
        **dict.fromkeys(_FOR_MODERATORS, MODERATOR),
        **dict.fromkeys(_FOR_OWNERS, OWNER),
    }
    if version.creators_have_infinite_power:
        events["m.room.tombstone"] = CREATORS_ONLY
    content: JsonObject = {
        "users": dict.fromkeys(owners, OWNER),
        "users_default": MEMBER,
        "events": events,
        "events_default": MEMBER,
        "state_default": MODERATOR,
        "invite": MODERATOR,
        "kick": MODERATOR,
        "ban": MODERATOR,
        "redact": MODERATOR,
    }
    return {**content, **(override or {})}
