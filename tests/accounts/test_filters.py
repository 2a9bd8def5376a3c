from __future__ import annotations

import pytest

from homeserver.errors import BadJson, NotFound, NotJson
from tests.accounts.account_server import AccountServer, assert_error

ALICE = "@alice:example.org"
FILTERS = f"/user/{ALICE}/filter"
DEFINITION = {"room": {"timeline": {"limit": 7, "types": ["m.room.*"]}}, "org.example": "kept"}


@pytest.fixture
def alice(server: AccountServer) -> str:
    return server.register("alice")["access_token"]


def test_a_filter_is_stored_once_and_given_back(server: AccountServer, alice: str) -> None:
    filter_id = server.request("POST", FILTERS, DEFINITION, alice).json()["filter_id"]
    assert not filter_id.startswith("{")
    assert server.request("POST", FILTERS, dict(reversed(DEFINITION.items())), alice).json() == {"filter_id": filter_id}
    assert server.request("POST", FILTERS, {}, alice).json()["filter_id"] != filter_id
    assert server.request("GET", f"{FILTERS}/{filter_id}", token=alice).json() == DEFINITION


def test_a_filter_belongs_to_its_user(server: AccountServer, alice: str) -> None:
    filter_id = server.request("POST", FILTERS, DEFINITION, alice).json()["filter_id"]
    bob = server.register("bob")["access_token"]
    assert_error(server.request("GET", f"{FILTERS}/{filter_id}", token=bob), 403, "M_FORBIDDEN")
    assert_error(server.request("POST", FILTERS, DEFINITION, bob), 403, "M_FORBIDDEN")
    bobs = f"/user/@bob:example.org/filter/{filter_id}"
    assert_error(server.request("GET", bobs, token=bob), 404, "M_NOT_FOUND")


@pytest.mark.parametrize("filter_id", ["0", "x" * 1000, "%C3%A9", "%7B%7D"])
def test_unknown_filters(server: AccountServer, alice: str, filter_id: str) -> None:
    assert_error(server.request("GET", f"{FILTERS}/{filter_id}", token=alice), 404, "M_NOT_FOUND")


@pytest.mark.parametrize(
    ("definition", "errcode"),
    [
        ({"room": 1}, "M_BAD_JSON"),
        ({"room": {"timeline": {"types": "m.room.message"}}}, "M_BAD_JSON"),
        ({"event_format": "other"}, "M_INVALID_PARAM"),
        ([], "M_BAD_JSON"),
    ],
)
def test_what_is_no_filter(sqlite_server: AccountServer, definition: object, errcode: str) -> None:
    token = sqlite_server.register("alice")["access_token"]
    assert_error(sqlite_server.request("POST", FILTERS, definition, token), 400, errcode)


def test_the_filter_of_a_request(sqlite_server: AccountServer) -> None:
    token = sqlite_server.register("alice")["access_token"]
    filter_id = sqlite_server.request("POST", FILTERS, DEFINITION, token).json()["filter_id"]

    def get(text: str) -> object:
        return sqlite_server.run(sqlite_server.filters.get(ALICE, text))

    stored = get(filter_id)
    assert stored.room.timeline.limit == 7
    assert get(filter_id) is stored
    assert get('{"room":{"timeline":{"limit":8}}}').room.timeline.limit == 8
    with pytest.raises(NotFound):
        get("nothing")
    with pytest.raises(NotJson):
        get("{")
    with pytest.raises(BadJson):
        get('{"room":1}')
