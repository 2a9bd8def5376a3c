"""homeserver/limits/rate_limits.py."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import structlog

from homeserver.config import RateLimitsConfig
from homeserver.errors import LimitExceeded
from homeserver.limits.rate_limits import LOG_SECONDS, SHARED, SUBJECTS_MAX, Limit, RateLimits
from tests.fakes.clock import FakeClock


class Wire:
    """What one process says to others, which hear it at once."""

    def __init__(self) -> None:
        self.others: list[RateLimits] = []
        self.sent: list[tuple[tuple[str, ...], str]] = []

    def send(self, key: tuple[str, ...], body: str) -> None:
        self.sent.append((key, body))
        for other in self.others:
            other.hear(body)

    async def stop(self) -> None:
        return None


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def limits(clock: FakeClock, wire: Wire | None = None, **settings: object) -> RateLimits:
    return RateLimits(RateLimitsConfig.model_validate(settings), clock, wire)


def test_every_limit_has_a_rate_in_the_configuration() -> None:
    keys = set(RateLimitsConfig.model_fields) - {"enabled", "exempt_users"}
    assert keys == set(Limit)


def test_the_error_says_when_to_come_back(clock: FakeClock) -> None:
    some = limits(clock, messages="2/m, burst 1")
    some.require(Limit.MESSAGES, "@a:b")
    with pytest.raises(LimitExceeded) as caught:
        some.require(Limit.MESSAGES, "@a:b")
    assert caught.value.extra == {"retry_after_ms": 30_000}
    some.require(Limit.JOINS, "@a:b")  # another limit
    clock.advance(30_000)
    some.require(Limit.MESSAGES, "@a:b")


def test_off_and_exempt(clock: FakeClock) -> None:
    for some in (
        limits(clock, enabled=False, messages="1/h, burst 1"),
        limits(clock, messages="off"),
        limits(clock, messages="1/h, burst 1", exempt_users=["@a:b"]),
    ):
        for _ in range(10):
            some.require(Limit.MESSAGES, "@a:b")
        assert some.refusals.total() == 0


@pytest.fixture
def log() -> Iterator[list[structlog.typing.EventDict]]:
    with structlog.testing.capture_logs() as entries:
        yield entries


def test_a_line_in_the_log_which_is_limited_itself(clock: FakeClock, log: list[structlog.typing.EventDict]) -> None:
    some = limits(clock, messages="1/h, burst 1", joins="1/h, burst 1")
    for name in ("@a:b", "@c:d"):
        for _ in range(11):
            some.allows(Limit.MESSAGES, name)
            with pytest.raises(LimitExceeded):
                some.require(Limit.MESSAGES, name)
    assert [(entry["limit"], entry["subject"], entry["refused"]) for entry in log] == [("messages", "@a:b", 1)]
    clock.advance(int(LOG_SECONDS * 1000))
    with pytest.raises(LimitExceeded):
        some.require(Limit.MESSAGES, "@c:d")
    assert [(entry["subject"], entry["refused"]) for entry in log[1:]] == [("@c:d", 22)]
    assert some.refusals[Limit.MESSAGES] == 23


def test_memory_is_bounded_and_reported(clock: FakeClock) -> None:
    some = limits(clock)
    for number in range(SUBJECTS_MAX + 1000):
        some.require(Limit.LOOKUPS, f"{number}" + "x" * 10_000)
    assert len(some) == SUBJECTS_MAX
    assert 0 < some.bytes <= some.bytes_max < 64 * 2**20


def test_what_guards_accounts_is_shared_by_processes(clock: FakeClock) -> None:
    wire = Wire()
    here, there = limits(clock, wire, login_failures="1/h, burst 4"), limits(clock, login_failures="1/h, burst 4")
    wire.others.append(there)
    for _ in range(3):
        here.require(Limit.LOGIN_FAILURES, "192.0.2.1")
    here.give_back(Limit.LOGIN_FAILURES, "192.0.2.1")
    assert [there.allows(Limit.LOGIN_FAILURES, "192.0.2.1") for _ in range(3)] == [True, True, False]
    assert len({key for key, _ in wire.sent}) == 4  # no notice takes the place of another
    # What is cheap stays in the process, and so does what was refused.
    here.require(Limit.MESSAGES, "@a:b")
    for _ in range(3):
        here.allows(Limit.LOGIN_FAILURES, "192.0.2.1")
    assert len(wire.sent) == 4 + 2
    assert Limit.MESSAGES not in SHARED


@pytest.mark.parametrize("body", ["", "{", '["typing","!a:b","@c:d",1]', '["who types"]'])
def test_notices_of_others_are_left_alone(clock: FakeClock, body: str) -> None:
    limits(clock).hear(body)
