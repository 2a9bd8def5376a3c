"""homeserver/federation/large_answers.py: the same result as by the parser that takes everything at once."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeserver.federation.large_answers import ELEMENTS_AT_A_STRETCH, parse_json, parse_large_json

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(VALUES, st.sampled_from([None, 1, "\t"]))
def test_the_same_as_at_once(value: Any, indent: int | str | None) -> None:
    body = json.dumps(value, indent=indent).encode()
    assert asyncio.run(parse_large_json(body)) == value


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"{}x",
        b'{"a":1,}',
        b'{"a" 1}',
        b'{"a":[1,]}',
        b'{"a":[1 2]}',
        b'{"a":[1}',
        b'{"a":NaN}',
        b'{"a":[Infinity]}',
        b"{1:2}",
        b'{"a":"\xff"}',
        b'{"a":[' + b"[" * 100_000,
        b"[" * 100_000,
        b'{"a":1}{"b":2}',
    ],
)
def test_what_is_not_json(body: bytes) -> None:
    for parse in (parse_json, lambda text: asyncio.run(parse_large_json(text))):
        with pytest.raises(ValueError):  # noqa: PT011 - whatever the text of it
            parse(body)


def test_others_get_their_turn() -> None:
    async def story() -> None:
        turns = 0
        is_over = False

        async def other() -> None:
            nonlocal turns
            while not is_over:
                turns += 1
                await asyncio.sleep(0)

        task = asyncio.create_task(other())
        count = 10 * ELEMENTS_AT_A_STRETCH
        body = json.dumps({"state": [{"n": n} for n in range(count)], "event": {"lone": "\ud800"}}).encode()
        parsed = await parse_large_json(body)
        is_over = True
        await task
        assert [element["n"] for element in parsed["state"]] == list(range(count))
        assert parsed["event"] == {"lone": "\ud800"}
        assert turns >= 10

    asyncio.run(story())
