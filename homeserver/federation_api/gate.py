"""Who makes a federation request.

https://spec.matrix.org/v1.19/server-server-api/#request-authentication
"""

from __future__ import annotations

from typing import Any, Protocol

from starlette.requests import Request

from homeserver.federation.request_authentication import RequestAuthenticator
from homeserver.protocol.json_types import JsonObject
from homeserver.web import BODY_BYTES_MAX, read_json_object


class SignsOfLife(Protocol):
    """Wants to know when another server can be reached: the delivery."""

    def sign_of_life(self, server_name: str) -> None:
        """A server has made an authenticated request."""


class Gate:
    """Lets in the requests that are signed by the server that they claim to come from."""

    def __init__(self, authenticator: RequestAuthenticator, delivery: SignsOfLife) -> None:
        self._authenticator = authenticator
        self._delivery = delivery

    async def origin(self, request: Request) -> str:
        """The server that makes a request without a body. Raises ``Unauthorized``, ``Forbidden``."""
        return await self._authenticate(request, None)

    async def origin_and_body(self, request: Request, limit: int = BODY_BYTES_MAX) -> tuple[str, JsonObject]:
        """The server that makes a request, and the JSON object that it has signed with it.

        Raises ``Unauthorized``, ``Forbidden``, ``NotJson``, ``BadJson``, ``TooLarge``.
        """
        content = await read_json_object(request, limit)
        return await self._authenticate(request, content), content

    async def _authenticate(self, request: Request, content: Any) -> str:
        scope = request.scope
        # The target as it came over the wire: that is what is signed.
        uri: str = scope["raw_path"].decode("latin-1")
        if scope["query_string"]:
            uri += "?" + scope["query_string"].decode("latin-1")
        origin = await self._authenticator.authenticate(
            request.method, uri, request.headers.getlist("authorization"), content
        )
        self._delivery.sign_of_life(origin)
        return origin
