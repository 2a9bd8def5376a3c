"""Login, refreshing access tokens, and logout.

https://spec.matrix.org/v1.19/client-server-api/#legacy-login
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Request
from starlette.responses import Response

from homeserver.accounts.login import Login
from homeserver.accounts.sessions import SessionRequest, Sessions
from homeserver.client_api.authentication import Authenticated
from homeserver.client_api.limiting import address_of, per_address
from homeserver.client_api.registration import CREDENTIALS_BYTES_MAX
from homeserver.client_api.well_known import ClientDiscovery
from homeserver.errors import Forbidden, MissingParam, UnknownError
from homeserver.limits.rate_limits import Limit
from homeserver.protocol.json_types import JsonObject
from homeserver.web import (
    json_response,
    optional_bool,
    optional_object,
    optional_str,
    read_json_object,
    required_str,
    service,
)

router = APIRouter()

LOGIN_TYPE = "m.login.password"


@router.get("/login")
async def get_login_flows() -> Response:
    """https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3login"""
    return json_response({"flows": [{"type": LOGIN_TYPE}]})


@router.post("/login")
async def login(
    request: Request,
    logins: Annotated[Login, service(Login)],
    discovery: Annotated[ClientDiscovery, service(ClientDiscovery)],
) -> Response:
    """https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3login"""
    body = await read_json_object(request, CREDENTIALS_BYTES_MAX)
    if required_str(body, "type") != LOGIN_TYPE:
        raise UnknownError("This login type is not offered")
    session_request = SessionRequest.checked(
        optional_str(body, "device_id"),
        optional_str(body, "initial_device_display_name"),
        optional_bool(body, "refresh_token"),
    )
    session = await logins.with_password(
        _user_of(body), required_str(body, "password"), session_request, address_of(request)
    )
    answer = session.body()
    if (information := discovery.information()) is not None:
        answer["well_known"] = information
    return json_response(answer)


@router.post("/refresh", dependencies=[per_address(Limit.SETTINGS)])
async def refresh(request: Request, sessions: Annotated[Sessions, service(Sessions)]) -> Response:
    """https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3refresh"""
    body = await read_json_object(request, CREDENTIALS_BYTES_MAX)
    tokens = await sessions.refresh(required_str(body, "refresh_token"))
    return json_response(tokens.body())


@router.post("/logout")
async def logout(requester: Authenticated, sessions: Annotated[Sessions, service(Sessions)]) -> Response:
    """https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3logout"""
    await sessions.end(requester.user_id, [requester.device_id])
    return json_response({})


@router.post("/logout/all")
async def logout_all(requester: Authenticated, sessions: Annotated[Sessions, service(Sessions)]) -> Response:
    """https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3logoutall"""
    await sessions.end(requester.user_id)
    return json_response({})


def _user_of(body: JsonObject) -> str:
    """The user that the client names: https://spec.matrix.org/v1.19/client-server-api/#identifier-types"""
    identifier = optional_object(body, "identifier")
    if identifier is None:
        if "medium" in body or "address" in body:
            raise _unknown_third_party_id()
        user = optional_str(body, "user")
        if user is None:
            raise MissingParam("'identifier' is missing")
        return user
    kind = optional_str(identifier, "type")
    if kind == "m.id.user":
        return required_str(identifier, "user")
    if kind in ("m.id.thirdparty", "m.id.phone") or (kind is None and "medium" in identifier):
        raise _unknown_third_party_id()
    raise UnknownError("This type of identifier is not known")


def _unknown_third_party_id() -> Forbidden:
    # "In the case that the homeserver does not know about the supplied 3PID, the homeserver must respond with
    # 403 Forbidden."
    return Forbidden("Invalid user name or password")
