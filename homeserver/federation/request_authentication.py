"""Signs outgoing requests, and authenticates incoming ones.

https://spec.matrix.org/v1.19/server-server-api/#request-authentication
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import orjson
from nacl.signing import VerifyKey

from homeserver.clock import Clock
from homeserver.errors import Forbidden, InvalidEvent, InvalidParam, Unauthorized
from homeserver.federation.permitted_servers import PermittedServers
from homeserver.protocol.canonical_json import encode_canonical_json
from homeserver.protocol.events import Signer
from homeserver.protocol.identifiers import is_valid_server_name
from homeserver.protocol.json_types import JsonObject
from homeserver.protocol.signatures import ALGORITHM, VerifyKeyData, is_signature_of

HEADER_CHARACTERS_MAX = 4096
HEADERS_MAX = 10
"""How many Authorization headers one request may have: older servers send one for each of their keys."""
PARAMETERS_MAX = 20

_SCHEME = re.compile(r"X-Matrix +", re.IGNORECASE)
# One parameter: a name, and a value that is quoted or bare. Bare values may contain characters that `token` forbids,
# above all colons, as older servers send them. No character fits two branches, so matching takes linear time.
_PARAMETER = re.compile(r'([!#$%&\'*+.^_`|~0-9A-Za-z-]+)[ \t]*=[ \t]*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))[ \t]*(?=,|\Z)')
_SEPARATOR = re.compile(r"[ \t]*(?:,[ \t]*)*")
_ESCAPED = re.compile(r"\\(.)")


@dataclass(frozen=True, slots=True)
class XMatrix:
    """The parameters of an ``Authorization: X-Matrix`` header."""

    origin: str
    destination: str | None
    """``None`` if an older server does not send it."""
    key_id: str
    signature: str


@dataclass(frozen=True, slots=True)
class Claimant:
    """A server that a request claims to come from, and its keys that the request names: nothing is proved yet."""

    origin: str
    claims: Sequence[tuple[XMatrix, VerifyKey]]
    """At least one."""

    def has_signed(self, method: str, uri: str, content: bytes | None) -> bool:
        """Whether one of the signatures covers the request.

        ``uri`` is the path with its query exactly as received; ``content`` is the body as it was signed, None without
        a body.
        """
        try:
            return any(
                is_signature_of(
                    _signed_request(method, uri, self.origin, claim.destination, content), claim.signature, verify_key
                )
                for claim, verify_key in self.claims
            )
        except TypeError:  # orjson.JSONEncodeError is one: what has no JSON cannot have been signed
            return False


class VerifyKeySource(Protocol):
    """Knows the keys of other servers; the key ring implements it."""

    async def are_known(self, server: str, wanted: Mapping[str, int]) -> bool:
        """See ``KeyRing.are_known``."""

    async def keys_for(self, wanted: Mapping[str, Mapping[str, int]]) -> Mapping[str, Mapping[str, VerifyKeyData]]:
        """See ``KeyRing.keys_for``."""


def sign_request(signer: Signer, method: str, uri: str, destination: str, content: JsonObject | bytes | None) -> str:
    """The ``Authorization`` header of a request of ours.

    ``uri`` is the path with its query, exactly as it is sent; ``content`` is the body, as an object or as the canonical
    JSON of one.

    https://spec.matrix.org/v1.19/server-server-api/#request-authentication
    """
    if content is not None and not isinstance(content, bytes):
        content = encode_canonical_json(content)
    signature = signer.sign(_signed_request(method, uri, signer.server_name, destination, content))
    return f'X-Matrix origin="{signer.server_name}",destination="{destination}",key="{signer.key_id}",sig="{signature}"'


def parse_x_matrix(header: str) -> XMatrix:
    """Parse an ``Authorization`` header, as leniently as the specification requires. Raises ``Unauthorized``.

    https://datatracker.ietf.org/doc/html/rfc9110#section-11.4
    """
    # "the header begins with authorisation scheme `X-Matrix`, followed by one or more spaces, followed by a
    # comma-separated list of parameters written as name=value pairs. Zero or more spaces and tabs around each comma
    # are allowed. The names are case insensitive and order does not matter."
    if len(header) > HEADER_CHARACTERS_MAX:
        raise Unauthorized("The Authorization header is too long")
    scheme = _SCHEME.match(header)
    if scheme is None:
        raise Unauthorized("The Authorization header is not of the scheme X-Matrix")
    parameters = _parse_parameters(header, scheme.end())
    try:
        return XMatrix(
            origin=parameters["origin"],
            destination=parameters.get("destination"),
            key_id=parameters["key"],
            signature=parameters["sig"],
        )
    except KeyError as error:
        raise Unauthorized(f"The Authorization header lacks {error.args[0]}") from None


def _parse_parameters(header: str, position: int) -> dict[str, str]:
    header = header.rstrip(" \t")
    parameters: dict[str, str] = {}
    while True:
        separator = _SEPARATOR.match(header, position)
        assert separator is not None  # the pattern matches the empty string too
        position = separator.end()
        if position >= len(header):
            return parameters
        parameter = _PARAMETER.match(header, position)
        if parameter is None or len(parameters) == PARAMETERS_MAX:
            raise Unauthorized("The Authorization header is malformed")
        name, quoted, bare = parameter.groups()
        if name.lower() in parameters:
            raise Unauthorized(f"The Authorization header says {name.lower()} twice")
        # "a backslash-character pair is replaced by the character that follows the backslash"
        parameters[name.lower()] = bare if quoted is None else _ESCAPED.sub(r"\1", quoted)
        position = parameter.end()


class RequestAuthenticator:
    """Finds out which server a request comes from."""

    def __init__(
        self,
        server_name: str,
        key_ring: VerifyKeySource,
        clock: Clock,
        permitted: PermittedServers | None = None,
        *,
        requires_destination: bool = False,
    ) -> None:
        self._server_name = server_name
        self._key_ring = key_ring
        self._clock = clock
        self._permitted = permitted or PermittedServers()
        self._requires_destination = requires_destination

    async def authenticate(
        self, method: str, uri: str, authorization_headers: Sequence[str], content: Any | None
    ) -> str:
        """The name of the server that made a request, whose body is given as parsed JSON (None without a body).

        Raises what ``identify`` raises, and ``Unauthorized`` without a valid signature.
        """
        claimant = await self.identify(authorization_headers)
        if not claimant.has_signed(method, uri, None if content is None else canonical_content(content)):
            raise Unauthorized("The signature of the request is wrong")
        return claimant.origin

    async def identify(
        self, authorization_headers: Sequence[str], on_stranger: Callable[[], None] | None = None
    ) -> Claimant:
        """The server that a request claims to come from, with valid keys, judged by its headers alone.

        This is what can be checked before the body is read. ``on_stranger`` is called before its server is asked for
        keys that are not known here, and may raise.

        Raises ``InvalidParam`` if the origin is not a server name, ``Unauthorized`` if it has no such key or the
        request is for another server, and ``Forbidden`` for a server that the administrator does not allow.
        """
        claims = self._claims(authorization_headers)
        origin = claims[0].origin
        if not self._permitted.permits(origin):
            raise Forbidden("This server does not federate with yours")
        now = self._clock.now_ms()
        wanted = {claim.key_id: now for claim in claims}
        if on_stranger is not None and not await self._key_ring.are_known(origin, wanted):
            on_stranger()
        keys = (await self._key_ring.keys_for({origin: wanted})).get(origin, {})
        usable = [
            (claim, data.key)
            for claim in claims
            if (data := keys.get(claim.key_id)) is not None and _is_valid(data, now)
        ]
        if not usable:
            raise Unauthorized(f"No valid key of {origin} with the ID {claims[0].key_id} could be found")
        return Claimant(origin, usable)

    def _claims(self, headers: Sequence[str]) -> list[XMatrix]:
        """The parsed headers, which must all name one origin, and this server as the destination."""
        if not headers:
            raise Unauthorized("Missing Authorization header")
        if len(headers) > HEADERS_MAX:
            raise Unauthorized("Too many Authorization headers")
        claims = [parse_x_matrix(header) for header in headers]
        if any(claim.origin != claims[0].origin for claim in claims):
            raise Unauthorized("The Authorization headers disagree on the origin")
        if not is_valid_server_name(claims[0].origin):
            raise InvalidParam("The origin is not a server name")
        if claims[0].origin == self._server_name:
            raise Unauthorized("The origin is this server itself")
        for claim in claims:
            # "If this property is included, but the value does not match the receiving server's name, the receiving
            # server must deny the request with an HTTP status code 401 Unauthorized."
            if claim.destination is not None and claim.destination != self._server_name:
                raise Unauthorized("The request is for another server")
            if claim.destination is None and self._requires_destination:
                raise Unauthorized("The Authorization header lacks destination")
            if not claim.key_id.startswith(f"{ALGORITHM}:"):
                raise Unauthorized("The key is not of an algorithm that is known here")
        return claims


def canonical_content(content: Any) -> bytes:
    """The body of a request in the form in which it was signed. Raises ``Unauthorized`` if it has none."""
    try:
        return encode_canonical_json(content)
    except (InvalidEvent, TypeError) as error:  # orjson.JSONEncodeError is a TypeError
        raise Unauthorized("The request has no canonical form that could be signed") from error


def _is_valid(data: VerifyKeyData, now: int) -> bool:
    # Old keys are for events only, whatever time their server says that they expire: a key that has leaked must not
    # speak for its server any more.
    return not data.is_old and (data.valid_until_ts is None or data.valid_until_ts >= now)


def _signed_request(method: str, uri: str, origin: str, destination: str | None, content: bytes | None) -> bytes:
    """The bytes that the signature of a request covers, as canonical JSON; ``content`` is canonical JSON already."""
    # An older server that does not send the destination has not signed it either.
    parts = [b'"content":' + content] if content is not None else []
    if destination is not None:
        parts.append(b'"destination":' + orjson.dumps(destination))
    parts += [
        b'"method":' + orjson.dumps(method),
        b'"origin":' + orjson.dumps(origin),
        b'"uri":' + orjson.dumps(uri),
    ]
    return b"{" + b",".join(parts) + b"}"
