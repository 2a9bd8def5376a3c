"""homeserver/federation/large_answers.py: the same result as by the parser that takes everything at once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from homeserver.federation.large_answers import (
    ELEMENT_BYTES_MAX,
    KEY_BYTES_MAX,
    REST_BYTES_MAX,
    Elements,
    ListBound,
    parse_element,
    parse_json,
    read_large_json,
)
from homeserver.outbound.spools import Spools

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
BOUNDS = {"list": ListBound(1_000_000)}


def read(body: bytes, bounds: Mapping[str, ListBound] = BOUNDS, *, is_pair: bool = False) -> Any:
    async def story() -> Any:
        spool = Spools().new(len(body))
        await spool.write(body)
        return await read_large_json(spool, bounds, is_pair=is_pair)

    return asyncio.run(story())


def plain(value: Any) -> Any:
    return {key: list(v) if isinstance(v, Elements) else v for key, v in value.items()}


@settings(deadline=None)
@given(st.dictionaries(st.text(), VALUES, max_size=3), VALUES, st.lists(VALUES), st.sampled_from([None, 1, "\t"]))
def test_the_same_as_at_once(before: Any, value: Any, elements: Any, indent: int | str | None) -> None:
    answer = {**before, "list": elements, "after": value}
    found = read(json.dumps(answer, indent=indent).encode())
    assert isinstance(found["list"], Elements)
    assert plain(found) == answer
    assert plain(read(json.dumps([200, answer], indent=indent).encode(), is_pair=True)) == answer
    assert plain(read(json.dumps(answer, indent=indent, ensure_ascii=False).encode(), is_pair=True)) == answer


@pytest.mark.parametrize("depth", [1, 3, 4, 5, 50, 400])
def test_nested_elements(depth: int) -> None:
    element = b'{"a]":[' * depth + b'"\\"]}"' + b"]}" * depth
    found = read(b'{"list":[' + b",".join([element] * 300) + b"]}")
    assert list(found["list"]) == [parse_element(element)] * 300


def test_elements_are_read_in_any_order_and_cut() -> None:
    elements = [{"number": number, "text": "é" * (number % 700)} for number in range(2_000)]
    found = read(json.dumps({"list": elements}).encode())["list"]
    assert found[1_234] == elements[1_234]
    assert found[:3] == elements[:3]
    assert list(found) == elements
    assert (len(found), found.first_bytes) == (2_000, {ord("{")})


@pytest.mark.parametrize("number", [0, -1, 2**53, 2**63, 2**64, -(2**64), 10**18, 10**40])
def test_integers_are_exact(number: int) -> None:
    assert list(read(b'{"list":[{"n":%d}]}' % number)["list"]) == [{"n": number}]


def test_half_a_surrogate_pair_is_kept_for_the_checks_of_its_event() -> None:
    assert list(read(b'{"list":[{"lone":"\\ud800"}],"event":{"lone":"\\ud800"}}')["list"]) == [{"lone": "\ud800"}]


@pytest.mark.parametrize(
    "element", [b"nul", b"NaN", b"[1,]", b'{"a" 1}', b"{]", b'"\xff"', b"[" * 5_000 + b"]" * 5_000]
)
def test_an_element_that_is_not_json_spoils_no_other(element: bytes) -> None:
    assert list(read(b'{"list":[1,' + element + b",2]}")["list"]) == [1, None, 2]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"{}x",
        b"[]",
        b'"a"',
        b'{"a":1,}',
        b'{"a" 1}',
        b'{"a":[1,]}',
        b'{"list":[1,]}',
        b'{"list":[1 2]}',
        b'{"list":[1}',
        b'{"list":[,1]}',
        b'{"list":["a',
        b'{"list":[{"a":1}',
        b'{"a":NaN}',
        b"{1:2}",
        b'{"a":"\xff"}',
        b'{"a":[' + b"[" * 100_000,
        b'{"list":[' + b"[" * 600_000,
        b"[" * 100_000,
        b'{"a":1}{"b":2}',
        b"[200,{}",
    ],
)
def test_what_is_not_json(body: bytes) -> None:
    for is_pair in (False, True):
        with pytest.raises(ValueError):  # noqa: PT011 - whatever the text of it
            read(body, is_pair=is_pair)


@pytest.mark.parametrize(
    "body",
    [
        b'{"list":[' + b"{}," * 1_000 + b"{}]}",
        b'{"list":["%b"]}' % (b"a" * ELEMENT_BYTES_MAX),
        b'{"list":[[%b]]}' % (b"1," * (ELEMENT_BYTES_MAX // 2) + b"1"),
        b'{"%b":1}' % (b"a" * KEY_BYTES_MAX),
        b'{"a":"%b","b":"%b"}' % (b"a" * (REST_BYTES_MAX // 2), b"b" * (REST_BYTES_MAX // 2)),
    ],
    ids=["too many", "a large string", "a large list", "a large key", "large values"],
)
def test_bounds(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"too large|more than 1000"):
        read(body, {"list": ListBound(1_000)})


def test_what_is_more_than_was_asked_for_is_not_read() -> None:
    body = b'{"list":[' + b"{}," * 1_000 + b"this is not JSON"
    assert list(read(body, {"list": ListBound(50, takes_first=True)})["list"]) == [{}] * 50
    assert list(read(b"[200," + body, {"list": ListBound(5, takes_first=True)}, is_pair=True)["list"]) == [{}] * 5


def test_python_parses_what_orjson_does_not() -> None:
    assert parse_json(b'{"a":"\\ud800"}') == {"a": "\ud800"}
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json(b"[" * 100_000)
