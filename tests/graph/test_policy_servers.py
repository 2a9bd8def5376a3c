"""homeserver/graph/policy_servers.py: check 7 of what comes in, and how policy servers are asked."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import pytest

from homeserver.errors import (
    LimitExceeded,
    NotRecommended,
    RemoteFailed,
    RemoteRefused,
    RemoteTimedOut,
    RemoteUnreachable,
)
from homeserver.graph import policy_servers
from homeserver.graph.policy_servers import Opinions, PolicyServers
from homeserver.protocol.compose import add_signature
from homeserver.protocol.events import Event
from homeserver.protocol.hashes import unpadded_base64
from homeserver.protocol.json_types import JsonObject
from homeserver.protocol.policy_servers import PolicyServer, is_recommended
from homeserver.storage import event_graph
from homeserver.storage.database import Database
from homeserver.storage.event_graph import Verdict
from tests.factories.rooms import RoomFactory, ServerKey
from tests.fakes.clock import FakeClock
from tests.fakes.policy_server import FakePolicyServer
from tests.fakes.servers import OurServer, RemoteServer, Servers

OURS, REMOTE, POLICY = "ours.test:8448", "remote.test:8448", "policy.test:8448"
ALICE, EVE = f"@alice:{REMOTE}", f"@eve:{REMOTE}"
VERSIONS = pytest.mark.parametrize("version", ["1", "6", "11", "12"])


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy_servers, "SECOND_ATTEMPT_SECONDS", 0)


@dataclass
class Scene:
    """Our server, whose bob has joined a room of a remote server that uses a policy server."""

    servers: Servers
    ours: OurServer
    remote: RemoteServer
    policy: FakePolicyServer
    room: RoomFactory
    bob: str

    async def receive(self, *events: Event) -> None:
        """Have the remote server send events, none of which is refused as such."""
        results = await self.remote.transaction(OURS, events)
        assert results == {event.event_id: {} for event in events}

    async def verdict(self, event: Event) -> Verdict | None:
        stored = await self.ours.event(event.event_id)
        return None if stored is None else stored.verdict

    async def reason(self, event: Event) -> str:
        stored = await self.ours.wait_for(event.event_id)
        return await self.ours.get(Database).read(event_graph.rejection_reason, stored.event_nid) or ""

    async def extremities(self) -> set[str]:
        return {e.event_id for e in (await self.ours.head(self.room.room_id)).extremities}

    def signed_message(self, body: str = "hello", sender: str = ALICE) -> Event:
        return self.policy.signed(self.room.send(sender, body), self.room)


@contextlib.asynccontextmanager
async def scene(servers: Servers, version: str = "11", *, patrolled: bool = True) -> AsyncIterator[Scene]:
    async with servers:
        ours = await servers.ours(OURS)
        room = RoomFactory(version, REMOTE)
        room.create("alice")
        room.join(EVE)
        remote = servers.remote(REMOTE, room)
        policy = FakePolicyServer(servers, POLICY, version, room)
        if patrolled:
            room.join(policy.user)
        room.state_event(ALICE, "m.room.policy", policy.content)
        bob = await ours.user("bob")
        await ours.join(bob, room.room_id, REMOTE)
        yield Scene(servers, ours, remote, policy, room, bob)


def play(servers: Servers, story: Callable[[Scene], Awaitable[None]], version: str = "11", **options: bool) -> None:
    async def run() -> None:
        async with scene(servers, version, **options) as at:
            await story(at)

    asyncio.run(run())


# -- what comes in -----------------------------------------------------------------------------------------------------


@VERSIONS
def test_what_is_signed_is_not_asked_about(servers: Servers, version: str) -> None:
    async def story(at: Scene) -> None:
        message = at.signed_message()
        await at.receive(message)
        assert await at.verdict(message) == Verdict.ACCEPTED
        assert at.policy.asked == []

    play(servers, story, version)


@VERSIONS
def test_the_policy_server_is_asked_about_what_it_has_not_signed(servers: Servers, version: str) -> None:
    async def story(at: Scene) -> None:
        message = at.room.send(ALICE)
        await at.receive(message)
        stored = await at.ours.wait_for(message.event_id)
        assert stored.visible
        assert await at.extremities() == {message.event_id}
        # It is shown the whole event, and its signature is passed on to whoever gets the event from us.
        assert at.policy.asked == [message.pdu]
        assert stored.event.pdu == at.policy.signed(message).pdu
        path = f"/_matrix/federation/v1/event/{message.event_id}"
        shown = (await at.remote.request("GET", OURS, path)).json()["pdus"][0]
        assert set(shown["signatures"][POLICY]) == {"ed25519:policy_server"}
        await at.receive(message)
        assert len(at.policy.asked) == 1

    play(servers, story, version)


@VERSIONS
def test_what_it_refuses_is_soft_failed(servers: Servers, version: str) -> None:
    async def story(at: Scene) -> None:
        before = at.signed_message("before")
        await at.receive(before)
        at.policy.refuse()
        message, topic = at.room.send(EVE, "spam"), at.room.state_event(ALICE, "m.room.topic", {"topic": "spam"})
        await at.receive(message, topic)
        assert await at.verdict(message) == await at.verdict(topic) == Verdict.SOFT_FAILED
        assert "Looks like spam" in await at.reason(message)
        assert await at.extremities() == {before.event_id}
        assert ("m.room.topic", "") not in (await at.ours.head(at.room.room_id)).state
        # What follows it and is signed is taken as it is, and brings it along.
        after = at.signed_message("after")
        await at.receive(after)
        assert await at.verdict(after) == Verdict.ACCEPTED
        assert after.event_id in await at.extremities()
        assert (await at.ours.head(at.room.room_id)).state["m.room.topic", ""] == topic.event_id
        assert at.policy.asked_about(message) == 1

    play(servers, story, version)


def test_it_is_not_asked_about_what_is_not_allowed(servers: Servers) -> None:
    async def story(at: Scene) -> None:
        forbidden = at.room.state_event(EVE, "m.room.topic", {"topic": "mine"})
        results = await at.remote.transaction(OURS, [forbidden])
        assert "error" in results[forbidden.event_id]
        assert await at.verdict(forbidden) == Verdict.REJECTED
        tip = at.signed_message("before")
        ban = at.policy.signed(at.room.ban(ALICE, EVE), at.room)
        evasion = at.room.send(EVE, "after all", prev_events=[tip])
        await at.receive(tip, ban)
        await at.receive(evasion)
        assert await at.verdict(evasion) == Verdict.SOFT_FAILED
        assert at.policy.asked == []

    play(servers, story)


def test_a_signature_does_not_make_up_for_what_is_not_allowed(servers: Servers) -> None:
    async def story(at: Scene) -> None:
        forbidden = at.policy.signed(at.room.state_event(EVE, "m.room.topic", {"topic": "mine"}), at.room)
        assert "error" in (await at.remote.transaction(OURS, [forbidden]))[forbidden.event_id]
        assert await at.verdict(forbidden) == Verdict.REJECTED

    play(servers, story)


@pytest.mark.parametrize("wrong", ["another key", "another event", "garbage", "another name"])
def test_a_wrong_signature_is_as_good_as_none(servers: Servers, wrong: str) -> None:
    async def story(at: Scene) -> None:
        at.policy.refuse()
        message = at.room.send(ALICE)
        signature = at.policy.key.sign(b"another event")
        if wrong == "another key":
            forger = ServerKey("forger", "policy_server")
            forger.server_name = POLICY
            signature = add_signature(message, forger).pdu["signatures"][POLICY]["ed25519:policy_server"]
        signatures = {POLICY: {"ed25519:policy_server": "?" if wrong == "garbage" else signature}}
        if wrong == "another name":
            signatures = {"other.test": at.policy.signed(message).pdu["signatures"][POLICY]}
        pdu = {**message.pdu, "signatures": {**message.pdu["signatures"], **signatures}}
        await at.receive(Event(pdu, message.version, message.event_id, message.room_id))
        assert await at.verdict(message) == Verdict.SOFT_FAILED
        assert len(at.policy.asked) == 1

    play(servers, story)


def test_an_answer_with_a_wrong_signature_is_a_refusal(servers: Servers) -> None:
    async def story(at: Scene) -> None:
        at.policy.rotate()  # without the room's knowing
        message = at.room.send(ALICE)
        await at.receive(message)
        assert await at.verdict(message) == Verdict.SOFT_FAILED
        assert "key" in await at.reason(message)

    play(servers, story)


def test_a_new_key(servers: Servers) -> None:
    """An event that was signed before the room changed the key is signed anew."""

    async def story(at: Scene) -> None:
        tip = list(at.room.extremities)
        old = at.signed_message("old", EVE)
        at.policy.rotate()
        await at.receive(at.room.state_event(ALICE, "m.room.policy", at.policy.content, prev_events=tip))
        await at.receive(old)
        assert await at.verdict(old) == Verdict.ACCEPTED
        stored = await at.ours.wait_for(old.event_id)
        assert is_recommended(stored.event, PolicyServer(POLICY, at.policy.content["public_keys"]["ed25519"]))
        assert at.policy.asked == [old.pdu]

    play(servers, story)


def test_a_new_key_while_the_old_one_signs(servers: Servers) -> None:
    async def story(at: Scene) -> None:
        asked, held = at.policy.hold()
        tip = list(at.room.extremities)
        message = at.room.send(EVE, prev_events=tip)
        receiving = asyncio.create_task(at.receive(message))
        await asked.wait()
        at.policy.rotate()
        await at.receive(at.room.state_event(ALICE, "m.room.policy", at.policy.content, prev_events=tip))
        held.set()
        await receiving
        assert at.policy.asked_about(message) == 2
        stored = await at.ours.wait_for(message.event_id)
        assert stored.verdict == Verdict.ACCEPTED
        assert stored.event.pdu == at.policy.signed(message).pdu

    play(servers, story)


def test_a_server_without_a_joined_user_is_not_asked(servers: Servers) -> None:
    async def story(at: Scene) -> None:
        message = at.room.send(ALICE)
        await at.receive(message)
        assert await at.verdict(message) == Verdict.ACCEPTED
        assert at.policy.asked == []
        # As soon as it joins, it is the policy server; and no more once it has left, of which it is asked as well.
        joined, after = at.room.join(at.policy.user), at.room.send(ALICE)
        await at.receive(joined, after)
        assert at.policy.asked == [after.pdu]
        left = at.policy.signed(at.room.leave(at.policy.user), at.room)
        alone = at.room.send(ALICE)
        await at.receive(left, alone)
        assert await at.verdict(alone) == Verdict.ACCEPTED
        assert at.policy.asked == [after.pdu]

    play(servers, story, patrolled=False)


@pytest.mark.parametrize("content", [{}, {"via": POLICY}, {"via": 5, "public_keys": "x"}])
def test_a_room_can_stop_using_it(servers: Servers, content: JsonObject) -> None:
    async def story(at: Scene) -> None:
        at.servers.network.split(OURS, POLICY)
        off, message = at.room.state_event(ALICE, "m.room.policy", content), at.room.send(ALICE)
        await at.receive(off, message)
        assert await at.verdict(off) == await at.verdict(message) == Verdict.ACCEPTED
        assert at.servers.network.requests(POLICY, "sign") == []

    play(servers, story)


def test_a_redacted_choice_is_none(servers: Servers) -> None:
    async def story(at: Scene) -> None:
        chosen = at.room.state["m.room.policy", ""]
        redaction = at.policy.signed(at.room.redact(ALICE, chosen), at.room)
        await at.receive(redaction)
        message = at.room.send(ALICE)
        await at.receive(message)
        assert await at.verdict(message) == Verdict.ACCEPTED
        assert at.policy.asked == []

    play(servers, story)


def test_the_choice_takes_effect_within_a_transaction(servers: Servers) -> None:
    async def story(at: Scene) -> None:
        first = at.room.send(ALICE, "free")
        on, second = at.room.state_event(ALICE, "m.room.policy", at.policy.content), at.room.send(ALICE, "checked")
        off, third = at.room.state_event(ALICE, "m.room.policy", {}), at.room.send(ALICE, "free again")
        await at.receive(first, on, second, off, third)
        for event in (first, on, second, off, third):
            assert await at.verdict(event) == Verdict.ACCEPTED
        assert at.policy.asked_about(second) == 1
        assert at.policy.asked_about(first) == at.policy.asked_about(on) == at.policy.asked_about(off) == 0

    async def run() -> None:
        async with scene(servers) as at:
            await at.receive(at.room.state_event(ALICE, "m.room.policy", {}))
            await story(at)

    asyncio.run(run())


def test_a_room_that_changes_its_mind_all_the_time(servers: Servers) -> None:
    """Whoever may set the policy cannot make us ask without end."""

    async def story(at: Scene) -> None:
        events = []
        for number in range(20):
            at.policy.rotate()
            events += [at.room.state_event(ALICE, "m.room.policy", at.policy.content)]
            events += [at.room.send(ALICE, str(number))]
        await at.receive(*events)
        assert len(at.policy.asked) <= policy_servers.ROUNDS_MAX * 20
        assert {await at.verdict(event) for event in events[::2]} == {Verdict.ACCEPTED}
        # The last key is the only one that the policy server signs with.
        assert {await at.verdict(event) for event in events[1:-1:2]} == {Verdict.SOFT_FAILED}

    play(servers, story)


def test_a_chain_of_unsigned_events_is_asked_about_side_by_side(servers: Servers) -> None:
    async def story(at: Scene) -> None:
        async def judge(_: JsonObject) -> None:
            for _ in range(20):
                await asyncio.sleep(0)

        at.policy.judge = judge
        events = [at.room.send(ALICE, str(number)) for number in range(49)]
        signed = at.signed_message("last")
        await at.receive(*events, signed)
        for event in (*events, signed):
            assert await at.verdict(event) == Verdict.ACCEPTED
        positions = [(await at.ours.wait_for(event.event_id)).stream_position for event in (*events, signed)]
        assert positions == sorted(positions)
        assert len(at.policy.asked) == 49
        assert 1 < at.policy.at_once_max <= policy_servers.REQUESTS_AT_ONCE_MAX

    play(servers, story)


def test_events_that_were_missed_are_checked_as_well(servers: Servers) -> None:
    async def story(at: Scene) -> None:
        at.policy.refuse(containing="spam")
        spam, message, last = at.room.send(EVE, "spam"), at.room.send(ALICE, "1"), at.signed_message("2")
        await at.receive(last)
        assert await at.verdict(spam) == Verdict.SOFT_FAILED
        assert await at.verdict(message) == await at.verdict(last) == Verdict.ACCEPTED

    play(servers, story)


def test_history_is_not_asked_about(servers: Servers) -> None:
    async def story(at: Scene) -> None:
        assert await at.ours.backfill(at.room.room_id)
        first = next(iter(at.room.events.values()))
        assert await at.verdict(first) == Verdict.ACCEPTED
        assert at.policy.asked == []

    play(servers, story)


# -- how it is asked ---------------------------------------------------------------------------------------------------


def test_others_write_while_the_policy_server_thinks(servers: Servers) -> None:
    async def story(at: Scene) -> None:
        asked, held = at.policy.hold()
        tip = at.signed_message("tip")
        await at.receive(tip)
        slow = asyncio.create_task(at.receive(at.room.send(EVE, "slow", prev_events=[tip])))
        await asked.wait()
        quick = at.policy.signed(at.room.send(ALICE, "quick", prev_events=[tip]), at.room)
        await at.receive(quick)
        assert await at.extremities() == {quick.event_id}
        assert not slow.done()
        held.set()
        await slow
        assert len(await at.extremities()) == 2

    play(servers, story)


def test_a_policy_server_that_cannot_be_reached(servers: Servers) -> None:
    async def story(at: Scene) -> None:
        at.servers.network.split(OURS, POLICY)
        unsigned, signed = at.room.send(ALICE, "unsigned"), at.signed_message("signed")
        await at.receive(unsigned, signed)
        assert await at.verdict(unsigned) == Verdict.SOFT_FAILED
        assert await at.verdict(signed) == Verdict.ACCEPTED
        # It was given a second chance, and is left alone then.
        assert len(at.servers.network.requests(POLICY, "sign")) == 2
        more = [at.room.send(ALICE, str(number)) for number in range(5)]
        await at.receive(*more)
        assert {await at.verdict(event) for event in more} == {Verdict.SOFT_FAILED}
        assert len(at.servers.network.requests(POLICY, "sign")) == 2

    play(servers, story)


class Answers:
    """A ``PolicySigner`` that says what it is told, one after the other."""

    def __init__(self, *answers: JsonObject | Exception | asyncio.Event) -> None:
        self.answers = list(answers)
        self.asked = 0

    async def ask_policy_server_to_sign(self, destination: str, event: bytes) -> JsonObject:
        self.asked += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, asyncio.Event):
            await answer.wait()
            return {}
        if isinstance(answer, Exception):
            raise answer
        return answer


KEY = ServerKey(POLICY, "policy_server")
DOWN = RemoteUnreachable(POLICY, "no connection")


def asking(answers: Answers, clock: FakeClock) -> PolicyServers:
    # What is asked outside of a room's turn takes neither events nor rules.
    return PolicyServers(answers, None, None, clock)  # type: ignore[arg-type]


def an_event() -> tuple[Event, PolicyServer, JsonObject]:
    """An event, the policy server of its room, and what that answers."""
    room = RoomFactory()
    room.create("alice")
    event = room.send("alice")
    server = PolicyServer(POLICY, unpadded_base64(bytes(KEY.verify_key)))
    return event, server, {POLICY: add_signature(event, KEY).pdu["signatures"][POLICY]}


def test_who_fails_is_left_alone_for_longer_each_time() -> None:
    async def story() -> None:
        clock, answers = FakeClock(), Answers(DOWN)
        policy = asking(answers, clock)
        event, server, answer = an_event()
        for pause_ms in (2_000, 4_000, 8_000, 16_000, 30_000, 30_000):
            asked = answers.asked
            for wait_ms in (0, pause_ms - 1):
                clock.advance(wait_ms)
                with pytest.raises(RemoteFailed):
                    await policy.sign(server, event)
            assert answers.asked == asked + 1
            clock.advance(1)
        answers.answers = [answer, DOWN]
        assert is_recommended(await policy.sign(server, event), server)
        with pytest.raises(RemoteFailed):
            await policy.sign(server, event)
        clock.advance(2_000)
        answers.answers = [answer]
        await policy.sign(server, event)

    asyncio.run(story())


@pytest.mark.parametrize(
    "error", [DOWN, RemoteRefused(POLICY, 502, "M_UNKNOWN", ""), RemoteRefused(POLICY, 429, "M_LIMIT_EXCEEDED", "")]
)
def test_another_server_s_event_has_a_second_chance(error: Exception) -> None:
    async def story() -> None:
        event, server, answer = an_event()
        answers = Answers(error, answer)
        opinions = Opinions()
        await asking(answers, FakeClock()).ask_about(server, [event], opinions)
        opinion = opinions.by_event_id[event.event_id]
        assert opinion.objection is None
        assert is_recommended(opinion.event, server)
        assert answers.asked == 2

    asyncio.run(story())


def test_a_refusal_is_final() -> None:
    async def story() -> None:
        event, server, answer = an_event()
        answers = Answers(RemoteRefused(POLICY, 400, "M_FORBIDDEN", "spam"), answer)
        opinions = Opinions()
        await asking(answers, FakeClock()).ask_about(server, [event], opinions)
        objection = opinions.objection_to(event)
        assert isinstance(objection, NotRecommended)
        assert opinions.by_event_id[event.event_id].event is event
        assert answers.asked == 1

    asyncio.run(story())


def test_nobody_waits_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy_servers, "SECONDS_MAX", 0.01)

    async def story() -> None:
        event, server, _ = an_event()
        policy = asking(Answers(asyncio.Event()), FakeClock())
        with pytest.raises(RemoteTimedOut):
            await policy.sign(server, event)
        opinions = Opinions()
        await policy.ask_about(server, [event], opinions)
        assert isinstance(opinions.objection_to(event), RemoteTimedOut)

    asyncio.run(story())


@pytest.mark.parametrize(
    ("status", "errcode", "kind", "answered"),
    [
        (400, "M_FORBIDDEN", NotRecommended, (400, "M_FORBIDDEN", "spam")),
        (403, "M_FORBIDDEN", NotRecommended, (403, "M_FORBIDDEN", "spam")),
        (400, "M_BAD_JSON", NotRecommended, (400, "M_BAD_JSON", "spam")),
        (404, "M_NOT_FOUND", NotRecommended, (404, "M_NOT_FOUND", "spam")),
        (429, "M_LIMIT_EXCEEDED", LimitExceeded, (429, "M_LIMIT_EXCEEDED", "spam")),
        # What would mean something else to the client than that its event is refused.
        (401, "M_UNKNOWN_TOKEN", RemoteFailed, (502, "M_UNKNOWN", None)),
        (400, "M_UNKNOWN_TOKEN", RemoteFailed, (502, "M_UNKNOWN", None)),
        (404, "M_UNRECOGNIZED", RemoteFailed, (502, "M_UNKNOWN", None)),
        (500, "M_FORBIDDEN", RemoteFailed, (502, "M_UNKNOWN", None)),
    ],
)
def test_what_our_user_is_told(
    status: int, errcode: str, kind: type[Exception], answered: tuple[int, str, str | None]
) -> None:
    async def story() -> None:
        event, server, _ = an_event()
        refusal = RemoteRefused(POLICY, status, errcode, "spam", retry_after_ms=7)
        with pytest.raises(kind) as caught:
            await asking(Answers(refusal), FakeClock()).sign(server, event)
        error = caught.value
        assert isinstance(error, NotRecommended | LimitExceeded | RemoteFailed)
        body = error.body()
        assert (error.status, body["errcode"]) == answered[:2]
        assert answered[2] is None or body["error"] == answered[2]
        assert body.get("retry_after_ms") == (7 if status == 429 else None)

    asyncio.run(story())
