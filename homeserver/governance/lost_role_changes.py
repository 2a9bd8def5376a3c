"""Role changes that were lost when branches of a room met, and which of them are to be made again.

Suppose Owners on two servers change roles at the same moment: two m.room.power_levels events follow the same
predecessor. Each holds all levels of the room, and state resolution keeps only one of them, so the other change is
lost. The server of the user who lost makes the change again on top of the event that won, except where the winning
event changed the same user.

https://spec.matrix.org/v1.19/rooms/v11/#state-resolution
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from homeserver.protocol.events import Event
from homeserver.protocol.json_types import JsonObject
from homeserver.protocol.power_levels import PowerLevels, parse_level

Entries: TypeAlias = Mapping[str, Any]
"""User ID to the user's entry under ``users``; None if there is no entry."""
Line: TypeAlias = Sequence[Event | None]
"""An m.room.power_levels event, the one that it was built on, and so on; None at the end stands for "no event yet"."""


@dataclass(frozen=True, slots=True)
class LevelChange:
    """An m.room.power_levels event and the one that it was built on, if any."""

    before: Event | None
    event: Event

    def entries(self) -> dict[str, Any]:
        """The entries under ``users`` that it changed, with their new values."""
        old, new = users_of(self.before), users_of(self.event)
        return {user: new.get(user) for user in (*old, *new) if old.get(user) != new.get(user)}


@dataclass(frozen=True, slots=True)
class Fork:
    """Where two lines of m.room.power_levels events diverged, and the changes on each since then, oldest first."""

    lost: Sequence[LevelChange]
    won: Sequence[LevelChange]


def fork_of(lost: Line, won: Line) -> Fork | None:
    """Where two lines diverged; None if they do not reach back far enough to tell."""
    lost_ids, won_ids = ([event and event.event_id for event in line] for line in (lost, won))
    for place, event_id in enumerate(lost_ids):
        if event_id in won_ids:
            return Fork(_changes(lost[: place + 1]), _changes(won[: won_ids.index(event_id) + 1]))
    return None


def left_to_apply(change: LevelChange, others: Iterable[LevelChange]) -> dict[str, Any]:
    """The entries that a lost change made, except for users whom one of the other changes is about as well."""
    decided = {user for other in others for user in other.entries()}
    return {user: value for user, value in change.entries().items() if user not in decided}


def with_entries(current: Event, levels: PowerLevels, entries: Entries) -> JsonObject | None:
    """The content of an m.room.power_levels that sets entries on top of the current one and keeps everything else.

    None if all users have the wanted level already. ``levels`` are those of ``current``.
    """
    users = dict(users_of(current))
    for user, value in entries.items():
        level = None if value is None else parse_level(value, current.version)
        if levels.of_user(user) == (levels.users_default if level is None else level):
            continue
        if value is None:
            users.pop(user, None)
        else:
            users[user] = value
    return {**current.content, "users": users} if users != users_of(current) else None


def users_of(power_levels: Event | None) -> JsonObject:
    """What an m.room.power_levels event has under ``users``."""
    users = power_levels.content.get("users") if power_levels is not None else None
    return users if isinstance(users, dict) else {}


def _changes(line: Line) -> list[LevelChange]:
    """The changes of a line, from its oldest event to its newest."""
    return [
        LevelChange(before, event)
        for event, before in zip(reversed(line[:-1]), reversed(line[1:]), strict=True)
        if event is not None
    ]
