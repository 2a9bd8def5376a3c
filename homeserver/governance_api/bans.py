"""Bans: which users are banned from a room, by whom, since when and why."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Request
from starlette.responses import Response

from homeserver.client_api.authentication import Authenticated
from homeserver.governance_api.paging import page_request
from homeserver.membership.bans import Bans
from homeserver.web import json_response, service

router = APIRouter()


@router.get("/rooms/{room_id}/bans")
async def get_bans(
    room_id: str, request: Request, requester: Authenticated, bans: Annotated[Bans, service(Bans)]
) -> Response:
    """The banned users, newest ban first. The client-server API's ``/ban`` and ``/unban`` change them."""
    return json_response(await bans.of_room(requester.user_id, room_id, page_request(request)))
