"""The house rules that a machine can check: one-way imports, a pure core, nothing unfinished, words kept."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from homeserver.config import known_keys
from homeserver.storage import migrate

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "homeserver"
MODULES = sorted(PACKAGE.rglob("*.py"))

FLOORS: tuple[frozenset[str], ...] = tuple(
    frozenset(floor.split())
    for floor in (
        "errors",
        "protocol",
        "governance",
        "config clock caches metrics",
        "logging",
        "outbound",
        "storage",
        "signing notifier",
        "foundation",
        "limits",
        "federation",
        "graph",
        "reading",
        "membership",
        "rooms",
        "ephemeral",
        "devices",
        "accounts",
        "sync",
        "media push appservices moderation",
        "housekeeping",
        "web",
        "client_api federation_api console server",
        "governance_api",  # its access token is that of the client-server API
        "app",
        "cli",
        "__main__",
    )
)
"""From the ground up: a part imports only from the floors below its own, and from itself."""

NOT_PURE = re.compile(
    r"(asyncio|concurrent|datetime|fastapi|http|httpx|logging|multiprocessing|os|pathlib|random|secrets|socket|sqlalchemy"
    r"|ssl|starlette|structlog|subprocess|tempfile|threading|time|urllib\.request|uuid)\b"
)
"""What the pure core does without: I/O, clocks, randomness, threads, stores."""

SPEC_LINK = re.compile(r"https://spec\.matrix\.org/[^\s`)>\"']*")
SPEC_PAGE = re.compile(
    r"https://spec\.matrix\.org/v1\.19/"
    r"((client-server|server-server|application-service|identity-service|push-gateway)-api|appendices|olm-megolm|rooms"
    r"|rooms/v([1-9]|1[0-2]))?/?(#[a-z0-9_.\-]+)?"
)
ARGUMENTS_MAX = 8
"""Of a constructor, besides self."""
LINES_MAX = 650
"""Of a module."""
UNFINISHED = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")


def floor_of(part: str) -> int:
    for number, floor in enumerate(FLOORS):
        if part in floor:
            return number
    raise AssertionError(f"homeserver.{part} has no floor: add it to FLOORS, and say there what it may import")


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every import, also of those inside functions and for type checking only."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            assert node.module is not None
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def where(path: Path, line: int) -> str:
    return f"{path.relative_to(ROOT)}:{line}"


def test_imports_go_one_way() -> None:
    wrong = []
    for path in MODULES:
        part = part_of(path)
        if part == "__init__":
            continue
        for line, name in imports_of(path):
            top, _, rest = name.partition(".")
            imported = rest.partition(".")[0]
            if top != "homeserver" or imported in (part, "__version__", ""):
                continue
            if floor_of(imported) >= floor_of(part):
                wrong.append(f"{where(path, line)} imports {name}")
    assert wrong == []


@pytest.mark.parametrize("part", ["protocol", "governance"])
def test_the_core_is_pure(part: str) -> None:
    wrong = []
    for path in sorted((PACKAGE / part).rglob("*.py")):
        wrong += [f"{where(path, line)} imports {name}" for line, name in imports_of(path) if NOT_PURE.match(name)]
        wrong += [
            f"{where(path, node.lineno)} is async"
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.AsyncFunctionDef)
        ]
    assert wrong == []


def test_sql_lives_only_in_storage() -> None:
    """Elsewhere a connection may be passed through, and an error of the database be recognised; nothing is asked."""
    allowed = re.compile(r"sqlalchemy\.(Connection|exc\.\w+)")
    wrong = [
        f"{where(path, line)} imports {name}"
        for path in MODULES
        if part_of(path) != "storage"
        for line, name in imports_of(path)
        if name.startswith("sqlalchemy") and not allowed.fullmatch(name)
    ]
    assert wrong == []


def test_no_constructor_takes_everything() -> None:
    """More than eight arguments are a sign of two services in one class. (A dataclass, which has no __init__, may.)"""
    wrong = []
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name == "__init__":
                arguments = node.args
                count = len(arguments.posonlyargs + arguments.args + arguments.kwonlyargs) - 1
                if count > ARGUMENTS_MAX:
                    wrong.append(f"{where(path, node.lineno)} takes {count} arguments")
    assert wrong == []


def test_modules_are_short_enough_to_read() -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in MODULES}
    assert [where(path, length) for path, length in lengths.items() if length > LINES_MAX] == []


def test_nothing_is_left_unfinished() -> None:
    wrong = []
    for path in MODULES:
        text = path.read_text()
        wrong += [where(path, number) for number, line in enumerate(text.splitlines(), 1) if UNFINISHED.search(line)]
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Raise) and node.exc is not None and "NotImplementedError" in ast.dump(node.exc):
                wrong.append(f"{where(path, node.lineno)} raises NotImplementedError")
    assert wrong == []


def test_links_to_the_specification_are_of_one_version_and_lead_to_a_page() -> None:
    wrong = [
        f"{where(path, number)} {link}"
        for path in MODULES
        for number, line in enumerate(path.read_text().splitlines(), 1)
        for link in SPEC_LINK.findall(line)
        if not SPEC_PAGE.fullmatch(link.rstrip(".,;:"))
    ]
    assert wrong == []


def test_every_package_tells_its_story() -> None:
    silent = [
        str(path.relative_to(ROOT))
        for path in MODULES
        if path.name == "__init__.py" and not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert silent == []


@pytest.mark.parametrize("key", sorted(known_keys()))
def test_every_configuration_key_is_described(key: str) -> None:
    assert f"| `{key}` |" in (ROOT / "docs" / "operations.md").read_text()


def test_no_configuration_key_is_described_that_is_not_there() -> None:
    described = re.findall(r"^\| `([a-z_.]+)` \|", (ROOT / "docs" / "operations.md").read_text(), re.MULTILINE)
    assert set(described) == set(known_keys())


def test_every_error_stands_in_the_tree() -> None:
    """errors.py prints its tree at the top; its upper branches are complete, the leaves are examples."""
    tree = ast.parse((PACKAGE / "errors.py").read_text())
    printed = ast.get_docstring(tree) or ""
    upper = [
        node.name
        for node in tree.body
        if isinstance(node, ast.ClassDef)
        and any(isinstance(base, ast.Name) and base.id in ("HomeserverError", "RemoteError") for base in node.bases)
    ]
    assert [name for name in upper if name not in printed] == []


def test_migrations_are_numbered_without_gaps() -> None:
    revisions = migrate.known_revisions()
    assert revisions == [f"{number:04}" for number in range(1, len(revisions) + 1)]
