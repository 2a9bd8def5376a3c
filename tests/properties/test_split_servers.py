"""Servers that are split and healed again end with the same state, whatever their users did meanwhile."""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import suppress
from pathlib import Path

import pytest

from homeserver.errors import MatrixError
from homeserver.federation import delivery, destination_queue
from homeserver.membership.membership import Memberships
from tests.fakes.servers import OurServer, Servers
from tests.waiting import WAIT_S

NAMES = ("one.test:8448", "two.test:8448", "three.test:8448")
ACTIONS = 25


@pytest.fixture(autouse=True)
def _in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "CHECKPOINT_INTERVAL_S", 0.05)
    monkeypatch.setattr(destination_queue, "RETRY_INTERVAL_MS_MIN", 20)
    monkeypatch.setattr(destination_queue, "RETRY_INTERVAL_MS_MAX", 100)


class Play:
    """Random deeds of users of several servers in one room."""

    def __init__(self, servers: Servers, seed: int) -> None:
        self.choose = random.Random(seed)
        self.network = servers.network
        self.ours: list[OurServer] = []
        self.users: dict[OurServer, list[str]] = {}
        self.room_id = ""

    async def act(self) -> None:
        server = self.choose.choice(self.ours)
        user = self.choose.choice(self.users[server])
        target = self.choose.choice([user_id for of_server in self.users.values() for user_id in of_server])
        memberships, number = server.get(Memberships), str(self.choose.random())
        match self.choose.randrange(9):
            case 0:
                self.network.split(*self.choose.sample(NAMES, 2))
            case 1:
                self.network.heal(*self.choose.sample(NAMES, 2))
            case 2 | 3:
                await server.send(user, self.room_id, number)
            case 4 | 5:
                await server.send_state(user, self.room_id, "m.room.topic", {"topic": number})
            case 6:
                head = await server.head(self.room_id)
                levels = await server.get_state(head, "m.room.power_levels")
                changed = {**levels, "users": {**levels["users"], target: self.choose.choice([0, 50, 60, 100])}}
                await server.send_state(user, self.room_id, "m.room.power_levels", changed)
            case 7:
                act = self.choose.choice([memberships.kick, memberships.ban, memberships.unban])
                await act(user, self.room_id, target)
            case _:
                await memberships.join(user, self.room_id, NAMES)

    async def settle(self) -> None:
        """Heal everything; let each server say something that the others then understand."""
        for one in NAMES:
            for other in NAMES:
                self.network.heal(one, other)
        patience_s = 0.1
        async with asyncio.timeout(WAIT_S):
            while not await self.agree_within(patience_s):
                patience_s *= 1.5  # on a slow machine it takes longer until all have heard what was said
                for server in self.ours:
                    head = await server.head(self.room_id)
                    for user in self.users[server]:
                        if user in head.joined:
                            with suppress(MatrixError):  # it may hear of the user's ban at this moment
                                await server.send(user, self.room_id, "sync")
                            break

    async def agree_within(self, seconds_max: float) -> bool:
        deadline = time.monotonic() + seconds_max
        while not (is_agreed := await self.agree()) and time.monotonic() < deadline:  # noqa: ASYNC110 - it lies in databases
            await asyncio.sleep(0.02)
        return is_agreed

    async def agree(self) -> bool:
        heads = [await server.head(self.room_id) for server in self.ours]
        inside = [head for server, head in zip(self.ours, heads, strict=True) if head.joined_local]
        tips = [{e.event_id for e in head.extremities} for head in inside]
        return all(tip == tips[0] for tip in tips) and all(dict(h.state) == dict(inside[0].state) for h in inside)


@pytest.mark.parametrize("version", ["6", "11", "12"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_split_and_healed_servers_agree(tmp_path: Path, migrated_sqlite_file: Path, version: str, seed: int) -> None:
    async def story() -> None:
        async with Servers(tmp_path, migrated_sqlite_file) as servers:
            play = Play(servers, seed)
            for name in NAMES:
                server = await servers.ours(name)
                play.ours.append(server)
                play.users[server] = [await server.user(localpart) for localpart in ("a", "b")]
            first = play.ours[0]
            creator = play.users[first][0]
            levels = {} if version == "12" else {"users": {creator: 100}}
            play.room_id = await first.room(creator, version=version, power_levels={"state_default": 0, **levels})
            for server in play.ours:
                for user in play.users[server]:
                    if user != creator:
                        await server.join(user, play.room_id, NAMES[0])
            for _ in range(ACTIONS):
                try:
                    await play.act()
                except MatrixError:
                    continue
            await play.settle()

    print(f"seed {seed}")
    asyncio.run(story())
