"""Joins before the invitation is stored, messages before the room is, and joins of two processes at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
from sqlalchemy import update
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from homeserver.clock import SystemClock
from homeserver.errors import Forbidden, MatrixError
from homeserver.federation.client import FederationClient
from homeserver.graph import server_access
from homeserver.membership import remote_joins
from homeserver.membership.membership import Memberships
from homeserver.storage import tables, under_way, user_rooms
from homeserver.storage.database import Database
from tests.factories.rooms import START_TS, RoomFactory
from tests.fakes.servers import OurServer, RemoteServer, Servers, eventually

OURS, REMOTE, OTHER = "ours.test:8448", "remote.test:8448", "other.test:8448"
MARY, EVE = f"@mary:{REMOTE}", f"@eve:{REMOTE}"


async def standing(server: OurServer, user_id: str, room_id: str) -> str | None:
    found = await server.get(Database).read(user_rooms.standing_of, user_id, room_id)
    return found.membership if found is not None else None


async def invite(server: OurServer, room_id: str, sender: str, target: str) -> None:
    await server.get(Memberships).invite(sender, room_id, target)


# -- invitations that are still being sent -----------------------------------------------------------------------------


@pytest.mark.parametrize("times", [1, 2])
def test_an_invitation_whose_answer_breaks_off_is_sent_once_more(servers: Servers, times: int) -> None:
    """The other server has stored the invitation by then: its user would see one that is not valid here."""

    async def story() -> None:
        async with servers:
            ours, theirs = await servers.ours(OURS), await servers.ours(OTHER)
            alice, bot = await ours.user("alice"), await theirs.user("bot")
            room_id = await ours.room(alice, preset="private_chat")
            deliver = servers.network.deliver
            broken = 0

            async def break_off(source: str, request: httpx.Request) -> httpx.Response:
                nonlocal broken
                answer = await deliver(source, request)
                if "/invite/" in request.url.path and broken < times:
                    broken += 1
                    raise httpx.ReadError("connection reset by peer")
                return answer

            servers.network.deliver = break_off  # type: ignore[method-assign]
            if times > 1:
                with pytest.raises(MatrixError):
                    await invite(ours, room_id, alice, bot)
            else:
                await invite(ours, room_id, alice, bot)
                await theirs.join(bot, room_id, OURS)
                assert await ours.membership(room_id, bot) == "join"
            assert len(servers.network.requests(OTHER, "/invite/")) == 2

    asyncio.run(story())


@pytest.mark.parametrize("preset", ["private_chat", "public_chat"])
@pytest.mark.parametrize("answer", ["join", "leave"])
def test_a_bot_that_answers_before_its_invitation_is_stored(servers: Servers, preset: str, answer: str) -> None:
    """Its server has signed the invitation and shown it, and the answer is not back at the inviting server yet."""

    async def story() -> None:
        async with servers:
            ours, theirs = await servers.ours(OURS), await servers.ours(OTHER)
            alice, bot = await ours.user("alice"), await theirs.user("bot")
            room_id = await ours.room(alice, preset=preset)
            client = ours.get(FederationClient)
            send_invite = client.send_invite
            tasks: list[asyncio.Task[None]] = []

            async def slowly(*arguments: Any) -> Any:
                signed = await send_invite(*arguments)
                memberships = theirs.get(Memberships)
                act = memberships.join if answer == "join" else memberships.leave
                tasks.append(asyncio.create_task(act(bot, room_id)))
                await eventually(lambda: _asked(servers, OURS, f"make_{answer}"))
                for _ in range(20):
                    await asyncio.sleep(0)  # the question is there, and is not answered yet
                return signed

            client.send_invite = slowly  # type: ignore[method-assign]
            await invite(ours, room_id, alice, bot)
            await asyncio.gather(*tasks)

            async def settled() -> bool:
                return await ours.membership(room_id, bot) == answer

            await eventually(settled)
            assert await standing(theirs, bot, room_id) == answer

    asyncio.run(story())


async def _asked(servers: Servers, name: str, endpoint: str) -> bool:
    return bool(servers.network.requests(name, endpoint))


def test_the_wait_for_an_invitation_is_bounded(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_access, "INVITATION_WAIT_S", 0.05)

    async def story() -> None:
        async with servers:
            ours = await servers.ours(OURS)
            remote = servers.remote(REMOTE)
            alice = await ours.user("alice")
            room_id = await ours.room(alice, preset="private_chat")
            await _mark(ours, "invitation", room_id, MARY, lasts_ms=60_000)
            uri = f"/_matrix/federation/v1/make_join/{room_id}/{MARY}?ver=11"
            answer = await remote.request("GET", OURS, uri)
            assert answer.status_code == 403
            # What a process has left behind that died counts no longer when its lease has run out.
            monkeypatch.setattr(server_access, "INVITATION_WAIT_S", 60.0)
            await _mark(ours, "invitation", room_id, MARY, lasts_ms=-1)
            assert (await remote.request("GET", OURS, uri)).status_code == 403

    asyncio.run(story())


async def _mark(server: OurServer, kind: str, room_id: str, user_id: str, *, lasts_ms: int) -> None:
    until = SystemClock().now_ms() + lasts_ms
    await server.get(Database).write(under_way.begin, kind, room_id, user_id, "another process", until)


class Invited:
    """Our user bob, with an invitation of a remote server that refuses him at first."""

    def __init__(self, ours: OurServer, remote: RemoteServer, room: RoomFactory, refusals: int) -> None:
        self.ours = ours
        self.remote = remote
        self.room = room
        self.bob = f"@bob:{OURS}"
        self._refusals = refusals
        self._make_join = remote._make_join
        remote.replaced["make_join"] = self._refuse

    async def _refuse(self, request: Request) -> Response:
        if self._refusals > 0:
            self._refusals -= 1
            return JSONResponse({"errcode": "M_FORBIDDEN", "error": "You are not invited"}, 403)
        return await self._make_join(request)

    async def invite(self) -> None:
        event = self.room.event(MARY, "m.room.member", {"membership": "invite"}, self.bob)
        shown = [self.room.state["m.room.create", ""].pdu]
        body = {"event": event.pdu, "room_version": "11", "invite_room_state": shown}
        uri = f"/_matrix/federation/v2/invite/{self.room.room_id}/{event.event_id.replace('$', '%24')}"
        answer = await self.remote.request("PUT", OURS, uri, body)
        assert answer.status_code == 200, answer.text


def refused_at_first(
    servers: Servers, story: Callable[[Invited], Awaitable[None]], *, refusals: int, ts: int | None = None
) -> None:
    async def run() -> None:
        async with servers:
            ours = await servers.ours(OURS)
            await ours.user("bob")
            room = RoomFactory("11", REMOTE, ts=SystemClock().now_ms() if ts is None else ts)
            room.create("mary", join_rule="invite")
            await story(Invited(ours, servers.remote(REMOTE, room), room, refusals))

    asyncio.run(run())


def test_a_fresh_invitation_is_tried_again_for_a_moment(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other servers' software shows an invitation before it stores it, too."""
    monkeypatch.setattr(remote_joins, "REFUSAL_RETRIES_S", (0.0, 0.0))

    async def story(at: Invited) -> None:
        await at.invite()
        await at.ours.join(at.bob, at.room.room_id)
        assert await standing(at.ours, at.bob, at.room.room_id) == "join"

    refused_at_first(servers, story, refusals=2)


@pytest.mark.parametrize("ts", [None, START_TS], ids=["", "though the inviter's clock is years behind"])
def test_a_fresh_invitation_survives_refusals(
    servers: Servers, monkeypatch: pytest.MonkeyPatch, ts: int | None
) -> None:
    monkeypatch.setattr(remote_joins, "REFUSAL_RETRIES_S", (0.0,))

    async def story(at: Invited) -> None:
        await at.invite()
        with pytest.raises(Forbidden, match="not invited"):
            await at.ours.join(at.bob, at.room.room_id)
        assert await standing(at.ours, at.bob, at.room.room_id) == "invite"
        await at.ours.join(at.bob, at.room.room_id)
        assert await standing(at.ours, at.bob, at.room.room_id) == "join"

    refused_at_first(servers, story, refusals=2, ts=ts)


def test_an_old_invitation_is_not_tried_again(servers: Servers) -> None:
    async def story(at: Invited) -> None:
        await at.invite()
        await at.ours.get(Database).write(lambda c: c.execute(update(tables.user_rooms).values(received_ts=START_TS)))
        with pytest.raises(Forbidden, match="no longer valid"):
            await at.ours.join(at.bob, at.room.room_id)

    refused_at_first(servers, story, refusals=1)


def test_an_invitation_that_comes_while_we_join_can_be_accepted_at_once(servers: Servers) -> None:
    """Bob is invited while Alice is joining, and accepts while the room is imported, without his invitation."""

    async def story() -> None:
        async with servers:
            ours = await servers.ours(OURS)
            alice = await ours.user("alice")
            room = RoomFactory("11", REMOTE, ts=SystemClock().now_ms())
            room.create("mary", join_rule="invite")
            room.invite(MARY, alice)
            remote = servers.remote(REMOTE, room)
            await ours.user("bob")
            at = Invited(ours, remote, room, refusals=0)
            send_join = remote._send_join
            accepting: list[asyncio.Task[None]] = []

            async def join_and_invite(request: Request) -> Response:
                answer = await send_join(request)
                if not accepting:
                    await at.invite()
                    accepting.append(asyncio.create_task(ours.join(at.bob, room.room_id)))
                    for _ in range(50):
                        await asyncio.sleep(0)  # he waits for his turn
                return answer

            remote.replaced["send_join"] = join_and_invite
            await ours.join(alice, room.room_id, REMOTE)
            await asyncio.gather(*accepting)
            assert await ours.membership(room.room_id, at.bob) == "join"

    asyncio.run(story())


# -- events that come while a room is being joined ---------------------------------------------------------------------


@pytest.mark.parametrize("version", ["1", "11", "12"])
def test_what_is_said_while_we_join_is_not_lost(servers: Servers, version: str) -> None:
    async def story() -> None:
        async with servers:
            ours = await servers.ours(OURS)
            room = RoomFactory(version, REMOTE)
            room.create("mary")
            remote = servers.remote(REMOTE, room)
            alice = await ours.user("alice")
            send_join = remote._send_join
            sent: list[asyncio.Task[Any]] = []

            async def join_and_say(request: Request) -> Response:
                answer = await send_join(request)
                message = room.send(MARY, "welcome")
                sent.append(asyncio.create_task(remote.transaction(OURS, [message])))
                await asyncio.sleep(0.05)  # it is at our server before the answer to the join
                assert not sent[0].done()
                return answer

            remote.replaced["send_join"] = join_and_say
            await ours.join(alice, room.room_id, REMOTE)
            (results,) = await asyncio.gather(*sent)
            (event_id,) = results
            assert results == {event_id: {}}
            stored = await ours.event(event_id)
            assert stored is not None
            assert stored.stream_position is not None

    asyncio.run(story())


@pytest.mark.parametrize("version", ["1", "11", "12"])
def test_what_is_said_while_a_join_takes_long_is_kept(
    servers: Servers, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    """A server may even send events before it answers the join, and wait for their answer."""
    monkeypatch.setattr(server_access, "JOIN_WAIT_S", 0.02)

    async def story() -> None:
        async with servers:
            ours = await servers.ours(OURS)
            room = RoomFactory(version, REMOTE)
            room.create("mary")
            remote = servers.remote(REMOTE, room)
            alice = await ours.user("alice")
            send_join = remote._send_join
            results: list[Any] = []

            async def say_and_join(request: Request) -> Response:
                answer = await send_join(request)
                results.append(await remote.transaction(OURS, [room.send(MARY, "welcome")]))
                return answer

            remote.replaced["send_join"] = say_and_join
            await ours.join(alice, room.room_id, REMOTE)
            ((event_id, result),) = results[0].items()
            assert result == {}

            async def is_here() -> bool:
                stored = await ours.event(event_id)
                return stored is not None and stored.stream_position is not None

            await eventually(is_here)

    asyncio.run(story())


def test_what_comes_while_a_join_comes_to_nothing_is_refused(servers: Servers) -> None:
    async def story() -> None:
        async with servers:
            ours = await servers.ours(OURS)
            room = RoomFactory("11", REMOTE)
            room.create("mary")
            remote = servers.remote(REMOTE, room)
            alice = await ours.user("alice")
            sent: list[asyncio.Task[Any]] = []

            async def say_and_fail(_: Request) -> Response:
                sent.append(asyncio.create_task(remote.transaction(OURS, [room.send(MARY, "welcome")])))
                await asyncio.sleep(0.02)
                return JSONResponse({"errcode": "M_UNKNOWN", "error": "out of order"}, 500)

            remote.replaced["send_join"] = say_and_fail
            with pytest.raises(MatrixError):
                await ours.join(alice, room.room_id, REMOTE)
            (results,) = await asyncio.gather(*sent)
            assert all("error" in result for result in results.values())

    asyncio.run(story())


def test_a_server_is_to_come_back_if_a_join_takes_too_long(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_access, "JOIN_WAIT_S", 0.05)

    async def story() -> None:
        async with servers:
            ours = await servers.ours(OURS)
            room, other = RoomFactory("11", REMOTE), RoomFactory("11", REMOTE, room_localpart="other")
            for factory in (room, other):
                factory.create("mary")
            remote = servers.remote(REMOTE, other)
            await ours.join(await ours.user("alice"), other.room_id, REMOTE)
            await _mark(ours, "join", room.room_id, f"@bob:{OURS}", lasts_ms=60_000)
            pdus = [room.send(MARY), other.send(MARY)]
            body = {"origin": REMOTE, "origin_server_ts": 1, "pdus": [pdu.pdu for pdu in pdus], "edus": []}
            answer = await remote.request("PUT", OURS, "/_matrix/federation/v1/send/x", body)
            assert answer.status_code == 429, answer.text
            # Another room's events have not waited for it.
            assert await ours.event(pdus[1].event_id) is not None

    asyncio.run(story())


# -- two processes -----------------------------------------------------------------------------------------------------


def test_two_processes_join_the_same_room(servers: Servers, postgresql_url: str) -> None:
    """One is faster; the other one's answer, which knows nothing of the first one's join, must not undo it."""

    async def story() -> None:
        async with servers:
            database = {"url": postgresql_url}
            first = await servers.ours(OURS, database=database)
            second = await servers.ours(OURS, database=database)
            room = RoomFactory("11", REMOTE)
            room.create("mary")
            remote = servers.remote(REMOTE, room)
            alice, bob = await first.user("alice"), await first.user("bob")
            send_join = remote._send_join
            is_asked, is_over = asyncio.Event(), asyncio.Event()

            async def hold_the_first(request: Request) -> Response:
                answer = await send_join(request)
                if not is_asked.is_set():
                    is_asked.set()
                    await is_over.wait()
                return answer

            remote.replaced["send_join"] = hold_the_first
            joining = asyncio.create_task(first.join(alice, room.room_id, REMOTE))
            await is_asked.wait()
            await second.join(bob, room.room_id, REMOTE)
            await second.send(bob, room.room_id)
            is_over.set()
            await joining

            for process in (first, second):

                async def both_are_in(process: OurServer = process) -> bool:
                    return {alice, bob} <= set((await process.head(room.room_id)).joined)

                await eventually(both_are_in)
            for user_id in (alice, bob):
                assert await standing(first, user_id, room.room_id) == "join"
            await second.send(bob, room.room_id)
            await first.send(alice, room.room_id)

    asyncio.run(story())
