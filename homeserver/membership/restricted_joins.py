"""Which user may vouch for another one who joins a restricted room because of a membership in another room.

https://spec.matrix.org/v1.19/client-server-api/#restricted-rooms
https://spec.matrix.org/v1.19/server-server-api/#restricted-rooms
"""

from __future__ import annotations

from collections.abc import Callable

from homeserver.errors import Forbidden, UnableToAuthoriseJoin, UnableToGrantJoin
from homeserver.graph.state import RoomHead, RoomHeads
from homeserver.protocol.events import CREATE, POWER_LEVELS, Event
from homeserver.protocol.power_levels import power_levels_of

RESTRICTED_RULES = frozenset({"restricted", "knock_restricted"})
CONDITIONS_MAX = 50
"""How many rooms named in a join rule are considered."""


class RestrictedJoins:
    """Decides whether this server can let a user into a restricted room."""

    def __init__(self, heads: RoomHeads, is_local: Callable[[str], bool]) -> None:
        self._heads = heads
        self._is_local = is_local

    async def needs_authorisation(self, head: RoomHead, user_id: str) -> bool:
        """Whether a join of the user must name a user who vouches for it."""
        if not head.version.restricted_join_rule or user_id in head.joined or user_id in head.invited:
            return False
        rules = await self._heads.original_state_event(head, "m.room.join_rules")
        return rules is not None and rules.content.get("join_rule") in RESTRICTED_RULES

    async def authorising_user(self, head: RoomHead, user_id: str) -> str:
        """One of our users who may vouch for the join.

        Raises ``Forbidden`` if the user meets no condition, ``UnableToAuthoriseJoin`` if this server cannot know that,
        ``UnableToGrantJoin`` if none of our users in the room may invite.
        """
        rules = await self._heads.original_state_event(head, "m.room.join_rules")
        await self._check_conditions(rules, user_id)
        keys = (CREATE, POWER_LEVELS)
        state = await self._heads.original_state_events(head, keys)
        levels = power_levels_of(head.version, state.get(keys[0]), state.get(keys[1]))
        candidates = [member for member in head.joined_local if levels.of_user(member) >= levels.invite]
        if not candidates:
            raise UnableToGrantJoin
        return max(candidates, key=lambda member: (levels.of_user(member), member))

    async def _check_conditions(self, rules: Event | None, user_id: str) -> None:
        allow = rules.content.get("allow") if rules is not None else None
        unknown = False
        for condition in allow[:CONDITIONS_MAX] if isinstance(allow, list) else ():
            if not isinstance(condition, dict) or condition.get("type") != "m.room_membership":
                continue
            room_id = condition.get("room_id")
            if not isinstance(room_id, str):
                continue
            if await self._heads.newest_where(room_id, lambda head: user_id in head.joined and bool(head.joined_local)):
                return
            other = await self._heads.find(room_id)
            if other is None or not other.joined_local:
                unknown = True
        if unknown:
            raise UnableToAuthoriseJoin
        raise Forbidden("You meet none of the conditions for joining this room")
