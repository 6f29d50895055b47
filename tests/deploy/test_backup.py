"""A backup is restored into new databases and a new home: nothing is scored or delivered again, and nothing is lost."""

import json
import os
import shutil
from collections import Counter
from pathlib import Path

import psycopg
import pytest
from pydicom import dcmread

from medflow.sample import write_sample
from tests.deploy.tools import DEPLOY, run, tool
from tests.distributions import environment, medflow, write_distribution
from tests.services.postgres import PostgresServer

GC = "from tests import models\n\nclass GcContent(models.GcContent):\n    pass\n"
BASES = ["ACGTACGT", "GGGGCCCC", "ATATATAT", "ACACACAC", "GTGTGTGT", "CCCCCCCC"]


class Site:
    """An installation on PostgreSQL that scores sequences and delivers to one folder, which outlives it."""

    def __init__(self, postgres: PostgresServer, root: Path, name: str) -> None:
        self.postgres, self.root, self.name = postgres, root, name
        self.home = root / name
        self.home.mkdir()
        for database in (name, f"{name}_prefect"):
            postgres.execute(f"CREATE DATABASE {database}")
        plugins = root / "plugins"
        if not plugins.exists():
            write_distribution(plugins, "gc-plugin", GC, {"gc-content": "GcContent"})
        self.env = environment(
            self.home,
            plugins,
            MEDFLOW_DATABASE_URL=postgres.url(name),
            PREFECT_SERVER_DATABASE_CONNECTION_URL=postgres.url(f"{name}_prefect").replace("psycopg", "asyncpg"),
            MEDFLOW_TARGETS=json.dumps({"chart": str(root / "results")}),
            MEDFLOW_DELIVER_TO="chart",
        )

    def say(self, *words: object, status: int = 0) -> dict:
        done = medflow(self.env, *words, "--json")
        assert done.returncode == status, done.stderr
        return json.loads(done.stdout)

    def upgrade(self) -> None:
        done = medflow(self.env, "db", "upgrade")
        assert done.returncode == 0, done.stderr

    def night(self, sequences: Path) -> dict:
        return {
            "ingest": self.say("ingest", "fasta", sequences),
            "score": self.say("score", "--model", "gc-content"),
            "deliver": self.say("deliver"),
        }

    def image_night(self, images: list[Path]) -> dict:
        return {
            "ingest": self.say("ingest", "dicom", *images),
            "score": self.say("score", "--model", "pneumonia-xray"),
            "deliver": self.say("deliver"),
        }

    def script(self, name: str, folder: Path) -> str:
        return run(DEPLOY / name, folder, env=self.env).strip()

    def drop(self) -> None:
        for database in (self.name, f"{self.name}_prefect"):
            self.postgres.execute(f"DROP DATABASE {database} WITH (FORCE)")


@pytest.fixture
def sites(postgres, tmp_path):
    """Makes sites of one hospital, one after the other."""
    for name in ("pg_dump", "pg_restore"):
        tool(name, "apt-get install postgresql-client")
    tool("rsync", "apt-get install rsync")
    made = []

    def make(name: str) -> Site:
        made.append(Site(postgres, tmp_path, name))
        return made[-1]

    yield make
    for site in made:
        site.drop()


def fasta(folder: Path, bases: list[str]) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "reads.fasta"
    path.write_text("".join(f">read{number}\n{text}\n" for number, text in enumerate(bases)))
    return path


def radiographs(root: Path) -> list[Path]:
    """The files of the sample's chest radiographs."""
    paths = [path for path in sorted(write_sample(root / "sample", stays=4, odd=False).dicom.rglob("*.dcm"))]
    found = [path for path in paths if dcmread(path, stop_before_pixels=True).Modality in ("CR", "DX")]
    assert len(found) > 1
    return found


def delivered(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (root / "results").glob("*.ndjson")}


def identities(root: Path) -> Counter[tuple[str, str]]:
    lines = [json.loads(line) for text in delivered(root).values() for line in text.splitlines()]
    return Counter((line["resourceType"], line["id"]) for line in lines)


def test_a_restored_site_scores_and_delivers_nothing_again(sites, tmp_path):
    first = sites("first")
    first.upgrade()
    reads = fasta(tmp_path / "in", BASES)
    night = first.night(reads)
    before = delivered(tmp_path)
    taken = first.script("backup.sh", tmp_path / "backups")
    shutil.rmtree(first.home)

    second = sites("second")
    second.script("restore.sh", Path(taken))
    second.upgrade()
    again = second.night(reads)

    assert (night["score"]["done"], night["deliver"]["delivered"]) == (len(BASES), len(identities(tmp_path)))
    assert (again["ingest"]["stored"], again["ingest"]["unchanged"]) == (0, night["ingest"]["stored"])
    assert (again["score"]["selected"], again["score"]["done"]) == (0, 0)
    assert (again["deliver"]["pending"], again["deliver"]["delivered"]) == (0, 0)
    assert delivered(tmp_path) == before


def test_every_object_comes_back_as_it_was(sites, tmp_path):
    first = sites("first")
    first.upgrade()
    first.night(fasta(tmp_path / "in", BASES))
    taken = first.script("backup.sh", tmp_path / "backups")

    second = sites("second")
    second.script("restore.sh", Path(taken))

    def objects(site: Site) -> dict[str, bytes]:
        folder = site.home / "objects"
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    assert objects(first) == objects(second) != {}


def test_images_after_the_backup_are_scored_again_and_put_to_the_same_addresses(sites, tmp_path):
    images = radiographs(tmp_path)
    first = sites("first")
    first.upgrade()
    first.image_night(images[:1])
    taken = first.script("backup.sh", tmp_path / "backups")
    first.image_night(images)  # is lost with the machine; what it delivered is not
    known = set(identities(tmp_path))

    second = sites("second")
    second.script("restore.sh", Path(taken))
    second.upgrade()
    again = second.image_night(images)

    assert again["score"]["done"] == len(images) - 1
    assert set(identities(tmp_path)) == known


def test_the_second_backup_copies_only_what_is_new(sites, tmp_path):
    site = sites("first")
    site.upgrade()
    site.night(fasta(tmp_path / "in", BASES[:3]))
    site.script("backup.sh", tmp_path / "backups")
    kept = next(path for path in (tmp_path / "backups/objects").rglob("*") if path.is_file())
    before = kept.stat().st_ino, kept.stat().st_mtime_ns
    site.night(fasta(tmp_path / "in", BASES))

    site.script("backup.sh", tmp_path / "backups")

    assert (kept.stat().st_ino, kept.stat().st_mtime_ns) == before
    assert kept.stat().st_mode & 0o077 == 0 or os.stat(tmp_path / "backups").st_mode & 0o077 == 0


@pytest.mark.slow
def test_the_database_of_prefect_comes_back_with_its_extension(sites, tmp_path):
    first = sites("first")
    first.upgrade()
    first.night(fasta(tmp_path / "in", BASES[:1]))
    env = {**first.env, "PREFECT_HOME": str(tmp_path / "prefect")}
    run(tool("prefect", "pip install prefect"), "server", "database", "upgrade", "-y", env=env)
    taken = first.script("backup.sh", tmp_path / "backups")

    second = sites("second")
    second.script("restore.sh", Path(taken))

    def look(site: Site) -> tuple:
        url = site.env["PREFECT_SERVER_DATABASE_CONNECTION_URL"].replace("+asyncpg", "")
        with psycopg.connect(url) as connection:
            version = connection.execute("SELECT version_num FROM alembic_version").fetchall()
            extensions = connection.execute("SELECT extname FROM pg_extension ORDER BY 1").fetchall()
            tables = connection.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchone()
            return version, extensions, tables

    assert look(second) == look(first)
    assert ("pg_trgm",) in look(second)[1]


def test_a_database_that_is_not_empty_is_left_alone(sites, tmp_path):
    first = sites("first")
    first.upgrade()
    first.night(fasta(tmp_path / "in", BASES[:1]))
    taken = first.script("backup.sh", tmp_path / "backups")

    with pytest.raises(AssertionError, match="already exists"):
        first.script("restore.sh", Path(taken))

    assert first.say("score", "--model", "gc-content")["selected"] == 0
