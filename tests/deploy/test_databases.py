"""The script that makes the two databases, on a real PostgreSQL server."""

import os

import psycopg
import pytest

from tests.deploy.tools import DEPLOY, run, tool

ODD = 'it\'s a "password" with $ and \\'


def make(postgres, medflow: str, prefect: str) -> None:
    tool("psql", "apt-get install postgresql-client")
    env = {
        **os.environ,
        "PGHOST": "127.0.0.1",
        "PGPORT": str(postgres.port),
        "PGPASSWORD": postgres.password,
        "POSTGRES_USER": "medflow_admin",
        "MEDFLOW_DB_PASSWORD": medflow,
        "PREFECT_DB_PASSWORD": prefect,
    }
    run(DEPLOY / "postgres" / "databases.sh", env=env)


@pytest.fixture
def server(postgres):
    """The server with a superuser of its own for the script, and none of its databases afterwards."""
    postgres.execute(f"CREATE ROLE medflow_admin SUPERUSER LOGIN PASSWORD '{postgres.password}'")
    yield postgres
    for name in ("prefect", "medflow"):
        postgres.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
    postgres.execute("DROP ROLE IF EXISTS prefect")
    postgres.execute("DROP ROLE medflow_admin")
    postgres.execute(f"ALTER ROLE medflow PASSWORD '{postgres.password}'")


def connect(server, user: str, password: str, database: str) -> psycopg.Connection:
    return psycopg.connect(host="127.0.0.1", port=server.port, user=user, password=password, dbname=database)


def test_each_role_owns_its_database_whatever_is_in_its_password(server):
    make(server, server.password, ODD)

    with connect(server, "prefect", ODD, "prefect") as connection:
        connection.execute("CREATE EXTENSION pg_trgm")  # which Prefect's own migrations do
        connection.execute("CREATE TABLE anything (id int)")


def test_one_role_cannot_reach_the_database_of_the_other(server):
    make(server, server.password, ODD)

    with pytest.raises(psycopg.OperationalError, match="permission denied"):
        connect(server, "prefect", ODD, "medflow")


def test_doing_it_again_keeps_the_data_and_sets_the_new_password(server):
    make(server, server.password, ODD)
    with connect(server, "prefect", ODD, "prefect") as connection:
        connection.execute("CREATE TABLE kept AS SELECT 7 AS seven")

    make(server, server.password, "another")

    with connect(server, "prefect", "another", "prefect") as connection:
        assert connection.execute("SELECT seven FROM kept").fetchone() == (7,)
    with pytest.raises(psycopg.OperationalError):
        connect(server, "prefect", ODD, "prefect")
