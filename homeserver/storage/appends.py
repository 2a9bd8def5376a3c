"""What is to be written to the event graph, decided already: the input of ``graph_writes``, and what comes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from homeserver.errors import HomeserverError
from homeserver.protocol.events import Event, StateKey
from homeserver.storage.event_graph import Verdict


class StaleHead(HomeserverError):
    """The room went on since the append was composed; compose anew."""


class AliasTaken(HomeserverError):
    """Another room has the alias that a new room was to take."""


class AlreadySent(HomeserverError):
    """A transaction ID was used before; ``sent`` maps the new event IDs to the numeric IDs of the old events."""

    def __init__(self, sent: Mapping[str, int]) -> None:
        super().__init__("transaction ID used before")
        self.sent = sent


@dataclass(frozen=True, slots=True)
class TransactionKey:
    """What makes a client's request harmless to repeat. ``ts`` says when it was made, and does not tell it apart."""

    user_id: str
    device_id: str
    scope: str
    txn_id: str
    ts: int = field(compare=False)


@dataclass(frozen=True, slots=True)
class GroupRef:
    """A state group: one that is stored (``state_group``), or the ``index``-th new one of the append."""

    state_group: int | None = None
    index: int | None = None


@dataclass(frozen=True, slots=True)
class GroupWrite:
    """A new state group: what it changes against its predecessor (None: it is a whole state)."""

    predecessor: GroupRef | None
    delta: Mapping[StateKey, str | None]


@dataclass(frozen=True, slots=True)
class EventWrite:
    """An event to be stored, judged already."""

    event: Event
    verdict: Verdict
    state: GroupRef | None
    """The state after the event; None for outliers."""
    replaces: str | None = None
    reason: str | None = None
    txn: TransactionKey | None = None
    backfilled: bool = False
    place: int | None = None
    """The place in the room's history that was taken for a backfilled event (``history_lanes.take_places``)."""
    awaited: bool = False
    """Events that stand in the graph may name this one as their missing prev_event."""
    redaction_applied: bool = False


@dataclass(frozen=True, slots=True)
class CurrentChange:
    """A change of the current state, at the position of the event with this ID."""

    key: StateKey
    event: Event | None
    at: str


@dataclass(frozen=True, slots=True)
class NewAlias:
    """An alias of this server for a new room, and who wants it."""

    alias: str
    creator: str


@dataclass(frozen=True, slots=True)
class NewRoom:
    """A room that is to be added, unless it is there already."""

    room_id: str
    version: str
    created_ts: int
    published: bool = False
    alias: NewAlias | None = None
    """What the room is to be called; it is not added where that is taken."""
    replaces: str | None = None
    """The room whose place it takes: it gets that room's aliases, and its entry in the room directory."""


@dataclass(slots=True)
class RoomAppend:
    """What one room gets in one transaction."""

    room_nid: int
    """0 for a new room."""
    generation: int
    """The generation that this was composed on."""
    events: list[EventWrite] = field(default_factory=list)
    groups: list[GroupWrite] = field(default_factory=list)
    changes: list[CurrentChange] = field(default_factory=list)
    current: GroupRef | None = None
    """The current state afterwards; None: as it was."""
    extremities: tuple[frozenset[str], frozenset[str]] | None = None
    """Forward extremities before and after; None: as they were."""
    known: dict[str, int] = field(default_factory=dict)
    """Numeric IDs of events that are named, as far as they are at hand; they stand in the graph."""
    applied_redactions: list[tuple[str, str]] = field(default_factory=list)
    """``(redacted, redaction)`` event IDs of redactions that came before their targets."""
    new_room: NewRoom | None = None


@dataclass(frozen=True, slots=True)
class Appended:
    """What an append was given: numeric IDs, positions and places by event ID, groups by index, state keys."""

    room_nid: int
    nids: Mapping[str, int]
    positions: Mapping[str, int]
    places: Mapping[str, int]
    groups: Sequence[int]
    state_keys: Mapping[StateKey, int]
    after_gaps: frozenset[str] = frozenset()
    """Those accepted events, by ID, that name prev_events which are not in the graph."""
