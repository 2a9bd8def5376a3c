"""Room membership: joining, leaving, inviting, removing and banning.

https://spec.matrix.org/v1.19/client-server-api/#room-membership
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Request
from starlette.responses import Response

from homeserver.client_api.authentication import Authenticated
from homeserver.client_api.limiting import per_account
from homeserver.errors import Forbidden, InvalidParam
from homeserver.limits.rate_limits import Limit
from homeserver.membership.joins import VIA_MAX
from homeserver.membership.membership import Memberships
from homeserver.protocol.identifiers import is_valid_room_id, is_valid_server_name
from homeserver.protocol.json_types import JsonObject
from homeserver.rooms.aliases import RoomAliases
from homeserver.web import (
    json_response,
    optional_object,
    optional_str,
    query_strs,
    read_json_object,
    required_object,
    required_str,
    service,
)

router = APIRouter()

MembershipsService = Annotated[Memberships, service(Memberships)]


async def _body(request: Request) -> JsonObject:
    return await read_json_object(request, empty_is_object=True)


async def _join_reason(request: Request) -> str | None:
    body = await _body(request)
    reason = optional_str(body, "reason")
    if (signed := optional_object(body, "third_party_signed")) is not None:
        for name in ("sender", "mxid", "token"):
            required_str(signed, name)
        required_object(signed, "signatures")
        # "the homeserver must verify that it matches a pending m.room.third_party_invite event in the room"
        raise Forbidden("This server takes no invitations of third-party identifiers")
    return reason


@router.post("/join/{room_id_or_alias}", dependencies=[per_account(Limit.JOINS)])
async def join_room(
    room_id_or_alias: str,
    request: Request,
    requester: Authenticated,
    memberships: MembershipsService,
    aliases: Annotated[RoomAliases, service(RoomAliases)],
) -> Response:
    """https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3joinroomidoralias"""
    reason = await _join_reason(request)
    # ``server_name`` is the older name of ``via``.
    via = query_strs(request, "via") + query_strs(request, "server_name")
    if not all(map(is_valid_server_name, via)):
        raise InvalidParam("'via' has a value that is not a server name")
    room_id = room_id_or_alias
    if room_id_or_alias.startswith("#"):
        target = await aliases.resolve(room_id_or_alias)
        room_id, via = target.room_id, [*via, *target.servers]
    elif not is_valid_room_id(room_id_or_alias):
        raise InvalidParam("Not a room ID or room alias")
    await memberships.join(requester.user_id, room_id, list(dict.fromkeys(via))[:VIA_MAX], reason)
    return json_response({"room_id": room_id})


@router.post("/rooms/{room_id}/join", dependencies=[per_account(Limit.JOINS)])
async def join_room_by_id(
    room_id: str, request: Request, requester: Authenticated, memberships: MembershipsService
) -> Response:
    """https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3roomsroomidjoin"""
    reason = await _join_reason(request)
    if not is_valid_room_id(room_id):
        raise InvalidParam("Not a room ID")
    await memberships.join(requester.user_id, room_id, (), reason)
    return json_response({"room_id": room_id})


@router.post("/rooms/{room_id}/leave", dependencies=[per_account(Limit.MESSAGES)])
async def leave_room(
    room_id: str, request: Request, requester: Authenticated, memberships: MembershipsService
) -> Response:
    """https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3roomsroomidleave"""
    body = await _body(request)
    await memberships.leave(requester.user_id, room_id, optional_str(body, "reason"))
    return json_response({})


@router.post("/rooms/{room_id}/forget", dependencies=[per_account(Limit.SETTINGS)])
async def forget_room(room_id: str, requester: Authenticated, memberships: MembershipsService) -> Response:
    """https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3roomsroomidforget"""
    await memberships.forget(requester.user_id, room_id)
    return json_response({})


@router.post("/rooms/{room_id}/invite", dependencies=[per_account(Limit.INVITES)])
async def invite_user(
    room_id: str, request: Request, requester: Authenticated, memberships: MembershipsService
) -> Response:
    """https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3roomsroomidinvite"""
    body = await read_json_object(request)
    if "user_id" not in body and "medium" in body:
        raise InvalidParam("This server invites by Matrix user ID only")
    user_id = required_str(body, "user_id")
    await memberships.invite(requester.user_id, room_id, user_id, reason=optional_str(body, "reason"))
    return json_response({})


@router.post("/rooms/{room_id}/kick", dependencies=[per_account(Limit.MESSAGES)])
async def kick(room_id: str, request: Request, requester: Authenticated, memberships: MembershipsService) -> Response:
    """https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3roomsroomidkick"""
    body = await read_json_object(request)
    user_id, reason = required_str(body, "user_id"), optional_str(body, "reason")
    await memberships.kick(requester.user_id, room_id, user_id, reason)
    return json_response({})


@router.post("/rooms/{room_id}/ban", dependencies=[per_account(Limit.MESSAGES)])
async def ban(room_id: str, request: Request, requester: Authenticated, memberships: MembershipsService) -> Response:
    """https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3roomsroomidban"""
    body = await read_json_object(request)
    user_id, reason = required_str(body, "user_id"), optional_str(body, "reason")
    await memberships.ban(requester.user_id, room_id, user_id, reason)
    return json_response({})


@router.post("/rooms/{room_id}/unban", dependencies=[per_account(Limit.MESSAGES)])
async def unban(room_id: str, request: Request, requester: Authenticated, memberships: MembershipsService) -> Response:
    """https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3roomsroomidunban"""
    body = await read_json_object(request)
    user_id, reason = required_str(body, "user_id"), optional_str(body, "reason")
    await memberships.unban(requester.user_id, room_id, user_id, reason)
    return json_response({})
