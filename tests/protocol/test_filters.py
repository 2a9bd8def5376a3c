from __future__ import annotations

import contextlib
import copy
from typing import Any

import orjson
import pytest
from hypothesis import given

from homeserver.errors import BadJson, InvalidParam, MatrixError, NotJson
from homeserver.protocol.filters import (
    EVERYTHING,
    LIMIT_MAX,
    LIST_ENTRIES_MAX,
    Filter,
    parse_filter,
    parse_filter_text,
    parse_room_event_filter,
    parse_room_event_filter_text,
    select_fields,
    split_property_path,
)
from tests.protocol.strategies import any_json

ALICE = "@alice:example.com"
ROOM = "!726s6s6q:example.com"

EXAMPLE: dict[str, Any] = {
    "room": {
        "state": {"types": ["m.room.*"], "not_rooms": [ROOM]},
        "timeline": {
            "limit": 10, "types": ["m.room.message"], "not_rooms": [ROOM], "not_senders": ["@spam:example.com"],
        },
        "ephemeral": {
            "types": ["m.receipt", "m.typing"], "not_rooms": [ROOM], "not_senders": ["@spam:example.com"],
        },
    },
    "presence": {"types": ["m.presence"], "not_senders": [ALICE]},
    "event_format": "client",
    "event_fields": ["type", "content", "sender"],
}  # fmt: skip


def room_allows(obj: dict[str, Any], event_type: str = "m.room.message", sender: str | None = ALICE) -> bool:
    return parse_room_event_filter(obj).allows(event_type, sender, ROOM, {})


def test_the_specifications_example() -> None:
    parsed = parse_filter(EXAMPLE)
    assert parsed.event_format == "client"
    assert parsed.event_fields == (("type",), ("content",), ("sender",))
    timeline = parsed.room.timeline
    assert timeline.limit == 10
    assert timeline.allows("m.room.message", ALICE, "!other:example.com", {})
    assert not timeline.allows("m.room.message", ALICE, ROOM, {})
    assert not timeline.allows("m.room.message", "@spam:example.com", "!other:example.com", {})
    assert not timeline.allows("m.room.name", ALICE, "!other:example.com", {})
    assert parsed.room.state.allows("m.room.name", ALICE, "!other:example.com", {})
    assert not parsed.room.state.allows("m.space.child", ALICE, "!other:example.com", {})
    assert parsed.room.ephemeral.allows("m.typing", None, "!other:example.com", {})
    assert not parsed.presence.allows("m.presence", ALICE)
    assert parsed.presence.allows("m.presence", "@bob:example.com")
    assert parsed.room.account_data.is_everything
    assert parsed.account_data.is_everything
    assert not parsed.room.include_leave


def test_the_empty_filter_is_everything() -> None:
    assert parse_filter({}) is EVERYTHING
    for part in (EVERYTHING.presence, EVERYTHING.account_data):
        assert part.is_everything
        assert part.allows("any.type", None)
    for room_part in (EVERYTHING.room.state, EVERYTHING.room.timeline, EVERYTHING.room.ephemeral):
        assert room_part.is_everything
        assert not room_part.is_nothing
        assert room_part.allows("any.type", None, ROOM, {"url": 1})
        assert not room_part.lazy_load_members
    assert EVERYTHING.room.allows_room(ROOM)
    assert EVERYTHING.event_fields is None


@pytest.mark.parametrize(
    ("types", "not_types", "allowed"),
    [
        (None, None, True), ([], None, False), (["*"], None, True), (["m.room.message"], None, True),
        (["m.room.*"], None, True), (["*.message"], None, True), (["m.*.mess*"], None, True), (["m.room"], None, False),
        (["M.ROOM.*"], None, False), (["m.room.messag?"], None, False), (["m?room.message"], None, False),
        (None, ["m.room.message"], False), (None, ["m.*"], False), (None, ["*"], False), (None, [], True),
        # "A matching type will be excluded even if it is listed in the `types` filter."
        (["m.room.message"], ["m.room.message"], False), (["*"], ["m.reaction"], True),
    ],
)  # fmt: skip
def test_types(types: list[str] | None, not_types: list[str] | None, allowed: bool) -> None:
    fields = {name: value for name, value in (("types", types), ("not_types", not_types)) if value is not None}
    assert room_allows(fields) is allowed
    assert parse_filter({"presence": fields}).presence.allows("m.room.message", ALICE) is allowed


@pytest.mark.parametrize(
    ("fields", "allowed"),
    [
        ({"senders": [ALICE]}, True), ({"senders": ["@bob:example.com"]}, False), ({"senders": []}, False),
        ({"not_senders": [ALICE]}, False), ({"not_senders": ["@bob:example.com"]}, True),
        ({"senders": [ALICE], "not_senders": [ALICE]}, False),
        ({"rooms": [ROOM]}, True), ({"rooms": []}, False), ({"rooms": ["!b:c"]}, False), ({"not_rooms": [ROOM]}, False),
        ({"rooms": [ROOM], "not_rooms": [ROOM]}, False),
        # nulls are as if absent, and unknown properties are ignored
        ({"senders": None, "types": None, "not_types": None, "rooms": None, "limit": None}, True), ({"new": 1}, True),
    ],
)  # fmt: skip
def test_senders_and_rooms(fields: dict[str, Any], allowed: bool) -> None:
    assert room_allows(fields) is allowed


def test_events_without_a_sender() -> None:
    assert room_allows({"not_senders": [ALICE]}, "m.typing", None)
    assert not room_allows({"senders": [ALICE]}, "m.typing", None)


def test_contains_url() -> None:
    only = parse_room_event_filter({"contains_url": True})
    without = parse_room_event_filter({"contains_url": False})
    assert only.allows("m.room.message", ALICE, ROOM, {"url": "mxc://a/b"})
    assert not only.allows("m.room.message", ALICE, ROOM, {"body": "x"})
    assert not without.allows("m.room.message", ALICE, ROOM, {"url": "mxc://a/b"})
    assert without.allows("m.room.message", ALICE, ROOM, {"body": "x"})
    assert not only.is_everything
    assert not without.is_everything


@pytest.mark.parametrize(
    "fields",
    [{"types": []}, {"senders": []}, {"rooms": []}, {"not_types": ["*"]}, {"senders": [ALICE], "not_senders": [ALICE]},
     {"rooms": [ROOM], "not_rooms": [ROOM]}],
)  # fmt: skip
def test_filters_that_let_nothing_through(fields: dict[str, Any]) -> None:
    parsed = parse_room_event_filter(fields)
    assert parsed.is_nothing
    assert not parsed.is_everything
    assert not parsed.allows("m.room.message", ALICE, ROOM, {})


@pytest.mark.parametrize(
    ("limit", "expected"), [(1, 1), (10, 10), (LIMIT_MAX, LIMIT_MAX), (10**9, LIMIT_MAX), (0, 0), (None, None)]
)
def test_limits(limit: int | None, expected: int | None) -> None:
    parsed = parse_room_event_filter({"limit": limit})
    assert parsed.limit == expected
    assert parsed.is_everything


def test_members_and_threads() -> None:
    parsed = parse_room_event_filter(
        {"lazy_load_members": True, "include_redundant_members": True, "unread_thread_notifications": True}
    )
    assert (parsed.lazy_load_members, parsed.include_redundant_members, parsed.unread_thread_notifications) == (
        True, True, True,
    )  # fmt: skip
    assert parsed.is_everything


def test_rooms_as_a_whole() -> None:
    room = parse_filter({"room": {"rooms": [ROOM, "!b:c"], "not_rooms": ["!b:c"], "include_leave": True}}).room
    assert room.allows_room(ROOM)
    assert not room.allows_room("!b:c")
    assert not room.allows_room("!d:e")
    assert room.include_leave


@pytest.mark.parametrize("value", [None, [], "x", 5, True])
def test_what_is_no_filter(value: Any) -> None:
    with pytest.raises(BadJson):
        parse_filter(value)
    with pytest.raises(BadJson):
        parse_room_event_filter(value)
    for part in ("room", "presence", "account_data"):
        with pytest.raises(BadJson):
            parse_filter({part: value})
    with pytest.raises(BadJson):
        parse_filter({"room": {"timeline": value}})


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"limit": "10"}, BadJson), ({"limit": 1.5}, BadJson), ({"limit": True}, BadJson),
        ({"limit": -1}, InvalidParam),
        ({"types": "m.room.message"}, BadJson), ({"types": [1]}, BadJson), ({"not_types": {}}, BadJson),
        ({"senders": [None]}, BadJson), ({"senders": ["alice"]}, InvalidParam), ({"not_senders": [""]}, InvalidParam),
        ({"rooms": ["#alias:a"]}, InvalidParam), ({"not_rooms": "x"}, BadJson), ({"lazy_load_members": 1}, BadJson),
        ({"contains_url": "yes"}, BadJson), ({"types": ["a"] * (LIST_ENTRIES_MAX + 1)}, InvalidParam),
    ],
)  # fmt: skip
def test_wrong_fields(fields: dict[str, Any], error: type[MatrixError]) -> None:
    with pytest.raises(error):
        parse_room_event_filter(fields)
    with pytest.raises(error):
        parse_filter({"room": {"timeline": fields}})


def test_event_formats() -> None:
    assert parse_filter({"event_format": "federation"}).event_format == "federation"
    for wrong in ("raw", 5, None, ["client"]):
        with pytest.raises(MatrixError):
            parse_filter({"event_format": wrong})


@given(any_json)
def test_whatever_comes_it_is_a_filter_or_a_matrix_error(value: object) -> None:
    for obj in (value, {"room": value}, {"room": {"timeline": value}}, {"event_fields": value}, {"presence": value}):
        with contextlib.suppress(MatrixError):
            assert isinstance(parse_filter(obj), Filter)


def test_text_is_parsed_once() -> None:
    text = orjson.dumps(EXAMPLE).decode()
    assert parse_filter_text(text) is parse_filter_text(text)
    assert parse_room_event_filter_text('{"limit":5}').limit == 5
    for parse in (parse_filter_text, parse_room_event_filter_text):
        with pytest.raises(NotJson):
            parse("{")
        with pytest.raises(BadJson):
            parse("[]")
        with pytest.raises(BadJson):
            parse('{"a":"' + "x" * 70_000 + '"}')


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("content.body", ("content", "body")), ("type", ("type",)),
        (r"content.m\.relates_to", ("content", "m.relates_to")),
        (r"content.m\\foo", ("content", r"m\foo")), (r"a\x.b", (r"a\x", "b")), ("a\\", ("a\\",)), ("", ("",)),
        ("a..b", ("a", "", "b")), (r"a\\.b", ("a\\", "b")),
    ],
)  # fmt: skip
def test_property_paths(path: str, names: tuple[str, ...]) -> None:
    assert split_property_path(path) == names


EVENT = {"type": "m.room.message", "content": {"body": "x", "info": {"w": 1, "h": 2}}, "sender": ALICE, "n": None}


@pytest.mark.parametrize(
    ("paths", "selected"),
    [
        (["type"], {"type": "m.room.message"}),
        (["content.body", "sender"], {"content": {"body": "x"}, "sender": ALICE}),
        (["content.info.w", "content.info.h"], {"content": {"info": {"w": 1, "h": 2}}}),
        (["content.info.w", "content"], {"content": EVENT["content"]}),
        (["content", "content.info.w"], {"content": EVENT["content"]}),
        (["content.info", "content.info.w", "content.body"], {"content": EVENT["content"]}),
        (["nothing", "content.nothing", "type.x", "content.body.x", "n.x"], {}),
        (["n"], {"n": None}),
        ([], {}),
    ],
)
def test_selected_fields(paths: list[str], selected: dict[str, Any]) -> None:
    before = copy.deepcopy(EVENT)
    result = select_fields(EVENT, tuple(split_property_path(path) for path in paths))
    assert result == selected
    assert before == EVENT
    assert orjson.loads(orjson.dumps(result)) == selected


def test_wildcards_are_bounded() -> None:
    """A list may hold thousands of types and beginnings of types, but few that take more than a look-up."""
    common = [f"m.{number}.*" for number in range(2_000)] + [f"*.{number}" for number in range(2_000)]
    assert parse_room_event_filter({"types": common}).allows("m.1999.x", None, ROOM, {})
    assert parse_room_event_filter({"types": ["*a*"] * 5_000}).allows("xax", None, ROOM, {})
    with pytest.raises(InvalidParam, match="wildcards"):
        parse_room_event_filter({"not_types": [f"*{number}*" for number in range(2_000)]})


def test_chosen_fields_are_bounded() -> None:
    with pytest.raises(InvalidParam, match="event_fields"):
        parse_filter({"event_fields": [f"content.{number}" for number in range(201)]})


def test_long_filters_are_not_kept() -> None:
    text = orjson.dumps({"room": {"timeline": {"types": ["m" * 5_000]}}}).decode()
    assert parse_filter_text(text) is not parse_filter_text(text)
