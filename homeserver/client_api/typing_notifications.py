"""Typing notifications.

https://spec.matrix.org/v1.19/client-server-api/#typing-notifications
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Request
from starlette.responses import Response

from homeserver.client_api.authentication import Authenticated, require_self
from homeserver.client_api.limiting import per_device
from homeserver.ephemeral.typing import TIMEOUT_MS_DEFAULT, Typing
from homeserver.limits.rate_limits import Limit
from homeserver.web import json_response, optional_int, read_json_object, required_bool, service

router = APIRouter()


@router.put("/rooms/{room_id}/typing/{user_id}", dependencies=[per_device(Limit.RECEIPTS_AND_TYPING)])
async def set_typing(
    room_id: str,
    user_id: str,
    request: Request,
    requester: Authenticated,
    typing: Annotated[Typing, service(Typing)],
) -> Response:
    """https://spec.matrix.org/v1.19/client-server-api/#put_matrixclientv3roomsroomidtypinguserid"""
    require_self(requester, user_id)
    body = await read_json_object(request)
    timeout_ms = optional_int(body, "timeout", minimum=0)
    is_typing = required_bool(body, "typing")
    await typing.set_typing(user_id, room_id, is_typing, TIMEOUT_MS_DEFAULT if timeout_ms is None else timeout_ms)
    return json_response({})
