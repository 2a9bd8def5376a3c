"""The last Owner cannot leave a room that others are still in.

Rule 3 of the governance API: whatever would leave a room in which other joined users remain without a joined Owner is
refused. It speaks on what our own users send; what other servers' events do is accepted as the protocol demands.

Users whose accounts were closed can act for nobody: they are neither Owners here nor others who remain.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from homeserver.governance.roles import joined_owners, listed_users
from homeserver.protocol.events import CREATE, POWER_LEVELS, Event, StateKey
from homeserver.protocol.power_levels import power_levels_of

MESSAGE = "This is the last owner. Please set a new owner before removing this one."


def may_remove_owner(event: Event) -> bool:
    """Whether an event is of a kind that can take an Owner from a room; a quick look before the exact one."""
    if event.type == "m.room.member":
        return event.membership != "join"
    return event.type == "m.room.power_levels" and event.state_key == ""


def removes_owner(event: Event, state: Mapping[StateKey, Event], joined: Collection[str]) -> bool:
    """Whether an event takes an Owner from a room; the arguments are those of ``leaves_ownerless``."""
    owners = owners_in(event, state, joined)
    if event.type == "m.room.member":
        return event.state_key in owners
    return not owners <= owners_in(event, {**state, POWER_LEVELS: event}, joined)


def leaves_ownerless(
    event: Event, state: Mapping[StateKey, Event], joined: Collection[str], closed: Collection[str] = ()
) -> bool:
    """Whether a room that has an Owner has none after the event, though joined users remain.

    ``state`` is the state before the event, of which m.room.create and m.room.power_levels are looked at; ``joined``
    holds the joined users before it; ``closed`` those whose accounts were closed.
    """
    owners = owners_in(event, state, joined).difference(closed)
    if not owners:
        return False  # it had none before
    left = set(joined).difference(closed)
    if event.type == "m.room.member":
        return owners == {event.state_key} and len(left) > 1
    return len(left) > 1 and not owners_in(event, {**state, POWER_LEVELS: event}, left)


def owners_in(event: Event, state: Mapping[StateKey, Event], joined: Collection[str]) -> set[str]:
    """The Owners among the joined users, by the state; ``event`` is any of the room."""
    power_levels = state.get(POWER_LEVELS)
    return joined_owners(
        power_levels_of(event.version, state.get(CREATE), power_levels), listed_users(power_levels), joined
    )
