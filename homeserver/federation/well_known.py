"""The server that a host delegates its federation to: fetches and caches
``https://<hostname>/.well-known/matrix/server``.

https://spec.matrix.org/v1.19/server-server-api/#getwell-knownmatrixserver
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

import httpx
import orjson

from homeserver.clock import Clock
from homeserver.errors import RemoteUnreachable
from homeserver.federation.caching import LruDict
from homeserver.outbound.http import Answer, OutboundHttp, Timeouts
from homeserver.protocol.identifiers import is_valid_server_name

_MINUTE_MS = 60 * 1000
_HOUR_MS = 60 * _MINUTE_MS

LIFETIME_MS_DEFAULT = 24 * _HOUR_MS
LIFETIME_MS_MIN = 5 * _MINUTE_MS
"""Even an answer that forbids caching is used for this long, since every request needs it."""
LIFETIME_MS_MAX = 48 * _HOUR_MS
ERROR_LIFETIME_MS_MIN = _MINUTE_MS
"""Doubles with each error in a row."""
ERROR_LIFETIME_MS_MAX = _HOUR_MS
BYTES_MAX = 50 * 1024
REDIRECTS_MAX = 10
TIMEOUTS = Timeouts(connect=5.0, read=5.0, total=10.0)
HOSTS_MAX = 10_000
"""How many hosts are cached."""

_MAX_AGE = re.compile(r"max-age\s*=\s*\"?([0-9]{1,10})", re.IGNORECASE)
_NO_CACHE = re.compile(r"\bno-(?:store|cache)\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Delegation:
    """The delegation in the well-known document of a host, or that there is no valid one."""

    delegate: str | None
    """A server name; ``None`` without a valid document."""
    expires_ts: int
    errors_in_row: int = 0


class WellKnown:
    """Fetches and caches delegations."""

    def __init__(self, http: OutboundHttp, clock: Clock) -> None:
        self._http = http
        self._clock = clock
        self._remembered: LruDict[str, Delegation] = LruDict(HOSTS_MAX, "well-known files")

    async def delegation_of(self, host: str) -> Delegation:
        """The delegation of a host name. Every failure counts as no delegation."""
        remembered = self._remembered.get(host)
        if remembered is not None and remembered.expires_ts > self._clock.now_ms():
            return remembered
        delegation = await self._fetch(host, remembered.errors_in_row if remembered else 0)
        self._remembered.put(host, delegation)
        return delegation

    async def _fetch(self, host: str, errors_in_row: int) -> Delegation:
        url = f"https://{host}/.well-known/matrix/server"
        try:
            answer = await self._http.request(
                "GET", url, bytes_max=BYTES_MAX, timeouts=TIMEOUTS, redirects_max=REDIRECTS_MAX
            )
            delegate = _delegate_in(answer)
        except RemoteUnreachable:
            delegate = None
        now = self._clock.now_ms()
        if delegate is None:
            # "Errors are recommended to be cached for up to an hour, and servers are encouraged to exponentially back
            # off for repeated failures."
            lifetime_ms = min(ERROR_LIFETIME_MS_MIN << min(errors_in_row, 10), ERROR_LIFETIME_MS_MAX)
            return Delegation(None, now + lifetime_ms, errors_in_row + 1)
        return Delegation(delegate, now + _lifetime_ms(answer.headers, now))


def _delegate_in(answer: Answer) -> str | None:
    # "If the response is invalid (bad JSON, missing properties, non-200 response, etc), skip to step 4."
    if answer.status != 200:
        return None
    try:
        document = orjson.loads(answer.body)
    except orjson.JSONDecodeError:
        return None
    delegate = document.get("m.server") if isinstance(document, dict) else None
    return delegate if isinstance(delegate, str) and is_valid_server_name(delegate) else None


def _lifetime_ms(headers: httpx.Headers, now: int) -> int:
    """How long the answer may be used, by its headers and within our bounds."""
    # "Servers should respect the cache control headers present on the response, or use a sensible default when headers
    # are not present. The recommended sensible default is 24 hours. Servers should additionally impose a maximum cache
    # time for responses: 48 hours is recommended."
    lifetime_ms = LIFETIME_MS_DEFAULT
    cache_control = headers.get("cache-control", "")
    if _NO_CACHE.search(cache_control):
        lifetime_ms = 0
    elif (max_age := _MAX_AGE.search(cache_control)) is not None:
        lifetime_ms = int(max_age[1]) * 1000
    elif "expires" in headers:
        try:
            lifetime_ms = int(parsedate_to_datetime(headers["expires"]).timestamp() * 1000) - now
        except (ValueError, OverflowError):
            lifetime_ms = 0  # RFC 9111, section 5.3: an invalid date is in the past
    return max(LIFETIME_MS_MIN, min(lifetime_ms, LIFETIME_MS_MAX))
