"""homeserver/ephemeral/relay.py: one process delivers what the clients of another one say."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from homeserver.ephemeral.receipts import Receipts
from homeserver.ephemeral.relay import EphemeralRelay
from homeserver.ephemeral.typing import Typing
from homeserver.federation.delivery import Delivery
from homeserver.protocol.json_types import JsonObject
from homeserver.storage import changes, receipts, streams
from homeserver.storage.database import Database
from homeserver.storage.receipts import NewReceipt, StoredReceipt
from tests.fakes.homeserver import ALICE, BOB, add_users, is_local, running
from tests.fakes.reading_server import RecordingDelivery
from tests.fakes.servers import OurServer, Servers, eventually
from tests.federation.test_delivery import Shared, shared_room

OURS = "ours.test:8448"


class TwoProcesses:
    """Of one server; alice is in a room with a remote user. The first delivers, her client talks to the second."""

    def __init__(self, first: OurServer, second: OurServer, shared: Shared) -> None:
        self.first = first
        self.second = second
        self.shared = shared
        self.alice = shared.alice
        self.room_id = shared.room_id

    def edus(self, edu_type: str) -> list[JsonObject]:
        received = [edu for body in self.shared.remote.received for edu in body["edus"]]
        return [edu["content"] for edu in received if edu["edu_type"] == edu_type]

    async def until(self, edu_type: str, expected: list[JsonObject]) -> None:
        async def probe() -> bool:
            return self.edus(edu_type) == expected

        await eventually(probe)

    def receipt(self, event_id: str, ts: int, **data: str) -> JsonObject:
        read = {self.alice: {"event_ids": [event_id], "data": {"ts": ts, **data}}}
        return {self.room_id: {"m.read": read}}

    def typing(self, typing: bool) -> JsonObject:
        return {"room_id": self.room_id, "user_id": self.alice, "typing": typing}


def play(servers: Servers, database_url: str, story: Callable[[TwoProcesses], Awaitable[None]]) -> None:
    async def run() -> None:
        async with servers:
            first = await servers.ours(OURS, database={"url": database_url})
            await eventually(lambda: _value(first.get(Delivery).delivers))
            shared = await shared_room(servers, first)
            second = await servers.ours(OURS, database={"url": database_url})
            assert not second.get(Delivery).delivers
            await story(TwoProcesses(first, second, shared))

    asyncio.run(run())


async def _value(value: Any) -> Any:
    return value


def test_receipts_of_another_process_reach_other_servers(servers: Servers, postgresql_url: str) -> None:
    async def story(at: TwoProcesses) -> None:
        (message,) = await at.shared.send("hello")
        await at.shared.until("hello")
        post = at.second.get(Receipts).post
        await post(at.alice, at.room_id, "m.read.private", message)
        await post(at.alice, at.room_id, "m.read", message)
        await eventually(lambda: _value(at.edus("m.receipt")))
        (content,) = at.edus("m.receipt")
        ts = content[at.room_id]["m.read"][at.alice]["data"]["ts"]
        assert content == at.receipt(message, ts)
        await post(at.alice, at.room_id, "m.read", message, "main")
        await eventually(lambda: _value(len(at.edus("m.receipt")) == 2))
        ts = at.edus("m.receipt")[1][at.room_id]["m.read"][at.alice]["data"]["ts"]
        assert at.edus("m.receipt")[1] == at.receipt(message, ts, thread_id="main")

    play(servers, postgresql_url, story)


def test_typing_in_another_process_reaches_other_servers(servers: Servers, postgresql_url: str) -> None:
    async def story(at: TwoProcesses) -> None:
        typing = at.second.get(Typing)
        await typing.set_typing(at.alice, at.room_id, True)
        await at.until("m.typing", [at.typing(True)])
        await typing.set_typing(at.alice, at.room_id, False)
        await at.until("m.typing", [at.typing(True), at.typing(False)])
        # It ends by itself as well, whichever process notices.
        await typing.set_typing(at.alice, at.room_id, True)
        await at.until("m.typing", [at.typing(True), at.typing(False), at.typing(True)])
        await typing.set_typing(at.alice, at.room_id, True, timeout_ms=1)
        await at.until("m.typing", [at.typing(True), at.typing(False)] * 2)

    play(servers, postgresql_url, story)


def test_typing_waits_for_no_commit(servers: Servers, postgresql_url: str) -> None:
    async def story(at: TwoProcesses) -> None:
        with at.first.get(Database).begin():  # nobody else can write meanwhile
            await at.second.get(Typing).set_typing(at.alice, at.room_id, True)
            await eventually(lambda: _value(at.first.get(Typing).users_in(at.room_id) == [at.alice]))
            await at.second.get(Typing).set_typing(at.alice, at.room_id, False)
            await eventually(lambda: _value(at.first.get(Typing).users_in(at.room_id) == []))

    play(servers, postgresql_url, story)


def test_what_others_say_is_not_sent_on(servers: Servers, postgresql_url: str) -> None:
    """Receipts and typing of users of other servers, which came in through another process."""

    async def story(at: TwoProcesses) -> None:
        (message,) = await at.shared.send("hello")
        await at.shared.until("hello")
        bob = f"@bob:{at.shared.remote.name}"
        typing = {"room_id": at.room_id, "user_id": bob, "typing": True}
        receipt = {at.room_id: {"m.read": {bob: {"event_ids": [message], "data": {"ts": 1}}}}}
        await at.second.get(Typing).receive(at.shared.remote.name, {"content": typing})
        await at.second.get(Receipts).receive(at.shared.remote.name, {"content": receipt})
        await at.second.get(Typing).set_typing(at.alice, at.room_id, True)
        await at.until("m.typing", [at.typing(True)])
        assert at.edus("m.receipt") == []

    play(servers, postgresql_url, story)


class OneProcess(RecordingDelivery):
    """Remembers what it was to deliver, and says of a receipt whether this process took it in."""

    def __init__(self, *, delivers: bool) -> None:
        super().__init__()
        self.delivers = delivers
        self.own: dict[int, StoredReceipt] = {}

    def recent(self, position: int) -> StoredReceipt | None:
        return self.own.get(position)


@pytest.mark.parametrize("delivers", [True, False])
def test_what_this_process_took_in_is_not_sent_again(postgresql_url: str, delivers: bool) -> None:
    with running(postgresql_url) as server:
        add_users(server.database, ALICE, BOB)

        async def story() -> None:
            room_id = await server.create_room()
            nid = (await server.heads.get(room_id)).room_nid
            start = server.database.read_now(streams.current_position)
            new = [NewReceipt(nid, "m.read", user_id, "", "$event", 1) for user_id in (ALICE, BOB)]
            first, second = await server.database.write_batched(receipts.store, new)
            written = await server.database.read(changes.load_changes, start, second)
            process = OneProcess(delivers=delivers)
            process.own[first] = StoredReceipt(room_id, "m.read", ALICE, "", "$event", 1, first)
            relay = EphemeralRelay(server.database, process, process, is_local)
            relay.note(written.changes)
            if delivers:
                await eventually(lambda: _value(process.receipts))
            await relay.stop()
            assert [receipt.user_id for receipt in process.receipts] == ([BOB] if delivers else [])

        asyncio.run(story())
