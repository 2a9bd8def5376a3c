"""When a room's summary has changed.

https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3sync_response-200_roomsummary
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from homeserver.protocol.events import Event
from homeserver.protocol.json_types import JsonObject
from homeserver.storage.event_graph import StoredEvent
from homeserver.storage.sync_streams import StateChange

NAME_TYPES = frozenset({"m.room.name", "m.room.canonical_alias"})
SUMMARY_TYPES = frozenset({"m.room.member", *NAME_TYPES})
"""State that a room's summary depends on."""
CHANGES_EXAMINED_MAX = 50
"""With more changes of that state, the summary is sent without checking whether it changed."""

HEROES = 5
"""How many members a client needs in order to name a room that has no name."""

GetEvent = Callable[[int], "StoredEvent | None"]


def relevant_changes(changes: Iterable[StateChange]) -> list[StateChange]:
    """The changes of the state on which the summary depends."""
    return [change for change in changes if change.key[0] in SUMMARY_TYPES]


def events_to_examine(changes: Sequence[StateChange]) -> list[int]:
    """The events that ``has_changed`` looks at, besides those that they replaced; none if it looks at nothing."""
    if len(changes) > CHANGES_EXAMINED_MAX:
        return []
    nids = (c.event_nid for both in _first_and_last(changes) for c in both)
    return list(dict.fromkeys(nid for nid in nids if nid is not None))


def has_changed(changes: Sequence[StateChange], get: GetEvent) -> bool:
    """Whether ``changes``, which are oldest first and all relevant, may have changed the summary.

    ``get`` returns the events of the changes and the events that they replaced. In doubt the summary counts as
    changed. A member's new name or picture does not count; see ``may_move_heroes``.
    """
    if len(changes) > CHANGES_EXAMINED_MAX:
        return True
    for first, last in _first_and_last(changes):
        after = get(last.event_nid) if last.event_nid is not None else None
        started = get(first.event_nid) if first.event_nid is not None else None
        if after is None or started is None or started.stream_position != first.position:
            return True  # branches merged, or the whole state was replaced: the state before is not known
        before = get(started.replaces_nid) if started.replaces_nid is not None else None
        if started.replaces_nid is not None and before is None:
            return True
        if _role(before.event if before is not None else None, last.key[0]) != _role(after.event, last.key[0]):
            return True
    return False


def may_move_heroes(changes: Iterable[StateChange], others: int) -> bool:
    """Whether a room with ``others`` members besides the user may have new heroes, though nobody joined or left.

    The heroes are the first members by the order of their member events, and a new name is a new event.
    """
    return others > HEROES and any(change.key[0] == "m.room.member" for change in changes)


def _first_and_last(changes: Sequence[StateChange]) -> Iterable[tuple[StateChange, StateChange]]:
    first: dict[tuple[str, str], StateChange] = {}
    last: dict[tuple[str, str], StateChange] = {}
    for change in changes:
        first.setdefault(change.key, change)
        last[change.key] = change
    return [(first[key], last[key]) for key in last]


def _role(event: Event | None, event_type: str) -> object:
    """The part of an event that matters for the summary."""
    if event_type in NAME_TYPES:
        return event is not None and is_name(event)
    return event.membership if event is not None else None


def is_name(event: Event) -> bool:
    """Whether a state event gives its room a name, so that clients need not compose one from the members.

    Heroes are "required if the room's m.room.name or m.room.canonical_alias state events are unset or empty".
    """
    return bool(event.content.get("name" if event.type == "m.room.name" else "alias"))


def summary(joined: int, invited: int, heroes: Sequence[str] | None) -> JsonObject:
    """A room's summary. ``heroes`` is None if the room has a name."""
    found: JsonObject = {"m.joined_member_count": joined, "m.invited_member_count": invited}
    if heroes is not None:
        found["m.heroes"] = list(heroes)
    return found
