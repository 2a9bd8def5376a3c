"""Account registration.

https://spec.matrix.org/v1.19/client-server-api/#legacy-account-registration
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Request
from starlette.responses import Response

from homeserver.accounts.registration import Registration
from homeserver.accounts.sessions import SessionRequest
from homeserver.client_api.limiting import address_of, per_address
from homeserver.errors import Forbidden
from homeserver.limits.rate_limits import Limit
from homeserver.web import (
    json_response,
    optional_bool,
    optional_str,
    query_choice,
    read_json_object,
    required_query_str,
    service,
)

router = APIRouter()

CREDENTIALS_BYTES_MAX = 64 * 1024
"""The largest body that a request without an access token may have."""


@router.post("/register", dependencies=[per_address(Limit.REGISTRATIONS)])
async def register(request: Request, registration: Annotated[Registration, service(Registration)]) -> Response:
    """https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3register"""
    if query_choice(request, "kind", ("user", "guest"), "user") == "guest":
        raise Forbidden("Guest accounts are not available here")
    body = await registration.recalled(await read_json_object(request, CREDENTIALS_BYTES_MAX))
    session_request = None
    if not optional_bool(body, "inhibit_login"):
        session_request = SessionRequest.checked(
            optional_str(body, "device_id"),
            optional_str(body, "initial_device_display_name"),
            optional_bool(body, "refresh_token"),
        )
    answer = await registration.register(
        body, optional_str(body, "username"), optional_str(body, "password"), session_request, address_of(request)
    )
    return json_response(answer)


@router.get("/register/available", dependencies=[per_address(Limit.LOOKUPS)])
async def check_username_availability(
    request: Request, registration: Annotated[Registration, service(Registration)]
) -> Response:
    """https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3registeravailable"""
    await registration.require_available(required_query_str(request, "username"))
    return json_response({"available": True})
