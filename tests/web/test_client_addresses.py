"""homeserver/web/client_addresses.py: which address a request counts for."""

from __future__ import annotations

from typing import Any

import pytest
import structlog

from homeserver.web import ClientAddresses

TRUSTED = ("127.0.0.1", "10.0.0.0/8", "2001:db8:1::/48")


def address(peer: str | None, *forwarded: str, trusted: tuple[str, ...] = TRUSTED) -> str:
    headers = [(b"host", b"x"), *((b"x-forwarded-for", value.encode()) for value in forwarded)]
    scope: dict[str, Any] = {"client": None if peer is None else (peer, 4711), "headers": headers}
    return ClientAddresses(trusted).of(scope)


@pytest.mark.parametrize(
    ("peer", "forwarded", "expected"),
    [
        ("192.0.2.1", [], "192.0.2.1"),
        ("127.0.0.1", [], "127.0.0.1"),
        ("2001:db8::1:2:3", [], "2001:db8::/64"),
        ("::ffff:192.0.2.1", [], "192.0.2.1"),
        ("127.0.0.1", ["192.0.2.1"], "192.0.2.1"),
        ("::ffff:127.0.0.1", ["192.0.2.1"], "192.0.2.1"),
        ("127.0.0.1", ["192.0.2.1:4711"], "192.0.2.1"),
        ("127.0.0.1", ["[2001:db8::1]:4711"], "2001:db8::/64"),
        ("127.0.0.1", ["2001:db8::1"], "2001:db8::/64"),
        # What the client itself wrote stands before what the proxies appended.
        ("127.0.0.1", ["8.8.8.8, 192.0.2.1"], "192.0.2.1"),
        ("127.0.0.1", ["8.8.8.8", "192.0.2.1"], "192.0.2.1"),
        ("127.0.0.1", ["8.8.8.8, 192.0.2.1, 10.1.2.3, 2001:db8:1::5"], "192.0.2.1"),
        ("127.0.0.1", ["10.1.2.3"], "10.1.2.3"),
        ("127.0.0.1", ["not an address"], "127.0.0.1"),
        ("127.0.0.1", ["192.0.2.1, not an address, 10.1.2.3"], "10.1.2.3"),
        ("127.0.0.1", [""], "127.0.0.1"),
        ("127.0.0.1", ["9" * 10_000], "127.0.0.1"),
        # Anybody can write the header; only proxies are believed.
        ("192.0.2.1", ["8.8.8.8"], "192.0.2.1"),
        ("11.0.0.1", ["8.8.8.8"], "11.0.0.1"),
    ],
)
def test_whom_a_request_counts_for(peer: str, forwarded: list[str], expected: str) -> None:
    assert address(peer, *forwarded) == expected


def test_without_an_address() -> None:
    assert address(None) == "unknown"
    assert address(None, "192.0.2.1") == "unknown"


def test_a_proxy_that_is_not_trusted_is_said_once() -> None:
    addresses = ClientAddresses()
    with structlog.testing.capture_logs() as log:
        for _ in range(3):
            addresses.of({"client": ("192.0.2.1", 1), "headers": [(b"x-forwarded-for", b"8.8.8.8")]})
    assert [entry["peer"] for entry in log] == ["192.0.2.1"]
