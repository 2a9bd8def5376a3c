"""When a change of roles counts as lost, and what becomes of it; two servers do it in ``tests/governance_api``."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator

import pytest
from structlog.testing import capture_logs

from homeserver.graph.send import Sender
from homeserver.graph.state import RoomHead
from homeserver.membership import lost_role_changes
from homeserver.membership.lost_role_changes import LostRoleChanges
from homeserver.protocol.events import Event, EventDraft
from homeserver.protocol.json_types import JsonObject
from homeserver.storage import accounts
from homeserver.storage.database import Database
from tests.factories.rooms import server_key
from tests.fakes.homeserver import ALICE, BOB, ZOE, CoreServer, add_users, is_local

YAN = "@yan:other.org"


class Process(CoreServer):
    """A process of our server that makes lost changes again."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.lost: list[str] = []
        self.lost_changes = LostRoleChanges(self.sender, self.governed, is_local)
        self.writers.watch_power_levels(lambda _, lost: self.lost.extend(lost))
        self.writers.watch_power_levels(self.lost_changes.note)

    async def room(self) -> str:
        """A room with two owners, Alice of ours and Zoe of another server, and Bob."""
        room_id = await self.create_room(ALICE, preset="public_chat")
        await self.memberships.join(BOB, room_id)
        await self.receive(await self.theirs(room_id, "m.room.member", {"membership": "join"}, ZOE))
        await self.set_users(room_id, {ALICE: 100, ZOE: 100})
        return room_id

    async def levels(self, room_id: str) -> Event:
        return (await self.state(room_id))["m.room.power_levels", ""]

    async def users(self, room_id: str) -> JsonObject:
        users: JsonObject = (await self.levels(room_id)).content["users"]
        return users

    async def set_users(self, room_id: str, users: JsonObject, sender: str = ALICE) -> str:
        self.clock.advance(1)  # type: ignore[attr-defined]
        content = {**(await self.levels(room_id)).content, "users": users}
        return (await self.set_state(room_id, "m.room.power_levels", content, sender=sender)).event_id

    async def theirs(
        self, room_id: str, kind: str, content: JsonObject, key: str = "", *, at: RoomHead | None = None
    ) -> Event:
        """An event of Zoe's on a head of the room."""
        self.clock.advance(1)  # type: ignore[attr-defined]
        sender = Sender(self.writers, server_key("other.org"), self.clock)
        working = self.writers.look_at(at or await self.heads.get(room_id))
        return (await sender.compose(working, EventDraft(kind, ZOE, content, key), is_governed=False)).event

    async def their_levels(self, room_id: str, at: RoomHead, users: JsonObject) -> Event:
        """Zoe's power levels on an earlier head."""
        content = {**(await self.levels(room_id)).content, "users": users}
        return await self.theirs(room_id, "m.room.power_levels", content, at=at)


@pytest.fixture
def server(shared_database: Database) -> Process:
    there = shared_database.read_now(accounts.existing_users, [ALICE, BOB])
    add_users(shared_database, *sorted({ALICE, BOB} - there))
    return Process(shared_database)


@pytest.fixture
def other(server: Process, shared_database_url: str) -> Iterator[Process]:
    """A second process on the same database, which hears nothing of the first."""
    database = Database(shared_database_url)
    yield Process(database)
    database.close()


def test_what_follows_on_what_is_there_loses_nothing(server: Process) -> None:
    async def story() -> None:
        room_id = await server.room()
        for level in (50, 100):
            await server.set_users(room_id, {ALICE: 100, ZOE: 100, BOB: level})
        theirs = await server.their_levels(room_id, await server.heads.get(room_id), {ALICE: 100, ZOE: 100, BOB: 100})
        await server.receive(theirs)
        assert server.lost == []

    asyncio.run(story())


def test_the_process_that_takes_the_winner_in_makes_the_change_again(server: Process, other: Process) -> None:
    async def story() -> None:
        room_id = await server.room()
        before = await server.heads.get(room_id)
        ours = await server.set_users(room_id, {ALICE: 100, ZOE: 100, BOB: 50})
        theirs = await server.their_levels(room_id, before, {ALICE: 100, ZOE: 100, YAN: 50})
        await other.receive(theirs)
        assert (server.lost, other.lost) == ([], [ours])
        await other.lost_changes.idle()
        assert await other.users(room_id) == {ALICE: 100, ZOE: 100, BOB: 50, YAN: 50}
        again = await other.levels(room_id)
        assert again.sender == ALICE
        assert theirs.event_id in again.auth_events
        # Once is enough.
        other.lost_changes.note(room_id, [ours])
        await other.lost_changes.idle()
        assert (await other.levels(room_id)).event_id == again.event_id

    asyncio.run(story())


def test_lost_within_one_transaction(server: Process) -> None:
    """Ours was the room's for no longer than the batch in which it lost."""

    async def story() -> None:
        room_id = await server.room()
        before = await server.heads.get(room_id)
        content = {**(await server.levels(room_id)).content, "users": {ALICE: 100, ZOE: 100, BOB: 50}}
        draft = EventDraft("m.room.power_levels", ALICE, content, "")
        theirs = await server.their_levels(room_id, before, {ALICE: 100, ZOE: 100, YAN: 50})
        server.clock.advance(-1)  # type: ignore[attr-defined]
        both_wait = asyncio.Event()
        begun = asyncio.Event()

        async def hold_up() -> None:
            begun.set()
            await both_wait.wait()

        first = asyncio.create_task(server.writers.alone(room_id, hold_up))
        await begun.wait()
        sending = asyncio.create_task(server.sender.send(room_id, draft))
        receiving = asyncio.create_task(server.receive(theirs))
        while len(server.writers._lines[room_id].waiting) < 2:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0)
        both_wait.set()
        await asyncio.gather(first, receiving)
        assert server.lost == [(await sending).event_id]
        await server.lost_changes.idle()
        assert (await server.heads.get(room_id)).generation == before.generation + 2
        assert await server.users(room_id) == {ALICE: 100, ZOE: 100, BOB: 50, YAN: 50}

    asyncio.run(story())


def test_ours_that_became_a_branch_and_never_won(server: Process) -> None:
    """As it may be where the room's policy server takes its time to sign."""

    async def story() -> None:
        room_id = await server.room()
        before = await server.heads.get(room_id)
        content = {**(await server.levels(room_id)).content, "users": {ALICE: 100, ZOE: 100, BOB: 50}}
        draft = EventDraft("m.room.power_levels", ALICE, content, "")
        late = await server.sender.compose(server.writers.look_at(before), draft)
        await server.receive(await server.their_levels(room_id, before, {ALICE: 100, ZOE: 100, YAN: 50}))
        await server.append(late)
        assert server.lost == [late.event.event_id]
        await server.lost_changes.idle()
        assert await server.users(room_id) == {ALICE: 100, ZOE: 100, BOB: 50, YAN: 50}

    asyncio.run(story())


@pytest.mark.parametrize("is_closed", [True, False], ids=["account closed", "room left"])
def test_who_has_gone_changes_nothing_any_more(server: Process, is_closed: bool) -> None:
    async def story() -> None:
        server.writers._watchers.remove(server.lost_changes.note)  # it is to come later
        dora = f"@dora-{is_closed}:example.org".lower()
        add_users(server.database, dora)
        room_id = await server.room()
        await server.memberships.join(dora, room_id)
        await server.set_users(room_id, {ALICE: 100, ZOE: 100, dora: 100})
        before = await server.heads.get(room_id)
        ours = await server.set_users(room_id, {ALICE: 100, ZOE: 100, dora: 100, BOB: 50}, sender=dora)
        theirs = await server.their_levels(room_id, before, {ALICE: 100, ZOE: 100, dora: 100, YAN: 50})
        await server.receive(theirs)
        assert server.lost == [ours]
        if is_closed:
            await server.database.write(accounts.deactivate_user, dora, 1)
        else:
            await server.set_state(room_id, "m.room.member", {"membership": "leave"}, dora, sender=dora)
        server.lost_changes.note(room_id, server.lost)
        await server.lost_changes.idle()
        assert (await server.levels(room_id)).event_id == theirs.event_id

    asyncio.run(story())


def test_bounds(server: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    levels = itertools.count(1)

    async def is_made_again(room_id: str, steps: int) -> bool:
        """Whether our change outlives one of Zoe's that is built on what was so many changes ago."""
        before, users = await server.heads.get(room_id), await server.users(room_id)
        for _ in range(steps):
            await server.set_users(room_id, {**users, BOB: next(levels)})
        theirs = await server.their_levels(room_id, before, {**users, YAN: next(levels)})
        await server.receive(theirs)
        await server.lost_changes.idle()
        return (await server.levels(room_id)).event_id != theirs.event_id

    async def story() -> None:
        room_id = await server.room()
        with monkeypatch.context() as patch, capture_logs() as logs:
            patch.setattr(lost_role_changes, "LINE_MAX", 3)
            assert await is_made_again(room_id, 2)
            assert not await is_made_again(room_id, 3)
            assert logs[-1]["event"] == "power levels diverged too long ago"
        with monkeypatch.context() as patch:
            patch.setattr(lost_role_changes, "AT_ONCE_MAX", 0)
            assert not await is_made_again(room_id, 1)
        with monkeypatch.context() as patch:
            patch.setattr(lost_role_changes, "REMEMBERED_MAX", 1)
            server.lost_changes._settled.clear()
            server.lost_changes._rounds.clear()
            assert await is_made_again(room_id, 1)
            assert await is_made_again(room_id, 1)
            assert len(server.lost_changes._settled) == len(server.lost_changes._rounds) == 1
        await server.lost_changes.stop()
        assert not await is_made_again(room_id, 1)

    asyncio.run(story())
