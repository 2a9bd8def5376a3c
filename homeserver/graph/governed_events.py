"""Checks events that our own users send against the rules of governance, besides the rules of Matrix.

The rules of Matrix come first (https://spec.matrix.org/v1.19/server-server-api/#authorisation-rules). The rules here
are those of the governance API; they apply however our users send an event, and not to events of other servers.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal

import structlog

from homeserver.errors import Forbidden, NotAuthorized
from homeserver.governance import last_owner, role_changes, room_upgrades
from homeserver.governance.roles import Role, changed_roles, listed_users, role_of
from homeserver.graph.working_head import WorkingHead
from homeserver.protocol.events import CREATE, POWER_LEVELS, Event, StateKey
from homeserver.protocol.power_levels import creators_of, power_levels_of
from homeserver.protocol.room_versions import RoomVersion
from homeserver.storage import accounts
from homeserver.storage.database import Database

logger = structlog.get_logger(__name__)

Protection = Literal["enforce", "warn", "off"]


class GovernedEvents:
    """Checks events against the rules of governance. Without a database, no account counts as closed."""

    def __init__(self, last_owner_protection: Protection = "enforce", database: Database | None = None) -> None:
        self._protection = last_owner_protection
        self._database = database

    async def check(self, working: WorkingHead, event: Event) -> None:
        """Raise ``Forbidden`` for an event that breaks a rule. For jobs: it uses the newest head.

        The error has the ``reason`` ``last_owner`` for the last Owner, ``equal_role`` or ``not_owner`` for changes of
        roles.
        """
        if not last_owner.may_remove_owner(event):
            return
        state = await working.state_events((CREATE, POWER_LEVELS))
        joined = working.head.joined
        old = state.get(POWER_LEVELS)
        if event.type == "m.room.power_levels":
            _check_roles(state.get(CREATE), old, event, joined)
        if self._protection == "off" or not last_owner.removes_owner(event, state, joined):
            return
        closed = await self.closed_among(working.head.joined_local)
        if not last_owner.leaves_ownerless(event, state, joined, closed):
            return
        self._protect(event.room_id, event.sender)

    async def check_upgrade(self, working: WorkingHead, tombstone: Event, version: RoomVersion) -> None:
        """Raise ``Forbidden`` if replacing a room by one of this version breaks a rule. For jobs.

        The error has the ``reason`` ``last_owner`` if the new room would have no Owner, and ``not_owner`` if the sender
        would become one.
        """
        joined = working.head.joined
        state = await working.state_events((CREATE, POWER_LEVELS))
        owners = last_owner.owners_in(tombstone, state, joined)
        closed = await self.closed_among(working.head.joined_local)
        reason = room_upgrades.refusal_of_upgrade(version, tombstone.sender, owners, joined, closed)
        if reason == "not_owner":
            raise Forbidden(room_upgrades.NOT_OWNER, reason=reason)
        if reason == "last_owner" and self._protection != "off":
            self._protect(tombstone.room_id, tombstone.sender)

    def _protect(self, room_id: str, sender: str) -> None:
        if self._protection == "enforce":
            raise Forbidden(last_owner.MESSAGE, reason="last_owner")
        logger.warning("room loses its last owner", room_id=room_id, sender=sender)

    async def closed_among(self, user_ids: Collection[str]) -> set[str]:
        """The users among these, all ours, whose accounts were closed."""
        if self._database is None:
            return set()
        return await self._database.read(accounts.closed_among, list(user_ids))


def refusal(event: Event, state: Mapping[StateKey, Event], create: Event | None, error: NotAuthorized) -> Forbidden:
    """The error for our user whose event breaks a rule of Matrix, with a ``reason`` if governance has one for it.

    ``state`` holds the event's auth events by state key.
    """
    text = str(error)
    return Forbidden(text[:1].upper() + text[1:], **_reason(event, state, create))


def _reason(event: Event, state: Mapping[StateKey, Event], create: Event | None) -> dict[str, str]:
    version = event.version
    if event.type == "m.room.member" and event.membership in ("join", "invite", "knock"):
        member = state.get(event.key)
        return {"reason": "banned"} if member is not None and member.membership == "ban" else {}
    if event.type == "m.room.power_levels" and version.creators_have_infinite_power:
        lists_creator = not creators_of(version, create).isdisjoint(listed_users(event))
        return {"reason": "creator"} if lists_creator else {}
    return {}


def _check_roles(create: Event | None, old: Event | None, new: Event, joined: Collection[str]) -> None:
    """Rule 1: "Only Owners change roles. Users of equal role cannot change each other's."."""
    changed = changed_roles(create, old, new, joined)
    if not changed:
        return
    sender_role = role_of(power_levels_of(new.version, create, old).of_user(new.sender))
    if sender_role is not Role.OWNER:
        raise Forbidden(role_changes.NOT_OWNER, reason="not_owner")
    for user_id, (before, _) in changed.items():
        # A user who is not in the room has no role in it, and may be given any level that Matrix allows.
        if user_id != new.sender and before is Role.OWNER and user_id in joined:
            raise Forbidden(role_changes.EQUAL_ROLE, reason="equal_role")
