"""Querying for information.

https://spec.matrix.org/v1.19/server-server-api/#querying-for-information
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Request
from starlette.responses import Response

from homeserver.accounts.profiles import Profiles
from homeserver.errors import InvalidParam, NotFound
from homeserver.federation_api.gate import Origin
from homeserver.protocol.identifiers import is_valid_room_alias, is_valid_user_id
from homeserver.rooms.aliases import RoomAliases
from homeserver.web import json_response, query_str, required_query_str, service

router = APIRouter()


@router.get("/_matrix/federation/v1/query/profile")
async def query_profile(
    request: Request,
    _: Origin,
    profiles: Annotated[Profiles, service(Profiles)],
) -> Response:
    """https://spec.matrix.org/v1.19/server-server-api/#get_matrixfederationv1queryprofile"""
    user_id = required_query_str(request, "user_id")
    field = query_str(request, "field")
    if not is_valid_user_id(user_id):
        raise InvalidParam("Not a valid user ID")
    # Answer for our own users only: otherwise anyone could make this server send requests to third servers.
    profile = await profiles.local_profile(user_id)
    if field is None:
        return json_response(profile)
    if field not in profile:
        raise NotFound("The user has no such profile field")
    return json_response({field: profile[field]})


@router.get("/_matrix/federation/v1/query/directory")
async def query_room_directory(
    request: Request,
    _: Origin,
    aliases: Annotated[RoomAliases, service(RoomAliases)],
) -> Response:
    """https://spec.matrix.org/v1.19/server-server-api/#get_matrixfederationv1querydirectory"""
    alias = required_query_str(request, "room_alias")
    if not is_valid_room_alias(alias):
        raise InvalidParam("Not a valid room alias")
    target = await aliases.resolve_local(alias)
    return json_response({"room_id": target.room_id, "servers": target.servers})
