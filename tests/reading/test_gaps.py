"""History that is missing, and fetched from other servers when somebody reads to it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable

import orjson
import pytest
from sqlalchemy import func, select, update
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from homeserver.graph.silent_servers import GIVEN_UP_AFTER_MS, GIVEN_UP_TIMES
from homeserver.graph.under_way import HISTORY, UnderWay
from homeserver.membership.membership import Memberships
from homeserver.protocol.compose import compose_event
from homeserver.protocol.event_format import parse_event
from homeserver.protocol.events import Event, EventDraft, StateKey
from homeserver.reading.state_and_members import StateAndMembers
from homeserver.reading.tokens import parse_token
from homeserver.storage.database import Database
from homeserver.storage.tables import backward_extremities, events, silent_servers
from tests.factories.rooms import RoomFactory, server_key
from tests.fakes.reader import Reader, ids, texts
from tests.fakes.servers import Servers, eventually
from tests.graph.test_receive import ALICE, EVE, OTHER, OURS, REMOTE, Scene, scene

VERSIONS = pytest.mark.parametrize("version", ["1", "11", "12"])
LEVELS: tuple[StateKey, ...] = (("m.room.create", ""), ("m.room.power_levels", ""))


def play(
    servers: Servers, story: Callable[[Scene, Reader], Awaitable[None]], version: str = "11", *, said: int = 0
) -> None:
    """Bob joins through the remote server, in whose room that much was said before."""

    async def run() -> None:
        async with servers:
            ours = await servers.ours(OURS)
            room = RoomFactory(version, REMOTE)
            room.create("alice")
            room.join(EVE)
            for number in range(said):
                room.send(ALICE, f"before {number}")
            remote = servers.remote(REMOTE, room)
            bob = await ours.user("bob")
            await ours.join(bob, room.room_id, REMOTE)
            await story(Scene(servers, ours, remote, room, bob), Reader(ours, bob))

    asyncio.run(run())


def asked(at: Scene) -> int:
    return len(at.servers.network.requests(REMOTE, "backfill"))


def junk(room: RoomFactory, number: int, sender: str = EVE, prev: Event | None = None) -> Event:
    """A message that follows an event which nobody has, or one like itself."""
    keys = (*LEVELS, ("m.room.member", sender))
    depths = [event.depth for event in room.events.values()]
    return compose_event(
        EventDraft("m.room.message", sender, {"body": f"junk {number}"}),
        room.version,
        room_id=room.room_id,
        prev_events=[("$" + "-" * 41 + f"{number:02}" if prev is None else prev.event_id, "")],
        auth_events=[(room.state[key].event_id, "") for key in keys if key in room.state],
        depth=max(depths),
        origin_server_ts=1_790_000_000_000,
        signer=server_key(REMOTE),
    )


def backdated(room: RoomFactory, number: int, prev: Event, depth: int) -> Event:
    """A message that claims to have come long ago, after this event."""
    keys = (*LEVELS, ("m.room.member", EVE))
    return compose_event(
        EventDraft("m.room.message", EVE, {"body": f"junk {number}"}),
        room.version,
        room_id=room.room_id,
        prev_events=[(prev.event_id, "")],
        auth_events=[(room.state[key].event_id, "") for key in keys if key in room.state],
        depth=depth,
        origin_server_ts=prev.origin_server_ts + 1,
        signer=server_key(REMOTE),
    )


async def send_junk(at: Scene, count: int) -> list[str]:
    """Messages that follow what their server shows once and never again. Returns the IDs of those that are let in."""
    before = [event.event_id for event in at.room.state.values()]
    hidden = [junk(at.room, number) for number in range(count)]
    shown = {event.event_id: event for event in hidden}

    async def state_ids(_: Request) -> Response:
        return JSONResponse({"pdu_ids": before, "auth_chain_ids": []})

    async def nothing(_: Request) -> Response:
        return JSONResponse({"events": []})

    async def show(request: Request) -> Response:
        event = shown.get(request.path_params["event_id"]) or at.room.events[request.path_params["event_id"]]
        return JSONResponse({"origin": REMOTE, "origin_server_ts": 1, "pdus": [event.pdu]})

    at.remote.replaced.update(state_ids=state_ids, missing_events=nothing, event=show)
    sent = [junk(at.room, number, prev=event) for number, event in enumerate(hidden)]
    for event in sent:
        assert await at.send(event) == {event.event_id: {}}
    at.remote.replaced.clear()
    return [event.event_id for event in sent]


async def may_ask_again(at: Scene) -> None:
    """As after a long time."""
    await at.ours.get(Database).write(lambda c: c.execute(update(backward_extremities).values(retry_ts=0)))


async def go_away_and_come_back(at: Scene, count: int, happen: Callable[[], list[Event]] | None = None) -> list[Event]:
    await at.ours.get(Memberships).leave(at.bob, at.room.room_id)

    async def left() -> list[dict]:  # type: ignore[type-arg]
        return [pdu for pdu in at.remote.got() if pdu["content"].get("membership") == "leave"]

    leave = parse_event((await eventually(left))[-1], at.room.version)
    known = [event_id for event_id in leave.prev_events if event_id in at.room.events]
    at.room._add(leave, known, at.room._merged(known))
    missed = [at.room.send(ALICE, f"missed {number}") for number in range(count)] if happen is None else happen()
    await at.ours.join(at.bob, at.room.room_id, REMOTE)
    return missed


async def places(at: Scene, wanted: Iterable[Event]) -> list[int]:
    stored = [await at.ours.event(event.event_id) for event in wanted]
    return [event.place for event in stored if event is not None and event.place is not None]


@VERSIONS
def test_the_first_sync_after_a_join_leads_into_the_history(servers: Servers, version: str) -> None:
    async def story(at: Scene, bob: Reader) -> None:
        room_id = at.room.room_id
        timeline = await bob.timeline(room_id)
        assert timeline["limited"]
        assert [event["state_key"] for event in timeline["events"]] == [at.bob]
        page = await bob.page(room_id, timeline["prev_batch"], limit=20)
        assert texts(page["chunk"]) == [f"before {number}" for number in range(129, 109, -1)]
        assert page["start"] == timeline["prev_batch"]
        whole = [*page["chunk"], *await bob.pages(room_id, page["end"], limit=30)]
        earlier = list(at.room.events)[: list(at.room.events).index(timeline["events"][0]["event_id"])]
        assert ids(whole) == list(reversed(earlier))
        forth = await bob.pages(room_id, dir="f", limit=50)
        assert ids(forth) == [*earlier, timeline["events"][0]["event_id"]]
        assert texts((await bob.page(room_id, limit=5))["chunk"])[0] == "before 129"
        assert await bob.page(room_id, "s1_0_0_0") == {"chunk": [], "start": "s1_0_0_0"}, "before the room came here"

    play(servers, story, version, said=130)


def test_a_page_for_which_nobody_can_be_asked_can_be_tried_again(servers: Servers) -> None:
    async def story(at: Scene, bob: Reader) -> None:
        at.servers.network.split(OURS, REMOTE)
        for dir in ("b", "f"):
            first = await bob.page(at.room.room_id, dir=dir)
            again = await bob.page(at.room.room_id, first["end"], dir=dir)
            assert (again["chunk"], again["end"]) == ([], first["end"])
            assert len(first["chunk"]) == (1 if dir == "b" else 0)
        at.servers.network.heal(OURS, REMOTE)
        before = await bob.timeline(at.room.room_id)
        assert len(await bob.pages(at.room.room_id, before["prev_batch"])) == len(at.room.events) - 1

    play(servers, story, said=10)


async def has_been_silent_for_minutes(at: Scene) -> None:
    """As if the servers that do not answer had not for so long that the next time gives them up."""
    row = silent_servers.c
    longer = {"since_ts": row.since_ts - GIVEN_UP_AFTER_MS, "times": GIVEN_UP_TIMES - 1}
    await at.ours.get(Database).write(lambda c: c.execute(update(silent_servers).values(longer)))


async def lose_sight(at: Scene, bob: Reader) -> None:
    """A room whose history is here, but for five messages between."""
    assert len(await bob.pages(at.room.room_id, limit=100)) == len(at.room.events)
    await go_away_and_come_back(at, 5)
    at.servers.network.split(OURS, REMOTE)


BEFORE = [f"before {number}" for number in range(9, -1, -1)]
MISSED = [f"missed {number}" for number in range(4, -1, -1)]


def test_what_is_here_stays_in_reach_when_the_other_server_is_gone(servers: Servers) -> None:
    async def story(at: Scene, bob: Reader) -> None:
        room_id = at.room.room_id
        await lose_sight(at, bob)
        for _ in range(GIVEN_UP_TIMES + 1):
            first = await bob.page(room_id)
            assert texts(first["chunk"]) == []
            assert "end" in first, "some failures within a moment give nobody up"
        forth = await bob.pages(room_id, dir="f", limit=100)
        assert texts(forth) == BEFORE[::-1], "and not the event after the gap"
        await has_been_silent_for_minutes(at)
        assert texts(await bob.pages(room_id, first["end"], limit=4)) == BEFORE
        assert len(await bob.pages(room_id, dir="f", limit=100)) == len(forth) + 1
        at.servers.network.heal(OURS, REMOTE)
        times = asked(at)
        assert texts(await bob.pages(room_id, first["end"])) == BEFORE
        assert asked(at) == times, "it is left alone for a while"
        await at.send(at.room.send(ALICE, "there again"))

        async def missed() -> list[str]:
            found = texts(await bob.pages(room_id, first["end"]))
            return found if MISSED[0] in found else []

        assert await eventually(missed) == MISSED + BEFORE

    play(servers, story, said=10)


def test_a_server_that_was_given_up_is_asked_now_and_then(servers: Servers) -> None:
    async def story(at: Scene, bob: Reader) -> None:
        await lose_sight(at, bob)
        await bob.page(at.room.room_id)
        await has_been_silent_for_minutes(at)
        assert texts(await bob.pages(at.room.room_id)) == BEFORE
        at.servers.network.heal(OURS, REMOTE)
        row = silent_servers.c
        earlier = {"since_ts": row.since_ts - GIVEN_UP_AFTER_MS, "last_ts": row.last_ts - GIVEN_UP_AFTER_MS - 1000}
        await at.ours.get(Database).write(lambda c: c.execute(update(silent_servers).values(earlier)))
        assert texts(await bob.pages(at.room.room_id)) == MISSED + BEFORE

    play(servers, story, said=10)


def test_who_has_left_reads_across_a_gap(servers: Servers) -> None:
    async def story(at: Scene, bob: Reader) -> None:
        await lose_sight(at, bob)
        at.servers.network.heal(OURS, REMOTE)
        await at.ours.get(Memberships).leave(at.bob, at.room.room_id)
        for options in ({"limit": 3}, {"limit": 100}):
            assert texts(await bob.pages(at.room.room_id, **options)) == BEFORE, "nobody tells us more"
            assert texts(await bob.pages(at.room.room_id, dir="f", **options)) == BEFORE[::-1]

    play(servers, story, said=10)


def test_a_gap_that_a_late_event_closes_cuts_no_timeline(servers: Servers) -> None:
    async def story(at: Scene, bob: Reader) -> None:
        state = [event.event_id for event in at.room.state.values()]
        late, first = at.room.send(ALICE, "late"), at.room.send(ALICE, "first")
        since = (await bob.sync())["next_batch"]

        async def state_ids(_: Request) -> Response:
            return JSONResponse({"pdu_ids": state, "auth_chain_ids": []})

        async def nothing(_: Request) -> Response:
            return JSONResponse({"events": []})

        at.remote.replaced.update(state_ids=state_ids, missing_events=nothing)
        await at.send(first)
        assert (await bob.timeline(at.room.room_id, since))["limited"], "an event is missing before it"
        at.remote.replaced.clear()
        await at.send(late)
        timeline = await bob.timeline(at.room.room_id, since)
        assert (texts(timeline["events"]), timeline["limited"]) == (["first", "late"], False)

    play(servers, story)


def test_one_at_a_time_fetches_history_of_a_room(servers: Servers) -> None:
    async def story(at: Scene, bob: Reader) -> None:
        claims: list[bool] = []

        async def nothing(_: Request) -> Response:
            claims.append(await at.ours.get(UnderWay).is_under_way(HISTORY, at.room.room_id))
            return JSONResponse({"pdus": [], "origin": REMOTE, "origin_server_ts": 1})

        at.remote.replaced["backfill"] = nothing
        await bob.page(at.room.room_id)
        assert claims == [True], "other processes wait meanwhile"
        assert not await at.ours.get(UnderWay).is_under_way(HISTORY, at.room.room_id)

    play(servers, story, said=10)


def test_servers_that_have_nothing_are_not_asked_again_at_once(servers: Servers) -> None:
    async def nothing(_: Request) -> Response:
        return JSONResponse({"pdus": [], "origin": REMOTE, "origin_server_ts": 1})

    async def story(at: Scene, bob: Reader) -> None:
        at.remote.replaced["backfill"] = nothing
        answer = await bob.page(at.room.room_id)
        assert "end" not in answer, "the only other server has nothing"
        assert asked(at) == 1
        await bob.page(at.room.room_id)
        assert asked(at) == 1
        at.remote.replaced.clear()
        await bob.page(at.room.room_id)
        assert asked(at) == 1
        await may_ask_again(at)
        assert len(await bob.pages(at.room.room_id)) == len(at.room.events)

    play(servers, story, said=10)


def test_there_is_an_end_as_long_as_another_server_may_have_more(servers: Servers) -> None:
    async def nothing(_: Request) -> Response:
        return JSONResponse({"pdus": [], "origin": REMOTE, "origin_server_ts": 1})

    async def story(at: Scene, bob: Reader) -> None:
        other = at.servers.remote(OTHER, at.room)
        joined = at.room.join(f"@olga:{OTHER}")
        await at.send(joined)
        at.remote.replaced["backfill"] = other.replaced["backfill"] = nothing
        at.servers.network.split(OURS, OTHER)
        answer = await bob.page(at.room.room_id)
        assert "end" in answer
        at.servers.network.heal(OURS, OTHER)
        other.replaced.clear()
        await may_ask_again(at)
        assert len(await bob.pages(at.room.room_id, answer["end"])) == len(at.room.events) - 2

    play(servers, story, said=10)


def test_junk_hides_no_history(servers: Servers) -> None:
    async def story(at: Scene, bob: Reader) -> None:
        sent = await send_junk(at, 25)
        whole = await bob.pages(at.room.room_id)
        assert sorted(ids(whole)) == sorted([*at.room.events, *sent])
        assert asked(at) <= 5
        before = asked(at)
        await bob.pages(at.room.room_id)
        assert asked(at) == before

    play(servers, story, said=30)


def test_junk_that_came_before_does_not_stop_a_real_gap_from_being_asked_about(servers: Servers) -> None:
    async def story(at: Scene, bob: Reader) -> None:
        await send_junk(at, 12)
        missed = await go_away_and_come_back(at, 5)
        await send_junk(at, 12)
        found = texts(await bob.pages(at.room.room_id))
        assert {event.content["body"] for event in missed} < set(found)
        assert {f"before {number}" for number in range(30)} < set(found)

    play(servers, story, said=30)


@VERSIONS
def test_what_was_missed_while_away_stands_where_it_was_missed(servers: Servers, version: str) -> None:
    async def story(at: Scene, bob: Reader) -> None:
        here = [at.room.send(ALICE, f"here {number}") for number in range(3)]
        await at.send(*here)
        since = (await bob.sync())["next_batch"]
        missed = await go_away_and_come_back(at, 120)
        after = [at.room.send(ALICE, f"after {number}") for number in range(2)]
        await at.send(*after)
        for timeline in (await bob.timeline(at.room.room_id, since), await bob.timeline(at.room.room_id, limit=20)):
            assert timeline["limited"]
            assert texts(timeline["events"]) == ["after 0", "after 1"], "the timeline starts after the hole"
        between = await bob.pages(at.room.room_id, timeline["prev_batch"], end=since, limit=25)
        assert texts(between) == [f"missed {number}" for number in range(119, -1, -1)]
        everything = await bob.pages(at.room.room_id)
        assert len(set(ids(everything))) == len(everything) == len(at.room.events)
        assert await places(at, missed) == sorted(await places(at, missed))
        again = await bob.timeline(at.room.room_id, limit=20)
        # What was backfilled is no part of a timeline, and must not be skipped by one either.
        assert (ids(again["events"]), again["prev_batch"]) == (ids(timeline["events"]), timeline["prev_batch"])

    play(servers, story, version)


def test_two_gaps_in_one_answer(servers: Servers) -> None:
    """An answer for the newer gap goes on past what is here, to what is missing before the older one."""

    async def story(at: Scene, bob: Reader) -> None:
        missed = await go_away_and_come_back(at, 5)
        assert texts(await bob.pages(at.room.room_id, limit=100)) == [
            *reversed([event.content["body"] for event in missed]),
            *(f"before {number}" for number in range(29, -1, -1)),
        ]

    play(servers, story, said=30)


def test_history_behind_an_event_that_no_server_gives_away(servers: Servers) -> None:
    """Servers leave out of their answers what they have rejected."""

    async def story(at: Scene, bob: Reader) -> None:
        gone = next(event for event in at.room.events.values() if event.content.get("body") == "before 20")
        at.remote.hidden.add(gone.event_id)
        found = texts(await bob.pages(at.room.room_id))
        assert found == [f"before {number}" for number in range(29, -1, -1) if number != 20]
        times = asked(at)
        assert texts(await bob.pages(at.room.room_id)) == found
        assert asked(at) == times

    play(servers, story, said=30)


def test_one_server_alone_cannot_add_a_branch_to_the_past(servers: Servers) -> None:
    """Eve's server slips old-looking events into its answers, one with and one without a link to the history."""

    async def story(at: Scene, bob: Reader) -> None:
        carol = f"@carol:{OTHER}"
        other = at.servers.remote(OTHER, at.room)
        await at.send(at.room.join(carol))
        old = next(event for event in at.room.events.values() if event.content.get("body") == "before 5")
        gone = next(event for event in at.room.events.values() if event.content.get("body") == "before 20")
        lies = [backdated(at.room, 1, old, 10), backdated(at.room, 2, old, 11)]
        lies.append(backdated(at.room, 3, lies[1], 12))

        async def backfill(request: Request) -> Response:
            answer = orjson.loads((await at.remote._backfill(request)).body)
            return JSONResponse({**answer, "pdus": [*answer["pdus"], *(event.pdu for event in lies)]})

        at.remote.replaced["backfill"] = backfill
        at.remote.hidden = other.hidden = {gone.event_id}
        found = texts(await bob.pages(at.room.room_id))
        assert [text for text in found if text.startswith("before")] == [
            f"before {number}" for number in range(29, -1, -1) if number != 20
        ]
        assert not [text for text in found if text.startswith("junk")]

    play(servers, story, said=30)


def test_what_was_not_asked_for_does_not_become_history(servers: Servers) -> None:
    async def story(at: Scene, bob: Reader) -> None:
        news = at.room.send(ALICE, "news")
        foreign = RoomFactory("11", REMOTE, room_localpart="other")
        foreign.create("alice")
        earlier = [event for event in at.room.events.values() if event.depth < 20]

        async def more(_: Request) -> Response:
            return JSONResponse({"pdus": [e.pdu for e in (*earlier, news, *foreign.events.values())]})

        at.remote.replaced["backfill"] = more
        since = (await bob.sync())["next_batch"]
        found = await bob.pages(at.room.room_id)
        assert news.event_id not in ids(found)
        assert not set(ids(found)) & set(foreign.events)
        await at.send(news)
        assert texts((await bob.timeline(at.room.room_id, since))["events"]) == ["news"]

    play(servers, story, said=30)


def test_many_who_read_at_once(servers: Servers) -> None:
    async def story(at: Scene, bob: Reader) -> None:
        found = await asyncio.gather(
            *(bob.pages(at.room.room_id, dir=dir, limit=limit) for dir in ("b", "f") for limit in (7, 100))
        )
        for events_found in found:
            assert len(events_found) == len(set(ids(events_found))) == len(at.room.events)
        rows = await at.ours.get(Database).read(
            lambda c: c.execute(select(func.count(), func.count(events.c.place.distinct()))).one()
        )
        assert rows[1] == len(at.room.events)

    play(servers, story, said=150)


def test_reading_forwards_never_ends(servers: Servers) -> None:
    async def story(at: Scene, bob: Reader) -> None:
        start = (await bob.sync())["next_batch"]
        page = await bob.page(at.room.room_id, start, dir="f")
        assert page["chunk"] == []
        new = at.room.send(ALICE, "new")
        await at.send(new)
        page = await bob.page(at.room.room_id, page["end"], dir="f")
        assert texts(page["chunk"]) == ["new"]
        missed = await go_away_and_come_back(at, 3)
        forth = await bob.pages(at.room.room_id, page["end"], dir="f", limit=2)
        assert texts(forth) == [event.content["body"] for event in missed], "the gap is filled before it is passed"
        assert (await bob.page(at.room.room_id, "s1_999999_999999_999999", dir="f"))["chunk"] == []
        assert (await bob.page(at.room.room_id, "s1_999999_999999_999999", limit=1))["chunk"][0]["sender"] == at.bob

    play(servers, story)


def test_depth_at_its_limit_hides_nothing(servers: Servers) -> None:
    async def run() -> None:
        async with scene(servers) as at:
            bob = Reader(at.ours, at.bob)
            await at.send(at.room.event(EVE, "m.room.message", {"body": "deep"}, depth=2**53 - 1))
            await at.ours.send(at.bob, at.room.room_id, "after")
            assert texts((await bob.page(at.room.room_id, limit=2))["chunk"]) == ["after", "deep"]
            first = await bob.page(at.room.room_id, limit=1)
            assert texts((await bob.page(at.room.room_id, first["end"], limit=1))["chunk"]) == ["deep"]

    asyncio.run(run())


def test_members_at_every_point(servers: Servers) -> None:
    async def story(at: Scene, bob: Reader) -> None:
        room_id, olga = at.room.room_id, f"@olga:{REMOTE}"

        async def members(token: str | None = None) -> dict[str, str]:
            place = None if token is None else parse_token(token)
            found = orjson.loads(await at.ours.get(StateAndMembers).members(at.bob, room_id, at=place))
            return {event["state_key"]: event["content"]["membership"] for event in found}

        start = (await bob.sync())["next_batch"]
        first = {ALICE: "join", EVE: "join", at.bob: "join"}
        assert await members(start) == first
        left = at.room.leave(EVE)
        await at.send(left)
        then = (await bob.sync())["next_batch"]

        def happen() -> list[Event]:
            return [at.room.send(ALICE, "missed"), at.room.join(olga), at.room.send(ALICE, "missed")]

        await go_away_and_come_back(at, 0, happen)
        timeline = await bob.timeline(room_id, then)
        await at.send(at.room.leave(olga))
        away = {ALICE: "join", EVE: "leave", at.bob: "leave"}
        assert await members(timeline["prev_batch"]) == {**away, olga: "join"}
        await bob.pages(room_id, timeline["prev_batch"], end=then)
        page = await bob.page(room_id, timeline["prev_batch"], limit=1)
        assert await members(timeline["prev_batch"]) == {**away, olga: "join"}
        page = await bob.page(room_id, page["end"], limit=1)
        assert page["chunk"][0]["state_key"] == olga
        assert await members(page["end"]) == away, "before Olga came"
        assert await members(start) == first
        assert await members(then) == {**first, EVE: "leave"}
        assert await members() == {ALICE: "join", EVE: "leave", at.bob: "join", olga: "leave"}
        assert await members("s1_0_0_0") == {}

    play(servers, story)


def test_nobody_waits_twice_for_a_server_that_hangs(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("homeserver.graph.missing_events.WAIT_SECONDS_MAX", 0.2)
    monkeypatch.setattr("homeserver.graph.missing_events.SERVER_SECONDS_MAX", 0.5)
    monkeypatch.setattr("homeserver.graph.missing_events.SLOW_SECONDS_MIN", 0.1)

    async def story(at: Scene, bob: Reader) -> None:
        loop = asyncio.get_running_loop()
        never = asyncio.Event()
        given_up = asyncio.Event()

        async def hang(_: Request) -> Response:
            try:
                await never.wait()
            finally:
                given_up.set()
            return Response()

        at.remote.replaced["backfill"] = hang
        began = loop.time()
        first = await bob.page(at.room.room_id)
        waited = loop.time() - began
        assert (len(first["chunk"]), asked(at)) == (1, 1)
        assert waited >= 0.2, "the servers have a little time to answer"
        for _ in range(5):
            again = await bob.page(at.room.room_id, first["end"])
            assert (again["chunk"], again["end"]) == ([], first["end"])
        await asyncio.wait_for(given_up.wait(), 30)
        for _ in range(5):
            await bob.page(at.room.room_id, first["end"])
        assert asked(at) == 1, "it was asked once, and is not asked again for a while"

    play(servers, story, said=10)


def test_what_comes_late_is_there_for_the_next_page(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("homeserver.graph.missing_events.WAIT_SECONDS_MAX", 0.1)

    async def story(at: Scene, bob: Reader) -> None:
        may_answer = asyncio.Event()

        async def late(request: Request) -> Response:
            await may_answer.wait()
            return await at.remote._backfill(request)

        at.remote.replaced["backfill"] = late
        first = await bob.page(at.room.room_id, limit=100)
        assert len(first["chunk"]) == 1
        may_answer.set()

        async def rest() -> list[str]:
            return texts((await bob.page(at.room.room_id, first["end"], limit=100))["chunk"])

        assert (await eventually(rest))[:2] == ["before 9", "before 8"]
        assert asked(at) == 1

    play(servers, story, said=10)
