"""The changes that the notifier reported recently, by room and by user, so that waiting requests find theirs."""

from __future__ import annotations

from collections.abc import Collection

from homeserver.caches import register
from homeserver.notifier import Change, Notifier, Stream

BYTES_MAX = 8 * 2**20
"""How much memory the index may use; above that, the older half of the changes is dropped."""
ROOM_STREAMS = frozenset({Stream.EVENTS, Stream.RECEIPTS})
"""Streams of what happens in rooms, for everybody in them."""
USER_STREAMS = frozenset({Stream.ACCOUNT_DATA, Stream.MEMBERSHIP})
"""Streams of users' own data. (A member event in a room counts as a change in ``MEMBERSHIP`` of its user.)"""

_NONE = frozenset[Stream]()


class RecentChanges:
    """An index of the recent changes. Call ``advance`` before the other methods."""

    name = "index of changes"

    def __init__(self, notifier: Notifier, bytes_max: int = BYTES_MAX) -> None:
        self._notifier = notifier
        self.position = notifier.position
        """The position of the last change in the index."""
        self.floor = notifier.position
        """The index holds no changes up to and including this position."""
        self._changes: list[Change] = []
        self._by_room: dict[str, list[Change]] = {}
        self._last_of_user: dict[str, dict[Stream, int]] = {}
        self.bytes = 0
        self.bytes_max = bytes_max
        register(self)

    def __len__(self) -> int:
        return len(self._changes)

    def advance(self) -> None:
        """Add the changes that the notifier has received since the last call."""
        position = self._notifier.position
        if position == self.position:
            return
        changes = self._notifier.changes_since(self.position)
        if changes is None:
            self._changes.clear()
            self._by_room.clear()
            self._last_of_user.clear()
            self.bytes = 0
            self.floor = position
        else:
            for change in changes:
                self._add(change)
        self.position = position
        if self.bytes > self.bytes_max:
            self._forget_older_half()

    def _add(self, change: Change) -> None:
        self._changes.append(change)
        self.bytes += change.weight
        if change.room_id is not None and change.stream in ROOM_STREAMS:
            self._by_room.setdefault(change.room_id, []).append(change)
        stream = Stream.MEMBERSHIP if change.stream is Stream.EVENTS else change.stream
        if stream in USER_STREAMS:
            for user_id in change.users:
                self._last_of_user.setdefault(user_id, {})[stream] = change.position

    def _forget_older_half(self) -> None:
        kept = self._changes[len(self._changes) // 2 + 1 :]
        self.floor = self._changes[len(self._changes) // 2].position
        self.bytes = sum([change.weight for change in kept])
        self._changes = kept
        self._by_room = {}
        for change in kept:
            if change.room_id is not None and change.stream in ROOM_STREAMS:
                self._by_room.setdefault(change.room_id, []).append(change)
        self._last_of_user = {
            user_id: last for user_id, last in self._last_of_user.items() if max(last.values()) > self.floor
        }

    # -- look-ups; they know only what came after the floor ------------------------------------------------------------

    def streams_changed(self, user_id: str, after: int) -> frozenset[Stream]:
        """The ``USER_STREAMS`` in which data of a user changed after a position."""
        last = self._last_of_user.get(user_id)
        if last is None or max(last.values()) <= after:
            return _NONE
        return frozenset([stream for stream, position in last.items() if position > after])

    def last_in_room(self, room_id: str) -> int:
        """The position of the last change in a room, or the floor."""
        changes = self._by_room.get(room_id)
        return changes[-1].position if changes else self.floor

    def in_rooms(self, room_ids: Collection[str], after: int) -> dict[str, list[Change]]:
        """The changes after a position in those of the rooms that have any, oldest first."""
        found: dict[str, list[Change]] = {}
        if after >= self.position:
            return found
        if self.position - after > len(room_ids):
            return {i: self._in_room(i, after) for i in room_ids if self.last_in_room(i) > after}
        for change in reversed(self._changes):
            if change.position <= after:
                break
            room_id = change.room_id
            if room_id is not None and room_id in room_ids and change.stream in ROOM_STREAMS:
                found.setdefault(room_id, []).append(change)
        for changes in found.values():
            changes.reverse()
        return found

    def _in_room(self, room_id: str, after: int) -> list[Change]:
        found: list[Change] = []
        for change in reversed(self._by_room.get(room_id, ())):
            if change.position <= after:
                break
            found.append(change)
        found.reverse()
        return found
