"""What happened for a user since a position, as plain facts. Both readers pass it to ``composing``."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from homeserver.storage.account_data import AccountDataRow
from homeserver.storage.event_graph import StoredEvent
from homeserver.storage.receipts import StoredReceipt
from homeserver.storage.sync_streams import Standing, StateChange

BEFORE_ALL = 0
"""Before the first position. (Backfilled events have lower positions and are never part of /sync.)"""


@dataclass(slots=True)
class RoomNews:
    """What happened in a room that the user is in, or was in."""

    room_id: str
    room_nid: int
    after: int
    upto: int
    """The timeline consists of events with ``after`` < position ≤ ``upto``."""
    is_fresh: bool = False
    """The client knows nothing of the room yet."""
    hole: int | None = None
    """The last position in that span whose event came with prev_events missing: the timeline starts there."""
    newest: list[tuple[int, int]] = field(default_factory=list)
    """``(event_nid, position)`` of the newest accepted events that the timeline may have, newest first."""
    is_whole: bool = True
    """``newest`` holds all such events."""
    state: list[int] | None = None
    """The whole state at ``upto`` if it is needed, as numeric IDs of events."""
    changes: list[StateChange] = field(default_factory=list)
    """How the current state changed in the span, oldest first."""
    counts: tuple[int, int] | None = None
    """How many users have joined and are invited, if the reader has read that."""
    names: Sequence[int] = ()
    """If ``counts`` is set: the events that may give the room a name."""
    receipts: list[StoredReceipt] = field(default_factory=list)
    has_left: bool = False
    departure: StoredEvent | None = None
    """The event with which the user stopped being in the room, if the user was in it."""
    standing_nid: int = 0
    """For a room that was left: the user's current member event."""

    @property
    def timeline_after(self) -> int:
        """The position after which the timeline may start."""
        return self.after if self.hole is None else self.hole - 1


@dataclass(slots=True)
class News:
    """What happened for a user."""

    position: int
    """All facts are as of this position."""
    ignored: frozenset[str]
    """The users whom the user ignores."""
    joined: Collection[str] = ()
    """The rooms that the user is in."""
    account_data: list[AccountDataRow] = field(default_factory=list)
    """Account data of the user and of rooms."""
    rooms: list[RoomNews] = field(default_factory=list)
    invited: list[Standing] = field(default_factory=list)
    knocked: list[Standing] = field(default_factory=list)
    stripped: Mapping[int, bytes | None] = field(default_factory=dict)
    """The stripped state that other servers sent with invitations and knocks, by the room's numeric ID."""
    heads_hold: bool = False
    """Whether the room heads that this process caches are at least as new as ``position``."""
