"""A first sync plus deltas equals a fresh first sync, whatever happens in between and whenever one looks."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from homeserver.protocol.json_types import JsonObject
from homeserver.storage.database import Database
from tests.fakes.clock import FakeClock
from tests.fakes.reading_server import ReadingServer, connect
from tests.properties.random_history import USERS, RandomHistory

STEPS = 60
LAZY: JsonObject = {"room": {"state": {"lazy_load_members": True}, "timeline": {"limit": 4}}}


class Client:
    """Keeps what it was told, as the specification asks of clients."""

    def __init__(self, name: str, filter: JsonObject | None, *, state_after: bool) -> None:
        self.name = name
        self.filter = filter
        self.state_after = state_after
        self.device = "DEVICE"
        self.since: str | None = None
        self.rooms: dict[str, dict[tuple[str, str], str]] = {}
        self.is_lazy = filter is LAZY
        self.left: set[str] = set()
        self.invited: set[str] = set()
        self.counts: dict[str, tuple[int, int]] = {}
        self.read: dict[tuple[str, str], str] = {}
        self.typing: dict[str, list[str]] = {}
        self.account_data: dict[tuple[str, str], Any] = {}

    async def sync(self, server: ReadingServer) -> None:
        response = await server.sync(
            self.name,
            self.since,
            device=self.device,
            filter=self.filter,
            state_after=self.state_after,
        )
        self.since = response["next_batch"]
        for event in response.get("account_data", {}).get("events", []):
            self.account_data["", event["type"]] = event["content"]
        rooms = response.get("rooms", {})
        for room_id, room in rooms.get("join", {}).items():
            self._take_in(room_id, room)
            self.left.discard(room_id)
            self.invited.discard(room_id)
        for room_id, room in rooms.get("leave", {}).items():
            assert "ephemeral" not in room
            self.rooms.pop(room_id, None)
            self.counts.pop(room_id, None)
            self.typing.pop(room_id, None)
            self.read = {key: event_id for key, event_id in self.read.items() if key[0] != room_id}
            self.account_data = {k: v for k, v in self.account_data.items() if k[0] != room_id}
            self.left.add(room_id)
            self.invited.discard(room_id)
        for room_id in rooms.get("invite", {}):
            self.invited.add(room_id)
            self.left.discard(room_id)

    def _take_in(self, room_id: str, room: JsonObject) -> None:
        state = self.rooms.setdefault(room_id, {})
        assert ("state_after" in room) is self.state_after
        assert ("state" in room) is not self.state_after
        told = room["state_after" if self.state_after else "state"]["events"]
        for event in told if self.state_after else [*told, *room["timeline"]["events"]]:
            if "state_key" in event:
                state[event["type"], event["state_key"]] = event["event_id"]
        for event in room["timeline"]["events"]:
            assert ("m.room.member", event["sender"]) in state
        if "summary" in room:
            summary = room["summary"]
            self.counts[room_id] = (summary["m.joined_member_count"], summary["m.invited_member_count"])
        for event in room.get("account_data", {}).get("events", []):
            self.account_data[room_id, event["type"]] = event["content"]
        for event in room.get("ephemeral", {}).get("events", []):
            if event["type"] == "m.typing":
                self.typing[room_id] = event["content"]["user_ids"]
            else:
                for event_id, by_type in event["content"].items():
                    for user_id in by_type.get("m.read", {}):
                        self.read[room_id, user_id] = event_id

    def what_it_knows(self) -> Any:
        return (
            {room_id: self._without_members(state) for room_id, state in self.rooms.items()},
            self.invited,
            self.counts,
            self.read,
            {room_id: users for room_id, users in self.typing.items() if users},
            self.account_data,
        )

    def _without_members(self, state: dict[tuple[str, str], str]) -> dict[tuple[str, str], str]:
        return {k: v for k, v in state.items() if k[0] != "m.room.member"} if self.is_lazy else state


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("state_after", [False, True])
@pytest.mark.parametrize("filter", [None, LAZY], ids=["all", "lazy"])
def test_first_sync_plus_deltas_is_a_fresh_first_sync(
    sqlite_url: str, seed: int, filter: JsonObject | None, state_after: bool
) -> None:
    async def story() -> None:
        chance, clock = random.Random(seed), FakeClock()
        servers = [ReadingServer(database, clock), ReadingServer(database, clock)]
        connect(*servers)
        # Where branches meet, only "state_after" can say what the state is. And an invitation of somebody who was
        # ignored later stays with the client that knew it.
        history = RandomHistory(servers, chance, forks=state_after, ignores=False)
        await history.begin()
        clients = [Client(name, filter, state_after=state_after) for name in USERS]
        for _ in range(STEPS):
            await history.step()
            for client in clients:
                if chance.random() < 0.3:
                    await client.sync(chance.choice(servers))
        for client in clients:
            await client.sync(chance.choice(servers))
            # The fresh one is another device: its members have not been sent.
            fresh = Client(client.name, filter, state_after=state_after)
            fresh.device = "FRESH"
            await fresh.sync(servers[0])
            assert client.what_it_knows() == fresh.what_it_knows(), client.name
            for room_id, known in client.rooms.items():
                state = dict((await servers[0].heads.get(room_id)).state)
                assert known.items() <= state.items()
                assert len(known) == len(state) or filter is LAZY
        for server in servers:
            await server.typing.stop()

    database = Database(sqlite_url)
    try:
        asyncio.run(story())
    finally:
        database.close()
