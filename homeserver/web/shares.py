"""What a request holds of things that all requests share, such as memory for bodies, and gives back at its end."""

from __future__ import annotations

from collections.abc import Callable

from starlette.types import Scope

_SHARES = "homeserver.shares"


def hold(scope: Scope, give_back: Callable[[], None]) -> None:
    """Have ``give_back`` called when the request is answered, or when what is left of its answer waits in a file."""
    scope.setdefault(_SHARES, []).append(give_back)


def give_back_all(scope: Scope) -> None:
    """Give back everything that a request holds."""
    shares: list[Callable[[], None]] | None = scope.pop(_SHARES, None)
    for give_back in shares or ():
        give_back()
