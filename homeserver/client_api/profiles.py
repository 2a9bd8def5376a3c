"""Profiles.

https://spec.matrix.org/v1.19/client-server-api/#profiles
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Request
from starlette.responses import Response

from homeserver.accounts.profiles import Profiles
from homeserver.client_api.authentication import Authenticated, require_self
from homeserver.client_api.limiting import per_account, per_address, turn_to_ask_others
from homeserver.errors import MissingParam
from homeserver.limits.rate_limits import Limit
from homeserver.web import json_response, read_json_object, service

router = APIRouter()

BODY_BYTES_MAX = 128 * 1024
"""Enough for a profile of 64 KiB, however its JSON is escaped. The stored profile has the specification's limit."""


@router.get("/profile/{user_id}", dependencies=[per_address(Limit.LOOKUPS)])
async def get_user_profile(
    user_id: str, request: Request, profiles: Annotated[Profiles, service(Profiles)]
) -> Response:
    """https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3profileuserid"""
    if profiles.is_ours(user_id):
        return json_response(await profiles.profile(user_id))
    async with turn_to_ask_others(request):
        return json_response(await profiles.profile(user_id))


@router.get("/profile/{user_id}/{key_name}", dependencies=[per_address(Limit.LOOKUPS)])
async def get_profile_field(
    user_id: str, key_name: str, request: Request, profiles: Annotated[Profiles, service(Profiles)]
) -> Response:
    """https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3profileuseridkeyname"""
    if profiles.is_ours(user_id):
        return json_response(await profiles.field(user_id, key_name))
    async with turn_to_ask_others(request):
        return json_response(await profiles.field(user_id, key_name))


@router.put("/profile/{user_id}/{key_name}", dependencies=[per_account(Limit.PROFILE_CHANGES)])
async def set_profile_field(
    user_id: str,
    key_name: str,
    request: Request,
    requester: Authenticated,
    profiles: Annotated[Profiles, service(Profiles)],
) -> Response:
    """https://spec.matrix.org/v1.19/client-server-api/#put_matrixclientv3profileuseridkeyname"""
    require_self(requester, user_id)
    body = await read_json_object(request, BODY_BYTES_MAX)
    if key_name not in body:
        raise MissingParam(f"'{key_name}' is missing")
    await profiles.set_field(user_id, key_name, body[key_name])
    return json_response({})


@router.delete("/profile/{user_id}/{key_name}", dependencies=[per_account(Limit.PROFILE_CHANGES)])
async def delete_profile_field(
    user_id: str, key_name: str, requester: Authenticated, profiles: Annotated[Profiles, service(Profiles)]
) -> Response:
    """https://spec.matrix.org/v1.19/client-server-api/#delete_matrixclientv3profileuseridkeyname"""
    require_self(requester, user_id)
    await profiles.delete_field(user_id, key_name)
    return json_response({})
