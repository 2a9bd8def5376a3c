"""What happened for a user since a position, as plain facts: what both readers give to ``composing``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from homeserver.storage.account_data import AccountDataRow
from homeserver.storage.event_graph import StoredEvent
from homeserver.storage.receipts import StoredReceipt
from homeserver.storage.sync_streams import Standing, StateChange

BEFORE_ALL = 0
"""Before the first position. (What was backfilled has positions below, and is no part of /sync.)"""


@dataclass(slots=True)
class RoomNews:
    """What happened in a room that the user is in, or was in."""

    room_id: str
    room_nid: int
    after: int
    upto: int
    """The timeline is out of ``after`` < position ≤ ``upto``."""
    is_fresh: bool = False
    """The client knows nothing of the room yet."""
    hole: int | None = None
    """The last position in that span whose event came with prev_events missing: the timeline starts there."""
    newest: list[tuple[int, int]] = field(default_factory=list)
    """``(event_nid, position)`` of the newest accepted events that the timeline may have, newest first."""
    is_whole: bool = True
    """There are no more such events than ``newest`` says."""
    state: list[int] | None = None
    """The whole state at ``upto``, where it is wanted; numeric IDs of events."""
    changes: list[StateChange] = field(default_factory=list)
    """How the current state changed in the span, oldest first."""
    counts: tuple[int, int] | None = None
    """How many users have joined and are invited, where that was read."""
    names: Sequence[int] = ()
    """Then also the events that may give the room a name."""
    receipts: list[StoredReceipt] = field(default_factory=list)
    typing_position: int = 0
    """The last change of who types that the client is to be told; 0 if there is none."""
    has_left: bool = False
    departure: StoredEvent | None = None
    """The event with which the user stopped being in the room, if the user was in it."""
    standing_nid: int = 0
    """Of a room that was left: the membership event that says how the user stands to it now."""

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
    account_data: list[AccountDataRow] = field(default_factory=list)
    """That of the account, and that of rooms."""
    rooms: list[RoomNews] = field(default_factory=list)
    invited: list[Standing] = field(default_factory=list)
    knocked: list[Standing] = field(default_factory=list)
    stripped: Mapping[int, bytes | None] = field(default_factory=dict)
    """The stripped state that came with invitations and knocks from outside, by the room's numeric ID."""
    heads_hold: bool = False
    """Heads of rooms that are cached in this process are at least as new as ``position``."""
