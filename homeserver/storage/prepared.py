"""Frequent statements: compiled once, and run with little overhead.

Each time that SQLAlchemy runs a statement, it looks for its compiled form and processes the parameters of every row;
when a room with a thousand members is joined, that takes as long as SQLite itself. Here a statement goes to the driver
as it was compiled the first time, and loops written in C process its rows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import repeat
from operator import itemgetter
from typing import Any, TypeAlias, cast

import orjson
from sqlalchemy import Connection, Delete, Dialect, Insert, Select, Table, Update
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.types import TypeEngine

from homeserver.storage.database import insert

Row: TypeAlias = Mapping[str, Any]
_Statement: TypeAlias = Insert | Update | Delete
_Processor: TypeAlias = Callable[[Any], Any]

_LIST = re.compile(r" IN \(__\[POSTCOMPILE_(\w+)\]\)")
"""How SQLAlchemy renders ``column.in_(bindparam(name, expanding=True))`` before it knows the values."""


class Prepared:
    """A statement with parameters. All rows that it is run with must have the same keys."""

    def __init__(self, build: Callable[[Connection, Row], _Statement]) -> None:
        self._build = build
        self._compiled: dict[str, _Compiled] = {}

    def run(self, connection: Connection, rows: Sequence[Row]) -> int:
        """Run the statement for each row; returns how many rows of the database it affected."""
        if not rows:
            return 0
        compiled = self._compiled.get(connection.dialect.name)
        if compiled is None:
            statement = self._build(connection, rows[0])
            compiled = self._compiled[connection.dialect.name] = _Compiled(statement, rows[0], connection.dialect)
        return connection.exec_driver_sql(compiled.sql, compiled.parameters(rows)).rowcount


class _Compiled:
    """A statement in the form for a driver."""

    def __init__(self, statement: _Statement, row: Row, dialect: Dialect) -> None:
        compiled = statement.compile(dialect=dialect, column_keys=list(row), for_executemany=True)
        assert isinstance(compiled, SQLCompiler)
        self.sql = compiled.string
        self._is_positional = compiled.positional
        types = {name: parameter.type for parameter, name in compiled.bind_names.items()}
        self._names = list(compiled.positiontup or ()) if compiled.positional else list(types)
        self._constants = {name: value for name, value in compiled.params.items() if name not in row}
        self._processors = [
            (index, processor)
            for index, name in enumerate(self._names)
            if (processor := _bind_processor(types[name], dialect)) is not None
        ]

    def parameters(self, rows: Sequence[Row]) -> list[Any]:
        """The rows in the form for the driver."""
        # Process columns, not rows: then the work for single values is a loop in C, or is skipped.
        columns: list[Any] = [
            repeat(self._constants[name], len(rows)) if name in self._constants else map(itemgetter(name), rows)
            for name in self._names
        ]
        for index, process in self._processors:
            columns[index] = map(process, columns[index])
        values = zip(*columns, strict=True)
        return list(values) if self._is_positional else [dict(zip(self._names, row, strict=True)) for row in values]


def _bind_processor(type_: TypeEngine[Any], dialect: Dialect) -> _Processor | None:
    """A function that converts a value of this type for the driver; None if no conversion is needed."""
    return type_.dialect_impl(dialect).bind_processor(dialect)


def prepared(statement: _Statement) -> Prepared:
    """A statement that is the same for every database."""
    return Prepared(lambda _connection, _row: statement)


def prepared_insert(table: Table, *, or_ignore: bool = False) -> Prepared:
    """A statement that inserts rows; with ``or_ignore``, it skips those that exist."""
    if not or_ignore:
        return prepared(table.insert())
    return Prepared(lambda connection, _row: insert(connection, table).on_conflict_do_nothing())


def prepared_upsert(table: Table, *keys: str) -> Prepared:
    """A statement that inserts rows; where ``keys`` exist, it replaces all other columns of the rows."""

    def build(connection: Connection, row: Row) -> Insert:
        statement = insert(connection, table)
        changed = {name: statement.excluded[name] for name in row if name not in keys}
        return cast(Insert, statement.on_conflict_do_update(index_elements=list(keys), set_=changed))

    return Prepared(build)


class PreparedSelect:
    """A ``SELECT`` with parameters, for questions that are asked all the time.

    ``column.in_(bindparam(name, expanding=True))`` may be part of its conditions (``not_in`` may not). Such a list is
    one parameter of the driver, however many values it has: SQLAlchemy would write a statement with as many
    placeholders, which takes longer than the answer.
    """

    def __init__(self, statement: Select[Any]) -> None:
        self._statement = statement
        self._compiled: dict[str, _CompiledSelect] = {}

    def rows(self, connection: Connection, **parameters: Any) -> Sequence[Any]:
        """The rows that the database finds; ``parameters`` has a value, or any number of them, for each parameter."""
        compiled = self._compiled.get(connection.dialect.name)
        if compiled is None:
            compiled = self._compiled[connection.dialect.name] = _CompiledSelect(self._statement, connection.dialect)
        values = compiled.parameters(parameters)
        return compiled.restored(connection.exec_driver_sql(compiled.sql, values).all()) if values is not None else []


class _CompiledSelect:
    """A ``SELECT`` in the form for a driver."""

    def __init__(self, statement: Select[Any], dialect: Dialect) -> None:
        compiled = statement.compile(dialect=dialect)
        assert isinstance(compiled, SQLCompiler)
        self._names = list(compiled.positiontup or ()) if compiled.positional else list(compiled.params)
        self._is_positional = compiled.positional
        self._constants = {name: value for name, value in compiled.params.items() if value is not None}
        self._processors = {
            name: processor
            for name in self._names
            if (processor := _bind_processor(compiled.binds[name].type, dialect)) is not None
        }
        self._lists = frozenset(_LIST.findall(compiled.string))

        def one_parameter(match: re.Match[str]) -> str:
            if dialect.name == "sqlite":
                return " IN (SELECT value FROM json_each(?))"
            array = dialect.type_compiler_instance.process(compiled.binds[match[1]].type)
            return f" = ANY(%({match[1]})s::{array}[])"

        self.sql = _LIST.sub(one_parameter, compiled.string)
        self._lists_are_json = dialect.name == "sqlite"
        self._restorers = [
            (index, restorer)
            for index, column in enumerate(statement.selected_columns)
            if (restorer := column.type.dialect_impl(dialect).result_processor(dialect, None)) is not None
        ]

    def parameters(self, given: Mapping[str, Any]) -> Any:
        """Values in the form for the driver; None if one of the lists is empty, so that there can be no rows."""
        values: dict[str, Any] = {**self._constants, **given}
        for name, process in self._processors.items():
            values[name] = map(process, values[name]) if name in self._lists else process(values[name])
        for name in self._lists:
            elements = list(values[name])
            if not elements:
                return None
            values[name] = orjson.dumps(elements).decode() if self._lists_are_json else elements
        return tuple(values[name] for name in self._names) if self._is_positional else values

    def restored(self, rows: Sequence[Any]) -> Sequence[Any]:
        """Rows of the driver with the values that were stored."""
        if not rows or not self._restorers:
            return rows
        columns: list[Any] = list(zip(*rows, strict=True))
        for index, restore in self._restorers:
            columns[index] = map(restore, columns[index])
        return list(zip(*columns, strict=True))
