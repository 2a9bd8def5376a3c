"""Query parameters, as typed values. (Path parameters reach the endpoint decoded, see ``routes``.)"""

from __future__ import annotations

import re
from collections.abc import Collection
from urllib.parse import unquote_to_bytes

from starlette.requests import Request

from homeserver.errors import InvalidParam, MissingParam
from homeserver.protocol.canonical_json import INTEGER_MAX

_INTEGER = re.compile(r"-?[0-9]{1,18}\Z")
_PARSED = "homeserver.query"


def query_str(request: Request, name: str) -> str | None:
    """A parameter as text, or None."""
    return _last_values(request).get(name)


def required_query_str(request: Request, name: str) -> str:
    """A required parameter. Raises ``MissingParam``."""
    value = _last_values(request).get(name)
    if value is None:
        raise MissingParam(f"The query parameter '{name}' is missing")
    return value


def query_strs(request: Request, name: str, *, most: int = 50) -> list[str]:
    """All values of a parameter that may be repeated, such as ``via``. Raises ``InvalidParam`` beyond ``most``."""
    values = [value for known, value in _pairs(request) if known == name]
    if len(values) > most:
        raise InvalidParam(f"The query parameter '{name}' may be given {most} times")
    return values


def query_int(request: Request, name: str, default: int, *, minimum: int = 0, maximum: int = INTEGER_MAX) -> int:
    """An integer. A value above ``maximum`` counts as ``maximum``: a server may return less than the client asks for.

    Raises ``InvalidParam`` if it is not an integer or below ``minimum``.
    """
    value = _last_values(request).get(name)
    if value is None:
        return default
    if not _INTEGER.match(value):
        raise InvalidParam(f"The query parameter '{name}' must be an integer")
    number = int(value)
    if number < minimum:
        raise InvalidParam(f"The query parameter '{name}' must be at least {minimum}")
    return min(number, maximum)


def query_bool(request: Request, name: str, default: bool = False) -> bool:
    """``true`` or ``false``. Raises ``InvalidParam`` for anything else."""
    value = _last_values(request).get(name)
    if value is None:
        return default
    if value not in ("true", "false"):
        raise InvalidParam(f"The query parameter '{name}' must be true or false")
    return value == "true"


def query_choice(request: Request, name: str, choices: Collection[str], default: str) -> str:
    """One of a few words. Raises ``InvalidParam`` for any other."""
    value = _last_values(request).get(name)
    if value is None:
        return default
    if value not in choices:
        raise InvalidParam(f"The query parameter '{name}' must be one of {', '.join(choices)}")
    return value


def _last_values(request: Request) -> dict[str, str]:
    """All parameters; the last value of one that is repeated. (Starlette's own way takes four times as long.)"""
    found: dict[str, str] | None = request.scope.get(_PARSED)
    if found is None:
        found = request.scope[_PARSED] = dict(_pairs(request))
    return found


def _pairs(request: Request) -> list[tuple[str, str]]:
    query: bytes = request.scope["query_string"]
    pairs = [pair.partition(b"=") for pair in query.split(b"&") if pair]
    return [(_decoded(name), _decoded(value)) for name, _, value in pairs]


def _decoded(text: bytes) -> str:
    if b"+" in text:
        text = text.replace(b"+", b" ")
    if b"%" in text:
        text = unquote_to_bytes(text)
    return text.decode("utf-8", "replace")
