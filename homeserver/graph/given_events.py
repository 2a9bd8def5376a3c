"""Events as another server gives them in a large answer.

As Python objects, the events of a large room would take half a gigabyte. They are held in memory as long as they are
few; of many, only the places in the answer are kept, and whoever looks at one makes it anew.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from homeserver.caches import WeightedCache
from homeserver.federation.large_answers import Elements
from homeserver.protocol.events import Event, StateKey
from homeserver.protocol.json_types import JsonObject
from homeserver.protocol.redaction import redact_event
from homeserver.protocol.room_versions import EventIdFormat, RoomVersion

T = TypeVar("T")

HELD_BYTES_MAX = 20 * 1024 * 1024
"""How much memory the events of one answer take, roughly, before the further ones are only remembered by place."""
RECENT_BYTES_MAX = 4 * 1024 * 1024
"""How much the events take that were just made anew."""
BYTES_PER_CHARACTER = 20
"""How many times the size of its text an event takes at most, roughly: one whose content is a list of empty lists."""
VALUE_BYTES = 80
"""About what one value of an event takes as a Python object."""
PLACE_BITS = 32
NO_PLACE = (1 << 64) - 1


class GivenEvents(Mapping[str, Event]):
    """Events of one room by their ID, in the order in which they were added. All are added before any is taken out."""

    def __init__(self, version: RoomVersion, room_id: str) -> None:
        self.version = version
        self.room_id = room_id
        self._events: dict[str, Event | int] = {}
        """Each event, or the number of its list and its place there."""
        self._places = array("Q")
        """The numbers of the events that were added while all were held, in this order."""
        self._lists: list[Elements] = []
        self._held_bytes = 0
        self._redacted: set[str] = set()
        """The events that are not held, and of which only the redacted form counts."""
        self._recent: WeightedCache[str, tuple[Event, int]] = WeightedCache(
            "given events", RECENT_BYTES_MAX, lambda made: made[1] * BYTES_PER_CHARACTER
        )

    @property
    def are_held(self) -> bool:
        """Whether all of them are in memory."""
        return self._held_bytes <= HELD_BYTES_MAX

    def as_plain(self) -> Mapping[str, Event]:
        """The same events: if all of them are in memory, in a dictionary that costs less to look into."""
        held = {event_id: event for event_id, event in self._events.items() if isinstance(event, Event)}
        return held if len(held) == len(self._events) else self

    def add(self, event: Event, source: Sequence[Any] | None = None, place: int = 0) -> None:
        """Add an event, unless it is here; ``source[place]`` is the PDU that it was made from."""
        if event.event_id in self._events:
            return
        if isinstance(source, Elements):
            if not self._lists or self._lists[-1] is not source:
                self._lists.append(source)
            number = ((len(self._lists) - 1) << PLACE_BITS) | place
        else:
            number = NO_PLACE
        if not self.are_held:
            self._events[event.event_id] = event if number == NO_PLACE else number
            return
        self._held_bytes += weight_of(event)
        self._events[event.event_id] = event
        self._places.append(number)
        if not self.are_held:
            for event_id, known in zip(list(self._events), self._places, strict=True):
                if known != NO_PLACE:
                    self._events[event_id] = known

    def redact(self, event_id: str) -> None:
        """Keep only the redacted form of an event, because its content does not match its hash."""
        found = self._events[event_id]
        if isinstance(found, Event):
            self._events[event_id] = redact_event(found)
        else:
            self._redacted.add(event_id)
            self._recent.drop(event_id)

    def discard(self, event_id: str) -> None:
        """Take an event out."""
        self._events.pop(event_id, None)

    def __getitem__(self, event_id: str) -> Event:
        found = self._events[event_id]
        if isinstance(found, Event):
            return found
        if (recent := self._recent.get(event_id)) is not None:
            return recent[0]
        source, place = self._lists[found >> PLACE_BITS], found & ((1 << PLACE_BITS) - 1)
        event = self._made_anew(event_id, source[place])
        self._recent.put(event_id, (event, source.size_of(place)))
        return event

    def __contains__(self, event_id: object) -> bool:
        return event_id in self._events

    def __iter__(self) -> Iterator[str]:
        return iter(self._events)

    def __len__(self) -> int:
        return len(self._events)

    def _made_anew(self, event_id: str, pdu: JsonObject) -> Event:
        pdu.pop("unsigned", None)
        if self.version.event_id_format is not EventIdFormat.IN_EVENT:
            pdu.pop("event_id", None)
        event = Event(pdu, self.version, event_id, self.room_id)
        return redact_event(event) if event_id in self._redacted else event


def parts(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """The items in parts of at most this size."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def affordable(pdus: Sequence[Any], bytes_max: int, *, from_the_end: bool = False) -> Sequence[Any]:
    """The first (or last) of the events of an answer, as many as surely fit into so much memory, and one at least."""
    if not isinstance(pdus, Elements):
        return pdus  # a small answer
    count = len(pdus)
    places = range(count - 1, -1, -1) if from_the_end else range(count)
    size = 0
    for taken, place in enumerate(places):
        size += pdus.size_of(place) * BYTES_PER_CHARACTER
        if size > bytes_max and taken:
            return pdus[count - taken :] if from_the_end else pdus[:taken]
    return pdus


def weight_of(event: Event) -> int:
    """About how many bytes an event takes in memory: nested values take many times what their text takes."""
    json = event.json
    return 2 * len(json) + VALUE_BYTES * (json.count(b",") + json.count(b"{") + json.count(b"["))


@dataclass(frozen=True, slots=True)
class GivenRoom:
    """A room as another server gives it to us, checked."""

    state: Mapping[StateKey, str]
    """The event IDs of the state before the join."""
    events: Mapping[str, Event]
    """All events of the state and of its auth chain, without the join."""
    order: Sequence[str]
    """Their IDs, auth events before the events that cite them."""

    @classmethod
    def of(cls, state: Mapping[StateKey, Event], auth_chain: Iterable[Event]) -> GivenRoom:
        """A room whose events are all in memory; ``auth_chain`` comes in the order of ``order``."""
        events = {event.event_id: event for event in (*auth_chain, *state.values())}
        return cls({key: event.event_id for key, event in state.items()}, events, list(events))
