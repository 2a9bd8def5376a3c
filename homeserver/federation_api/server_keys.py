"""Retrieving server keys: ours, and as a notary those of others.

https://spec.matrix.org/v1.19/server-server-api/#retrieving-server-keys
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from homeserver.clock import Clock
from homeserver.errors import BadJson, InvalidParam
from homeserver.federation.key_ring import NOTARY_SERVERS_MAX, KeyRing
from homeserver.protocol.identifiers import is_valid_server_name
from homeserver.signing import SigningKeys
from homeserver.web import json_response, query_int, read_json_object, required_object, service

router = APIRouter()

KEY_IDS_MAX = 50
ANY_KEY = ""


class PublishedKeys:
    """Our own keys as we publish them."""

    def __init__(self, signing_keys: SigningKeys, clock: Clock) -> None:
        self._signing_keys = signing_keys
        self._clock = clock

    def now_ms(self) -> int:
        """What a notary takes for the time where it is not told one."""
        return self._clock.now_ms()

    def answer(self) -> dict[str, Any]:
        """The signed object."""
        return self._signing_keys.server_keys_object(self._clock.now_ms())


@router.get("/_matrix/key/v2/server")
async def get_server_key(keys: Annotated[PublishedKeys, service(PublishedKeys)]) -> Response:
    """https://spec.matrix.org/v1.19/server-server-api/#get_matrixkeyv2server"""
    return json_response(keys.answer())


@router.get("/_matrix/key/v2/query/{server_name}")
async def perspectives_key_query(
    server_name: str,
    request: Request,
    keys: Annotated[PublishedKeys, service(PublishedKeys)],
    key_ring: Annotated[KeyRing, service(KeyRing)],
) -> Response:
    """https://spec.matrix.org/v1.19/server-server-api/#get_matrixkeyv2queryservername"""
    if not is_valid_server_name(server_name):
        raise InvalidParam("Not a valid server name")
    # "If not supplied, the notary server MUST use the current time."
    valid_until_ts = query_int(request, "minimum_valid_until_ts", keys.now_ms())
    return json_response({"server_keys": await key_ring.notary_response({server_name: {ANY_KEY: valid_until_ts}})})


@router.post("/_matrix/key/v2/query")
async def bulk_perspectives_key_query(
    request: Request,
    keys: Annotated[PublishedKeys, service(PublishedKeys)],
    key_ring: Annotated[KeyRing, service(KeyRing)],
) -> Response:
    """https://spec.matrix.org/v1.19/server-server-api/#post_matrixkeyv2query"""
    criteria = required_object(await read_json_object(request), "server_keys")
    if len(criteria) > NOTARY_SERVERS_MAX:
        raise InvalidParam(f"One request may ask for the keys of {NOTARY_SERVERS_MAX} servers")
    now = keys.now_ms()
    wanted = {server_name: _wanted(of_server, now) for server_name, of_server in criteria.items()}
    return json_response({"server_keys": await key_ring.notary_response(wanted)})


def _wanted(criteria: Any, now: int) -> Mapping[str, int]:
    """Key ID to the time until which the key should be valid."""
    if not isinstance(criteria, dict) or len(criteria) > KEY_IDS_MAX:
        raise BadJson("'server_keys' must hold an object of key IDs for each server")
    wanted: dict[str, int] = {}
    for key_id, criterion in criteria.items():
        valid_until_ts = criterion.get("minimum_valid_until_ts", now) if isinstance(criterion, dict) else None
        if not isinstance(valid_until_ts, int) or isinstance(valid_until_ts, bool):
            raise BadJson("'minimum_valid_until_ts' must be an integer")
        wanted[key_id] = valid_until_ts
    return wanted
