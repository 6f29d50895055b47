"""Exports of a real Bulk Data server over HTTP, taken into a store."""

import logging
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import select

from medflow.connections.endpoints import FhirSource
from medflow.connections.patience import Patience
from medflow.errors import ConfigurationError, ServerUnavailable, SourceUnavailable
from medflow.ingest import bulk
from medflow.ingest.bulk import fetch_export
from medflow.ingest.fetch import fetch
from medflow.ingest.tally import Tally
from medflow.store import Store, connections, watermarks
from medflow.store.tables import FhirResourceRow
from tests.distributions import environment
from tests.services.bulk_fhir import SECRET, BulkFhirServer, bulk_server, outcome
from tests.services.oauth import Client, authorisation_server

QUICK = Patience(attempts=3, first_wait_s=0.01, longest_wait_s=0.02)
once = pytest.mark.parametrize("engine", ["sqlite"], indirect=True)  # the engine makes no difference


@pytest.fixture
def server() -> Iterator[BulkFhirServer]:
    """Two patients with five observations each: a file of patients, two of observations."""
    with bulk_server() as started:
        for number in (1, 2):
            started.put(
                resourceType="Patient", id=f"p{number}", identifier=[{"system": "urn:mrn", "value": f"{number}"}]
            )
        for number in range(10):
            observe(started, number)
        started.per_file = 5
        yield started


def observe(server: BulkFhirServer, number: int, value: float = 70.0) -> None:
    server.put(
        resourceType="Observation",
        id=f"o{number}",
        status="final",
        code={"coding": [{"system": "http://loinc.org", "code": "8867-4"}]},
        subject={"reference": f"{server.url}/Patient/p{1 + number % 2}"},
        effectiveDateTime="2026-01-01T00:07:00Z",
        valueQuantity={"value": value, "system": "http://unitsofmeasure.org", "code": "/min"},
    )


@pytest.fixture
def told() -> Iterator[list[str]]:
    """What medflow logs, whatever an earlier test set up."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = logging.getLogger("medflow")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield lines
    logger.removeHandler(handler)
    logger.setLevel(before)


Export = Callable[..., Tally]


@pytest.fixture
def export(store, settings, server) -> Export:
    """Run one export into the store, as the source `ehr`, with these fields of the source."""

    def run(**fields) -> Tally:
        usual = {"kind": "fhir-server", "mode": "export", "types": ("Patient", "Observation"), "overlap_s": 0}
        source = FhirSource.model_validate({**usual, "url": server.url, **fields})
        return fetch_export(store, settings, source, "ehr", patience=QUICK)

    return run


def held(store: Store) -> list[str]:
    """What the store has, without what was deleted."""
    with store.reading() as connection:
        query = select(FhirResourceRow.type, FhirResourceRow.fhir_id).where(FhirResourceRow.deleted.is_(False))
        return sorted("/".join(row) for row in connection.execute(query))


def mark(store: Store, kind: str = "export system Observation") -> str | None:
    """How far exports were taken, as a moment."""
    with store.reading() as connection:
        until_us = watermarks.read_mark(connection, "ehr", kind).until_us
    return None if until_us is None else datetime.fromtimestamp(until_us / 1e6, UTC).isoformat().replace("+00:00", "Z")


def left(settings) -> list[str]:
    """Files that downloads left behind."""
    return [path.name for path in (settings.home / "fetching").rglob("*") if path.is_file() and path.name != ".lock"]


EVERYTHING = sorted(["Patient/p1", "Patient/p2", *(f"Observation/o{number}" for number in range(10))])


def test_an_export_is_taken_whole_and_the_next_one_asks_for_what_changed(store, settings, server, export):
    first = export()
    of_first = server.moment()
    observe(server, 3, value=90.0)
    observe(server, 10)
    server.delete("Observation", "o4")
    second = export()

    assert (first.offered, first.stored, first.rejected) == (12, 12, 0)
    assert "absent-reference" not in first.notes  # those by the server's full address were understood
    assert (second.offered, second.stored, second.notes["deleted"]) == (3, 3, 1)
    assert held(store) == sorted({*EVERYTHING, "Observation/o10"} - {"Observation/o4"})
    asked = server.asked("GET", r"\$export$")
    assert [seen.query.get("_since") for seen in asked] == [None, of_first.replace("Z", ".000Z")]
    assert asked[0].query["_type"] == "Patient,Observation"
    assert asked[0].query["_outputFormat"] == "application/fhir+ndjson"
    assert asked[0].headers["Accept"] == "application/fhir+json" and asked[0].headers["Prefer"] == "respond-async"
    assert mark(store) == server.moment()
    assert server.exports == {} and left(settings) == []  # both sides have let go


@once
@pytest.mark.parametrize(
    ("level", "path"),
    [("system", "/$export"), ("patient", "/Patient/$export"), ("Group/ward-3", "/Group/ward-3/$export")],
)
def test_an_export_may_be_of_all_of_the_patients_or_of_a_group(server, export, level, path):
    export(level=level)

    assert [seen.path for seen in server.asked("GET", r"\$export$")] == [path]


@once
def test_a_window_reaches_back_and_a_type_that_is_new_is_exported_from_its_beginning(store, server, export):
    export(types=("Patient",))
    export(overlap_s=5)

    asked = [(seen.query["_type"], seen.query.get("_since")) for seen in server.asked("GET", r"\$export$")[1:]]
    assert asked == [("Patient", "2026-01-01T00:00:07.000Z"), ("Observation", None)]
    assert held(store) == EVERYTHING
    export()
    assert len(server.asked("GET", r"\$export$")) == 4  # all together again


@once
def test_a_server_that_takes_its_time_is_asked_when_it_says_and_how_far_it_is_is_told(server, export, told):
    server.polls = [
        (202, {"Retry-After": "1"}, None),
        (429, {"Retry-After": "0"}, outcome("throttled")),
        (503, {}, None),
    ]
    started = time.monotonic()

    tally = export()

    assert tally.stored == 12
    assert time.monotonic() - started >= 1
    assert len(server.asked("GET", "/status/1$")) == 5
    assert "(40 % done)" in "".join(told) and SECRET not in "".join(told)


@once
def test_an_export_that_is_not_done_in_time_is_gone_on_with_by_the_next_run(store, server, export):
    server.pending, server.retry_after = 1, "100"
    with pytest.raises(SourceUnavailable, match="next run goes on waiting"):
        export(export_hours=0.01)
    assert mark(store) is None

    export()

    assert len(server.asked("GET", r"\$export$")) == 1
    assert held(store) == EVERYTHING


@once
def test_an_export_that_the_server_forgot_is_asked_for_anew(store, server, export):
    server.pending, server.retry_after = 1, "100"
    with pytest.raises(SourceUnavailable):
        export(export_hours=0.01)
    server.exports.clear()
    server.retry_after = "0"

    export()

    assert len(server.asked("GET", r"\$export$")) == 2
    assert held(store) == EVERYTHING


@once
def test_an_export_that_begins_too_late_for_what_is_asked_now_is_not_gone_on_with(store, server, export):
    export()
    server.pending, server.retry_after = 1, "100"
    with pytest.raises(SourceUnavailable):
        export(export_hours=0.01)
    with store.writing() as connection:  # as --since does
        watermarks.lower_marks(connection, "ehr", 0)
    server.pending = 0

    tally = export()

    assert server.asked("GET", r"\$export$")[-1].query["_since"] == "1970-01-01T00:00:00.000Z"
    assert (tally.unchanged, mark(store)) == (12, server.moment())
    assert server.exports == {}


@once
def test_an_export_that_failed_is_told_by_its_codes_and_let_go(store, server, export):
    server.polls = [(500, {}, outcome("processing"))]

    with pytest.raises(SourceUnavailable, match=r"HTTP 500, processing\)") as caught:
        export()

    assert SECRET not in str(caught.value)
    assert len(server.asked("DELETE", "/status/1")) == 1
    export()  # another one
    assert held(store) == EVERYTHING


@once
@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        (404, "not-found", "no system level"),
        (400, "not-supported", "HTTP 400, not-supported"),
        (403, "forbidden", "auth"),
    ],
)
def test_a_refused_kick_off_says_what_to_do(server, export, status, code, said):
    server.kick_offs = [(status, {}, outcome(code))]

    with pytest.raises(ConfigurationError, match=said) as caught:
        export()

    assert SECRET not in str(caught.value)


@once
def test_a_manifest_of_many_pages_is_one_export(store, server, export):
    server.per_file, server.per_page = 1, 5

    export()

    assert len(server.asked("GET", r"^/status/1/\d$")) == 2
    assert held(store) == EVERYTHING


@once
def test_a_manifest_that_is_cut_off_is_asked_for_again(store, server, export):
    server.polls = [(200, {}, ["no manifest"])]

    export()

    assert held(store) == EVERYTHING


# --- files -------------------------------------------------------------------------------------------------------


def big(server: BulkFhirServer) -> str:
    """Make the first file of observations a larger one; its name."""
    server.put(
        resourceType="Observation",
        id="big",
        status="final",
        code={"text": "x" * 300_000},
        subject={"reference": "Patient/p1"},
        valueString="seen",
    )
    server.per_file = 100
    return "1-output-Observation-0.ndjson"


@once
def test_a_download_that_breaks_goes_on_where_it_was(store, server, export):
    name = big(server)
    server.cuts[name] = [100_000, 50_000]

    export()

    assert held(store) == sorted([*EVERYTHING, "Observation/big"])
    asked = [seen.headers.get("Range") for seen in server.asked("GET", name)]
    assert asked == [None, "bytes=100000-", "bytes=150000-"]
    assert server.sent[name] == len(server.files[name])  # no byte came twice


@once
def test_a_server_without_ranges_is_asked_for_the_whole_again(store, server, export):
    name = big(server)
    server.ranges, server.cuts[name] = False, [100_000]

    export()

    assert held(store) == sorted([*EVERYTHING, "Observation/big"])
    assert server.sent[name] == len(server.files[name]) + 100_000


@once
def test_what_came_of_a_file_waits_for_the_next_run_and_compressed_files_are_resumed_too(store, server, export):
    name = big(server)
    server.gzipped, server.cuts[name] = True, [100, 100, 100]
    with pytest.raises(ServerUnavailable):
        export()
    assert mark(store) is None

    export()

    assert held(store) == sorted([*EVERYTHING, "Observation/big"])
    assert server.asked("GET", name)[-1].headers["Range"] == "bytes=300-"
    assert len(server.asked("GET", "1-output-Patient-1")) == 1
    assert len(server.asked("GET", r"\$export$")) == 1


@once
def test_a_file_that_is_longer_here_than_there_begins_anew(store, settings, server, export):
    name = big(server)
    server.cuts[name] = [100, 100, 100]
    with pytest.raises(ServerUnavailable):
        export()
    [part] = settings.home.rglob("*.part")
    part.write_bytes(bytes(2 * len(server.files[name])))

    export()

    assert held(store) == sorted([*EVERYTHING, "Observation/big"])


@once
def test_addresses_that_expired_are_asked_for_again(store, server, export):
    server.signature = 1
    manifest, calls = server.manifest, []

    def signed_anew(number: str, page: int) -> dict:
        given = manifest(number, page)
        calls.append(number)
        server.signature = len(calls) + (len(calls) == 1)  # those of the first manifest are too old at once
        return given

    server.manifest = signed_anew

    export()

    assert len(calls) == 2
    assert held(store) == EVERYTHING


@once
def test_a_file_that_is_gone_leaves_the_mark_where_it_was(store, settings, server, export):
    export()
    before = mark(store)
    observe(server, 20)
    server.per_file = 1
    observe(server, 21)
    server.export, make = (lambda *asked: remove(server, make(*asked))), server.export

    with pytest.raises(SourceUnavailable, match=r"of 2 files: 1 gone \(HTTP 404\)"):
        export()

    assert held(store) == sorted([*EVERYTHING, "Observation/o20"])  # what came is stored
    assert mark(store) == before
    assert server.exports == {} and left(settings) == []
    server.export = make
    again = export()
    assert (again.stored, again.unchanged) == (1, 1)
    assert mark(store) == server.moment()


def remove(server: BulkFhirServer, number: str) -> str:
    server.files.pop(f"{number}-output-Observation-1.ndjson")
    return number


@once
def test_a_file_larger_than_allowed_is_not_fetched_to_its_end(store, settings, server):
    small = settings.model_copy(update={"max_input_bytes": 50})
    source = FhirSource.model_validate({"kind": "fhir-server", "mode": "export", "url": server.url})

    with pytest.raises(ConfigurationError, match="larger than MEDFLOW_MAX_INPUT_BYTES"):
        fetch_export(store, small, source, "ehr", patience=QUICK)

    assert held(store) == [] and mark(store) is None


@once
def test_lines_are_counted_however_long_they_are(store, server, export, monkeypatch):
    monkeypatch.setattr(bulk, "LINE_BYTES", 16)

    export()

    assert held(store) == EVERYTHING and mark(store) is not None


@once
def test_fewer_resources_than_the_server_told_are_not_taken_for_all(store, server, export, told):
    server.add_to_count["1-output-Observation-1.ndjson"] = 2

    with pytest.raises(SourceUnavailable, match="1 short"):
        export()

    assert any("has 5 resources of 7" in line for line in told)
    assert held(store) == EVERYTHING and mark(store) is None


@once
def test_what_the_server_could_not_export_is_counted_by_code(store, server, export, told):
    server.errors = [outcome("processing"), outcome("processing"), outcome("informational", "information")]

    tally = export()

    assert tally.notes["export-error-processing"] == 2 and tally.notes["export-warning-informational"] == 1
    assert any("2 processing" in line for line in told) and SECRET not in "".join(told)
    assert held(store) == EVERYTHING  # the outcomes are no records


# --- credentials -------------------------------------------------------------------------------------------------

TOKEN = {"type": "bearer", "token": "the-token"}


def authorizations(server: BulkFhirServer, path: str) -> set[str | None]:
    return {seen.headers.get("Authorization") for seen in server.asked("GET", path)}


@pytest.fixture
def object_store(server) -> Iterator[BulkFhirServer]:
    """Another host, where the server's files lie."""
    with bulk_server() as other:
        other.files = server.files
        server.file_base = other.url
        yield other


@once
def test_files_of_the_server_itself_get_its_token_where_it_says_so(store, server, export):
    server.token = server.file_token = "the-token"
    server.requires_token = True

    export(auth=TOKEN)

    assert held(store) == EVERYTHING
    assert authorizations(server, "") == {"Bearer the-token"}
    server.requires_token, server.file_token = False, None
    observe(server, 1)
    export(auth=TOKEN)
    assert authorizations(server, "/files/2-") == {None}


@once
@pytest.mark.parametrize("redirected", [False, True])
def test_a_token_never_goes_to_another_host(store, server, object_store, export, redirected):
    server.token, server.requires_token = "the-token", True
    if redirected:
        server.file_base, server.redirect_to = "", object_store.url

    export(auth=TOKEN)

    assert held(store) == EVERYTHING
    assert len(object_store.requests) == 3
    assert authorizations(object_store, "") == {None}


@once
def test_a_status_address_at_another_host_gets_no_token(server, object_store, export):
    server.token = "the-token"
    server.kick_offs = [(202, {"Content-Location": f"{object_store.url}/status/1"}, None)]
    object_store.token = "the-token"

    with pytest.raises(ConfigurationError, match="no credentials of ours"):
        export(auth=TOKEN)

    assert authorizations(object_store, "") == {None}
    assert export(auth=TOKEN).stored == 12  # the server was mended


@once
def test_a_host_that_wants_the_token_gets_it_when_the_configuration_names_it(store, server, object_store, export):
    server.token = object_store.file_token = "the-token"
    server.requires_token = True
    host = object_store.url.split("/")[2]

    with pytest.raises(ConfigurationError, match=f"{host}.*file_hosts"):
        export(auth=TOKEN)
    assert authorizations(object_store, "") == {None}
    export(auth=TOKEN, file_hosts=(host,))

    assert held(store) == EVERYTHING


@once
def test_a_token_that_ends_while_an_export_runs_is_renewed(store, server, export):
    server.requires_token = True
    with authorisation_server() as oauth:
        oauth.clients["medflow"] = Client(secret="s3cret")

        def is_good(token: str) -> bool:
            if len(server.requests) in (2, 5):  # at a poll, and at a file
                oauth.end_all()
            return oauth.is_good(token)

        server.token = server.file_token = is_good
        auth = {"type": "client-credentials", "token_url": oauth.token_url, "client_id": "medflow"}
        export(auth={**auth, "client_secret": "s3cret"})

    assert held(store) == EVERYTHING
    assert len(authorizations(server, "")) > 2


# --- processes ---------------------------------------------------------------------------------------------------

FETCH = """
import sys
from medflow.config import load_settings
from medflow.connections.endpoints import FhirSource
from medflow.ingest import bulk
from medflow.ingest.bulk import fetch_export
from medflow.store import Store

source = FhirSource(kind="fhir-server", mode="export", url=sys.argv[1], types=("Patient", "Observation"), overlap_s=0)
settings = load_settings()
fetch_export(Store(settings).open(), settings, source, "ehr")
"""


@once
def test_a_killed_process_asks_for_no_second_export_and_fetches_no_file_twice(store, settings, server, export):
    server.hangs.add("1-output-Observation-1.ndjson")  # half of it comes
    env = environment(settings.home, Path("/nowhere"))
    process = subprocess.Popen([sys.executable, "-c", FETCH, server.url], env=env)
    try:
        deadline = time.monotonic() + 30
        while len(held(store)) < 5 and time.monotonic() < deadline:
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    server.hangs.clear()

    export()

    assert held(store) == EVERYTHING
    assert len(server.asked("GET", r"\$export$")) == 1
    assert [server.sent[name] for name in server.files] == [len(body) for body in server.files.values()]
    assert left(settings) == []


@once
def test_the_standing_of_a_source_says_that_its_export_failed(store, settings, server):
    fields = {"kind": "fhir-server", "mode": "export", "url": server.url, "types": ("Patient",)}
    source = FhirSource.model_validate(fields)
    server.polls = [(500, {}, outcome("processing"))]

    with pytest.raises(SourceUnavailable):
        fetch(store, settings, source, "ehr")
    with store.reading() as connection:
        [line] = connections.standing(connection)
    assert line.failures == 1 and "HTTP 500, processing" in (line.error or "")

    assert fetch(store, settings, source, "ehr").stored == 2
