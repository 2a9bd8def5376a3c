"""homeserver/accounts/login_guard.py: guessing is bounded, and nobody is locked out by others."""

from __future__ import annotations

import pytest

from homeserver.accounts.login_guard import LoginGuard
from homeserver.config import RateLimitsConfig
from homeserver.errors import LimitExceeded
from homeserver.limits.rate_limits import RateLimits
from tests.accounts.account_server import AccountServer, assert_error
from tests.fakes.clock import FakeClock

ALICE = "@alice:example.org"


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def guard(clock: FakeClock) -> LoginGuard:
    settings = {"login_failures": "1/m, burst 30", "account_login_failures": "1/m, burst 60"}
    return LoginGuard(RateLimits(RateLimitsConfig.model_validate(settings), clock), clock)


def failures(guard: LoginGuard, address: str, tries: int = 100, user_id: str = ALICE) -> int:
    """How many guesses an address has before it is refused."""
    for number in range(tries):
        try:
            guard.begin(user_id, address)
        except LimitExceeded:
            return number
    return tries


def test_an_address_that_guesses_is_stopped_and_only_that_one(guard: LoginGuard) -> None:
    assert failures(guard, "192.0.2.1") == 30
    with pytest.raises(LimitExceeded):
        guard.begin("@bob:example.org", "192.0.2.1")
    guard.begin(ALICE, "192.0.2.2")


def test_many_addresses_have_few_guesses_each_and_the_user_gets_in(guard: LoginGuard) -> None:
    guesses = [failures(guard, f"192.0.2.{number}") for number in range(1, 100)]
    assert guesses[:2] == [30, 30]
    assert set(guesses[2:]) == {3}
    # The account's user has never been seen from here, knows the password, and comes as often as it takes.
    for _ in range(20):
        guard.withdraw(guard.begin(ALICE, "198.51.100.1"))
    assert failures(guard, "198.51.100.1") == 3  # the address is no one's own


def test_a_right_password_costs_nothing(guard: LoginGuard) -> None:
    for _ in range(100):
        guard.withdraw(guard.begin(ALICE, "192.0.2.1"))
    assert failures(guard, "192.0.2.1", 20) == 20


def test_many_tries_at_once_are_no_way_around(guard: LoginGuard) -> None:
    attempts = [guard.begin(ALICE, "192.0.2.1") for _ in range(30)]
    with pytest.raises(LimitExceeded):
        guard.begin(ALICE, "192.0.2.1")
    for attempt in attempts:
        guard.withdraw(attempt)
    guard.begin(ALICE, "192.0.2.1")


def test_it_comes_back_with_time(guard: LoginGuard, clock: FakeClock) -> None:
    failures(guard, "192.0.2.1")
    clock.advance(60_000)
    assert failures(guard, "192.0.2.1") == 1


def test_over_http(sqlite_server: AccountServer) -> None:
    sqlite_server.register("alice")
    answers = [sqlite_server.log_in("alice", "guess") for _ in range(31)]
    assert {answer.status_code for answer in answers[:30]} == {403}
    refused = answers[30]
    assert_error(refused, 429, "M_LIMIT_EXCEEDED")
    assert refused.json()["retry_after_ms"] == 6_000
    assert refused.headers["retry-after"] == "6"
    sqlite_server.clock.advance(6_000)
    assert sqlite_server.log_in("alice").status_code == 200


def test_registrations_are_bounded_by_address(sqlite_server: AccountServer) -> None:
    for _ in range(200):
        assert sqlite_server.request("POST", "/register", {}).status_code == 401
    assert_error(sqlite_server.request("POST", "/register", {}), 429, "M_LIMIT_EXCEEDED")
