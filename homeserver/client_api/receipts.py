"""Receipts: how far a user has read.

https://spec.matrix.org/v1.19/client-server-api/#receipts
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Request
from starlette.responses import Response

from homeserver.accounts.account_data import AccountData
from homeserver.client_api.authentication import Authenticated
from homeserver.client_api.limiting import per_device
from homeserver.ephemeral.receipts import FULLY_READ, IDENTIFIER_CHARACTERS_MAX, Receipts
from homeserver.errors import InvalidParam
from homeserver.limits.rate_limits import Limit
from homeserver.web import json_response, read_json_object, service

router = APIRouter()


@router.post("/rooms/{room_id}/receipt/{receipt_type}/{event_id}", dependencies=[per_device(Limit.RECEIPTS_AND_TYPING)])
async def post_receipt(
    room_id: str,
    receipt_type: str,
    event_id: str,
    request: Request,
    requester: Authenticated,
    receipts: Annotated[Receipts, service(Receipts)],
    account_data: Annotated[AccountData, service(AccountData)],
) -> Response:
    """https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3roomsroomidreceiptreceipttypeeventid"""
    body = await read_json_object(request, empty_is_object=True)
    thread_id = _thread_id(body.get("thread_id")) if "thread_id" in body else None
    if receipt_type == FULLY_READ:
        # "It is provided for an incompatible receipt type."
        if thread_id is not None:
            raise InvalidParam("m.fully_read does not take a thread_id")
        await receipts.find_event(requester.user_id, room_id, event_id)
        await account_data.store(requester.user_id, FULLY_READ, {"event_id": event_id}, room_id)
    else:
        await receipts.post(requester.user_id, room_id, receipt_type, event_id, thread_id)
    return json_response({})


def _thread_id(value: object) -> str:
    if not isinstance(value, str) or not value or len(value) > IDENTIFIER_CHARACTERS_MAX:
        raise InvalidParam("thread_id must be a non-empty string")
    return value
