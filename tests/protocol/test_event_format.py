from __future__ import annotations

import copy
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from homeserver.errors import InvalidEvent, NotCanonical
from homeserver.protocol.event_format import INT64_MAX, PDU_BYTES_MAX, depth_after, depth_max, parse_event
from homeserver.protocol.events import Event
from homeserver.protocol.room_versions import ROOM_VERSIONS
from tests.factories.rooms import RoomFactory
from tests.protocol.strategies import any_json

ALL = list(ROOM_VERSIONS)
HASHED = ALL[2:]
STRICT = ALL[5:]
LENIENT = ALL[:5]


def message(version: str) -> Event:
    room = RoomFactory(version)
    room.create()
    return room.send("alice", "hello")


def changed(event: Event, **fields: Any) -> dict[str, Any]:
    return {**copy.deepcopy(event.pdu), **fields}


def without(event: Event, field: str) -> dict[str, Any]:
    return {key: value for key, value in event.pdu.items() if key != field}


@pytest.mark.parametrize("version", ALL)
def test_real_events_survive_the_journey(version: str) -> None:
    room = RoomFactory(version)
    room.create()
    room.join("@bob:other.org")
    room.invite("alice", "@carol:third.org")
    room.redact("alice", room.send("alice", "a 'text' with \"quotes\", 日本語 and \U0001f600"))
    for event in room.events.values():
        parsed = parse_event(orjson.loads(event.json), room.version, room_id=room.room_id)
        assert parsed.event_id == event.event_id
        assert parsed.room_id == event.room_id == room.room_id
        assert parsed.json == event.json
        assert parsed.pdu == event.pdu
        assert parsed.prev_events == event.prev_events
        assert parsed.auth_events == event.auth_events


@pytest.mark.parametrize("version", ALL)
def test_unsigned_is_no_part_of_an_event(version: str) -> None:
    event = message(version)
    pdu = changed(event, unsigned={"age": 1.5, "deep": {"a": 2**60}})
    before = copy.deepcopy(pdu)
    parsed = parse_event(pdu, event.version)
    assert pdu == before
    assert "unsigned" not in parsed.pdu
    assert parsed.json == event.json
    assert parse_event(changed(event, unsigned="x" * PDU_BYTES_MAX), event.version).event_id == event.event_id


@pytest.mark.parametrize("version", HASHED)
def test_a_stray_event_id_is_dropped(version: str) -> None:
    event = message(version)
    parsed = parse_event(changed(event, event_id="$forged:example.org"), event.version)
    assert parsed.event_id == event.event_id
    assert parsed.json == event.json


@pytest.mark.parametrize("version", ALL)
@pytest.mark.parametrize(
    "field",
    [
        "type", "sender", "content", "depth", "origin_server_ts", "hashes", "signatures", "prev_events", "auth_events",
        "room_id",
    ],
)  # fmt: skip
def test_required_fields(version: str, field: str) -> None:
    event = message(version)
    with pytest.raises(InvalidEvent, match=field):
        parse_event(without(event, field), event.version)
    for wrong in (None, 1.5, True, [[]], "\ud800"):
        with pytest.raises(InvalidEvent):
            parse_event(changed(event, **{field: wrong}), event.version)


WRONG_FIELDS = [
    ("type", 5), ("type", "a" * 256), ("type", "é" * 256),
    ("state_key", None), ("state_key", 5), ("state_key", "a" * 256), ("state_key", "é" * 256),
    ("sender", "alice"), ("sender", "@alice"), ("sender", "@alice:"), ("sender", "@alice:exa mple"),
    ("sender", "@" + "a" * 255 + ":example.org"), ("sender", "!alice:example.org"),
    ("room_id", "room"), ("room_id", "!room"), ("room_id", "#room:example.org"), ("room_id", "!" + "a" * 255 + ":b.c"),
    ("content", []), ("content", "x"), ("content", None),
    ("depth", -1), ("depth", 2**63), ("depth", "1"), ("depth", 1.0), ("depth", False),
    ("origin_server_ts", "1"), ("origin_server_ts", 1.0), ("origin_server_ts", True), ("origin_server_ts", 2**63),
    ("origin_server_ts", -(2**63)),
    ("hashes", {}), ("hashes", {"sha256": 5}), ("hashes", []),
    ("signatures", []), ("signatures", {"a": []}), ("signatures", {"a": {"b": 5}}), ("signatures", {"a": None}),
    ("prev_events", {}), ("prev_events", [5]), ("prev_events", [None]), ("prev_events", ["nosigil"]),
    ("prev_events", [["$a:b"]]), ("prev_events", [["$a:b", {}, {}]]), ("prev_events", [["$a:b", "x"]]),
    ("prev_events", [["$a:b", {"sha256": 5}]]), ("prev_events", [[{}, {}]]), ("prev_events", ["$" + "a" * 255]),
    ("auth_events", "x"), ("auth_events", [{}]), ("auth_events", [["$" + "a" * 255, {}]]),
]  # fmt: skip


@pytest.mark.parametrize("version", ["1", "3", "5", "6", "11", "12"])
@pytest.mark.parametrize(("field", "value"), WRONG_FIELDS)
def test_wrong_fields(version: str, field: str, value: Any) -> None:
    event = message(version)
    with pytest.raises(InvalidEvent):
        parse_event(changed(event, **{field: value}), event.version)


@pytest.mark.parametrize("version", ALL)
@pytest.mark.parametrize(("field", "limit"), [("prev_events", 20), ("auth_events", 10)])
def test_numbers_of_references(version: str, field: str, limit: int) -> None:
    event = message(version)
    one = ["$a:b", {"sha256": "x"}] if int(version) <= 2 else "$a"
    assert len(parse_event(changed(event, **{field: [one] * limit}), event.version).pdu[field]) == limit
    with pytest.raises(InvalidEvent, match=field):
        parse_event(changed(event, **{field: [one] * (limit + 1)}), event.version)


@pytest.mark.parametrize("version", ALL)
def test_depth(version: str) -> None:
    event = message(version)
    limit = 2**63 - 1 if version in LENIENT else 2**53 - 1
    assert depth_max(event.version) == limit
    assert parse_event(changed(event, depth=limit), event.version).depth == limit
    assert parse_event(changed(event, depth=0), event.version).depth == 0
    with pytest.raises(InvalidEvent):
        parse_event(changed(event, depth=limit + 1), event.version)


@pytest.mark.parametrize("version", ALL)
@pytest.mark.parametrize("number", [1.5, 10.0, 2**53, -(2**53)])
def test_numbers_in_the_content(version: str, number: float) -> None:
    event = message(version)
    pdu = changed(event, content={"a": [{"b": number}]})
    if version in STRICT:
        with pytest.raises(NotCanonical):
            parse_event(pdu, event.version)
    else:
        assert orjson.loads(parse_event(pdu, event.version).json)["content"] == {"a": [{"b": number}]}


def test_timestamps_of_old_rooms_have_64_bits() -> None:
    event = message("1")
    assert parse_event(changed(event, origin_server_ts=INT64_MAX), event.version).origin_server_ts == INT64_MAX
    assert parse_event(changed(event, origin_server_ts=-5), event.version).origin_server_ts == -5


@pytest.mark.parametrize("version", ALL)
def test_size(version: str) -> None:
    event = message(version)
    room_for = PDU_BYTES_MAX - len(parse_event(changed(event, content={"a": ""}), event.version).json)
    exact = parse_event(changed(event, content={"a": "x" * room_for}), event.version)
    assert len(exact.json) == PDU_BYTES_MAX
    with pytest.raises(InvalidEvent, match="65536 bytes"):
        parse_event(changed(event, content={"a": "x" * (room_for + 1)}), event.version)
    # in bytes, not characters
    with pytest.raises(InvalidEvent, match="65536 bytes"):
        parse_event(changed(event, content={"a": "é" * (room_for // 2 + 1)}), event.version)


@pytest.mark.parametrize("version", ALL)
def test_bytes_limits_are_met_exactly(version: str) -> None:
    event = message(version)
    sender = "@" + "a" * 242 + ":example.org"
    pdu = changed(event, type="é" * 127 + "a", state_key="k" * 255, sender=sender)
    assert parse_event(pdu, event.version).key == ("é" * 127 + "a", "k" * 255)


@pytest.mark.parametrize("version", ALL)
@pytest.mark.parametrize("field", ["type", "state_key", "sender"])
def test_old_versions_count_code_points(version: str, field: str) -> None:
    event = message(version)
    text = "@" + "\N{GRINNING FACE}" * 242 + ":example.org"
    pdu = changed(event, **{field: text})
    if int(version) < 11:
        assert parse_event(pdu, event.version).pdu[field] == text
        with pytest.raises(InvalidEvent, match=field):
            parse_event(changed(event, **{field: "@" + text}), event.version)
    else:
        with pytest.raises(InvalidEvent, match=field):
            parse_event(pdu, event.version)


@pytest.mark.parametrize("version", ALL)
@pytest.mark.parametrize("value", [None, [], "text", 5, b"{}"])
def test_what_is_no_object(version: str, value: Any) -> None:
    with pytest.raises(InvalidEvent):
        parse_event(value, ROOM_VERSIONS[version])


@pytest.mark.parametrize("version", ["1", "2"])
@pytest.mark.parametrize("event_id", [None, 5, "", "$a", "a:b", "$a:", "$a:b c", "$" + "a" * 253 + ":b", "$\0:b"])
def test_event_ids_of_old_rooms(version: str, event_id: Any) -> None:
    event = message(version)
    assert parse_event(changed(event, event_id="$other:example.org"), event.version).event_id == "$other:example.org"
    with pytest.raises(InvalidEvent, match="event_id"):
        parse_event(changed(event, event_id=event_id), event.version)


@pytest.mark.parametrize("version", ALL)
def test_redacts_is_a_string_where_it_counts(version: str) -> None:
    event = message(version)
    if int(version) >= 11:
        parse_event(changed(event, redacts=5), event.version)
    else:
        with pytest.raises(InvalidEvent, match="redacts"):
            parse_event(changed(event, redacts=5), event.version)


@pytest.mark.parametrize("version", ALL)
def test_the_room_that_is_expected(version: str) -> None:
    event = message(version)
    parse_event(event.pdu, event.version, room_id=event.room_id)
    with pytest.raises(InvalidEvent, match="not an event of"):
        parse_event(event.pdu, event.version, room_id="!other:example.org")


def test_the_room_id_of_version_12_is_the_create_events_id() -> None:
    room = RoomFactory("12")
    create = room.create()
    assert create.room_id == "!" + create.event_id[1:]
    assert "room_id" not in create.pdu
    assert parse_event(create.pdu, room.version, room_id=create.room_id).room_id == create.room_id
    with pytest.raises(InvalidEvent, match="has no room_id"):
        parse_event({**create.pdu, "room_id": create.room_id}, room.version)
    for wrong in ("!room:example.org", create.room_id + "A", "$" + create.room_id[1:], 5):
        with pytest.raises(InvalidEvent, match="room_id"):
            parse_event(changed(room.send("alice"), room_id=wrong), room.version)


@pytest.mark.parametrize("version", ALL[:11])
def test_create_events_before_version_12_have_a_room_id(version: str) -> None:
    room = RoomFactory(version)
    create = room.create()
    with pytest.raises(InvalidEvent, match="room_id"):
        parse_event(without(create, "room_id"), room.version)


FIELDS = st.sampled_from(
    ["type", "sender", "content", "depth", "origin_server_ts", "hashes", "signatures", "prev_events", "auth_events",
     "room_id", "state_key", "redacts", "event_id", "unsigned", "other"]
)  # fmt: skip
MESSAGES = {version: message(version) for version in ("1", "3", "11", "12")}


@settings(max_examples=300)
@given(st.sampled_from(sorted(MESSAGES)), st.dictionaries(FIELDS, any_json, max_size=3))
def test_whatever_comes_it_is_an_event_or_an_invalid_one(version: str, fields: dict[str, Any]) -> None:
    event = MESSAGES[version]
    try:
        parsed = parse_event({**event.pdu, **fields}, event.version)
    except InvalidEvent:
        return
    assert isinstance(parsed.event_id, str)
    assert len(parsed.json) <= PDU_BYTES_MAX


def test_nesting_is_bounded() -> None:
    deep: Any = 1
    for _ in range(2_000):
        deep = [deep]
    for event in MESSAGES.values():
        with pytest.raises(InvalidEvent, match="nested"):
            parse_event(changed(event, content={"a": deep}), event.version)


def test_history_may_have_more_references_than_new_events() -> None:
    """https://spec.matrix.org/v1.19/server-server-api/#get_matrixfederationv1backfillroomid"""
    room = RoomFactory()
    room.create("@alice:example.org")
    event = room.send("@alice:example.org", "hello")
    pdu = {**event.pdu, "prev_events": [f"${n:043}" for n in range(21)]}
    with pytest.raises(InvalidEvent):
        parse_event(pdu, event.version)
    assert len(parse_event(pdu, event.version, is_history=True).prev_events) == 21


@pytest.mark.parametrize("version", ALL)
def test_only_a_create_event_has_no_past(version: str) -> None:
    room = RoomFactory(version)
    create = room.create()
    assert parse_event(create.pdu, room.version).prev_events == ()
    for event in (room.send("alice", prev_events=[]), room.state_event("alice", "m.room.topic", {}, prev_events=[])):
        for is_history in (False, True):
            with pytest.raises(InvalidEvent, match="prev_events is empty"):
                parse_event(event.pdu, room.version, is_history=is_history)


@pytest.mark.parametrize("version", ALL)
def test_depth_ends_at_the_limit(version: str) -> None:
    limit = depth_max(ROOM_VERSIONS[version])
    assert depth_after([], ROOM_VERSIONS[version]) == 1
    assert depth_after([3, 7, 5], ROOM_VERSIONS[version]) == 8
    assert depth_after([limit - 1], ROOM_VERSIONS[version]) == limit
    assert depth_after([1, limit], ROOM_VERSIONS[version]) == limit
