"""Client config: account data of the whole account or of one room.

https://spec.matrix.org/v1.19/client-server-api/#client-config
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Request
from starlette.responses import Response

from homeserver.accounts.account_data import AccountData
from homeserver.client_api.authentication import Authenticated, require_self
from homeserver.client_api.limiting import per_device
from homeserver.errors import InvalidParam
from homeserver.limits.rate_limits import Limit
from homeserver.protocol.identifiers import is_valid_room_id
from homeserver.web import bytes_response, json_response, read_json_object, service

router = APIRouter()

AccountDataService = Annotated[AccountData, service(AccountData)]


@router.put("/user/{user_id}/account_data/{type}", dependencies=[per_device(Limit.SETTINGS)])
async def set_account_data(
    user_id: str, type: str, request: Request, requester: Authenticated, account_data: AccountDataService
) -> Response:
    """https://spec.matrix.org/v1.19/client-server-api/#put_matrixclientv3useruseridaccount_datatype"""
    require_self(requester, user_id)
    await account_data.put(user_id, type, await read_json_object(request))
    return json_response({})


@router.get("/user/{user_id}/account_data/{type}")
async def get_account_data(
    user_id: str, type: str, requester: Authenticated, account_data: AccountDataService
) -> Response:
    """https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3useruseridaccount_datatype"""
    require_self(requester, user_id)
    return bytes_response(await account_data.get(user_id, type))


@router.put("/user/{user_id}/rooms/{room_id}/account_data/{type}", dependencies=[per_device(Limit.SETTINGS)])
async def set_account_data_per_room(
    user_id: str,
    room_id: str,
    type: str,
    request: Request,
    requester: Authenticated,
    account_data: AccountDataService,
) -> Response:
    """https://spec.matrix.org/v1.19/client-server-api/#put_matrixclientv3useruseridroomsroomidaccount_datatype"""
    require_self(requester, user_id)
    _require_room_id(room_id)
    await account_data.put(user_id, type, await read_json_object(request), room_id)
    return json_response({})


@router.get("/user/{user_id}/rooms/{room_id}/account_data/{type}")
async def get_account_data_per_room(
    user_id: str, room_id: str, type: str, requester: Authenticated, account_data: AccountDataService
) -> Response:
    """https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3useruseridroomsroomidaccount_datatype"""
    require_self(requester, user_id)
    _require_room_id(room_id)
    return bytes_response(await account_data.get(user_id, type, room_id))


def _require_room_id(room_id: str) -> None:
    if not is_valid_room_id(room_id):
        raise InvalidParam("Not a room ID")
