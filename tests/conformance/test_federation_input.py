"""Hostile requests of another server, each properly signed unless its signature is what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeserver.federation.request_authentication import sign_request
from homeserver.protocol.canonical_json import encode_canonical_json
from homeserver.protocol.json_types import JsonObject
from homeserver.protocol.room_versions import ROOM_VERSIONS
from tests.conformance.catalogue import endpoints, quoted
from tests.conformance.odd_events import (
    A_HASH,
    ODD_VALUES,
    event_id_of,
    next_pdu,
    paths_in,
    resigned,
    with_value,
    without,
)
from tests.conformance.test_client_input import JSON, ODD_QUERIES, ODD_SEGMENTS
from tests.conformance.world import ALICE, BOB, FUZZ, OURS, REMOTE, V1, V2, ZOE, World, fine, path_of, refused
from tests.factories.rooms import START_TS, RoomFactory, ServerKey, server_key

VERSIONS = pytest.mark.parametrize("version", ["1", "11", "12"])
PDUS_AT_ONCE = 50
EDUS_AT_ONCE = 100
FORKS_AT_ONCE = 12
"""So many branches of a room are a bother already: they are brought together before there are more."""
SMALL = tuple(value for value in ODD_VALUES if value != ["$" + A_HASH] * 25)


def transaction(world: World, pdus: Iterable[Any] = (), edus: Iterable[Any] = (), **more: Any) -> JsonObject:
    """Send a transaction; the results by event ID."""
    body = {"origin": REMOTE, "origin_server_ts": 1, "pdus": list(pdus), "edus": list(edus), **more}
    answer = world.ask_signed("PUT", f"{V1}/send/hostile{world.number()}", body)
    results: JsonObject = fine(answer)["pdus"]
    assert all(set(result) <= {"error"} for result in results.values())
    return results


def in_batches(many: Iterable[Any], size: int) -> Iterator[list[Any]]:
    batch: list[Any] = []
    for one in many:
        batch.append(one)
        if len(batch) == size:
            yield batch
            batch = []
    yield batch


class SharedRoom:
    """A room of the other server's zoe, with our alice in it."""

    def __init__(self, world: World, version: str) -> None:
        self.world = world
        number = world.number()
        # Its time tells a room of version 12 from the others, which have their IDs from their create events.
        self.room = RoomFactory(version, REMOTE, room_localpart=f"room{number}", ts=START_TS + number)
        self.room.create("zoe")
        self.version = self.room.version
        world.remote.room = self.room
        fine(world.ask("POST", f"/join/{quoted(self.room.room_id)}?via={REMOTE}", {}))

    def pdu(self, kind: str, content: JsonObject, key: str | None = None, **fields: Any) -> JsonObject:
        """What zoe could send next, signed whatever it holds."""
        allowed = {"membership": "join"} if kind == "m.room.member" else {}
        pdu = {**next_pdu(self.room, "zoe", kind, allowed, key), "content": content, **fields}
        if self.version.identifier in ("1", "2"):
            pdu.setdefault("event_id", f"$odd{self.world.number()}:{REMOTE}")
            if pdu["event_id"].startswith("$room"):
                pdu["event_id"] = f"$odd{self.world.number()}:{REMOTE}"
        return self.signed(pdu)

    def signed(self, pdu: JsonObject) -> JsonObject:
        return resigned(pdu, self.version, REMOTE)

    def merge(self) -> None:
        """Our messages bring the forks together that hostile events have made."""
        for _ in range(100):
            head = self.world.run(self.world.ours.head(self.room.room_id))
            if len(head.extremities) <= 1:
                return
            self.world.run(self.world.ours.send(ALICE, self.room.room_id))

    def check_alive(self) -> None:
        """Our user can still read it all and speak, and a good event comes through."""
        message = self.room.send("zoe", prev_events=self.room.extremities[-1:])
        assert transaction(self.world, [message.pdu]) == {message.event_id: {}}
        path = path_of("rooms", self.room.room_id)
        for question in ("state", "messages?dir=b&limit=1000", "messages?dir=f&limit=1000", "members", "aliases"):
            fine(self.world.ask("GET", f"{path}/{question}"))
        fine(self.world.ask("GET", f"{path}{path_of('event', message.event_id)}"))
        fine(self.world.ask("GET", "/sync"))
        fine(self.world.ask("PUT", f"{path}/send/m.room.message/{self.world.number()}", {"body": "still here"}))


# -- events ------------------------------------------------------------------------------------------------------------


@VERSIONS
def test_odd_values_in_every_field_of_an_event(world: World, version: str) -> None:
    shared = SharedRoom(world, version)
    odd: list[Any] = list(ODD_VALUES)
    pdu = shared.pdu("m.room.message", {"body": "x"})
    for field in (*pdu, "state_key", "redacts", "unsigned", "event_id", "origin", "org.example.more"):
        odd += [shared.signed({**pdu, field: value}) for value in ODD_VALUES]
        odd.append(shared.signed(without(pdu, (field,)) if field in pdu else {**pdu, field: "x"}))
    for batch in in_batches(odd, PDUS_AT_ONCE):
        transaction(world, batch)
        shared.merge()
    shared.check_alive()


SIGNED_INVITE = {"mxid": ZOE, "token": "t", "signatures": {REMOTE: {"ed25519:1": "x"}}}
CONTENTS: list[tuple[str, JsonObject, str | None]] = [
    ("m.room.member", {
        "membership": "join", "displayname": "d", "avatar_url": "mxc://a/b", "reason": "r", "is_direct": True,
        "join_authorised_via_users_server": ALICE,
        "third_party_invite": {"display_name": "x", "signed": SIGNED_INVITE},
    }, ZOE),
    ("m.room.join_rules", {"join_rule": "restricted", "allow": [{"type": "m.room_membership", "room_id": "!a:b"}]}, ""),
    ("m.room.history_visibility", {"history_visibility": "shared"}, ""),
    ("m.room.canonical_alias", {"alias": "#a:b", "alt_aliases": ["#a:b"]}, ""),
    ("m.room.aliases", {"aliases": ["#a:b"]}, REMOTE),
    ("m.room.name", {"name": "x"}, ""),
    ("m.room.encryption", {"algorithm": "x"}, ""),
    ("m.room.tombstone", {"body": "x", "replacement_room": "!a:b"}, ""),
    ("m.room.third_party_invite", {
        "display_name": "x", "key_validity_url": "https://x", "public_key": "x",
        "public_keys": [{"public_key": "x", "key_validity_url": "x"}],
    }, "token"),
    ("m.room.create", {"creator": ZOE, "room_version": "1", "m.federate": True, "additional_creators": [ZOE]}, ""),
    ("m.room.message", {"body": "x", "m.relates_to": {"rel_type": "m.thread", "event_id": "$x"}, "url": "x"}, None),
    ("m.room.redaction", {"reason": "x", "redacts": "$x"}, None),
    ("m.room.power_levels", {
        "users": {ZOE: 100}, "users_default": 0, "events": {"m.room.name": 50}, "state_default": 50, "ban": 50,
        "kick": 50, "redact": 50, "invite": 0, "notifications": {"room": 50},
    }, ""),
    ("m.room.server_acl", {"allow": ["*"], "deny": ["evil.org"], "allow_ip_literals": True}, ""),
]  # fmt: skip
"""Every event whose content means something to a server. The last two can end a room."""


@VERSIONS
def test_odd_values_in_the_content_of_every_kind_of_event(world: World, version: str) -> None:
    shared = SharedRoom(world, version)
    odd = [
        shared.pdu(kind, changed, key)
        for kind, content, key in CONTENTS[:-2]
        for path in paths_in(content)
        for changed in (with_value(content, path, value) for value in SMALL[:: 3 if len(path) > 1 else 2])
    ]
    for batch in in_batches(odd, FORKS_AT_ONCE):
        transaction(world, batch)
        shared.merge()
    shared.check_alive()


@pytest.mark.parametrize("version", ["5", "12"])
@pytest.mark.parametrize("case", CONTENTS[-2:], ids=[case[0] for case in CONTENTS[-2:]])
def test_contents_that_may_end_a_room(world: World, version: str, case: tuple[str, JsonObject, str | None]) -> None:
    """It may be that nobody can speak there any more. Our user can always read it and leave."""
    shared = SharedRoom(world, version)
    kind, content, key = case
    if version == "12":
        content = {name: value for name, value in content.items() if name != "users"}
    odd = [shared.pdu(kind, with_value(content, path, value), key) for path in paths_in(content) for value in SMALL]
    for batch in in_batches(odd, PDUS_AT_ONCE):
        transaction(world, batch)
    path = path_of("rooms", shared.room.room_id)
    for question in ("state", "messages?dir=b&limit=1000", "members", "aliases", "joined_members"):
        fine(world.ask("GET", f"{path}/{question}"))
    assert world.ask("PUT", f"{path}/state/m.room.name", {"name": "x"}).status_code in (200, 403)
    assert world.ask("PUT", f"{path}/state/m.room.power_levels", {"users": {}}).status_code in (200, 403)
    fine(world.ask("POST", f"{path}/leave", {}))


@VERSIONS
def test_bad_signatures_and_hashes_of_events(world: World, version: str) -> None:
    shared = SharedRoom(world, version)
    good = shared.pdu("m.room.message", {"body": "x"})
    (signature,) = good["signatures"][REMOTE].values()
    other_key = ServerKey(REMOTE, "2")
    wrong_signatures: list[Any] = [
        {}, {REMOTE: {}}, {REMOTE: {"ed25519:1": ""}}, {REMOTE: {"ed25519:1": signature[:-1]}},
        {REMOTE: {"ed25519:1": "A" * 86}}, {REMOTE: {"ed25519:2": signature}}, {REMOTE: {"curve:1": signature}},
        {"other.test:1": {"ed25519:1": signature}}, {REMOTE: {"ed25519:1": signature + "A"}},
        {REMOTE: {"ed25519:1": "é"}}, {REMOTE: {"ed25519:\0": signature}}, {"\0": {"ed25519:1": signature}},
        {REMOTE: {f"ed25519:{n}": signature for n in range(2, 500)}},
        {f"s{n}.test:1": {"ed25519:1": signature} for n in range(500)},
        {REMOTE: {other_key.key_id: other_key.sign(b"{}")}},
    ]  # fmt: skip
    for signatures in wrong_signatures:
        results = transaction(world, [{**good, "signatures": signatures}])
        assert all("error" in result for result in results.values()), signatures
    altered = {**good, "content": {"body": "altered"}}
    if version != "1":  # whose event IDs say nothing of the content
        assert transaction(world, [altered]) != {}
    forged = resigned({**good, "sender": ALICE}, shared.version, REMOTE)
    assert all("error" in result for result in transaction(world, [forged]).values())
    shared.merge()
    shared.check_alive()


def test_events_of_rooms_that_are_not_ours(world: World) -> None:
    elsewhere = RoomFactory("11", REMOTE, room_localpart="elsewhere")
    elsewhere.create("zoe")
    pdu = next_pdu(elsewhere, "zoe", "m.room.message", {"body": "x"})
    transaction(world, [pdu, {**pdu, "room_id": "\0"}, {**pdu, "room_id": "!a:" + "b" * 300}, {"room_id": "!x:y"}])


def test_transactions_over_the_limits(world: World) -> None:
    shared = SharedRoom(world, "11")
    pdu = shared.pdu("m.room.message", {"body": "x"})
    bodies: list[tuple[Any, int, str]] = [
        ({"pdus": [pdu] * 51}, 400, "M_BAD_JSON"),
        ({"edus": [{"edu_type": "x", "content": {}}] * 101}, 400, "M_BAD_JSON"),
        ({"pdus": {}}, 400, "M_BAD_JSON"),
        ({"pdus": None}, 400, "M_BAD_JSON"),
        ({"edus": "x"}, 400, "M_BAD_JSON"),
    ]
    for body, status, errcode in bodies:
        uri = f"{V1}/send/limits{world.number()}"
        refused(world.ask_signed("PUT", uri, {"origin": REMOTE, "pdus": [], **body}), status, errcode)
    assert len(transaction(world, [pdu] * 50, [{"edu_type": "x", "content": {}}] * 100)) == 1
    long_uri = f"{V1}/send/{'x' * 300}"
    refused(world.ask_signed("PUT", long_uri, {"origin": REMOTE, "pdus": []}), 400, "M_INVALID_PARAM")
    large = shared.pdu("m.room.message", {"body": "x" * 70_000})
    assert all("error" in result for result in transaction(world, [large]).values())
    deep: Any = 1
    for _ in range(190):
        deep = [deep]
    transaction(world, [shared.pdu("m.room.message", {"deep": deep})])
    shared.merge()
    shared.check_alive()


def test_the_same_transaction_twice_is_answered_alike(world: World) -> None:
    shared = SharedRoom(world, "11")
    first, second = (shared.pdu("m.room.message", {"body": body}) for body in ("one", "two"))
    uri = f"{V1}/send/again{world.number()}"
    answer = fine(world.ask_signed("PUT", uri, {"origin": REMOTE, "origin_server_ts": 1, "pdus": [first]}))
    again = fine(world.ask_signed("PUT", uri, {"origin": REMOTE, "origin_server_ts": 1, "pdus": [second]}))
    assert again == answer


EDUS: dict[str, JsonObject] = {
    "m.typing": {"room_id": "{room}", "user_id": ZOE, "typing": True},
    "m.receipt": {"{room}": {"m.read": {ZOE: {"data": {"ts": 1, "thread_id": "main"}, "event_ids": ["$x"]}}}},
    "m.presence": {"push": [{"user_id": ZOE, "presence": "online", "last_active_ago": 1}]},
    "m.device_list_update": {"user_id": ZOE, "device_id": "x", "stream_id": 1, "prev_id": [], "deleted": False},
    "m.signing_key_update": {"user_id": ZOE, "master_key": {}},
    "m.direct_to_device": {"sender": ZOE, "type": "x", "message_id": "1", "messages": {ALICE: {"*": {}}}},
}


@pytest.mark.parametrize("edu_type", EDUS)
def test_odd_values_in_every_field_of_every_edu(world: World, edu_type: str) -> None:
    shared = SharedRoom(world, "11")
    room_id = shared.room.room_id
    content = {
        room_id if name == "{room}" else name: room_id if value == "{room}" else value
        for name, value in EDUS[edu_type].items()
    }
    odd: list[Any] = [*ODD_VALUES, {"edu_type": edu_type}, {"content": content}]
    for value in ODD_VALUES:
        odd += [{"edu_type": edu_type, "content": value}, {"edu_type": value, "content": content}]
        odd += [{"edu_type": edu_type, "content": with_value(content, path, value)} for path in paths_in(content)]
    for user in (ALICE, "@x:other.test", "@zoe", "", f"@nobody:{REMOTE}"):
        odd.append({"edu_type": edu_type, "content": with_value(content, ("user_id",), user)})
    for batch in in_batches(odd, EDUS_AT_ONCE):
        transaction(world, (), batch)
    shared.check_alive()


@FUZZ
@given(st.lists(st.dictionaries(st.sampled_from(["edu_type", "content", "room_id", "type"]), JSON), max_size=5))
def test_any_json_as_pdus_and_edus(world: World, anything: list[JsonObject]) -> None:
    transaction(world, anything, anything)


# -- handshakes --------------------------------------------------------------------------------------------------------


def our_room(world: World, version: str) -> str:
    body = {"preset": "public_chat", "room_version": version}
    room: str = fine(world.ask("POST", "/createRoom", body))["room_id"]
    return room


@VERSIONS
@pytest.mark.parametrize("kind", ["join", "leave", "knock"])
def test_odd_values_in_what_a_handshake_brings(world: World, version: str, kind: str) -> None:
    """The event of send_join and its like, under the name in the path and under its own."""
    room = our_room(world, version)
    known = RoomFactory(version, REMOTE, room_localpart=f"known{world.number()}")
    known.create("zoe")
    pdu = {**next_pdu(known, "zoe", "m.room.member", {"membership": kind}, ZOE), "room_id": room}
    answer = world.ask_signed("GET", f"{V1}{path_of(f'make_{kind}', room, ZOE)}?ver={version}")
    if answer.status_code == 200:
        pdu |= answer.json()["event"]
    prefixes = (V1,) if kind == "knock" else (V1, V2)
    rules = ROOM_VERSIONS[version]
    for field in (*pdu, "redacts", "unsigned", "event_id", "org.example.more"):
        for number, value in enumerate(SMALL):
            odd = resigned({**pdu, field: value}, rules, REMOTE)
            event_id = event_id_of(odd, rules) or "$" + A_HASH
            prefix = prefixes[number % len(prefixes)]
            world.ask_signed("PUT", f"{prefix}{path_of(f'send_{kind}', room, event_id)}", odd)
    for body in (None, {}, {"a": 1}):
        world.ask_signed("PUT", f"{prefixes[-1]}{path_of(f'send_{kind}', room, '$x')}", body)


@VERSIONS
def test_events_that_are_something_else(world: World, version: str) -> None:
    """What must not be signed: not of that room, not that user's, not that membership, not even a member event."""
    room, rules = our_room(world, version), ROOM_VERSIONS[version]
    template = fine(world.ask_signed("GET", f"{V1}{path_of('make_join', room, ZOE)}?ver={version}"))["event"]
    template["hashes"] = {"sha256": ""}
    if version == "1":
        template["event_id"] = f"$chosen{world.number()}:{REMOTE}"
    wrong: list[JsonObject] = [
        {"type": "m.room.message"}, {"state_key": ALICE}, {"sender": ALICE, "state_key": ALICE},
        {"sender": "@x:other.test:1", "state_key": "@x:other.test:1"}, {"room_id": "!other:b.test"},
        {"content": {"membership": "invite"}}, {"content": {}}, {"content": {"membership": "leave"}},
    ]  # fmt: skip
    for changes in wrong:
        pdu = resigned({**template, **changes}, rules, REMOTE)
        event_id = event_id_of(pdu, rules) or "$x"
        # Of another server's user it is refused as forbidden, all else as what can never be valid.
        expected = (403, "M_FORBIDDEN") if "sender" in changes else (400, "M_INVALID_PARAM")
        refused(world.ask_signed("PUT", f"{V2}{path_of('send_join', room, event_id)}", pdu), *expected)
    good = resigned(template, rules, REMOTE)
    event_id = event_id_of(good, rules)
    assert event_id is not None
    refused(world.ask_signed("PUT", f"{V2}{path_of('send_join', room, '$other')}", good), 400, "M_INVALID_PARAM")
    unsigned = {**good, "signatures": {}}
    refused(world.ask_signed("PUT", f"{V2}{path_of('send_join', room, event_id)}", unsigned), 403, "M_FORBIDDEN")
    fine(world.ask_signed("PUT", f"{V2}{path_of('send_join', room, event_id)}", good))


@VERSIONS
def test_odd_invitations(world: World, version: str) -> None:
    room = RoomFactory(version, REMOTE, room_localpart=f"inviting{world.number()}")
    room.create("zoe")
    rules = room.version
    pdu = next_pdu(room, "zoe", "m.room.member", {"membership": "invite"}, BOB)
    shown = [event.pdu for event in room.state.values()]
    body = {"event": pdu, "room_version": version, "invite_room_state": shown}
    own_id = event_id_of(pdu, rules) or ""

    def send(invitation: Any, event_id: str | None = None, prefix: str = V2) -> None:
        world.ask_signed("PUT", f"{prefix}{path_of('invite', room.room_id, event_id or own_id)}", invitation)

    for field in body:
        send(without(body, (field,)))
        for value in SMALL:
            send({**body, field: value})
    for value in SMALL:
        send({**body, "invite_room_state": [*shown, value]})
        for field in ("type", "state_key", "content", "sender", "room_id", "prev_events"):
            send({**body, "invite_room_state": [{**shown[1], field: value}, shown[0]]})
        for field in (*pdu, "unsigned", "redacts"):
            odd = resigned({**pdu, field: value}, rules, REMOTE)
            send({**body, "event": odd}, event_id_of(odd, rules))
        send({**pdu, "unsigned": {"invite_room_state": value}}, prefix=V1)
        for field in ("displayname", "avatar_url", "reason", "third_party_invite", "is_direct", "membership"):
            odd = resigned({**pdu, "content": {"membership": "invite", field: value}}, rules, REMOTE)
            send({**body, "event": odd}, event_id_of(odd, rules))
    for who, token in ((BOB, "bob"), (ALICE, "alice")):
        fine(world.ask("GET", "/sync", None, token))
        world.ask("POST", f"{path_of('rooms', room.room_id)}/leave", {}, token)
        assert who


# -- questions ---------------------------------------------------------------------------------------------------------


def questions(room: str, event: str) -> list[tuple[str, str, str]]:
    """Endpoint, path and query."""
    at, one = f"event_id={quoted(event)}", "ver=11"
    return [
        ("backfill/{roomId}", path_of("backfill", room), f"v={quoted(event)}&limit=5"),
        ("state/{roomId}", path_of("state", room), at),
        ("state_ids/{roomId}", path_of("state_ids", room), at),
        ("event_auth/{roomId}/{eventId}", path_of("event_auth", room, event), ""),
        ("event/{eventId}", path_of("event", event), ""),
        ("make_join/{roomId}/{userId}", path_of("make_join", room, ZOE), one),
        ("make_leave/{roomId}/{userId}", path_of("make_leave", room, ZOE), ""),
        ("make_knock/{roomId}/{userId}", path_of("make_knock", room, ZOE), one),
        ("query/profile", "/query/profile", f"user_id={quoted(ALICE)}&field=displayname"),
        ("query/directory", "/query/directory", f"room_alias={quoted(f'#none:{OURS}')}"),
    ]


def test_odd_paths_and_queries(world: World) -> None:
    shared = SharedRoom(world, "11")
    event = shared.room.send("zoe")
    transaction(world, [event.pdu])
    for endpoint, path, query in questions(shared.room.room_id, event.event_id):
        assert f"GET {V1}/{endpoint}" in endpoints("server-server")
        segments, pairs = path.split("/"), query.split("&") if query else []
        for place in range(2, len(segments) if not endpoint.startswith("query") else 0):
            for odd in ODD_SEGMENTS:
                target = "/".join([*segments[:place], odd, *segments[place + 1 :]])
                world.ask_signed("GET", f"{V1}{target}?{query}" if query else V1 + target)
        for place, pair in enumerate(pairs):
            name = pair.partition("=")[0]
            for odd in (*ODD_QUERIES, f"1&{name}=2"):
                changed = "&".join([*pairs[:place], f"{name}={odd}", *pairs[place + 1 :]])
                world.ask_signed("GET", f"{V1}{path}?{changed}")
            world.ask_signed("GET", f"{V1}{path}?x=1&{'&'.join(pairs[:place] + pairs[place + 1 :])}")


def test_odd_questions_for_missing_events_and_keys(world: World) -> None:
    shared = SharedRoom(world, "11")
    missing = {"limit": 10, "min_depth": 0, "earliest_events": ["$x"], "latest_events": ["$x"]}
    for field in missing:
        for value in ODD_VALUES:
            uri = f"{V1}{path_of('get_missing_events', shared.room.room_id)}"
            world.ask_signed("POST", uri, {**missing, field: value})
            world.ask_signed("POST", uri, without(missing, (field,)))
    wanted = {"server_keys": {REMOTE: {"ed25519:1": {"minimum_valid_until_ts": 1}}}}
    for path in paths_in(wanted):
        for value in ODD_VALUES:
            world.ask_signed("POST", "/_matrix/key/v2/query", with_value(wanted, path, value))
    for name in ("\0", "a\0b.test:1", "", "x" * 300, "[::1]:1", "999.1.1.1", "a b", "é.test", OURS, "127.0.0.1"):
        world.ask_signed("POST", "/_matrix/key/v2/query", {"server_keys": {name: {}}})
        world.ask_signed("POST", "/_matrix/key/v2/query", {"server_keys": {name: {"ed25519:1": {}, "\0": {}}}})
        world.ask_signed("GET", f"/_matrix/key/v2/query{path_of(name or ' ')}")


@pytest.mark.parametrize(
    ("method", "uri", "status", "errcode"),
    [
        ("GET", f"{V1}/make_join/!unknown:{OURS}/{ZOE}?ver=11", 404, "M_NOT_FOUND"),
        ("GET", f"{V1}/make_join/{{room}}/{ALICE}?ver=11", 403, "M_FORBIDDEN"),
        ("GET", f"{V1}/make_join/{{room}}/{ZOE}", 400, "M_INCOMPATIBLE_ROOM_VERSION"),
        ("GET", f"{V1}/make_join/{{room}}/{ZOE}?ver=99", 400, "M_INCOMPATIBLE_ROOM_VERSION"),
        ("GET", f"{V1}/make_join/{{private}}/{ZOE}?ver=11", 403, "M_FORBIDDEN"),
        ("GET", f"{V1}/make_leave/{{room}}/{ZOE}", 403, "M_FORBIDDEN"),
        ("GET", f"{V1}/make_leave/!unknown:{OURS}/{ZOE}", 404, "M_NOT_FOUND"),
        ("GET", f"{V1}/make_knock/{{room}}/{ZOE}", 400, "M_MISSING_PARAM"),
        ("GET", f"{V1}/make_knock/{{room}}/{ZOE}?ver=10", 400, "M_INCOMPATIBLE_ROOM_VERSION"),
        ("GET", f"{V1}/make_knock/{{room}}/{ZOE}?ver=11", 403, "M_FORBIDDEN"),
        ("GET", f"{V1}/make_knock/!unknown:{OURS}/{ZOE}?ver=11", 404, "M_NOT_FOUND"),
        ("GET", f"{V1}/state_ids/{{private}}?event_id=$x", 403, "M_FORBIDDEN"),
        ("GET", f"{V1}/state_ids/!unknown:{OURS}?event_id=$x", 404, "M_NOT_FOUND"),
        ("GET", f"{V1}/state_ids/{{private}}?x=1", 400, "M_MISSING_PARAM"),
        ("GET", f"{V1}/state/{{private}}?event_id=$x", 403, "M_FORBIDDEN"),
        ("GET", f"{V1}/backfill/{{private}}?v=$x&limit=1", 403, "M_FORBIDDEN"),
        ("GET", f"{V1}/backfill/{{private}}?v=$x", 400, "M_MISSING_PARAM"),
        ("GET", f"{V1}/backfill/{{private}}?v=$x&limit=x", 400, "M_INVALID_PARAM"),
        ("GET", f"{V1}/event_auth/{{private}}/$x", 403, "M_FORBIDDEN"),
        ("GET", f"{V1}/event/$x", 404, "M_NOT_FOUND"),
        ("GET", f"{V1}/query/profile?user_id=@nobody:{OURS}", 404, "M_NOT_FOUND"),
        ("GET", f"{V1}/query/profile?user_id={ZOE}", 404, "M_NOT_FOUND"),
        ("GET", f"{V1}/query/profile?user_id=x", 400, "M_INVALID_PARAM"),
        ("GET", f"{V1}/query/profile?x=1", 400, "M_MISSING_PARAM"),
        ("GET", f"{V1}/query/profile?user_id={ALICE}&field=org.none", 404, "M_NOT_FOUND"),
        ("GET", f"{V1}/query/directory?room_alias=%23none:{OURS}", 404, "M_NOT_FOUND"),
        ("GET", f"{V1}/query/directory?room_alias=x", 400, "M_INVALID_PARAM"),
        ("GET", f"{V1}/query/nonsense", 404, "M_UNRECOGNIZED"),
    ],
)
def test_broken_rules(world: World, method: str, uri: str, status: int, errcode: str) -> None:
    private = fine(world.ask("POST", "/createRoom", {}))["room_id"]
    uri = uri.replace("{room}", our_room(world, "11")).replace("{private}", private)
    body = refused(world.ask_signed(method, uri), status, errcode)
    if errcode == "M_INCOMPATIBLE_ROOM_VERSION":
        assert body["room_version"] == "11"


# -- who asks ----------------------------------------------------------------------------------------------------------


def sign(method: str, uri: str, content: Any, destination: str = OURS, signer: Any = None) -> bytes:
    return sign_request(signer or server_key(REMOTE), method, uri, destination, content).encode()


GOOD_URI, GOOD_BODY = f"{V1}/send/auth", {"origin": REMOTE, "origin_server_ts": 1, "pdus": [], "edus": []}
GOOD = sign("PUT", GOOD_URI, GOOD_BODY)
UNKNOWN = "nobody.test:8448"


@pytest.mark.parametrize(
    ("authorization", "uri", "body"),
    [
        ([], GOOD_URI, GOOD_BODY),
        ([GOOD], f"{V1}/send/another", GOOD_BODY),
        ([GOOD], f"{GOOD_URI}?x=1", GOOD_BODY),
        ([GOOD], GOOD_URI, {**GOOD_BODY, "origin_server_ts": 2}),
        ([GOOD], GOOD_URI, {}),
        ([sign("POST", GOOD_URI, GOOD_BODY)], GOOD_URI, GOOD_BODY),
        ([sign("PUT", GOOD_URI, None)], GOOD_URI, GOOD_BODY),
        ([sign("PUT", GOOD_URI, GOOD_BODY, "other.test")], GOOD_URI, GOOD_BODY),
        ([sign("PUT", GOOD_URI, GOOD_BODY, signer=ServerKey(REMOTE, "2"))], GOOD_URI, GOOD_BODY),
        ([sign("PUT", GOOD_URI, GOOD_BODY, signer=server_key(UNKNOWN))], GOOD_URI, GOOD_BODY),
        ([sign("PUT", GOOD_URI, GOOD_BODY, signer=server_key(OURS))], GOOD_URI, GOOD_BODY),
        ([GOOD.replace(b'destination="ours', b'destination="yours')], GOOD_URI, GOOD_BODY),
        ([GOOD.replace(REMOTE.encode(), UNKNOWN.encode())], GOOD_URI, GOOD_BODY),
        ([GOOD, sign("PUT", GOOD_URI, GOOD_BODY, signer=server_key(UNKNOWN))], GOOD_URI, GOOD_BODY),
        ([GOOD] * 20, GOOD_URI, GOOD_BODY),
        ([b"Bearer alice"], GOOD_URI, GOOD_BODY),
        ([b"X-Matrix"], GOOD_URI, GOOD_BODY),
        ([b"X-Matrix origin=,key=,sig="], GOOD_URI, GOOD_BODY),
        ([b"X-Matrix " + b"a=b," * 1_000], GOOD_URI, GOOD_BODY),
        ([b"X-Matrix origin=" + b"x" * 10_000], GOOD_URI, GOOD_BODY),
        ([b"X-Matrix " + b'"' * 4_000], GOOD_URI, GOOD_BODY),
        ([b"X-Matrix \xff\xfe=\xff"], GOOD_URI, GOOD_BODY),
        ([b"X-Matrix origin=127.0.0.1:1,key=ed25519:1,sig=x"], GOOD_URI, GOOD_BODY),
        ([b"X-Matrix origin=[::1],key=ed25519:1,sig=x"], GOOD_URI, GOOD_BODY),
        ([GOOD[:-5] + b'"'], GOOD_URI, GOOD_BODY),
    ],
)
def test_requests_that_are_not_signed_as_they_must_be(
    world: World, authorization: list[bytes], uri: str, body: JsonObject
) -> None:
    headers = [(b"authorization", value) for value in authorization]
    answer = world.checked(world.raw("PUT", uri.encode(), headers, encode_canonical_json(body)))
    refused(answer, 401, "M_UNAUTHORIZED")
    fine(
        world.checked(world.raw("PUT", GOOD_URI.encode(), [(b"authorization", GOOD)], encode_canonical_json(GOOD_BODY)))
    )


def test_an_origin_that_can_be_no_server(world: World) -> None:
    header = b'X-Matrix origin="a b",key="ed25519:1",sig="x"'
    answer = world.checked(world.raw("GET", f"{V1}/event/$x".encode(), [(b"authorization", header)]))
    refused(answer, 400, "M_INVALID_PARAM")


@FUZZ
@given(st.binary(max_size=100) | st.text('X-Matrix originkeysgdst=",:\\ \t[]019.', max_size=80).map(str.encode))
def test_any_bytes_as_authorization(world: World, header: bytes) -> None:
    for value in (header, b"X-Matrix " + header):
        answer = world.checked(world.raw("GET", f"{V1}/event/$x".encode(), [(b"authorization", value)]))
        assert answer.status_code in (400, 401)  # 400 where the origin can be no server


@pytest.mark.parametrize(
    ("body", "errcode"),
    [(b"", "M_NOT_JSON"), (b"{", "M_NOT_JSON"), (b"\xff", "M_NOT_JSON"), (b"[]", "M_BAD_JSON"), (b"1", "M_BAD_JSON")],
)
def test_bodies_that_are_no_objects(world: World, body: bytes, errcode: str) -> None:
    for endpoint in endpoints("server-server").values():
        if endpoint.method in ("PUT", "POST"):
            path = path_of_nothing(endpoint.path)
            header = (b"authorization", sign(endpoint.method, path.decode(), {}))  # it is looked at first
            answer = world.checked(world.raw(endpoint.method, path, [header], body))
            if answer.status_code != 404:  # one that we have
                refused(answer, 400, errcode)


def path_of_nothing(path: str) -> bytes:
    return path.replace("{", "").replace("}", "").encode()


def test_bodies_without_end(world: World) -> None:
    pieces = [b"x" * 1_000_000] * 25
    for uri in (GOOD_URI, f"{V2}/invite/!a:b/$c", f"{V2}/send_join/!a:b/$c"):
        refused(world.checked(world.raw("PUT", uri.encode(), (), *pieces)), 401, "M_UNAUTHORIZED")
        header = (b"authorization", sign("PUT", uri, {}))
        refused(world.checked(world.raw("PUT", uri.encode(), [header], *pieces)), 413, "M_TOO_LARGE")
