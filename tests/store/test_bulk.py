"""Rows in bulk: what the engines do each in their own way comes to the same."""

from sqlalchemy import func, literal, select, union_all

from medflow.store import Store
from medflow.store.bulk import rows_at_once


def test_rows_that_come_at_once_are_those_of_the_query(store: Store):
    large = 2**62 + 1  # an integer that no float holds
    query = union_all(*(select(literal(number), literal("a'\"é"), literal(large)) for number in range(3))).subquery()

    with store.reading() as connection:
        rows = rows_at_once(connection, select(query).where(query.c[0] > 0))
        none = rows_at_once(connection, select(query.c[0], func.count()).where(query.c[0] > 9).group_by(query.c[0]))

    assert sorted(map(tuple, rows)) == [(1, "a'\"é", large), (2, "a'\"é", large)]
    assert not list(none)
