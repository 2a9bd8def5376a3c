"""Receipts: which users have read an event, and when."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Request
from starlette.responses import Response

from homeserver.client_api.authentication import Authenticated
from homeserver.ephemeral.who_has_read import WhoHasRead
from homeserver.governance_api.paging import page_request
from homeserver.web import json_response, service

router = APIRouter()


@router.get("/rooms/{room_id}/events/{event_id}/receipts")
async def get_receipts(
    room_id: str,
    event_id: str,
    request: Request,
    requester: Authenticated,
    who_has_read: Annotated[WhoHasRead, service(WhoHasRead)],
) -> Response:
    """The users who have read the event or a later one."""
    return json_response(await who_has_read.of_event(requester.user_id, room_id, event_id, page_request(request)))
