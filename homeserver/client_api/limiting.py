"""Applies rate limits to requests of clients: by account, by device, or by address.

https://spec.matrix.org/v1.19/client-server-api/#rate-limiting
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from fastapi import Depends
from starlette.requests import Request

from homeserver.accounts.access_tokens import Requester
from homeserver.client_api.authentication import Authenticated, authenticate
from homeserver.errors import Forbidden, MissingToken
from homeserver.limits.fair_budget import FairBudget
from homeserver.limits.rate_limits import Limit, RateLimits
from homeserver.web import ClientAddresses, get_service

LOOK_UPS_AT_ONCE_MAX = 100
"""How many requests of clients wait for look-ups at other servers at the same time."""
LOOK_UPS_PER_USER_MAX = 8
"""How many of them may be of one user; the others of that user wait."""
LOOK_UPS_WAITING_PER_USER_MAX = 50
LOOK_UP_WAIT_SECONDS_MAX = 20.0


class LookUps(FairBudget):
    """Look-ups at other servers, in turn by user: servers that hang make only the one wait who asks them."""

    def __init__(self) -> None:
        super().__init__(
            LOOK_UPS_AT_ONCE_MAX,
            per_subject=LOOK_UPS_PER_USER_MAX,
            waiting_per_subject_max=LOOK_UPS_WAITING_PER_USER_MAX,
            text="You look up too much at other servers",
        )


@contextlib.asynccontextmanager
async def turn_to_ask_others(request: Request) -> AsyncIterator[None]:
    """For requests that need no access token for what this server knows, but do to ask another server.

    Otherwise strangers could make this server ask any host they like. Raises ``Forbidden``, ``UnknownToken``, and
    ``LimitExceeded`` when too many requests of that user wait.
    """
    try:
        requester = await authenticate(request)
    except MissingToken:
        # "In all other cases, homeservers MAY deny profile look-up by responding with 403 and an error code of
        # M_FORBIDDEN."
        raise Forbidden("Only users of this server may look up what is on other servers") from None
    async with get_service(request, LookUps).share(requester.user_id, seconds=LOOK_UP_WAIT_SECONDS_MAX):
        yield


def address_of(request: Request) -> str:
    """The address that the request counts for."""
    return get_service(request, ClientAddresses).of(request.scope)


def limit_account(request: Request, requester: Requester, limit: Limit, cost: float = 1) -> None:
    """Count a request for its user. Raises ``LimitExceeded``."""
    get_service(request, RateLimits).require(limit, requester.user_id, cost)


def limit_device(request: Request, requester: Requester, limit: Limit) -> None:
    """Count a request for its device: one of a user's clients must not use up what the others need.

    Raises ``LimitExceeded``.
    """
    limits = get_service(request, RateLimits)
    if not limits.is_exempt(requester.user_id):
        limits.require(limit, f"{requester.user_id} {requester.device_id}")


def limit_address(request: Request, limit: Limit) -> None:
    """Count a request that needs no access token for its address. Raises ``LimitExceeded``."""
    get_service(request, RateLimits).require(limit, address_of(request))


def per_account(limit: Limit) -> Any:
    """The same for FastAPI endpoints: ``@router.post(..., dependencies=[per_account(Limit.JOINS)])``."""

    async def dependency(request: Request, requester: Authenticated) -> None:
        limit_account(request, requester, limit)

    return Depends(dependency)


def per_device(limit: Limit) -> Any:
    """The same by device."""

    async def dependency(request: Request, requester: Authenticated) -> None:
        limit_device(request, requester, limit)

    return Depends(dependency)


def per_address(limit: Limit) -> Any:
    """The same by address."""

    async def dependency(request: Request) -> None:
        limit_address(request, limit)

    return Depends(dependency)
