"""Changes that the notifier was not told of: those of other processes on the same database.

``MissedChanges.load`` is the notifier's ``load_changes``. What this process has in its caches of the rooms in question
is dropped before anybody is woken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from homeserver.notifier import Change, Stream
from homeserver.rooms.events import Events
from homeserver.rooms.receipts import READ_PRIVATE
from homeserver.rooms.state import RoomHeads
from homeserver.storage.database import Database
from homeserver.storage.event_graph import Verdict
from homeserver.storage.stream_changes import EventChange, OtherChange, StreamChanges, changes_between


class MissedChanges:
    """Reads what happened elsewhere."""

    def __init__(self, database: Database, heads: RoomHeads, events: Events, is_local: Callable[[str], bool]) -> None:
        self._database = database
        self._heads = heads
        self._events = events
        self._is_local = is_local

    async def load(self, after: int, upto: int) -> Sequence[Change]:
        """All changes with ``after`` < position ≤ ``upto``, oldest first."""
        found = await self._database.read(changes_between, after, upto)
        await self._drop_what_changed(found.events)
        changes = [
            *(self._event(change, found) for change in found.events),
            *(self._receipt(change, found) for change in found.receipts),
            *(
                Change(c.position, Stream.TYPING, c.room_id, None, found.joined_local.get(c.room_nid or 0, ()))
                for c in found.typing
            ),
            *(Change(c.position, Stream.ACCOUNT_DATA, c.room_id, c.user_id, (c.user_id,)) for c in found.account_data),
            *(Change(c.position, Stream.MEMBERSHIP, c.room_id, c.user_id, (c.user_id,)) for c in found.standings),
        ]
        return sorted(changes, key=lambda change: change.position)

    def _event(self, change: EventChange, found: StreamChanges) -> Change:
        audience = found.joined_local.get(change.room_nid, frozenset())
        if change.verdict != Verdict.ACCEPTED:
            audience = frozenset()
        elif change.event_type == "m.room.member" and change.state_key and self._is_local(change.state_key):
            audience |= {change.state_key}
        return Change(change.position, Stream.EVENTS, change.room_id, None, audience, change.event_id)

    @staticmethod
    def _receipt(change: OtherChange, found: StreamChanges) -> Change:
        is_private = change.receipt_type == READ_PRIVATE
        audience = (change.user_id,) if is_private else found.joined_local.get(change.room_nid or 0, ())
        return Change(change.position, Stream.RECEIPTS, change.room_id, change.user_id, audience)

    async def _drop_what_changed(self, changes: Sequence[EventChange]) -> None:
        for room_id in {change.room_id for change in changes}:
            self._heads.forget(room_id)
        redactions = [change.event_id for change in changes if change.event_type == "m.room.redaction"]
        for stored in (await self._events.by_id(redactions)).values():
            if stored.event.redacts is not None:
                self._events.forget(stored.event.redacts)
