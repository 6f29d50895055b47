"""Transactions of which nothing stays: for tests that try very many histories on one store."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from sqlalchemy import Connection

from medflow.store import Store


@contextmanager
def rolled_back(store: Store) -> Iterator[Connection]:
    """A transaction that is undone at the end of the block."""
    with suppress(_Undone), store.writing() as connection:
        yield connection
        raise _Undone


class _Undone(Exception):
    """Rolls a transaction back."""
