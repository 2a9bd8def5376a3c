"""How an endpoint reaches what it works with: by class, from ``app.state.services``."""

from __future__ import annotations

from functools import cache
from typing import Any, TypeVar

from fastapi import Depends
from starlette.requests import Request

T = TypeVar("T")


def get_service(request: Request, kind: type[T]) -> T:
    """The application's instance of a class, for plain Starlette endpoints."""
    found: T = request.app.state.services[kind]
    return found


@cache
def service(kind: type[Any]) -> Any:
    """The same as a FastAPI dependency: ``profiles: Annotated[Profiles, service(Profiles)]``."""

    # A coroutine function, because FastAPI sends plain functions to a thread.
    async def instance(request: Request) -> Any:
        return request.app.state.services[kind]

    return Depends(instance)
