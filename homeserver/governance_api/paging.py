"""Paging through a list: ``limit``, and ``from``, which takes the ``next`` of the page before."""

from __future__ import annotations

from starlette.requests import Request

from homeserver.reading.listings import PageRequest
from homeserver.web import query_int, query_str

LIMIT_MAX = 10_000


def page_request(request: Request) -> PageRequest:
    """The page of a list that a request asks for; without ``limit`` and ``from`` the whole list. Raises
    ``InvalidParam``.
    """
    after = query_str(request, "from")
    limit = query_int(request, "limit", 0 if after is None else LIMIT_MAX, minimum=1, maximum=LIMIT_MAX)
    return PageRequest(limit or None, after)
