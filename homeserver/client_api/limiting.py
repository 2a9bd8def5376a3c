"""Applies rate limits to requests of clients: by account, by device, or by address.

https://spec.matrix.org/v1.19/client-server-api/#rate-limiting
"""

from __future__ import annotations

from typing import Any

from fastapi import Depends
from starlette.requests import Request

from homeserver.accounts.access_tokens import Requester
from homeserver.client_api.authentication import Authenticated
from homeserver.limits.rate_limits import Limit, RateLimits
from homeserver.web import ClientAddresses, get_service


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
