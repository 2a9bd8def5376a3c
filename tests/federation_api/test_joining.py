"""Other servers' users join through ours."""

from __future__ import annotations

from typing import Any

import pytest

from homeserver.membership.membership import Memberships
from homeserver.protocol.compose import compose_event, finish_template
from homeserver.protocol.event_format import parse_event
from homeserver.protocol.events import EventDraft
from homeserver.protocol.room_versions import ROOM_VERSIONS
from homeserver.protocol.signatures import signatures_of
from homeserver.storage.event_graph import Verdict
from tests.factories.rooms import server_key
from tests.fakes.servers import Servers
from tests.federation_api.asking import BOB, OURS, REMOTE, V1, V2, Asking, ask, refused

VERSIONS = pytest.mark.parametrize("version", ["1", "2", "3", "6", "9", "11", "12"])


def ids(events: list[dict[str, Any]]) -> set[str]:
    return {repr(sorted(event["hashes"].items())) for event in events}


@VERSIONS
def test_a_join(servers: Servers, version: str) -> None:
    async def story(at: Asking) -> None:
        room_id = await at.ours.room(at.alice, version=version, name="Room")
        before = await at.ours.head(room_id)
        answer = await at.join(room_id, version=version)
        assert await at.ours.membership(room_id, BOB) == "join"
        assert len(answer["state"]) == len(before.state)
        assert ("m.room.name", "") in {(event["type"], event["state_key"]) for event in answer["state"]}
        # The auth chain holds all that the state and the join cite, and what those cite.
        kinds = {event["type"] for event in answer["auth_chain"]}
        cited = {"m.room.member", "m.room.power_levels", "m.room.join_rules"}
        assert kinds == (cited if version == "12" else cited | {"m.room.create"})
        assert answer["members_omitted"] is False
        assert answer["servers_in_room"] == [OURS]
        assert set(answer["event"]["signatures"]) == {OURS, REMOTE}

    ask(servers, story)


@pytest.mark.parametrize("version", ["3", "11", "12"])
def test_the_auth_chain_is_exactly_what_is_cited(servers: Servers, version: str) -> None:
    async def story(at: Asking) -> None:
        room_id = await at.ours.room(at.alice, version=version)
        users = [await at.ours.user(f"user{number}") for number in range(4)]
        for user_id in users:
            await at.ours.join(user_id, room_id)
            renamed = {"membership": "join", "displayname": user_id}
            await at.ours.send_state(user_id, room_id, "m.room.member", renamed, user_id)
        levels = await at.ours.get_state(await at.ours.head(room_id), "m.room.power_levels")
        await at.ours.send_state(at.alice, room_id, "m.room.power_levels", {**levels, "users_default": 1})
        await at.ours.get(Memberships).kick(at.alice, room_id, users[0])
        answer = await at.join(room_id, version=version)
        events = [parse_event(e, ROOM_VERSIONS[version]) for e in answer["state"] + answer["auth_chain"]]
        known = {event.event_id: event for event in events}
        state = [parse_event(e, ROOM_VERSIONS[version]) for e in [*answer["state"], answer["event"]]]
        cited: set[str] = set()
        todo = [event_id for event in state for event_id in event.auth_events]
        while todo:
            if (event_id := todo.pop()) not in cited:
                cited.add(event_id)
                todo.extend(known[event_id].auth_events)
        given = [parse_event(e, ROOM_VERSIONS[version]).event_id for e in answer["auth_chain"]]
        assert sorted(given) == sorted(cited)

    ask(servers, story)


def test_a_join_by_the_old_endpoint(servers: Servers) -> None:
    async def story(at: Asking) -> None:
        room_id = await at.ours.room(at.alice)
        event = await at.template("join", room_id)
        response = await at.put(event.pdu, "send_join", room_id, event.event_id, prefix=V1)
        assert response.json()[0] == 200
        assert response.json()[1]["state"]

    ask(servers, story)


def test_a_join_that_comes_again_gets_the_same_answer(servers: Servers) -> None:
    async def story(at: Asking) -> None:
        room_id = await at.ours.room(at.alice)
        event = await at.template("join", room_id)
        first = await at.put(event.pdu, "send_join", room_id, event.event_id)
        await at.ours.send(at.alice, room_id)
        second = await at.put(event.pdu, "send_join", room_id, event.event_id)
        assert first.json()["state"] == second.json()["state"]
        assert first.json()["auth_chain"] == second.json()["auth_chain"]

    ask(servers, story)


def test_what_is_in_the_state_can_be_left_out_of_the_auth_chain(servers: Servers) -> None:
    async def story(at: Asking) -> None:
        room_id = await at.ours.room(at.alice)
        await at.ours.send_state(
            at.alice, room_id, "m.room.member", {"membership": "join", "displayname": "A"}, at.alice
        )
        answer = await at.join(room_id, query="omit_members=true")
        assert not ids(answer["state"]) & ids(answer["auth_chain"])
        assert {event["type"] for event in answer["auth_chain"]} == {"m.room.member"}
        assert answer["members_omitted"] is False

    ask(servers, story)


def test_make_join_refuses(servers: Servers) -> None:
    async def story(at: Asking) -> None:
        public, private = await at.ours.room(at.alice), await at.ours.room(at.alice, preset="private_chat")
        refused(await at.get("make_join", "!unknown:x", BOB, query="ver=11"), 404, "M_NOT_FOUND")
        refused(await at.get("make_join", public, f"@x:{OURS}", query="ver=11"), 403, "M_FORBIDDEN")
        for malformed in ("nobody", "@bob", "@bob:remote.test:http", "@bob:remote.test:99999", "@bob:"):
            for kind in ("join", "leave", "knock"):
                answer = await at.get(f"make_{kind}", public, malformed, query="ver=11")
                refused(answer, 400, "M_INVALID_PARAM")
        refused(await at.get("make_join", private, BOB, query="ver=11"), 403, "M_FORBIDDEN")
        for query in ("", "ver=1&ver=10"):
            body = refused(await at.get("make_join", public, BOB, query=query), 400, "M_INCOMPATIBLE_ROOM_VERSION")
            assert body["room_version"] == "11"
        await at.ours.get(Memberships).ban(at.alice, public, BOB)
        refused(await at.get("make_join", public, BOB, query="ver=11"), 403, "M_FORBIDDEN")
        await at.ours.get(Memberships).leave(at.alice, public)
        refused(await at.get("make_join", public, BOB, query="ver=11"), 404, "M_NOT_FOUND")

    ask(servers, story)


def test_a_server_that_the_acl_shuts_out(servers: Servers) -> None:
    async def story(at: Asking) -> None:
        room_id = await at.ours.room(at.alice)
        event = await at.template("join", room_id)
        await at.join(room_id)
        await at.ours.send_state(at.alice, room_id, "m.room.server_acl", {"allow": ["*"], "deny": ["remote.test"]})
        e = event.event_id
        answers = [
            await at.get("make_join", room_id, BOB, query="ver=11"), await at.get("make_leave", room_id, BOB),
            await at.get("make_knock", room_id, BOB, query="ver=11"),
            await at.put(event.pdu, "send_join", room_id, e),
            await at.put(event.pdu, "send_join", room_id, e, prefix=V1),
            await at.put(event.pdu, "send_leave", room_id, e),
            await at.put(event.pdu, "send_leave", room_id, e, prefix=V1),
            await at.put(event.pdu, "send_knock", room_id, e, prefix=V1),
            await at.get("state", room_id, query=f"event_id={e}"),
            await at.get("state_ids", room_id, query=f"event_id={e}"),
            await at.get("backfill", room_id, query=f"v={e}&limit=1"), await at.get("event_auth", room_id, e),
            await at.post({"earliest_events": [], "latest_events": []}, "get_missing_events", room_id),
        ]  # fmt: skip
        for answer in answers:
            refused(answer, 403, "M_FORBIDDEN")

    ask(servers, story)


def test_send_join_takes_only_joins_of_the_servers_own_users(servers: Servers) -> None:
    async def story(at: Asking) -> None:
        room_id = await at.ours.room(at.alice)
        join = await at.template("join", room_id)
        key, version = server_key(REMOTE), ROOM_VERSIONS["11"]

        async def tried(event_id: str = "", **changes: Any) -> None:
            template = {**join.pdu, **changes}
            event = finish_template(template, version, key, 1_700_000_000_000)
            answer = await at.put(event.pdu, "send_join", room_id, event_id or event.event_id)
            refused(answer, 400, "M_INVALID_PARAM")

        await tried(content={"membership": "leave"})
        await tried(content={"membership": 1})
        await tried(type="m.room.message")
        await tried(state_key=f"@carol:{REMOTE}")
        await tried(event_id="$other")
        await tried(room_id="!other:x")
        await tried(prev_events=["$unknown"])
        await tried(auth_events=[*join.pdu["auth_events"], "$unknown"])
        refused(await at.put({}, "send_join", room_id, "$x"), 400, "M_INVALID_PARAM")
        forged = {**join.pdu, "content": {**join.pdu["content"], "displayname": "changed"}}
        refused(await at.put(forged, "send_join", room_id, join.event_id), 400, "M_INVALID_PARAM")
        for number in (1.5, 2**53):
            not_canonical = {**join.pdu, "content": {**join.pdu["content"], "number": number}}
            refused(await at.put(not_canonical, "send_join", room_id, join.event_id), 400, "M_BAD_JSON")
        for signatures in ({}, {REMOTE: {key.key_id: "A" * 86}}, {"other.test": join.pdu["signatures"][REMOTE]}):
            wrongly_signed = {**join.pdu, "signatures": signatures}
            refused(await at.put(wrongly_signed, "send_join", room_id, join.event_id), 403, "M_FORBIDDEN")
        assert BOB not in (await at.ours.head(room_id)).joined

    ask(servers, story)


def test_send_join_by_who_may_not(servers: Servers) -> None:
    async def story(at: Asking) -> None:
        room_id = await at.ours.room(at.alice)
        join = await at.template("join", room_id)
        await at.ours.get(Memberships).ban(at.alice, room_id, BOB)
        refused(await at.put(join.pdu, "send_join", room_id, join.event_id), 403, "M_FORBIDDEN")
        stored = await at.ours.event(join.event_id)
        assert stored is None or stored.verdict != Verdict.ACCEPTED

    ask(servers, story)


@pytest.mark.parametrize("kind", ["join", "leave", "knock"])
@pytest.mark.parametrize("prefix", [V1, V2])
def test_another_server_cannot_act_for_a_user(servers: Servers, kind: str, prefix: str) -> None:
    async def story(at: Asking) -> None:
        rules = ("m.room.join_rules", "", {"join_rule": "knock" if kind == "knock" else "public"})
        room_id = await at.ours.room(at.alice, initial_state=[rules])
        other = servers.remote("other.test:8448")
        if kind == "leave":
            await at.join(room_id)
        event = await at.template(kind, room_id)
        uri = f"{V1 if kind == 'knock' else prefix}/send_{kind}/{room_id}/{event.event_id}"
        refused(await other.request("PUT", OURS, uri, event.pdu), 403, "M_FORBIDDEN")
        wrongly_signed = {**event.pdu, "signatures": {REMOTE: {"ed25519:1": "A" * 86}}}
        refused(await at.remote.request("PUT", OURS, uri, wrongly_signed), 403, "M_FORBIDDEN")
        not_canonical = {**event.pdu, "content": {**event.content, "number": 1.5}}
        refused(await at.remote.request("PUT", OURS, uri, not_canonical), 400, "M_BAD_JSON")

    ask(servers, story)


# -- restricted rooms --------------------------------------------------------------------------------------------------


async def restricted_room(at: Asking, *allowed: str) -> str:
    allow = [{"type": "m.room_membership", "room_id": room_id} for room_id in allowed]
    rules = ("m.room.join_rules", "", {"join_rule": "restricted", "allow": allow})
    return await at.ours.room(at.alice, preset="private_chat", initial_state=[rules])


def test_a_restricted_join(servers: Servers) -> None:
    async def story(at: Asking) -> None:
        space = await at.ours.room(at.alice)
        room_id = await restricted_room(at, space)
        refused(await at.get("make_join", room_id, BOB, query="ver=11"), 403, "M_FORBIDDEN")
        await at.join(space)
        answer = await at.join(room_id)
        assert answer["event"]["content"]["join_authorised_via_users_server"] == at.alice
        assert signatures_of(answer["event"], OURS)
        assert await at.ours.membership(room_id, BOB) == "join"

    ask(servers, story)


def test_conditions_that_cannot_be_checked_here(servers: Servers) -> None:
    async def story(at: Asking) -> None:
        room_id = await restricted_room(at, "!elsewhere:x")
        refused(await at.get("make_join", room_id, BOB, query="ver=11"), 400, "M_UNABLE_TO_AUTHORISE_JOIN")

    ask(servers, story)


def test_nobody_here_may_invite(servers: Servers) -> None:
    async def story(at: Asking) -> None:
        carol, dave = await at.ours.user("carol"), f"@dave:{REMOTE}"
        space = await at.ours.room(at.alice)
        room_id = await restricted_room(at, space)
        for user_id in (BOB, dave):
            await at.join(space, user_id)
        await at.join(room_id)
        await at.ours.join(carol, space)
        await at.ours.join(carol, room_id)
        levels = {"users": {at.alice: 100, BOB: 100}, "invite": 50}
        await at.ours.send_state(at.alice, room_id, "m.room.power_levels", levels)
        await at.ours.get(Memberships).leave(at.alice, room_id)
        refused(await at.get("make_join", room_id, dave, query="ver=11"), 400, "M_UNABLE_TO_GRANT_JOIN")

    ask(servers, story)


def test_our_signature_is_not_given_without_the_condition(servers: Servers) -> None:
    async def story(at: Asking) -> None:
        space = await at.ours.room(at.alice)
        room_id = await restricted_room(at, space)
        head = await at.ours.head(room_id)
        keys = [
            ("m.room.create", ""),
            ("m.room.power_levels", ""),
            ("m.room.join_rules", ""),
            ("m.room.member", at.alice),
        ]
        event = compose_event(
            EventDraft("m.room.member", BOB, {"membership": "join", "join_authorised_via_users_server": at.alice}, BOB),
            head.version,
            room_id=room_id,
            prev_events=[(head.extremities[0].event_id, "")],
            auth_events=[(head.state[key], "") for key in keys],
            depth=9,
            origin_server_ts=1_700_000_000_000,
            signer=server_key(REMOTE),
        )
        refused(await at.put(event.pdu, "send_join", room_id, event.event_id), 403, "M_FORBIDDEN")
        assert BOB not in (await at.ours.head(room_id)).joined

    ask(servers, story)


# -- leaving and knocking ----------------------------------------------------------------------------------------------


def test_leaving(servers: Servers) -> None:
    async def story(at: Asking) -> None:
        room_id = await at.ours.room(at.alice)
        refused(await at.get("make_leave", room_id, BOB), 403, "M_FORBIDDEN")
        await at.join(room_id)
        leave = await at.template("leave", room_id)
        refused(await at.put(leave.pdu, "send_join", room_id, leave.event_id), 400, "M_INVALID_PARAM")
        assert (await at.put(leave.pdu, "send_leave", room_id, leave.event_id)).json() == {}
        assert await at.ours.membership(room_id, BOB) == "leave"
        assert (await at.put(leave.pdu, "send_leave", room_id, leave.event_id, prefix=V1)).json() == [200, {}]

    ask(servers, story)


def test_knocking(servers: Servers) -> None:
    async def story(at: Asking) -> None:
        rules = ("m.room.join_rules", "", {"join_rule": "knock"})
        room_id = await at.ours.room(at.alice, preset="private_chat", initial_state=[rules], name="Knock")
        refused(await at.get("make_knock", room_id, BOB), 400, "M_MISSING_PARAM")
        knock = await at.template("knock", room_id)
        answer = await at.put(knock.pdu, "send_knock", room_id, knock.event_id, prefix=V1)
        assert {event["type"] for event in answer.json()["knock_room_state"]} >= {"m.room.create", "m.room.name"}
        assert all("signatures" in event for event in answer.json()["knock_room_state"])
        assert await at.ours.membership(room_id, BOB) == "knock"
        closed = await at.ours.room(at.alice, preset="private_chat")
        refused(await at.get("make_knock", closed, BOB, query="ver=11"), 403, "M_FORBIDDEN")
        old = await at.ours.room(at.alice, version="6")
        refused(await at.get("make_knock", old, BOB, query="ver=6"), 403, "M_FORBIDDEN")

    ask(servers, story)
