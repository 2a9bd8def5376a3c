"""Access tokens: which user and device a request acts for.

https://spec.matrix.org/v1.19/client-server-api/#using-access-tokens
"""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends
from starlette.requests import Request

from homeserver.accounts.access_tokens import AccessTokens, Requester
from homeserver.errors import Forbidden, MissingToken
from homeserver.web import get_service, query_str

_BEARER = b"bearer "


def access_token_of(request: Request) -> str:
    """The access token that a request carries. Raises ``MissingToken``."""
    authorization: bytes | None = None
    for name, value in request.scope["headers"]:
        if name == b"authorization":
            if authorization is not None:
                # A proxy in front of this server may read one of the headers, and this server another one.
                raise MissingToken("There is more than one Authorization header")
            authorization = value
    if authorization is not None:
        if authorization[:7].lower() == _BEARER and (token := authorization[7:].strip()):
            return str(token, "latin-1")
        raise MissingToken("The Authorization header has no bearer token")
    # NOTSPEC: v1.20 removed this, but all the other versions that this server offers have it.
    if b"access_token=" in request.scope["query_string"] and (query := query_str(request, "access_token")):
        return query
    raise MissingToken()


async def authenticate(request: Request) -> Requester:
    """Authenticate a request, for plain Starlette endpoints. Raises ``MissingToken``, ``UnknownToken``."""
    return await get_service(request, AccessTokens).requester(access_token_of(request))


Authenticated = Annotated[Requester, Depends(authenticate)]
"""The authenticated user and device, for FastAPI endpoints: ``requester: Authenticated``."""


def require_self(requester: Requester, user_id: str) -> None:
    """Raise ``Forbidden`` unless ``user_id``, from the path, is the user who makes the request."""
    if requester.user_id != user_id:
        raise Forbidden("You can only do this for yourself")
