"""Retrieving server keys: our own, and those of other servers, for which this server is a notary.

https://spec.matrix.org/v1.19/server-server-api/#retrieving-server-keys
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from homeserver.clock import Clock
from homeserver.errors import BadJson, InvalidParam
from homeserver.federation.key_ring import ANY_KEY, NOTARY_SERVERS_MAX, KeyRing, Wanted
from homeserver.limits.fair_budget import FairBudget
from homeserver.limits.rate_limits import Limit, RateLimits
from homeserver.protocol.canonical_json import encode_canonical_json
from homeserver.protocol.identifiers import is_valid_server_name
from homeserver.protocol.json_types import JsonObject
from homeserver.signing import SigningKeys
from homeserver.web import (
    ClientAddresses,
    bytes_response,
    get_service,
    query_int,
    read_json_object,
    required_object,
    service,
)

router = APIRouter()

KEY_IDS_MAX = 50
QUERY_BYTES_MAX = 64 * 1024
QUERIES_AT_ONCE_MAX = 8
"""How many notary requests are answered at the same time: each may wait for other servers."""
QUERIES_PER_ADDRESS_AT_ONCE_MAX = 2


class PublishedKeys:
    """Our own keys as we publish them."""

    def __init__(self, signing_keys: SigningKeys, clock: Clock) -> None:
        self._signing_keys = signing_keys
        self._clock = clock

    def now_ms(self) -> int:
        """The default for ``minimum_valid_until_ts``, in milliseconds since the epoch."""
        return self._clock.now_ms()

    def answer(self) -> dict[str, Any]:
        """The signed object that ``GET /_matrix/key/v2/server`` answers."""
        return self._signing_keys.server_keys_object(self._clock.now_ms())


class NotaryQueries:
    """Bounds what strangers may ask this server as a notary: these requests are not signed."""

    def __init__(self, key_ring: KeyRing, limits: RateLimits) -> None:
        self._key_ring = key_ring
        self._limits = limits
        self._places = FairBudget(QUERIES_AT_ONCE_MAX, per_subject=QUERIES_PER_ADDRESS_AT_ONCE_MAX)

    async def answer(self, wanted: Wanted, address: str) -> list[JsonObject]:
        """See ``KeyRing.notary_response``. Raises ``LimitExceeded``."""
        self._limits.require(Limit.NOTARY_QUERIES, address, max(1, len(wanted)))
        async with self._places.share(address):
            return await self._key_ring.notary_response(wanted)


@router.get("/_matrix/key/v2/server")
@router.get("/_matrix/key/v2/server/{key_id}")
async def get_server_key(keys: Annotated[PublishedKeys, service(PublishedKeys)]) -> Response:
    """https://spec.matrix.org/v1.19/server-server-api/#get_matrixkeyv2server

    Older servers name the key that they want. "Servers should not use this parameter and instead opt to return all
    keys, not just the requested one", as the specification said before it dropped the parameter.
    """
    return _canonical_response(keys.answer())


@router.get("/_matrix/key/v2/query/{server_name}")
@router.get("/_matrix/key/v2/query/{server_name}/{key_id}")
async def perspectives_key_query(
    server_name: str,
    request: Request,
    keys: Annotated[PublishedKeys, service(PublishedKeys)],
    queries: Annotated[NotaryQueries, service(NotaryQueries)],
) -> Response:
    """https://spec.matrix.org/v1.19/server-server-api/#get_matrixkeyv2queryservername

    Answers with all keys, even if an older server names one of them, as above.
    """
    if not is_valid_server_name(server_name):
        raise InvalidParam("Not a valid server name")
    # "If not supplied, the notary server MUST use the current time."
    valid_until_ts = query_int(request, "minimum_valid_until_ts", keys.now_ms())
    wanted = {ANY_KEY: valid_until_ts}
    if key_id := request.path_params.get("key_id"):
        wanted[key_id] = valid_until_ts
    return _canonical_response({"server_keys": await queries.answer({server_name: wanted}, _address_of(request))})


@router.post("/_matrix/key/v2/query")
async def bulk_perspectives_key_query(
    request: Request,
    keys: Annotated[PublishedKeys, service(PublishedKeys)],
    queries: Annotated[NotaryQueries, service(NotaryQueries)],
) -> Response:
    """https://spec.matrix.org/v1.19/server-server-api/#post_matrixkeyv2query"""
    criteria = required_object(await read_json_object(request, QUERY_BYTES_MAX), "server_keys")
    if len(criteria) > NOTARY_SERVERS_MAX:
        raise InvalidParam(f"One request may ask for the keys of {NOTARY_SERVERS_MAX} servers")
    now = keys.now_ms()
    wanted = {server_name: _wanted(of_server, now) for server_name, of_server in criteria.items()}
    return _canonical_response({"server_keys": await queries.answer(wanted, _address_of(request))})


def _address_of(request: Request) -> str:
    return get_service(request, ClientAddresses).of(request.scope)


def _canonical_response(value: JsonObject) -> Response:
    """Answer with canonical JSON, the form that was signed: some servers check the bytes as they were sent."""
    return bytes_response(encode_canonical_json(value))


def _wanted(criteria: Any, now: int) -> Mapping[str, int]:
    """Key ID to the time until which the key should be valid, in milliseconds since the epoch."""
    if not isinstance(criteria, dict) or len(criteria) > KEY_IDS_MAX:
        raise BadJson("'server_keys' must hold an object of key IDs for each server")
    wanted: dict[str, int] = {}
    for key_id, criterion in criteria.items():
        valid_until_ts = criterion.get("minimum_valid_until_ts") if isinstance(criterion, dict) else False
        if valid_until_ts is None:
            valid_until_ts = now
        if not isinstance(valid_until_ts, int) or isinstance(valid_until_ts, bool):
            raise BadJson("'minimum_valid_until_ts' must be an integer")
        wanted[key_id] = valid_until_ts
    return wanted
