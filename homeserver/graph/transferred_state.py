"""The state of a replaced room as it is transferred to the new one. Pure functions: content in, content out.

https://spec.matrix.org/v1.19/client-server-api/#room-upgrades
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

from homeserver.errors import InvalidEvent
from homeserver.governance.room_defaults import CREATORS_ONLY, OWNER
from homeserver.protocol.canonical_json import INTEGER_MAX, INTEGER_MIN, check_strict
from homeserver.protocol.events import JOIN_RULES, Event, StateKey
from homeserver.protocol.identifiers import is_valid_user_id
from homeserver.protocol.json_types import JsonObject
from homeserver.protocol.power_levels import (
    CREATOR_LEVEL_WITHOUT_EVENT,
    NAMED_LEVELS,
    creators_of,
    parse_level,
    power_levels_of,
)
from homeserver.protocol.room_versions import RoomVersion

TOMBSTONE = "m.room.tombstone"
COPIED_TYPES = (
    "m.room.name",
    "m.room.topic",
    "m.room.avatar",
    "m.room.server_acl",
    "m.room.encryption",
    "m.room.guest_access",
    "m.room.history_visibility",
)
"""Types that are transferred unchanged, as the specification recommends; join rules and power levels are adapted."""
MUTED_LEVEL = 50
"""The least level for sending events to a replaced room, and for inviting to it."""


def sayable(content: JsonObject) -> JsonObject:
    """The part of a content that is valid in every room version; versions 1 to 5 allow more numbers than later ones."""
    return {key: value for key, value in content.items() if _is_strict({key: value})}


def _is_strict(value: Any) -> bool:
    try:
        check_strict(value)
    except InvalidEvent:
        return False
    return True


def creation_content(create: Event, predecessor: JsonObject, additional_creators: Collection[str]) -> JsonObject:
    """The content of the new room's m.room.create; ``create`` is that of the old room.

    "a `type` field which is copied from the predecessor room. If no `type` is set on the previous room, no `type` is
    specified on the new room's create event either". A room that was closed to other servers stays closed to them.
    """
    content: JsonObject = {"predecessor": predecessor}
    for name, kind in (("type", str), ("m.federate", bool)):
        if isinstance(create.content.get(name), kind):
            content[name] = create.content[name]
    if additional_creators:
        content["additional_creators"] = list(additional_creators)
    return content


def join_rules(content: JsonObject, version: RoomVersion) -> JsonObject:
    """The content of m.room.join_rules for a room of this version: an unknown rule becomes a stricter one."""
    content = sayable(content)
    if content.get("join_rule") == "knock_restricted" and not version.knock_restricted_join_rule:
        content["join_rule"] = "restricted" if version.restricted_join_rule else "knock"
    unknown = {"restricted": not version.restricted_join_rule, "knock": not version.knock_join_rule}
    if unknown.get(str(content.get("join_rule"))):
        content["join_rule"] = "invite"
    return content


def power_levels(
    create: Event, old: Event | None, version: RoomVersion, creator: str, additional_creators: Collection[str] = ()
) -> JsonObject:
    """The content of the new room's m.room.power_levels: everybody keeps the power that they have in the old room.

    ``create`` and ``old`` are m.room.create and m.room.power_levels of the old room; ``version``, ``creator`` and
    ``additional_creators`` belong to the new one. Creators with infinite power in the old room who do not have it in
    the new one get the highest level that these contents mention.
    """
    content = _readable_levels(old.content if old is not None else {}, create.version)
    users: dict[str, int] = content["users"]
    old_creators = creators_of(create.version, create)
    if create.version.creators_have_infinite_power:
        users.update(dict.fromkeys(sorted(old_creators), _highest_level(content)))
    elif old is None:
        users.update(dict.fromkeys(sorted(old_creators), CREATOR_LEVEL_WITHOUT_EVENT))
    if version.creators_have_infinite_power:
        for user_id in (creator, *additional_creators):
            users.pop(user_id, None)
        if not create.version.creators_have_infinite_power:
            _keep_tombstone_for_creators(content)
    return content


def _readable_levels(content: JsonObject, version: RoomVersion) -> JsonObject:
    """The levels as integers, even if the version allows other types; invalid levels are left out."""
    read: JsonObject = {"users": {}}
    for name, value in content.items():
        if name in NAMED_LEVELS:
            read.update(_levels({name: value}, version))
        elif name in ("users", "events", "notifications"):
            read[name] = _levels(value, version) if isinstance(value, dict) else {}
        else:
            read.update(sayable({name: value}))
    read["users"] = {user_id: level for user_id, level in read["users"].items() if is_valid_user_id(user_id)}
    return read


def _levels(values: JsonObject, version: RoomVersion) -> dict[str, int]:
    read = {name: parse_level(value, version) for name, value in values.items()}
    return {name: max(INTEGER_MIN, min(level, INTEGER_MAX)) for name, level in read.items() if level is not None}


def _highest_level(content: JsonObject) -> int:
    """The highest level that a user has or an action needs; at least that of an Owner."""
    levels: list[int] = [content[name] for name in NAMED_LEVELS if name in content]
    for name in ("users", "events", "notifications"):
        levels.extend(content.get(name, {}).values())
    return max([OWNER, *levels])


def _keep_tombstone_for_creators(content: JsonObject) -> None:
    """Let only creators send a tombstone, since the user who upgrades the room gets infinite power in the next one.

    "the default power level for m.room.tombstone events MUST explicitly be higher than state_default"

    https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3createroom
    """
    events: dict[str, int] = content.setdefault("events", {})
    wanted = max(CREATORS_ONLY, content.get("state_default", 50) + 1, events.get(TOMBSTONE, 0))
    events[TOMBSTONE] = min(wanted, INTEGER_MAX)


def muted_power_levels(create: Event, old: Event | None) -> JsonObject:
    """The content of m.room.power_levels that keeps a replaced room quiet.

    "setting `events_default` and `invite` to the greater of `50` and `users_default + 1`", or leaving them where they
    are higher already.
    """
    levels = power_levels_of(create.version, create, old)
    content = dict(old.content) if old is not None else {}
    if old is None and not create.version.creators_have_infinite_power:
        # The event would take the level away that the creator has without one.
        content["users"] = dict.fromkeys(sorted(levels.creators), CREATOR_LEVEL_WITHOUT_EVENT)
    floor = max(MUTED_LEVEL, levels.users_default + 1)
    return {**content, "events_default": max(levels.events_default, floor), "invite": max(levels.invite, floor)}


class SplitAliases(NamedTuple):
    """m.room.canonical_alias, divided between the old and the new room."""

    goes: JsonObject
    """The aliases that will lead to the new room."""
    stays: JsonObject


def split_aliases(canonical: Event | None, moved: Collection[str]) -> SplitAliases | None:
    """Divide the old room's m.room.canonical_alias; None if it names none of the aliases that move."""
    if canonical is None:
        return None
    goes: JsonObject = {}
    stays = dict(canonical.content)
    alias, others = stays.get("alias"), stays.get("alt_aliases")
    if isinstance(alias, str) and alias in moved:
        goes["alias"] = stays.pop("alias")
    if isinstance(others, list):
        going = [other for other in others if isinstance(other, str) and other in moved]
        if going:
            goes["alt_aliases"] = going
            stays["alt_aliases"] = [other for other in others if other not in going]
            if not stays["alt_aliases"]:
                del stays["alt_aliases"]
    return SplitAliases(goes, stays) if goes else None


def copied_state(state: Mapping[StateKey, Event], version: RoomVersion) -> Iterable[tuple[str, JsonObject]]:
    """Types and contents to be transferred, from the examined part of the old room's state."""
    for event_type in COPIED_TYPES:
        if (event := state.get((event_type, ""))) is not None:
            yield event_type, sayable(event.content)
    if (rules := state.get(JOIN_RULES)) is not None:
        yield "m.room.join_rules", join_rules(rules.content, version)


def predecessor_of(create: Event) -> str | None:
    """The ID of the room that a room claims to replace."""
    predecessor = create.content.get("predecessor")
    room_id = predecessor.get("room_id") if isinstance(predecessor, dict) else None
    return room_id if isinstance(room_id, str) else None
