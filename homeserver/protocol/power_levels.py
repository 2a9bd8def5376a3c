"""Power levels: the level of each user, and the one that each action requires.

https://spec.matrix.org/v1.19/client-server-api/#mroompower_levels
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias

from homeserver.errors import BadJson
from homeserver.protocol.events import Event
from homeserver.protocol.identifiers import is_valid_user_id
from homeserver.protocol.json_types import JsonObject
from homeserver.protocol.room_versions import RoomVersion

Level: TypeAlias = int | float
"""A power level: an integer, or ``INFINITE``."""
INFINITE: float = math.inf
"""The level of a creator if the room version puts creators above everybody."""

CREATOR_LEVEL_WITHOUT_EVENT = 100
"""The creator's level in a room that has no m.room.power_levels event (room versions 1 to 11)."""
NOTIFICATION_LEVEL_DEFAULT = 50
LEVEL_DIGITS_MAX = 309
"""Digits that a level in a string may have: as many as the largest double has."""

_NOTHING: JsonObject = {}
NAMED_LEVELS = ("ban", "events_default", "invite", "kick", "redact", "state_default", "users_default")
"""The keys of m.room.power_levels that hold one level each."""


def to_build_on(original: Event, shown: Event) -> Event:
    """The m.room.power_levels event whose content a new one may repeat, given the standing one in both forms.

    What was redacted must not be published again. But a level that redaction removes still holds: authorization goes by
    what was signed. Before version 11 that is ``invite``, and a new event without it would let everybody invite.
    """
    held = {name: original.content[name] for name in NAMED_LEVELS if name in original.content}
    content = {**shown.content, **held}
    if content == original.content:
        return original
    return Event({**original.pdu, "content": content}, original.version, original.event_id, original.room_id)


def parse_level(value: Any, version: RoomVersion) -> int | None:
    """The level of a JSON value in this room version, ``None`` if it is not a level.

    Before version 10 a string that holds an integer is one; where canonical JSON is not enforced (before version 6), so
    is a float, truncated to an integer.
    https://spec.matrix.org/v1.19/rooms/v1/#deprecated-event-content-schemas
    """
    if type(value) is int:
        return value
    if version.integer_power_levels:
        return None
    if type(value) is str:
        return _level_in_string(value)
    if type(value) is float and not version.strict_canonical_json and math.isfinite(value):
        return int(value)
    return None


def _level_in_string(text: str) -> int | None:
    """Parse a base 10 integer with an optional sign, leading zeroes and white space around it."""
    text = text.strip()
    digits = text[1:] if text.startswith(("+", "-")) else text
    if not (digits.isascii() and digits.isdecimal()):
        return None
    digits = digits.lstrip("0") or "0"
    if len(digits) > LEVEL_DIGITS_MAX:
        return None
    return -int(digits) if text[0] == "-" else int(digits)


def check_levels(content: JsonObject) -> None:
    """Check m.room.power_levels from a client, for any room version: integers, for valid user IDs.

    The authorization rules of every version reject anything else, whoever sends it. Raises ``BadJson``.

    https://spec.matrix.org/v1.19/client-server-api/#mroompower_levels
    """
    for name in NAMED_LEVELS:
        if name in content and type(content[name]) is not int:
            raise BadJson(f"'{name}' must be an integer")
    for name in ("users", "events", "notifications"):
        levels = content.get(name, _NOTHING)
        if not isinstance(levels, dict) or not all(type(level) is int for level in levels.values()):
            raise BadJson(f"'{name}' must be an object of integers")
    if not all(map(is_valid_user_id, content.get("users", _NOTHING))):
        raise BadJson("'users' has a key that is not a user ID")


def creators_of(version: RoomVersion, create: Event | None) -> frozenset[str]:
    """The user IDs of the room's creators: one, or several in versions with ``additional_creators``.

    https://spec.matrix.org/v1.19/rooms/v12/#authorisation-rules
    """
    if create is None:
        return frozenset()
    if version.creators_have_infinite_power:
        additional = create.content.get("additional_creators")
        if isinstance(additional, list):
            return frozenset((create.sender, *(user_id for user_id in additional if isinstance(user_id, str))))
        return frozenset((create.sender,))
    if version.creator_is_sender:
        return frozenset((create.sender,))
    creator = create.content.get("creator")
    return frozenset((creator,)) if isinstance(creator, str) else frozenset()


class PowerLevels:
    """The levels in one state of a room. Immutable; the events are read only as far as needed."""

    __slots__ = ("_content", "_create", "_creators", "_events", "_exists", "_users", "_version")

    def __init__(self, version: RoomVersion, create: Event | None, power_levels: Event | None) -> None:
        self._version = version
        self._create = create
        self._creators: frozenset[str] | None = None
        self._exists = power_levels is not None
        self._content = power_levels.content if power_levels is not None else _NOTHING
        self._users = _object(self._content, "users")
        self._events = _object(self._content, "events")

    @property
    def creators(self) -> frozenset[str]:
        """The room's creators."""
        if self._creators is None:
            self._creators = creators_of(self._version, self._create)
        return self._creators

    def of_user(self, user_id: str) -> Level:
        """The level of a user, whether in the room or not."""
        if self._version.creators_have_infinite_power:
            if user_id in self.creators:
                return INFINITE
        elif not self._exists:
            return CREATOR_LEVEL_WITHOUT_EVENT if user_id in self.creators else 0
        value = self._users.get(user_id)
        if value is not None:
            level = parse_level(value, self._version)
            if level is not None:
                return level
        return self._named("users_default", 0)

    def to_send(self, event_type: str, is_state: bool) -> int:
        """The *required power level* of an event type.

        https://spec.matrix.org/v1.19/server-server-api/#definitions
        """
        value = self._events.get(event_type)
        if value is not None:
            level = parse_level(value, self._version)
            if level is not None:
                return level
        return self.state_default if is_state else self.events_default

    def notification(self, key: str) -> int:
        """The level required to notify by ``key``, such as ``room`` for @room."""
        level = parse_level(_object(self._content, "notifications").get(key), self._version)
        return NOTIFICATION_LEVEL_DEFAULT if level is None else level

    @property
    def users_default(self) -> int:
        """The level of users who are not listed."""
        return self._named("users_default", 0)

    @property
    def events_default(self) -> int:
        """The level for messages whose type is not listed."""
        return self._named("events_default", 0)

    @property
    def state_default(self) -> int:
        """The level for state events whose type is not listed."""
        return self._named("state_default", 50)

    @property
    def invite(self) -> int:
        """The *invite level*."""
        return self._named("invite", 0)

    @property
    def kick(self) -> int:
        """The *kick level*."""
        return self._named("kick", 50)

    @property
    def ban(self) -> int:
        """The *ban level*."""
        return self._named("ban", 50)

    @property
    def redact(self) -> int:
        """The *redact level*: for redacting the events of others."""
        return self._named("redact", 50)

    def _named(self, name: str, default: int) -> int:
        value = self._content.get(name)
        if value is None:
            return default
        level = parse_level(value, self._version)
        return default if level is None else level


def power_levels_of(version: RoomVersion, create: Event | None, power_levels: Event | None) -> PowerLevels:
    """The levels that m.room.create and m.room.power_levels give, each if there is one.

    Cheap to build; keep it for repeated use. A value that is not a level in this room version counts as absent.
    """
    return PowerLevels(version, create, power_levels)


def _object(content: JsonObject, key: str) -> JsonObject:
    value = content.get(key)
    return value if isinstance(value, dict) else _NOTHING
