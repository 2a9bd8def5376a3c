from __future__ import annotations

from typing import Any

import pytest

from homeserver.errors import BadJson, InvalidParam
from homeserver.protocol.server_acls import check_acl, server_acl_allows


def test_without_an_acl_all_may_take_part() -> None:
    assert server_acl_allows(None, "evil.com")


@pytest.mark.parametrize(
    ("acl", "server", "allowed"),
    [
        ({"allow": ["*"]}, "good.org", True),
        ({"allow": ["*"]}, "good.org:8448", True),
        ({"allow": ["*"], "deny": ["evil.com"]}, "evil.com", False),
        # "`evil.com`, `evil.com:8448`, and `evil.com:1234` would all match rules that apply to `evil.com`"
        ({"allow": ["*"], "deny": ["evil.com"]}, "evil.com:1234", False),
        ({"allow": ["*"], "deny": ["evil.com"]}, "notevil.com", True),
        ({"allow": ["*"], "deny": ["*.evil.com"]}, "a.b.evil.com", False),
        ({"allow": ["*"], "deny": ["*.evil.com"]}, "evil.com", True),
        ({"allow": ["*"], "deny": ["EVIL.com"]}, "evil.COM", False),
        ({"allow": ["*"], "deny": ["?vil.com"]}, "evil.com", False),
        ({"allow": ["good.org", "*.good.org"]}, "chat.good.org", True),
        ({"allow": ["good.org"]}, "other.org", False),
        ({"allow": ["good.org"], "deny": ["good.org"]}, "good.org", False),
        ({"allow": ["*"], "deny": ["e.il.com"]}, "evil.com", True),
        # "This defaults to an empty list when not provided, effectively disallowing every server."
        ({}, "good.org", False),
        ({"deny": ["evil.com"]}, "good.org", False),
        ({"allow": []}, "good.org", False),
    ],
)
def test_rules(acl: dict[str, Any], server: str, allowed: bool) -> None:
    assert server_acl_allows(acl, server) is allowed


@pytest.mark.parametrize("server", ["1.2.3.4", "1.2.3.4:8448", "[::1]", "[::1]:8448"])
def test_ip_literals(server: str) -> None:
    assert server_acl_allows({"allow": ["*"]}, server)
    assert server_acl_allows({"allow": ["*"], "allow_ip_literals": True}, server)
    # "Defaults to `true` if missing or otherwise not a boolean."
    assert server_acl_allows({"allow": ["*"], "allow_ip_literals": 0}, server)
    assert not server_acl_allows({"allow": ["*"], "allow_ip_literals": False}, server)
    assert not server_acl_allows({"allow": ["*"], "deny": ["1.2.*", "[::1]"]}, server)


def test_names_are_no_ip_literals() -> None:
    assert server_acl_allows({"allow": ["*"], "allow_ip_literals": False}, "1.2.3.4.example.org")


@pytest.mark.parametrize("server", ["", "evil .com", "evil_com", "*", "a" * 300])
def test_what_is_no_server_name_is_denied(server: str) -> None:
    assert not server_acl_allows({"allow": ["*"]}, server)


@pytest.mark.parametrize("junk", [None, 5, "*", {"a": 1}, [5, None, ["*"], {}]])
def test_malformed_lists_are_empty_ones(junk: Any) -> None:
    assert not server_acl_allows({"allow": junk}, "good.org")
    assert server_acl_allows({"allow": ["*"], "deny": junk}, "good.org")


def test_a_list_may_hold_junk_beside_names() -> None:
    assert not server_acl_allows({"allow": ["*"], "deny": [5, "evil.com", None]}, "evil.com")


@pytest.mark.parametrize(
    "content",
    [
        {"allow": "*"},
        {"allow": ["*", 1]},
        {"allow": ["*"], "deny": {"evil.com": True}},
        {"allow": ["*"], "deny": [None]},
        {"allow": ["*"], "allow_ip_literals": "yes"},
        {"allow": None},
    ],
)
def test_a_malformed_acl_is_refused(content: dict[str, Any]) -> None:
    with pytest.raises(BadJson):
        check_acl(content, "ours.org")


@pytest.mark.parametrize(
    ("content", "own_server"),
    [
        ({}, "ours.org"),  # "allow" defaults to nobody
        ({"allow": []}, "ours.org"),
        ({"allow": ["*"], "deny": ["*.org"]}, "ours.org:8448"),
        ({"allow": ["theirs.org"]}, "ours.org"),
        ({"allow": ["*"], "allow_ip_literals": False}, "127.0.0.1:8448"),
        ({"content": {"allow": ["*"]}, "type": "m.room.server_acl"}, "ours.org"),  # a whole event as the content
    ],
)
def test_an_acl_that_shuts_out_our_own_server_is_refused(content: dict[str, Any], own_server: str) -> None:
    with pytest.raises(InvalidParam):
        check_acl(content, own_server)


def test_an_acl_that_lets_our_own_server_in_is_taken() -> None:
    check_acl({"allow": ["*"], "deny": ["evil.com"], "allow_ip_literals": False, "org.custom": 1}, "ours.org")
