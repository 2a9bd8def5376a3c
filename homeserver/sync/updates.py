"""A request of /sync and the answer to it, before it becomes bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from homeserver.protocol.filters import EVERYTHING, Filter
from homeserver.protocol.json_types import JsonObject
from homeserver.reading.visible_events import SeenEvent
from homeserver.storage.event_graph import StoredEvent

TIMELINE_LIMIT_DEFAULT = 10
"""Events of a timeline, for a filter that does not say how many."""


@dataclass(frozen=True, slots=True)
class SyncRequest:
    """The parameters of a request."""

    user_id: str
    device_id: str
    since: int | None = None
    """The position up to which the client knows everything; None on a first sync."""
    typing_since: int = 0
    """What the client was told about typing, see ``Typing.token``; 0 if that is not known."""
    filter: Filter = EVERYTHING
    full_state: bool = False
    state_after: bool = False
    """Whether to send the state at the end of the timelines instead of at their start."""

    def after(self, update: Update) -> SyncRequest:
        """The same request of a client that knows this update as well."""
        return SyncRequest(
            self.user_id,
            self.device_id,
            update.next_batch,
            update.typing,
            self.filter,
            self.full_state,
            self.state_after,
        )

    @property
    def timeline_limit(self) -> int:
        """How many events a timeline may have."""
        limit = self.filter.room.timeline.limit
        return TIMELINE_LIMIT_DEFAULT if limit is None else limit

    @property
    def is_lazy(self) -> bool:
        """Whether members are loaded lazily."""
        return self.filter.room.state.lazy_load_members

    @property
    def sends_redundant_members(self) -> bool:
        """Whether members are sent again though they were sent before."""
        return self.filter.room.state.include_redundant_members


@dataclass(slots=True)
class RoomUpdate:
    """What a client is sent of a room that its user is in, or was in."""

    room_id: str
    prev_batch: int
    """The place in the room's history before the timeline."""
    timeline: Sequence[SeenEvent] = ()
    limited: bool = False
    state: Sequence[StoredEvent] = ()
    summary: JsonObject | None = None
    ephemeral: list[bytes] = field(default_factory=list)
    account_data: list[bytes] = field(default_factory=list)
    is_fresh: bool = False
    """Whether the client knows nothing of the room except this."""

    @property
    def says_something(self) -> bool:
        """Whether it holds anything."""
        return bool(self.timeline or self.state or self.ephemeral or self.account_data or self.limited or self.summary)


@dataclass(slots=True)
class Update:
    """The answer to a request."""

    next_batch: int
    typing: int = 0
    """What the client knows about typing after this answer, see ``Typing.token``."""
    joined: list[RoomUpdate] = field(default_factory=list)
    left: list[RoomUpdate] = field(default_factory=list)
    invited: dict[str, bytes] = field(default_factory=dict)
    """Stripped state, a JSON list, by room ID."""
    knocked: dict[str, bytes] = field(default_factory=dict)
    account_data: list[bytes] = field(default_factory=list)

    @property
    def says_something(self) -> bool:
        """Whether it is worth answering a client that waits for news."""
        return bool(self.joined or self.left or self.invited or self.knocked or self.account_data)
