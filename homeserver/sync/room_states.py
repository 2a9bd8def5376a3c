"""Which state events are sent with a timeline: the state at its start, or the state at its end.

Pure functions over numeric event IDs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence

from homeserver.storage.sync_streams import StateChange

Predecessor = Callable[[int], "int | None"]
"""Takes a state event and returns the one that it replaced."""


def whole_before(state: Iterable[int], timeline: Collection[int], predecessor: Predecessor) -> list[int]:
    """The whole state at the start of a timeline, computed from the state at its end.

    State that changed within the timeline's span without being in the timeline (it was filtered out, or branches
    merged) counts as part of the start, so that a client that applies the timeline to it ends with the right state.
    """
    found: list[int] = []
    for event_nid in state:
        earlier = before_timeline(event_nid, timeline, predecessor)
        if earlier is not None:
            found.append(earlier)
    return found


def before_timeline(event_nid: int, timeline: Collection[int], predecessor: Predecessor) -> int | None:
    """The state event with the same key as ``event_nid`` before the timeline, or None."""
    earlier: int | None = event_nid
    while earlier is not None and earlier in timeline:
        earlier = predecessor(earlier)
    return earlier


def changes_before(changes: Sequence[StateChange], timeline: Collection[int], start: int) -> list[int]:
    """What changed in the state between the last sync and the start of a timeline, which is right after ``start``.

    "a delta between the state of the room at the since parameter and that at the start of the returned timeline."
    """
    newest = {change.key: change.event_nid for change in changes}
    at_start = {change.key: change.event_nid for change in changes if change.position <= start}
    found: list[int] = []
    for key, event_nid in newest.items():
        if event_nid in timeline:
            event_nid = at_start.get(key)
        if event_nid is not None and event_nid not in timeline:
            found.append(event_nid)
    return found


def changes_after(changes: Sequence[StateChange]) -> list[int]:
    """What changed in the state between the last sync and the end of a timeline."""
    newest = {change.key: change.event_nid for change in changes}
    return [event_nid for event_nid in newest.values() if event_nid is not None]
