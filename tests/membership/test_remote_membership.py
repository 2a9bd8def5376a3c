"""Our users and rooms of other servers: joining, rejecting, being uninvited, inviting; also against hostile servers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
from sqlalchemy import update
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from homeserver.errors import (
    Forbidden,
    IncompatibleRoomVersion,
    InviteBlocked,
    MatrixError,
    NotFound,
    RemoteFailed,
    UnsupportedRoomVersion,
)
from homeserver.membership import handshakes, owed_requests, remote_joins
from homeserver.membership.incoming_invitations import IncomingInvitations
from homeserver.membership.membership import Memberships
from homeserver.membership.owed_requests import OwedRequests
from homeserver.protocol.event_format import parse_event
from homeserver.protocol.events import Event
from homeserver.storage import delivery as store
from homeserver.storage import tables, user_rooms
from homeserver.storage.database import Database
from tests.factories.rooms import RoomFactory, ServerKey
from tests.fakes.network import Sent
from tests.fakes.servers import OurServer, RemoteServer, Servers, eventually

OURS, REMOTE, OTHER = "ours.test:8448", "remote.test:8448", "other.test:8448"
HOST, BOB, CAROL = f"@host:{REMOTE}", f"@bob:{OURS}", f"@carol:{OURS}"


@pytest.fixture(autouse=True)
def _in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owed_requests, "RETRY_MS_MIN", 20)
    monkeypatch.setattr(remote_joins, "UNDO_UNCERTAIN_JOIN_MS", 20)


VERSIONS = pytest.mark.parametrize("version", ["2", "6", "11", "12"])


class Scene:
    """Our server with bob, and a remote server with a room."""

    def __init__(self, servers: Servers, ours: OurServer, remote: RemoteServer, room: RoomFactory) -> None:
        self.servers = servers
        self.ours = ours
        self.remote = remote
        self.room = room

    @property
    def memberships(self) -> Memberships:
        return self.ours.get(Memberships)

    async def invite(self, sender: str = HOST) -> Event:
        """The remote server invites bob."""
        event = self.room.event(sender, "m.room.member", {"membership": "invite"}, BOB)
        shown = [self.room.state["m.room.create", ""].pdu]
        body = {"event": event.pdu, "room_version": self.room.version.identifier, "invite_room_state": shown}
        uri = f"/_matrix/federation/v2/invite/{self.room.room_id}/{event.event_id.replace('$', '%24')}"
        answer = await self.remote.request("PUT", OURS, uri, body)
        assert answer.status_code == 200, answer.text
        return event

    async def standing(self) -> str | None:
        found = await self.ours.get(Database).read(user_rooms.standing_of, BOB, self.room.room_id)
        return found.membership if found is not None else None

    async def owed(self) -> int | None:
        return await self.ours.get(Database).read(store.next_request_ts)

    async def settled(self) -> bool:
        return await self.owed() is None

    async def left(self) -> dict[str, Any] | None:
        """The leave that the remote server was sent."""
        return getattr(self.remote, "left", None)


def play(
    servers: Servers, story: Callable[[Scene], Awaitable[None]], version: str = "11", join_rule: str = "public"
) -> None:
    async def run() -> None:
        async with servers:
            ours = await servers.ours(OURS)
            await ours.user("bob")
            room = RoomFactory(version, REMOTE)
            room.create("host", join_rule=join_rule)
            room.invite(HOST, f"@mod:{REMOTE}")
            room.join(f"@mod:{REMOTE}")
            room.set_power_levels(HOST, {f"@mod:{REMOTE}": 50})
            await story(Scene(servers, ours, servers.remote(REMOTE, room), room))

    asyncio.run(run())


# -- joining -----------------------------------------------------------------------------------------------------------


@VERSIONS
def test_joining_brings_the_room(servers: Servers, version: str) -> None:
    async def story(at: Scene) -> None:
        await at.invite()
        await at.ours.join(BOB, at.room.room_id)
        assert await at.standing() == "join"
        head = await at.ours.head(at.room.room_id)
        assert set(head.joined) == {HOST, f"@mod:{REMOTE}", BOB}
        assert dict(head.state) == dict(at.room.current_state)

    play(servers, story, version, join_rule="invite")


def test_nobody_to_join_through(servers: Servers) -> None:
    async def story(at: Scene) -> None:
        with pytest.raises(NotFound):
            await at.ours.join(BOB, f"!nothing:{OURS}")
        with pytest.raises(RemoteFailed):
            await at.ours.join(BOB, f"!nothing:{OTHER}")
        with pytest.raises(MatrixError):
            await at.ours.join(BOB, f"!nothing:{OTHER}", "not a server name", "..", OURS)

    play(servers, story)


def test_the_next_server_is_asked(servers: Servers) -> None:
    async def story(at: Scene) -> None:
        await at.ours.join(BOB, at.room.room_id, "gone.test:1", REMOTE)
        assert await at.standing() == "join"

    play(servers, story)


@pytest.mark.parametrize(
    ("status", "errcode", "expected"),
    [
        (403, "M_FORBIDDEN", Forbidden),
        (404, "M_NOT_FOUND", NotFound),
        (400, "M_INCOMPATIBLE_ROOM_VERSION", IncompatibleRoomVersion),
        (400, "M_UNABLE_TO_AUTHORISE_JOIN", Forbidden),
        (400, "M_INVALID_PARAM", RemoteFailed),
        (500, "M_UNKNOWN", RemoteFailed),
        (200, "", RemoteFailed),
    ],
)
def test_what_the_user_is_told(servers: Servers, status: int, errcode: str, expected: type[MatrixError]) -> None:
    async def refuse(_: Request) -> Response:
        return JSONResponse({"errcode": errcode, "error": "because"}, status)

    async def story(at: Scene) -> None:
        at.remote.replaced["make_join"] = refuse
        with pytest.raises(expected):
            await at.ours.join(BOB, at.room.room_id, REMOTE)

    play(servers, story)


@pytest.mark.parametrize(
    "change",
    [
        {"room_id": "!other:x"},
        {"sender": HOST},
        {"state_key": HOST},
        {"type": "m.room.power_levels"},
        {"content": {"membership": "ban"}},
        {"content": 1},
        {"prev_events": 1},
        {"auth_events": ["x"] * 20},
        {"depth": -1},
    ],
)
def test_templates_for_something_else_are_not_signed(servers: Servers, change: dict[str, Any]) -> None:
    async def story(at: Scene) -> None:
        original = at.remote._make_join

        async def template(request: Request) -> Response:
            import orjson

            answer = orjson.loads((await original(request)).body)
            answer["event"].update(change)
            return JSONResponse(answer)

        at.remote.replaced["make_join"] = template
        with pytest.raises(RemoteFailed):
            await at.ours.join(BOB, at.room.room_id, REMOTE)
        assert at.servers.network.requests(REMOTE, "send_join") == []

    play(servers, story)


def change_answer(at: Scene, change: Callable[[dict[str, Any]], None]) -> None:
    original = at.remote._send_join

    async def send_join(request: Request) -> Response:
        import orjson

        answer = orjson.loads((await original(request)).body)
        change(answer)
        return JSONResponse(answer)

    at.remote.replaced["send_join"] = send_join


def _without(kind: str) -> Callable[[dict[str, Any]], None]:
    def change(answer: dict[str, Any]) -> None:
        for name in ("state", "auth_chain"):
            answer[name] = [event for event in answer[name] if event["type"] != kind]

    return change


def _without_chain_of(at: Scene, *, is_shown: bool) -> tuple[Callable[[dict[str, Any]], None], Event]:
    """The answer leaves out an old member event that another event of the state cites, and may show it by itself."""
    alice = at.room.user("host")
    cited = at.room.state["m.room.member", alice]
    at.room.state_event(alice, "m.room.name", {"name": "cites it"})
    at.room.event(alice, "m.room.member", {"membership": "join", "displayname": "Alice"}, alice)
    if not is_shown:
        at.remote.hidden.add(cited.event_id)

    def change(answer: dict[str, Any]) -> None:
        for name in ("state", "auth_chain"):
            events = [parse_event(pdu, at.room.version) for pdu in answer[name]]
            answer[name] = [event.pdu for event in events if event.event_id != cited.event_id]

    return change, cited


def test_auth_events_that_an_answer_lacks_are_fetched(servers: Servers) -> None:
    async def story(at: Scene) -> None:
        change, cited = _without_chain_of(at, is_shown=True)
        change_answer(at, change)
        await at.ours.join(BOB, at.room.room_id, REMOTE)
        head = await at.ours.head(at.room.room_id)
        assert await at.ours.get_state(head, "m.room.name") == {"name": "cites it"}
        assert await at.ours.event(cited.event_id) is not None

    play(servers, story)


def test_an_earlier_join_that_only_the_new_one_cites_is_fetched(servers: Servers) -> None:
    """We crashed while we took in the room; the state that the server gives does not have that join."""

    async def story(at: Scene) -> None:
        async def accept_and_fail(request: Request) -> Response:
            await at.remote._send_join(request)
            return JSONResponse({"errcode": "M_UNKNOWN", "error": "?"}, 500)

        at.remote.replaced["send_join"] = accept_and_fail
        with pytest.raises(RemoteFailed):
            await at.ours.join(BOB, at.room.room_id, REMOTE)
        earlier = at.room.state["m.room.member", BOB].event_id

        def change(answer: dict[str, Any]) -> None:
            for name in ("state", "auth_chain"):
                events = [parse_event(pdu, at.room.version) for pdu in answer[name]]
                answer[name] = [event.pdu for event in events if event.event_id != earlier]

        change_answer(at, change)
        await at.ours.join(BOB, at.room.room_id, REMOTE)
        assert await at.standing() == "join"
        assert await at.ours.event(earlier) is not None

    play(servers, story)


def test_a_room_of_which_auth_events_cannot_be_had_is_not_joined(servers: Servers) -> None:
    async def story(at: Scene) -> None:
        change, _ = _without_chain_of(at, is_shown=False)
        change_answer(at, change)
        with pytest.raises(MatrixError):
            await at.ours.join(BOB, at.room.room_id, REMOTE)
        assert await at.standing() is None

    play(servers, story)


@VERSIONS
def test_the_state_after_the_join_does_as_well(servers: Servers, version: str) -> None:
    """A server that answers with our own join in the state; what stood before it is what the join cites."""

    def change(answer: dict[str, Any]) -> None:
        own = answer["event"]
        others = [event for event in answer["state"] if event.get("state_key") != BOB]
        invitation = [event for event in answer["state"] if event.get("state_key") == BOB]
        answer.update(state=[*others, own], auth_chain=[*answer["auth_chain"], *invitation, own])

    async def story(at: Scene) -> None:
        await at.invite()
        change_answer(at, change)
        await at.ours.join(BOB, at.room.room_id, REMOTE)
        assert await at.standing() == "join"
        assert dict((await at.ours.head(at.room.room_id)).state) == dict(at.room.current_state)

    play(servers, story, version, join_rule="invite")


@pytest.mark.parametrize(
    "change",
    [
        _without("m.room.create"),
        _without("m.room.join_rules"),
        lambda answer: answer.update(state=[]),
        lambda answer: answer.update(state=1),
        lambda answer: answer.update(state=["x"]),
        lambda answer: answer.pop("auth_chain"),
        lambda answer: answer.update(members_omitted=True),
        lambda answer: [event.update(signatures={}) for event in answer["state"] + answer["auth_chain"]],
        lambda answer: answer.update(state=[{**event, "room_id": "!other:x"} for event in answer["state"]]),
    ],
)  # fmt: skip
def test_rooms_that_do_not_hold_together_are_not_joined(servers: Servers, change: Callable[..., None]) -> None:
    async def story(at: Scene) -> None:
        change_answer(at, change)
        with pytest.raises(MatrixError):
            await at.ours.join(BOB, at.room.room_id, REMOTE)
        assert await at.standing() is None
        # The other server took the join in: it must not hold bob for a member.
        left = await eventually(at.left)
        assert (left["sender"], left["state_key"], left["content"]) == (BOB, BOB, {"membership": "leave"})
        assert at.room.state["m.room.member", BOB].event_id in parse_event(left, at.room.version).auth_events
        await eventually(at.settled)

    play(servers, story)


def test_a_join_that_no_server_accepted_is_not_undone(servers: Servers) -> None:
    async def story(at: Scene) -> None:
        await at.invite()
        for status in (403, 400, 503):

            async def refuse(_: Request, status: int = status) -> Response:
                return JSONResponse({"errcode": "M_UNKNOWN", "error": "because"}, status)

            at.remote.replaced["send_join"] = refuse
            with pytest.raises(MatrixError):
                await at.ours.join(BOB, at.room.room_id, REMOTE)
            # Whether a server that failed has not accepted it after all, is looked at.
            assert (await at.owed() is not None) == (status == 503)
            await eventually(at.settled)
        assert await at.left() is None
        assert at.servers.network.requests(REMOTE, "make_leave") != []
        # So the invitation is still good.
        at.remote.replaced.clear()
        await at.ours.join(BOB, at.room.room_id)
        assert await at.standing() == "join"

    play(servers, story, join_rule="invite")


def test_a_join_is_not_undone_where_the_next_server_helps(servers: Servers) -> None:
    async def story(at: Scene) -> None:
        other = at.servers.remote(OTHER, at.room)
        at.room.join(f"@zoe:{OTHER}")
        change_answer(at, _without("m.room.create"))
        await at.ours.join(BOB, at.room.room_id, REMOTE, OTHER)
        assert await at.standing() == "join"
        assert at.servers.network.requests(OTHER, "send_join") != []
        assert await at.settled()
        assert await at.left() is None
        assert not hasattr(other, "left")

    play(servers, story)


def test_a_join_is_undone_once_the_server_can_be_reached(servers: Servers) -> None:
    async def story(at: Scene) -> None:
        change_answer(at, lambda answer: answer.update(state=[]))
        cut = asyncio.Event()

        def cut_off(sent: Sent) -> Sent:
            if "send_join" in sent.path:
                at.servers.network.split(OURS, REMOTE)
                cut.set()
            return sent

        at.servers.network.tamper = cut_off
        with pytest.raises(MatrixError):
            await at.ours.join(BOB, at.room.room_id, REMOTE)
        assert cut.is_set()
        assert await at.owed() is not None
        at.servers.network.heal(OURS, REMOTE)
        assert await eventually(at.left)

    play(servers, story)


def test_forged_state_is_left_out(servers: Servers) -> None:
    async def story(at: Scene) -> None:
        # Signed by a key that is not the server's, not allowed, and of another server that says nothing of it.
        forged = at.room.state_event(HOST, "m.room.topic", {"topic": "forged"})
        forged_pdu = {**forged.pdu, "signatures": {REMOTE: {"ed25519:1": ServerKey(OTHER).sign(b"x")}}}
        forbidden = at.room.state_event(f"@stranger:{REMOTE}", "m.room.name", {"name": "forbidden"})
        for event in (forged, forbidden):
            del at.room.events[event.event_id]
        at.room.extremities = [forged.prev_events[0]]

        def change(answer: dict[str, Any]) -> None:
            answer["state"] += [forged_pdu, forbidden.pdu]

        change_answer(at, change)
        await at.ours.join(BOB, at.room.room_id, REMOTE)
        state = (await at.ours.head(at.room.room_id)).state
        assert ("m.room.topic", "") not in state
        assert ("m.room.name", "") not in state
        assert ("m.room.member", BOB) in state

    play(servers, story)


def test_a_second_user_joins_at_the_same_time(servers: Servers) -> None:
    async def story(at: Scene) -> None:
        carol = await at.ours.user("carol")
        await asyncio.gather(at.ours.join(BOB, at.room.room_id, REMOTE), at.ours.join(carol, at.room.room_id, REMOTE))
        assert {BOB, carol} <= set((await at.ours.head(at.room.room_id)).joined)
        assert len(at.servers.network.requests(REMOTE, "send_join")) == 1

    play(servers, story)


def test_a_join_that_is_never_answered_keeps_nobody_else_out(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handshakes, "TURN_WAIT_S", 0.05)

    async def story(at: Scene) -> None:
        carol = await at.ours.user("carol")
        is_asked, is_over = asyncio.Event(), asyncio.Event()

        async def hang(_: Request) -> Response:
            is_asked.set()
            await is_over.wait()
            return JSONResponse({"errcode": "M_UNKNOWN", "error": "?"}, 500)

        at.remote.replaced["send_join"] = hang
        joining = asyncio.create_task(at.ours.join(BOB, at.room.room_id, REMOTE))
        await is_asked.wait()
        del at.remote.replaced["send_join"]
        async with asyncio.timeout(10):
            await at.ours.join(carol, at.room.room_id, REMOTE)
        assert carol in (await at.ours.head(at.room.room_id)).joined
        is_over.set()
        with pytest.raises(RemoteFailed):
            await joining
        assert carol in (await at.ours.head(at.room.room_id)).joined

    play(servers, story)


def test_leaving_and_coming_back(servers: Servers) -> None:
    async def story(at: Scene) -> None:
        await at.ours.join(BOB, at.room.room_id, REMOTE)
        await at.memberships.leave(BOB, at.room.room_id)
        leave = await eventually(lambda: _value(at.remote.got()))
        at.remote.take_in(leave[0])
        topic = at.room.state_event(HOST, "m.room.topic", {"topic": "while you were away"})
        await at.ours.join(BOB, at.room.room_id, REMOTE)
        head = await at.ours.head(at.room.room_id)
        assert head.state["m.room.topic", ""] == topic.event_id
        message = at.room.send(HOST)
        assert await at.remote.transaction(OURS, [message]) == {message.event_id: {}}

    play(servers, story)


async def _value(found: Any) -> Any:
    return found


# -- rejecting ---------------------------------------------------------------------------------------------------------


@VERSIONS
def test_a_rejection_reaches_the_inviting_server(servers: Servers, version: str) -> None:
    async def story(at: Scene) -> None:
        await at.invite()
        await at.memberships.leave(BOB, at.room.room_id, "no thanks")
        assert await at.standing() == "leave"

        async def left() -> Any:
            return getattr(at.remote, "left", None)

        pdu = await eventually(left)
        assert pdu["content"] == {"membership": "leave", "reason": "no thanks"}
        assert pdu["sender"] == pdu["state_key"] == BOB

        async def settled() -> bool:
            return await at.owed() is None

        await eventually(settled)

    play(servers, story, version, join_rule="invite")


def test_a_rejection_while_the_inviting_server_is_away(servers: Servers) -> None:
    async def story() -> None:
        async with servers:
            room = RoomFactory("11", REMOTE)
            room.create("host", join_rule="invite")
            remote = servers.remote(REMOTE, room)
            async with servers.running(OURS) as ours:
                at = Scene(servers, ours, remote, room)
                await ours.user("bob")
                await at.invite()
                servers.network.split(OURS, REMOTE)
                await at.memberships.leave(BOB, room.room_id)
                assert await at.standing() == "leave"
                assert await at.owed() is not None
            servers.network.heal(OURS, REMOTE)
            async with servers.running(OURS) as ours:
                await eventually(lambda: _value(getattr(remote, "left", None)))

    asyncio.run(story())


def test_a_new_invitation_ends_what_was_owed_for_the_old(servers: Servers) -> None:
    async def story(at: Scene) -> None:
        await at.invite()
        at.servers.network.split(OURS, REMOTE)
        await at.memberships.leave(BOB, at.room.room_id)
        at.servers.network.heal(OURS, REMOTE)
        at.room.kick(HOST, BOB)
        await at.invite()
        assert await at.standing() == "invite"
        assert await at.owed() is None

    play(servers, story, join_rule="invite")


@pytest.mark.parametrize("is_accepted", [False, True])
def test_a_rejection_that_is_under_way_does_not_end_a_new_invitation(servers: Servers, is_accepted: bool) -> None:
    """The inviting server is slow to answer, and invites again meanwhile."""

    async def story(at: Scene) -> None:
        await at.invite()
        make_leave = at.remote._make_leave
        is_asked, may_answer = asyncio.Event(), asyncio.Event()

        async def slowly(request: Request) -> Response:
            is_asked.set()
            await may_answer.wait()
            return await make_leave(request)

        at.remote.replaced["make_leave"] = slowly
        await at.memberships.leave(BOB, at.room.room_id)
        await is_asked.wait()
        at.room.kick(HOST, BOB)
        await at.invite()
        if is_accepted:
            await at.ours.join(BOB, at.room.room_id)
        leaving = set(at.ours.get(OwedRequests)._under_way.values())
        may_answer.set()
        await asyncio.gather(*(task for _, task in leaving))
        assert await at.left() is None
        assert await at.standing() == ("join" if is_accepted else "invite")

    play(servers, story, join_rule="invite")


# -- being invited where others of ours are in the room already --------------------------------------------------------


async def invite_carol(at: Scene) -> Event:
    """Bob is in the room; our server signs the invitation of carol, and expects it by /send."""
    await at.ours.join(BOB, at.room.room_id, REMOTE)
    await at.ours.user("carol")
    answer = await put_invitation(at, at.remote, at.room.event(HOST, "m.room.member", {"membership": "invite"}, CAROL))
    assert answer.status_code == 200, answer.text
    return parse_event(answer.json()["event"], at.room.version, room_id=at.room.room_id)


async def put_invitation(at: Scene, inviter: RemoteServer, event: Event) -> httpx.Response:
    body = {"event": event.pdu, "room_version": at.room.version.identifier, "invite_room_state": []}
    body["invite_room_state"] = [at.room.state["m.room.create", ""].pdu]
    uri = f"/_matrix/federation/v2/invite/{at.room.room_id}/{event.event_id.replace('$', '%24')}"
    return await inviter.request("PUT", OURS, uri, body)


async def standing_of_carol(at: Scene) -> str | None:
    found = await at.ours.get(Database).read(user_rooms.standing_of, CAROL, at.room.room_id)
    return found.membership if found is not None else None


@VERSIONS
def test_an_invitation_into_a_room_that_we_are_in(servers: Servers, version: str) -> None:
    async def story(at: Scene) -> None:
        invitation = await invite_carol(at)
        # Some servers send it in no other way, so it is here at once.
        assert await standing_of_carol(at) == "invite"
        stored = await at.ours.event(invitation.event_id)
        assert stored is not None
        assert set(stored.event.pdu["signatures"]) == {REMOTE, OURS}
        # And those that send it in a transaction too send the same event.
        assert await at.remote.transaction(OURS, [invitation]) == {invitation.event_id: {}}
        assert await standing_of_carol(at) == "invite"
        await at.ours.join(CAROL, at.room.room_id)
        assert await standing_of_carol(at) == "join"

    play(servers, story, version)


@VERSIONS
@pytest.mark.parametrize("fault", ["of a banned user", "of a stranger"])
def test_an_invitation_that_our_room_does_not_allow_is_not_signed(servers: Servers, version: str, fault: str) -> None:
    async def story(at: Scene) -> None:
        await at.ours.join(BOB, at.room.room_id, REMOTE)
        await at.ours.user("carol")
        sender, inviter = HOST, at.remote
        if fault == "of a banned user":
            ban = at.room.ban(HOST, CAROL)
            assert await at.remote.transaction(OURS, [ban]) == {ban.event_id: {}}
        else:
            inviter = at.servers.remote(OTHER, at.room)
            sender = f"@stranger:{OTHER}"
        before = await standing_of_carol(at)
        answer = await put_invitation(
            at, inviter, at.room.event(sender, "m.room.member", {"membership": "invite"}, CAROL)
        )
        assert (answer.status_code, answer.json()["errcode"]) == (403, "M_FORBIDDEN")
        assert ("banned" in answer.json()["error"]) == (fault == "of a banned user")
        assert await standing_of_carol(at) == before

    play(servers, story, version)


@VERSIONS
def test_an_invitation_that_comes_when_we_have_just_left(
    servers: Servers, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def is_not_ready(*_: object) -> None:
        """What the invitation builds on is missing yet."""

    async def story(at: Scene) -> None:
        monkeypatch.setattr(IncomingInvitations, "_take_in", is_not_ready)
        invitation = await invite_carol(at)
        await at.memberships.leave(BOB, at.room.room_id)
        unsigned = {**invitation.pdu, "signatures": {REMOTE: invitation.pdu["signatures"][REMOTE]}}
        results = await at.remote.transaction(OURS, [unsigned])
        assert "error" in results[invitation.event_id]
        other = at.servers.remote(OTHER, at.room)
        assert "error" in (await other.transaction(OURS, [invitation]))[invitation.event_id]
        assert await standing_of_carol(at) is None

        assert await at.remote.transaction(OURS, [invitation]) == {invitation.event_id: {}}
        assert await standing_of_carol(at) == "invite"
        # What has been answered does not come back with it.
        await at.memberships.leave(CAROL, at.room.room_id)
        await at.remote.transaction(OURS, [invitation])
        assert await standing_of_carol(at) == "leave"

    play(servers, story, version)


# -- being uninvited ---------------------------------------------------------------------------------------------------


@VERSIONS
@pytest.mark.parametrize("membership", ["leave", "ban"])
def test_the_inviter_takes_the_invitation_back(servers: Servers, version: str, membership: str) -> None:
    async def story(at: Scene) -> None:
        await at.invite()
        end = at.room.member(HOST, BOB, membership)
        assert await at.remote.transaction(OURS, [end]) == {end.event_id: {}}
        assert await at.standing() == membership
        assert await at.remote.transaction(OURS, [end]) == {end.event_id: {}}

    play(servers, story, version, join_rule="invite")


def test_nobody_else_can_take_it_back(servers: Servers) -> None:
    async def story(at: Scene) -> None:
        await at.invite()
        by_another = at.room.kick(f"@mod:{REMOTE}", BOB)
        by_stranger = at.room.kick("@x:other.test:1", BOB)
        forged = at.room.kick(HOST, BOB)
        unsigned = {**forged.pdu, "signatures": {}}
        results = await at.remote.transaction(OURS, [by_another, by_stranger, unsigned])
        # Only the first is about the invitation. The server that it came from is asked, and would let the user in.
        assert [("error" in results[e.event_id]) for e in (by_another, by_stranger, forged)] == [False, True, True]

        async def was_asked() -> bool:
            return bool(at.servers.network.requests(REMOTE, "make_join"))

        await eventually(was_asked)
        assert await at.standing() == "invite"

    play(servers, story, join_rule="invite")


def test_a_ban_from_outside_ends_with_the_unban(servers: Servers) -> None:
    async def story(at: Scene) -> None:
        await at.invite()
        ban = at.room.ban(HOST, BOB)
        unban = at.room.unban(f"@mod:{REMOTE}", BOB)
        assert await at.remote.transaction(OURS, [ban, unban]) == {ban.event_id: {}, unban.event_id: {}}
        assert await at.standing() == "leave"
        await at.invite()
        assert await at.standing() == "invite"

    play(servers, story, join_rule="invite")


def test_an_invitation_that_nobody_honours_is_retired(servers: Servers) -> None:
    async def forbid(_: Request) -> Response:
        return JSONResponse({"errcode": "M_FORBIDDEN", "error": "You are not invited"}, 403)

    async def story(at: Scene) -> None:
        await at.invite()
        await at.ours.get(Database).write(lambda c: c.execute(update(tables.user_rooms).values(received_ts=1)))
        at.remote.replaced["make_join"] = forbid
        with pytest.raises(Forbidden, match="no longer valid"):
            await at.ours.join(BOB, at.room.room_id)
        assert await at.standing() == "leave"

    play(servers, story, join_rule="invite")


# -- inviting ----------------------------------------------------------------------------------------------------------


def test_an_invitation_is_signed_by_the_other_server(servers: Servers) -> None:
    async def story(at: Scene) -> None:
        room_id = await at.ours.room(BOB, preset="private_chat", name="Name")
        await at.memberships.invite(BOB, room_id, HOST, is_direct=True)
        head = await at.ours.head(room_id)
        stored = await at.ours.event(head.state["m.room.member", HOST])
        assert stored is not None
        assert set(stored.event.pdu["signatures"]) == {OURS, REMOTE}
        shown = {event["type"] for event in at.remote.invitation["invite_room_state"]}
        assert {"m.room.create", "m.room.name", "m.room.join_rules", "m.room.member"} <= shown

    play(servers, story)


@pytest.mark.parametrize(
    ("status", "errcode", "expected"),
    [
        (403, "M_FORBIDDEN", Forbidden),
        (403, "M_INVITE_BLOCKED", InviteBlocked),
        (404, "M_NOT_FOUND", NotFound),
        (400, "M_INCOMPATIBLE_ROOM_VERSION", UnsupportedRoomVersion),
        (400, "M_INVALID_PARAM", RemoteFailed),
        (500, "M_UNKNOWN", RemoteFailed),
    ],
)
def test_an_invitation_that_is_refused_leaves_nothing(
    servers: Servers, status: int, errcode: str, expected: type[MatrixError]
) -> None:
    async def refuse(_: Request) -> Response:
        return JSONResponse({"errcode": errcode, "error": "because"}, status)

    async def story(at: Scene) -> None:
        at.remote.replaced["invite"] = refuse
        room_id = await at.ours.room(BOB)
        with pytest.raises(expected):
            await at.memberships.invite(BOB, room_id, HOST)
        assert ("m.room.member", HOST) not in (await at.ours.head(room_id)).state

    play(servers, story)


def test_an_invitation_to_a_server_that_is_away(servers: Servers) -> None:
    async def story(at: Scene) -> None:
        room_id = await at.ours.room(BOB)
        with pytest.raises(RemoteFailed, match="could not be reached"):
            await at.memberships.invite(BOB, room_id, f"@x:{OTHER}")
        assert ("m.room.member", f"@x:{OTHER}") not in (await at.ours.head(room_id)).state

    play(servers, story)


def _changed(answer: dict[str, Any]) -> None:
    answer["event"]["content"]["displayname"] = "changed"


def _unsigned(answer: dict[str, Any]) -> None:
    del answer["event"]["signatures"][REMOTE]


def _badly_signed(answer: dict[str, Any]) -> None:
    answer["event"]["signatures"][REMOTE] = {"ed25519:1": ServerKey(OTHER).sign(b"x")}


@pytest.mark.parametrize("change", [_changed, _unsigned, _badly_signed, lambda answer: answer.update(event={})])
def test_only_a_signature_may_be_added(servers: Servers, change: Callable[[dict[str, Any]], None]) -> None:
    async def story(at: Scene) -> None:
        original = at.remote._invite

        async def invite(request: Request) -> Response:
            import orjson

            answer = orjson.loads((await original(request)).body)
            change(answer)
            return JSONResponse(answer)

        at.remote.replaced["invite"] = invite
        room_id = await at.ours.room(BOB)
        with pytest.raises(RemoteFailed):
            await at.memberships.invite(BOB, room_id, HOST)
        assert ("m.room.member", HOST) not in (await at.ours.head(room_id)).state

    play(servers, story)
