"""What servers may ask of rooms that they are in."""

from __future__ import annotations

import httpx
import pytest

from homeserver.graph.send import Sender
from homeserver.membership.membership import Memberships
from homeserver.protocol.event_format import parse_event
from homeserver.protocol.events import EventDraft
from homeserver.protocol.room_versions import ROOM_VERSIONS
from homeserver.reading.shared_history import SharedHistory
from homeserver.rooms.aliases import RoomAliases
from tests.fakes.servers import Servers
from tests.federation_api.asking import BOB, OURS, Asking, ask, refused

VERSION = ROOM_VERSIONS["11"]


def id_of(pdu: dict) -> str:  # type: ignore[type-arg]
    return parse_event(pdu, VERSION).event_id


async def room_with_messages(
    at: Asking, visibility: str = "shared", count: int = 5
) -> tuple[str, list[str], list[str]]:
    """A room, and the messages before and after the remote server came."""
    state = [("m.room.history_visibility", "", {"history_visibility": visibility})]
    room_id = await at.ours.room(at.alice, initial_state=state)
    before = [await at.ours.send(at.alice, room_id, f"before {number}") for number in range(count)]
    await at.join(room_id)
    return room_id, before, [await at.ours.send(at.alice, room_id, f"after {number}") for number in range(count)]


def test_only_servers_in_the_room_may_ask(servers: Servers) -> None:
    async def story(at: Asking) -> None:
        room_id = await at.ours.room(at.alice)
        event_id = await at.ours.send(at.alice, room_id)
        for answer in (
            await at.get("backfill", room_id, query=f"v={event_id}&limit=5"),
            await at.get("state", room_id, query=f"event_id={event_id}"),
            await at.get("state_ids", room_id, query=f"event_id={event_id}"),
            await at.get("event_auth", room_id, event_id),
            await at.post({"earliest_events": [], "latest_events": [event_id]}, "get_missing_events", room_id),
        ):
            refused(answer, 403, "M_FORBIDDEN")
        refused(await at.get("event", event_id), 404, "M_NOT_FOUND")
        refused(await at.get("backfill", "!unknown:x", query="v=$x&limit=5"), 404, "M_NOT_FOUND")
        await at.join(room_id)
        assert (await at.get("event", event_id)).status_code == 200
        leave = await at.template("leave", room_id)
        await at.put(leave.pdu, "send_leave", room_id, leave.event_id)
        refused(await at.get("event", event_id), 404, "M_NOT_FOUND")

    ask(servers, story)


def test_a_server_whose_last_user_was_removed_may_fetch_what_it_was_there_for(servers: Servers) -> None:
    async def story(at: Asking) -> None:
        room_id, before, after = await room_with_messages(at)
        await at.ours.get(Memberships).ban(at.alice, room_id, BOB)
        ban = (await at.ours.head(room_id)).state["m.room.member", BOB]
        later = await at.ours.send(at.alice, room_id, "later")
        question = {"earliest_events": [after[1]], "latest_events": [ban], "limit": 20}
        missing = await at.post(question, "get_missing_events", room_id)
        assert [id_of(pdu) for pdu in missing.json()["events"]] == after[2:]
        backfill = (await at.get("backfill", room_id, query=f"v={later}&limit=100")).json()
        assert [id_of(pdu) for pdu in backfill["pdus"][:6]] == [ban, *after[::-1]]
        assert not {id_of(pdu) for pdu in backfill["pdus"]} & {later, *before}
        for event_id, status in ((ban, 200), (after[0], 200), (later, 403), (before[0], 403)):
            for answer in (
                await at.get("state", room_id, query=f"event_id={event_id}"),
                await at.get("state_ids", room_id, query=f"event_id={event_id}"),
                await at.get("event_auth", room_id, event_id),
            ):
                assert answer.status_code == status, answer.text
            single = await at.get("event", event_id)
            assert single.status_code == (200 if status == 200 else 404)

    ask(servers, story)


def test_who_was_never_inside_learns_nothing_of_the_room(servers: Servers) -> None:
    async def story(at: Asking) -> None:
        room_id = await at.ours.room(at.alice)
        await at.ours.get(Memberships).ban(at.alice, room_id, BOB)
        ban = (await at.ours.head(room_id)).state["m.room.member", BOB]
        refused(await at.get("state", room_id, query=f"event_id={ban}"), 403, "M_FORBIDDEN")
        refused(await at.get("event_auth", room_id, ban), 403, "M_FORBIDDEN")
        question = {"earliest_events": [], "latest_events": [ban], "limit": 20}
        assert (await at.post(question, "get_missing_events", room_id)).json() == {"events": []}

    ask(servers, story)


def test_events_of_other_rooms_are_not_given_away(servers: Servers) -> None:
    async def story(at: Asking) -> None:
        secret = await at.ours.room(at.alice, preset="private_chat")
        secret_event = await at.ours.send(at.alice, secret)
        room_id, _, (first, *_) = await room_with_messages(at)
        refused(await at.get("state", room_id, query=f"event_id={secret_event}"), 404, "M_NOT_FOUND")
        refused(await at.get("state_ids", room_id, query=f"event_id={secret_event}"), 404, "M_NOT_FOUND")
        refused(await at.get("event_auth", room_id, secret_event), 404, "M_NOT_FOUND")
        backfill = await at.get("backfill", room_id, query=f"v={secret_event}&limit=10")
        assert backfill.json()["pdus"] == []
        missing = await at.post({"earliest_events": [], "latest_events": [secret_event]}, "get_missing_events", room_id)
        assert missing.json()["events"] == []
        assert id_of((await at.get("event", first)).json()["pdus"][0]) == first

    ask(servers, story)


def test_backfill(servers: Servers) -> None:
    async def story(at: Asking) -> None:
        room_id, before, after = await room_with_messages(at)
        answer = (await at.get("backfill", room_id, query=f"v={after[2]}&limit=7")).json()
        assert answer["origin"] == OURS
        found = [id_of(pdu) for pdu in answer["pdus"]]
        assert found[:3] == [after[2], after[1], after[0]]
        assert found[4:] == [before[4], before[3], before[2]]
        everything = await at.get("backfill", room_id, query=f"v={after[2]}&limit=1000")
        assert everything.json()["pdus"][-1]["type"] == "m.room.create"
        refused(await at.get("backfill", room_id, query="limit=7"), 400, "M_MISSING_PARAM")
        refused(await at.get("backfill", room_id, query="v=$x"), 400, "M_MISSING_PARAM")
        refused(await at.get("backfill", room_id, query="v=$x&limit=x"), 400, "M_INVALID_PARAM")

    ask(servers, story)


def test_missing_events(servers: Servers) -> None:
    async def story(at: Asking) -> None:
        room_id, before, after = await room_with_messages(at)
        question = {"earliest_events": [before[3]], "latest_events": [after[2]], "limit": 10}
        found = [id_of(pdu) for pdu in (await at.post(question, "get_missing_events", room_id)).json()["events"]]
        assert found[0] == before[4]
        assert found[2:] == [after[0], after[1]]
        assert len(found) == 4
        few = await at.post({**question, "limit": 2}, "get_missing_events", room_id)
        assert [id_of(pdu) for pdu in few.json()["events"]] == [after[0], after[1]]
        refused(await at.post({"latest_events": []}, "get_missing_events", room_id), 400, "M_MISSING_PARAM")
        wrong = {"earliest_events": [1], "latest_events": []}
        refused(await at.post(wrong, "get_missing_events", room_id), 400, "M_BAD_JSON")

    ask(servers, story)


@pytest.mark.parametrize("visibility", ["joined", "invited"])
def test_what_a_server_may_not_see_comes_redacted(servers: Servers, visibility: str) -> None:
    async def story(at: Asking) -> None:
        room_id, before, after = await room_with_messages(at, visibility)
        answer = (await at.get("backfill", room_id, query=f"v={after[0]}&limit=100")).json()
        contents = {id_of(pdu): pdu["content"] for pdu in answer["pdus"]}
        assert contents[after[0]]["body"] == "after 0"
        for event_id in before:
            assert contents[event_id] == {}
            assert (await at.get("event", event_id)).json()["pdus"][0]["content"] == {}

    ask(servers, story)


def test_whoever_was_invited_may_see_from_then_on(servers: Servers) -> None:
    async def story(at: Asking) -> None:
        state = [("m.room.history_visibility", "", {"history_visibility": "invited"})]
        room_id = await at.ours.room(at.alice, initial_state=state)
        early = await at.ours.send(at.alice, room_id, "early")
        await at.ours.get(Memberships).invite(at.alice, room_id, BOB)
        late = await at.ours.send(at.alice, room_id, "late")
        await at.join(room_id)
        answer = (await at.get("backfill", room_id, query=f"v={late}&limit=100")).json()
        contents = {id_of(pdu): pdu["content"] for pdu in answer["pdus"]}
        assert contents[late]["body"] == "late"
        assert contents[early] == {}

    ask(servers, story)


def test_redacted_events_are_given_redacted(servers: Servers) -> None:
    from homeserver.graph.send import Sender
    from homeserver.protocol.events import EventDraft

    async def story(at: Asking) -> None:
        room_id, _, after = await room_with_messages(at)
        topic = await at.ours.send_state(at.alice, room_id, "m.room.topic", {"topic": "secret"})
        for target in (after[0], topic):
            await at.ours.get(Sender).send(room_id, EventDraft("m.room.redaction", at.alice, {}, redacts=target))
        assert (await at.get("event", after[0])).json()["pdus"][0]["content"] == {}
        last = await at.ours.send(at.alice, room_id)
        state = (await at.get("state", room_id, query=f"event_id={last}")).json()["pdus"]
        assert [event["content"] for event in state if event["type"] == "m.room.topic"] == [{}]

    ask(servers, story)


def test_a_rendered_state_is_kept_until_an_event_is_redacted(servers: Servers) -> None:
    async def story(at: Asking) -> None:
        room_id, _, _ = await room_with_messages(at)
        topic = await at.ours.send_state(at.alice, room_id, "m.room.topic", {"topic": "secret"})
        last = await at.ours.send(at.alice, room_id)

        async def state() -> httpx.Response:
            return await at.get("state", room_id, query=f"event_id={last}")

        first = await state()
        rendered = at.ours.get(SharedHistory)._rendered
        assert len(rendered) == 1
        assert (await state()).content == first.content
        assert "secret" in first.text
        await at.ours.get(Sender).send(room_id, EventDraft("m.room.redaction", at.alice, {}, redacts=topic))
        assert len(rendered) == 0
        assert "secret" not in (await state()).text

    ask(servers, story)


def test_states_and_auth_chains(servers: Servers) -> None:
    async def story(at: Asking) -> None:
        room_id, _, after = await room_with_messages(at)
        topic = await at.ours.send_state(at.alice, room_id, "m.room.topic", {"topic": "new"})
        last = await at.ours.send(at.alice, room_id)
        at_topic = (await at.get("state", room_id, query=f"event_id={topic}")).json()
        at_last = (await at.get("state", room_id, query=f"event_id={last}")).json()
        kinds = [{event["type"] for event in answer["pdus"]} for answer in (at_topic, at_last)]
        assert "m.room.topic" not in kinds[0]
        assert "m.room.topic" in kinds[1]
        assert {e["type"] for e in at_last["auth_chain"]} == {
            "m.room.create", "m.room.member", "m.room.power_levels", "m.room.join_rules",
        }  # fmt: skip
        as_ids = (await at.get("state_ids", room_id, query=f"event_id={last}")).json()
        assert sorted(as_ids["pdu_ids"]) == sorted(id_of(e) for e in at_last["pdus"])
        assert as_ids["auth_chain_ids"] == [id_of(e) for e in at_last["auth_chain"]]
        chain = (await at.get("event_auth", room_id, after[0])).json()["auth_chain"]
        assert {e["type"] for e in chain} == {"m.room.create", "m.room.member", "m.room.power_levels"}
        refused(await at.get("state", room_id), 400, "M_MISSING_PARAM")
        refused(await at.get("state", room_id, query="event_id=$nothing"), 404, "M_NOT_FOUND")
        refused(await at.get("event_auth", room_id, "$nothing"), 404, "M_NOT_FOUND")

    ask(servers, story)


def test_queries(servers: Servers) -> None:
    async def story(at: Asking) -> None:
        room_id = await at.ours.room(at.alice)
        alias = f"#room:{OURS}"
        await at.ours.get(RoomAliases).add(alias, room_id, at.alice)
        found = (await at.get("query", "directory", query=f"room_alias=%23room:{OURS}")).json()
        assert found == {"room_id": room_id, "servers": [OURS]}
        refused(await at.get("query", "directory", query=f"room_alias=%23none:{OURS}"), 404, "M_NOT_FOUND")
        refused(await at.get("query", "directory", query="room_alias=x"), 400, "M_INVALID_PARAM")
        refused(await at.get("query", "directory"), 400, "M_MISSING_PARAM")
        assert (await at.get("query", "profile", query=f"user_id={at.alice}")).status_code == 200
        refused(await at.get("query", "profile", query=f"user_id=@none:{OURS}"), 404, "M_NOT_FOUND")
        refused(await at.get("query", "profile", query="user_id=@a:elsewhere.test"), 404, "M_NOT_FOUND")
        refused(await at.get("query", "profile", query=f"user_id={at.alice}&field=nothing"), 404, "M_NOT_FOUND")
        refused(await at.get("query", "profile", query="user_id=alice"), 400, "M_INVALID_PARAM")
        refused(await at.get("query", "unknown"), 404, "M_UNRECOGNIZED")

    ask(servers, story)
