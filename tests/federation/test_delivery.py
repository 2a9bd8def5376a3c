"""Sending to other servers: order, patience, restarts, catching up."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from homeserver.federation import delivery, destination_queue
from homeserver.federation.delivery import Delivery
from homeserver.federation.outbound_edus import Receipt
from homeserver.membership.membership import Memberships
from homeserver.notifier import Notifier
from homeserver.protocol.json_types import JsonObject
from homeserver.storage import delivery as store
from homeserver.storage.database import Database
from homeserver.storage.delivery import DeliveryLease, OutboundPdu, Reachability
from homeserver.storage.tables import events, outbound_pdus, reader_positions
from tests.factories.rooms import RoomFactory
from tests.fakes.servers import OurServer, RemoteServer, Servers, eventually

OURS, REMOTE = "ours.test:8448", "remote.test:8448"


@pytest.fixture
def servers(tmp_path: Path, migrated_sqlite_file: Path) -> Servers:
    return Servers(tmp_path, migrated_sqlite_file)


@pytest.fixture(autouse=True)
def _in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "CHECKPOINT_INTERVAL_S", 0.02)
    monkeypatch.setattr(destination_queue, "RETRY_INTERVAL_MS_MIN", 20)
    monkeypatch.setattr(destination_queue, "EARLY_RETRY_INTERVAL_MS", 0)


class Shared:
    """A room that our alice and a remote user are in."""

    def __init__(self, servers: Servers, ours: OurServer, remote: RemoteServer, alice: str, room_id: str) -> None:
        self.servers = servers
        self.ours = ours
        self.remote = remote
        self.alice = alice
        self.room_id = room_id

    async def send(self, *bodies: str) -> list[str]:
        return [await self.ours.send(self.alice, self.room_id, body) for body in bodies]

    def bodies(self) -> list[str]:
        return [pdu["content"]["body"] for pdu in self.remote.got() if pdu["type"] == "m.room.message"]

    async def until(self, *bodies: str) -> None:
        async def probe() -> bool:
            return self.bodies() == list(bodies)

        try:
            await eventually(probe)
        except TimeoutError:
            assert self.bodies() == list(bodies)

    async def owed(self) -> list[int]:
        return [
            row[0]
            for row in await self.ours.get(Database).read(
                lambda c: c.execute(select(outbound_pdus.c.stream_position).order_by("stream_position")).all()
            )
        ]

    async def until_owed(self, count: int) -> None:
        async def probe() -> bool:
            return len(await self.owed()) == count

        await eventually(probe)


async def join_remotely(server: OurServer, remote: RemoteServer, room_id: str, localpart: str = "bob") -> str:
    """A user of the remote server joins through ours."""
    user_id = f"@{localpart}:{remote.name}"
    template = await remote.request("GET", server.name, f"/_matrix/federation/v1/make_join/{room_id}/{user_id}?ver=11")
    assert template.status_code == 200, template.text
    from homeserver.protocol.compose import finish_template
    from homeserver.protocol.room_versions import ROOM_VERSIONS
    from tests.factories.rooms import server_key

    event = finish_template(template.json()["event"], ROOM_VERSIONS["11"], server_key(remote.name), 1_700_000_000_000)
    answer = await remote.request(
        "PUT", server.name, f"/_matrix/federation/v2/send_join/{room_id}/{event.event_id}", event.pdu
    )
    assert answer.status_code == 200, answer.text
    return user_id


async def shared_room(servers: Servers, ours: OurServer) -> Shared:
    remote = servers.remote(REMOTE)
    alice = await ours.user("alice")
    room_id = await ours.room(alice)
    await join_remotely(ours, remote, room_id)
    return Shared(servers, ours, remote, alice, room_id)


def test_events_arrive_in_order_and_nothing_is_written_down(servers: Servers) -> None:
    async def story() -> None:
        async with servers:
            at = await shared_room(servers, await servers.ours(OURS))
            await at.send("1", "2", "3")
            await at.until("1", "2", "3")
            assert await at.owed() == []

    asyncio.run(story())


def test_one_transaction_at_a_time_with_all_that_came_meanwhile(servers: Servers) -> None:
    async def story() -> None:
        async with servers:
            at = await shared_room(servers, await servers.ours(OURS))
            held = servers.network.hold(OURS, REMOTE)
            await at.send("1")
            await eventually(lambda: _true(servers.network.requests(REMOTE, "/send/")))
            await at.send(*(str(number) for number in range(2, 61)))
            assert len(servers.network.requests(REMOTE, "/send/")) == 1
            delivery, notifier = at.ours.get(Delivery), at.ours.get(Notifier)
            await eventually(lambda: _true(delivery._position == notifier.position))
            held.set()
            await at.until(*(str(number) for number in range(1, 61)))
            sizes = [len(body["pdus"]) for body in at.remote.received]
            assert sizes[:2] == [1, 50]
            assert sum(sizes) == 60
            assert len({request.path for request in servers.network.requests(REMOTE, "/send/")}) == len(sizes)

    asyncio.run(story())


def test_what_is_read_before_it_is_made_known_is_sent_once(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        async with servers:
            at = await shared_room(servers, await servers.ours(OURS))
            notifier = at.ours.get(Notifier)
            held: list[Any] = []
            with monkeypatch.context() as slow:
                slow.setattr(notifier, "publish", held.append)
                await at.send("1", "2", "3")
            assert len(held) == 3
            for changes in held:
                notifier.publish(changes)
                await eventually(lambda: _true(not any(reader.is_set() for reader in notifier._readers)))
                await at.until("1", "2", "3")
            await at.send("4")
            await at.until("1", "2", "3", "4")

    asyncio.run(story())


async def _true(value: object) -> bool:
    return bool(value)


def test_a_server_that_is_away_gets_everything_later(servers: Servers) -> None:
    async def story() -> None:
        async with servers:
            at = await shared_room(servers, await servers.ours(OURS))
            servers.network.split(OURS, REMOTE)
            await at.send("1", "2")
            await at.until_owed(2)
            await at.send("3")
            servers.network.heal(OURS, REMOTE)
            await at.until("1", "2", "3")
            await at.until_owed(0)

    asyncio.run(story())


def test_what_is_owed_survives_a_restart(servers: Servers) -> None:
    async def story() -> None:
        async with servers:
            async with servers.running(OURS) as ours:
                at = await shared_room(servers, ours)
                servers.network.split(OURS, REMOTE)
                await at.send("1", "2")
            servers.network.heal(OURS, REMOTE)
            async with servers.running(OURS) as ours:
                at.ours = ours
                await at.until("1", "2")
                await at.send("3")
                await at.until("1", "2", "3")

    asyncio.run(story())


@pytest.mark.parametrize("checkpoint_interval_s", [0.02, 3600.0], ids=["later", "before the first checkpoint"])
def test_after_a_crash_nothing_is_lost(
    checkpoint_interval_s: float, servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "CHECKPOINT_INTERVAL_S", checkpoint_interval_s)

    async def nothing(self: Delivery) -> None:
        return None

    async def story() -> None:
        async with servers:
            async with servers.running(OURS) as ours:
                at = await shared_room(servers, ours)
                held = servers.network.hold(OURS, REMOTE)
                await at.send("1", "2")
                with monkeypatch.context() as crash:
                    crash.setattr(delivery, "STOP_GRACE_S", 0.0)
                    crash.setattr(Delivery, "_last_checkpoint", nothing)
                    await ours.get(Delivery).stop()
            servers.network._held.clear()
            held.set()
            async with servers.running(OURS) as ours:
                at.ours = ours

                async def probe() -> bool:
                    return {"1", "2"} <= set(at.bodies())

                await eventually(probe)

    asyncio.run(story())


def test_a_sign_of_life_ends_the_waiting(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(destination_queue, "RETRY_INTERVAL_MS_MIN", 3_600_000)

    async def story() -> None:
        async with servers:
            at = await shared_room(servers, await servers.ours(OURS))
            servers.network.split(OURS, REMOTE)
            await at.send("1")
            await at.until_owed(1)
            servers.network.heal(OURS, REMOTE)
            await at.remote.transaction(OURS)
            await at.until("1")

    asyncio.run(story())


def test_the_patience_survives_a_restart_and_grows(servers: Servers) -> None:
    async def story() -> None:
        async with servers:
            async with servers.running(OURS) as ours:
                at = await shared_room(servers, ours)
                servers.network.split(OURS, REMOTE)
                await at.send("1")

                async def interval() -> int:
                    rows = await ours.get(Database).read(store.unreachable_servers)
                    return rows[0].retry_interval_ms if rows else 0

                async def has_grown() -> bool:
                    return await interval() >= 80

                await eventually(has_grown)
            async with servers.running(OURS) as ours:
                (row,) = await ours.get(Database).read(store.unreachable_servers)
                assert row.retry_interval_ms >= 80
                servers.network.heal(OURS, REMOTE)
                await at.until("1")

                async def is_well() -> bool:
                    return not await ours.get(Database).read(store.unreachable_servers)

                await eventually(is_well)

    asyncio.run(story())


def test_after_a_long_outage_only_the_latest_event_of_a_room_is_sent(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        async with servers:
            at = await shared_room(servers, await servers.ours(OURS))
            carol = await join_remotely(at.ours, at.remote, at.room_id, "carol")
            servers.network.split(OURS, REMOTE)
            await at.send(*(str(number) for number in range(10)))
            await at.ours.get(Memberships).kick(at.alice, at.room_id, carol)
            await at.send("last")
            await at.until_owed(12)
            monkeypatch.setattr(destination_queue, "CATCH_UP_AFTER_MS", 0)
            tried = len(servers.network.requests(REMOTE, "/send/"))
            # An attempt that is under way now still holds all; the one after that does not.
            await eventually(lambda: _true(len(servers.network.requests(REMOTE, "/send/")) >= tried + 2))
            servers.network.heal(OURS, REMOTE)
            await at.until("last")
            kinds = [(pdu["type"], pdu["content"].get("membership")) for pdu in at.remote.got()]
            assert kinds == [("m.room.member", "leave"), ("m.room.message", None)]

    asyncio.run(story())


def test_an_event_that_a_server_cannot_take_does_not_block_the_others(servers: Servers) -> None:
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response

    async def story() -> None:
        async with servers:
            at = await shared_room(servers, await servers.ours(OURS))

            async def picky(request: Request) -> Response:
                body = await request.json()
                if any(pdu["content"].get("body") == "poison" for pdu in body["pdus"]):
                    return JSONResponse({"errcode": "M_BAD_JSON", "error": "no"}, 400)
                at.remote.received.append(body)
                return JSONResponse({"pdus": {}})

            at.remote.replaced["send"] = picky
            held = servers.network.hold(OURS, REMOTE)
            await at.send("1", "2", "poison", "3")
            held.set()
            await at.until("1", "2", "3")

    asyncio.run(story())


def test_who_is_removed_hears_of_it_though_its_server_is_gone_from_the_room(servers: Servers) -> None:
    async def story() -> None:
        async with servers:
            at = await shared_room(servers, await servers.ours(OURS))
            bob = f"@bob:{REMOTE}"
            memberships = at.ours.get(Memberships)
            await memberships.ban(at.alice, at.room_id, bob)
            await at.send("not for you")
            await memberships.unban(at.alice, at.room_id, bob)

            async def probe() -> list[str]:
                return [p["content"]["membership"] for p in at.remote.got() if p["type"] == "m.room.member"][1:]

            await eventually(probe)
            assert [p["content"].get("membership") for p in at.remote.got()] == ["ban", "leave"]

    asyncio.run(story())


def test_receipts_and_typing_go_along_and_are_not_kept_for_who_is_away(servers: Servers) -> None:
    async def story() -> None:
        async with servers:
            at = await shared_room(servers, await servers.ours(OURS))
            sender = at.ours.get(Delivery)
            await sender.send_typing(at.room_id, at.alice, True)
            await sender.send_receipt(Receipt(at.room_id, at.alice, "$x", 1))

            async def edus() -> list[JsonObject]:
                return [edu for body in at.remote.received for edu in body["edus"]]

            async def both() -> bool:
                return sorted(edu["edu_type"] for edu in await edus()) == ["m.receipt", "m.typing"]

            await eventually(both)
            servers.network.split(OURS, REMOTE)
            await at.send("1")
            await at.until_owed(1)
            await sender.send_typing(at.room_id, at.alice, False)
            servers.network.heal(OURS, REMOTE)
            await at.until("1")
            assert await both()

    asyncio.run(story())


# -- storage -----------------------------------------------------------------------------------------------------------


def test_the_rows_of_one_server(database: Database) -> None:
    pdus = [OutboundPdu(position, 1, position) for position in range(1, 6)]
    with database.begin() as connection:
        store.write_checkpoint(connection, store.Checkpoint(7, [("a", pdu) for pdu in pdus] + [("b", pdus[0])]))
        store.write_checkpoint(connection, store.Checkpoint(8, [("a", pdus[0])]))
        assert store.start_position(connection) == 8
        assert store.owed_counts(connection) == {"a": 5, "b": 1}
        assert store.owed_pdus(connection, "a", 2) == pdus[:2]
        assert store.remove_owed(connection, "a", [1, 2]) == 3
        assert store.owed_pdus(connection, "a", 9) == pdus[2:]
        assert connection.execute(select(reader_positions.c.position)).scalar_one() == 8
        assert connection.execute(select(events.c.event_nid)).all() == []


def test_reachability_is_remembered(database: Database) -> None:
    with database.begin() as connection:
        store.store_reachability(connection, Reachability("a", 5, 6, 7))
        store.store_reachability(connection, Reachability("b", last_success_ts=4))
        assert store.unreachable_servers(connection) == [Reachability("a", 5, 6, 7)]
        store.store_reachability(connection, Reachability("a", last_success_ts=9))
        assert store.unreachable_servers(connection) == []


def test_only_one_process_delivers(postgresql_url: str) -> None:
    one, two = Database(postgresql_url), Database(postgresql_url)
    first, second = DeliveryLease(one), DeliveryLease(two)
    assert first.hold()
    assert first.hold()
    assert not second.hold()
    first.release()
    assert second.hold()
    second.release()
    one.close()
    two.close()


def test_handshakes_are_owed_until_done(database: Database) -> None:
    with database.begin() as connection:
        store.owe_request(connection, "leave", "!r:x", "@a:y", b"[]", b"{}", 5)
        store.owe_request(connection, "leave", "!r:x", "@a:y", b'["z"]', b"{}", 6)
        (request,) = store.due_requests(connection, 6, 10)
        assert (request.candidates, request.attempts) == (b'["z"]', 0)
        store.postpone_request(connection, request.request_nid, 1, 50)
        assert store.due_requests(connection, 49, 10) == []
        assert store.next_request_ts(connection) == 50
        store.cancel_requests(connection, "!r:x", "@a:y")
        assert store.next_request_ts(connection) is None


def test_a_new_invitation_waits_for_the_end_of_the_old_one(servers: Servers) -> None:
    async def story() -> None:
        async with servers:
            ours = await servers.ours(OURS)
            remote = servers.remote(REMOTE, RoomFactory("11", REMOTE))
            alice, bob = await ours.user("alice"), f"@bob:{REMOTE}"
            room_id = await ours.room(alice)
            memberships = ours.get(Memberships)
            await memberships.invite(alice, room_id, bob)
            for _ in range(3):
                await memberships.ban(alice, room_id, bob)
                await memberships.unban(alice, room_id, bob)
                await memberships.invite(alice, room_id, bob)
            ends = [pdu["content"]["membership"] for body in remote.received for pdu in body["pdus"]]
            # All of them before the last invitation was answered.
            assert ends == ["leave", "ban", "leave"] * 3

    asyncio.run(story())
