"""Changing a user's role: who may do it, and which power levels result.

Rules 1 and 2 of the governance API. The resulting event is also subject to Matrix's authorization rules and to the rule
of the last Owner, like any other event.
"""

from __future__ import annotations

from collections.abc import Collection

from homeserver.errors import Forbidden, LosingPrivileges, NotFound
from homeserver.governance.roles import Role, role_of
from homeserver.protocol.events import Event
from homeserver.protocol.json_types import JsonObject
from homeserver.protocol.power_levels import CREATOR_LEVEL_WITHOUT_EVENT, PowerLevels
from homeserver.protocol.room_versions import RoomVersion

NOT_OWNER = "Only owners change roles"
EQUAL_ROLE = "Owners cannot change the roles of other owners"
CREATOR = "The creator of this room is an owner for ever, and cannot be lowered"


def is_change(
    version: RoomVersion,
    levels: PowerLevels,
    joined: Collection[str],
    *,
    sender: str,
    target: str,
    role: Role,
    is_confirmed: bool,
) -> bool:
    """Whether giving ``target`` the role changes anything: not if the user has it already.

    Raises ``NotFound`` if the target is not in the room, ``Forbidden`` with a ``reason`` (``creator``, ``not_owner``,
    ``equal_role``) if the sender may not do this, and ``LosingPrivileges`` if users lower their own role without
    confirming it.
    """
    if target not in joined:
        raise NotFound("The user is not in this room")
    # In version 12 a creator is an Owner for ever; refuse an attempt to lower one.
    if version.creators_have_infinite_power and target in levels.creators and role is not Role.OWNER:
        raise Forbidden(CREATOR, reason="creator")
    # Only Owners change roles.
    if role_of(levels.of_user(sender)) is not Role.OWNER:
        raise Forbidden(
            "Only owners change roles, also their own: ask an owner" if sender == target else NOT_OWNER,
            reason="not_owner",
        )
    current = role_of(levels.of_user(target))
    if current is role:
        return False
    # Users of equal role cannot change each other's role.
    if sender != target and current is Role.OWNER:
        raise Forbidden(EQUAL_ROLE, reason="equal_role")
    if sender == target and not is_confirmed:
        raise LosingPrivileges()
    return True


def with_role(
    version: RoomVersion, levels: PowerLevels, power_levels: Event | None, target: str, role: Role
) -> JsonObject:
    """The content of an m.room.power_levels that gives a user a role and keeps everything else.

    In a room without that event, the creator's implicit level is written down, because the new event would end it.
    """
    content = dict(power_levels.content) if power_levels is not None else {}
    listed = content.get("users")
    users = dict(listed) if isinstance(listed, dict) else {}
    if power_levels is None and not version.creators_have_infinite_power:
        users.update(dict.fromkeys(levels.creators, CREATOR_LEVEL_WITHOUT_EVENT))
    users[target] = role.level
    return {**content, "users": users}
