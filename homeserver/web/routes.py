"""Finds the endpoint of a request: splits the path as it was sent, and decodes each segment by itself.

Starlette decodes the path before it looks for a route, so that a ``%2F`` inside a room alias or a state key would split
it, and it tries one regular expression for each route in turn. A tree of segments does neither, and takes the same time
for any number of routes.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, unquote_to_bytes

from fastapi.routing import APIRouter, RouteContext, iter_route_contexts
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Host, Mount, Route, Router, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from homeserver.errors import InvalidParam, Unrecognized

MAY_BE_EMPTY = frozenset({"key_id", "state_key"})
"""Path parameters that may be empty: the path then ends with a slash."""

_PARAMETER = re.compile(r"\{(?P<name>[A-Za-z_]\w*)(?::(?P<kind>str|path))?\}\Z")


@dataclass(frozen=True, slots=True)
class _Endpoint:
    """One route: its endpoint, and the names of its path parameters in order."""

    app: ASGIApp
    endpoint: Any
    route: BaseRoute
    names: tuple[str, ...]
    is_plain: bool = False
    """Whether it is a Starlette route whose endpoint is a coroutine function that takes the request."""


@dataclass(slots=True)
class _Node:
    """One segment of the paths of all routes."""

    literals: dict[str, _Node] = field(default_factory=dict)
    parameter: _Node | None = None
    parameter_may_be_empty: bool = False
    endpoints: dict[str, _Endpoint] = field(default_factory=dict)
    """By method: the routes that end here."""
    tails: dict[str, _Endpoint] = field(default_factory=dict)
    """By method: the routes whose last parameter takes the whole rest of the path."""


class RouteIndex:
    """The ASGI application inside the router: passes each request to its route.

    Routes with plain parameters (``{name}``, and ``{name:path}`` at the end) are in the tree. Mounted applications come
    after them, matched by Starlette. An alias is another name for a path prefix: all routes below the prefix can be
    reached below the alias too. The tree is built at the first request, and again after a route was added.
    """

    def __init__(self, router: APIRouter, aliases: Mapping[str, str] | None = None) -> None:
        self._router = router
        self._aliases = aliases or {}
        self._built_from = -1
        self._root = _Node()
        self._fixed: dict[bytes, dict[str, _Endpoint]] = {}
        """By path and method: the plain routes without parameters."""
        self._mounted: Router | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request. Raises ``Unrecognized`` (404) and HTTPException 405, which ``edge`` turns into answers."""
        if scope["type"] != "http":
            await self._router.app(scope, receive, send)
            return
        if self._built_from != len(self._router.routes):
            self._build()
        search = _Search(path_segments(scope), scope["method"])
        found = search.find(self._root)
        if found is None and scope["method"] == "HEAD":
            search.method = "GET"
            found = search.find(self._root)
        if found is None:
            if search.other_methods:
                raise HTTPException(405, headers={"Allow": ", ".join(sorted(search.other_methods | {"OPTIONS"}))})
            if self._mounted is None:
                raise Unrecognized()
            await self._mounted.app(scope, receive, send)
            return
        scope["router"] = self._router
        scope["route"] = found.route
        scope["endpoint"] = found.endpoint
        scope["path_params"] = dict(zip(found.names, search.values, strict=True))
        await found.app(scope, receive, send)

    def plain_endpoint(self, scope: Scope) -> Callable[[Request], Awaitable[Response]] | None:
        """The endpoint of a request if it is a plain Starlette one, with ``path_params`` set; otherwise None."""
        if self._built_from != len(self._router.routes):
            self._build()
        fixed = self._fixed.get(scope.get("raw_path") or b"")
        if fixed is not None and (known := fixed.get(scope["method"])) is not None:
            scope["route"] = known.route
            scope["path_params"] = {}
            return known.endpoint  # type: ignore[no-any-return]
        try:
            search = _Search(path_segments(scope), scope["method"])
        except InvalidParam:
            return None
        found = search.find(self._root)
        if found is None or not found.is_plain:
            return None
        scope["route"] = found.route
        scope["path_params"] = dict(zip(found.names, search.values, strict=True))
        endpoint: Callable[[Request], Awaitable[Response]] = found.endpoint
        return endpoint

    def _build(self) -> None:
        routes = list(self._router.routes)
        self._root = _Node()
        mounted: list[BaseRoute] = []
        for context in iter_route_contexts(routes):
            if isinstance(context.route, Mount | Host | WebSocketRoute):
                mounted.append(context.route)
            else:
                _insert(self._root, context)
        for alias, prefix in self._aliases.items():
            *parents, last = alias.split("/")
            node = self._root
            for segment in parents:
                node = node.literals.setdefault(segment, _Node())
            node.literals[last] = _descend(self._root, prefix)
        self._fixed = dict(_fixed_paths(self._root, ()))
        self._mounted = Router(mounted, redirect_slashes=False) if mounted else None
        self._built_from = len(routes)


def _fixed_paths(node: _Node, segments: tuple[str, ...]) -> Iterator[tuple[bytes, dict[str, _Endpoint]]]:
    """The plain routes without parameters at a node and below it, by path and method."""
    plain = {method: endpoint for method, endpoint in node.endpoints.items() if endpoint.is_plain}
    if plain:
        yield "/".join(segments).encode(), plain
    for segment, child in node.literals.items():
        yield from _fixed_paths(child, (*segments, segment))


def _descend(node: _Node, prefix: str) -> _Node:
    for segment in prefix.split("/"):
        node = node.literals.setdefault(segment, _Node())
    return node


def path_segments(scope: Scope) -> list[str]:
    """The segments of the request's path, decoded; the first one, before the leading slash, is empty.

    Raises ``InvalidParam`` for a path that is not UTF-8 or has a NUL in it, which no identifier may have.
    """
    raw: bytes | None = scope.get("raw_path")
    path = quote(scope["path"]) if raw is None else raw.decode("latin-1")
    if "%" not in path and path.isascii():
        return path.split("/")
    try:
        # A path should be ASCII, but some clients send UTF-8 without percent-encoding.
        segments = [s if "%" not in s and s.isascii() else _decoded(s) for s in path.split("/")]
    except UnicodeDecodeError:
        raise InvalidParam("The path is not UTF-8") from None
    if "\0" in "".join(segments):
        raise InvalidParam("The path has a NUL in it")
    return segments


def _decoded(segment: str) -> str:
    return unquote_to_bytes(segment.encode("latin-1")).decode()


class _Search:
    """Searches the tree for one path. Literal segments take precedence over parameters."""

    __slots__ = ("method", "other_methods", "segments", "values")

    def __init__(self, segments: list[str], method: str) -> None:
        self.segments = segments
        self.method = method
        self.values: list[str] = []
        """The values of the path parameters so far."""
        self.other_methods: set[str] = set()
        """The methods that routes with this path have."""

    def find(self, root: _Node) -> _Endpoint | None:
        """The endpoint for the path."""
        node = root
        for segment in self.segments:  # nearly always, the first way that offers itself leads to the end
            following = node.literals.get(segment)
            if following is None:
                following = node.parameter
                if following is None or not segment:
                    break
                self.values.append(segment)
            node = following
        else:
            if (found := node.endpoints.get(self.method)) is not None:
                return found
        self.values.clear()
        return self._below(root, 0)

    def _below(self, node: _Node, index: int) -> _Endpoint | None:
        """The endpoint for the segments from ``index`` on; tries one way after the other."""
        if index == len(self.segments):
            return self._by_method(node.endpoints)
        segment = self.segments[index]
        child = node.literals.get(segment)
        if child is not None and (found := self._below(child, index + 1)) is not None:
            return found
        child = node.parameter
        if child is not None and (segment or (node.parameter_may_be_empty and index == len(self.segments) - 1)):
            self.values.append(segment)
            if (found := self._below(child, index + 1)) is not None:
                return found
            self.values.pop()
        if node.tails and (found := self._by_method(node.tails)) is not None:
            self.values.append("/".join(self.segments[index:]))
            return found
        return None

    def _by_method(self, endpoints: dict[str, _Endpoint]) -> _Endpoint | None:
        found = endpoints.get(self.method)
        if found is None:
            self.other_methods.update(endpoints)
        return found


def _insert(root: _Node, context: RouteContext) -> None:
    path = context.path
    if path is None:
        raise TypeError(f"a route without a path: {context.route!r}")
    node, names = root, list[str]()
    segments = path.split("/")
    for index, segment in enumerate(segments):
        parameter = _PARAMETER.match(segment)
        if parameter is None:
            if "{" in segment:
                raise TypeError(f"{path}: a segment is a word, {{name}}, or {{name:path}} at the end")
            node = node.literals.setdefault(segment, _Node())
            continue
        names.append(parameter["name"])
        if parameter["kind"] == "path":
            if index != len(segments) - 1:
                raise TypeError(f"{path}: {segment} may only stand at the end")
            _add(node.tails, context, names)
            return
        if node.parameter is None:
            node.parameter = _Node()
        node.parameter_may_be_empty |= parameter["name"] in MAY_BE_EMPTY
        node = node.parameter
    _add(node.endpoints, context, names)


def _add(endpoints: dict[str, _Endpoint], context: RouteContext, names: Iterable[str]) -> None:
    route = context.original_route
    is_plain = type(route) is Route and inspect.iscoroutinefunction(context.endpoint)
    endpoint = _Endpoint(context.app, context.endpoint, route, tuple(names), is_plain)
    for method in context.methods or ("GET",):
        endpoints.setdefault(method, endpoint)
