"""A Matrix client for tests: thin calls of the client-server API, and a view of what ``/sync`` has shown so far.

    async with MatrixClient(server.base_url) as alice:
        await alice.register("alice")
        room_id = await alice.create_room(name="Lunch")
        await alice.until(lambda: "hello" in alice.bodies(room_id))

``until`` long-polls ``/sync`` until its condition holds, so that no test has to sleep.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx

Json = dict[str, Any]

PASSWORD = "correct horse battery staple 1"
REQUEST_SECONDS_MAX = 60.0
UNTIL_SECONDS_MAX = 60.0
POLL_MS = 5_000
TIMELINE_LIMIT = 200


class MatrixError(Exception):
    """The server answered with an error."""

    def __init__(self, method: str, path: str, response: httpx.Response) -> None:
        self.status = response.status_code
        try:
            self.body: Json = response.json()
        except ValueError:
            self.body = {}
        self.errcode = str(self.body.get("errcode", ""))
        super().__init__(f"{method} {path}: {response.status_code} {response.text[:500]}")


class Room:
    """What a client has seen of a room."""

    def __init__(self) -> None:
        self.membership = ""
        self.timeline: list[Json] = []
        self.state: dict[tuple[str, str], Json] = {}
        self.invite_state: dict[tuple[str, str], Json] = {}
        self.receipts: dict[str, str] = {}
        """The last event that each user has read."""
        self.receipts_seen: set[tuple[str, str, str, str | None]] = set()
        """Every receipt that was ever shown: event ID, receipt type, user ID, thread ID."""
        self.typing: set[str] = set()
        self.prev_batch = ""

    def content(self, event_type: str, state_key: str = "") -> Json:
        """The content of a state event; empty if there is none."""
        content: Json = self.state.get((event_type, state_key), {}).get("content", {})
        return content

    def member(self, user_id: str) -> str:
        """A user's membership; empty if the user was never seen."""
        return str(self.content("m.room.member", user_id).get("membership", ""))

    def apply(self, membership: str, update: Json) -> None:
        """Take in what a sync response says about the room."""
        self.membership = membership
        for event in update.get("invite_state", {}).get("events", []):
            self.invite_state[event["type"], event["state_key"]] = event
        for event in update.get("state", {}).get("events", []):
            self.state[event["type"], event["state_key"]] = event
        timeline = update.get("timeline", {})
        if not self.prev_batch or timeline.get("limited"):
            self.prev_batch = timeline.get("prev_batch", "")
        for event in timeline.get("events", []):
            self.timeline.append(event)
            if "state_key" in event:
                self.state[event["type"], event["state_key"]] = event
        for event in update.get("ephemeral", {}).get("events", []):
            self._apply_ephemeral(event)

    def _apply_ephemeral(self, event: Json) -> None:
        if event["type"] == "m.typing":
            self.typing = set(event["content"]["user_ids"])
        elif event["type"] == "m.receipt":
            for event_id, kinds in event["content"].items():
                for user_id in kinds.get("m.read", {}):
                    self.receipts[user_id] = event_id
                for kind, readers in kinds.items():
                    for user_id, facts in readers.items():
                        self.receipts_seen.add((event_id, kind, user_id, facts.get("thread_id")))


class MatrixClient:
    """One device of one user."""

    _transaction_ids = itertools.count()

    def __init__(self, base_url: str) -> None:
        # Keep-alive connections do not outlive a server that is killed: a request on one of them is tried once more.
        transport = httpx.AsyncHTTPTransport(retries=1, limits=httpx.Limits(max_keepalive_connections=20))
        self._http = httpx.AsyncClient(
            base_url=base_url, timeout=REQUEST_SECONDS_MAX, transport=transport, trust_env=False
        )
        self.user_id = ""
        self.device_id = ""
        self.token = ""
        self.since: str | None = None
        self.rooms: dict[str, Room] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Let go of the connections."""
        await self._http.aclose()

    async def call(self, method: str, path: str, body: Json | None = None, **query: Any) -> Json:
        """A request below ``/_matrix/client``; raises MatrixError unless the answer is 200."""
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        given = {name: value for name, value in query.items() if value is not None}
        response = await self._http.request(method, f"/_matrix/client{path}", json=body, params=given, headers=headers)
        if response.status_code != 200:
            raise MatrixError(method, path, response)
        answer: Json = response.json()
        return answer

    # -- account -------------------------------------------------------------------------------------------------------

    async def register(self, localpart: str) -> None:
        """Make an account and be logged in."""
        body: Json = {"username": localpart, "password": PASSWORD, "auth": {"type": "m.login.dummy"}}
        try:
            answer = await self.call("POST", "/v3/register", body)
        except MatrixError as error:
            if error.status != 401:
                raise
            body["auth"]["session"] = error.body["session"]
            answer = await self.call("POST", "/v3/register", body)
        self._logged_in(answer)

    async def login(self, user: str) -> None:
        """Log in with the password that ``register`` sets."""
        identifier = {"type": "m.id.user", "user": user}
        body = {"type": "m.login.password", "identifier": identifier, "password": PASSWORD}
        self._logged_in(await self.call("POST", "/v3/login", body))

    def _logged_in(self, answer: Json) -> None:
        self.user_id, self.device_id, self.token = answer["user_id"], answer["device_id"], answer["access_token"]

    async def set_display_name(self, name: str) -> None:
        """Change the profile."""
        await self.call("PUT", f"/v3/profile/{quoted(self.user_id)}/displayname", {"displayname": name})

    async def profile(self, user_id: str) -> Json:
        """Anybody's profile."""
        return await self.call("GET", f"/v3/profile/{quoted(user_id)}")

    # -- rooms ---------------------------------------------------------------------------------------------------------

    async def create_room(self, **options: Any) -> str:
        """Make a room; the options are the endpoint's."""
        return str((await self.call("POST", "/v3/createRoom", options))["room_id"])

    async def join(self, room: str, *, via: str | None = None) -> str:
        """Join by room ID or alias."""
        return str((await self.call("POST", f"/v3/join/{quoted(room)}", {}, via=via, server_name=via))["room_id"])

    async def leave(self, room_id: str) -> None:
        """Leave, or reject an invitation."""
        await self._act(room_id, "leave", {})

    async def invite(self, room_id: str, user_id: str) -> None:
        """Invite somebody."""
        await self._act(room_id, "invite", {"user_id": user_id})

    async def kick(self, room_id: str, user_id: str, reason: str | None = None) -> None:
        """Remove somebody, or take an invitation back."""
        await self._act(room_id, "kick", {"user_id": user_id, **({"reason": reason} if reason else {})})

    async def ban(self, room_id: str, user_id: str, reason: str | None = None) -> None:
        """Ban somebody."""
        await self._act(room_id, "ban", {"user_id": user_id, **({"reason": reason} if reason else {})})

    async def unban(self, room_id: str, user_id: str) -> None:
        """Let somebody be invited again."""
        await self._act(room_id, "unban", {"user_id": user_id})

    async def _act(self, room_id: str, action: str, body: Json) -> None:
        await self.call("POST", f"/v3/rooms/{quoted(room_id)}/{action}", body)

    # -- events --------------------------------------------------------------------------------------------------------

    async def send(
        self, room_id: str, body: str, *, transaction_id: str | None = None, thread_id: str | None = None
    ) -> str:
        """Send a text message, in a thread if one is named; returns its event ID."""
        transaction_id = transaction_id or f"t{next(self._transaction_ids)}"
        path = f"/v3/rooms/{quoted(room_id)}/send/m.room.message/{transaction_id}"
        content: Json = {"msgtype": "m.text", "body": body}
        if thread_id is not None:
            content["m.relates_to"] = {"rel_type": "m.thread", "event_id": thread_id}
        return str((await self.call("PUT", path, content))["event_id"])

    async def set_state(self, room_id: str, event_type: str, content: Json, state_key: str = "") -> str:
        """Send a state event; returns its event ID."""
        path = f"/v3/rooms/{quoted(room_id)}/state/{event_type}/{quoted(state_key)}"
        return str((await self.call("PUT", path, content))["event_id"])

    async def state(self, room_id: str) -> dict[tuple[str, str], Json]:
        """The current state as the server has it."""
        events: Any = await self.call("GET", f"/v3/rooms/{quoted(room_id)}/state")
        return {(event["type"], event["state_key"]): event for event in events}

    async def redact(self, room_id: str, event_id: str) -> str:
        """Redact an event; returns the redaction's event ID."""
        path = f"/v3/rooms/{quoted(room_id)}/redact/{quoted(event_id)}/t{next(self._transaction_ids)}"
        return str((await self.call("PUT", path, {}))["event_id"])

    async def event(self, room_id: str, event_id: str) -> Json:
        """One event."""
        return await self.call("GET", f"/v3/rooms/{quoted(room_id)}/event/{quoted(event_id)}")

    async def read(self, room_id: str, event_id: str, *, kind: str = "m.read", thread_id: str | None = None) -> None:
        """Send a read receipt."""
        body = {} if thread_id is None else {"thread_id": thread_id}
        await self.call("POST", f"/v3/rooms/{quoted(room_id)}/receipt/{kind}/{quoted(event_id)}", body)

    async def typing(self, room_id: str, *, typing: bool = True) -> None:
        """Say whether the user is typing; it goes on for two minutes, if nothing ends it."""
        path = f"/v3/rooms/{quoted(room_id)}/typing/{quoted(self.user_id)}"
        await self.call("PUT", path, {"typing": typing, **({"timeout": 120_000} if typing else {})})

    async def joined_members(self, room_id: str) -> set[str]:
        """Who is in the room."""
        return set((await self.call("GET", f"/v3/rooms/{quoted(room_id)}/joined_members"))["joined"])

    async def history(self, room_id: str, *, limit: int = 100, pages_max: int = 50) -> list[Json]:
        """The whole timeline by ``/messages``, oldest first; the server fetches what it does not have."""
        found: list[Json] = []
        start: str | None = None
        for _ in range(pages_max):
            path = f"/v3/rooms/{quoted(room_id)}/messages"
            page = await self.call("GET", path, dir="b", limit=limit, **{"from": start})
            found.extend(page["chunk"])
            start = page.get("end")
            if not start:
                break
        return found[::-1]

    async def message_bodies(self, room_id: str) -> list[str]:
        """The bodies of all messages, oldest first, by ``/messages``."""
        return bodies(await self.history(room_id))

    # -- sync ----------------------------------------------------------------------------------------------------------

    def room(self, room_id: str) -> Room:
        """What ``/sync`` has shown of a room."""
        return self.rooms.setdefault(room_id, Room())

    def bodies(self, room_id: str) -> list[str]:
        """The bodies of the messages that ``/sync`` has shown."""
        return bodies(self.room(room_id).timeline)

    async def sync(self, timeout_ms: int = 0) -> Json:
        """One ``/sync`` since the last; the view takes it in."""
        sync_filter = f'{{"room":{{"timeline":{{"limit":{TIMELINE_LIMIT}}}}}}}'
        answer = await self.call("GET", "/v3/sync", timeout=timeout_ms, since=self.since, filter=sync_filter)
        self.since = answer["next_batch"]
        for membership, rooms in answer.get("rooms", {}).items():
            for room_id, update in rooms.items():
                self.room(room_id).apply(membership, update)
        return answer

    async def until(self, condition: Callable[[], object], seconds_max: float = UNTIL_SECONDS_MAX) -> None:
        """Long-poll until ``condition`` holds for the view; fails with what was seen when that takes too long."""
        try:
            async with asyncio.timeout(seconds_max):
                while self.since is None or not condition():
                    await self.sync(POLL_MS if self.since else 0)
        except TimeoutError:
            seen = {
                room_id: (
                    room.membership,
                    [(e["type"], e.get("state_key"), e["content"]) for e in room.timeline[-8:]],
                    room.receipts,
                    room.typing,
                )
                for room_id, room in self.rooms.items()
                if room.timeline or room.invite_state
            }
            raise AssertionError(f"{self.user_id} has not seen it in {seconds_max} s, but: {seen}") from None


def bodies(events: list[Json]) -> list[str]:
    """The bodies of the messages among these events."""
    return [event["content"]["body"] for event in events if "body" in event.get("content", {})]


def quoted(text: str) -> str:
    """For a path."""
    return quote(text, safe="")
