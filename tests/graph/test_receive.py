"""What becomes of events that another server sends: from well-behaved to hostile."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest
from sqlalchemy import func, select
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from homeserver.caches import WeightedCache
from homeserver.ephemeral.typing import Typing
from homeserver.protocol.event_format import depth_max
from homeserver.protocol.events import Event
from homeserver.storage import event_graph
from homeserver.storage.database import Database
from homeserver.storage.event_graph import Verdict
from homeserver.storage.tables import events
from tests.factories.rooms import RoomFactory, ServerKey
from tests.fakes.servers import OurServer, RemoteServer, Servers

OURS, REMOTE, OTHER = "ours.test:8448", "remote.test:8448", "other.test:8448"
ALICE, EVE = f"@alice:{REMOTE}", f"@eve:{REMOTE}"


@dataclass
class Scene:
    """Our server, whose bob has joined a room of a remote server."""

    servers: Servers
    ours: OurServer
    remote: RemoteServer
    room: RoomFactory
    bob: str

    async def send(self, *pdus: Any, **options: Any) -> dict[str, Any]:
        return await self.remote.transaction(OURS, pdus, **options)

    async def verdict(self, event: Event) -> Verdict | None:
        stored = await self.ours.event(event.event_id)
        return None if stored is None else stored.verdict

    async def extremities(self) -> set[str]:
        return {e.event_id for e in (await self.ours.head(self.room.room_id)).extremities}

    async def state(self) -> dict[tuple[str, str], str]:
        return dict((await self.ours.head(self.room.room_id)).state)


@contextlib.asynccontextmanager
async def scene(servers: Servers, version: str = "11", **create: Any) -> AsyncIterator[Scene]:
    async with servers:
        ours = await servers.ours(OURS)
        room = RoomFactory(version, REMOTE)
        room.create("alice", **create)
        room.join(EVE)
        remote = servers.remote(REMOTE, room)
        bob = await ours.user("bob")
        await ours.join(bob, room.room_id, REMOTE)
        yield Scene(servers, ours, remote, room, bob)


def play(servers: Servers, story: Callable[[Scene], Awaitable[None]], version: str = "11", **create: Any) -> None:
    async def run() -> None:
        async with scene(servers, version, **create) as at:
            await story(at)

    asyncio.run(run())


VERSIONS = pytest.mark.parametrize("version", ["1", "6", "11", "12"])


@VERSIONS
def test_a_message_is_taken_in_once(servers: Servers, version: str) -> None:
    async def story(at: Scene) -> None:
        message = at.room.send(ALICE)
        assert await at.send(message) == {message.event_id: {}}
        assert (await at.ours.wait_for(message.event_id)).visible
        assert await at.extremities() == {message.event_id}
        position = (await at.ours.wait_for(message.event_id)).stream_position
        assert await at.send(message) == {message.event_id: {}}
        assert (await at.ours.wait_for(message.event_id)).stream_position == position

    play(servers, story, version)


def test_a_transaction_of_fifty_is_one_chain(servers: Servers) -> None:
    async def story(at: Scene) -> None:
        messages = [at.room.send(ALICE, str(number)) for number in range(50)]
        results = await at.send(*messages)
        assert results == {message.event_id: {} for message in messages}
        positions = [(await at.ours.wait_for(m.event_id)).stream_position for m in messages]
        assert positions == list(range(positions[0], positions[0] + 50))
        assert await at.extremities() == {messages[-1].event_id}

    play(servers, story)


def test_the_same_events_in_many_transactions_at_once(servers: Servers) -> None:
    async def story(at: Scene) -> None:
        messages = [at.room.send(ALICE, str(number)) for number in range(10)]
        results = await asyncio.gather(
            *(at.send(*messages[i:]) for i in range(5)), *(at.send(*messages) for _ in range(5))
        )
        assert all(result == {} for answer in results for result in answer.values())
        assert await at.extremities() == {messages[-1].event_id}
        for message in messages:
            assert await at.verdict(message) == Verdict.ACCEPTED

    play(servers, story)


def test_a_transaction_that_comes_again_gets_the_same_answer(servers: Servers) -> None:
    async def story(at: Scene) -> None:
        bad = at.room.send(f"@stranger:{REMOTE}")
        first = await at.send(bad, txn="same")
        assert "error" in first[bad.event_id]
        assert await at.send(txn="same") == first

    play(servers, story)


def test_answers_survive_a_restart(servers: Servers) -> None:
    async def story() -> None:
        async with servers:
            remote = servers.remote(REMOTE)
            async with servers.running(OURS):
                first = await remote.transaction(OURS, [{"room_id": "!x:y", "event_id": "$z:y"}], txn="same")
                assert "error" in first["$z:y"]
            async with servers.running(OURS):
                assert await remote.transaction(OURS, [], txn="same") == first

    asyncio.run(story())


@VERSIONS
def test_bad_signatures_are_dropped(servers: Servers, version: str) -> None:
    async def story(at: Scene) -> None:
        message = at.room.send(ALICE)
        forged = {**message.pdu, "signatures": {REMOTE: {"ed25519:1": ServerKey(OTHER).sign(b"something else")}}}
        unsigned = {**at.room.send(ALICE, "two").pdu, "signatures": {}}
        results = await at.send(forged, unsigned)
        assert len(results) == 2
        assert all("error" in result for result in results.values())
        for event_id in results:
            assert await at.ours.event(event_id) is None

    play(servers, story, version)


@VERSIONS
def test_changed_content_is_redacted(servers: Servers, version: str) -> None:
    async def story(at: Scene) -> None:
        message = at.room.send(ALICE, "true words")
        await at.send({**message.pdu, "content": {"msgtype": "m.text", "body": "false words"}})
        stored = await at.ours.wait_for(message.event_id)
        assert stored.visible
        assert stored.event.content == {}

    play(servers, story, version)


def test_garbage_is_ignored(servers: Servers) -> None:
    async def story(at: Scene) -> None:
        good = at.room.send(ALICE)
        room_id = at.room.room_id
        garbage = [
            None, 1, "text", [], {}, {"room_id": 1}, {"room_id": room_id}, {"room_id": "!other:x"},
            {"room_id": room_id, "type": "m.room.message", "content": []},
            {**good.pdu, "depth": -1}, {**good.pdu, "auth_events": "x"}, {**good.pdu, "prev_events": [1]},
            {**good.pdu, "signatures": {REMOTE: "x"}}, {**good.pdu, "hashes": None},
            {**good.pdu, "sender": "alice"}, {**good.pdu, "content": {"a": 2**60}},
        ]  # fmt: skip
        results = await at.send(*garbage, good)
        assert results.pop(good.event_id) == {}
        assert all("error" in result for result in results.values())
        assert await at.extremities() == {good.event_id}

    play(servers, story)


@VERSIONS
def test_what_breaks_the_rules_is_rejected_and_what_follows_is_not(servers: Servers, version: str) -> None:
    async def story(at: Scene) -> None:
        forbidden = at.room.state_event(EVE, "m.room.topic", {"topic": "mine"})
        after = at.room.send(ALICE, "goes on")
        results = await at.send(forbidden, after)
        assert results[forbidden.event_id] == {"error": "You are not allowed to send this event to the room"}
        assert await at.send(forbidden, after) == results  # it gets no better when it comes again
        assert results[after.event_id] == {}
        assert await at.verdict(forbidden) == Verdict.REJECTED
        nid = (await at.ours.wait_for(forbidden.event_id)).event_nid
        assert "power level" in (await at.ours.get(Database).read(event_graph.rejection_reason, nid) or "")
        assert await at.verdict(after) == Verdict.ACCEPTED
        assert ("m.room.topic", "") not in await at.state()
        assert after.event_id in await at.extremities()

    play(servers, story, version)


@VERSIONS
def test_who_evades_a_ban_is_soft_failed(servers: Servers, version: str) -> None:
    async def story(at: Scene) -> None:
        tip = at.room.send(ALICE, "before")
        ban = at.room.ban(ALICE, EVE)
        evasion = at.room.send(EVE, "after all", prev_events=[tip])
        state_evasion = at.room.event(
            EVE, "m.room.member", {"membership": "join", "displayname": "x"}, EVE, prev_events=[tip]
        )
        assert await at.send(tip, ban) == {tip.event_id: {}, ban.event_id: {}}
        assert await at.send(evasion, state_evasion) == {evasion.event_id: {}, state_evasion.event_id: {}}
        assert await at.verdict(evasion) == Verdict.SOFT_FAILED
        assert await at.verdict(state_evasion) == Verdict.SOFT_FAILED
        assert await at.extremities() == {ban.event_id}
        assert (await at.state())["m.room.member", EVE] == ban.event_id
        # A later event that follows both is taken as it is.
        merge = at.room.send(ALICE, "merge", prev_events=[ban, evasion])
        assert await at.send(merge) == {merge.event_id: {}}
        assert await at.extremities() == {merge.event_id}
        assert (await at.state())["m.room.member", EVE] == ban.event_id

    play(servers, story, version)


@VERSIONS
def test_missing_events_are_fetched(servers: Servers, version: str) -> None:
    async def story(at: Scene) -> None:
        between = [at.room.send(ALICE, str(number)) for number in range(70)]
        topic = at.room.state_event(ALICE, "m.room.topic", {"topic": "new"})
        last = at.room.send(EVE, "last")
        assert await at.send(last) == {last.event_id: {}}
        for event in [*between, topic]:
            assert await at.verdict(event) == Verdict.ACCEPTED
        assert (await at.state())["m.room.topic", ""] == topic.event_id
        assert await at.extremities() == {last.event_id}

    play(servers, story, version)


@VERSIONS
def test_missing_events_do_not_bring_the_past_with_them(servers: Servers, version: str) -> None:
    """The other server does not know our latest event, so it goes on back to where we joined, and beyond."""

    async def story(at: Scene) -> None:
        before_our_join = list(at.room.events.values())[:-1]
        await at.ours.send(at.bob, at.room.room_id, "unheard")
        first = at.room.send(ALICE, "1")
        second = at.room.send(ALICE, "2")
        assert await at.send(second) == {second.event_id: {}}
        assert await at.verdict(first) == await at.verdict(second) == Verdict.ACCEPTED
        assert len(await at.extremities()) == 2
        for event in before_our_join:
            stored = await at.ours.event(event.event_id)
            assert stored is None or stored.verdict == Verdict.OUTLIER

    play(servers, story, version)


@VERSIONS
def test_a_branch_from_before_we_came_does_not_bring_the_past_with_it(servers: Servers, version: str) -> None:
    async def story(at: Scene) -> None:
        *before_our_join, our_join = at.room.events.values()
        branch = at.room.send(ALICE, "branch", prev_events=[before_our_join[-1]])
        meeting = at.room.send(ALICE, "meeting", prev_events=[branch, our_join])
        assert await at.send(meeting) == {meeting.event_id: {}}
        assert await at.verdict(meeting) == Verdict.ACCEPTED
        assert await at.extremities() == {meeting.event_id}
        for event in before_our_join:
            stored = await at.ours.event(event.event_id)
            assert stored is None or stored.verdict == Verdict.OUTLIER

    play(servers, story, version)


@VERSIONS
def test_where_events_stay_missing_the_state_is_asked_for(servers: Servers, version: str) -> None:
    async def story(at: Scene) -> None:
        topic = at.room.state_event(ALICE, "m.room.topic", {"topic": "new"})
        lost = at.room.send(ALICE, "lost")
        last = at.room.send(EVE, "last")
        at.remote.replaced["missing_events"] = no_events
        assert await at.send(last) == {last.event_id: {}}
        assert await at.verdict(last) == Verdict.ACCEPTED
        assert await at.verdict(lost) is None
        assert (await at.state())["m.room.topic", ""] == topic.event_id
        # It turns up after all: known by what follows it, it is no extremity.
        assert last.event_id in await at.extremities()
        assert await at.send(topic, lost) == {topic.event_id: {}, lost.event_id: {}}
        assert await at.verdict(topic) == Verdict.ACCEPTED
        assert await at.verdict(lost) == Verdict.ACCEPTED
        assert last.event_id in await at.extremities()
        assert lost.event_id not in await at.extremities()

    play(servers, story, version)


def test_events_without_any_help_stay_outside(servers: Servers) -> None:
    async def story(at: Scene) -> None:
        at.room.send(ALICE, "lost")
        last = at.room.send(EVE, "last")
        at.servers.network.split(OURS, OTHER)
        at.servers.network.hold(OURS, REMOTE)
        at.servers.network._held.clear()
        at.servers.network._cut.add((OURS, REMOTE))
        assert await at.send(last) == {last.event_id: {}}  # it is kept until it can be judged
        assert await at.verdict(last) is None

    play(servers, story)


@VERSIONS
def test_missing_auth_events_are_fetched(servers: Servers, version: str) -> None:
    async def story(at: Scene) -> None:
        tip = at.room.send(ALICE, "tip")
        levels = at.room.set_power_levels(ALICE, prev_events=[tip], state_default=40)
        state = at.room.state_before(tip)
        cited = [levels, state["m.room.member", ALICE]]
        if version != "12":
            cited.append(state["m.room.create", ""])
        message = at.room.send(ALICE, "cites what you do not have", prev_events=[tip], auth_events=cited)
        await at.send(tip)
        assert await at.send(message) == {message.event_id: {}}
        assert await at.verdict(message) == Verdict.ACCEPTED
        assert await at.verdict(levels) == Verdict.OUTLIER
        # Then it comes itself, and gets its place.
        assert await at.send(levels) == {levels.event_id: {}}
        assert await at.verdict(levels) == Verdict.ACCEPTED
        assert (await at.state())["m.room.power_levels", ""] == levels.event_id

    play(servers, story, version)


def test_an_event_that_cites_a_rejected_one_is_rejected(servers: Servers) -> None:
    async def story(at: Scene) -> None:
        tip = at.room.send(ALICE, "tip")
        coup = at.room.set_power_levels(EVE, {EVE: 100}, prev_events=[tip])
        state = at.room.state_before(tip)
        cited = [coup, state["m.room.member", EVE], state["m.room.create", ""]]
        topic = at.room.event(EVE, "m.room.topic", {"topic": "x"}, "", prev_events=[tip], auth_events=cited)
        results = await at.send(tip, topic)
        assert "error" in results[topic.event_id]
        assert await at.verdict(topic) == Verdict.REJECTED
        assert await at.verdict(coup) == Verdict.OUTLIER | Verdict.REJECTED

    play(servers, story)


def test_a_rejected_event_does_not_pass_for_an_accepted_one_because_the_cache_dropped_it(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(WeightedCache, "put", lambda cache, key, _: cache.drop(key))

    async def story(at: Scene) -> None:
        tip = at.room.send(ALICE, "tip")
        coup = at.room.set_power_levels(EVE, {EVE: 100}, prev_events=[tip])
        state = at.room.state_before(tip)
        cited = [coup, state["m.room.member", EVE], state["m.room.create", ""]]
        message = at.room.event(EVE, "m.room.message", {"body": "x"}, prev_events=[tip], auth_events=cited)
        await at.send(tip, message)
        assert await at.verdict(coup) == Verdict.OUTLIER | Verdict.REJECTED
        assert await at.verdict(message) == Verdict.REJECTED

    play(servers, story)


def test_a_soft_failed_event_keeps_no_other_out_of_the_extremities(servers: Servers) -> None:
    async def story(at: Scene) -> None:
        tip = at.room.send(ALICE, "tip")
        ban = at.room.ban(ALICE, EVE, prev_events=[tip])
        secret = at.room.state_event(ALICE, "m.room.topic", {"topic": "suppressed?"}, prev_events=[ban])
        await at.send(tip, ban)
        # Eve names the topic, which nobody has yet, and gives a state in which she is still there.
        keys = (("m.room.create", ""), ("m.room.power_levels", ""), ("m.room.member", EVE))
        cited = [at.room.state_before(tip)[key] for key in keys]
        evil = at.room.send(EVE, "evil", prev_events=[secret], auth_events=cited)
        at.room._state_before[evil.event_id] = at.room._state_before[tip.event_id]
        at.remote.replaced["missing_events"] = no_events
        assert await at.send(evil) == {evil.event_id: {}}
        assert await at.verdict(evil) == Verdict.SOFT_FAILED
        assert await at.send(secret) == {secret.event_id: {}}
        assert await at.extremities() == {secret.event_id}
        assert (await at.state())["m.room.topic", ""] == secret.event_id

    play(servers, story)


async def no_events(_: Request) -> Response:
    return JSONResponse({"events": []})


def show_nothing(remote: RemoteServer) -> None:
    """The remote server answers as those do whose room the asking server is not in."""

    async def refuse(_: Request) -> Response:
        return JSONResponse({"errcode": "M_FORBIDDEN", "error": "Host not in room."}, status_code=403)

    for endpoint in ("event_auth", "state_ids", "state", "event", "backfill", "missing_events"):
        remote.replaced[endpoint] = refuse


@pytest.mark.parametrize("kind", ["ban", "kick"])
def test_our_user_is_removed_though_nobody_shows_what_came_before(servers: Servers, kind: str) -> None:
    async def story(at: Scene) -> None:
        missed = [at.room.send(ALICE, str(number)) for number in range(3)]
        removal = at.room.ban(ALICE, at.bob) if kind == "ban" else at.room.kick(ALICE, at.bob)
        show_nothing(at.remote)
        assert await at.send(removal) == {removal.event_id: {}}
        assert await at.verdict(removal) == Verdict.ACCEPTED
        assert (await at.state())["m.room.member", at.bob] == removal.event_id
        assert {await at.verdict(event) for event in missed} == {None}
        assert not (await at.ours.head(at.room.room_id)).joined_local

    play(servers, story)


def test_who_may_not_remove_our_user_cannot_by_hiding_what_came_before(servers: Servers) -> None:
    async def story(at: Scene) -> None:
        missed = at.room.send(ALICE, "missed")
        removal = at.room.ban(EVE, at.bob, prev_events=[missed])
        other = at.room.ban(ALICE, EVE, prev_events=[missed])
        show_nothing(at.remote)
        await at.send(removal, other)
        assert await at.verdict(removal) in (Verdict.REJECTED, None)
        assert await at.verdict(other) is None
        assert at.bob in (await at.ours.head(at.room.room_id)).joined_local

    play(servers, story)


def test_what_follows_soft_failed_events_follows_what_they_follow(servers: Servers) -> None:
    async def story(at: Scene) -> None:
        old = at.room.send(ALICE, "old")
        ban = at.room.ban(ALICE, EVE, prev_events=[old])
        await at.send(old, ban)
        evasions = [at.room.send(EVE, "1", prev_events=[old])]
        evasions.append(at.room.send(EVE, "2", prev_events=[evasions[0]]))
        await at.send(*evasions)
        assert {await at.verdict(event) for event in evasions} == {Verdict.SOFT_FAILED}
        beside = at.room.send(ALICE, "has not heard of the ban", prev_events=[evasions[1]])
        await at.send(beside)
        assert await at.extremities() == {ban.event_id, beside.event_id}
        # From one that is followed only by what was not let in, the room goes on.
        await at.send(at.room.send(ALICE, "both", prev_events=[ban, beside]))
        (tip,) = await at.extremities()
        unheard = at.room.send(EVE, "3", prev_events=[tip])
        after = at.room.send(ALICE, "after", prev_events=[unheard])
        await at.send(unheard, after)
        assert await at.verdict(unheard) in (Verdict.SOFT_FAILED, Verdict.REJECTED)
        assert await at.extremities() == {after.event_id}

    play(servers, story)


@VERSIONS
def test_branches_are_resolved(servers: Servers, version: str) -> None:
    async def story(at: Scene) -> None:
        tip = at.room.send(ALICE, "tip")
        left = at.room.state_event(ALICE, "m.room.name", {"name": "left"}, prev_events=[tip])
        right = at.room.set_power_levels(ALICE, prev_events=[tip], invite=30)
        assert await at.send(tip, right, left) == {e.event_id: {} for e in (tip, left, right)}
        assert await at.extremities() == {left.event_id, right.event_id}
        state = await at.state()
        assert state["m.room.name", ""] == left.event_id
        assert state["m.room.power_levels", ""] == right.event_id
        answer = await at.ours.send(at.bob, at.room.room_id, "both")
        assert await at.extremities() == {answer}

    play(servers, story, version)


def test_a_server_that_the_acl_shuts_out_is_not_heard(servers: Servers) -> None:
    async def story(at: Scene) -> None:
        acl = at.room.state_event(ALICE, "m.room.server_acl", {"allow": ["*"], "deny": ["remote.test"]})
        assert await at.send(acl) == {acl.event_id: {}}
        message = at.room.send(ALICE)
        results = await at.send(
            message,
            edus=[{"edu_type": "m.typing", "content": {"room_id": at.room.room_id, "user_id": ALICE, "typing": True}}],
        )
        assert "not allowed" in results[message.event_id]["error"]
        assert await at.verdict(message) is None
        assert at.ours.get(Typing).users_in(at.room.room_id) == []

    play(servers, story)


def test_edus_reach_those_who_know_them(servers: Servers) -> None:
    async def story(at: Scene) -> None:
        typing = {"room_id": at.room.room_id, "user_id": ALICE, "typing": True}
        edus = [
            {"edu_type": "m.unknown", "content": {}}, {"edu_type": 1}, None, "x", {"edu_type": "m.typing"},
            {"edu_type": "m.receipt", "content": {at.room.room_id: {"m.read": {ALICE: 1}}}},
            {"edu_type": "m.typing", "content": {**typing, "user_id": f"@x:{OTHER}"}},
            {"edu_type": "m.typing", "content": typing},
        ]  # fmt: skip
        assert await at.send(edus=edus) == {}
        assert at.ours.get(Typing).users_in(at.room.room_id) == [ALICE]

    play(servers, story)


@pytest.mark.parametrize("body", [{"pdus": [{}] * 51}, {"edus": [{}] * 101}, {"pdus": {}}, {"pdus": [], "edus": 1}])
def test_transactions_of_the_wrong_shape(servers: Servers, body: dict[str, Any]) -> None:
    async def story() -> None:
        async with servers:
            await servers.ours(OURS)
            remote = servers.remote(REMOTE)
            response = await remote.request("PUT", OURS, "/_matrix/federation/v1/send/1", body)
            assert response.status_code == 400
            assert response.json()["errcode"] == "M_BAD_JSON"

    asyncio.run(story())


def test_events_of_rooms_that_we_are_not_in(servers: Servers) -> None:
    async def story() -> None:
        async with servers:
            ours = await servers.ours(OURS)
            room = RoomFactory("11", REMOTE)
            room.create("alice")
            remote = servers.remote(REMOTE, room)
            message = room.send(ALICE)
            await remote.transaction(OURS, [message])
            assert await ours.event(message.event_id) is None

    asyncio.run(story())


def test_a_server_whose_last_user_left_hears_no_more(servers: Servers) -> None:
    async def story(at: Scene) -> None:
        from homeserver.membership.membership import Memberships

        await at.ours.get(Memberships).leave(at.bob, at.room.room_id)
        message = at.room.send(ALICE)
        results = await at.send(message)
        assert "error" in results[message.event_id]
        assert await at.verdict(message) is None

    play(servers, story)


@pytest.mark.parametrize("version", ["1", "5", "6", "11", "12"])
def test_the_greatest_depth_stops_nobody(servers: Servers, version: str) -> None:
    async def story(at: Scene) -> None:
        limit = depth_max(at.room.version)
        deep = at.room.send(EVE, "as deep as can be", depth=limit)
        assert await at.send(deep) == {deep.event_id: {}}
        answer = await at.ours.wait_for(await at.ours.send(at.bob, at.room.room_id, "and on"))
        assert answer.event.depth == limit
        assert await at.extremities() == {answer.event_id}
        new = f"@new:{REMOTE}"
        for kind, user in (("join", new), ("leave", ALICE)):
            uri = f"/_matrix/federation/v1/make_{kind}/{at.room.room_id}/{user}?ver={version}"
            response = await at.remote.request("GET", OURS, uri)
            assert response.json()["event"]["depth"] == limit

    play(servers, story, version)


@VERSIONS
def test_an_event_without_a_past_is_refused(servers: Servers, version: str) -> None:
    async def story(at: Scene) -> None:
        before = await at.state(), await at.extremities()
        for orphan in (
            at.room.send(ALICE, prev_events=[]),
            at.room.state_event(ALICE, "m.room.topic", {}, prev_events=[]),
        ):
            assert "prev_events" in (await at.send(orphan))[orphan.event_id]["error"]
            assert await at.verdict(orphan) is None
        assert before == (await at.state(), await at.extremities())

    play(servers, story, version)


@VERSIONS
def test_servers_that_are_not_in_the_room_fill_no_database(servers: Servers, version: str) -> None:
    """They know the room's ID, and perhaps events of it, and sign what they like. A server in the room may be next."""

    async def count(at: Scene) -> int:
        return await at.ours.get(Database).read(
            lambda c: c.execute(select(func.count()).select_from(events)).scalar_one()
        )

    async def story(at: Scene) -> None:
        stranger = at.servers.remote("stranger.test:8448", at.room)
        user, former = f"@eve:{stranger.name}", f"@former:{stranger.name}"
        await at.send(at.room.join(former), at.room.leave(former))
        before = await count(at)
        tip = at.room.extremities[-1]
        rejected = [at.room.send(user, f"rejected {n}", prev_events=[tip]) for n in range(5)]
        results = await stranger.transaction(OURS, rejected)
        assert all("error" in results[event.event_id] for event in rejected)
        # The user who was in the room says that it never left.
        join = at.room.state_before(tip)["m.room.member", former]
        evading = [at.room.send(former, f"soft-failed {n}", prev_events=[join]) for n in range(5)]
        results = await stranger.transaction(OURS, evading)
        assert set(results) == {event.event_id for event in evading}
        assert await count(at) == before
        # What others follow is taken in from them.
        after = at.room.send(ALICE, "after", prev_events=[evading[0]])
        assert await at.send(after) == {after.event_id: {}}
        assert await at.verdict(after) == Verdict.ACCEPTED
        assert await at.verdict(evading[0]) == Verdict.SOFT_FAILED

    play(servers, story, version)
