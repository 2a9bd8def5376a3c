"""The rate limits of the configuration, applied to subjects: addresses, accounts, devices, origin servers.

https://spec.matrix.org/v1.19/client-server-api/#rate-limiting
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from enum import StrEnum
from typing import Protocol

import orjson
import structlog

from homeserver.caches import register
from homeserver.clock import Clock
from homeserver.config import RateLimitsConfig
from homeserver.errors import LimitExceeded
from homeserver.limits.buckets import BUCKET_BYTES, Buckets

logger = structlog.get_logger(__name__)

SUBJECTS_MAX = 10_000
"""How many subjects each limit remembers."""
SUBJECT_CHARACTERS_MAX = 300
LOG_SECONDS = 60.0
"""Each limit that refuses requests has at most one line in the log in this time."""
RETRY_AFTER_MS_MAX = 3600 * 1000
_NOTICE = "rate_limit"


class Limit(StrEnum):
    """What is limited. The values are the keys of ``[rate_limits]``; docs/operations.md says what each counts."""

    LOGINS = "logins"
    LOGIN_FAILURES = "login_failures"
    ACCOUNT_LOGIN_FAILURES = "account_login_failures"
    REGISTRATIONS = "registrations"
    MESSAGES = "messages"
    ROOMS = "rooms"
    JOINS = "joins"
    INVITES = "invites"
    PROFILE_CHANGES = "profile_changes"
    RECEIPTS_AND_TYPING = "receipts_and_typing"
    SETTINGS = "settings"
    LOOKUPS = "lookups"
    FEDERATION_TRANSACTIONS = "federation_transactions"
    FEDERATION_REQUESTS = "federation_requests"
    FEDERATION_INVITES = "federation_invites"
    UNKNOWN_SERVERS = "unknown_servers"
    NOTARY_QUERIES = "notary_queries"


SHARED = frozenset({Limit.LOGIN_FAILURES, Limit.ACCOUNT_LOGIN_FAILURES, Limit.REGISTRATIONS})
"""Those that guard accounts: one more process must not mean as many guesses again."""


class NoticeSender(Protocol):
    """Sends notices to the other processes of this server."""

    def send(self, key: tuple[str, ...], body: str) -> None:
        """Send a notice soon; it replaces one that still waits under the same key. Best effort."""

    async def stop(self) -> None:
        """Stop the background work."""


class RateLimits:
    """Decides whether a subject may do something now."""

    name = "rate limits"

    def __init__(self, settings: RateLimitsConfig, clock: Clock, notices: NoticeSender | None = None) -> None:
        self._clock = clock
        self._notices = notices
        self._exempt = frozenset(settings.exempt_users)
        self._buckets: dict[Limit, Buckets] = {}
        if settings.enabled:
            rates = {limit: settings.rate_of(limit) for limit in Limit}
            self._buckets = {limit: Buckets(rate, SUBJECTS_MAX) for limit, rate in rates.items() if rate is not None}
        self.refusals: Counter[Limit] = Counter()
        """How many requests each limit has refused since the start."""
        self._logged: dict[Limit, tuple[float, int]] = {}
        """When each limit last had a line in the log, and how many refusals there were by then."""
        self._numbers = itertools.count()
        self.bytes_max = BUCKET_BYTES * SUBJECTS_MAX * len(self._buckets)
        register(self)

    def __len__(self) -> int:
        return sum(map(len, self._buckets.values()))

    @property
    def bytes(self) -> int:
        """About how much memory all buckets take."""
        return BUCKET_BYTES * len(self)

    def require(self, limit: Limit, subject: str, cost: float = 1) -> None:
        """Count something that a subject does. Raises ``LimitExceeded`` if it is too much, without counting it."""
        if (wait := self._take(limit, subject, cost)) > 0:
            raise self.refused(limit, subject, wait)

    def allows(self, limit: Limit, subject: str, cost: float = 1) -> bool:
        """Count something that a subject does, unless it is too much; returns whether it was counted."""
        return self._take(limit, subject, cost) <= 0

    def is_exempt(self, user_id: str) -> bool:
        """Whether the administrator has exempted a user."""
        return user_id in self._exempt

    def give_back(self, limit: Limit, subject: str, cost: float = 1) -> None:
        """Undo a count of this process."""
        buckets = self._buckets.get(limit)
        if buckets is not None and subject not in self._exempt:
            buckets.give_back(subject[:SUBJECT_CHARACTERS_MAX], cost)
            self._tell(limit, subject, -cost)

    def refused(self, limit: Limit, subject: str, wait: float) -> LimitExceeded:
        """The error for a request that has to wait so many seconds; notes it for the log."""
        self.refusals[limit] += 1
        self._log(limit, subject)
        retry_after_ms = max(1, min(math.ceil(wait * 1000), RETRY_AFTER_MS_MAX))
        return LimitExceeded("Too many requests", retry_after_ms=retry_after_ms)

    async def stop(self) -> None:
        """Stop the background work."""
        if self._notices is not None:
            await self._notices.stop()

    def _take(self, limit: Limit, subject: str, cost: float) -> float:
        buckets = self._buckets.get(limit)
        if buckets is None or subject in self._exempt:
            return 0.0
        wait = buckets.take(subject[:SUBJECT_CHARACTERS_MAX], self._clock.monotonic(), cost)
        if wait <= 0:
            self._tell(limit, subject, cost)
        return wait

    def _log(self, limit: Limit, subject: str) -> None:
        now, refusals = self._clock.monotonic(), self.refusals[limit]
        logged_at, before = self._logged.get(limit, (-math.inf, 0))
        if now - logged_at >= LOG_SECONDS:
            self._logged[limit] = (now, refusals)
            logger.warning("a rate limit refuses requests", limit=limit, subject=subject, refused=refusals - before)

    # -- other processes -----------------------------------------------------------------------------------------------

    def _tell(self, limit: Limit, subject: str, cost: float) -> None:
        if self._notices is not None and limit in SHARED:
            body = orjson.dumps([_NOTICE, limit, subject[:SUBJECT_CHARACTERS_MAX], cost]).decode()
            self._notices.send((_NOTICE, str(next(self._numbers))), body)

    def hear(self, body: str) -> None:
        """Count what a subject did at another process; other notices are left to others."""
        if not body.startswith(f'["{_NOTICE}"'):
            return
        _, limit, subject, cost = orjson.loads(body)
        buckets = self._buckets.get(limit)
        if buckets is None:
            return
        if cost < 0:
            buckets.give_back(subject, -cost)
        else:
            buckets.charge(subject, self._clock.monotonic(), cost)

    def begin_to_hear(self) -> None:
        """Nothing is asked for: the counts of the last minutes are soon worth nothing anyway."""
