from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.accounts.account_server import AccountServer, assert_error, running

WHOAMI = "/_matrix/client/v3/account/whoami"


@pytest.fixture
def account_server(sqlite_url: str) -> Iterator[AccountServer]:
    with running(sqlite_url) as server:
        yield server


@pytest.fixture
def token(account_server: AccountServer) -> str:
    return account_server.register("alice")["access_token"]


@pytest.mark.parametrize("scheme", ["Bearer ", "bearer ", "BEARER  "])
def test_the_header(account_server: AccountServer, token: str, scheme: str) -> None:
    response = account_server.run(account_server._client.get(WHOAMI, headers={"Authorization": scheme + token}))
    assert response.status_code == 200
    assert response.json()["user_id"] == "@alice:example.org"


def test_the_query_parameter(account_server: AccountServer, token: str) -> None:
    assert account_server.request("GET", f"/account/whoami?access_token={token}").status_code == 200
    assert_error(account_server.request("GET", "/account/whoami?access_token="), 401, "M_MISSING_TOKEN")
    assert_error(account_server.request("GET", "/account/whoami?access_token=x"), 401, "M_UNKNOWN_TOKEN")
    assert_error(account_server.request("GET", "/account/whoami?access_token=%ff%e2"), 401, "M_UNKNOWN_TOKEN")


@pytest.mark.parametrize("header", [b"Basic abc", b"Bearer", b"Bearer ", b"Bearer\t", b"", b"\xff\xfe"])
def test_headers_without_a_token(account_server: AccountServer, header: bytes) -> None:
    response = account_server.run(account_server._client.get(WHOAMI, headers={b"Authorization": header}))
    assert_error(response, 401, "M_MISSING_TOKEN")


@pytest.mark.parametrize("header", [b"Bearer x", b"Bearer \xff\xfe", b"Bearer " + b"x" * 10_000, b"Bearer \x00"])
def test_tokens_that_are_not_known(account_server: AccountServer, token: str, header: bytes) -> None:
    response = account_server.run(account_server._client.get(WHOAMI, headers={b"Authorization": header}))
    assert_error(response, 401, "M_UNKNOWN_TOKEN")


def test_no_token(account_server: AccountServer) -> None:
    assert_error(account_server.request("GET", "/account/whoami"), 401, "M_MISSING_TOKEN")
