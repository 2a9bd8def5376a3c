"""Invitations: the users invited to a room, the status of each invitation, and revoking one."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Request
from starlette.responses import Response

from homeserver.client_api.authentication import Authenticated
from homeserver.client_api.limiting import per_account
from homeserver.governance_api.paging import page_request
from homeserver.limits.rate_limits import Limit
from homeserver.membership.invitations import Invitations
from homeserver.web import json_response, optional_str, read_json_object, service

router = APIRouter()

InvitationsService = Annotated[Invitations, service(Invitations)]


@router.get("/rooms/{room_id}/invitations")
async def get_invitations(
    room_id: str, request: Request, requester: Authenticated, invitations: InvitationsService
) -> Response:
    """The latest invitation of each user, newest first."""
    return json_response(await invitations.of_room(requester.user_id, room_id, page_request(request)))


@router.delete("/rooms/{room_id}/invitations/{user_id}", dependencies=[per_account(Limit.MESSAGES)])
async def revoke_invitation(
    room_id: str, user_id: str, request: Request, requester: Authenticated, invitations: InvitationsService
) -> Response:
    """Revoke a pending invitation."""
    body = await read_json_object(request, empty_is_object=True)
    reason = optional_str(body, "reason")
    return json_response({"event_id": await invitations.revoke(requester.user_id, room_id, user_id, reason)})
