"""homeserver/caches.py: bounded by weight, and what was used last stays."""

from __future__ import annotations

import gc

from hypothesis import given
from hypothesis import strategies as st

from homeserver.caches import CacheUse, WeightedCache, cache_uses


def cache(weight_max: int = 10) -> WeightedCache[str, str]:
    return WeightedCache("test", weight_max, len, entry_bytes=0)


def test_the_oldest_goes_when_it_gets_too_heavy() -> None:
    kept = cache()
    for letter in "abc":
        kept.put(letter, letter * 4)
    assert (kept.get("a"), kept.get("b"), kept.get("c")) == (None, "bbbb", "cccc")
    assert (len(kept), kept.bytes) == (2, 8)


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
    assert (kept.get("a"), kept.bytes) == ("a", 1)
    kept.drop("a")
    kept.drop("a")
    assert (len(kept), kept.bytes) == (0, 0)
    kept.put("b", "b")
    kept.clear()
    assert (kept.get("b"), kept.bytes) == (None, 0)


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
        assert kept.bytes == sum(len(kept.peek(name) or "") for name in "abcdef")
        assert kept.bytes <= 10


def test_all_caches_are_listed_while_they_are_in_use() -> None:
    first = WeightedCache[str, str]("of this test", 100, len, entry_bytes=1)
    second = WeightedCache[str, str]("of this test", 50, len, entry_bytes=1)
    first.put("a", "aaa")
    second.put("b", "bb")
    second.put("c", "")
    mine = [use for use in cache_uses() if use.name == "of this test"]
    assert mine == [CacheUse("of this test", entries=3, bytes=8, bytes_max=150)]
    del second
    gc.collect()
    mine = [use for use in cache_uses() if use.name == "of this test"]
    assert mine == [CacheUse("of this test", entries=1, bytes=4, bytes_max=100)]
