"""Room aliases.

https://spec.matrix.org/v1.19/client-server-api/#room-aliases
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Request
from starlette.responses import Response

from homeserver.client_api.authentication import Authenticated
from homeserver.client_api.limiting import per_account, per_address, turn_to_ask_others
from homeserver.errors import Forbidden, InvalidParam
from homeserver.graph.state import RoomHead, RoomHeads
from homeserver.limits.rate_limits import Limit
from homeserver.protocol.identifiers import is_valid_room_id
from homeserver.rooms.aliases import RoomAliases
from homeserver.web import json_response, read_json_object, required_str, service

router = APIRouter()

AliasesService = Annotated[RoomAliases, service(RoomAliases)]


@router.get("/directory/room/{room_alias}", dependencies=[per_address(Limit.LOOKUPS)])
async def get_room_id_by_alias(room_alias: str, request: Request, aliases: AliasesService) -> Response:
    """https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3directoryroomroomalias"""
    if aliases.is_ours(room_alias):
        target = await aliases.resolve_local(room_alias)
    else:
        async with turn_to_ask_others(request):
            target = await aliases.resolve(room_alias)
    return json_response({"room_id": target.room_id, "servers": target.servers})


@router.put("/directory/room/{room_alias}", dependencies=[per_account(Limit.SETTINGS)])
async def set_room_alias(
    room_alias: str, request: Request, requester: Authenticated, aliases: AliasesService
) -> Response:
    """https://spec.matrix.org/v1.19/client-server-api/#put_matrixclientv3directoryroomroomalias"""
    body = await read_json_object(request)
    await aliases.add(room_alias, required_str(body, "room_id"), requester.user_id)
    return json_response({})


@router.delete("/directory/room/{room_alias}", dependencies=[per_account(Limit.SETTINGS)])
async def delete_room_alias(room_alias: str, requester: Authenticated, aliases: AliasesService) -> Response:
    """https://spec.matrix.org/v1.19/client-server-api/#delete_matrixclientv3directoryroomroomalias"""
    await aliases.remove(room_alias, requester.user_id)
    return json_response({})


@router.get("/rooms/{room_id}/aliases")
async def get_local_aliases(
    room_id: str,
    requester: Authenticated,
    aliases: AliasesService,
    heads: Annotated[RoomHeads, service(RoomHeads)],
) -> Response:
    """https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3roomsroomidaliases"""
    if not is_valid_room_id(room_id):
        raise InvalidParam("Not a room ID")
    head = await heads.newest_where(room_id, lambda head: requester.user_id in head.joined)
    if head is None and (found := await heads.find(room_id)) is not None and await _is_world_readable(heads, found):
        head = found
    if head is None:
        raise Forbidden("You are not in this room")
    return json_response({"aliases": await aliases.of_room(head)})


async def _is_world_readable(heads: RoomHeads, head: RoomHead) -> bool:
    visibility = await heads.state_event(head, "m.room.history_visibility")
    return visibility is not None and visibility.content.get("history_visibility") == "world_readable"
