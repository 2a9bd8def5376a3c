"""A client of one of our servers that reads rooms as clients do: by /sync, and page by page."""

from __future__ import annotations

from typing import Any

import orjson

from homeserver.accounts.access_tokens import Requester
from homeserver.protocol.filters import parse_filter, parse_room_event_filter
from homeserver.protocol.json_types import JsonObject
from homeserver.reading.history import History
from homeserver.reading.paging import PageRequest
from homeserver.reading.tokens import parse_sync_token, parse_token
from homeserver.sync.service import Sync
from homeserver.sync.updates import SyncRequest
from tests.fakes.servers import OurServer

PAGES_MAX = 200


class Reader:
    """What one device of a user reads."""

    def __init__(self, server: OurServer, user_id: str, device_id: str = "DEVICE") -> None:
        self.server = server
        self.user_id = user_id
        self.device_id = device_id

    async def sync(self, since: str | None = None, *, limit: int = 10, **filter: Any) -> JsonObject:
        """An answer of /sync, at once."""
        token = None if since is None else parse_sync_token(since)
        request = SyncRequest(
            user_id=self.user_id,
            device_id=self.device_id,
            since=None if token is None else token.position,
            typing_since=0 if token is None else token.ephemeral,
            filter=parse_filter({**filter, "room": {"timeline": {"limit": limit}, **filter.get("room", {})}}),
        )
        answer: JsonObject = orjson.loads(await self.server.get(Sync).sync(request, 0, _still_there))
        return answer

    async def timeline(self, room_id: str, since: str | None = None, *, limit: int = 10) -> JsonObject:
        """The timeline of a joined room in an answer of /sync."""
        found: JsonObject = (await self.sync(since, limit=limit))["rooms"]["join"][room_id]["timeline"]
        return found

    async def page(
        self,
        room_id: str,
        start: str | None = None,
        *,
        end: str | None = None,
        dir: str = "b",
        limit: int = 10,
        **filter: Any,
    ) -> JsonObject:
        """An answer of /messages."""
        history, requester = self.server.get(History), Requester(self.user_id, self.device_id)
        request = PageRequest(
            start=parse_token(start) if start else None,
            end=parse_token(end) if end else None,
            backwards=dir == "b",
            limit=limit,
            filter=parse_room_event_filter(filter),
            start_token=start,
        )
        page = await history.messages(requester, room_id, request)
        answer: JsonObject = orjson.loads(await history.render_page(requester, page))
        return answer

    async def pages(self, room_id: str, start: str | None = None, **options: Any) -> list[JsonObject]:
        """The events of all pages from a token on, until there are no more."""
        events: list[JsonObject] = []
        for _ in range(PAGES_MAX):
            answer = await self.page(room_id, start, **options)
            events += answer["chunk"]
            if "end" not in answer or (not answer["chunk"] and answer["end"] == start):
                return events
            start = answer["end"]
        raise AssertionError("the pages do not end")


async def _still_there() -> None:
    return None


def ids(events: list[JsonObject]) -> list[str]:
    """The event IDs of events as clients see them."""
    return [event["event_id"] for event in events]


def texts(events: list[JsonObject]) -> list[str]:
    """The bodies of the messages among events."""
    return [event["content"]["body"] for event in events if event["type"] == "m.room.message"]
