"""The one HTTP client: every request of this server to other hosts goes through it.

Answers are bounded in size and time, private addresses are refused unless allowed, redirects are followed only when the
caller asks for it, and environment variables (for proxies, for instance) are ignored. Every failure is
``RemoteUnreachable``, but an HTTP error status is an answer, which the caller judges.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import certifi
import httpx

import homeserver
from homeserver.errors import ConfigurationError, RemoteBrokeOff, RemoteUnreachable
from homeserver.outbound.addresses import AddressResolver, Lookup
from homeserver.outbound.connections import ConnectionPool, Destination
from homeserver.outbound.places import Places
from homeserver.outbound.spools import Spool, SpoolFull

USER_AGENT = f"homeserver/{homeserver.__version__}"
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_DEFAULT_PORTS = {"https": 443, "http": 80}


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long a request may take, in seconds."""

    connect: float = 10.0
    """Resolving the name, connecting and the TLS handshake together."""
    read: float = 30.0
    """How long the other side may send nothing."""
    total: float = 60.0
    """Everything, redirects included."""


DEFAULT_TIMEOUTS: Final = Timeouts()


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer of the other side."""

    status: int
    headers: httpx.Headers
    body: bytes
    """Empty if it went into a spool."""


class OutboundHttp:
    """The HTTP client. One is enough for a process; ``transport`` replaces the network in tests."""

    def __init__(
        self,
        *,
        allow_private_addresses: bool = False,
        verify_certificates: bool = True,
        ca_file: Path | None = None,
        lookup: Lookup | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.places = Places()
        """For requests to other servers; who makes one takes a place first."""
        self._transport = transport or ConnectionPool(
            create_ssl_context(verify=verify_certificates, ca_file=ca_file),
            AddressResolver(allow_private=allow_private_addresses, lookup=lookup),
        )

    async def request(
        self,
        method: str,
        url: httpx.URL | str,
        *,
        bytes_max: int,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        timeouts: Timeouts = DEFAULT_TIMEOUTS,
        redirects_max: int = 0,
        destination: Destination | None = None,
        spool: Spool | None = None,
    ) -> Answer:
        """Send a request and read its whole answer.

        ``bytes_max`` bounds the answer's body. If there is a ``spool``, it takes the body of an answer with a status of
        2xx in place of that, and has its own bound. ``destination`` replaces the host and port of the URL, and the name
        that the certificate must have. Up to ``redirects_max`` redirects are followed, never from https to http, with
        GET and without ``headers`` (they may hold secrets for the first host); the last answer is then returned as it
        is.

        Raises ``RemoteUnreachable``.
        """
        target = _parse_url(url)
        name = destination.host_header if destination is not None else target.netloc.decode("ascii")
        try:
            async with asyncio.timeout(timeouts.total):
                answer = await self._send(method, target, headers, body, bytes_max, timeouts, destination, spool)
                visited = {target}
                for _ in range(redirects_max):
                    if answer.status not in _REDIRECTS or "location" not in answer.headers:
                        break
                    target = _redirect_target(target, answer.headers["location"])
                    if target in visited:
                        raise RemoteUnreachable(name, "redirects in a circle")
                    visited.add(target)
                    answer = await self._send("GET", target, None, None, bytes_max, timeouts, None, spool)
        except TimeoutError as error:
            raise RemoteUnreachable(name, "no answer in time") from error
        except (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError) as error:
            raise RemoteBrokeOff(name, str(error)) from error
        except (httpx.TransportError, SpoolFull) as error:
            raise RemoteUnreachable(name, str(error)) from error
        except OSError as error:  # of the temporary file
            raise RemoteUnreachable(name, f"its answer cannot be stored: {error}") from error
        return answer

    async def _send(
        self,
        method: str,
        url: httpx.URL,
        headers: Mapping[str, str] | None,
        body: bytes | None,
        bytes_max: int,
        timeouts: Timeouts,
        destination: Destination | None,
        spool: Spool | None,
    ) -> Answer:
        request = httpx.Request(
            method,
            url,
            headers={"User-Agent": USER_AGENT, **(headers or {})},
            content=body,
            extensions={
                "destination": destination or destination_of(url),
                "timeout": {"connect": timeouts.connect, "read": timeouts.read},
            },
        )
        response = await self._transport.handle_async_request(request)
        try:
            if spool is not None and response.is_success:
                async for chunk in _plain_chunks(response):
                    await spool.write(chunk)
                return Answer(response.status_code, response.headers, b"")
            return Answer(response.status_code, response.headers, await _read_bounded(response, bytes_max))
        finally:
            await response.aclose()

    async def aclose(self) -> None:
        """Close every connection."""
        await self._transport.aclose()


def destination_of(url: httpx.URL) -> Destination:
    """The destination of an ordinary URL."""
    port = url.port or _DEFAULT_PORTS[url.scheme]
    return Destination(
        tls_name=url.host,
        host_header=url.netloc.decode("ascii"),
        addresses=((url.host, port),),
        is_tls=url.scheme == "https",
    )


def create_ssl_context(*, verify: bool = True, ca_file: Path | None = None) -> ssl.SSLContext:
    """A TLS context for clients, which trusts the system's authorities and those of ``ca_file``.

    Raises ``ConfigurationError`` when ``ca_file`` cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context
    places = ssl.get_default_verify_paths()
    if places.cafile or places.capath:
        context.load_default_certs()
    else:
        context.load_verify_locations(certifi.where())  # the system has no certificate store of its own
    if ca_file is not None:
        try:
            context.load_verify_locations(ca_file)
        except (OSError, ssl.SSLError) as error:
            raise ConfigurationError(
                f"federation.ca_file = {str(ca_file)!r}: not a PEM file of CAs: {error}"
            ) from error
    return context


async def _read_bounded(response: httpx.Response, bytes_max: int) -> bytes:
    with contextlib.suppress(ValueError):
        if int(response.headers.get("content-length", "0")) > bytes_max:
            raise httpx.RemoteProtocolError(f"the answer is larger than {bytes_max} bytes")
    chunks: list[bytes] = []
    size = 0
    async for chunk in _plain_chunks(response):
        size += len(chunk)
        if size > bytes_max:
            raise httpx.RemoteProtocolError(f"the answer is larger than {bytes_max} bytes")
        chunks.append(chunk)
    return b"".join(chunks)


def _plain_chunks(response: httpx.Response) -> httpx.AsyncByteStream:
    encoding = response.headers.get("content-encoding", "identity")
    if encoding.lower() not in {"", "identity"}:
        raise httpx.RemoteProtocolError(f"the answer is compressed ({encoding[:20]!r}), which was not asked for")
    assert isinstance(response.stream, httpx.AsyncByteStream)
    return response.stream


def _parse_url(url: httpx.URL | str) -> httpx.URL:
    try:
        parsed = httpx.URL(url)
        reason = _unusable(parsed)
    except (httpx.InvalidURL, ValueError) as error:
        raise RemoteUnreachable(str(url)[:200], f"not a URL: {error}") from error
    if reason is not None:
        raise RemoteUnreachable(str(url)[:200], reason)
    return parsed


def _unusable(url: httpx.URL) -> str | None:
    if url.scheme not in _DEFAULT_PORTS:
        return "not an http or https URL"
    if not url.host or url.userinfo:
        return "the URL has no host, or a user name"
    if url.port == 0:
        return "the URL has an impossible port"
    return None


def _redirect_target(url: httpx.URL, location: str) -> httpx.URL:
    name = url.netloc.decode("ascii")
    try:
        target = url.join(location).copy_with(fragment=None)
        reason = _unusable(target)
    except (httpx.InvalidURL, ValueError) as error:
        raise RemoteUnreachable(name, f"redirects to an invalid URL: {error}") from error
    if reason is None and url.scheme == "https" and target.scheme != "https":
        reason = "no longer https"
    if reason is not None:
        raise RemoteUnreachable(name, f"redirects to a place that is not allowed: {reason}")
    return target
