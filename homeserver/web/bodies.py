"""Request bodies: JSON objects of a bounded size, and the fields in them.

The functions for fields accept exactly the type in their name: ``required_str(body, "password")``. An optional field
that is null counts as missing, because many clients send it so.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any, TypeVar

import orjson
from starlette.requests import ClientDisconnect, Request

from homeserver.errors import BadJson, MissingParam, NotJson, TooLarge, TooSlow
from homeserver.limits.fair_budget import FairBudget
from homeserver.protocol.canonical_json import INTEGER_MAX, INTEGER_MIN
from homeserver.protocol.json_types import JsonObject
from homeserver.web.client_addresses import ClientAddresses
from homeserver.web.services import find_service, get_service
from homeserver.web.shares import hold

T = TypeVar("T")

BODIES_BYTES_MAX = 24 * 2**20
"""How much memory all bodies together may take that arrive in more than one piece."""
BODIES_PER_ADDRESS_BYTES_MAX = 12 * 2**20
"""And those of one address."""
BODIES_WAITING_MAX = 100
"""How many requests may wait for that memory."""
BODIES_WAITING_PER_ADDRESS_MAX = 10
BODY_WAIT_SECONDS = 15.0
"""How long a request waits for that memory before it gets M_LIMIT_EXCEEDED."""
BODY_SECONDS = 20.0
BODY_BYTES_PER_SECOND_MIN = 128 * 1024
"""A body may take so many seconds, and one more for each of these many bytes."""
UNANNOUNCED_BYTES = 64 * 1024
"""How much memory a body without Content-Length gets until it turns out to be larger."""
LARGE_BODY_BYTES_MIN = 256 * 1024
"""Larger bodies are parsed on a thread."""
JSON_ELEMENTS_MAX = 400_000
"""How many values a body may hold: each takes 50 bytes or more in memory, however small it is in JSON."""

BODY_BYTES_MAX = 1024 * 1024
"""How large a JSON body may be unless the endpoint sets another limit. (Events have their own limit.)"""
NESTING_MAX = 200
"""Levels of nesting in a body. orjson writes at most 254 levels, and an answer may wrap what it repeats."""
_WRAPPING = 254 - NESTING_MAX

_ABSENT: Any = object()


class BodyBudget:
    """The memory for bodies that arrive in pieces: bounded for all together, and fair by address.

    A request whose body has arrived whole holds what one read of its connection gave, and is not counted.
    """

    def __init__(self) -> None:
        self._memory = FairBudget(
            BODIES_BYTES_MAX,
            per_subject=BODIES_PER_ADDRESS_BYTES_MAX,
            waiting_max=BODIES_WAITING_MAX,
            waiting_per_subject_max=BODIES_WAITING_PER_ADDRESS_MAX,
            text="Too many large requests at once",
        )

    @property
    def used(self) -> int:
        """How many bytes are in use or reserved."""
        return self._memory.used

    async def take(self, request: Request, amount: int) -> None:
        """Take memory that is given back when the request ends. Raises ``LimitExceeded``."""
        address = get_service(request, ClientAddresses).of(request.scope)
        await self._memory.take(address, amount, seconds=BODY_WAIT_SECONDS)
        hold(request.scope, partial(self._memory.release, address, amount))


async def read_body(request: Request, limit: int = BODY_BYTES_MAX) -> bytes:
    """The whole body, at most ``limit`` bytes; reading stops as soon as it turns out to be longer.

    Raises ``TooLarge``; ``LimitExceeded`` when there is no memory for a body that arrives in pieces, and ``TooSlow``
    when it does not arrive in time; ``ClientDisconnect`` when the client disconnects before the end.
    """
    text = request.headers.get("content-length")
    announced = int(text[:20]) if text is not None and text.isdecimal() else None
    if announced is not None and announced > limit:
        raise TooLarge(f"The request body may have {limit} bytes")
    first, is_whole = await _piece(request, limit)
    if is_whole:
        return first
    budget = find_service(request, BodyBudget)
    reserved = min(limit, UNANNOUNCED_BYTES) if announced is None else announced
    if budget is not None:
        await budget.take(request, reserved)
    try:
        async with asyncio.timeout(BODY_SECONDS + (announced or limit) / BODY_BYTES_PER_SECOND_MIN):
            pieces = [first]
            size = len(first)
            while not is_whole:
                if size > reserved and budget is not None:
                    await budget.take(request, limit - reserved)
                    reserved = limit
                piece, is_whole = await _piece(request, limit - size)
                size += len(piece)
                pieces.append(piece)
    except TimeoutError:
        raise TooSlow() from None
    return b"".join(pieces)


async def _piece(request: Request, room: int) -> tuple[bytes, bool]:
    """The next piece of a body, for which there is so much room, and whether it is the last one."""
    message = await request.receive()
    if message["type"] == "http.disconnect":
        raise ClientDisconnect()
    piece: bytes = message.get("body", b"")
    if len(piece) > room:
        raise TooLarge("The request body is too long")
    return piece, not message.get("more_body", False)


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
    return await parse_body(body)


async def parse_body(body: bytes) -> JsonObject:
    """Parse a body as a JSON object, a large one on a thread. Raises ``NotJson``, ``BadJson``, ``TooLarge``."""
    if len(body) < LARGE_BODY_BYTES_MIN:
        return parse_json_object(body)
    return await asyncio.to_thread(parse_json_object, body)


def parse_json_object(text: bytes) -> JsonObject:
    """Parse a JSON object in UTF-8 that is not nested too deeply to be encoded again, and holds not too many values.

    Raises ``NotJson``, ``BadJson``, ``TooLarge``.
    """
    if len(text) > JSON_ELEMENTS_MAX and text.count(b",") + text.count(b"{") + text.count(b"[") > JSON_ELEMENTS_MAX:
        raise TooLarge(f"The request body may hold {JSON_ELEMENTS_MAX} values")
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
