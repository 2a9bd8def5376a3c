"""How an endpoint gets the services that it needs: by class, from ``app.state.services``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from functools import cache
from typing import Any, TypeVar

from fastapi import Depends
from starlette.requests import Request

T = TypeVar("T")


def by_class(*parts: Any, singles: Iterable[Any] = ()) -> dict[type, Any]:
    """Index services by class: those in the fields of each part, which is a dataclass, and single ones."""
    found = {type(single): single for single in singles}
    for part in parts:
        for field in fields(part):
            value = getattr(part, field.name)
            found[type(value)] = value
    return found


def get_service(request: Request, kind: type[T]) -> T:
    """The application's instance of a class, for plain Starlette endpoints."""
    found: T = request.app.state.services[kind]
    return found


def find_service(request: Request, kind: type[T]) -> T | None:
    """The same, or None in an application that has none."""
    services: dict[type, Any] = getattr(request.app.state, "services", {}) if "app" in request.scope else {}
    return services.get(kind)


@cache
def service(kind: type[Any]) -> Any:
    """The same as a FastAPI dependency: ``profiles: Annotated[Profiles, service(Profiles)]``."""

    # This is a coroutine function because FastAPI runs plain functions on a thread.
    async def instance(request: Request) -> Any:
        return request.app.state.services[kind]

    return Depends(instance)
