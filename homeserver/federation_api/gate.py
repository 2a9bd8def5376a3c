"""Authenticates federation requests: which server sends one, and the body that it has signed.

An endpoint without a body declares ``origin: Origin``, one with a body ``signed: Signed``.

https://spec.matrix.org/v1.19/server-server-api/#request-authentication
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

from fastapi import Depends
from starlette.requests import Request

from homeserver.errors import Unauthorized
from homeserver.federation.request_authentication import Claimant, RequestAuthenticator, canonical_content
from homeserver.limits.rate_limits import Limit, RateLimits
from homeserver.protocol.json_types import JsonObject
from homeserver.storage.database import reads_for_other_servers
from homeserver.web import BODY_BYTES_MAX, ClientAddresses, get_service, read_body
from homeserver.web.bodies import LARGE_BODY_BYTES_MIN, parse_body


class SignsOfLife(Protocol):
    """Is notified when another server is known to be running, so that it can be asked again."""

    def sign_of_life(self, server_name: str) -> None:
        """A server has made an authenticated request."""


class Gate:
    """Lets in the requests that are signed by the server that they claim to come from.

    Database queries for such a request run on the threads reserved for other servers.
    """

    def __init__(
        self, authenticator: RequestAuthenticator, watchers: Sequence[SignsOfLife], limits: RateLimits
    ) -> None:
        self._authenticator = authenticator
        self._watchers = watchers
        self._limits = limits

    async def origin(self, request: Request) -> str:
        """The server that sends a request without a body. Raises ``Unauthorized``, ``Forbidden``, ``LimitExceeded``."""
        claimant = await self._identify(request)
        if not claimant.has_signed(request.method, _uri(request), None):
            raise Unauthorized("The signature of the request is wrong")
        return self._let_in(claimant.origin, Limit.FEDERATION_REQUESTS)

    async def origin_and_body(
        self, request: Request, limit: int = BODY_BYTES_MAX, rate: Limit = Limit.FEDERATION_REQUESTS
    ) -> tuple[str, JsonObject]:
        """The server that sends a request, and the JSON object that it has signed with it.

        Raises ``Unauthorized``, ``Forbidden``, ``NotJson``, ``BadJson``, ``TooLarge``, ``LimitExceeded``.
        """
        # What the header says is checked before the body is read, and the signature, if it can be, before it is parsed:
        # a stranger must not make this server hold and parse megabytes.
        claimant = await self._identify(request)
        body = await read_body(request, limit)
        method, uri = request.method, _uri(request)
        # Most servers send the canonical JSON that they have signed.
        is_signed = claimant.has_signed(method, uri, body)
        content = await parse_body(body)
        if not is_signed and not claimant.has_signed(method, uri, await _canonical(content, len(body))):
            raise Unauthorized("The signature of the request is wrong")
        return self._let_in(claimant.origin, rate), content

    async def _identify(self, request: Request) -> Claimant:
        def stranger() -> None:
            address = get_service(request, ClientAddresses).of(request.scope)
            self._limits.require(Limit.UNKNOWN_SERVERS, address)

        return await self._authenticator.identify(request.headers.getlist("authorization"), stranger)

    def _let_in(self, origin: str, rate: Limit) -> str:
        for watcher in self._watchers:
            watcher.sign_of_life(origin)
        self._limits.require(rate, origin)
        reads_for_other_servers()
        return origin


def _uri(request: Request) -> str:
    """The target of a request as it was sent, undecoded: that is what the signature covers."""
    scope = request.scope
    uri: str = scope["raw_path"].decode("latin-1")
    if scope["query_string"]:
        uri += "?" + scope["query_string"].decode("latin-1")
    return uri


async def _canonical(content: JsonObject, size: int) -> bytes:
    if size < LARGE_BODY_BYTES_MIN:
        return canonical_content(content)
    return await asyncio.to_thread(canonical_content, content)


async def _origin(request: Request) -> str:
    return await get_service(request, Gate).origin(request)


Origin = Annotated[str, Depends(_origin)]
"""The server that sends a request without a body."""


@dataclass(frozen=True, slots=True)
class SignedRequest:
    """A request with a body."""

    origin: str
    """The server that sends it."""
    content: JsonObject
    """The body, which that server has signed."""


def signed_request(limit: int, rate: Limit = Limit.FEDERATION_REQUESTS) -> Any:
    """A dependency that gives a ``SignedRequest``, whose body has at most ``limit`` bytes."""

    async def dependency(request: Request) -> SignedRequest:
        return SignedRequest(*await get_service(request, Gate).origin_and_body(request, limit, rate))

    return Depends(dependency)


Signed = Annotated[SignedRequest, signed_request(BODY_BYTES_MAX)]
"""A request with a body of at most the usual size."""
