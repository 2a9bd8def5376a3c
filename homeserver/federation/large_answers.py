"""Parsing large answers in slices.

The state of a large room is tens of megabytes of JSON. Parsing it at once would block the event loop for as long.
"""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any, NoReturn

ELEMENTS_AT_A_STRETCH = 100
"""How many elements of a list are parsed before other tasks of the event loop may run."""
_SPACE = re.compile(r"[ \t\n\r]*")


def _refuse_constant(literal: str) -> NoReturn:
    raise ValueError(f"not JSON: {literal}")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


def parse_json(body: bytes) -> Any:
    """Parse JSON with Python's parser, which accepts more than orjson does. Raises ``ValueError``."""
    try:
        return json.loads(body, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


async def parse_large_json(body: bytes) -> Any:
    """The same, but parse the lists of a JSON object element by element. Raises ``ValueError``."""
    text = body.decode()
    try:
        position = _skip_space(text, 0)
        if not text.startswith("{", position):
            return parse_json(body)
        parsed: dict[str, Any] = {}
        position = _skip_space(text, position + 1)
        if text.startswith("}", position):
            return _ended(text, position + 1, parsed)
        while True:
            key, position = _DECODER.raw_decode(text, position)
            if not isinstance(key, str):
                raise ValueError("a key is not a string")
            position = _skip_space(text, _expect(text, position, ":"))
            if text.startswith("[", position):
                parsed[key], position = await _parse_list(text, position + 1)
            else:
                parsed[key], position = _DECODER.raw_decode(text, position)
            position = _skip_space(text, position)
            if text.startswith("}", position):
                return _ended(text, position + 1, parsed)
            position = _skip_space(text, _expect(text, position, ","))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


async def _parse_list(text: str, position: int) -> tuple[list[Any], int]:
    """Parse the elements of a list, starting after its bracket; also returns the position after the list."""
    elements: list[Any] = []
    position = _skip_space(text, position)
    if text.startswith("]", position):
        return elements, position + 1
    while True:
        element, position = _DECODER.raw_decode(text, position)
        elements.append(element)
        if len(elements) % ELEMENTS_AT_A_STRETCH == 0:
            await asyncio.sleep(0)
        position = _skip_space(text, position)
        if text.startswith("]", position):
            return elements, position + 1
        position = _skip_space(text, _expect(text, position, ","))


def _skip_space(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    assert match is not None  # the pattern also matches the empty string
    return match.end()


def _expect(text: str, position: int, character: str) -> int:
    position = _skip_space(text, position)
    if not text.startswith(character, position):
        raise ValueError(f"expected {character!r} at {position}")
    return position + 1


def _ended(text: str, position: int, parsed: dict[str, Any]) -> dict[str, Any]:
    if _skip_space(text, position) != len(text):
        raise ValueError("more follows after the end")
    return parsed
