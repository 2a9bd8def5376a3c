"""homeserver/graph/restoring.py: an altered copy keeps the real event out for no longer than until it comes."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from homeserver.protocol.events import Event
from homeserver.protocol.json_types import JsonObject
from homeserver.storage.event_graph import Verdict
from tests.fakes.servers import Servers
from tests.graph.test_receive import ALICE, EVE, OTHER, OURS, VERSIONS, Scene, no_events, play

CAROL = f"@carol:{OTHER}"


def altered(event: Event, **content: Any) -> JsonObject:
    return {**event.pdu, "content": {**event.content, "body": "altered", **content}}


@VERSIONS
def test_only_servers_in_the_room_pass_on_events_of_others(servers: Servers, version: str) -> None:
    async def story(at: Scene) -> None:
        other = at.servers.remote(OTHER, at.room)
        message = at.room.send(ALICE, "whole")
        for copy in (altered(message), message.pdu):
            results = await other.transaction(OURS, [copy])
            assert "not in the room" in results[message.event_id]["error"]
            assert await at.verdict(message) is None
        assert await at.send(message) == {message.event_id: {}}
        # Once it is in the room it may, and its own users' events say for themselves whether they are allowed.
        assert await other.transaction(OURS, [at.room.join(CAROL)])
        relayed = at.room.send(ALICE, "relayed")
        assert await other.transaction(OURS, [relayed]) == {relayed.event_id: {}}
        leave = at.room.leave(CAROL)
        assert await other.transaction(OURS, [leave]) == {leave.event_id: {}}
        late = at.room.send(ALICE, "late")
        assert "not in the room" in (await other.transaction(OURS, [late]))[late.event_id]["error"]

    play(servers, story, version)


@VERSIONS
def test_a_member_that_passes_on_altered_content_is_refused(servers: Servers, version: str) -> None:
    async def story(at: Scene) -> None:
        other = at.servers.remote(OTHER, at.room)
        await other.transaction(OURS, [at.room.join(CAROL)])
        message = at.room.send(ALICE, "whole")
        results = await other.transaction(OURS, [altered(message)])
        assert "hash" in results[message.event_id]["error"]
        assert await at.send(message) == {message.event_id: {}}
        assert (await at.ours.wait_for(message.event_id)).event.content["body"] == "whole"

    play(servers, story, version)


@VERSIONS
def test_the_intact_event_takes_the_place_of_a_copy_in_the_graph(servers: Servers, version: str) -> None:
    async def story(at: Scene) -> None:
        message = at.room.send(ALICE, "whole")
        named = at.room.event(ALICE, "m.room.member", {"membership": "join", "displayname": "Alice"}, ALICE)
        target = at.room.send(EVE, "to be redacted")
        redaction = at.room.redact(ALICE, target)
        story_ = [message, named, target, redaction]
        copies = [altered(event) if event is not target else event.pdu for event in story_]
        assert await at.send(*copies) == {event.event_id: {} for event in story_}
        assert (await at.ours.wait_for(message.event_id)).event.content == {}
        assert await at.send(*story_) == {event.event_id: {} for event in story_}
        for event in story_:
            stored = await at.ours.event(event.event_id)
            assert stored is not None
            assert stored.original.pdu == event.pdu
        stored = await at.ours.event(target.event_id)
        assert stored is not None
        assert stored.redacted_by is not None
        # The other way round nothing changes.
        assert await at.send(*copies) == {event.event_id: {} for event in story_}
        assert (await at.ours.wait_for(message.event_id)).event.content["body"] == "whole"

    play(servers, story, version)


def test_outliers_are_restored_and_not_altered(servers: Servers) -> None:
    async def story(at: Scene) -> None:
        at.remote.replaced["missing_events"] = no_events
        topic = at.room.state_event(ALICE, "m.room.topic", {"topic": "whole"})
        at.room.send(ALICE, "lost")
        first = at.room.send(EVE, "first")

        async def event(request: Request) -> Response:
            if request.path_params["event_id"] == topic.event_id:
                return JSONResponse({"pdus": [altered(topic)]})
            return await at.remote._event(request)

        at.remote.replaced["event"] = event
        assert await at.send(first) == {first.event_id: {}}
        stored = await at.ours.event(topic.event_id)
        assert stored is not None
        assert stored.verdict == Verdict.OUTLIER
        assert stored.event.content == {}

        chain = [topic, *at.room.auth_chain([topic])]

        async def event_auth(_: Request) -> Response:
            return JSONResponse({"auth_chain": [e.pdu for e in chain]})

        at.remote.replaced["event_auth"] = event_auth
        hidden = at.room.set_power_levels(ALICE, state_default=40, prev_events=[first])
        state = at.room.state_before(hidden)
        chain.extend([hidden, *at.room.auth_chain([hidden])])
        cited = [hidden, state["m.room.member", ALICE], state["m.room.create", ""]]
        cites = at.room.send(ALICE, "brings the chain along", prev_events=[first], auth_events=cited)
        assert await at.send(cites) == {cites.event_id: {}}
        assert (await at.ours.get_state(await at.ours.head(at.room.room_id), "m.room.topic")) == {"topic": "whole"}
        # Placed by an altered copy, it keeps the content that is known.
        assert await at.send(altered(topic)) == {topic.event_id: {}}
        assert (await at.ours.wait_for(topic.event_id)).event.content == {"topic": "whole"}

    play(servers, story)
