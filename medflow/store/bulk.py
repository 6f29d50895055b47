"""What bulk loads need of PostgreSQL, and SQLite does without.

Its planner goes by statistics that a load outruns: of a table that was empty a minute ago it expects a handful of rows,
and reads all of them where an index would do. And a list of thousands of parameters is compared one by one, an array
is hashed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, String, any_, bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import InstrumentedAttribute

FIRST_ROWS, FACTOR = 2000, 4


def among(connection: Connection, column: InstrumentedAttribute[Any], values: Sequence[str]) -> ColumnElement[bool]:
    """SQL condition: the text column has one of these values."""
    if connection.dialect.name != "postgresql":
        return column.in_(values)
    return column == any_(bindparam(None, list(values), type_=ARRAY(String), unique=True))


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
