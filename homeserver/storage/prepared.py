"""Statements that write frequent rows: compiled once, and run with little overhead.

Each time that SQLAlchemy runs a statement, it looks for its compiled form and processes the parameters of every row;
when a room with a thousand members is joined, that takes as long as SQLite itself. Here a statement goes to the driver
as it was compiled the first time, and loops written in C process its rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import repeat
from operator import itemgetter
from typing import Any, TypeAlias, cast

from sqlalchemy import Connection, Delete, Dialect, Insert, Table, Update
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.types import TypeEngine

from homeserver.storage.database import insert

Row: TypeAlias = Mapping[str, Any]
_Statement: TypeAlias = Insert | Update | Delete
_Processor: TypeAlias = Callable[[Any], Any]


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
