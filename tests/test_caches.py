"""homeserver/caches.py: bounded by weight, and what was used last stays."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from homeserver.caches import WeightedCache


def cache(weight_max: int = 10) -> WeightedCache[str, str]:
    return WeightedCache(weight_max, len)


def test_the_oldest_goes_when_it_gets_too_heavy() -> None:
    kept = cache()
    for letter in "abc":
        kept.put(letter, letter * 4)
    assert (kept.get("a"), kept.get("b"), kept.get("c")) == (None, "bbbb", "cccc")
    assert (len(kept), kept.weight) == (2, 8)


def test_use_keeps_an_entry_and_a_peek_does_not() -> None:
    kept = cache()
    kept.put("a", "aaaa")
    kept.put("b", "bbbb")
    assert kept.get("a") == "aaaa"
    kept.put("c", "cccc")
    assert kept.peek("a") == "aaaa"
    assert kept.peek("b") is None
    kept.put("d", "dddd")
    assert kept.peek("a") is None


def test_an_entry_may_be_replaced_dropped_and_all_forgotten() -> None:
    kept = cache()
    kept.put("a", "aaaa")
    kept.put("a", "a")
    assert (kept.get("a"), kept.weight) == ("a", 1)
    kept.drop("a")
    kept.drop("a")
    assert (len(kept), kept.weight) == (0, 0)
    kept.put("b", "b")
    kept.clear()
    assert (kept.get("b"), kept.weight) == (None, 0)


def test_one_entry_stays_however_heavy_it_is() -> None:
    kept = cache()
    kept.put("a", "a")
    kept.put("huge", "x" * 50)
    assert kept.get("huge") == "x" * 50
    assert kept.get("a") is None
    kept.put("b", "b")
    assert kept.get("huge") is None


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.text("x", max_size=6), st.booleans())))
def test_the_weight_is_what_the_entries_weigh(steps: list[tuple[str, str, bool]]) -> None:
    kept = cache()
    for key, value, is_drop in steps:
        if is_drop:
            kept.drop(key)
        else:
            kept.put(key, value)
        assert kept.weight == sum(len(kept.peek(name) or "") for name in "abcdef")
        assert kept.weight <= 10
