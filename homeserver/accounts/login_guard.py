"""Bounds guessing of passwords, without letting anybody lock out somebody else.

Failures are counted for the address and for the account, apart:

- An address that fails too often may try nothing for a while. That is its own trouble.
- An account at which others fail, from many addresses, is not closed: its user may be one of those who come now. Then
  each address has only a few tries at it. A user who knows the password needs one; whoever guesses needs many addresses
  for few guesses.

A try counts from its beginning, so that many at once are no way around, and no longer when the password was right.
"""

from __future__ import annotations

from dataclasses import dataclass

from homeserver.clock import Clock
from homeserver.config import Rate
from homeserver.limits.buckets import Buckets
from homeserver.limits.rate_limits import SUBJECTS_MAX, Limit, RateLimits

FEW_TRIES = Rate(per_second=3 / 3600, burst=3)
"""How many failures one address may have at one account while others fail there too."""


@dataclass(frozen=True, slots=True)
class LoginAttempt:
    """One try, and for what it was counted besides its address."""

    user_id: str
    address: str
    counts_for_pair: bool
    counts_for_account: bool


class LoginGuard:
    """Decides who may try a password now."""

    def __init__(self, limits: RateLimits, clock: Clock) -> None:
        self._limits = limits
        self._clock = clock
        self._pairs = Buckets(FEW_TRIES, SUBJECTS_MAX)
        """The tries of each address at each account."""

    def begin(self, user_id: str, address: str) -> LoginAttempt:
        """Count a try at an account, which need not exist, as a failure for now. Raises ``LimitExceeded``."""
        self._limits.require(Limit.LOGINS, address)
        self._limits.require(Limit.LOGIN_FAILURES, address)
        wait = self._pairs.take(_pair(user_id, address), self._clock.monotonic())
        counts_for_account = self._limits.allows(Limit.ACCOUNT_LOGIN_FAILURES, user_id)
        if wait > 0 and not counts_for_account:
            self._limits.give_back(Limit.LOGIN_FAILURES, address)
            raise self._limits.refused(Limit.ACCOUNT_LOGIN_FAILURES, user_id, wait)
        return LoginAttempt(user_id, address, wait <= 0, counts_for_account)

    def withdraw(self, attempt: LoginAttempt) -> None:
        """Count a try no longer: the password was right, or it was not even checked."""
        self._limits.give_back(Limit.LOGIN_FAILURES, attempt.address)
        if attempt.counts_for_account:
            self._limits.give_back(Limit.ACCOUNT_LOGIN_FAILURES, attempt.user_id)
        if attempt.counts_for_pair:
            self._pairs.give_back(_pair(attempt.user_id, attempt.address))


def _pair(user_id: str, address: str) -> str:
    return f"{user_id[:300]} {address}"
