"""What the rules of governance say of an event that one of our own users sends, beyond what Matrix itself says.

https://spec.matrix.org/v1.19/server-server-api/#authorisation-rules come first; the rules here are those of the
governance API, and hold on every way by which our users send events. Other servers' events are not asked.
"""

from __future__ import annotations

from typing import Literal

import structlog

from homeserver.errors import Forbidden
from homeserver.governance import last_owner
from homeserver.governance.roles import Role, changed_roles, role_of
from homeserver.protocol.events import Event
from homeserver.protocol.power_levels import power_levels_of
from homeserver.rooms.append import WorkingHead

logger = structlog.get_logger(__name__)

Protection = Literal["enforce", "warn", "off"]


class GovernedEvents:
    """Checks events against the rules of governance."""

    def __init__(self, last_owner_protection: Protection = "enforce") -> None:
        self._protection = last_owner_protection

    async def check(self, working: WorkingHead, event: Event) -> None:
        """Raise ``Forbidden`` for an event that breaks a rule. For jobs: it looks at the newest head.

        ``reason`` in the error is ``last_owner`` for the last Owner, ``equal_role`` and ``not_owner`` for changes of
        roles.
        """
        if not last_owner.may_remove_owner(event):
            return
        state = await working.state_events((last_owner.CREATE, last_owner.POWER_LEVELS))
        old = state.get(last_owner.POWER_LEVELS)
        create = state.get(last_owner.CREATE)
        if event.type == "m.room.power_levels" and old is not None:
            _check_roles(create, old, event)
        if self._protection == "off" or not last_owner.leaves_ownerless(event, state, working.head.joined):
            return
        if self._protection == "warn":
            logger.warning("room loses its last owner", room_id=event.room_id, sender=event.sender)
            return
        raise Forbidden(last_owner.MESSAGE, reason="last_owner")


def _check_roles(create: Event | None, old: Event, new: Event) -> None:
    """Rule 1: "Only Owners change roles. Users of equal role cannot change each other's."."""
    changed = changed_roles(create, old, new)
    if not changed:
        return
    sender_role = role_of(power_levels_of(new.version, create, old).of_user(new.sender))
    if sender_role is not Role.OWNER:
        raise Forbidden("Only owners change roles", reason="not_owner")
    for user_id, (before, _) in changed.items():
        if user_id != new.sender and before is Role.OWNER:
            raise Forbidden("Owners cannot change the roles of other owners", reason="equal_role")
