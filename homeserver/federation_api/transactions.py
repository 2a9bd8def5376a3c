"""Transactions.

https://spec.matrix.org/v1.19/server-server-api/#transactions
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from homeserver.errors import BadJson, InvalidParam
from homeserver.federation_api.gate import Gate
from homeserver.graph.received_transactions import ReceivedTransactions
from homeserver.limits.rate_limits import Limit
from homeserver.protocol.event_format import PDU_BYTES_MAX
from homeserver.protocol.json_types import JsonObject
from homeserver.web import bytes_response, get_service

PDUS_MAX = 50
EDUS_MAX = 100
BODY_BYTES_MAX = (PDUS_MAX + EDUS_MAX + 10) * PDU_BYTES_MAX
"""The size of the largest possible events, 10 MiB, with some more for JSON that is longer than canonical JSON."""
TRANSACTION_ID_CHARACTERS_MAX = 255


async def send_transaction(request: Request) -> Response:
    """https://spec.matrix.org/v1.19/server-server-api/#put_matrixfederationv1sendtxnid"""
    origin, body = await get_service(request, Gate).origin_and_body(
        request, BODY_BYTES_MAX, Limit.FEDERATION_TRANSACTIONS
    )
    txn_id: str = request.path_params["txn_id"]
    if len(txn_id) > TRANSACTION_ID_CHARACTERS_MAX:
        raise InvalidParam("The transaction ID is too long")
    # "Transactions are limited in size; they can have at most 50 PDUs and 100 EDUs."
    pdus = _list(body, "pdus", PDUS_MAX)
    edus = _list(body, "edus", EDUS_MAX)
    transactions = get_service(request, ReceivedTransactions)
    return bytes_response(await transactions.receive(origin, txn_id, pdus, edus))


def _list(body: JsonObject, name: str, maximum: int) -> list[object]:
    value = body.get(name, [])
    if not isinstance(value, list):
        raise BadJson(f"'{name}' must be a list")
    if len(value) > maximum:
        raise BadJson(f"'{name}' may have {maximum} entries")
    return value


routes: list[Route] = [Route("/_matrix/federation/v1/send/{txn_id}", send_transaction, methods=["PUT"])]
