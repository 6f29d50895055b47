"""The connection to the SQL store: one `Store` per process, short transactions, repositories that return records."""

from __future__ import annotations

import logging
import socket
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from os import getpid
from pathlib import Path
from uuid import uuid4

from sqlalchemy import Connection, Engine, create_engine, event, inspect, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, OperationalError

from medflow.config import Settings
from medflow.errors import ConfigurationError, StoreNotReady, StoreUnavailable, unforeseen
from medflow.store.beside import Beside
from medflow.store.objects import object_store

log = logging.getLogger(__name__)
BUSY_TIMEOUT_S = 60
SNAPSHOT = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
CONNECTIONS = 4  # of SQLite kept open: each has read pages in memory, and the last to close cleans up after them all


class Store:
    """SQL database and object store of one installation.

    Use `reading` for queries and `writing` for changes; both give a `sqlalchemy.Connection` that only the functions
    of medflow.store's repositories use. A `writing` block commits at its end, or rolls everything back.
    """

    def __init__(self, settings: Settings) -> None:
        self.objects = object_store(settings)
        self.beside = Beside(settings)
        self._embedded = settings.embedded
        self._home = settings.home
        self._engine = _engine(settings)
        # SQLite's reading transactions are snapshots in any case
        self._snapshot = SNAPSHOT if self._engine.dialect.name == "postgresql" else {}
        weakref.finalize(self, self.beside.close)  # a pool that is merely dropped may fail as Python ends
        weakref.finalize(self, self._engine.dispose)  # at exit too: SQLite's last connection folds its journal in
        self.owner = f"{socket.gethostname()}:{getpid()}:{uuid4().hex[:8]}"

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection for queries: one consistent snapshot, taken by the first of them."""
        with _translated(), self._engine.connect().execution_options(**self._snapshot) as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction: committed at the end of the block, rolled back if it raises."""
        with _translated(), self._engine.connect().execution_options(medflow_write=True) as connection:
            with connection.begin():
                yield connection

    def open(self) -> Store:
        """Make sure that the schema is the one this code was written for.

        The embedded database is created and migrated; any other must have been migrated by ``medflow db upgrade``.

        Raises
        ------
        StoreNotReady
            Saying which command mends it.
        """
        if self._embedded:
            self.upgrade()
            return self
        found, wanted = self.schema()
        if found != wanted:
            have = f"has schema {found}" if found else "has no medflow schema"
            raise StoreNotReady(f"the database {have}, this version needs {wanted}: run `medflow db upgrade`")
        return self

    def schema(self) -> tuple[str | None, str]:
        """The revision that the database has (None: none), and the one that this code needs; nothing is changed."""
        with self.reading() as connection:
            return _revision_of(connection), _revisions()[-1]

    def upgrade(self) -> str:
        """Bring the schema to this code's version; returns the revision."""
        if self._embedded:
            try:
                self._home.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ConfigurationError(
                    f"MEDFLOW_HOME {self._home} cannot be made ({error.strerror}): choose a folder that can be written"
                ) from None
        with self.reading() as connection:
            found = _revision_of(connection)
        head = _revisions()[-1]
        if found == head:
            return head
        if found is not None and found not in _revisions():
            raise StoreNotReady(f"the database has schema {found}, newer than this medflow knows: install that version")
        from alembic import command  # heavy: only who migrates pays for it
        from alembic.config import Config

        config = Config()
        config.set_main_option("script_location", str(files("medflow.store") / "migrations"))
        with self.writing() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
        return head

    def close(self) -> None:
        """Give every connection back."""
        self.beside.close()
        self._engine.dispose()
        self.objects.close()


@cache
def _revisions() -> list[str]:
    """The schema's revisions, oldest first: each migration's file is named after its own."""
    scripts = (files("medflow.store") / "migrations" / "versions").iterdir()
    return sorted(script.name.partition("_")[0] for script in scripts if script.name[:1].isdigit())


def _revision_of(connection: Connection) -> str | None:
    """The revision that a database has, in Alembic's own table; None before the first."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.scalar(text("SELECT version_num FROM alembic_version"))


def _engine(settings: Settings) -> Engine:
    try:
        url = make_url(settings.url)
    except ArgumentError:
        raise ConfigurationError(
            "MEDFLOW_DATABASE_URL is not a database URL, for example postgresql+psycopg://user:password@host/medflow"
        ) from None
    if url.get_backend_name() == "postgresql" and url.get_driver_name() in ("", "psycopg2"):
        url = url.set(drivername="postgresql+psycopg")
    try:
        if url.get_backend_name() == "sqlite":
            if not settings.embedded and url.database and not Path(url.database).parent.is_dir():
                raise ConfigurationError(f"the folder of the SQLite database {url.database} does not exist: make it")
            timeout = {"timeout": BUSY_TIMEOUT_S}
            engine = create_engine(url, connect_args=timeout, pool_size=CONNECTIONS, max_overflow=-1)
            event.listen(engine, "connect", _prepare_sqlite)
            event.listen(engine, "begin", _begin_sqlite)
            return engine
        return create_engine(url, pool_pre_ping=True, connect_args={"connect_timeout": 10})
    except (NoSuchModuleError, ModuleNotFoundError):
        raise ConfigurationError(
            f"MEDFLOW_DATABASE_URL asks for {url.drivername}: medflow runs on sqlite and postgresql+psycopg"
        ) from None


def _prepare_sqlite(connection, _record) -> None:  # noqa: ANN001 - DBAPI connection
    connection.isolation_level = None  # SQLAlchemy's begin event decides, not the driver
    cursor = connection.cursor()
    for pragma in (
        "journal_mode=WAL",
        "foreign_keys=ON",
        "synchronous=NORMAL",
        "temp_store=MEMORY",
        "cache_size=-65536",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    # IMMEDIATE: a writer waits its turn at the start, instead of failing with "database is locked" in the middle
    writes = connection.get_execution_options().get("medflow_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


@contextmanager
def _translated() -> Iterator[None]:
    """SQLAlchemy's errors in medflow's terms; statements and values never reach a message."""
    try:
        yield
    except OperationalError as error:
        text = str(error.orig).lower()
        if "no space" in text or "disk is full" in text or "disk full" in text:
            raise ConfigurationError(
                "the database's disk is full: free space, then run the same command again"
            ) from None
        if "unable to open database" in text:
            raise StoreNotReady(
                "the SQLite database cannot be opened: check MEDFLOW_HOME and its permissions"
            ) from None
        if "no such table" in text:
            raise StoreNotReady("the database has no medflow schema: run `medflow db upgrade`") from None
        raise StoreUnavailable(f"the database did not answer ({type(error.orig).__name__})") from None
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) == "42P01":
            raise StoreNotReady("the database has no medflow schema: run `medflow db upgrade`") from None
        if error.connection_invalidated:
            raise StoreUnavailable(f"the database connection broke ({type(error.orig).__name__})") from None
        raise unforeseen(error.orig or error) from None  # its text quotes the values of the statement
