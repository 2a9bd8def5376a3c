"""Request bodies: JSON objects of a bounded size, and the fields in them.

The functions for fields accept exactly the type in their name: ``required_str(body, "password")``. An optional field
that is null counts as missing, because many clients send it so.
"""

from __future__ import annotations

from typing import Any, TypeVar

import orjson
from starlette.requests import ClientDisconnect, Request

from homeserver.errors import BadJson, MissingParam, NotJson, TooLarge
from homeserver.protocol.canonical_json import INTEGER_MAX, INTEGER_MIN
from homeserver.protocol.json_types import JsonObject

T = TypeVar("T")

BODY_BYTES_MAX = 1024 * 1024
"""How large a JSON body may be unless the endpoint sets another limit. (Events have their own limit.)"""
NESTING_MAX = 200
"""Levels of nesting in a body. orjson writes at most 254 levels, and an answer may wrap what it repeats."""
_WRAPPING = 254 - NESTING_MAX

_ABSENT: Any = object()


async def read_body(request: Request, limit: int = BODY_BYTES_MAX) -> bytes:
    """The whole body, at most ``limit`` bytes; reading stops as soon as it turns out to be longer.

    Raises ``TooLarge``; ``ClientDisconnect`` when the client disconnects before the end.
    """
    announced = request.headers.get("content-length")
    if announced is not None and announced.isdecimal() and int(announced[:20]) > limit:
        raise TooLarge(f"The request body may have {limit} bytes")
    chunks: list[bytes] = []
    size = 0
    receive = request.receive
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect()
        chunk: bytes = message.get("body", b"")
        if chunk:
            size += len(chunk)
            if size > limit:
                raise TooLarge(f"The request body may have {limit} bytes")
            chunks.append(chunk)
        if not message.get("more_body", False):
            return chunks[0] if len(chunks) == 1 else b"".join(chunks)


async def read_json_object(
    request: Request, limit: int = BODY_BYTES_MAX, *, empty_is_object: bool = False
) -> JsonObject:
    """The body as a JSON object, whatever the Content-Type header says.

    ``empty_is_object`` treats an empty body as ``{}``, for endpoints that clients call without one.

    Raises ``TooLarge``, ``NotJson``, ``BadJson``.
    """
    body = await read_body(request, limit)
    if empty_is_object and not body:
        return {}
    return parse_json_object(body)


def parse_json_object(text: bytes) -> JsonObject:
    """Parse a JSON object in UTF-8 that is not nested too deeply to be encoded again.

    Raises ``NotJson``, ``BadJson``.
    """
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        raise NotJson() from None
    if not isinstance(value, dict):
        raise BadJson("The request body must be a JSON object")
    if text.count(b"{") + text.count(b"[") > NESTING_MAX:  # with fewer brackets it cannot be that deep
        _check_nesting(value)
    return value


def _check_nesting(value: JsonObject) -> None:
    wrapped: Any = value
    for _ in range(_WRAPPING):
        wrapped = [wrapped]
    try:
        orjson.dumps(wrapped)
    except orjson.JSONEncodeError:
        raise BadJson(f"The request body may be nested {NESTING_MAX} levels deep") from None


# -- fields ------------------------------------------------------------------------------------------------------------


def required_str(body: JsonObject, name: str) -> str:
    """A required string. Raises ``MissingParam``, ``BadJson``."""
    return _str(name, _required(body, name))


def optional_str(body: JsonObject, name: str) -> str | None:
    """A string, or None when the field is missing. Raises ``BadJson``."""
    value = body.get(name)
    return None if value is None else _str(name, value)


def required_bool(body: JsonObject, name: str) -> bool:
    """A required boolean. Raises ``MissingParam``, ``BadJson``."""
    return _bool(name, _required(body, name))


def optional_bool(body: JsonObject, name: str, default: bool = False) -> bool:
    """A boolean, or ``default`` when the field is missing. Raises ``BadJson``."""
    value = body.get(name)
    return default if value is None else _bool(name, value)


def required_int(body: JsonObject, name: str, *, minimum: int = INTEGER_MIN, maximum: int = INTEGER_MAX) -> int:
    """A required integer within a range. Raises ``MissingParam``, ``BadJson``."""
    return _int(name, _required(body, name), minimum, maximum)


def optional_int(body: JsonObject, name: str, *, minimum: int = INTEGER_MIN, maximum: int = INTEGER_MAX) -> int | None:
    """An integer within a range, or None when the field is missing. Raises ``BadJson``."""
    value = body.get(name)
    return None if value is None else _int(name, value, minimum, maximum)


def required_object(body: JsonObject, name: str) -> JsonObject:
    """A required object. Raises ``MissingParam``, ``BadJson``."""
    return _object(name, _required(body, name))


def optional_object(body: JsonObject, name: str) -> JsonObject | None:
    """An object, or None when the field is missing. Raises ``BadJson``."""
    value = body.get(name)
    return None if value is None else _object(name, value)


def required_list_of_str(body: JsonObject, name: str) -> list[str]:
    """A required list of strings. Raises ``MissingParam``, ``BadJson``."""
    return _list_of(name, _required(body, name), str, "strings")


def optional_list_of_str(body: JsonObject, name: str) -> list[str]:
    """A list of strings, empty when the field is missing. Raises ``BadJson``."""
    value = body.get(name)
    return [] if value is None else _list_of(name, value, str, "strings")


def required_list_of_objects(body: JsonObject, name: str) -> list[JsonObject]:
    """A required list of objects. Raises ``MissingParam``, ``BadJson``."""
    return _list_of(name, _required(body, name), dict, "objects")


def optional_list_of_objects(body: JsonObject, name: str) -> list[JsonObject]:
    """A list of objects, empty when the field is missing. Raises ``BadJson``."""
    value = body.get(name)
    return [] if value is None else _list_of(name, value, dict, "objects")


def _required(body: JsonObject, name: str) -> Any:
    value = body.get(name, _ABSENT)
    if value is _ABSENT:
        raise MissingParam(f"'{name}' is missing")
    return value


def _str(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise BadJson(f"'{name}' must be a string")
    return value


def _bool(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise BadJson(f"'{name}' must be true or false")
    return value


def _int(name: str, value: Any, minimum: int, maximum: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise BadJson(f"'{name}' must be an integer")
    if not minimum <= value <= maximum:
        raise BadJson(f"'{name}' must be between {minimum} and {maximum}")
    return value


def _object(name: str, value: Any) -> JsonObject:
    if not isinstance(value, dict):
        raise BadJson(f"'{name}' must be an object")
    return value


def _list_of(name: str, value: Any, kind: type[T], plural: str) -> list[T]:
    if not isinstance(value, list) or not all(isinstance(item, kind) for item in value):
        raise BadJson(f"'{name}' must be a list of {plural}")
    return value
