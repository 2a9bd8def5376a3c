from __future__ import annotations

import copy
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeserver.errors import BadJson, InvalidEvent, TooLarge
from homeserver.protocol.canonical_json import encode_canonical_json
from homeserver.protocol.compose import add_signature, compose_event, finish_template
from homeserver.protocol.event_format import PDU_BYTES_MAX, parse_event
from homeserver.protocol.events import Event, EventDraft
from homeserver.protocol.hashes import event_id_of, has_intact_content
from homeserver.protocol.room_versions import ROOM_VERSIONS, RoomVersion
from homeserver.protocol.signatures import required_signers, verify_event_signature
from tests.factories.rooms import RoomFactory, server_key
from tests.protocol.strategies import contents, event_types, strings

ALL = list(ROOM_VERSIONS)
ALICE = "@alice:example.org"
KEY = server_key("example.org")
HASH = "A" * 43


def room_id_of_version(version: RoomVersion) -> str:
    return "!" + HASH if version.room_id_is_create_hash else "!room:example.org"


def composed(version: str, draft: EventDraft, **options: Any) -> Event:
    room_version = ROOM_VERSIONS[version]
    event_id = "$prev:example.org" if room_version.references_with_hashes else "$" + HASH
    return compose_event(
        draft,
        room_version,
        **{
            "room_id": room_id_of_version(room_version),
            "prev_events": [(event_id, HASH)],
            "auth_events": [(event_id, HASH), (event_id, HASH)],
            "depth": 7,
            "origin_server_ts": 1000,
            "signer": KEY,
            "event_id_localpart": "random",
            **options,
        },
    )


@given(st.sampled_from(ALL), event_types.filter(lambda kind: kind != "m.room.create"), contents, st.none() | strings)
def test_an_event_survives_compose_json_parse(
    version: str, event_type: str, content: dict[str, Any], state_key: str | None
) -> None:
    before = copy.deepcopy(content)
    event = composed(version, EventDraft(event_type, ALICE, content, state_key))
    assert content == before
    parsed = parse_event(orjson.loads(event.json), event.version, room_id=event.room_id)
    assert parsed.event_id == event.event_id
    assert parsed.json == event.json == encode_canonical_json(event.pdu)
    assert (parsed.type, parsed.state_key, parsed.content) == (event_type, state_key, content)
    assert has_intact_content(parsed)
    verify_event_signature(parsed, "example.org", KEY.keys())


@pytest.mark.parametrize("version", ALL)
def test_what_a_pdu_holds(version: str) -> None:
    event = composed(version, EventDraft("m.room.message", ALICE, {"body": "x"}, unsigned={"transaction_id": "t"}))
    fields = {
        "auth_events", "content", "depth", "hashes", "origin_server_ts", "prev_events", "room_id", "sender",
        "signatures", "type",
    }  # fmt: skip
    assert set(event.pdu) == fields | ({"event_id"} if version in ("1", "2") else set())
    assert event.depth == 7
    assert event.origin_server_ts == 1000
    assert event_id_of(event.pdu, event.version) == event.event_id
    if version in ("1", "2"):
        assert event.event_id == "$random:example.org"
        assert event.pdu["prev_events"] == [["$prev:example.org", {"sha256": HASH}]]
    else:
        assert event.pdu["prev_events"] == ["$" + HASH]


def test_a_sender_may_choose_the_time() -> None:
    draft = EventDraft("m.room.message", ALICE, {}, origin_server_ts=5)
    assert composed("11", draft).origin_server_ts == 5


@pytest.mark.parametrize("version", ALL)
def test_redactions_name_their_target_where_the_version_has_it(version: str) -> None:
    content = {"reason": "spam"}
    event = composed(version, EventDraft("m.room.redaction", ALICE, content, redacts="$target"))
    assert event.redacts == "$target"
    assert content == {"reason": "spam"}
    if int(version) >= 11:
        assert event.content == {"reason": "spam", "redacts": "$target"}
        assert "redacts" not in event.pdu
    else:
        assert event.content == {"reason": "spam"}
        assert event.pdu["redacts"] == "$target"


def test_the_create_event_of_version_12_makes_the_room_id() -> None:
    draft = EventDraft("m.room.create", ALICE, {"room_version": "12"}, "")
    event = composed("12", draft, room_id=None, prev_events=[], auth_events=[], depth=1)
    assert event.room_id == "!" + event.event_id[1:]
    assert "room_id" not in event.pdu


@pytest.mark.parametrize(
    ("version", "event_type"), [("12", "m.room.message"), ("11", "m.room.create"), ("1", "m.room.create")]
)
def test_no_other_event_goes_without_a_room(version: str, event_type: str) -> None:
    with pytest.raises(ValueError, match="room ID"):
        composed(version, EventDraft(event_type, ALICE, {}, ""), room_id=None)


def test_old_rooms_need_a_chosen_event_id() -> None:
    with pytest.raises(ValueError, match="event IDs"):
        composed("1", EventDraft("m.room.message", ALICE, {}), event_id_localpart=None)


@pytest.mark.parametrize(("field", "number"), [("prev_events", 21), ("auth_events", 11)])
def test_too_many_references(field: str, number: int) -> None:
    with pytest.raises(ValueError, match=field):
        composed("11", EventDraft("m.room.message", ALICE, {}), **{field: [("$a", "")] * number})


@pytest.mark.parametrize("version", ALL)
def test_depth_stays_within_its_limit(version: str) -> None:
    limit = 2**63 - 1 if int(version) < 6 else 2**53 - 1
    event = composed(version, EventDraft("m.room.message", ALICE, {}), depth=limit + 1)
    assert event.depth == limit
    assert parse_event(orjson.loads(event.json), event.version).event_id == event.event_id


@pytest.mark.parametrize("version", ALL)
@pytest.mark.parametrize("value", [1.5, 1.0, 2**53, -(2**53), float("nan"), "\ud800", {1: 2}, object()])
def test_what_is_not_canonical_is_bad_json(version: str, value: Any) -> None:
    with pytest.raises(BadJson):
        composed(version, EventDraft("m.room.message", ALICE, {"a": [value]}))


@pytest.mark.parametrize("version", ALL)
def test_size(version: str) -> None:
    room_for = PDU_BYTES_MAX - len(composed(version, EventDraft("m.room.message", ALICE, {"a": ""})).json)
    exact = composed(version, EventDraft("m.room.message", ALICE, {"a": "x" * room_for}))
    assert len(exact.json) == PDU_BYTES_MAX
    for more in (1, 500, 70_000):
        with pytest.raises(TooLarge):
            composed(version, EventDraft("m.room.message", ALICE, {"a": "x" * (room_for + more)}))


@pytest.mark.parametrize(
    "draft", [EventDraft("é" * 128, ALICE, {}), EventDraft("t", ALICE, {}, "k" * 256), EventDraft("t" * 256, ALICE, {})]
)
def test_lengths(draft: EventDraft) -> None:
    with pytest.raises(TooLarge):
        composed("11", draft)


@pytest.mark.parametrize("version", ALL)
def test_an_invitation_names_its_server(version: str) -> None:
    """A required field of /invite, whose event must not be changed by those who sign it."""
    event = composed(version, EventDraft("m.room.member", ALICE, {"membership": "invite"}, "@bob:other.org"))
    assert event.pdu["origin"] == "example.org"
    assert has_intact_content(event)
    assert parse_event(orjson.loads(event.json), event.version).event_id == event.event_id
    for content in ({"membership": "join"}, {"membership": ["invite"]}):
        assert "origin" not in composed(version, EventDraft("m.room.member", ALICE, content, ALICE)).pdu
    assert "origin" not in composed(version, EventDraft("x", ALICE, {"membership": "invite"}, "")).pdu


@pytest.mark.parametrize("version", ALL)
def test_a_second_signature(version: str) -> None:
    event = composed(version, EventDraft("m.room.member", ALICE, {"membership": "invite"}, "@bob:other.org"))
    before = event.json
    signed = add_signature(event, server_key("other.org"))
    assert event.json == before
    assert signed.event_id == event.event_id
    assert signed.json == encode_canonical_json(signed.pdu)
    for server in ("example.org", "other.org"):
        verify_event_signature(signed, server, server_key(server).keys())


def template(version: str, **fields: Any) -> dict[str, Any]:
    """As a resident server makes one for @bob:other.org."""
    room = RoomFactory(version)
    room.create()
    cited = [event.event_id for event in room.events.values()][:2]
    references = [[event_id, {"sha256": HASH}] for event_id in cited] if int(version) <= 2 else cited
    return {
        "type": "m.room.member",
        "sender": "@bob:other.org",
        "state_key": "@bob:other.org",
        "room_id": room.room_id,
        "content": {"membership": "join"},
        "depth": 9,
        "prev_events": references,
        "auth_events": references,
        "origin": "example.org",
        "origin_server_ts": 1,
        **fields,
    }


@pytest.mark.parametrize("version", ALL)
def test_templates_become_our_events(version: str) -> None:
    given_template = template(
        version,
        event_id="$theirs:example.org",
        hashes={"sha256": "x"},
        signatures={"example.org": {"ed25519:1": "x"}},
        unsigned={"age": 1.5},
        extra="something to sign",
    )
    before = copy.deepcopy(given_template)
    event = finish_template(given_template, ROOM_VERSIONS[version], server_key("other.org"), 5000, "ours")
    assert given_template == before
    assert event.pdu["origin"] == "other.org"
    assert event.origin_server_ts == 5000
    assert "extra" not in event.pdu
    assert "unsigned" not in event.pdu
    assert list(event.pdu["signatures"]) == ["other.org"]
    if version in ("1", "2"):
        assert event.event_id == "$ours:other.org"
    assert required_signers(event) == {"other.org"}
    verify_event_signature(event, "other.org", server_key("other.org").keys())
    parsed = parse_event(orjson.loads(event.json), event.version)
    assert parsed.event_id == event.event_id
    assert has_intact_content(parsed)


@pytest.mark.parametrize("version", ["1", "5", "11", "12"])
@pytest.mark.parametrize(
    "fields",
    [
        {"sender": "@mallory:example.org"},
        {"sender": None},
        {"depth": "9"},
        {"depth": -1},
        {"prev_events": None},
        {"auth_events": [5]},
        {"auth_events": ["$a"] * 11},
        {"content": None},
        {"content": {"a": 1.5}},
        {"content": {"a": "x" * PDU_BYTES_MAX}},
        {"room_id": 5},
        {"type": {}},
    ],
)
def test_templates_that_cannot_be_finished(version: str, fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidEvent):
        finish_template(template(version, **fields), ROOM_VERSIONS[version], server_key("other.org"), 5000, "ours")


@pytest.mark.parametrize("value", [None, [], "x"])
def test_what_is_no_template(value: Any) -> None:
    with pytest.raises(InvalidEvent):
        finish_template(value, ROOM_VERSIONS["11"], server_key("other.org"), 5000)
