"""Invitations of our users by other servers."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from homeserver.protocol.events import Event
from homeserver.protocol.room_versions import ROOM_VERSIONS
from homeserver.protocol.signatures import signatures_of
from homeserver.storage import accounts, user_rooms
from homeserver.storage.database import Database
from tests.factories.rooms import RoomFactory
from tests.fakes.servers import Servers
from tests.federation_api.asking import OURS, REMOTE, V1, Asking, ask, refused

HOST = f"@host:{REMOTE}"
VERSIONS = pytest.mark.parametrize("version", ["1", "2", "6", "11", "12"])


def invitation(version: str = "11", target: str = f"@alice:{OURS}", **options: Any) -> tuple[RoomFactory, Event]:
    room = RoomFactory(version, REMOTE)
    room.create("host", join_rule="invite")
    room.state_event(HOST, "m.room.name", {"name": "Party"})
    event = room.event(HOST, "m.room.member", {"membership": "invite", **options}, target)
    return room, event


def shown(room: RoomFactory) -> list[dict[str, Any]]:
    keys = [("m.room.create", ""), ("m.room.name", ""), ("m.room.join_rules", ""), ("m.room.member", HOST)]
    return [room.state[key].pdu for key in keys]


async def send(at: Asking, room: RoomFactory, invite: Event, /, **changes: Any) -> Any:
    body = {"event": invite.pdu, "room_version": room.version.identifier, "invite_room_state": shown(room), **changes}
    return await at.put(body, "invite", room.room_id, invite.event_id)


async def standing(at: Asking, room: RoomFactory) -> user_rooms.Standing | None:
    return await at.ours.get(Database).read(user_rooms.standing_of, at.alice, room.room_id)


@VERSIONS
def test_an_invitation_is_signed_and_shown(servers: Servers, version: str) -> None:
    async def story(at: Asking) -> None:
        room, event = invitation(version)
        answer = await send(at, room, event)
        assert answer.status_code == 200, answer.text
        signed = answer.json()["event"]
        assert set(signed["signatures"]) == {OURS, REMOTE}
        assert {**signed, "signatures": {}} == {**event.pdu, "signatures": {}}
        found = await standing(at, room)
        assert found is not None
        assert (found.membership, found.sender, found.version) == ("invite", HOST, version)
        stripped = orjson.loads(found.stripped_state or b"")
        assert {"type": "m.room.name", "state_key": "", "sender": HOST, "content": {"name": "Party"}} in stripped
        assert all(set(entry) == {"type", "state_key", "sender", "content"} for entry in stripped)
        # It may come twice.
        assert (await send(at, room, event)).status_code == 200

    ask(servers, story)


@pytest.mark.parametrize("version", ["1", "2"])
def test_the_old_endpoint(servers: Servers, version: str) -> None:
    async def story(at: Asking) -> None:
        room, event = invitation(version)
        body = {**event.pdu, "unsigned": {"invite_room_state": shown(room)}}
        answer = await at.put(body, "invite", room.room_id, event.event_id, prefix=V1)
        assert answer.json()[0] == 200
        assert signatures_of(answer.json()[1]["event"], OURS)
        found = await standing(at, room)
        assert found is not None
        assert found.version == version

    ask(servers, story)


def test_unknown_room_versions(servers: Servers) -> None:
    async def story(at: Asking) -> None:
        room, event = invitation()
        body = refused(await send(at, room, event, room_version="99"), 400, "M_INCOMPATIBLE_ROOM_VERSION")
        assert body["room_version"] == "99"

    ask(servers, story)


def test_who_cannot_be_invited(servers: Servers) -> None:
    async def story(at: Asking) -> None:
        gone = await at.ours.user("gone")
        await at.ours.get(Database).write(accounts.deactivate_user, gone, 1)
        for target in (gone, f"@nobody:{OURS}"):
            room, event = invitation(target=target)
            refused(await send(at, room, event), 403, "M_FORBIDDEN")

    ask(servers, story)


def test_what_is_no_invitation_is_not_signed(servers: Servers) -> None:
    async def story(at: Asking) -> None:
        room, event = invitation()
        alice = at.alice
        others = [
            room.event(HOST, "m.room.member", {"membership": "leave"}, alice),
            room.event(HOST, "m.room.member", {"membership": "ban"}, alice),
            room.event(HOST, "m.room.topic", {"membership": "invite"}, alice),
            room.event(HOST, "m.room.member", {"membership": "invite"}, "@x:other.test"),
            room.event(HOST, "m.room.member", {"membership": "invite"}, "alice"),
        ]
        for other in others:
            refused(await send(at, room, other), 400, "M_INVALID_PARAM")
        foreign = room.event("@x:other.test:1", "m.room.member", {"membership": "invite"}, alice)
        refused(await send(at, room, foreign), 403, "M_FORBIDDEN")
        for signatures in ({}, foreign.pdu["signatures"], {REMOTE: {"ed25519:1": "A" * 86}}):
            wrongly_signed = {**event.pdu, "signatures": signatures}
            refused(await send(at, room, event, event=wrongly_signed), 403, "M_FORBIDDEN")
        not_canonical = {**event.pdu, "content": {**event.pdu["content"], "number": 1.5}}
        refused(await send(at, room, event, event=not_canonical), 400, "M_BAD_JSON")
        pdus: list[dict[str, Any]] = [
            {**event.pdu, "content": {**event.pdu["content"], "is_direct": True}},
            {**event.pdu, "room_id": "!other:x"},
            {},
        ]
        for pdu in pdus:
            refused(await send(at, room, event, event=pdu), 400, "M_INVALID_PARAM")
        wrong_id = await at.put(
            {"event": event.pdu, "room_version": "11", "invite_room_state": []}, "invite", room.room_id, "$other"
        )
        refused(wrong_id, 400, "M_INVALID_PARAM")
        assert await standing(at, room) is None

    ask(servers, story)


@pytest.mark.parametrize("body", [{}, {"event": {}}, {"event": [], "room_version": "11"}, {"room_version": "11"}])
def test_bodies_of_the_wrong_shape(servers: Servers, body: dict[str, Any]) -> None:
    async def story(at: Asking) -> None:
        answer = await at.put(body, "invite", "!r:x", "$e")
        assert answer.status_code == 400
        assert answer.json()["errcode"] in ("M_MISSING_PARAM", "M_BAD_JSON")

    ask(servers, story)


def test_room_state_of_old_versions_may_be_stripped_or_odd(servers: Servers) -> None:
    async def story(at: Asking) -> None:
        room, event = invitation()
        name = {"type": "m.room.name", "state_key": "", "sender": HOST, "content": {"name": "Party"}}
        odd: list[dict[str, Any]] = [
            {}, {**name, "type": 1}, {**name, "content": "x"}, {**name, "sender": "x"}, {**name, "room_id": "!other:x"},
        ]  # fmt: skip
        assert (await send(at, room, event, invite_room_state=[*odd, name])).status_code == 200
        found = await standing(at, room)
        assert found is not None
        assert orjson.loads(found.stripped_state or b"") == [name]

    ask(servers, story)


def test_room_state_of_version_12_is_checked(servers: Servers) -> None:
    async def story(at: Asking) -> None:
        room, event = invitation("12")
        good = shown(room)
        other_room = RoomFactory("12", REMOTE, ts=1_600_000_000_000)
        other_room.create("host")
        bad_states: list[list[dict[str, Any]]] = [
            [],
            good[1:],
            [*good, {"type": "m.room.topic", "state_key": "", "sender": HOST, "content": {}}],
            [good[0], {**good[1], "signatures": {}}],
            [*good, other_room.state_event(HOST, "m.room.topic", {}).pdu],
        ]
        for state in bad_states:
            refused(await send(at, room, event, invite_room_state=state), 400, "M_INVALID_PARAM")
        assert ROOM_VERSIONS["12"].room_id_is_create_hash

    ask(servers, story)
