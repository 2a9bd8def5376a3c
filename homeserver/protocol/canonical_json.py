"""Canonical JSON: the one encoding of JSON that is hashed, signed and stored.

https://spec.matrix.org/v1.19/appendices/#canonical-json
"""

from __future__ import annotations

import json
from typing import Any

import canonicaljson
import orjson

from homeserver.errors import NotCanonical

INTEGER_MAX = 2**53 - 1
INTEGER_MIN = -(2**53) + 1
NESTING_MAX = 200
"""Levels of nesting that an event may have. The specification has no limit; parsers do (orjson's is 254)."""
_EXPONENT_MAX = 400
"""Beyond the largest double: no server writes a number with a larger exponent."""

_PLAIN = orjson.OPT_SORT_KEYS | orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME
_STRICT = _PLAIN | orjson.OPT_STRICT_INTEGER


def encode_canonical_json(value: Any) -> bytes:
    """The canonical bytes of a JSON value: sorted keys, no white space, UTF-8.

    Room versions 1 to 5 allow floats and integers of any size, which only ``canonicaljson`` writes as other servers do;
    all other values are encoded by orjson, which is faster.

    Raises ``NotCanonical`` for values that cannot be encoded at all (lone surrogates, too much nesting, not JSON).
    """
    if not _has_floats(value):
        try:
            return orjson.dumps(value, option=_PLAIN)
        except orjson.JSONEncodeError:
            pass  # an integer beyond 64 bits, perhaps
    try:
        return canonicaljson.encode_canonical_json(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise NotCanonical(f"not representable as canonical JSON: {error}") from error


def encode_strict_json(value: Any) -> bytes:
    """The canonical bytes of a value that is strictly canonical: no floats, integers within ±(2^53 - 1).

    Room version 6 and later enforce this: https://spec.matrix.org/v1.19/rooms/v6/#canonical-json

    Raises ``NotCanonical`` if it is not.
    """
    if _has_floats(value):
        raise NotCanonical("floating point numbers are not allowed")
    return encode_checked_json(value)


def encode_checked_json(value: Any) -> bytes:
    """The same as ``encode_strict_json``, for parts of a value that it has checked already: skips the search for
    floats.
    """
    try:
        return orjson.dumps(value, option=_STRICT)
    except orjson.JSONEncodeError as error:
        raise NotCanonical(f"not canonical JSON: {error}") from error


def compact(encoded: bytes) -> bytes:
    """A copy of JSON that takes no more memory than it must, for JSON that is kept.

    orjson returns the buffer into which it has written. That has room for more, 4 KiB at least, as long as it lives.
    """
    return bytes(memoryview(encoded))


def check_strict(value: Any) -> None:
    """Raise ``NotCanonical`` unless the value is strictly canonical; see ``encode_strict_json``."""
    encode_strict_json(value)


def canonicalize(text: str | bytes) -> bytes:
    """The canonical form of JSON text. It sees how numbers are written, which parsed JSON no longer shows.

    Integers written with an exponent become plain ones, as the specification's examples have it.

    Raises ``ValueError`` for text that is not JSON, and ``NotCanonical`` for values without a canonical form.
    """
    try:
        value = json.loads(text, parse_float=_parse_non_integer, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise NotCanonical("nested too deeply") from error
    return encode_canonical_json(value)


def _parse_non_integer(literal: str) -> int | float:
    mantissa, _, exponent = literal.lower().partition("e")
    if "." not in mantissa and 0 <= int(exponent) <= _EXPONENT_MAX:
        return int(mantissa + "0" * int(exponent))
    return float(literal)


def _refuse_constant(literal: str) -> Any:
    raise ValueError(f"not JSON: {literal}")


def _has_floats(value: Any) -> bool:
    """Whether there is a float anywhere in the value. Raises ``NotCanonical`` if it is nested too deeply.

    Walks level by level, so that hostile nesting cannot exhaust the stack.
    """
    level = [value]
    for _ in range(NESTING_MAX + 1):
        deeper: list[Any] = []
        for item in level:
            kind = type(item)
            if kind is float:
                return True
            if kind is dict:
                children = item.values()
            elif kind is list or kind is tuple:
                children = item
            else:
                continue
            for child in children:
                inner = type(child)
                if inner is not str and inner is not int:
                    deeper.append(child)
        if not deeper:
            return False
        level = deeper
    raise NotCanonical("nested too deeply")
