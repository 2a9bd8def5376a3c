"""Collects the failures of servers that were asked to do something for one of our users."""

from __future__ import annotations

from homeserver.errors import (
    Forbidden,
    IncompatibleRoomVersion,
    LimitExceeded,
    MatrixError,
    NotFound,
    RefusedElsewhere,
    RemoteError,
    RemoteRefused,
)
from homeserver.federation.refusals import as_matrix_error
from homeserver.membership.join_answers import UnusableAnswer


class Attempts:
    """The failures of several servers that were asked one after the other, and the error that results from them."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._failures: list[tuple[str, RemoteError | UnusableAnswer]] = []

    def failed(self, server_name: str, error: RemoteError | UnusableAnswer) -> None:
        """Note that a server did not help."""
        self._failures.append((server_name, error))

    def forbade(self, server_name: str) -> bool:
        """Whether the server has answered that the action is forbidden."""
        return any(name == server_name and _is_forbidden(error) for name, error in self._failures)

    def all_forbade(self, server_name: str) -> bool:
        """Whether all servers, including this one, have answered that the action is forbidden."""
        forbade = [name for name, error in self._failures if _is_forbidden(error)]
        return server_name in forbade and len(forbade) == len(self._failures)

    def error(self) -> MatrixError:
        """The most helpful failure for the user: a clear refusal rather than an unreachable server."""
        if not self._failures:
            return NotFound(f"Could not {self._what}: no server is known that is in it")
        errors = [as_matrix_error(error, self._what) for _, error in self._failures]
        for kind in (Forbidden, IncompatibleRoomVersion, LimitExceeded, RefusedElsewhere):
            for error in errors:
                if isinstance(error, kind):
                    return error
        if all(isinstance(error, NotFound) for error in errors):
            return errors[0]
        return next(error for error in errors if not isinstance(error, NotFound))


def _is_forbidden(error: RemoteError | UnusableAnswer) -> bool:
    return isinstance(error, RemoteRefused) and error.status == 403 and error.errcode == Forbidden.errcode
