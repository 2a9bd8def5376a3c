"""The last Owner cannot leave a room that others are still in.

Rule 3 of the governance API: refuse every event that would leave a room without a joined Owner while other joined users
remain. The rule applies to events of our own users; events of other servers are accepted as the protocol demands.

Users with closed accounts cannot act any more: they count neither as Owners nor as users who remain.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from homeserver.governance.roles import joined_owners, listed_users
from homeserver.protocol.events import CREATE, POWER_LEVELS, Event, StateKey
from homeserver.protocol.power_levels import power_levels_of

MESSAGE = "This is the last owner. Please set a new owner before removing this one."


def may_remove_owner(event: Event) -> bool:
    """Whether an event is of a kind that can take an Owner from a room: a cheap check before the exact one."""
    if event.type == "m.room.member":
        return event.membership != "join"
    return event.type == "m.room.power_levels" and event.state_key == ""


def removes_owner(event: Event, state: Mapping[StateKey, Event], joined: Collection[str]) -> bool:
    """Whether an event takes an Owner from a room; takes the same arguments as ``leaves_ownerless``."""
    owners = owners_in(event, state, joined)
    if event.type == "m.room.member":
        return event.state_key in owners
    return not owners <= owners_in(event, {**state, POWER_LEVELS: event}, joined)


def leaves_ownerless(
    event: Event, state: Mapping[StateKey, Event], joined: Collection[str], closed: Collection[str] = ()
) -> bool:
    """Whether a room has an Owner before the event, and after it has none although joined users remain.

    ``state`` is the state before the event, and needs m.room.create and m.room.power_levels only; ``joined`` holds the
    users joined before it, and ``closed`` those of them with closed accounts.
    """
    owners = owners_in(event, state, joined).difference(closed)
    if not owners:
        return False  # there was none before
    left = set(joined).difference(closed)
    if event.type == "m.room.member":
        return owners == {event.state_key} and len(left) > 1
    return len(left) > 1 and not owners_in(event, {**state, POWER_LEVELS: event}, left)


def owners_in(event: Event, state: Mapping[StateKey, Event], joined: Collection[str]) -> set[str]:
    """The Owners among the joined users, by the state. ``event`` may be any event of the room."""
    power_levels = state.get(POWER_LEVELS)
    return joined_owners(
        power_levels_of(event.version, state.get(CREATE), power_levels), listed_users(power_levels), joined
    )
