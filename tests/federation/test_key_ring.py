"""The keys of other servers: where they are looked for, how often, and for how long they count."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack
from itertools import pairwise
from pathlib import Path

import pytest

from homeserver.errors import InvalidSignature, RemoteUnreachable
from homeserver.federation.key_ring import (
    ANY_KEY,
    FETCHES_AT_ONCE_MAX,
    RETRY_MS_MAX,
    RETRY_MS_MIN,
    THREADED_EVENTS_MIN,
    KeyRing,
)
from homeserver.federation.server_keys import VALIDITY_MS_MAX, parse_server_keys
from homeserver.outbound.places import Purpose
from homeserver.protocol.events import Event
from homeserver.protocol.hashes import unpadded_base64
from homeserver.protocol.json_types import JsonObject
from homeserver.protocol.signatures import sign_json, verify_json
from homeserver.signing import SigningKeys
from homeserver.storage.database import Database
from homeserver.storage.server_keys import RESPONSES_MAX
from tests.factories.rooms import RoomFactory, ServerKey, server_key
from tests.fakes.clock import FakeClock
from tests.waiting import WAIT_S

pytestmark = pytest.mark.anyio
HERE = "here.example"
DAY = 24 * 3600 * 1000


class Servers:
    """Other servers, as far as keys go."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.keys: dict[str, list[ServerKey]] = {}
        self.retired: dict[str, dict[str, JsonObject]] = {}
        self.unreachable: set[str] = set()
        self.validity_ms = DAY
        self.asked: list[str] = []
        self.is_asked = asyncio.Event()
        self.notaries_asked: list[tuple[str, str]] = []
        self.notary_signer: Callable[[str], ServerKey] = server_key
        self.under_way = self.most_under_way = 0

    def published(self, server: str) -> JsonObject:
        keys = self.keys.get(server, [server_key(server)])
        answer: JsonObject = {
            "server_name": server,
            "valid_until_ts": self.clock.now_ms() + self.validity_ms,
            "verify_keys": {key.key_id: {"key": unpadded_base64(bytes(key.verify_key))} for key in keys},
            "old_verify_keys": self.retired.get(server, {}),
        }
        for key in keys:
            answer = sign_json(answer, key)
        return answer

    def rotate(self, server: str, version: str) -> None:
        old = self.keys.get(server, [server_key(server)])
        self.retired[server] = {
            key.key_id: {"key": unpadded_base64(bytes(key.verify_key)), "expired_ts": self.clock.now_ms()}
            for key in old
        }
        self.keys[server] = [ServerKey(server, version)]

    async def get_server_keys(self, destination: str, purpose: Purpose) -> JsonObject:
        self.asked.append(destination)
        self.is_asked.set()
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        await asyncio.sleep(0)
        self.under_way -= 1
        if destination in self.unreachable:
            raise RemoteUnreachable(destination, "nobody there")
        return self.published(destination)

    async def query_server_keys(
        self, notary: str, wanted: Mapping[str, Mapping[str, int]], purpose: Purpose
    ) -> list[JsonObject]:
        self.notaries_asked += [(notary, server) for server in wanted]
        if notary in self.unreachable:
            raise RemoteUnreachable(notary, "nobody there")
        return [sign_json(self.published(server), self.notary_signer(notary)) for server in wanted]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def servers(clock: FakeClock) -> Servers:
    return Servers(clock)


@pytest.fixture
def signing_keys(tmp_path: Path, clock: FakeClock) -> SigningKeys:
    keys = SigningKeys.load(tmp_path / "keys", HERE)
    keys.generate(clock.now_ms())
    return keys


@pytest.fixture
def sqlite(sqlite_url: str) -> Database:
    return Database(sqlite_url)


MakeRing = Callable[..., KeyRing]


@pytest.fixture
async def make_ring(
    servers: Servers, sqlite: Database, signing_keys: SigningKeys, clock: FakeClock
) -> AsyncIterator[MakeRing]:
    """Makes key rings on the same database, as after a restart."""
    async with AsyncExitStack() as stack:
        stack.callback(sqlite.close)

        def make(*notaries: str) -> KeyRing:
            ring = KeyRing(servers, sqlite, signing_keys, clock, trusted_key_servers=notaries)
            stack.push_async_callback(ring.aclose)
            return ring

        yield make


@pytest.fixture
def ring(make_ring: MakeRing) -> KeyRing:
    return make_ring()


async def has(ring: KeyRing, server: str, version: str, valid_until_ts: int) -> bool:
    data = (await ring.keys_for({server: {f"ed25519:{version}": valid_until_ts}}))[server].get(f"ed25519:{version}")
    return data is not None and (data.valid_until_ts is None or data.valid_until_ts >= valid_until_ts)


# -- finding keys ------------------------------------------------------------------------------------------------------


async def test_the_server_is_asked_once(ring: KeyRing, servers: Servers, clock: FakeClock) -> None:
    for _ in range(3):
        assert await has(ring, "a.example", "1", clock.now_ms())
    assert servers.asked == ["a.example"]


async def test_what_was_fetched_outlives_the_process(make_ring: MakeRing, servers: Servers, clock: FakeClock) -> None:
    servers.rotate("a.example", "2")
    retired_ts = clock.now_ms()
    assert await has(make_ring(), "a.example", "2", clock.now_ms())
    again = make_ring()
    assert await has(again, "a.example", "2", clock.now_ms())
    assert await has(again, "a.example", "1", retired_ts)
    assert servers.asked == ["a.example"]


async def test_a_database_of_each_kind_keeps_keys(
    database: Database, servers: Servers, signing_keys: SigningKeys, clock: FakeClock
) -> None:
    servers.rotate("a.example", "2")
    for _ in range(2):
        ring = KeyRing(servers, database, signing_keys, clock)
        assert await has(ring, "a.example", "2", clock.now_ms())
        assert [answer["server_name"] for answer in await ring.notary_response({"a.example": {}})] == ["a.example"]
        await ring.aclose()
    clock.advance(DAY)
    ring = KeyRing(servers, database, signing_keys, clock)
    assert await has(ring, "a.example", "2", clock.now_ms() + 1)
    assert servers.asked == ["a.example", "a.example"]


async def test_all_who_need_a_key_share_one_fetch(ring: KeyRing, servers: Servers, clock: FakeClock) -> None:
    found = await asyncio.gather(*(has(ring, "a.example", "1", clock.now_ms()) for _ in range(20)))
    assert all(found)
    assert servers.asked == ["a.example"]


async def test_servers_are_asked_side_by_side_but_not_all_at_once(ring: KeyRing, servers: Servers) -> None:
    wanted = {f"{number}.example": {"ed25519:1": 0} for number in range(3 * FETCHES_AT_ONCE_MAX)}
    keys = await ring.keys_for(wanted)
    assert all("ed25519:1" in keys[server] for server in wanted)
    assert len(servers.asked) == len(wanted)
    assert 1 < servers.most_under_way <= FETCHES_AT_ONCE_MAX


async def test_an_expired_key_is_fetched_again(ring: KeyRing, servers: Servers, clock: FakeClock) -> None:
    assert await has(ring, "a.example", "1", clock.now_ms())
    clock.advance(DAY)
    assert await has(ring, "a.example", "1", clock.now_ms())
    assert len(servers.asked) == 1
    clock.advance(1)
    assert await has(ring, "a.example", "1", clock.now_ms())
    assert len(servers.asked) == 2


async def test_an_expired_key_of_a_server_that_is_gone(ring: KeyRing, servers: Servers, clock: FakeClock) -> None:
    made_ts = clock.now_ms()
    assert await has(ring, "a.example", "1", made_ts)
    servers.unreachable.add("a.example")
    clock.advance(2 * DAY)
    assert not await has(ring, "a.example", "1", clock.now_ms())
    assert await has(ring, "a.example", "1", made_ts)


async def test_a_rotation_is_noticed(ring: KeyRing, servers: Servers, clock: FakeClock) -> None:
    assert await has(ring, "a.example", "1", clock.now_ms())
    clock.advance(1000)
    servers.rotate("a.example", "2")
    clock.advance(1000)
    assert await has(ring, "a.example", "2", clock.now_ms())
    assert await has(ring, "a.example", "1", clock.now_ms() - 1000)
    assert not await has(ring, "a.example", "1", clock.now_ms() - 999)


@pytest.mark.parametrize("unreachable", [False, True], ids=["has no such key", "is unreachable"])
async def test_fruitless_fetches_become_rare(
    ring: KeyRing, servers: Servers, clock: FakeClock, unreachable: bool
) -> None:
    if unreachable:
        servers.unreachable.add("a.example")
    asked_at = []
    began = clock.now_ms()
    while clock.now_ms() - began < 5 * RETRY_MS_MAX:
        before = len(servers.asked)
        assert not await has(ring, "a.example", f"made_up_{clock.now_ms()}", 0)
        if len(servers.asked) > before:
            asked_at.append(clock.now_ms() - began)
        clock.advance(RETRY_MS_MIN // 2)
    pauses = [later - earlier for earlier, later in pairwise(asked_at)]
    assert pauses[:4] == [RETRY_MS_MIN, 2 * RETRY_MS_MIN, 4 * RETRY_MS_MIN, 8 * RETRY_MS_MIN]
    assert pauses[-1] == RETRY_MS_MAX
    servers.unreachable.clear()
    clock.advance(RETRY_MS_MAX)
    assert await has(ring, "a.example", "1", clock.now_ms())


async def test_impossible_wishes_cost_no_fetch(ring: KeyRing, servers: Servers) -> None:
    wanted = {
        "a.example": {"ed25519:a b": 0, "rsa:1": 0, "": 0},
        "not a server": {"ed25519:1": 0},
        HERE: {"ed25519:x": 0},
    }
    await ring.keys_for(wanted)
    assert servers.asked == []


async def test_keys_of_another_server_are_not_taken(ring: KeyRing, servers: Servers) -> None:
    servers.published = lambda server: Servers.published(servers, "b.example")  # type: ignore[method-assign]
    assert not await has(ring, "a.example", "1", 0)


async def test_one_who_gives_up_does_not_spoil_it(ring: KeyRing, servers: Servers, clock: FakeClock) -> None:
    first = asyncio.ensure_future(has(ring, "a.example", "1", clock.now_ms()))
    second = asyncio.ensure_future(has(ring, "a.example", "1", clock.now_ms()))
    await servers.is_asked.wait()
    first.cancel()
    assert await second
    assert servers.asked == ["a.example"]


# -- notaries ----------------------------------------------------------------------------------------------------------


async def test_a_notary_is_asked_when_the_server_is_gone(
    make_ring: MakeRing, servers: Servers, clock: FakeClock
) -> None:
    servers.unreachable |= {"a.example", "gone.example"}
    ring = make_ring("gone.example", "notary.example", HERE)
    assert await has(ring, "a.example", "1", clock.now_ms())
    assert servers.notaries_asked == [("gone.example", "a.example"), ("notary.example", "a.example")]
    assert await has(make_ring(), "a.example", "1", clock.now_ms())


async def test_a_notary_is_not_asked_when_the_server_answers(make_ring: MakeRing, servers: Servers) -> None:
    assert await has(make_ring("notary.example"), "a.example", "1", 0)
    assert servers.notaries_asked == []


@pytest.mark.parametrize(
    "signer",
    [
        lambda notary: ServerKey(notary, "unknown"),
        lambda notary: server_key("somebody.example"),
        lambda notary: _with_id(ServerKey(notary, "other"), "ed25519:1"),
    ],
    ids=["unknown key", "another server", "wrong signature"],
)
async def test_a_notary_with_a_wrong_signature(
    make_ring: MakeRing, servers: Servers, signer: Callable[[str], ServerKey]
) -> None:
    servers.unreachable.add("a.example")
    servers.notary_signer = signer
    assert not await has(make_ring("notary.example"), "a.example", "1", 0)
    assert servers.notaries_asked == [("notary.example", "a.example")]


def _with_id(key: ServerKey, key_id: str) -> ServerKey:
    key.key_id = key_id
    return key


async def test_a_notary_takes_nothing_back(make_ring: MakeRing, servers: Servers, clock: FakeClock) -> None:
    """An older document, or one with another key under a known ID, changes no key that the server itself gave us."""
    ring = make_ring("notary.example")
    assert await has(ring, "a.example", "1", clock.now_ms())
    servers.unreachable.add("a.example")
    forged = _with_id(ServerKey("a.example", "forged"), "ed25519:1")
    servers.keys["a.example"] = [forged]
    servers.validity_ms = 2 * DAY
    assert not await has(ring, "a.example", "1", clock.now_ms() + DAY + 1)
    keys = (await ring.keys_for({"a.example": {}}))["a.example"]
    assert keys["ed25519:1"].key == server_key("a.example").verify_key


async def test_two_notaries_do_not_wait_for_each_other(make_ring: MakeRing, servers: Servers) -> None:
    servers.unreachable |= {"n1.example", "n2.example", "a.example"}
    async with asyncio.timeout(WAIT_S):
        assert not await has(make_ring("n1.example", "n2.example"), "a.example", "1", 0)


async def test_many_servers_through_one_notary(make_ring: MakeRing, servers: Servers) -> None:
    """More fetches at once than are allowed, all of which need the notary's own keys in their midst."""
    wanted = {f"{number}.example": {"ed25519:1": 0} for number in range(2 * FETCHES_AT_ONCE_MAX)}
    servers.unreachable |= set(wanted)
    async with asyncio.timeout(WAIT_S):
        keys = await make_ring("notary.example").keys_for(wanted)
    assert all("ed25519:1" in keys[server] for server in wanted)
    assert servers.asked.count("notary.example") == 1


# -- as a notary -------------------------------------------------------------------------------------------------------


async def test_our_answer_as_a_notary(ring: KeyRing, servers: Servers, signing_keys: SigningKeys) -> None:
    (answer,) = await ring.notary_response({"a.example": {"ed25519:1": 0}})
    verify_json(answer, HERE, signing_keys.current.key_id, signing_keys.current.verify_key)
    verify_json(answer, "a.example", "ed25519:1", server_key("a.example").verify_key)
    assert set(answer["signatures"]) == {"a.example", HERE}


async def test_we_are_a_notary_for_ourselves(ring: KeyRing, clock: FakeClock) -> None:
    (answer,) = await ring.notary_response({HERE: {}})
    assert parse_server_keys(answer, HERE, clock.now_ms()).verify_keys


async def test_as_a_notary_we_ask_again_after_half_the_lifetime(
    ring: KeyRing, servers: Servers, clock: FakeClock
) -> None:
    first = await ring.notary_response({"a.example": {}})
    clock.advance(DAY // 2)
    assert await ring.notary_response({"a.example": {}}) == first
    clock.advance(1)
    second = await ring.notary_response({"a.example": {}})
    assert second[0]["valid_until_ts"] > first[0]["valid_until_ts"]
    assert len(servers.asked) == 2
    # A server that is gone is vouched for with what it last said; one that nobody ever reached is left out.
    servers.unreachable |= {"a.example", "b.example"}
    clock.advance(3 * DAY)
    assert await ring.notary_response({"a.example": {}, "b.example": {}, "not a server": {}}) == second


async def test_as_a_notary_we_ask_at_once_for_a_key_that_is_not_here_and_keep_what_we_knew(
    ring: KeyRing, servers: Servers, clock: FakeClock
) -> None:
    (first,) = await ring.notary_response({"a.example": {}})
    servers.rotate("a.example", "2")
    servers.retired.clear()  # it says nothing of the key that it had before
    clock.advance(1000)
    (second,) = await ring.notary_response({"a.example": {"ed25519:2": clock.now_ms()}})
    assert (set(first["verify_keys"]), set(second["verify_keys"])) == ({"ed25519:1"}, {"ed25519:2"})
    assert len(servers.asked) == 2
    # Who asks for the old key, or for all keys, gets what the server last said of it.
    for wanted in ({}, {ANY_KEY: clock.now_ms()}, {"ed25519:2": 0, "ed25519:1": 0}):
        assert await ring.notary_response({"a.example": wanted}) == [second, first]
    assert await ring.notary_response({"a.example": {"ed25519:2": 0}}) == [second]
    assert await ring.notary_response({"a.example": {"ed25519:1": 0}}) == [first]
    assert await ring.notary_response({"a.example": {"ed25519:1": 0, ANY_KEY: 0}}) == [first, second]
    # Once a later response holds a key again, the earlier one is not kept.
    servers.keys["a.example"] = [server_key("a.example"), ServerKey("a.example", "2"), ServerKey("a.example", "3")]
    clock.advance(1000)
    (third,) = await ring.notary_response({"a.example": {"ed25519:3": 0}})
    assert await ring.notary_response({"a.example": {}}) == [third]


async def test_as_a_notary_we_keep_a_bounded_number_of_responses(
    ring: KeyRing, servers: Servers, clock: FakeClock
) -> None:
    for number in range(RESPONSES_MAX + 3):
        servers.rotate("a.example", f"k{number}")
        servers.retired.clear()
        clock.advance(1000)
        await ring.notary_response({"a.example": {f"ed25519:k{number}": 0}})
    given = await ring.notary_response({"a.example": {}})
    assert [*given[0]["verify_keys"], *given[-1]["verify_keys"]] == [f"ed25519:k{RESPONSES_MAX + 2}", "ed25519:k3"]
    assert len(given) == RESPONSES_MAX


async def test_nobody_makes_us_hammer_a_server(ring: KeyRing, servers: Servers, clock: FakeClock) -> None:
    for number in range(200):
        await ring.notary_response({"a.example": {f"ed25519:made_up_{number}": clock.now_ms() + 2 * VALIDITY_MS_MAX}})
        clock.advance(1000)
    # Three times at once; then the pauses double up to a minute: at 0, 1, 2, 10, 26, 58, 118 and 178 s.
    assert len(servers.asked) == 8


async def test_as_a_notary_we_ask_at_once_for_a_longer_validity(
    ring: KeyRing, servers: Servers, clock: FakeClock
) -> None:
    servers.validity_ms = -DAY
    expiry = clock.now_ms() - DAY
    (first,) = await ring.notary_response({"a.example": {"ed25519:1": 0}})
    assert await ring.notary_response({"a.example": {"ed25519:1": expiry - 1}}) == [first]
    assert len(servers.asked) == 1
    servers.unreachable.add("a.example")
    assert await ring.notary_response({"a.example": {"ed25519:1": expiry + 1}}) == [first]
    servers.unreachable.clear()
    servers.validity_ms = DAY
    (second,) = await ring.notary_response({"a.example": {"ed25519:1": expiry + 1}})
    assert second["valid_until_ts"] == clock.now_ms() + DAY
    assert len(servers.asked) == 3


# -- events ------------------------------------------------------------------------------------------------------------


def room_with(version: str, *users: str) -> RoomFactory:
    room = RoomFactory(version, "a.example")
    room.create("alice")
    for user in users:
        room.join(user)
    return room


async def outcomes(ring: KeyRing, events: list[Event]) -> list[bool]:
    return [outcome is None for outcome in await ring.verify_events(events)]


def tampered(event: Event) -> Event:
    """The event with another content under the old signature."""
    pdu = {**event.pdu, "content": {**event.content, "membership": "ban"}, "type": "m.room.member"}
    return Event(pdu, event.version, event.event_id, event.room_id)


@pytest.mark.parametrize("version", ["1", "4", "5", "11", "12"])
async def test_a_batch_of_events_costs_one_fetch_for_each_server(ring: KeyRing, servers: Servers, version: str) -> None:
    users = [f"@u{number}:{server}.example" for number in range(3) for server in "abc"]
    events = list(room_with(version, *users).events.values())
    events.append(tampered(events[-1]))
    assert await outcomes(ring, events) == [True] * (len(events) - 1) + [False]
    assert sorted(servers.asked) == ["a.example", "b.example", "c.example"]
    await ring.verify_events(events)
    assert len(servers.asked) == 3


async def test_large_batches_are_verified_on_threads(ring: KeyRing) -> None:
    room = room_with("11", *(f"@u{number}:b.example" for number in range(5 * THREADED_EVENTS_MIN)))
    events = list(room.events.values())
    for index in (0, 40, 100, len(events) - 1):
        events[index] = tampered(events[index])
    results = await ring.verify_events(events)
    assert [index for index, result in enumerate(results) if result is not None] == [0, 40, 100, len(events) - 1]
    assert all(result is None or isinstance(result, InvalidSignature) for result in results)


async def test_our_own_signatures_cost_no_fetch(ring: KeyRing, servers: Servers, signing_keys: SigningKeys) -> None:
    event = RoomFactory("11", HERE).create("alice")
    pdu = sign_json({key: value for key, value in event.pdu.items() if key != "signatures"}, signing_keys.current)
    own = Event(pdu, event.version, event.event_id, event.room_id)
    results = await ring.verify_events([own, event])
    assert results[1] is not None  # by a key that we never had
    assert servers.asked == []


@pytest.mark.parametrize(("version", "valid"), [("4", True), ("5", False), ("11", False)])
async def test_key_validity_counts_by_room_version(
    ring: KeyRing, servers: Servers, clock: FakeClock, version: str, valid: bool
) -> None:
    servers.validity_ms = -1
    events = list(room_with(version).events.values())
    assert await outcomes(ring, events[:1]) == [valid]


async def test_events_of_a_retired_key(ring: KeyRing, servers: Servers, clock: FakeClock) -> None:
    room = room_with("11", "@bob:b.example")
    last = list(room.events.values())[-1]
    clock.advance(last.origin_server_ts - clock.now_ms())
    servers.rotate("b.example", "2")
    later = room.send("@bob:b.example", "signed with the old key after it was given up")
    assert await outcomes(ring, [last, later]) == [True, False]


async def test_events_from_a_distant_future(ring: KeyRing, servers: Servers, clock: FakeClock) -> None:
    room = RoomFactory("11", "a.example", ts=clock.now_ms() + 10 * VALIDITY_MS_MAX)
    events = [room.create("alice", bare=True)]
    for _ in range(5):
        assert await outcomes(ring, events) == [False]
        clock.advance(RETRY_MS_MAX)
    assert servers.asked == ["a.example"]


async def test_events_that_nobody_can_have_signed(ring: KeyRing, servers: Servers) -> None:
    event = room_with("11").create_event
    assert event is not None
    odd = [
        Event({**event.pdu, **change}, event.version, event.event_id, event.room_id)
        for change in (
            {"signatures": {}},
            {"signatures": {"a.example": {}}},
            {"signatures": {"a.example": {"ed25519:1": "nonsense"}}},
            {"signatures": {"a.example": "nonsense"}},
            {"signatures": {"a.example": {f"ed25519:{number}": "x" for number in range(1000)}}},
            {"content": {"room_version": "\ud800"}},
        )
    ]
    assert await outcomes(ring, [*odd, event]) == [False] * len(odd) + [True]


async def test_retired_keys_are_known_as_such_from_the_database_too(
    make_ring: MakeRing, servers: Servers, clock: FakeClock
) -> None:
    servers.rotate("a.example", "2")
    for ring in (make_ring(), make_ring()):
        keys = (await ring.keys_for({"a.example": {"ed25519:2": clock.now_ms()}}))["a.example"]
        assert {key_id: data.is_old for key_id, data in keys.items()} == {"ed25519:1": True, "ed25519:2": False}
    assert servers.asked == ["a.example"]
