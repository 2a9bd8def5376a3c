"""The rule for m.room.power_levels: no sender gives or takes away more power than its own.

https://spec.matrix.org/v1.19/rooms/v12/#authorisation-rules
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from homeserver.errors import NotAuthorized
from homeserver.protocol.events import POWER_LEVELS, Event, StateEvents
from homeserver.protocol.identifiers import is_valid_user_id
from homeserver.protocol.json_types import JsonObject
from homeserver.protocol.power_levels import Level, PowerLevels, parse_level
from homeserver.protocol.room_versions import RoomVersion

_NAMED = ("users_default", "events_default", "state_default", "ban", "redact", "kick", "invite")

_Levels: TypeAlias = Mapping[str, int]


def check_power_levels(event: Event, state: StateEvents, levels: PowerLevels) -> None:
    """Rule 10 of version 12 (rule 9 of versions 6 to 11, rule 10 before). Raises ``NotAuthorized``."""
    version = event.version
    # If any of the properties users_default, events_default, state_default, ban, redact, kick, or invite in content
    # are present and not an integer, reject.
    new_named = _named_levels(event.content, version)
    # If either of the properties events or notifications in content are present and not an object with values that
    # are integers, reject.
    #   NOTSPEC: versions 1 to 9 spell out neither rule, yet a level that cannot be read cannot be compared either.
    guarded = ("events", "notifications") if version.notifications_need_power else ("events",)
    new_guarded = {name: _levels_in(event.content, name, version) for name in guarded}
    # If the users property in content is not an object with keys that are valid user IDs with values that are
    # integers (before version 10: or a string that is an integer), reject.
    new_users = _levels_in(event.content, "users", version)
    for user_id in new_users:
        if not is_valid_user_id(user_id):
            raise NotAuthorized("users has a key that is not a user ID")
    # (since version 12) If the users property in content contains the sender of the m.room.create event or any of the
    # additional_creators array (if present) from the content of the m.room.create event, reject.
    if version.creators_have_infinite_power and not levels.creators.isdisjoint(new_users):
        raise NotAuthorized("users must not list a creator of the room")
    # If there is no previous m.room.power_levels event in the room, allow.
    previous = state.get(POWER_LEVELS)
    if previous is None:
        return
    sender_level = levels.of_user(event.sender)
    # For the properties users_default, events_default, state_default, ban, redact, kick, invite check if they were
    # added, changed or removed. For each found alteration: …
    _check_changes(_readable(previous.content, _NAMED, version), new_named, sender_level)
    # For each entry being changed in, or removed from, the events or notifications properties: …
    # For each entry being added to, or changed in, the events or notifications properties: …
    #   (notifications since version 6)
    for name in guarded:
        _check_changes(_readable_object(previous.content, name, version), new_guarded[name], sender_level)
    _check_users(_readable_object(previous.content, "users", version), new_users, event.sender, sender_level)
    # Otherwise, allow.


def _check_changes(old: _Levels, new: _Levels, sender_level: Level) -> None:
    for name in old.keys() | new.keys():
        before, after = old.get(name), new.get(name)
        if before == after:
            continue
        # If the current value is higher than the sender's current power level, reject.
        if before is not None and before > sender_level:
            raise NotAuthorized(f"the sender's power level is too low to change the level of {name}")
        # If the new value is higher than the sender's current power level, reject.
        if after is not None and after > sender_level:
            raise NotAuthorized(f"the sender cannot raise the level of {name} above the sender's own")


def _check_users(old: _Levels, new: _Levels, sender: str, sender_level: Level) -> None:
    for user_id in old.keys() | new.keys():
        before, after = old.get(user_id), new.get(user_id)
        if before == after:
            continue
        # For each entry being changed in, or removed from, the users property, other than the sender's own entry:
        # if the current value is greater than or equal to the sender's current power level, reject.
        if before is not None and user_id != sender and before >= sender_level:
            raise NotAuthorized("the sender cannot change the level of a user whose level is not lower")
        # For each entry being added to, or changed in, the users property:
        # if the new value is greater than the sender's current power level, reject.
        if after is not None and after > sender_level:
            raise NotAuthorized("the sender cannot give a user a higher level than the sender's own")


def _named_levels(content: JsonObject, version: RoomVersion) -> dict[str, int]:
    levels = {}
    for name in _NAMED:
        if name in content:
            levels[name] = _level(content[name], name, version)
    return levels


def _levels_in(content: JsonObject, name: str, version: RoomVersion) -> dict[str, int]:
    if name not in content:
        return {}
    value = content[name]
    if not isinstance(value, dict):
        raise NotAuthorized(f"{name} is not an object")
    return {key: _level(level, name, version) for key, level in value.items()}


def _level(value: Any, name: str, version: RoomVersion) -> int:
    level = parse_level(value, version)
    if level is None:
        raise NotAuthorized(f"{name} holds something that is not a power level")
    return level


def _readable(content: JsonObject, names: tuple[str, ...], version: RoomVersion) -> dict[str, int]:
    """The levels of an event that was accepted, in whatever way; an unreadable level counts as absent."""
    read = ((name, parse_level(content.get(name), version)) for name in names)
    return {name: level for name, level in read if level is not None}


def _readable_object(content: JsonObject, name: str, version: RoomVersion) -> dict[str, int]:
    value = content.get(name)
    return _readable(value, tuple(value), version) if isinstance(value, dict) else {}
