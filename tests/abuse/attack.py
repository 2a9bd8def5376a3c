"""What an attack is, and the register of all of them."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from tests.abuse import attacks

if TYPE_CHECKING:
    from tests.abuse.stage import Stage

Course = Callable[["Stage"], Iterator[None]]
"""Prepares, yields once, and attacks: what comes before the ``yield`` is not measured."""


@dataclass(frozen=True)
class Attack:
    """One attack; made by ``@attack``."""

    name: str
    course: Course
    is_quick: bool
    """Whether it is part of ``make test``: it then takes a few seconds."""
    databases: tuple[str, ...]
    """Of ``sqlite`` and ``postgresql``: the second for what weighs on the database."""
    rows_max: int
    """How many rows it may leave in the database, all tables together."""
    memory_mib_max: float
    settings: str
    """More of ``homeserver.toml``: whole tables."""

    @property
    def subject(self) -> str:
        """The module that it is in."""
        return self.course.__module__.rpartition(".")[2]

    @property
    def summary(self) -> str:
        """The first line of its docstring."""
        return (self.course.__doc__ or "").strip().partition("\n")[0]


_register: dict[str, Attack] = {}


def attack(
    *,
    quick: bool = False,
    databases: tuple[str, ...] = ("sqlite",),
    rows_max: int = 100,
    memory_mib_max: float = 64,
    settings: str = "",
) -> Callable[[Course], Course]:
    """Register a function as an attack under its own name; see ``Attack``."""

    def register(course: Course) -> Course:
        name = course.__name__
        assert name not in _register, f"two attacks are called {name}"
        _register[name] = Attack(name, course, quick, databases, rows_max, memory_mib_max, settings)
        return course

    return register


@cache
def all_attacks() -> dict[str, Attack]:
    """Every attack by its name, in the order of modules and of the functions in them."""
    for module in sorted(pkgutil.iter_modules(attacks.__path__), key=lambda found: found.name):
        importlib.import_module(f"{attacks.__name__}.{module.name}")
    return _register
