from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeserver.protocol.identifiers import (
    ServerName,
    is_hash_room_id,
    is_opaque_id,
    is_valid_event_id,
    is_valid_new_localpart,
    is_valid_room_alias,
    is_valid_room_id,
    is_valid_server_name,
    is_valid_user_id,
    localpart_of,
    parse_server_name,
    server_of,
)

HASH = "Nhcu5BS-UMnFX7hBVfVSoXiD7OgH6iRT_xyIuqDnpYQ"

SERVER_NAMES = {
    "matrix.org": ServerName("matrix.org", None),
    "matrix.org:8888": ServerName("matrix.org", 8888),
    "1.2.3.4": ServerName("1.2.3.4", None),
    "1.2.3.4:1234": ServerName("1.2.3.4", 1234),
    "[1234:5678::abcd]": ServerName("[1234:5678::abcd]", None),
    "[1234:5678::abcd]:5678": ServerName("[1234:5678::abcd]", 5678),
    "localhost": ServerName("localhost", None),
    "[::1]:8448": ServerName("[::1]", 8448),
    "[::ffff:1.2.3.4]": ServerName("[::ffff:1.2.3.4]", None),
    "EXAMPLE.org": ServerName("EXAMPLE.org", None),
    "1.2.3": ServerName("1.2.3", None),
    "xn--bcher-kva.example": ServerName("xn--bcher-kva.example", None),
}

NO_SERVER_NAMES = [
    "", ":", ":80", "example.org:", "example.org:port", "example.org:123456", "example.org:65536", "example.org:8 0",
    "example.org:٣", "exa mple.org", "exämple.org", "example_org", "example..org", ".example.org", "example.org.",
    "256.1.1.1", "[::1", "::1", "[::1]x", "[::1]:", "[]", "[::1%eth0]", "[1.2.3.4]", "[1:2]", "example.org/",
    "a@b", "example.org\n", "example.org:80\n", "a" * 64 + ".org", "a." * 115 + "a", "\ud800", "a\0b",
]  # fmt: skip


@pytest.mark.parametrize(("text", "parsed"), SERVER_NAMES.items())
def test_server_names(text: str, parsed: ServerName) -> None:
    assert parse_server_name(text) == parsed
    assert is_valid_server_name(text)


@pytest.mark.parametrize("text", NO_SERVER_NAMES)
def test_what_is_no_server_name(text: str) -> None:
    assert not is_valid_server_name(text)
    with pytest.raises(ValueError, match="server name"):
        parse_server_name(text)


def test_the_longest_server_name() -> None:
    labels = ".".join(["a" * 45] * 5)
    assert len(labels) == 229
    assert is_valid_server_name(labels + "a")
    assert not is_valid_server_name(labels + "aa")


@pytest.mark.parametrize(
    ("text", "is_literal", "address"),
    [
        ("1.2.3.4:80", True, "1.2.3.4"),
        ("[::1]:80", True, "::1"),
        ("example.org", False, "example.org"),
        ("1.2.3", False, "1.2.3"),
    ],
)
def test_ip_literals(text: str, is_literal: bool, address: str) -> None:
    assert parse_server_name(text).is_ip_literal is is_literal
    assert parse_server_name(text).address == address


@given(st.text(max_size=40))
def test_any_text_gets_an_answer(text: str) -> None:
    for check in (
        is_valid_server_name, is_valid_user_id, is_valid_room_id, is_valid_room_alias, is_valid_event_id, is_opaque_id,
        is_valid_new_localpart,
    ):  # fmt: skip
        assert check(text) in (True, False)


@pytest.mark.parametrize("value", [None, 1, ["a"], {"a": 1}, b"example.org", True])
def test_what_is_no_text_is_no_identifier(value: object) -> None:
    for check in (
        is_valid_server_name, is_valid_user_id, is_valid_room_id, is_valid_room_alias, is_valid_event_id, is_opaque_id,
        is_valid_new_localpart,
    ):  # fmt: skip
        assert not check(value)  # type: ignore[operator]
    with pytest.raises(ValueError, match="server name"):
        parse_server_name(value)  # type: ignore[arg-type]


def test_parts() -> None:
    assert server_of("@alice:example.org:8448") == "example.org:8448"
    assert server_of("#alias:[::1]:8448") == "[::1]:8448"
    assert server_of("!room:example.org") == "example.org"
    assert localpart_of("@alice:example.org:8448") == "alice"
    assert localpart_of("@:example.org") == ""


@pytest.mark.parametrize("text", ["", "!" + HASH, "@alice:", "alice"])
def test_no_server(text: str) -> None:
    with pytest.raises(ValueError, match="server name"):
        server_of(text)


@pytest.mark.parametrize("text", ["", "!" + HASH, ":example.org"])
def test_no_localpart(text: str) -> None:
    with pytest.raises(ValueError, match="localpart"):
        localpart_of(text)


@pytest.mark.parametrize(
    "text", ["@alice:example.org", "@a.b_c=d-e/f+g0:example.org:8448", "@x:[::1]", "@" + "a" * 242 + ":example.org"]
)
def test_user_ids(text: str) -> None:
    assert is_valid_user_id(text)
    assert is_valid_user_id(text, historical=False)


@pytest.mark.parametrize("text", ["@Alice:example.org", "@:example.org", "@al ice:example.org", "@é\n!:example.org"])
def test_historical_user_ids(text: str) -> None:
    assert is_valid_user_id(text)
    assert not is_valid_user_id(text, historical=False)


@pytest.mark.parametrize(
    "text",
    [
        "", "@", "alice:example.org", "@alice", "@alice:", "@alice:exa mple", "@a\0b:example.org",
        "@\ud800:example.org", "#alice:example.org", "@alice:b:example.org", "@" + "a" * 243 + ":example.org",
        "@" + "é" * 243 + ":example.org",
    ],
)  # fmt: skip
def test_what_is_no_user_id(text: str) -> None:
    assert not is_valid_user_id(text)
    assert not is_valid_user_id(text, historical=False)


def test_historical_user_ids_are_measured_in_code_points() -> None:
    assert is_valid_user_id("@" + "\N{GRINNING FACE}" * 242 + ":example.org")  # 255 of them
    assert not is_valid_user_id("@" + "\N{GRINNING FACE}" * 243 + ":example.org")


@pytest.mark.parametrize(
    ("text", "valid"),
    [("alice", True), ("a.b_c=d-e/f+g0", True), ("", False), ("Alice", False), ("é", False), ("a b", False),
     ("a:b", False), ("alice\n", False), ("@alice", False), ("a" * 256, False)],
)  # fmt: skip
def test_new_localparts(text: str, valid: bool) -> None:
    assert is_valid_new_localpart(text) is valid


@pytest.mark.parametrize(
    ("text", "valid"),
    [("!abc:example.org", True), ("!" + HASH, True), ("!é\n:example.org", True), ("!:example.org", True),
     ("!abc", False), ("!" + HASH + "A", False), ("!" + HASH[:-1] + "/", False), ("abc:example.org", False),
     ("!abc:", False), ("!a\0:example.org", False), ("!" + "a" * 250 + ":b.c", True),
     ("!" + "a" * 251 + ":b.c", False)],
)  # fmt: skip
def test_room_ids(text: str, valid: bool) -> None:
    assert is_valid_room_id(text) is valid


def test_hash_room_ids() -> None:
    assert is_hash_room_id("!" + HASH)
    assert not is_hash_room_id("!" + HASH + "\n")
    assert not is_hash_room_id("$" + HASH)


@pytest.mark.parametrize(
    ("text", "valid"),
    [("#room:example.org", True), ("#räum !:example.org", True), ("#room", False), ("!room:example.org", False),
     ("#room:", False), ("#a\0:example.org", False), ("#" + "a" * 255 + ":b.c", False)],
)  # fmt: skip
def test_room_aliases(text: str, valid: bool) -> None:
    assert is_valid_room_alias(text) is valid


@pytest.mark.parametrize(
    ("text", "valid"),
    [("$a:example.org", True), ("$" + HASH, True), ("$acR1l0raoZnm60CBwAVgqbZqoO/mYU81xysh1u7XcJk", True),
     ("$", False), ("a", False), ("$a\0", False), ("$a:", False), ("$" + "a" * 254, True), ("$" + "a" * 255, False),
     ("$\ud800", False)],
)  # fmt: skip
def test_event_ids(text: str, valid: bool) -> None:
    assert is_valid_event_id(text) is valid


@pytest.mark.parametrize(
    ("text", "valid"), [("aZ0-._~", True), ("", False), ("a/b", False), ("a\n", False), ("a" * 256, False)]
)
def test_opaque_ids(text: str, valid: bool) -> None:
    assert is_opaque_id(text) is valid
