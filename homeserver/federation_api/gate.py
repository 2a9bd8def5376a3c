"""Authenticates federation requests: which server sends one, and the body that it has signed.

An endpoint without a body declares ``origin: Origin``, one with a body ``signed: Signed``.

https://spec.matrix.org/v1.19/server-server-api/#request-authentication
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

from fastapi import Depends
from starlette.requests import Request

from homeserver.federation.request_authentication import RequestAuthenticator
from homeserver.limits.rate_limits import Limit, RateLimits
from homeserver.protocol.json_types import JsonObject
from homeserver.storage.database import reads_for_other_servers
from homeserver.web import BODY_BYTES_MAX, get_service, read_json_object


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
        origin = await self._authenticate(request, None)
        self._limits.require(Limit.FEDERATION_REQUESTS, origin)
        return origin

    async def origin_and_body(
        self, request: Request, limit: int = BODY_BYTES_MAX, rate: Limit = Limit.FEDERATION_REQUESTS
    ) -> tuple[str, JsonObject]:
        """The server that sends a request, and the JSON object that it has signed with it.

        Raises ``Unauthorized``, ``Forbidden``, ``NotJson``, ``BadJson``, ``TooLarge``, ``LimitExceeded``.
        """
        content = await read_json_object(request, limit)
        origin = await self._authenticate(request, content)
        self._limits.require(rate, origin)
        return origin, content

    async def _authenticate(self, request: Request, content: Any) -> str:
        scope = request.scope
        # The signature covers the target exactly as it was sent, so take it undecoded.
        uri: str = scope["raw_path"].decode("latin-1")
        if scope["query_string"]:
            uri += "?" + scope["query_string"].decode("latin-1")
        origin = await self._authenticator.authenticate(
            request.method, uri, request.headers.getlist("authorization"), content
        )
        for watcher in self._watchers:
            watcher.sign_of_life(origin)
        reads_for_other_servers()
        return origin


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
