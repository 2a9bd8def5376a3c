"""homeserver/limits/buckets.py."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeserver.config import Rate
from homeserver.limits.buckets import Buckets


def rate(text: str) -> Rate:
    parsed = Rate.parse(text)
    assert parsed is not None
    return parsed


def test_a_burst_then_one_at_a_time() -> None:
    buckets = Buckets(rate("2/s, burst 3"), 10)
    assert [buckets.take("a", 100.0) for _ in range(3)] == [0, 0, 0]
    assert buckets.take("a", 100.0) == pytest.approx(0.5)
    assert buckets.take("b", 100.0) == 0  # another subject
    assert buckets.take("a", 100.5) == 0
    assert buckets.take("a", 100.5) == pytest.approx(0.5)
    assert [buckets.take("a", 1000.0) for _ in range(3)] == [0, 0, 0]  # full again, and no fuller
    assert buckets.take("a", 1000.0) > 0


def test_what_is_refused_costs_nothing() -> None:
    buckets = Buckets(rate("1/s, burst 1"), 10)
    buckets.take("a", 0.0)
    for _ in range(1000):
        assert buckets.take("a", 0.5) == pytest.approx(0.5)
    assert buckets.take("a", 1.0) == 0


def test_costs() -> None:
    buckets = Buckets(rate("1/s, burst 10"), 10)
    assert buckets.take("a", 0.0, 7) == 0
    assert buckets.take("a", 0.0, 7) == pytest.approx(4)
    assert buckets.take("a", 0.0, 3) == 0
    assert buckets.take("a", 10.0, 1000) == 0  # counts as the burst: otherwise it could never be paid
    assert buckets.take("a", 10.0) == pytest.approx(1)


def test_charging_and_giving_back() -> None:
    buckets = Buckets(rate("1/s, burst 2"), 10)
    for _ in range(5):
        buckets.charge("a", 0.0)
    assert buckets.take("a", 0.0) == pytest.approx(1)  # not emptier than empty
    buckets.give_back("a")
    assert buckets.take("a", 0.0) == 0
    buckets.give_back("stranger")
    assert len(buckets) == 1


def test_the_number_of_subjects_is_bounded_and_full_buckets_go() -> None:
    buckets = Buckets(rate("1/s, burst 1"), 100)
    for number in range(1000):
        buckets.take(str(number), 0.0)
    assert len(buckets) == 100
    for _ in range(200):
        buckets.take("a", 5.0)
        buckets.take("b", 5.0)
    assert len(buckets) <= 100
    for number in range(200):
        buckets.take("a", 10.0 + number)
    assert len(buckets) == 1


@given(st.lists(st.tuples(st.floats(0, 5), st.integers(1, 4)), max_size=60))
def test_never_more_than_the_burst_and_what_was_regained(events: list[tuple[float, int]]) -> None:
    buckets = Buckets(rate("1/s, burst 5"), 10)
    now, taken = 0.0, 0
    for pause, cost in events:
        now += pause
        wait = buckets.take("a", now, cost)
        if wait == 0:
            taken += cost
        else:
            assert buckets.take("a", now + wait, cost) == 0  # what it says is enough
            now, taken = now + wait, taken + cost
        assert taken <= 5 + now + 1e-3


@pytest.mark.parametrize(
    "text", ["", "5", "5/s", "0/s, burst 5", "5/s, burst 0", "5/d, burst 5", "-1/s, burst 5", "on"]
)
def test_what_is_no_rate(text: str) -> None:
    with pytest.raises(ValueError, match="rate"):
        Rate.parse(text)


def test_rates() -> None:
    assert rate("90/m, burst 7") == Rate(1.5, 7)
    assert rate("0.5/h,burst 7") == Rate(0.5 / 3600, 7)
    assert Rate.parse("off") is None
