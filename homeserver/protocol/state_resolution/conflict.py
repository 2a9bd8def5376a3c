"""Where states agree and where they do not, and the error for a missing event."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from homeserver.errors import HomeserverError
from homeserver.protocol.events import Event, StateKey, StateMap


class MissingEvents(HomeserverError):
    """A resolution needs events that it was not given. Load ``event_ids``, add them, and call it again."""

    def __init__(self, event_ids: Iterable[str]) -> None:
        self.event_ids = frozenset(event_ids)
        super().__init__(f"{len(self.event_ids)} events are needed: {', '.join(sorted(self.event_ids)[:5])}")


def require(events: Mapping[str, Event], event_ids: Iterable[str]) -> None:
    """Raise ``MissingEvents`` with all the given IDs that ``events`` lacks."""
    missing = [event_id for event_id in event_ids if event_id not in events]
    if missing:
        raise MissingEvents(missing)


class Conflict(NamedTuple):
    """States of a room, divided into what they agree on and the rest."""

    unconflicted: dict[StateKey, str]
    """The entries that every state has, with the same event."""
    conflicted: dict[StateKey, set[str]]
    """All others: for each key, all the events that some state has."""

    @property
    def conflicted_ids(self) -> set[str]:
        """The *conflicted state set*."""
        return set().union(*self.conflicted.values())


def split_states(state_sets: Sequence[StateMap]) -> Conflict:
    """Divide states into the *unconflicted state map* and the *conflicted state set*.

    https://spec.matrix.org/v1.19/rooms/v2/#definitions

    Room version 1 has fewer conflicts (a key that is missing in some states is not one), never more.
    """
    if not state_sets:
        return Conflict({}, {})
    first, others = state_sets[0], state_sets[1:]
    # If a given key K is present in every Sᵢ with the same value V in each state map, then the pair (K, V) belongs to
    # the unconflicted state map. Otherwise, V belongs to the conflicted state set.
    unconflicted = dict(first)
    conflicted: dict[StateKey, set[str]] = {}
    for other in others:
        get = other.get
        differing = [key for key, event_id in unconflicted.items() if get(key) != event_id]
        for key in differing:
            conflicted[key] = {unconflicted.pop(key)}
    if not conflicted and all(len(other) == len(unconflicted) for other in others):
        return Conflict(unconflicted, conflicted)
    for state in state_sets:
        for key, event_id in state.items():
            if key not in unconflicted:
                conflicted.setdefault(key, set()).add(event_id)
    return Conflict(unconflicted, conflicted)
