"""What bulk loads need of PostgreSQL, and SQLite does without.

Its planner goes by statistics that a load outruns: of a table that was empty a minute ago it expects a handful of rows,
and reads all of them where an index would do. And a list of thousands of parameters is compared one by one, an array
is hashed. SQLite is given such a list as one parameter too: SQLAlchemy writes out thousands anew for every statement.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import orjson
from sqlalchemy import (
    BigInteger,
    Boolean,
    ColumnElement,
    Connection,
    Float,
    LargeBinary,
    Select,
    String,
    any_,
    bindparam,
    func,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import InstrumentedAttribute

FIRST_ROWS, FACTOR = 2000, 4
_POSTGRESQL = {BigInteger: "int8", Boolean: "bool", Float: "float8", LargeBinary: "bytea", String: "varchar"}


def among(connection: Connection, column: InstrumentedAttribute[Any], values: Sequence[str]) -> ColumnElement[bool]:
    """SQL condition: the text column has one of these values."""
    if connection.dialect.name != "postgresql":
        given = func.json_each(bindparam(None, json.dumps(values), type_=String, unique=True)).table_valued("value")
        return column.in_(select(given.c.value))
    return column == any_(bindparam(None, list(values), type_=ARRAY(String), unique=True))


def rows_at_once(connection: Connection, query: Select[Any]) -> Sequence[Sequence[Any]]:
    """The rows of a query for numbers and text, of no particular order on SQLite.

    Its driver lets go of the interpreter and takes it again for every row. Beside a thread that computes, each time is
    a wait for that: a thousand rows that take a tenth of a second take one. So they come as one.
    """
    if connection.dialect.name != "sqlite":
        return connection.execute(query).all()
    each = query.subquery()
    return orjson.loads(connection.execute(select(func.json_group_array(func.json_array(*each.c)))).scalar_one())


def insert_rows(connection: Connection, row: Any, columns: str, values: Sequence[tuple[Any, ...]]) -> None:
    """The fastest plain insert that the engine has: COPY on PostgreSQL, one prepared statement elsewhere."""
    if not values:
        return
    table = row.__tablename__
    names = columns.split()
    if connection.dialect.name == "postgresql":
        driver: Any = connection.connection.driver_connection
        statement = f"COPY {table} ({', '.join(names)}) FROM STDIN (FORMAT BINARY)"
        with driver.cursor() as cursor, cursor.copy(statement) as copy:
            copy.set_types([_POSTGRESQL[type(row.__table__.c[name].type)] for name in names])
            for value in values:
                copy.write_row(value)
        return
    marks = ", ".join("?" * len(names))
    statement = f"INSERT INTO {table} ({', '.join(names)}) VALUES ({marks})"  # noqa: S608 - names are ours
    connection.exec_driver_sql(statement, list(values))


class Growth:
    """Has the planner look again whenever tables have grown to several times what it saw. One for a load."""

    def __init__(self, *tables: str) -> None:
        self._tables = ", ".join(tables)
        self._rows, self._next = 0, FIRST_ROWS

    def add(self, connection: Connection, rows: int) -> None:
        """Note that so many rows were written."""
        self._rows += rows
        if self._rows >= self._next and connection.dialect.name == "postgresql":
            connection.execute(text(f"ANALYZE {self._tables}"))
            self._next = self._rows * FACTOR
