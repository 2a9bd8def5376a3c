"""Random things that happen in rooms, for properties that hold whatever happens."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Sequence

from homeserver.errors import Forbidden
from homeserver.graph.state import RoomHead
from homeserver.protocol.events import EventDraft
from homeserver.storage import user_rooms
from homeserver.storage.event_graph import StoredEvent
from tests.fakes.reading_server import ReadingServer, user

USERS = ("alice", "bob", "carol", "dave")


class RandomHistory:
    """Lets things happen on the processes of one server; ``chance`` decides about everything.

    With ``forks`` some events do not know of what happened lately, as after a partition. With ``ignores`` users ignore
    each other now and then.
    """

    def __init__(
        self, servers: Sequence[ReadingServer], chance: random.Random, *, forks: bool, ignores: bool = True
    ) -> None:
        self._servers = servers
        self._chance = chance
        self._forks = forks
        self._ignores = ignores
        self.rooms: list[str] = []
        self._messages: list[tuple[str, StoredEvent]] = []
        self._old_heads: dict[str, RoomHead] = {}

    async def begin(self) -> None:
        """Make the rooms."""
        server = self._servers[0]
        self.rooms = [
            await server.create_room("alice", name="one"),
            await server.create_room("alice", join=["bob"], visibility="joined"),
            await server.create_room("bob", join_rule="invite"),
        ]
        await self.settle()

    async def settle(self) -> None:
        """Let every process hear of what the others have written."""
        position = max(server.notifier.position for server in self._servers)
        for server in self._servers:
            await server.notifier.catch_up(position)

    async def step(self) -> None:
        """Something happens, in one of the processes."""
        server = self._chance.choice(self._servers)
        actions = [
            *(self._send,) * 4,
            self._topic,
            self._name,
            self._join,
            self._leave,
            self._moderate,
            self._rename,
            self._read,
            self._type,
            self._account_data,
            self._redact,
            self._forget,
            self._burst,
        ]
        if self._forks:
            actions.append(self._branch)
        if self._ignores:
            actions.append(self._ignore)
        with contextlib.suppress(Forbidden):  # not everything that chance comes up with is allowed
            await self._chance.choice(actions)(server, self._chance.choice(self.rooms), self._chance.choice(USERS))
        await self.settle()

    async def _send(self, server: ReadingServer, room_id: str, who: str) -> None:
        self._messages.append((room_id, await server.send(room_id, who, f"message {self._chance.random()}")))

    async def _topic(self, server: ReadingServer, room_id: str, who: str) -> None:
        await server.event(room_id, who, "m.room.topic", {"topic": str(self._chance.random())}, "")

    async def _name(self, server: ReadingServer, room_id: str, who: str) -> None:
        await server.event(room_id, who, "m.room.name", {"name": self._chance.choice(["", "a", "b"])}, "")

    async def _join(self, server: ReadingServer, room_id: str, who: str) -> None:
        await server.join(room_id, who)

    async def _leave(self, server: ReadingServer, room_id: str, who: str) -> None:
        await server.leave(room_id, who)  # of who is invited, this rejects the invitation

    async def _moderate(self, server: ReadingServer, room_id: str, who: str) -> None:
        await server.member(room_id, "alice", who, self._chance.choice(["invite", "invite", "leave", "ban"]))

    async def _rename(self, server: ReadingServer, room_id: str, who: str) -> None:
        head = await server.heads.get(room_id)
        if user(who) in head.joined:
            await server.member(room_id, who, who, "join", displayname=str(self._chance.random()))

    async def _read(self, server: ReadingServer, room_id: str, who: str) -> None:
        head = await server.heads.get(room_id)
        kind = self._chance.choice(["m.read", "m.read.private"])
        await server.receipts.post(user(who), room_id, kind, head.extremities[0].event_id)

    async def _type(self, server: ReadingServer, room_id: str, who: str) -> None:
        await server.typing.set_typing(user(who), room_id, self._chance.random() < 0.6)

    async def _account_data(self, server: ReadingServer, room_id: str, who: str) -> None:
        where = self._chance.choice(["", room_id])
        await server.set_account_data(who, "org.example.note", {"n": self._chance.random()}, where)

    async def _ignore(self, server: ReadingServer, room_id: str, who: str) -> None:
        ignored = {user(name): {} for name in self._chance.sample(USERS, self._chance.randrange(2))}
        await server.set_account_data(who, "m.ignored_user_list", {"ignored_users": ignored})

    async def _redact(self, server: ReadingServer, room_id: str, who: str) -> None:
        if self._messages:
            where, message = self._messages.pop(self._chance.randrange(len(self._messages)))
            await server.redact(where, "alice", message)

    async def _forget(self, server: ReadingServer, room_id: str, who: str) -> None:
        standing = await server.database.read(user_rooms.standing_of, user(who), room_id)
        if standing is not None and standing.membership in ("leave", "ban"):
            await server.database.write(user_rooms.forget, user(who), standing.room_nid)

    async def _burst(self, server: ReadingServer, room_id: str, who: str) -> None:
        await asyncio.gather(*(server.send(room_id, who, f"burst {n}") for n in range(12)))

    async def _branch(self, server: ReadingServer, room_id: str, who: str) -> None:
        """An event that does not know of what happened lately, as after a partition."""
        old = self._old_heads.pop(room_id, None)
        if old is None:
            self._old_heads[room_id] = await server.heads.get(room_id)
            return
        content = {"topic": f"elsewhere {self._chance.random()}"}
        draft = EventDraft("m.room.topic", user(who), content, "")
        if self._chance.random() < 0.5:
            draft = EventDraft("m.room.message", user(who), {"msgtype": "m.text", "body": "elsewhere"})
        composed = await server.sender.compose(server.writers.look_at(old), draft)
        await server.append(room_id, [composed])
