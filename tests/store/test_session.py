import threading
import traceback

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import insert

from medflow.config import load_settings
from medflow.errors import ConfigurationError, MedflowError, StoreNotReady, StoreUnavailable
from medflow.store import Store, ledger
from medflow.store.tables import Base, PatientIdentifierRow


def test_the_embedded_store_is_made_and_migrated_by_itself(tmp_path):
    store = Store(load_settings(home=tmp_path / "new" / "home")).open()

    with store.reading() as connection:
        assert ledger.count_rejects(connection) == {}


def test_the_migrations_give_the_tables_that_the_code_declares(store):
    with store.reading() as connection:
        differences = compare_metadata(MigrationContext.configure(connection), Base.metadata)

    assert differences == []


def test_sqlite_runs_with_wal_and_foreign_keys(tmp_path):
    store = Store(load_settings(home=tmp_path)).open()

    with store.reading() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1


def test_another_database_is_not_migrated_unasked(tmp_path):
    settings = load_settings(home=tmp_path, database_url=f"sqlite:///{tmp_path / 'own.db'}")

    with pytest.raises(StoreNotReady, match="medflow db upgrade"):
        Store(settings).open()
    Store(settings).upgrade()

    Store(settings).open()


def test_a_database_newer_than_the_code_is_left_alone(store):
    with store.writing() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")

    with pytest.raises(StoreNotReady, match="newer than this medflow knows|this version needs"):
        store.open()


def test_a_transaction_that_raises_leaves_nothing(store):
    with pytest.raises(RuntimeError):
        with store.writing() as connection:
            ledger.begin_run(connection, command="x", actor="me", versions={})
            raise RuntimeError

    with store.reading() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM run").scalar() == 0


def test_what_is_read_in_one_block_is_one_snapshot(store):
    count = "SELECT count(*) FROM run"

    with store.reading() as reading:
        before = reading.exec_driver_sql(count).scalar()
        with store.writing() as connection:
            ledger.begin_run(connection, command="x", actor="me", versions={})
        after = reading.exec_driver_sql(count).scalar()

    with store.reading() as reading:
        assert (before, after, reading.exec_driver_sql(count).scalar()) == (0, 0, 1)


def test_many_writers_wait_their_turn(store):
    errors = []

    def write():
        try:
            for _ in range(10):
                with store.writing() as connection:
                    ledger.begin_run(connection, command="x", actor="me", versions={})
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert errors == []
    with store.reading() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM run").scalar() == 40


def test_a_server_that_does_not_answer_is_transient_and_keeps_its_password():
    settings = load_settings(database_url="postgresql://medflow:secret-word@127.0.0.1:1/medflow")

    with pytest.raises(StoreUnavailable) as caught:
        Store(settings).open()

    assert "secret-word" not in str(caught.value) + repr(settings)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("mysql://x/y", "sqlite and postgresql"),
        ("nonsense", "is not a database URL"),
        ("sqlite:////no/where/x.db", "make it"),
    ],
)
def test_a_url_that_cannot_be_is_explained(tmp_path, url, said):
    with pytest.raises(ConfigurationError, match=said):
        Store(load_settings(home=tmp_path, database_url=url))


def test_an_error_of_the_database_never_quotes_the_values_of_its_statement(store):
    statement = insert(PatientIdentifierRow).values(system="urn:mrn", value="MRN-4711", patient_id=999_999)

    with pytest.raises(MedflowError) as caught, store.writing() as connection:  # there is no such patient
        connection.execute(statement)

    told = "".join(traceback.format_exception(caught.value))
    assert "MRN-4711" not in told and "999999" not in told
    assert "unforeseen" in caught.value.message
