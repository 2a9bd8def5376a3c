"""Filtering.

https://spec.matrix.org/v1.19/client-server-api/#filtering
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Request
from starlette.responses import Response

from homeserver.accounts.filters import FILTER_BYTES_MAX, Filters
from homeserver.client_api.authentication import Authenticated, require_self
from homeserver.client_api.limiting import per_device
from homeserver.limits.rate_limits import Limit
from homeserver.web import bytes_response, json_response, read_json_object, service

router = APIRouter()


@router.post("/user/{user_id}/filter", dependencies=[per_device(Limit.SETTINGS)])
async def define_filter(
    user_id: str, request: Request, requester: Authenticated, filters: Annotated[Filters, service(Filters)]
) -> Response:
    """https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3useruseridfilter"""
    require_self(requester, user_id)
    definition = await read_json_object(request, FILTER_BYTES_MAX)
    return json_response({"filter_id": await filters.define(user_id, definition)})


@router.get("/user/{user_id}/filter/{filter_id}")
async def get_filter(
    user_id: str, filter_id: str, requester: Authenticated, filters: Annotated[Filters, service(Filters)]
) -> Response:
    """https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3useruseridfilterfilterid"""
    require_self(requester, user_id)
    return bytes_response(await filters.definition(user_id, filter_id))
