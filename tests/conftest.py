"""What every test may ask for: settings in a folder of its own, a store on both engines, real data, real servers.

A server or data set that is not there skips its tests with the reason; where the environment has CI set it is a
failure. Nothing of the user's own environment or home folder reaches a test.
"""

from __future__ import annotations

import fcntl
import itertools
import logging
import os
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from medflow.config import Settings, load_settings
from medflow.store import Store
from tests.services import missing
from tests.services.fhir_server import fhir_server as start_fhir_server
from tests.services.orthanc import Orthanc
from tests.services.orthanc import orthanc as run_orthanc
from tests.services.postgres import PostgresServer, postgres_server
from tests.services.prefect_server import PrefectServer
from tests.services.prefect_server import prefect_server as start_prefect_server
from tests.services.s3_server import Bucket, new_bucket
from tests.services.s3_server import s3_server as start_s3_server

REPOSITORY = Path(__file__).parent.parent
REALDATA = Path(os.environ.get("MEDFLOW_REALDATA") or REPOSITORY.parent / "shared" / "data")
LONG = ("tests/flows/", "tests/ui/", "tests/test_docs.py", "tests/test_nights.py", "tests/test_logs.py")
MARKS = ("realdata", "fhir_server", "orthanc", "postgres", "prefect_server")  # fixtures whose tests carry their name


def pytest_configure(config: pytest.Config) -> None:
    """Cut the session off from the user's configuration, home and Prefect server."""
    for name in list(os.environ):
        if name.startswith(("MEDFLOW_", "PREFECT_")) and name != "MEDFLOW_REALDATA":
            del os.environ[name]
    scratch = Path(tempfile.mkdtemp(prefix="medflow-tests-"))
    config.add_cleanup(lambda: shutil.rmtree(scratch, ignore_errors=True))
    os.environ.update(
        XDG_DATA_HOME=str(scratch / "data"),
        PREFECT_HOME=str(scratch / "prefect"),
        PREFECT_SERVER_ANALYTICS_ENABLED="false",
        PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS="120",  # a busy machine takes longer than Prefect's 20
        DO_NOT_TRACK="1",
        NO_PROXY="127.0.0.1,localhost",
    )


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by the services they ask for, so that ``-m "not fhir_server"`` needs no discipline.

    Files of long tests go first: at the end of a run one worker would wait for the other.
    """
    items.sort(key=lambda item: not item.nodeid.startswith(LONG))
    for item in items:
        for name in MARKS:
            if name in getattr(item, "fixturenames", ()):
                item.add_marker(name)


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """Undo what a command run in this process made of logging: the next test may want to see it."""
    root, ours = logging.getLogger(), logging.getLogger("medflow")
    before = root.handlers[:], root.level, ours.handlers[:], ours.level, ours.propagate
    yield
    root.handlers[:], root.level, ours.handlers[:], ours.level, ours.propagate = before


# --- the store -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def _migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("migrated")
    Store(load_settings(home=home)).open().close()
    return home / "medflow.db"


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server for this session (one per xdist worker), with a migrated database ``template_medflow``."""
    with postgres_server() as server:
        server.execute("CREATE DATABASE template_medflow")
        migrated = Store(load_settings(database_url=server.url("template_medflow")))
        migrated.upgrade()
        migrated.close()
        yield server


_numbers = itertools.count()


@pytest.fixture
def postgres_url(postgres: PostgresServer) -> Iterator[str]:
    """The SQLAlchemy URL of a new, migrated database."""
    name = f"test_{next(_numbers)}"
    postgres.execute(f"CREATE DATABASE {name} TEMPLATE template_medflow")
    yield postgres.url(name)
    postgres.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def engine(request: pytest.FixtureRequest) -> str:
    """Which database the test's store is on; a test that asks for `store` runs once on each."""
    return request.param


@pytest.fixture
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    """Settings with a home of their own; of the same database as `store` where a test asks for both."""
    home = tmp_path / "home"
    if "engine" in request.fixturenames and request.getfixturevalue("engine") == "postgres":
        return load_settings(home=home, database_url=request.getfixturevalue("postgres_url"))
    return load_settings(home=home)


@pytest.fixture
def store(engine: str, settings: Settings, request: pytest.FixtureRequest) -> Iterator[Store]:
    """An open, migrated, empty store."""
    if engine == "sqlite":
        settings.home.mkdir()
        shutil.copy(request.getfixturevalue("_migrated_sqlite"), settings.home / "medflow.db")
    opened = Store(settings).open()
    yield opened
    opened.close()


@pytest.fixture
def local(settings: Settings, _migrated_sqlite: Path) -> Iterator[Store]:
    """The same on SQLite only: for what is not about the database."""
    settings.home.mkdir()
    shutil.copy(_migrated_sqlite, settings.home / "medflow.db")
    opened = Store(settings).open()
    yield opened
    opened.close()


# --- real data -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def realdata(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The published data sets: ``realdata("synthea_r4_24")`` is the folder that pack is unpacked in.

    A pack that is a plain file (``realdata("splice_train.csv")``) is that file. Read only.
    """
    base = tmp_path_factory.getbasetemp()
    unpacked = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "realdata"
    return lambda pack: _find_pack(pack, unpacked)


def _find_pack(pack: str, unpacked: Path) -> Path:
    plain = next((path for path in sorted(REALDATA.rglob(pack)) if path.is_file()), None)
    if plain is not None:
        return plain
    folder = unpacked / pack
    archive = next(iter(sorted(REALDATA.rglob(f"{pack}.tar.xz"))), None)
    if archive is None:
        if (REALDATA / pack).is_dir():  # MEDFLOW_REALDATA may name a folder of packs already unpacked
            return REALDATA / pack
        missing(f"no data pack {pack} in {REALDATA}: set MEDFLOW_REALDATA to the folder that has it")
    unpacked.mkdir(exist_ok=True)
    with (unpacked / f".{pack}.lock").open("w") as lock:  # xdist's workers share one copy
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            partial = Path(tempfile.mkdtemp(dir=unpacked, prefix=".partial-"))
            with tarfile.open(archive) as packed:
                packed.extractall(partial, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
            partial.rename(folder)
    return folder


# --- servers -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def _fhir_server_process() -> Iterator[str]:
    with start_fhir_server() as url:
        yield url


@pytest.fixture
def fhir_server(_fhir_server_process: str) -> str:
    """The base URL of an empty FHIR R4 server that validates what it is sent."""
    url = _fhir_server_process.removesuffix("/fhir/R4") + "/$reset"
    httpx.post(url, timeout=30, verify=False).raise_for_status()  # no authorities to be read for plain HTTP
    return _fhir_server_process


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[PrefectServer]:
    """A Prefect server on SQLite for this session; its tests tell their runs apart by names of their own."""
    with start_prefect_server() as server:
        yield server


@pytest.fixture(scope="session")
def _orthanc_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with run_orthanc(tmp_path_factory.mktemp("orthanc")) as server:
        yield server


@pytest.fixture
def orthanc(_orthanc_process: Orthanc) -> Orthanc:
    """An Orthanc without any patients; see tests/services/orthanc.py."""
    _orthanc_process.empty()
    return _orthanc_process


@pytest.fixture(scope="session")
def s3_url() -> Iterator[str]:
    """The endpoint of an S3 server."""
    with start_s3_server() as url:
        yield url


@pytest.fixture
def s3(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """An empty bucket; this process's environment leads botocore to it."""
    bucket = new_bucket(s3_url, f"bucket-{next(_numbers)}")
    for name in [name for name in os.environ if name.startswith(("AWS_", "FSSPEC_"))]:
        monkeypatch.delenv(name)
    for name, value in bucket.environment.items():
        monkeypatch.setenv(name, value)
    return bucket
