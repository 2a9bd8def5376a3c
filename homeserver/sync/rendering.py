"""Answers of /sync as bytes: events that were serialised before, joined together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import orjson

from homeserver.caches import WeightedCache
from homeserver.clock import Clock
from homeserver.protocol.filters import select_fields
from homeserver.reading.client_events import ClientEvents
from homeserver.reading.tokens import history_token, sync_token
from homeserver.reading.visible_events import SeenEvent
from homeserver.storage.event_graph import StoredEvent
from homeserver.sync.updates import RoomUpdate, SyncRequest, Update

SHARED_BYTES_MAX = 4 * 2**20
"""How much memory the timelines may use that are kept for all clients that the same events wake."""
SHARED_FOR_MS = 1_000
"""How long they are kept; the ages of their events are wrong by up to that much."""

_DEVICE_KEYS = b'"device_one_time_keys_count":{},"device_unused_fallback_key_types":[]}'
"""Required even if there are none: https://spec.matrix.org/v1.19/client-server-api/#e2e-extensions-to-sync"""


class SyncRendering:
    """Serialises answers."""

    def __init__(self, client_events: ClientEvents, clock: Clock) -> None:
        self._client_events = client_events
        self._clock = clock
        self._shared: WeightedCache[tuple[int, ...], tuple[int, bytes]] = WeightedCache(
            "rendered timelines", SHARED_BYTES_MAX, lambda shared: len(shared[1])
        )

    async def prepare(self, update: Update) -> None:
        """Read from the database what ``render`` needs."""
        for room in (*update.joined, *update.left):
            await self._client_events.prepare([seen.stored for seen in room.timeline])
            await self._client_events.prepare(room.state)

    def render(self, request: SyncRequest, update: Update) -> bytes:
        """The response body. Call ``prepare`` first."""
        now = self._clock.now_ms()
        parts = [b'{"next_batch":"%b",' % sync_token(update.next_batch, update.typing).encode()]
        sections: list[bytes] = []
        for name, rooms in ((b"join", update.joined), (b"leave", update.left)):
            if rooms:
                members = [_member(room.room_id, self._room(request, room, now)) for room in rooms]
                sections.append(b'"%b":{%b}' % (name, b",".join(members)))
        sections += _stripped(b"invite", b"invite_state", update.invited)
        sections += _stripped(b"knock", b"knock_state", update.knocked)
        if sections:
            parts.append(b'"rooms":{%b},' % b",".join(sections))
        if update.account_data:
            parts.append(b'"account_data":%b,' % _batch(update.account_data))
        parts.append(_DEVICE_KEYS)
        return b"".join(parts)

    def _room(self, request: SyncRequest, room: RoomUpdate, now: int) -> bytes:
        state = _batch(self._state_event(request, event, now) for event in room.state)
        parts = [
            b'{"timeline":{"events":[%b],"limited":%b,"prev_batch":"%b"},"%b":%b'
            % (
                self._timeline(request, room.timeline, now),
                b"true" if room.limited else b"false",
                history_token(room.prev_batch).encode(),
                b"state_after" if request.state_after else b"state",
                state,
            )
        ]
        if room.summary is not None:
            parts.append(b',"summary":' + orjson.dumps(room.summary))
        if room.ephemeral:
            parts.append(b',"ephemeral":' + _batch(room.ephemeral))
        if room.account_data:
            parts.append(b',"account_data":' + _batch(room.account_data))
        parts.append(b"}")
        return b"".join(parts)

    def _timeline(self, request: SyncRequest, timeline: Sequence[SeenEvent], now: int) -> bytes:
        if not timeline:
            return b""
        if not _is_same_for_all(request, timeline):
            return b",".join([self._timeline_event(request, seen, now) for seen in timeline])
        # A redaction changes what an event looks like.
        key = tuple([s.stored.event_nid if s.stored.redacted_by is None else -s.stored.event_nid for s in timeline])
        shared = self._shared.get(key)
        if shared is not None and now - shared[0] < SHARED_FOR_MS:
            return shared[1]
        rendered = b",".join([self._timeline_event(request, seen, now) for seen in timeline])
        self._shared.put(key, (now, rendered))
        return rendered

    def _timeline_event(self, request: SyncRequest, seen: SeenEvent, now: int) -> bytes:
        if request.filter.event_format == "federation":
            return _federation_format(seen.stored)
        rendered = self._client_events.render(
            seen.stored, now_ms=now, with_room_id=False, requester=request, membership=seen.membership
        )
        return _with_fields(request, rendered)

    def _state_event(self, request: SyncRequest, stored: StoredEvent, now: int) -> bytes:
        if request.filter.event_format == "federation":
            return _federation_format(stored)
        rendered = self._client_events.render(stored, now_ms=now, with_room_id=False, requester=request)
        return _with_fields(request, rendered)


def event_bytes(event_type: str, content: bytes) -> bytes:
    """An event that has only a type and content, such as account data."""
    return b'{"type":%b,"content":%b}' % (orjson.dumps(event_type), content)


def _is_same_for_all(request: SyncRequest, timeline: Sequence[SeenEvent]) -> bool:
    """Whether every member of the room gets the same bytes for these events."""
    if request.filter.event_format != "client" or request.filter.event_fields is not None:
        return False
    for seen in timeline:
        if seen.membership != "join":
            return False
        txn = seen.stored.txn
        if txn is not None and txn[0] == request.user_id and txn[1] == request.device_id:
            return False
    return True


def _with_fields(request: SyncRequest, rendered: bytes) -> bytes:
    paths = request.filter.event_fields
    return rendered if paths is None else orjson.dumps(select_fields(orjson.loads(rendered), paths))


def _federation_format(stored: StoredEvent) -> bytes:
    """ "federation will return the raw event as received over federation"; a redacted event is sent redacted."""
    return stored.event.json


def _batch(events: Iterable[bytes]) -> bytes:
    return b'{"events":[%b]}' % b",".join(events)


def _member(name: str, value: bytes) -> bytes:
    return b"%b:%b" % (orjson.dumps(name), value)


def _stripped(section: bytes, name: bytes, rooms: Mapping[str, bytes]) -> list[bytes]:
    if not rooms:
        return []
    entries = [_member(room_id, b'{"%b":{"events":%b}}' % (name, events)) for room_id, events in rooms.items()]
    return [b'"%b":{%b}' % (section, b",".join(entries))]
