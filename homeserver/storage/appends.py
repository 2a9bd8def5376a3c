"""What to write to the event graph, once it is decided: the input of ``graph_writes``, and its result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from homeserver.errors import HomeserverError
from homeserver.protocol.events import Event, StateKey
from homeserver.storage.event_graph import Verdict


class StaleHead(HomeserverError):
    """The room changed after the append was composed: compose it again."""


class AliasTaken(HomeserverError):
    """Another room has the alias that a new room was to get."""


class AlreadySent(HomeserverError):
    """A transaction ID has been used before; ``sent`` maps the new event IDs to the numeric IDs of the old events."""

    def __init__(self, sent: Mapping[str, int]) -> None:
        super().__init__("transaction ID used before")
        self.sent = sent


@dataclass(frozen=True, slots=True)
class TransactionKey:
    """The key by which a client's repeated request is recognised. ``ts`` is the request's time, and not part of the
    key.
    """

    user_id: str
    device_id: str
    scope: str
    txn_id: str
    ts: int = field(compare=False)


@dataclass(frozen=True, slots=True)
class GroupRef:
    """A state group: a stored one (``state_group``), or the ``index``-th new one of the append."""

    state_group: int | None = None
    index: int | None = None


@dataclass(frozen=True, slots=True)
class GroupWrite:
    """A new state group: its changes against its predecessor (or the whole state, if that is None)."""

    predecessor: GroupRef | None
    delta: Mapping[StateKey, str | None]


@dataclass(frozen=True, slots=True)
class EventWrite:
    """An event to store, with its verdict."""

    event: Event
    verdict: Verdict
    state: GroupRef | None
    """The state after the event; None for outliers."""
    replaces: str | None = None
    reason: str | None = None
    txn: TransactionKey | None = None
    backfilled: bool = False
    place: int | None = None
    """For a backfilled event, the place in the room's history that was reserved for it
    (``history_lanes.take_places``).
    """
    awaited: bool = False
    """Whether events in the graph may name this one as their missing prev_event."""
    redaction_applied: bool = False


@dataclass(frozen=True, slots=True)
class CurrentChange:
    """A change of the current state, at the position of the event with this ID."""

    key: StateKey
    event: Event | None
    at: str


@dataclass(frozen=True, slots=True)
class NewAlias:
    """An alias of this server for a new room, and the user who creates it."""

    alias: str
    creator: str


@dataclass(frozen=True, slots=True)
class NewRoom:
    """A room to add, unless it exists."""

    room_id: str
    version: str
    created_ts: int
    published: bool = False
    alias: NewAlias | None = None
    """The alias of the new room; if it is taken, the room is not added."""
    replaces: str | None = None
    """The room that it replaces: it gets that room's aliases, and its entry in the room directory."""


@dataclass(slots=True)
class RoomAppend:
    """What is written to one room in one transaction."""

    room_nid: int
    """0 for a new room."""
    generation: int
    """The room's generation that this was composed on."""
    events: list[EventWrite] = field(default_factory=list)
    groups: list[GroupWrite] = field(default_factory=list)
    changes: list[CurrentChange] = field(default_factory=list)
    current: GroupRef | None = None
    """The current state afterwards; None: unchanged."""
    extremities: tuple[frozenset[str], frozenset[str]] | None = None
    """Forward extremities before and after; None: unchanged."""
    known: dict[str, int] = field(default_factory=dict)
    """Numeric IDs of referenced events, as far as they are cached; these are in the graph."""
    applied_redactions: list[tuple[str, str]] = field(default_factory=list)
    """``(redacted, redaction)`` event IDs of redactions that arrived before their targets."""
    new_room: NewRoom | None = None


@dataclass(frozen=True, slots=True)
class Appended:
    """What an append was assigned: numeric IDs, positions and places by event ID, groups by index, state keys."""

    room_nid: int
    nids: Mapping[str, int]
    positions: Mapping[str, int]
    places: Mapping[str, int]
    groups: Sequence[int]
    state_keys: Mapping[StateKey, int]
    after_gaps: frozenset[str] = frozenset()
    """The IDs of those accepted events that name prev_events which are not in the graph."""
