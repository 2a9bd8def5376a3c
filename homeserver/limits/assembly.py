"""Builds the rate limits."""

from __future__ import annotations

from homeserver.foundation import Foundation
from homeserver.limits.rate_limits import RateLimits
from homeserver.storage.notices import Notices


def build(base: Foundation) -> RateLimits:
    """The limits of the configuration, shared with the other processes on the database."""
    return RateLimits(base.config.rate_limits, base.clock, Notices(base.database))
