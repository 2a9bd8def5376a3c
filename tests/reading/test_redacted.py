"""Redacted means redacted: wherever an event is shown, and whenever its redaction came."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from homeserver.accounts.access_tokens import Requester
from homeserver.errors import NotFound
from homeserver.graph.events import Events
from homeserver.graph.send import Sender
from homeserver.membership.membership import Memberships
from homeserver.protocol.events import Event, EventDraft
from homeserver.protocol.filters import parse_filter
from homeserver.reading.history import History
from homeserver.storage import room_listing
from homeserver.storage.database import Database
from homeserver.storage.integrity import find_problems
from homeserver.sync.service import Sync
from homeserver.sync.updates import SyncRequest
from tests.factories.rooms import RoomFactory
from tests.fakes.servers import OurServer, RemoteServer, Servers

OURS, OTHER, REMOTE = "ours.test:8448", "other.test:8448", "remote.test:8448"
MARY, EVE = f"@mary:{REMOTE}", f"@eve:{REMOTE}"
SECRET = "SECRET"
VERSIONS = pytest.mark.parametrize("version", ["1", "6", "11", "12"])


def play(story: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(story())


async def redact(server: OurServer, user_id: str, room_id: str, event_id: str) -> Event:
    draft = EventDraft("m.room.redaction", user_id, {}, redacts=event_id)
    return (await server.get(Sender).redact(room_id, draft)).event


async def seen(server: OurServer, user_id: str, room_id: str, event_id: str) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(await server.get(History).event(Requester(user_id, "D"), room_id, event_id))
    except NotFound:
        return None
    return found


async def first_sync(server: OurServer, user_id: str) -> bytes:
    async def check() -> None:
        return None

    return await server.get(Sync).sync(SyncRequest(user_id, "D", since=None, filter=parse_filter({})), 0, check)


@VERSIONS
def test_state_can_be_set_again_after_its_redaction(servers: Servers, version: str) -> None:
    async def story() -> None:
        async with servers:
            ours = await servers.ours(OURS)
            alice = await ours.user("alice")
            room_id = await ours.room(alice, version=version)
            first = await ours.send_state(alice, room_id, "m.room.topic", {"topic": SECRET})
            assert await ours.send_state(alice, room_id, "m.room.topic", {"topic": SECRET}) == first
            redaction = await redact(ours, alice, room_id, first)
            shown = await seen(ours, alice, room_id, first)
            assert shown is not None
            assert shown["content"] == {}
            assert shown["unsigned"]["redacted_by"] == redaction.event_id
            assert shown["unsigned"]["redacted_because"]["event_id"] == redaction.event_id
            again = await ours.send_state(alice, room_id, "m.room.topic", {"topic": SECRET})
            assert again != first
            assert (await ours.get_state(await ours.head(room_id), "m.room.topic")) == {"topic": SECRET}
            # At once with others, too: one transaction holds the redaction and the same state again.
            await asyncio.gather(
                redact(ours, alice, room_id, again),
                ours.send_state(alice, room_id, "m.room.topic", {"topic": SECRET}),
            )
            assert (await ours.get_state(await ours.head(room_id), "m.room.topic")) == {"topic": SECRET}

    play(story)


@VERSIONS
def test_nobody_outside_is_shown_what_was_redacted(servers: Servers, version: str) -> None:
    async def story() -> None:
        async with servers:
            ours, other = await servers.ours(OURS), await servers.ours(OTHER)
            alice, bob, zoe = await ours.user("alice"), await ours.user("bob"), await other.user("zoe")
            room_id = await ours.room(alice, version=version)
            for kind, content in (("m.room.name", {"name": SECRET}), ("m.room.topic", {"topic": SECRET})):
                await redact(ours, alice, room_id, await ours.send_state(alice, room_id, kind, content))
            for user in (bob, zoe):
                await ours.get(Memberships).invite(alice, room_id, user)
            (asked,) = servers.network.requests(OTHER, "invite")
            assert SECRET.encode() not in asked.body
            head = await ours.head(room_id)
            synced = await first_sync(ours, bob)
            assert room_id.encode() in synced
            assert SECRET.encode() not in synced
            assert await ours.get_state(head, "m.room.name") == {}
            details = await ours.get(Database).read(room_listing.show_room, room_id)
            assert details is not None
            assert (details.summary.name, details.topic) == (None, None)

    play(story)


class Scene:
    """A room of a remote server that our alice is in."""

    def __init__(self, ours: OurServer, remote: RemoteServer, room: RoomFactory, alice: str) -> None:
        self.ours, self.remote, self.room, self.alice = ours, remote, room, alice

    async def send(self, *events: Event) -> None:
        assert await self.remote.transaction(OURS, events) == {event.event_id: {} for event in events}

    async def seen(self, event: Event) -> dict[str, Any] | None:
        return await seen(self.ours, self.alice, self.room.room_id, event.event_id)


async def scene(servers: Servers, ours: OurServer, version: str) -> Scene:
    room = RoomFactory(version, REMOTE)
    room.create("mary")
    room.join(EVE)
    remote = servers.remote(REMOTE, room)
    alice = await ours.user("alice")
    await ours.join(alice, room.room_id, REMOTE)
    return Scene(ours, remote, room, alice)


def side_by_side(at: Scene) -> tuple[Event, Event]:
    """A message, and its redaction that does not follow it, so that it can be here first."""
    tip = at.room.extremities[-1]
    target = at.room.send(EVE, SECRET, prev_events=[tip])
    return target, at.room.redact(MARY, target, prev_events=[tip])


@VERSIONS
@pytest.mark.parametrize("between", ["nothing", "another event", "a restart"])
def test_a_redaction_may_come_before_its_target(servers: Servers, version: str, between: str) -> None:
    async def story() -> None:
        async with servers:
            async with servers.running(OURS) as ours:
                at = await scene(servers, ours, version)
                target, redaction = side_by_side(at)
                await at.send(redaction)
                # Since version 3 clients are not told before it takes effect.
                assert (await at.seen(redaction) is None) == (version != "1")
                if between == "another event":
                    await at.send(at.room.send(MARY, "meanwhile", prev_events=[redaction]))
                if between != "a restart":
                    await check(at, target, redaction)
            if between == "a restart":
                async with servers.running(OURS) as ours:
                    at.ours = ours
                    await check(at, target, redaction)

    async def check(at: Scene, target: Event, redaction: Event) -> None:
        await at.send(target)
        shown = await at.seen(target)
        assert shown is not None
        assert shown["content"] == {}
        assert shown["unsigned"]["redacted_by"] == redaction.event_id
        assert await at.seen(redaction) is not None
        following = at.room.send(EVE, "and on", prev_events=[target, redaction])
        await at.send(following)
        assert await at.seen(following) is not None
        assert await at.ours.get(Database).read(find_problems) == []

    play(story)


@VERSIONS
def test_a_redaction_may_come_with_its_target(servers: Servers, version: str) -> None:
    async def story() -> None:
        async with servers:
            at = await scene(servers, await servers.ours(OURS), version)
            target, redaction = side_by_side(at)
            await at.send(redaction, target)
            shown = await at.seen(target)
            assert shown is not None
            assert shown["content"] == {}
            assert await at.seen(redaction) is not None

    play(story)


@pytest.mark.parametrize("version", ["4", "11", "12"])
def test_a_redaction_that_was_not_allowed_is_not_shown(servers: Servers, version: str) -> None:
    async def story() -> None:
        async with servers:
            at = await scene(servers, await servers.ours(OURS), version)
            sent = await at.ours.send(at.alice, at.room.room_id, "keep this")
            stored = await at.ours.event(sent)
            assert stored is not None
            at.remote.take_in(stored.event.pdu)
            redaction = at.room.redact(EVE, sent)
            await at.send(redaction)
            assert await at.seen(redaction) is None
            shown = await seen(at.ours, at.alice, at.room.room_id, sent)
            assert shown is not None
            assert shown["content"]["body"] == "keep this"
            assert "redacted_by" not in shown["unsigned"]

    play(story)


@VERSIONS
@pytest.mark.parametrize("redacted_before_the_join", [False, True])
def test_a_target_may_come_by_backfill(servers: Servers, version: str, redacted_before_the_join: bool) -> None:
    async def story() -> None:
        async with servers:
            room = RoomFactory(version, REMOTE)
            room.create("mary")
            room.join(EVE)
            remote, ours = servers.remote(REMOTE, room), await servers.ours(OURS)
            target = room.send(EVE, SECRET)
            redaction = room.redact(MARY, target) if redacted_before_the_join else None
            alice = await ours.user("alice")
            await ours.join(alice, room.room_id, REMOTE)
            at = Scene(ours, remote, room, alice)
            if redaction is None:
                redaction = room.redact(MARY, target)
                await at.send(redaction)
                assert (await at.seen(redaction) is None) == (version != "1")
            assert await at.seen(target) is None
            assert await ours.backfill(room.room_id)
            shown = await at.seen(target)
            assert shown is not None
            assert shown["content"] == {}
            assert shown["unsigned"]["redacted_by"] == redaction.event_id
            assert await at.seen(redaction) is not None
            assert await ours.get(Database).read(find_problems) == []

    play(story)


@VERSIONS
def test_redacted_state_stays_redacted_when_it_finds_its_place(servers: Servers, version: str) -> None:
    async def story() -> None:
        async with servers:
            room = RoomFactory(version, REMOTE)
            room.create("mary")
            topic = room.state_event(MARY, "m.room.topic", {"topic": SECRET})
            remote, ours = servers.remote(REMOTE, room), await servers.ours(OURS)
            alice = await ours.user("alice")
            await ours.join(alice, room.room_id, REMOTE)
            at = Scene(ours, remote, room, alice)
            # The topic is here as part of the state that came with the join, without a place in the history.
            await at.send(room.redact(MARY, topic))
            assert await ours.get_state(await ours.head(room.room_id), "m.room.topic") == {}
            ours.get(Events).forget(topic.event_id)
            assert await ours.backfill(room.room_id)
            assert await ours.get_state(await ours.head(room.room_id), "m.room.topic") == {}
            shown = await at.seen(topic)
            assert shown is not None
            assert shown["content"] == {}

    play(story)


@VERSIONS
def test_an_event_that_is_redacted_twice_names_the_same_redaction_always(servers: Servers, version: str) -> None:
    async def story() -> None:
        async with servers:
            at = await scene(servers, await servers.ours(OURS), version)
            target = at.room.send(EVE, SECRET)
            await at.send(target)
            first, second = at.room.redact(MARY, target), at.room.redact(EVE, target)
            await at.send(first)
            assert await at.seen(target) is not None
            await at.send(second)
            at_hand = await at.seen(target)
            at.ours.get(Events).forget(target.event_id)
            read_anew = await at.seen(target)
            for shown in (at_hand, read_anew):
                assert shown is not None
                assert shown["unsigned"]["redacted_by"] == first.event_id
                assert shown["unsigned"]["redacted_because"]["event_id"] == first.event_id

    play(story)
