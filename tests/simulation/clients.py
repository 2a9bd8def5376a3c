"""Devices of users: they ask their own server over the client-server API and keep what they are told, as clients do."""

from __future__ import annotations

import asyncio
import itertools
import random
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlencode

import orjson

from tests.simulation.network import Answer, Network
from tests.simulation.servers import token_of
from tests.simulation.trace import Trace

V3 = "/_matrix/client/v3"
TIMELINE = 6
"""Events of a timeline: few, so that there are gaps to page through."""
FILTER = {"room": {"timeline": {"limit": TIMELINE}, "include_leave": True}}
PAGES_MAX = 200
TRIES_MAX = 3
"""How often a client asks for a page that has turned out empty, though there may be more."""
TRY_AGAIN_S = 30.0


class Unanswered(Exception):
    """The server crashed or was not there: the client does not know what became of its request."""


class Refused(Exception):
    """An error of the client-server API."""

    def __init__(self, status: int, body: dict[str, Any]) -> None:
        super().__init__(f"{status} {body.get('errcode')}: {body.get('error')}")
        self.status = status


@dataclass(slots=True)
class RoomView:
    """What a device knows of a room."""

    state: dict[tuple[str, str], str] = field(default_factory=dict)
    events: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Of timelines, in their order."""
    part_of: dict[str, int] = field(default_factory=dict)
    """Which part of the history an event stands in; between two parts there is a gap."""
    gaps: list[str] = field(default_factory=list)
    """The token above each gap: ``gaps[n]`` is what the part n begins with."""


class Device:
    """One device of a user."""

    def __init__(self, user_id: str, name: str, network: Network, trace: Trace, chance: random.Random) -> None:
        self.user_id = user_id
        self.server_name = user_id.partition(":")[2]
        self.name = name
        self._network = network
        self._trace = trace
        self._chance = chance
        self._txn_ids = itertools.count(1)
        self.since: str | None = None
        self.rooms: dict[str, RoomView] = {}
        """The rooms that the user is in."""
        self.past: dict[str, RoomView] = {}
        """What is known of rooms that the user has left."""
        self.invited: set[str] = set()
        self.left: set[str] = set()
        self.errors: list[str] = []
        """Answers that no server should give."""

    # -- asking --------------------------------------------------------------------------------------------------------

    async def ask(self, method: str, path: str, body: Any = None, **query: str | int) -> dict[str, Any]:
        """A request. Raises ``Refused`` and ``Unanswered``."""
        target = (path if path.startswith("/_") else V3 + path) + (f"?{urlencode(query)}" if query else "")
        headers = [(b"authorization", b"Bearer " + token_of(self.user_id, self.name).encode())]
        content = b"" if body is None else orjson.dumps(body)
        await asyncio.sleep(self._chance.uniform(0.0005, 0.005))
        what = f"{self.user_id} {self.name} {method} {target}"
        try:
            answer: Answer = await self._network.ask(self.server_name, method, target, headers, content)
        except ConnectionError as error:
            self._trace.note(f"{what}: {error}")
            raise Unanswered(str(error)) from error
        found: dict[str, Any] = orjson.loads(answer.body)
        shown = f" {found}" if answer.status != 200 else f" {found['event_id']}" if "event_id" in found else ""
        self._trace.note(f"{what}: {answer.status}{shown}", content, answer.body)
        if answer.status == 500:
            self.errors.append(f"{what}: {found}")
        if answer.status != 200:
            raise Refused(answer.status, found)
        return found

    async def send(self, room_id: str, event_type: str, content: dict[str, Any], redacts: str = "") -> str:
        """Send a message or a redaction, again with the same transaction ID where the server was gone. Its ID."""
        txn = f"{self.name}{next(self._txn_ids)}"
        path = f"/rooms/{quote(room_id)}/"
        path += f"redact/{quote(redacts)}/{txn}" if redacts else f"send/{quote(event_type)}/{txn}"
        for _ in range(5):
            try:
                event_id: str = (await self.ask("PUT", path, content))["event_id"]
                return event_id
            except Unanswered:
                await asyncio.sleep(self._chance.uniform(0.5, 3))
        raise Unanswered("gave up")

    async def set_state(self, room_id: str, event_type: str, content: dict[str, Any], key: str = "") -> str:
        """Set a part of the state; the event's ID."""
        answer = await self.ask("PUT", f"/rooms/{quote(room_id)}/state/{event_type}/{quote(key)}", content)
        event_id: str = answer["event_id"]
        return event_id

    # -- syncing -------------------------------------------------------------------------------------------------------

    async def sync(self, timeout_s: float = 0.0) -> None:
        """Ask what is new, and take note of it."""
        query: dict[str, str | int] = {"use_state_after": "true", "filter": orjson.dumps(FILTER).decode()}
        if timeout_s:
            query["timeout"] = int(timeout_s * 1000)
        if self.since is not None:
            query["since"] = self.since
        answer = await self.ask("GET", "/sync", **query)
        self.since = answer["next_batch"]
        rooms = answer.get("rooms", {})
        for room_id, update in rooms.get("join", {}).items():
            self._take_in(room_id, update)
        for room_id, update in rooms.get("leave", {}).items():
            self._leave(room_id, update)
        for room_id in rooms.get("invite", {}):
            self.invited.add(room_id)
            self.left.discard(room_id)
            if (view := self.rooms.pop(room_id, None)) is not None:
                self.past[room_id] = view

    def _take_in(self, room_id: str, update: dict[str, Any]) -> None:
        self.invited.discard(room_id)
        self.left.discard(room_id)
        timeline = update["timeline"]
        view = self.rooms.get(room_id)
        is_new = view is None
        if view is None:
            view = self.rooms[room_id] = self.past.pop(room_id, None) or RoomView()
            view.state = {}
        if is_new or timeline.get("limited"):
            view.gaps.append(timeline["prev_batch"])
        for event in update["state_after"]["events"]:
            view.state[event["type"], event["state_key"]] = event["event_id"]
        self._add(view, timeline["events"])

    def _leave(self, room_id: str, update: dict[str, Any]) -> None:
        self.invited.discard(room_id)
        self.left.add(room_id)
        view = self.rooms.pop(room_id, None)
        if view is not None:
            if update["timeline"].get("limited"):
                view.gaps.append(update["timeline"]["prev_batch"])
            self._add(view, update["timeline"]["events"])
            self.past[room_id] = view

    @staticmethod
    def _add(view: RoomView, events: list[dict[str, Any]]) -> None:
        for event in events:
            event_id = event["event_id"]
            # An event that a timeline repeats (a leave, say) keeps its first place.
            view.events.setdefault(event_id, event)
            view.part_of.setdefault(event_id, len(view.gaps))

    # -- paging --------------------------------------------------------------------------------------------------------

    async def page(self, room_id: str, token: str | None, direction: str = "b", limit: int = 20) -> dict[str, Any]:
        """A page of the history."""
        query: dict[str, str | int] = {"dir": direction, "limit": limit}
        if token is not None:
            query["from"] = token
        return await self.ask("GET", f"/rooms/{quote(room_id)}/messages", **query)

    async def pages(self, room_id: str, token: str | None, direction: str = "b") -> list[dict[str, Any]]:
        """All events from a token on."""
        found: list[dict[str, Any]] = []
        tries_left = TRIES_MAX
        for _ in range(PAGES_MAX):
            page = await self.page(room_id, token, direction, self._chance.choice([3, 10, 50]))
            found += page["chunk"]
            if not page["chunk"] and page.get("end") == token:  # nobody had more: it can be tried again
                tries_left -= 1
                await asyncio.sleep(TRY_AGAIN_S)
            token = page.get("end")
            if token is None or tries_left == 0 or (direction == "f" and not page["chunk"]):
                return found
        raise AssertionError(f"{room_id}: paging {direction} has no end for {self.user_id}")

    async def fill_gaps(self, room_id: str) -> set[str]:
        """The IDs of all events that a client comes to know that scrolls back through its gaps."""
        view = self.rooms[room_id]
        known = set(view.events)
        for part, token in enumerate(view.gaps, 1):
            at: str | None = token
            for _ in range(PAGES_MAX):
                page = await self.page(room_id, at, "b", 10)
                known |= {event["event_id"] for event in page["chunk"]}
                at = page.get("end")
                # What stands before the gap is known already, down to the next gap.
                if at is None or any(view.part_of.get(e["event_id"], part) < part for e in page["chunk"]):
                    break
        return known
