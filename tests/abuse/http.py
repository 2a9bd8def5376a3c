"""A blocking HTTP client: it costs little, and nothing but its own socket can make it wait."""

from __future__ import annotations

import contextlib
import http.client
import json
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import urlsplit

SECONDS_MAX = 60.0
"""An attack that holds a request for longer than this has won anyway."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A response, and how long it took from the request's first byte to the answer's last."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    seconds: float

    def json(self) -> Any:
        """The body, parsed."""
        return json.loads(self.body)


class NoAnswer(Exception):
    """The connection broke, or the answer did not come in time."""

    def __init__(self, what: str, seconds: float) -> None:
        self.seconds = seconds
        super().__init__(what)


class Connection:
    """One connection, used for one request at a time; it is opened anew when the server has closed it."""

    def __init__(self, base_url: str, tls: ssl.SSLContext | None = None, seconds_max: float = SECONDS_MAX) -> None:
        url = urlsplit(base_url)
        host, port = url.hostname or "127.0.0.1", url.port or 80
        self._connection: http.client.HTTPConnection = (
            http.client.HTTPConnection(host, port, timeout=seconds_max)
            if tls is None
            else http.client.HTTPSConnection(host, port, timeout=seconds_max, context=tls)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def request(
        self, method: str, target: str, body: bytes | Any = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Send a request; a body that is not bytes is sent as JSON. Raises ``NoAnswer``."""
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        began = time.perf_counter()
        for is_last in (False, True):
            is_new = self._connection.sock is None
            try:
                self._connection.request(method, target, body, dict(headers or {}))
                response = self._connection.getresponse()
                content = response.read()
            except (OSError, http.client.HTTPException) as error:
                self._connection.close()
                if is_new or is_last or isinstance(error, TimeoutError):
                    raise NoAnswer(f"{method} {target[:200]}: {error!r}", time.perf_counter() - began) from error
                continue  # the server had closed the connection since the last request
            return Answer(response.status, dict(response.headers), content, time.perf_counter() - began)
        raise AssertionError

    def close(self) -> None:
        """Hang up."""
        with contextlib.suppress(OSError):
            self._connection.close()


class User:
    """Somebody with an access token."""

    def __init__(self, base_url: str, user_id: str, token: str, seconds_max: float = SECONDS_MAX) -> None:
        self.base_url = base_url
        self.user_id = user_id
        self.headers = {"Authorization": f"Bearer {token}"}
        self._connection = Connection(base_url, seconds_max=seconds_max)

    @classmethod
    def register(cls, base_url: str, localpart: str) -> Self:
        """A new account."""
        body = {"username": localpart, "password": "correct horse battery staple 1", "auth": {"type": "m.login.dummy"}}
        with Connection(base_url) as connection:
            answer = connection.request("POST", "/_matrix/client/v3/register", body)
        assert answer.status == 200, answer
        return cls(base_url, answer.json()["user_id"], answer.json()["access_token"])

    def another(self, seconds_max: float = SECONDS_MAX) -> Self:
        """The same user on a connection of its own, for another thread or with more patience."""
        copy = type(self)(self.base_url, self.user_id, "", seconds_max)
        copy.headers = self.headers
        return copy

    def close(self) -> None:
        """Hang up; the next call connects anew."""
        self._connection.close()

    def call(self, method: str, path: str, body: Any = None) -> Answer:
        """A request below ``/_matrix/client/v3``, whatever the answer is. Raises ``NoAnswer``."""
        return self._connection.request(method, f"/_matrix/client/v3{path}", body, self.headers)

    def ok(self, method: str, path: str, body: Any = None) -> Any:
        """The same, for an answer that must be 200: returns it parsed."""
        answer = self.call(method, path, body)
        assert answer.status == 200, f"{method} {path[:200]}: {answer.status} {answer.body[:300]!r}"
        return answer.json()
