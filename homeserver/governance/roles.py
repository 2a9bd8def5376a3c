"""Owners, Moderators and Members: roles derived from power levels.

Roles are not stored. An Owner is a joined user with a power level of at least 100, or a creator in room version 12; a
Moderator has 50 to 99; everybody else is a Member.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from enum import Enum

from homeserver.governance.room_defaults import MEMBER, MODERATOR, OWNER
from homeserver.protocol.events import Event
from homeserver.protocol.power_levels import Level, PowerLevels, power_levels_of


class Role(Enum):
    """A user's role in a room. The value is the name in the governance API."""

    OWNER = "owner"
    MODERATOR = "moderator"
    MEMBER = "member"

    @property
    def rank(self) -> int:
        """Higher for more power."""
        return {Role.OWNER: 2, Role.MODERATOR: 1, Role.MEMBER: 0}[self]

    @property
    def level(self) -> int:
        """The power level that a user gets with the role."""
        return {Role.OWNER: OWNER, Role.MODERATOR: MODERATOR, Role.MEMBER: MEMBER}[self]


def role_of(level: Level) -> Role:
    """The role of a user with this power level."""
    if level >= OWNER:
        return Role.OWNER
    return Role.MODERATOR if level >= MODERATOR else Role.MEMBER


def joined_owners(levels: PowerLevels, listed: Iterable[str], joined: Collection[str]) -> set[str]:
    """The Owners among the joined users. ``listed`` are the users whom m.room.power_levels names.

    Goes through all joined users only if the default level makes everybody an Owner.
    """
    candidates = joined if levels.users_default >= OWNER else [*listed, *levels.creators]
    return {user for user in candidates if user in joined and levels.of_user(user) >= OWNER}


def listed_users(power_levels: Event | None) -> list[str]:
    """The users whom an m.room.power_levels event names."""
    users = power_levels.content.get("users") if power_levels is not None else None
    return list(users) if isinstance(users, dict) else []


def changed_roles(
    create: Event | None, old: Event | None, new: Event, joined: Collection[str]
) -> dict[str, tuple[Role, Role]]:
    """The users whose role a new m.room.power_levels changes, now or when they join: user ID to the role before and
    after.

    Goes through the joined users who are not named only if the default level changes the role; the key ``""`` then
    stands for users who join later.
    """
    before = power_levels_of(new.version, create, old)
    after = power_levels_of(new.version, create, new)
    named = {*listed_users(old), *listed_users(new), *before.creators}
    defaults = (role_of(before.users_default), role_of(after.users_default))
    looked_at = named if defaults[0] is defaults[1] else named.union(joined)
    changed = {
        user: (role_of(before.of_user(user)), role_of(after.of_user(user)))
        for user in looked_at
        if role_of(before.of_user(user)) is not role_of(after.of_user(user))
    }
    return changed if defaults[0] is defaults[1] else {**changed, "": defaults}
