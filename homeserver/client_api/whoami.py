"""Current account information.

https://spec.matrix.org/v1.19/client-server-api/#current-account-information
"""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from homeserver.client_api.authentication import Authenticated
from homeserver.web import json_response

router = APIRouter()


@router.get("/account/whoami")
async def get_token_owner(requester: Authenticated) -> Response:
    """https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3accountwhoami"""
    return json_response(
        {"user_id": requester.user_id, "device_id": requester.device_id, "is_guest": requester.is_guest}
    )
