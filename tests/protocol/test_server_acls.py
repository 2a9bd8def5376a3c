from __future__ import annotations

from typing import Any

import pytest

from homeserver.protocol.server_acls import server_acl_allows


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
