"""Our users' events, and those that we take into our rooms for other servers, in rooms that use a policy server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from homeserver.errors import Forbidden, MatrixError, NotRecommended, RemoteFailed
from homeserver.governance.roles import Role
from homeserver.graph.send import Sender
from homeserver.membership.invitations import Invitations
from homeserver.membership.membership import Memberships
from homeserver.membership.roles import Roles
from homeserver.protocol.compose import add_signature, finish_template
from homeserver.protocol.events import Event, EventDraft
from homeserver.protocol.json_types import JsonObject
from homeserver.protocol.policy_servers import is_recommended, policy_server_of
from homeserver.protocol.room_versions import ROOM_VERSIONS
from homeserver.storage.appends import TransactionKey
from homeserver.storage.event_graph import StoredEvent, Verdict
from tests.factories.rooms import server_key
from tests.fakes.policy_server import FakePolicyServer
from tests.fakes.servers import OurServer, RemoteServer, Servers

OURS, REMOTE, POLICY = "ours.test:8448", "remote.test:8448", "policy.test:8448"
V1, V2 = "/_matrix/federation/v1", "/_matrix/federation/v2"
ZOE = f"@zoe:{REMOTE}"


@dataclass
class Scene:
    """Our server with a room of alice's, who owns it, that bob is in; and with a policy server, which it uses."""

    servers: Servers
    ours: OurServer
    remote: RemoteServer
    policy: FakePolicyServer
    alice: str
    bob: str
    room_id: str = ""

    async def send(self, body: str = "hello", sender: str = "", txn: TransactionKey | None = None) -> StoredEvent:
        draft = EventDraft("m.room.message", sender or self.alice, {"body": body})
        return await self.ours.get(Sender).send(self.room_id, draft, txn)

    async def set_state(self, event_type: str, content: JsonObject, sender: str = "", key: str = "") -> str:
        return await self.ours.send_state(sender or self.alice, self.room_id, event_type, content, key)

    async def extremities(self) -> set[str]:
        return {e.event_id for e in (await self.ours.head(self.room_id)).extremities}

    def is_recommended(self, event: Event) -> bool:
        server = policy_server_of(self.policy.content, {POLICY: 1})
        assert server is not None
        return is_recommended(event, server)

    async def levels(self) -> dict[str, int]:
        content = await self.ours.get_state(await self.ours.head(self.room_id), "m.room.power_levels")
        return dict(content["users"])

    async def handshake(self, remote: RemoteServer, kind: str, user_id: str, version: str = "11") -> httpx.Response:
        """make_join and send_join, or their like."""
        uri = f"{V1}/make_{kind}/{quote(self.room_id)}/{quote(user_id)}?ver={version}"
        response = await remote.request("GET", OURS, uri)
        assert response.status_code == 200, response.text
        signer = server_key(remote.name)
        event = finish_template(response.json()["event"], ROOM_VERSIONS[version], signer, 1_700_000_000_000, "chosen")
        uri = f"{V1 if kind == 'knock' else V2}/send_{kind}/{quote(self.room_id)}/{quote(event.event_id)}"
        return await remote.request("PUT", OURS, uri, event.pdu)


@contextlib.asynccontextmanager
async def scene(servers: Servers, version: str = "11") -> AsyncIterator[Scene]:
    async with servers:
        ours = await servers.ours(OURS)
        policy = FakePolicyServer(servers, POLICY, version)
        at = Scene(servers, ours, servers.remote(REMOTE), policy, await ours.user("alice"), await ours.user("bob"))
        at.room_id = await ours.room(at.alice, version=version)
        await ours.join(at.bob, at.room_id)
        assert (await at.handshake(policy.remote, "join", policy.user, version)).status_code == 200
        await at.set_state("m.room.policy", policy.content)
        assert policy.asked == []
        yield at


def play(servers: Servers, story: Callable[[Scene], Awaitable[None]], version: str = "11") -> None:
    async def run() -> None:
        async with scene(servers, version) as at:
            await story(at)

    asyncio.run(run())


# -- our users ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["1", "6", "11", "12"])
def test_an_event_is_signed_before_it_is_sent(servers: Servers, version: str) -> None:
    async def story(at: Scene) -> None:
        tip = await at.extremities()
        sent = await at.send()
        assert at.is_recommended(sent.event)
        assert set(sent.event.prev_events) == tip
        assert await at.extremities() == {sent.event_id}
        (asked,) = at.policy.asked
        assert {**asked, "signatures": {}} == {**sent.event.pdu, "signatures": {}}
        assert set(asked["signatures"]) == {OURS}
        # The members of the room get it with the signature.
        stored = await at.ours.event(sent.event_id)
        assert stored is not None
        assert at.is_recommended(stored.event)

    play(servers, story, version)


def test_a_refusal_is_passed_on_and_nothing_is_sent(servers: Servers) -> None:
    async def story(at: Scene) -> None:
        tip = await at.extremities()
        at.policy.refuse(400, "M_FORBIDDEN", "The message appears to contain possible spam")
        with pytest.raises(NotRecommended) as caught:
            await at.send()
        assert caught.value.status == 400
        body = {"errcode": "M_FORBIDDEN", "error": "The message appears to contain possible spam"}
        assert caught.value.body() == body
        assert await at.extremities() == tip
        assert "hello" not in str(at.policy.remote.received)
        # What the rules forbid is not even asked about.
        at.policy.asked.clear()
        with pytest.raises(Forbidden):
            await at.set_state("m.room.topic", {"topic": "mine"}, at.bob)
        assert at.policy.asked == []

    play(servers, story)


def test_a_room_whose_policy_server_is_gone_can_turn_it_off(servers: Servers) -> None:
    async def story(at: Scene) -> None:
        at.servers.network.split(OURS, POLICY)
        with pytest.raises(RemoteFailed):
            await at.send()
        await at.set_state("m.room.policy", {})
        sent = await at.send()
        assert set(sent.event.pdu["signatures"]) == {OURS}

    play(servers, story)


def test_a_key_that_the_room_does_not_know_yet(servers: Servers) -> None:
    async def story(at: Scene) -> None:
        at.policy.rotate()
        with pytest.raises(Forbidden, match="key"):
            await at.send()
        await at.set_state("m.room.policy", at.policy.content)
        assert at.is_recommended((await at.send()).event)

    play(servers, story)


def test_others_write_meanwhile_and_the_event_becomes_a_branch(servers: Servers) -> None:
    async def story(at: Scene) -> None:
        asked, held = at.policy.hold()
        topic = asyncio.create_task(at.set_state("m.room.topic", {"topic": "t"}))
        await asked.wait()
        # m.room.policy needs no signature: it is one that can be sent while the policy server thinks.
        meanwhile = await at.set_state("m.room.policy", {**at.policy.content, "note": 1})
        assert not topic.done()
        held.set()
        topic_id = await topic
        assert await at.extremities() == {topic_id, meanwhile}
        head = await at.ours.head(at.room_id)
        assert head.state["m.room.topic", ""] == topic_id
        assert head.state["m.room.policy", ""] == meanwhile
        merged = await at.send()
        assert set(merged.event.prev_events) == {topic_id, meanwhile}
        assert len(at.policy.asked) == 2

    play(servers, story)


def test_the_room_stops_using_it_meanwhile(servers: Servers) -> None:
    async def story(at: Scene) -> None:
        asked, held = at.policy.hold()
        message = asyncio.create_task(at.send())
        await asked.wait()
        await at.set_state("m.room.policy", {})
        held.set()
        assert (await message).verdict == Verdict.ACCEPTED

    play(servers, story)


def test_the_room_takes_another_key_meanwhile(servers: Servers) -> None:
    async def story(at: Scene) -> None:
        asked, held = at.policy.hold()
        message = asyncio.create_task(at.send())
        await asked.wait()
        at.policy.rotate()
        await at.set_state("m.room.policy", at.policy.content)
        held.set()
        assert at.is_recommended((await message).event)

    play(servers, story)


def test_who_is_banned_meanwhile_sends_nothing(servers: Servers) -> None:
    async def story(at: Scene) -> None:
        asked, held = at.policy.hold()
        message = asyncio.create_task(at.send("late", at.bob))
        await asked.wait()
        at.policy.judge = None
        await at.ours.get(Memberships).ban(at.alice, at.room_id, at.bob)
        tip = await at.extremities()
        held.set()
        with pytest.raises(Forbidden):
            await message
        assert await at.extremities() == tip

    play(servers, story)


def test_a_repeated_request_is_harmless(servers: Servers) -> None:
    async def story(at: Scene) -> None:
        txn = at.ours.get(Sender).transaction_key(at.alice, "DEVICE", "send", "1")
        first, second = await asyncio.gather(at.send(txn=txn), at.send(txn=txn))
        assert first.event_id == second.event_id
        at.policy.asked.clear()
        at.policy.refuse()
        assert (await at.send(txn=txn)).event_id == first.event_id
        assert at.policy.asked == []
        assert await at.extremities() == {first.event_id}

    play(servers, story)


def test_a_request_that_is_refused_while_its_repetition_was_sent(servers: Servers) -> None:
    async def story(at: Scene) -> None:
        txn = at.ours.get(Sender).transaction_key(at.alice, "DEVICE", "send", "1")
        asked, held = at.policy.hold(JSONResponse({"errcode": "M_FORBIDDEN", "error": "no"}, 400))
        slow = asyncio.create_task(at.send(txn=txn))
        await asked.wait()
        at.policy.judge = None
        sent = await at.send(txn=txn)
        held.set()
        assert (await slow).event_id == sent.event_id

    play(servers, story)


def test_what_the_policy_server_passes_on_itself_is_not_sent_twice(servers: Servers) -> None:
    """It may show the event to others before we have its answer, and they to us."""

    async def story(at: Scene) -> None:
        async def judge(pdu: JsonObject) -> None:
            at.policy.judge = None
            event = at.policy.signed(Event(pdu, ROOM_VERSIONS["11"], "$", at.room_id))
            results = await at.policy.remote.transaction(OURS, [event])
            assert list(results.values()) == [{}]

        at.policy.judge = judge
        txn = at.ours.get(Sender).transaction_key(at.alice, "DEVICE", "send", "1")
        sent = await at.send(txn=txn)
        assert sent.verdict == Verdict.ACCEPTED
        assert await at.extremities() == {sent.event_id}

    play(servers, story)


def test_the_last_owner_is_still_protected(servers: Servers) -> None:
    async def story(at: Scene) -> None:
        await at.ours.get(Roles).give(at.alice, at.room_id, at.bob, Role.OWNER)
        memberships = at.ours.get(Memberships)
        held = at.servers.network.hold(OURS, POLICY)
        leaving = [asyncio.create_task(memberships.leave(user, at.room_id)) for user in (at.alice, at.bob)]
        while len(at.servers.network.requests(POLICY, "sign")) < 3:  # noqa: ASYNC110 - nobody tells when both are asked
            await asyncio.sleep(0)
        held.set()
        outcomes = await asyncio.gather(*leaving, return_exceptions=True)
        (refusal,) = [outcome for outcome in outcomes if outcome is not None]
        assert isinstance(refusal, Forbidden)
        assert refusal.extra["reason"] == "last_owner"

    play(servers, story)


def test_two_changes_of_roles_at_once_both_take_effect(servers: Servers) -> None:
    async def story(at: Scene) -> None:
        carol = await at.ours.user("carol")
        await at.ours.join(carol, at.room_id)
        roles = at.ours.get(Roles)
        await asyncio.gather(*(roles.give(at.alice, at.room_id, user, Role.MODERATOR) for user in (at.bob, carol)))
        assert await at.levels() == {at.alice: 100, at.bob: 50, carol: 50}
        # A rehearsal is nothing that will be sent.
        at.policy.asked.clear()
        assert await roles.give(at.alice, at.room_id, at.bob, Role.OWNER, is_rehearsal=True) is None
        assert at.policy.asked == []

    play(servers, story)


def test_every_way_to_send_asks(servers: Servers) -> None:
    async def story(at: Scene) -> None:
        memberships, sender = at.ours.get(Memberships), at.ours.get(Sender)
        carol, renamed = await at.ours.user("carol"), {"membership": "join", "displayname": "Bobby"}
        message = await at.send()
        ways: list[Callable[[], Awaitable[Any]]] = [
            lambda: sender.redact(at.room_id, EventDraft("m.room.redaction", at.alice, {}, redacts=message.event_id)),
            lambda: at.set_state("m.room.topic", {"topic": "t"}),
            lambda: at.set_state("m.room.policy", at.policy.content, key="other"),
            lambda: at.ours.get(Roles).give(at.alice, at.room_id, at.bob, Role.MODERATOR),
            lambda: memberships.invite(at.alice, at.room_id, carol),
            lambda: at.ours.get(Invitations).revoke(at.alice, at.room_id, carol),
            lambda: at.ours.join(carol, at.room_id),
            lambda: memberships.send_member(at.room_id, EventDraft("m.room.member", at.bob, renamed, at.bob)),
            lambda: memberships.leave(carol, at.room_id),
            lambda: memberships.kick(at.alice, at.room_id, at.bob),
            lambda: memberships.ban(at.alice, at.room_id, at.bob),
            lambda: memberships.unban(at.alice, at.room_id, at.bob),
            lambda: memberships.invite(at.alice, at.room_id, ZOE),
        ]
        for number, way in enumerate(ways):
            at.policy.asked.clear()
            await way()
            assert len(at.policy.asked) == 1, number
            (event_id,) = await at.extremities()
            stored = await at.ours.event(event_id)
            assert stored is not None
            assert at.is_recommended(stored.event), number

    play(servers, story)


def test_several_events_at_once(servers: Servers) -> None:
    async def story(at: Scene) -> None:
        drafts = [EventDraft(f"m.room.{name}", at.alice, {name: "x"}, "") for name in ("name", "topic")]
        name, topic = await at.ours.get(Sender).send_all(at.room_id, drafts)
        assert topic.event.prev_events == (name.event_id,)
        assert at.is_recommended(name.event)
        assert at.is_recommended(topic.event)
        # All or nothing.
        at.policy.refuse(containing="body")
        tip = await at.extremities()
        with pytest.raises(NotRecommended):
            await at.ours.get(Sender).send_all(
                at.room_id,
                [EventDraft("m.room.name", at.alice, {"name": "y"}, ""), EventDraft("m.x", at.alice, {"body": ""}, "")],
            )
        assert await at.extremities() == tip

    play(servers, story)


def test_an_invitation_is_signed_before_the_other_server_hears_of_it(servers: Servers) -> None:
    async def story(at: Scene) -> None:
        at.policy.refuse()
        with pytest.raises(NotRecommended):
            await at.ours.get(Memberships).invite(at.alice, at.room_id, ZOE)
        assert at.servers.network.requests(REMOTE, "invite") == []
        at.policy.judge = None
        await at.ours.get(Memberships).invite(at.alice, at.room_id, ZOE)
        assert set(at.remote.invitation["event"]["signatures"]) == {OURS, POLICY}
        (event_id,) = await at.extremities()
        stored = await at.ours.event(event_id)
        assert stored is not None
        assert set(stored.event.pdu["signatures"]) == {OURS, POLICY, REMOTE}

    play(servers, story)


def test_a_user_of_the_policy_server_can_be_invited(servers: Servers) -> None:
    async def story(at: Scene) -> None:
        async def invite(request: Request) -> Response:
            pdu = (await request.json())["event"]
            event = Event({**pdu, "signatures": {}}, ROOM_VERSIONS["11"], "$", at.room_id)
            return JSONResponse({"event": add_signature(event, server_key(POLICY)).pdu})

        at.policy.remote.replaced["invite"] = invite  # which returns its own signature alone
        await at.ours.get(Memberships).invite(at.alice, at.room_id, f"@second:{POLICY}")
        (event_id,) = await at.extremities()
        stored = await at.ours.event(event_id)
        assert stored is not None
        assert set(stored.event.pdu["signatures"][POLICY]) == {"ed25519:1", "ed25519:policy_server"}
        assert at.is_recommended(stored.event)

    play(servers, story)


def test_an_account_can_be_closed_all_the_same(servers: Servers) -> None:
    async def story(at: Scene) -> None:
        other = await at.ours.room(at.bob)
        at.policy.refuse()
        await at.ours.get(Memberships).leave_all(at.bob)
        assert await at.ours.membership(at.room_id, at.bob) == "join"
        assert await at.ours.membership(other, at.bob) == "leave"

    play(servers, story)


# -- users of other servers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["6", "11", "12"])
def test_a_join_through_us_is_signed_too(servers: Servers, version: str) -> None:
    async def story(at: Scene) -> None:
        response = await at.handshake(at.remote, "join", ZOE, version)
        assert response.status_code == 200, response.text
        assert set(response.json()["event"]["signatures"]) == {OURS, REMOTE, POLICY}
        assert await at.ours.membership(at.room_id, ZOE) == "join"
        assert len(at.policy.asked) == 1

    play(servers, story, version)


def test_a_join_that_the_policy_server_refuses(servers: Servers) -> None:
    async def story(at: Scene) -> None:
        tip = await at.extremities()
        at.policy.refuse(403, "M_FORBIDDEN", "Not you")
        response = await at.handshake(at.remote, "join", ZOE)
        assert (response.status_code, response.json()) == (403, {"errcode": "M_FORBIDDEN", "error": "Not you"})
        assert await at.ours.membership(at.room_id, ZOE) is None
        assert await at.extremities() == tip
        # It may change its mind.
        at.policy.judge = None
        assert (await at.handshake(at.remote, "join", ZOE)).status_code == 200
        at.policy.refuse()
        assert (await at.handshake(at.remote, "leave", ZOE)).status_code == 400
        assert await at.ours.membership(at.room_id, ZOE) == "join"

    play(servers, story)


def test_a_join_that_the_policy_server_cannot_be_asked_about(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("homeserver.graph.policy_servers.SECOND_ATTEMPT_SECONDS", 0)

    async def story(at: Scene) -> None:
        at.servers.network.split(OURS, POLICY)
        response = await at.handshake(at.remote, "join", ZOE)
        assert response.status_code == 502
        assert await at.ours.membership(at.room_id, ZOE) is None

    play(servers, story)


def test_errors_are_those_of_matrix(servers: Servers) -> None:
    """Whatever the policy server answers, our user gets an error that says so."""

    async def story(at: Scene) -> None:
        for status, errcode in ((401, "M_UNKNOWN_TOKEN"), (404, "M_UNRECOGNIZED"), (418, "?"), (302, "x")):
            at.policy.refuse(status, errcode)
            with pytest.raises(MatrixError) as caught:
                await at.send()
            assert caught.value.status == 502

    play(servers, story)
