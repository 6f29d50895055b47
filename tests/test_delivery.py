"""Delivery: everything arrives once, in a folder or at a server, whatever happens on the way."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from medflow import delivery
from medflow.config import Settings, load_settings, parsed_target
from medflow.connections.circuit import CircuitRule
from medflow.delivery import run, server
from medflow.delivery.server import MAX_ENTRIES, Patience
from medflow.errors import ConfigurationError, ServerUnavailable
from medflow.records import DueUnit, Instant, Outgoing, Unit, UnitKind
from medflow.store import Store, jobs, outbox
from tests.results import catalog, risk_of
from tests.services import free_port
from tests.services.faulty_fhir import FaultyServer, Reply, faulty_fhir

HASTE = Patience(attempts=3, first_wait_s=0.01, longest_wait_s=0.05)


@pytest.fixture(autouse=True)
def _haste(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "PATIENCE", HASTE)
    monkeypatch.setattr(server, "AT_START", HASTE)
    monkeypatch.setattr(
        server, "CIRCUIT", CircuitRule(open_after=3, longest_wait_s=0.05, first_wait_s=0.02, patience_s=0.4)
    )


@pytest.fixture
def faulty() -> Iterator[FaultyServer]:
    with faulty_fhir() as running:
        yield running


def deliver(store: Store, settings: Settings, target: str, **options: Any) -> delivery.DeliveryTally:
    return delivery.deliver(store, settings, parsed_target(target), **options)


def stored_name(target: str) -> str:
    return parsed_target(target).public


def queue(store: Store, outgoing: Sequence[Outgoing]) -> None:
    with store.writing() as connection:
        outbox.queue(connection, None, outgoing)


def cohort(*patients: int, chance: float = 0.25) -> list[Outgoing]:
    return [*catalog(), *(item for patient in patients for item in risk_of(patient, chance))]


def lines(folder: Path) -> Counter[tuple[str, str]]:
    """(type, id) of every line in a folder, with how often it is there."""
    found: Counter[tuple[str, str]] = Counter()
    for file in folder.glob("*.ndjson"):
        for line in file.read_bytes().splitlines():
            resource = orjson.loads(line)
            assert file.name == f"{resource['resourceType']}.ndjson"
            found[resource["resourceType"], resource["id"]] += 1
    return found


def once(outgoing: Sequence[Outgoing]) -> Counter[tuple[str, str]]:
    return Counter((item.type, item.id) for item in outgoing)


# --- a folder ------------------------------------------------------------------------------------------------


def test_a_folder_gets_a_file_per_type_and_everything_once(store: Store, settings: Settings, tmp_path: Path) -> None:
    queue(store, cohort(1, 2, 3))
    settled: list[int] = []

    first = deliver(store, settings, str(tmp_path / "new" / "out"), progress=settled.append)
    second = deliver(store, settings, str(tmp_path / "new" / "out"))

    assert (first.pending, first.delivered, first.failed, first.dead) == (11, 11, 0, 0)
    assert sum(settled) == 11
    assert second.as_json() == {"pending": 0, "delivered": 0, "failed": 0, "dead": 0, "errors": {}}
    assert lines(tmp_path / "new" / "out") == once(cohort(1, 2, 3))


def test_what_is_new_is_appended(local: Store, settings: Settings, tmp_path: Path) -> None:
    queue(local, cohort(1))
    deliver(local, settings, str(tmp_path / "out"))
    before = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}

    queue(local, cohort(1, 2))
    tally = deliver(local, settings, str(tmp_path / "out"))

    assert tally.delivered == 3
    assert lines(tmp_path / "out") == once(cohort(1, 2))
    assert all((tmp_path / "out" / name).read_bytes().startswith(data) for name, data in before.items())


def test_a_folder_has_one_name_however_it_is_written(
    local: Store, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    queue(local, cohort(1))

    deliver(local, settings, "out")

    assert deliver(local, settings, str(tmp_path / "x" / ".." / "out")).pending == 0
    assert stored_name("out/") == str(tmp_path / "out")


def test_what_was_written_beyond_the_last_commit_is_cut_off(local: Store, settings: Settings, tmp_path: Path) -> None:
    queue(local, cohort(1))
    deliver(local, settings, str(tmp_path / "out"))
    for file in (tmp_path / "out").iterdir():
        with file.open("ab") as stream:
            stream.write(b'{"resourceType":"Observation","id":"half')

    queue(local, cohort(2))
    deliver(local, settings, str(tmp_path / "out"))

    assert lines(tmp_path / "out") == once(cohort(1, 2))


@pytest.mark.parametrize("harm", ["missing", "shorter", "folder gone"])
def test_lost_files_are_named_and_written_anew_on_request(
    harm: str, local: Store, settings: Settings, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    queue(local, cohort(1, 2))
    deliver(local, settings, str(out))
    if harm == "shorter":
        os.truncate(out / "Observation.ndjson", 10)
    for file in out.iterdir() if harm == "folder gone" else [out / "Observation.ndjson"] if harm == "missing" else []:
        file.unlink()
    if harm == "folder gone":
        out.rmdir()

    with pytest.raises(ConfigurationError, match="medflow retry deliveries --to"):
        deliver(local, settings, str(out))
    with local.writing() as connection:
        outbox.retry_deliveries(connection, stored_name(str(out)))
    tally = deliver(local, settings, str(out))

    assert tally.delivered == 8
    assert lines(out) == once(cohort(1, 2))


def test_a_strangers_file_is_not_touched(local: Store, settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "Observation.ndjson").write_text("somebody's\n")
    queue(local, cohort(1))

    with pytest.raises(ConfigurationError, match="Observation.ndjson"):
        deliver(local, settings, str(tmp_path))

    assert (tmp_path / "Observation.ndjson").read_text() == "somebody's\n"
    assert not (tmp_path / "Device.ndjson").exists()


def test_a_file_where_the_folder_should_be_is_said_so(local: Store, settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")

    with pytest.raises(ConfigurationError, match="cannot be written"):
        deliver(local, settings, str(tmp_path / "out"))


def test_a_full_disk_leaves_nothing_half_written(local: Store, settings: Settings, tmp_path: Path) -> None:
    out = tmp_path / "out"
    queue(local, cohort(1))
    deliver(local, settings, str(out))
    queue(local, cohort(*range(2, 60)))
    size = (out / "Observation.ndjson").stat().st_size
    program = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from medflow.config import load_settings, parsed_target;"
        "from medflow.delivery import deliver; from medflow.errors import ConfigurationError; "
        "from medflow.store import Store\n"
        "settings = load_settings(home=Path(sys.argv[1])); store = Store(settings).open()\n"
        "import medflow.delivery.folder as folder; write = folder.Folder._append\n"
        "def limited(self, name, data):\n"
        "    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (20000, resource.RLIM_INFINITY))\n"
        "    try: write(self, name, data)\n"
        "    finally: resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))\n"
        "folder.Folder._append = limited\n"
        "try: deliver(store, settings, parsed_target(sys.argv[2]))\n"
        "except ConfigurationError as error: print(error)\n"
    )

    command = [sys.executable, "-c", program, str(settings.home), str(out)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert "free space" in said
    assert (out / "Observation.ndjson").stat().st_size == size
    deliver(local, settings, str(out))
    assert lines(out) == once(cohort(*range(1, 60)))


KILLED = """
import os, random, signal, sys, time
from pathlib import Path
from medflow.config import load_settings, parsed_target
from medflow.delivery import deliver, folder, run
from medflow.store import Store, outbox

home, out, seed = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
rng = random.Random(seed)
run.PAGE = 30

def mortal(function, left):
    def wrapped(*arguments, **named):
        left[0] -= 1
        if left[0] == 0: os.kill(os.getpid(), signal.SIGKILL)
        value = function(*arguments, **named)
        left[0] -= 1
        if left[0] == 0: os.kill(os.getpid(), signal.SIGKILL)
        return value
    return wrapped

kills = 0
while True:
    step, delay = rng.randint(1, 40), rng.uniform(0.0, 0.06)
    timed = rng.random() < 0.4
    child = os.fork()
    if child == 0:
        if not timed:
            left = [step]
            folder.os.fsync = mortal(os.fsync, left)
            for name in ("claim_target", "renew_target", "record_delivered", "release_target"):
                setattr(outbox, name, mortal(getattr(outbox, name), left))
            folder.Folder._append = mortal(folder.Folder._append, left)
            run._Run._record = mortal(run._Run._record, left)
        settings = load_settings(home=home)
        deliver(Store(settings).open(), settings, parsed_target(out))
        os._exit(0)
    if timed:
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if status == 0: break
    assert os.WIFSIGNALED(status), status
    kills += 1
print(kills)
"""


def killed_over_and_over(settings: Settings, target: str, seed: int) -> int:
    """Deliver in processes that are killed somewhere, until one of them ends by itself; returns how many were."""
    command = [sys.executable, "-c", KILLED, str(settings.home), target, str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.parametrize("seed", range(2))
def test_killed_at_any_point_and_run_again_a_folder_is_the_same(
    seed: int, local: Store, settings: Settings, tmp_path: Path
) -> None:
    queue(local, cohort(*range(60)))
    deliver(local, settings, str(tmp_path / "calm"))

    kills = killed_over_and_over(settings, str(tmp_path / "out"), seed)

    assert kills > 3
    files = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    assert files == {file.name: file.read_bytes() for file in (tmp_path / "calm").iterdir()}
    assert lines(tmp_path / "out") == once(cohort(*range(60)))


# --- a server ------------------------------------------------------------------------------------------------


def test_a_real_server_gets_everything_once(store: Store, settings: Settings, fhir_server: str) -> None:
    queue(store, cohort(*range(10)))

    first = deliver(store, settings, fhir_server)
    second = deliver(store, settings, fhir_server + "/")

    assert (first.pending, first.delivered, first.failed) == (32, 32, 0)
    assert second.pending == 0
    for item in cohort(*range(10)):
        history = httpx.get(f"{fhir_server}/{item.type}/{item.id}/_history").json()
        assert len(history["entry"]) == 1


def test_killed_at_any_point_and_run_again_a_server_has_the_same(
    local: Store, settings: Settings, faulty: FaultyServer
) -> None:
    queue(local, cohort(*range(40)))

    kills = killed_over_and_over(settings, faulty.url, seed=0)

    assert kills > 1
    assert set(faulty.stored) == {f"{item.type}/{item.id}" for item in cohort(*range(40))}
    assert deliver(local, settings, faulty.url).pending == 0


def test_a_result_that_changed_is_put_in_place(local: Store, settings: Settings, fhir_server: str) -> None:
    queue(local, cohort(1))
    deliver(local, settings, fhir_server)

    queue(local, cohort(1, chance=0.5))
    tally = deliver(local, settings, fhir_server)

    assert tally.delivered == 2
    observation = risk_of(1)[0]
    assert httpx.get(f"{fhir_server}/Observation/{observation.id}").json()["valueQuantity"]["value"] == 50
    assert len(httpx.get(f"{fhir_server}/Observation/{observation.id}/_history").json()["entry"]) == 2


def test_one_patients_refusal_is_no_other_patients_trouble(local: Store, settings: Settings, fhir_server: str) -> None:
    [first, *rest] = risk_of(2)
    bad = Outgoing(type=first.type, id=first.id, body=b'{"id":"x"}', sha256="bad", envelope=first.envelope)
    queue(local, [*cohort(1), bad, *rest, *risk_of(3)])

    tally = deliver(local, settings, fhir_server)

    assert (tally.delivered, tally.failed, tally.dead) == (8, 3, 0)
    assert all("HTTP 400" in reason for reason in tally.errors)
    assert httpx.get(f"{fhir_server}/{rest[0].type}/{rest[0].id}").status_code == 404  # a transaction is whole


def test_what_is_refused_waits_and_then_is_dead(local: Store, tmp_path: Path, faulty: FaultyServer) -> None:
    settings = load_settings(home=tmp_path / "home", max_attempts=1)
    faulty.always = lambda _urls: Reply(status=422)
    queue(local, risk_of(1))

    tally = deliver(local, settings, faulty.url)
    again = deliver(local, settings, faulty.url)

    assert (tally.failed, tally.dead) == (0, 3)
    assert again.pending == 0
    with local.reading() as connection:
        [(_, _, state, _, error), *_] = outbox.list_errors(connection, faulty.url)
    assert state == "dead"
    assert error == "HTTP 422, invalid at Observation.value: SECRET of Jane Doe"


def test_a_refused_job_does_not_take_the_patients_other_jobs_along(
    local: Store, settings: Settings, faulty: FaultyServer
) -> None:
    good, bad = risk_of(1), risk_of(1, input_key="other")
    bad_urls = {f"{item.type}/{item.id}" for item in bad}
    faulty.always = lambda urls: Reply(status=400) if bad_urls & set(urls) else None
    with local.writing() as connection:
        model_id = jobs.register_model(connection, name="m", version="1", digest="d", distribution="x", spec={})
        unit, when = Unit(kind=UnitKind.ENCOUNTER, id=1), Instant(utc_us=0)
        due = [DueUnit(unit=unit, revision=1, input_key=key, prediction_time=when) for key in ("a", "b")]
        for item in due:
            jobs.enqueue(connection, model_id, [item])
        outbox.queue_many(connection, {1: good, 2: bad})

    tally = deliver(local, settings, faulty.url)

    assert (tally.delivered, tally.failed) == (3, 3)
    assert set(faulty.stored) == {f"{item.type}/{item.id}" for item in good}


def test_only_the_entries_that_a_busy_server_left_are_sent_again(
    local: Store, settings: Settings, faulty: FaultyServer
) -> None:
    faulty.script.extend([Reply(statuses={"Observation": 429}), Reply(statuses={"Observation": 409})])
    queue(local, risk_of(1))

    tally = deliver(local, settings, faulty.url)

    observation = [url for url in faulty.transactions[0] if url.startswith("Observation")]
    assert [len(urls) for urls in faulty.transactions] == [3, 1, 1]
    assert faulty.transactions[1] == faulty.transactions[2] == observation
    assert (tally.delivered, tally.failed) == (3, 0)


def test_an_entry_refused_inside_a_200_is_told_from_those_taken(
    local: Store, settings: Settings, faulty: FaultyServer
) -> None:
    faulty.script.append(Reply(statuses={"RiskAssessment": 422}))
    queue(local, risk_of(1))

    tally = deliver(local, settings, faulty.url)

    assert (tally.delivered, tally.failed) == (2, 1)
    assert tally.errors == {"HTTP 422, invalid at Observation.value": 1}


def test_retry_after_is_waited_for(local: Store, settings: Settings, faulty: FaultyServer) -> None:
    faulty.script.append(Reply(status=429, headers={"Retry-After": "1"}))
    queue(local, risk_of(1))

    tally = deliver(local, settings, faulty.url)

    assert tally.delivered == 3
    assert faulty.times[1] - faulty.times[0] >= 1.0


def test_a_server_that_names_a_long_wait_is_left_for_a_later_run(
    local: Store, settings: Settings, faulty: FaultyServer
) -> None:
    faulty.script.append(Reply(status=503, headers={"Retry-After": "3600"}))
    queue(local, risk_of(1))

    tally = deliver(local, settings, faulty.url)

    assert (tally.delivered, tally.failed) == (0, 3)
    assert len(faulty.transactions) == 1
    assert deliver(local, settings, faulty.url).pending == 0


@pytest.mark.parametrize(
    "reply",
    [Reply(cut=10), Reply(hang_up=True), Reply(status=502), Reply(wait_s=0.6)],
    ids=["cut", "drop", "502", "hang"],
)
def test_a_passing_fault_costs_nothing(reply: Reply, local: Store, tmp_path: Path, faulty: FaultyServer) -> None:
    settings = load_settings(home=tmp_path / "home", http_timeout_s=0.3)
    faulty.script.append(reply)
    queue(local, cohort(1, 2))

    tally = deliver(local, settings, faulty.url)

    assert (tally.delivered, tally.failed) == (8, 0)
    assert set(faulty.stored) == {f"{item.type}/{item.id}" for item in cohort(1, 2)}


def test_when_the_server_is_gone_the_run_stops_and_the_next_goes_on(
    local: Store, settings: Settings, faulty: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "MAX_ENTRIES", 6)
    taken = iter(range(1_000_000))
    faulty.always = lambda _urls: Reply(status=503) if next(taken) > 5 else None
    queue(local, cohort(*range(100)))

    with pytest.raises(ServerUnavailable, match="stopped answering"):
        deliver(local, settings, faulty.url)

    stored = len(faulty.stored)
    assert 0 < stored < 302 and len(faulty.transactions) < 50
    faulty.always = lambda _urls: None
    tally = deliver(local, settings, faulty.url)
    assert tally.delivered == 302 - stored
    assert set(faulty.stored) == {f"{item.type}/{item.id}" for item in cohort(*range(100))}


def test_a_server_that_is_away_for_many_runs_is_sent_everything_in_the_end(
    local: Store, tmp_path: Path, faulty: FaultyServer
) -> None:
    settings = load_settings(home=tmp_path / "home", max_attempts=2)
    faulty.always = lambda _urls: Reply(status=503)
    queue(local, cohort(1))
    for _ in range(3):
        with suppress(ServerUnavailable):
            assert deliver(local, settings, faulty.url).dead == 0

    faulty.always = lambda _urls: None

    assert deliver(local, settings, faulty.url).delivered == len(cohort(1))


def test_a_server_that_is_not_there_is_said_so_before_anything_is_tried(local: Store, settings: Settings) -> None:
    queue(local, cohort(1))
    url = f"http://127.0.0.1:{free_port()}/fhir"

    with pytest.raises(ServerUnavailable, match="check that the server runs"):
        deliver(local, settings, url)

    with local.reading() as connection:
        assert outbox.counts(connection)[url] == dict.fromkeys(outbox.STATES, 0) | {"pending": 5}


def test_a_wrong_address_is_a_configuration_error(local: Store, settings: Settings, fhir_server: str) -> None:
    with pytest.raises(ConfigurationError, match="base URL"):
        deliver(local, settings, fhir_server + "/nothing")


def test_the_catalog_goes_first_and_no_patient_twice_at_once(
    local: Store, settings: Settings, faulty: FaultyServer
) -> None:
    lock, seen = threading.Lock(), []
    patients = {f"{item.type}/{item.id}": item.envelope for item in cohort(*range(20))}

    def watch(urls: list[str]) -> None:
        with lock:
            seen.append({patients[url] for url in urls})

    faulty.always = watch
    queue(local, cohort(*range(20)))

    tally = deliver(local, settings, faulty.url)

    assert tally.delivered == 62
    assert seen[0] == {"catalog"}
    assert sum(map(len, seen)) == len(set().union(*seen)) == 21  # each patient in one transaction
    assert len(seen) < 21  # several patients in one


def test_a_patient_with_much_goes_in_several_transactions(
    local: Store, settings: Settings, faulty: FaultyServer
) -> None:
    much = [item for number in range(40) for item in risk_of(1, input_key=str(number))]
    queue(local, much)

    tally = deliver(local, settings, faulty.url)

    assert tally.delivered == 120
    assert max(len(urls) for urls in faulty.transactions) <= MAX_ENTRIES
    assert len(faulty.transactions) == 2


def test_the_token_goes_to_the_server_and_nowhere_else(
    local: Store, tmp_path: Path, faulty: FaultyServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    settings = load_settings(home=tmp_path / "home", fhir_token="TOKEN")
    faulty.script.append(Reply(status=400))
    queue(local, cohort(1))

    deliver(local, settings, faulty.url)

    assert faulty.authorizations == {"Bearer TOKEN"}
    assert "TOKEN" not in caplog.text
    assert "SECRET" not in caplog.text and "Patient/p1" not in caplog.text


# --- the run -------------------------------------------------------------------------------------------------


def test_a_run_is_audited_and_gives_the_target_back(store: Store, settings: Settings, tmp_path: Path) -> None:
    queue(store, cohort(1))

    deliver(store, settings, str(tmp_path / "out"))

    with store.reading() as connection:
        [(action, subject, detail)] = connection.exec_driver_sql("SELECT action, subject, detail FROM audit").all()
        [owner] = connection.exec_driver_sql("SELECT lease_owner FROM target").one()
    detail = json.loads(detail) if isinstance(detail, str) else detail
    assert (action, subject, detail["delivered"]) == ("deliver", str(tmp_path / "out"), 5)
    assert owner is None


def test_two_runs_at_once_are_one_after_the_other(local: Store, settings: Settings, tmp_path: Path) -> None:
    name = stored_name(str(tmp_path / "out"))
    with local.writing() as connection:
        outbox.claim_target(connection, name, "elsewhere|1|1|x", seconds=60, kind="folder")

    with pytest.raises(ServerUnavailable, match="another process"):
        deliver(local, settings, str(tmp_path / "out"))


def test_pages_hold_whole_envelopes(local: Store, settings: Settings, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(run, "PAGE", 4)
    queue(local, cohort(*range(10)))

    tally = deliver(local, settings, str(tmp_path / "out"))

    assert tally.delivered == 32
    assert lines(tmp_path / "out") == once(cohort(*range(10)))


@pytest.mark.parametrize("target", ["", "  ", "ftp://server/x", "https://x/fhir?access_token=SECRET"])
def test_what_is_no_target_is_said_so(target: str, local: Store, settings: Settings) -> None:
    with pytest.raises(ConfigurationError) as caught:
        deliver(local, settings, target)

    assert "SECRET" not in str(caught.value)


# --- DICOM objects ---------------------------------------------------------------------------------------------


def queue_object(store: Store, data: bytes, uid: str = "2.25.1") -> str:
    """A DICOM object of a result, in the object store and in the outbox; its file's name."""
    digest = store.objects.put(data)
    queue(store, [Outgoing(type=outbox.DICOM, id=uid, body=digest.encode(), sha256=digest, envelope="patient/1")])
    return f"{uid}.dcm"


def test_a_folder_gets_dicom_objects_as_files_of_their_own(local: Store, settings: Settings, tmp_path: Path) -> None:
    out = tmp_path / "out"
    queue(local, cohort(1))
    for number in range(20):
        queue_object(local, b"mask %d" % number, f"2.25.{number}")

    tally, again = deliver(local, settings, str(out)), deliver(local, settings, str(out))

    assert (tally.pending, tally.delivered, tally.failed, tally.dead) == (25, 25, 0, 0)
    assert again.pending == 0
    assert {file.name: file.read_bytes() for file in (out / "dicom").iterdir()} == {
        f"2.25.{number}.dcm": b"mask %d" % number for number in range(20)
    }
    assert lines(out) == once(cohort(1))


def test_a_server_is_sent_no_dicom_objects_and_lacks_none(
    local: Store, settings: Settings, faulty: FaultyServer
) -> None:
    queue(local, cohort(1))
    queue_object(local, b"mask")

    tally = deliver(local, settings, faulty.url)

    assert (tally.pending, tally.delivered) == (5, 5)
    with local.reading() as connection:
        assert outbox.counts(connection)[stored_name(faulty.url)]["pending"] == 0


def test_a_dicom_object_half_written_by_a_killed_process_is_made_whole(
    local: Store, settings: Settings, tmp_path: Path
) -> None:
    name = queue_object(local, b"mask")
    (tmp_path / "dicom").mkdir()
    (tmp_path / "dicom" / f".{name}.incoming").write_bytes(b"ma")

    deliver(local, settings, str(tmp_path))

    assert {file.name: file.read_bytes() for file in (tmp_path / "dicom").iterdir()} == {name: b"mask"}


def test_a_dicom_object_that_the_store_lost_is_put_aside_and_the_rest_goes_on(
    local: Store, settings: Settings, tmp_path: Path
) -> None:
    queue(local, cohort(1))
    queue_object(local, b"lost", "2.25.1")
    local.objects.path(sha256(b"lost").hexdigest()).unlink()
    queue_object(local, b"mask", "2.25.2")

    tally = deliver(local, settings, str(tmp_path / "out"))

    assert (tally.delivered, tally.failed) == (6, 1)
    assert dict(tally.errors) == {"object-missing": 1}
    assert [file.name for file in (tmp_path / "out" / "dicom").iterdir()] == ["2.25.2.dcm"]


def test_lost_dicom_files_are_written_anew_on_request(local: Store, settings: Settings, tmp_path: Path) -> None:
    queue(local, cohort(1))
    name = queue_object(local, b"mask")
    deliver(local, settings, str(tmp_path / "out"))
    (tmp_path / "out" / "dicom" / name).unlink()
    with local.writing() as connection:
        outbox.retry_deliveries(connection, stored_name(str(tmp_path / "out")))

    deliver(local, settings, str(tmp_path / "out"))

    assert (tmp_path / "out" / "dicom" / name).read_bytes() == b"mask"
    assert lines(tmp_path / "out") == once(cohort(1))


def test_a_folder_that_takes_no_dicom_files_is_named(local: Store, settings: Settings, tmp_path: Path) -> None:
    queue_object(local, b"mask")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "dicom").write_text("a file in its place")

    with pytest.raises(ConfigurationError, match=r"out cannot be written \(File exists\)"):
        deliver(local, settings, str(tmp_path / "out"))
