"""Roles: which users are Owner, Moderator or Member of a room, and changing a user's role."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Request
from starlette.responses import Response

from homeserver.client_api.authentication import Authenticated
from homeserver.client_api.limiting import per_account
from homeserver.errors import InvalidParam
from homeserver.governance.roles import Role
from homeserver.governance_api.paging import page_request
from homeserver.limits.rate_limits import Limit
from homeserver.membership.roles import Roles
from homeserver.web import json_response, optional_bool, read_json_object, required_str, service

router = APIRouter()

RolesService = Annotated[Roles, service(Roles)]


@router.get("/rooms/{room_id}/roles")
async def get_roles(room_id: str, request: Request, requester: Authenticated, roles: RolesService) -> Response:
    """The joined users of a room by role."""
    return json_response(await roles.of_room(requester.user_id, room_id, page_request(request)))


@router.put("/rooms/{room_id}/roles/{user_id}", dependencies=[per_account(Limit.MESSAGES)])
async def set_role(
    room_id: str, user_id: str, request: Request, requester: Authenticated, roles: RolesService
) -> Response:
    """Give a joined user a role."""
    body = await read_json_object(request)
    event_id = await roles.give(
        requester.user_id,
        room_id,
        user_id,
        _role(required_str(body, "role")),
        is_confirmed=optional_bool(body, "confirm"),
        is_rehearsal=optional_bool(body, "dry_run"),
    )
    return json_response({"event_id": event_id})


def _role(name: str) -> Role:
    try:
        return Role(name)
    except ValueError:
        raise InvalidParam("A role is one of owner, moderator, member") from None
