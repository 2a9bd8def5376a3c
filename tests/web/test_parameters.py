from __future__ import annotations

import pytest
from starlette.requests import Request

from homeserver.errors import InvalidParam, MissingParam
from homeserver.web import query_bool, query_choice, query_int, query_str, query_strs, required_query_str


def asked(query: str) -> Request:
    return Request({"type": "http", "query_string": query.encode(), "headers": []})


def test_strings() -> None:
    assert query_str(asked("a=x%20y+z&b"), "a") == "x y z"
    assert query_str(asked("b="), "b") == ""
    assert query_str(asked(""), "a") is None
    assert required_query_str(asked("a=1"), "a") == "1"
    with pytest.raises(MissingParam):
        required_query_str(asked("b=1"), "a")


def test_repeated_strings() -> None:
    assert query_strs(asked("via=a&via=b"), "via") == ["a", "b"]
    assert query_strs(asked(""), "via") == []
    with pytest.raises(InvalidParam):
        query_strs(asked("via=a&" * 51), "via")


def test_integers() -> None:
    assert query_int(asked("limit=5"), "limit", 10, maximum=100) == 5
    assert query_int(asked("limit=500"), "limit", 10, maximum=100) == 100
    assert query_int(asked(""), "limit", 10, maximum=100) == 10
    assert query_int(asked("ts=-5"), "ts", 0, minimum=-10) == -5
    for text in ("", "x", "1.5", "1e3", "0x1", "-1", "9" * 5000, "٣", "1_000", " 1", "+1"):
        with pytest.raises(InvalidParam):
            query_int(asked(f"limit={text}"), "limit", 10)


def test_words() -> None:
    assert query_bool(asked("full_state=true"), "full_state")
    assert not query_bool(asked("full_state=false"), "full_state", default=True)
    assert query_bool(asked(""), "full_state", default=True)
    with pytest.raises(InvalidParam):
        query_bool(asked("full_state=1"), "full_state")
    assert query_choice(asked("dir=b"), "dir", ("b", "f"), "f") == "b"
    assert query_choice(asked(""), "dir", ("b", "f"), "f") == "f"
    with pytest.raises(InvalidParam):
        query_choice(asked("dir=x"), "dir", ("b", "f"), "f")
