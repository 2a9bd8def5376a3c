"""The requests that this server sends to other servers.

Each method returns the parsed answer once its outer shape is checked: what the specification calls a list of events is
a list of objects. The contents come from another server, and the caller must check them.

Every method raises ``RemoteUnreachable`` when there is no valid answer, and ``RemoteRefused`` when the other server
answers with an error.

https://spec.matrix.org/v1.19/server-server-api/
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NoReturn
from urllib.parse import quote, urlencode

import httpx
import orjson

from homeserver.clock import Clock
from homeserver.errors import RemoteBrokeOff, RemoteRefused, RemoteUnreachable
from homeserver.federation.answers import (
    AUTH_CHAIN,
    HANDSHAKE,
    INVITE,
    JOIN,
    KEYS,
    KEYS_OF_NOTARY,
    KNOCK,
    LOOK_UP,
    SIGNATURE,
    SMALL,
    STATE,
    STATE_IDS,
    TRANSACTION,
    AnswerReader,
    Limits,
    event_ids_of,
    is_list_of,
    second_of_pair,
    some_events,
)
from homeserver.federation.permitted_servers import PermittedServers
from homeserver.federation.request_authentication import sign_request
from homeserver.federation.server_discovery import ServerDiscovery
from homeserver.outbound.http import Answer, OutboundHttp
from homeserver.outbound.places import Purpose
from homeserver.outbound.spools import Spool
from homeserver.protocol.canonical_json import encode_canonical_json
from homeserver.protocol.json_types import JsonObject
from homeserver.signing import SigningKeys

_V1 = "/_matrix/federation/v1"
_V2 = "/_matrix/federation/v2"
_POLICY_V1 = "/_matrix/policy/v1"

PDUS_PER_TRANSACTION_MAX = 50
EDUS_PER_TRANSACTION_MAX = 100


ERROR_TEXT_MAX = 500
"""How much of another server's error text is repeated in ours."""
RETRY_AFTER_MS_MAX = 60_000
"""How long another server can make us, or our users, wait."""
ROOM_VERSION_MAX = 32
"""Characters of a room version: https://spec.matrix.org/v1.19/rooms/#room-version-grammar"""


class FederationClient:
    """Sends signed requests to other servers."""

    def __init__(
        self,
        server_name: str,
        signing_keys: SigningKeys,
        discovery: ServerDiscovery,
        http: OutboundHttp,
        clock: Clock,
        permitted: PermittedServers | None = None,
    ) -> None:
        self._server_name = server_name
        self._signing_keys = signing_keys
        self._discovery = discovery
        self._http = http
        self._clock = clock
        self._permitted = permitted or PermittedServers()
        self._reader = AnswerReader()

    # -- transactions --------------------------------------------------------------------------------------------------

    async def send_transaction(
        self, destination: str, transaction_id: str, *, pdus: Sequence[bytes], edus: Sequence[JsonObject]
    ) -> JsonObject:
        """Send events and EDUs; ``pdus`` are canonical JSON (``Event.json``).

        Returns ``{"pdus": {event_id: {} or {"error": text}}}``.

        https://spec.matrix.org/v1.19/server-server-api/#put_matrixfederationv1sendtxnid
        """
        if len(pdus) > PDUS_PER_TRANSACTION_MAX or len(edus) > EDUS_PER_TRANSACTION_MAX:
            raise ValueError("too much for one transaction")
        # Build the canonical JSON of the body from canonical parts, so that nothing is encoded twice.
        content = b'{"edus":%s,"origin":%s,"origin_server_ts":%d,"pdus":[%s]}' % (
            encode_canonical_json(list(edus)),
            orjson.dumps(self._server_name),
            self._clock.now_ms(),
            b",".join(pdus),
        )
        path = _path(_V1, "send", transaction_id)
        answer = await self._request("PUT", destination, path, content=content, limits=TRANSACTION)
        results = answer.get("pdus")
        return {"pdus": results if isinstance(results, dict) else {}}

    # -- joining, knocking, leaving ------------------------------------------------------------------------------------

    async def make_join(self, destination: str, room_id: str, user_id: str, versions: Iterable[str]) -> JsonObject:
        """A template for a join: ``{"event", "room_version"}``; ``versions`` are the room versions that this server
        supports.

        https://spec.matrix.org/v1.19/server-server-api/#get_matrixfederationv1make_joinroomiduserid
        """
        query = [("ver", version) for version in versions]
        path = _path(_V1, "make_join", room_id, user_id, query=query)
        answer = await self._request("GET", destination, path, limits=HANDSHAKE)
        return _template(destination, answer)

    async def send_join(
        self, destination: str, room_id: str, event_id: str, event: JsonObject, *, omit_members: bool = False
    ) -> JsonObject:
        """Join: ``{"state", "auth_chain", ...}``, with ``event`` for a restricted join.

        https://spec.matrix.org/v1.19/server-server-api/#put_matrixfederationv2send_joinroomideventid
        """
        query = [("omit_members", "true")] if omit_members else []
        answer = await self._put_v2_or_v1(destination, "send_join", room_id, event_id, event, JOIN, query)
        _require_objects(destination, answer, "state", "auth_chain")
        return answer

    async def make_knock(self, destination: str, room_id: str, user_id: str, versions: Iterable[str]) -> JsonObject:
        """A template for a knock: ``{"event", "room_version"}``.

        https://spec.matrix.org/v1.19/server-server-api/#get_matrixfederationv1make_knockroomiduserid
        """
        query = [("ver", version) for version in versions]
        path = _path(_V1, "make_knock", room_id, user_id, query=query)
        answer = await self._request("GET", destination, path, limits=HANDSHAKE)
        return _template(destination, answer)

    async def send_knock(self, destination: str, room_id: str, event_id: str, event: JsonObject) -> JsonObject:
        """Knock: ``{"knock_room_state"}``.

        https://spec.matrix.org/v1.19/server-server-api/#put_matrixfederationv1send_knockroomideventid
        """
        path = _path(_V1, "send_knock", room_id, event_id)
        answer = await self._request("PUT", destination, path, content=encode_canonical_json(event), limits=KNOCK)
        _require_objects(destination, answer, "knock_room_state")
        return answer

    async def make_leave(self, destination: str, room_id: str, user_id: str) -> JsonObject:
        """A template for a leave: ``{"event", "room_version"}``.

        https://spec.matrix.org/v1.19/server-server-api/#get_matrixfederationv1make_leaveroomiduserid
        """
        path = _path(_V1, "make_leave", room_id, user_id)
        answer = await self._request("GET", destination, path, limits=HANDSHAKE)
        return _template(destination, answer)

    async def send_leave(self, destination: str, room_id: str, event_id: str, event: JsonObject) -> None:
        """Leave.

        https://spec.matrix.org/v1.19/server-server-api/#put_matrixfederationv2send_leaveroomideventid
        """
        await self._put_v2_or_v1(destination, "send_leave", room_id, event_id, event, HANDSHAKE)

    async def send_invite(
        self,
        destination: str,
        room_id: str,
        event_id: str,
        event: JsonObject,
        room_version: str,
        invite_room_state: Sequence[JsonObject],
    ) -> JsonObject:
        """Invite a user of that server; returns the event, which that server has signed too.

        Falls back to the older endpoint, for room versions 1 and 2 only, if the server does not have the newer one.

        https://spec.matrix.org/v1.19/server-server-api/#put_matrixfederationv2inviteroomideventid
        """
        content = {"event": event, "invite_room_state": list(invite_room_state), "room_version": room_version}
        try:
            path = _path(_V2, "invite", room_id, event_id)
            answer = await self._request(
                "PUT", destination, path, content=encode_canonical_json(content), limits=INVITE
            )
        except RemoteRefused as error:
            if room_version not in {"1", "2"} or not _is_unknown_endpoint(error):
                raise
            unsigned = {**event.get("unsigned", {}), "invite_room_state": list(invite_room_state)}
            older = encode_canonical_json({**event, "unsigned": unsigned})
            path = _path(_V1, "invite", room_id, event_id)
            answer = await self._request("PUT", destination, path, content=older, is_pair=True, limits=INVITE)
        return _require_object(destination, answer, "event")

    async def _put_v2_or_v1(
        self,
        destination: str,
        endpoint: str,
        room_id: str,
        event_id: str,
        event: JsonObject,
        limits: Limits,
        query: Sequence[tuple[str, str]] = (),
    ) -> JsonObject:
        content = encode_canonical_json(event)
        try:
            path = _path(_V2, endpoint, room_id, event_id, query=query)
            return await self._request("PUT", destination, path, content=content, limits=limits)
        except RemoteRefused as error:
            if not _is_unknown_endpoint(error):
                raise
        path = _path(_V1, endpoint, room_id, event_id)
        return await self._request("PUT", destination, path, content=content, is_pair=True, limits=limits)

    # -- events --------------------------------------------------------------------------------------------------------

    async def backfill(
        self, destination: str, room_id: str, event_ids: Sequence[str], limit: int
    ) -> Sequence[JsonObject]:
        """Up to ``limit`` events: these and the ones before them.

        https://spec.matrix.org/v1.19/server-server-api/#get_matrixfederationv1backfillroomid
        """
        query = [*(("v", event_id) for event_id in event_ids), ("limit", str(limit))]
        path = _path(_V1, "backfill", room_id, query=query)
        answer = await self._request("GET", destination, path, limits=some_events("pdus", limit))
        return _require_objects(destination, answer, "pdus")

    async def get_missing_events(
        self,
        destination: str,
        room_id: str,
        *,
        earliest_events: Sequence[str],
        latest_events: Sequence[str],
        limit: int,
        min_depth: int = 0,
    ) -> Sequence[JsonObject]:
        """The events between the earliest ones, which are stored here, and the latest, which were just received.

        https://spec.matrix.org/v1.19/server-server-api/#post_matrixfederationv1get_missing_eventsroomid
        """
        content = encode_canonical_json(
            {
                "earliest_events": list(earliest_events),
                "latest_events": list(latest_events),
                "limit": limit,
                "min_depth": min_depth,
            }
        )
        path = _path(_V1, "get_missing_events", room_id)
        answer = await self._request("POST", destination, path, content=content, limits=some_events("events", limit))
        return _require_objects(destination, answer, "events")

    async def get_state(self, destination: str, room_id: str, event_id: str) -> JsonObject:
        """The state before an event: ``{"pdus", "auth_chain"}``.

        https://spec.matrix.org/v1.19/server-server-api/#get_matrixfederationv1stateroomid
        """
        path = _path(_V1, "state", room_id, query=[("event_id", event_id)])
        answer = await self._request("GET", destination, path, limits=STATE)
        _require_objects(destination, answer, "pdus", "auth_chain")
        return answer

    async def get_state_ids(self, destination: str, room_id: str, event_id: str) -> JsonObject:
        """The state before an event, as IDs: ``{"pdu_ids", "auth_chain_ids"}``.

        https://spec.matrix.org/v1.19/server-server-api/#get_matrixfederationv1state_idsroomid
        """
        path = _path(_V1, "state_ids", room_id, query=[("event_id", event_id)])
        answer = await self._request("GET", destination, path, limits=STATE_IDS)
        for name in ("pdu_ids", "auth_chain_ids"):
            _require_list_of(destination, answer, name, str)
            answer[name] = await event_ids_of(destination, answer[name])
        return answer

    async def get_event_auth(self, destination: str, room_id: str, event_id: str) -> Sequence[JsonObject]:
        """The auth chain of an event.

        https://spec.matrix.org/v1.19/server-server-api/#get_matrixfederationv1event_authroomideventid
        """
        path = _path(_V1, "event_auth", room_id, event_id)
        answer = await self._request("GET", destination, path, limits=AUTH_CHAIN)
        return _require_objects(destination, answer, "auth_chain")

    async def get_event(self, destination: str, event_id: str) -> JsonObject:
        """One event.

        https://spec.matrix.org/v1.19/server-server-api/#get_matrixfederationv1eventeventid
        """
        answer = await self._request("GET", destination, _path(_V1, "event", event_id))
        pdus = _require_objects(destination, answer, "pdus")
        if len(pdus) != 1:
            raise RemoteUnreachable(destination, "the answer does not hold one event")
        return pdus[0]

    # -- policy servers ------------------------------------------------------------------------------------------------

    async def ask_policy_server_to_sign(self, destination: str, event: bytes) -> JsonObject:
        """The signature of a policy server for an event, as a ``signatures`` object; ``event`` is canonical JSON.

        https://spec.matrix.org/v1.19/server-server-api/#post_matrixpolicyv1sign
        """
        path = _path(_POLICY_V1, "sign")
        # A policy server may have our own name: another program behind the same reverse proxy then answers.
        return await self._request("POST", destination, path, content=event, limits=SIGNATURE, may_be_ours=True)

    # -- queries -------------------------------------------------------------------------------------------------------

    async def query_profile(self, destination: str, user_id: str, field: str | None = None) -> JsonObject:
        """A user's profile, or one field of it.

        https://spec.matrix.org/v1.19/server-server-api/#get_matrixfederationv1queryprofile
        """
        query = [("user_id", user_id)] + ([("field", field)] if field is not None else [])
        return await self._request("GET", destination, _path(_V1, "query", "profile", query=query), limits=LOOK_UP)

    async def query_directory(self, destination: str, room_alias: str) -> JsonObject:
        """The room that an alias points to: ``{"room_id", "servers"}``.

        https://spec.matrix.org/v1.19/server-server-api/#get_matrixfederationv1querydirectory
        """
        path = _path(_V1, "query", "directory", query=[("room_alias", room_alias)])
        answer = await self._request("GET", destination, path, limits=LOOK_UP)
        if not isinstance(answer.get("room_id"), str):
            raise RemoteUnreachable(destination, "the answer names no room")
        _require_list_of(destination, answer, "servers", str)
        return answer

    async def get_version(self, destination: str) -> JsonObject:
        """The software that the server runs: ``{"name", "version"}``, both optional.

        https://spec.matrix.org/v1.19/server-server-api/#get_matrixfederationv1version
        """
        answer = await self._request("GET", destination, _path(_V1, "version"), is_signed=False, limits=LOOK_UP)
        server = answer.get("server")
        return server if isinstance(server, dict) else {}

    # -- keys ----------------------------------------------------------------------------------------------------------

    async def get_server_keys(self, destination: str, purpose: Purpose = Purpose.AUTHENTICATION) -> JsonObject:
        """The keys that a server publishes, not checked yet; ``purpose`` says whose places the request takes.

        https://spec.matrix.org/v1.19/server-server-api/#get_matrixkeyv2server
        """
        limits = replace(KEYS, purpose=purpose)
        return await self._request("GET", destination, "/_matrix/key/v2/server", is_signed=False, limits=limits)

    async def query_server_keys(
        self,
        notary: str,
        wanted: Mapping[str, Mapping[str, int]],
        purpose: Purpose = Purpose.AUTHENTICATION,
    ) -> list[JsonObject]:
        """What a notary knows of the keys of servers. ``wanted`` maps server name to key ID to the time until which it
        must be valid.

        https://spec.matrix.org/v1.19/server-server-api/#post_matrixkeyv2query
        """
        criteria = {
            server: {key_id: {"minimum_valid_until_ts": valid_until_ts} for key_id, valid_until_ts in keys.items()}
            for server, keys in wanted.items()
        }
        content = encode_canonical_json({"server_keys": criteria})
        path = "/_matrix/key/v2/query"
        limits = replace(KEYS_OF_NOTARY, purpose=purpose)
        answer = await self._request("POST", notary, path, content=content, is_signed=False, limits=limits)
        return list(_require_objects(notary, answer, "server_keys"))

    # -- all of them ---------------------------------------------------------------------------------------------------

    async def _request(
        self,
        method: str,
        destination: str,
        path: str,
        *,
        content: bytes | None = None,
        is_signed: bool = True,
        limits: Limits = SMALL,
        is_pair: bool = False,
        may_be_ours: bool = False,
    ) -> JsonObject:
        """Send a request and return the JSON object of the answer. ``content`` is canonical JSON; ``is_pair``
        says that the object comes as ``[200, {...}]``.
        """
        if destination == self._server_name and not may_be_ours:
            raise RemoteUnreachable(destination, "this is our own server")
        if not self._permitted.permits(destination):
            raise RemoteRefused(
                destination, 403, "M_FORBIDDEN", "The administrator does not let us speak to this server"
            )
        spool = self._reader.spool(limits) if limits.lists else None
        async with self._http.places.hold(limits.purpose, destination):
            answer = await self._exchange(method, destination, path, content, limits, spool, is_signed=is_signed)
        if not 200 <= answer.status < 300:
            _refuse(destination, answer)
        if spool is not None:
            value = await self._reader.read(destination, spool, limits, is_pair=is_pair)
        else:
            value = _parse(destination, answer.body)
            value = second_of_pair(value) if is_pair else value
        if not isinstance(value, dict):
            raise RemoteUnreachable(destination, "the answer is not a JSON object")
        return value

    async def _exchange(
        self,
        method: str,
        destination: str,
        path: str,
        content: bytes | None,
        limits: Limits,
        spool: Spool | None,
        *,
        is_signed: bool,
    ) -> Answer:
        place = await self._discovery.resolve(destination)
        try:
            url = httpx.URL(f"https://{place.host_header}{path}")
        except (httpx.InvalidURL, ValueError) as error:
            raise RemoteUnreachable(destination, f"no URL for it: {error}") from error
        headers = {}
        if content is not None:
            headers["Content-Type"] = "application/json"
        if is_signed:
            uri = url.raw_path.decode("ascii")
            headers["Authorization"] = sign_request(self._signing_keys.current, method, uri, destination, content)
        try:
            answer = await self._http.request(
                method,
                url,
                bytes_max=min(limits.bytes_max, SMALL.bytes_max),
                headers=headers,
                body=content,
                timeouts=limits.timeouts,
                destination=place,
                spool=spool,
            )
        except RemoteUnreachable as error:
            self._http.places.did_not_answer(destination)
            kind = RemoteBrokeOff if isinstance(error, RemoteBrokeOff) else RemoteUnreachable
            raise kind(destination, error.message) from error
        self._http.places.answered(destination)
        return answer


def _path(prefix: str, *segments: str, query: Sequence[tuple[str, str]] = ()) -> str:
    path = "/".join((prefix, *(quote(segment, safe="") for segment in segments)))
    return f"{path}?{urlencode(query, quote_via=quote, safe='')}" if query else path


def _parse(destination: str, body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except ValueError as error:
        raise RemoteUnreachable(destination, "the answer is not JSON") from error


def _refuse(destination: str, answer: Answer) -> NoReturn:
    """Raise the error for an answer with an error status."""
    try:
        body = orjson.loads(answer.body)
    except orjson.JSONDecodeError:
        body = None
    errcode = body.get("errcode") if isinstance(body, dict) else None
    text = body.get("error") if isinstance(body, dict) else None
    room_version = body.get("room_version") if isinstance(body, dict) else None
    retry_after_ms = body.get("retry_after_ms") if isinstance(body, dict) else None
    raise RemoteRefused(
        destination,
        answer.status,
        errcode[:ERROR_TEXT_MAX] if isinstance(errcode, str) else "M_UNKNOWN",
        text[:ERROR_TEXT_MAX] if isinstance(text, str) else "",
        room_version=room_version[:ROOM_VERSION_MAX] if isinstance(room_version, str) else None,
        retry_after_ms=max(0, min(retry_after_ms, RETRY_AFTER_MS_MAX)) if type(retry_after_ms) is int else None,
    )


def _is_unknown_endpoint(error: RemoteRefused) -> bool:
    """Whether the error means that an older server does not have the endpoint.

    https://spec.matrix.org/v1.19/server-server-api/#unsupported-endpoints
    """
    # Before the specification required M_UNRECOGNIZED, it was any 400 or 404 without a Matrix error code.
    return error.status in {400, 404, 405} and error.errcode in {"M_UNRECOGNIZED", "M_UNKNOWN"}


def _template(destination: str, answer: JsonObject) -> JsonObject:
    _require_object(destination, answer, "event")
    # "If not provided, the room version is assumed to be either "1" or "2"."
    if not isinstance(answer.setdefault("room_version", "1"), str):
        raise RemoteUnreachable(destination, "room_version in the answer is not a string")
    return answer


def _require_object(destination: str, answer: JsonObject, name: str) -> JsonObject:
    value = answer.get(name)
    if not isinstance(value, dict):
        raise RemoteUnreachable(destination, f"{name} in the answer is not an object")
    return value


def _require_objects(destination: str, answer: JsonObject, *names: str) -> Sequence[JsonObject]:
    """The first of these lists; all of them must be lists of objects."""
    for name in names:
        _require_list_of(destination, answer, name, dict)
    value: Sequence[JsonObject] = answer[names[0]]
    return value


def _require_list_of(destination: str, answer: JsonObject, name: str, kind: type) -> None:
    if not is_list_of(answer.get(name), kind):
        raise RemoteUnreachable(destination, f"{name} in the answer is not a list as it should be")
