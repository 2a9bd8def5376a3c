from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import canonicaljson
import pytest
from hypothesis import given

from homeserver.errors import InvalidEvent
from homeserver.protocol.canonical_json import (
    NESTING_MAX,
    canonicalize,
    check_strict,
    encode_canonical_json,
    encode_strict_json,
)
from tests.protocol.strategies import any_json, strict_json

VECTORS = Path(__file__).parents[1] / "vectors" / "appendices"


def nested(levels: int) -> Any:
    value: Any = {}
    for _ in range(levels):
        value = {"a": value}
    return value


@pytest.mark.parametrize("vector", json.loads((VECTORS / "canonical_json.json").read_text()))
def test_examples_of_the_specification(vector: dict[str, str]) -> None:
    assert canonicalize(vector["input"]).decode() == vector["canonical"]


@given(strict_json)
def test_strict_bytes_are_those_of_the_reference_library(value: object) -> None:
    assert encode_strict_json(value) == canonicaljson.encode_canonical_json(value)


@given(any_json)
def test_lenient_bytes_are_those_of_the_reference_library(value: object) -> None:
    assert encode_canonical_json(value) == canonicaljson.encode_canonical_json(value)


@given(strict_json)
def test_canonical_json_parsed_and_written_again_is_the_same(value: object) -> None:
    encoded = encode_canonical_json(value)
    assert encode_canonical_json(json.loads(encoded)) == encoded
    assert canonicalize(encoded) == encoded


def test_keys_are_sorted_by_code_point() -> None:
    # UTF-16 order would put the emoji first.
    assert encode_canonical_json({"\U0001f600": 1, "\uff5e": 2, "a": 3, "B": 4}) == (
        '{"B":4,"a":3,"\uff5e":2,"\U0001f600":1}'.encode()
    )


def test_control_characters_are_escaped_in_the_shortest_way() -> None:
    assert encode_canonical_json('\b\t\n\f\r"\\\x00\x1f\x7f/') == b'"\\b\\t\\n\\f\\r\\"\\\\\\u0000\\u001f\x7f/"'


@pytest.mark.parametrize("value", [1.0, {"a": [1, {"b": 0.5}]}, 2**53, -(2**53), [2**70], {"a": (1.5,)}])
def test_strict_refuses_floats_and_large_integers(value: object) -> None:
    with pytest.raises(InvalidEvent):
        check_strict(value)
    encode_canonical_json(value)  # which room versions 1 to 5 must still hash


@pytest.mark.parametrize("value", [2**53 - 1, -(2**53) + 1, 0, True, None, "", [], {}, {"a": [[], {}]}])
def test_strict_lets_the_limits_through(value: object) -> None:
    check_strict(value)


@pytest.mark.parametrize("value", ["\ud800", {"\udfff": 1}, {1, 2}, b"bytes", float("nan"), {"a": float("inf")}])
def test_what_is_not_json_is_an_invalid_event(value: object) -> None:
    with pytest.raises(InvalidEvent):
        encode_canonical_json(value)


@pytest.mark.parametrize("value", ["\ud800", {1: 2}, {"a": object()}])
def test_strict_refuses_what_is_not_json(value: object) -> None:
    with pytest.raises(InvalidEvent):
        encode_strict_json(value)


def test_nesting_is_bounded() -> None:
    encode_canonical_json(nested(NESTING_MAX - 1))
    for levels in (NESTING_MAX + 1, 5_000):
        with pytest.raises(InvalidEvent, match="nested"):
            encode_canonical_json(nested(levels))
        with pytest.raises(InvalidEvent, match="nested"):
            encode_strict_json([nested(levels)])


@pytest.mark.parametrize("text", ["{", "NaN", '{"a": Infinity}', "", "[1,]", "1e"])
def test_canonicalize_refuses_what_is_not_json(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        canonicalize(text)


def test_canonicalize_keeps_true_fractions_as_the_reference_library_does() -> None:
    assert canonicalize('{"a": 50.0, "b": 1.5, "c": 25e-1, "d": -3E2}') == b'{"a":50.0,"b":1.5,"c":2.5,"d":-300}'


def test_canonicalize_bounds_exponents() -> None:
    with pytest.raises(InvalidEvent):
        canonicalize("1e1000000000")
    with pytest.raises(InvalidEvent, match="nested"):
        canonicalize("[" * 100_000)
