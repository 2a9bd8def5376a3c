"""Query parameters, as typed values. (Path parameters reach the endpoint decoded, see ``routes``.)"""

from __future__ import annotations

import re
from collections.abc import Collection

from starlette.requests import Request

from homeserver.errors import InvalidParam, MissingParam
from homeserver.protocol.canonical_json import INTEGER_MAX

_INTEGER = re.compile(r"-?[0-9]{1,18}\Z")


def query_str(request: Request, name: str) -> str | None:
    """A parameter as text, or None."""
    return request.query_params.get(name)


def required_query_str(request: Request, name: str) -> str:
    """A required parameter. Raises ``MissingParam``."""
    value = request.query_params.get(name)
    if value is None:
        raise MissingParam(f"The query parameter '{name}' is missing")
    return value


def query_strs(request: Request, name: str, *, most: int = 50) -> list[str]:
    """All values of a parameter that may be repeated, such as ``via``. Raises ``InvalidParam`` beyond ``most``."""
    values = request.query_params.getlist(name)
    if len(values) > most:
        raise InvalidParam(f"The query parameter '{name}' may be given {most} times")
    return values


def query_int(request: Request, name: str, default: int, *, minimum: int = 0, maximum: int = INTEGER_MAX) -> int:
    """An integer. A value above ``maximum`` counts as ``maximum``: a server may return less than the client asks for.

    Raises ``InvalidParam`` if it is not an integer or below ``minimum``.
    """
    value = request.query_params.get(name)
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
    value = request.query_params.get(name)
    if value is None:
        return default
    if value not in ("true", "false"):
        raise InvalidParam(f"The query parameter '{name}' must be true or false")
    return value == "true"


def query_choice(request: Request, name: str, choices: Collection[str], default: str) -> str:
    """One of a few words. Raises ``InvalidParam`` for any other."""
    value = request.query_params.get(name)
    if value is None:
        return default
    if value not in choices:
        raise InvalidParam(f"The query parameter '{name}' must be one of {', '.join(choices)}")
    return value
