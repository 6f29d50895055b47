import time
from datetime import timedelta

import httpx
import orjson
import pytest
from hypothesis import HealthCheck, Phase, example, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from sqlalchemy import select

from medflow import replay, steps
from medflow.config import load_settings
from medflow.connections.endpoints import FhirSource
from medflow.connections.patience import Patience
from medflow.errors import ConfigurationError, SourceUnavailable
from medflow.fhir import search
from medflow.ingest.fhir_server import fetch_records
from medflow.registry import Registry
from medflow.store import watermarks
from medflow.store.ledger import list_rejects
from medflow.store.tables import FhirResourceRow, MeasurementRow, PatientRow
from tests.services.paging_fhir import SHIFTING, SNAPSHOT, START, paging_fhir

ONCE = Patience(attempts=1)
SOON = Patience(attempts=3, first_wait_s=0.01, longest_wait_s=0.02)
MINUTE = timedelta(minutes=1)


@pytest.fixture
def engine():
    """One engine will do but where SQL itself is the matter: what is written is written by the ingest of files."""
    return "sqlite"


@pytest.fixture
def server():
    with paging_fhir() as running:
        yield running


@pytest.fixture
def take(store, settings, server):
    """Read the server once; gives the tally."""

    def fetch(name="ehr", patience=ONCE, progress=None, **options):
        options = {"types": ("Patient", "Observation"), "count": 4, **options}
        source = FhirSource.model_validate({"kind": "fhir-server", "url": server.url, **options})
        return fetch_records(store, settings, source, name, patience=patience, progress=progress)

    return fetch


def patient(number, **elements):
    return {"resourceType": "Patient", "id": f"p{number}", **elements}


def observation(number, of=1, value=70.5, **elements):
    return {
        "resourceType": "Observation",
        "id": f"o{number}",
        "status": "final",
        "code": {"coding": [{"system": "http://loinc.org", "code": "8867-4"}]},
        "subject": {"reference": f"Patient/p{of}"},
        "effectiveDateTime": "2026-01-01T00:07:00Z",
        "valueQuantity": {"value": value, "system": "http://unitsofmeasure.org", "code": "/min"},
        **elements,
    }


def held(store, system="local"):
    """Version, or "deleted", by type and id."""
    query = select(FhirResourceRow).where(FhirResourceRow.source == system)
    with store.reading() as connection:
        rows = connection.execute(query).all()
    return {f"{row.type}/{row.fhir_id}": "deleted" if row.deleted else row.version for row in rows}


def mark(store, kind, name="ehr"):
    with store.reading() as connection:
        return watermarks.read_mark(connection, name, kind).until_us


def test_everything_is_read_at_first_and_then_what_changed(take, store, server):
    for number in range(9):
        server.now += 10 * MINUTE
        server.put(patient(number))
    server.put(observation(1))
    first = take()
    server.now += 60 * MINUTE
    server.put(patient(3, gender="male"))
    server.put(observation(2))
    second = take()
    assert (first.offered, first.stored) == (10, 10)
    assert second.stored == 2
    assert second.offered <= 4  # what was last seen is seen again, and what lies in the overlap with it
    assert held(store)["Patient/p3"] == "2"


def test_a_run_without_changes_changes_nothing(take, server):
    server.put(patient(1))
    take()
    server.now += 60 * MINUTE
    tally = take()
    assert (tally.stored, tally.rejected) == (0, 0)


def test_next_links_are_followed_where_the_server_does_not_sort(take, store, server):
    server.sorts = False
    for number in range(11):
        server.put(patient(number))
    assert take().stored == 11
    assert sum("_page" in path for path in server.requests) == 2
    assert mark(store, "Patient") is not None


@pytest.mark.parametrize("absolute", [True, False])
def test_next_links_lead_on_among_resources_of_one_moment(take, server, absolute):
    server.tick, server.absolute = timedelta(), absolute
    for number in range(11):
        server.put(patient(number))
    tally = take()
    assert (tally.offered, tally.stored) == (11, 11)
    assert sum("_page" in path for path in server.requests) == 2


def test_nothing_is_missed_when_pages_shift_while_they_are_read(take, store, server):
    for number in range(12):
        server.put(patient(number))

    def change_what_was_read(its, path):
        if len(its.searches) in (2, 3, 4):
            its.put(patient(len(its.searches), gender="female"))

    server.on_request = change_what_was_read
    take()
    assert len(held(store)) == 12


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_link_to_another_server_is_not_followed_and_credentials_stay_here(take, server, host):
    with paging_fhir() as other:
        port = other.url.split(":")[2]
        server.sorts, server.next_link = False, lambda link: f"http://user@{host}:{port}{link.partition('?')[1]}page=2"
        for number in range(5):
            server.put(patient(number))
        with pytest.raises(ConfigurationError, match=r"another address.*`also`"):
            take(auth={"type": "basic", "user": "medflow", "password": "secret"})
        assert other.requests == []
    assert all(server.authorizations)


def test_a_server_behind_a_proxy_is_read_by_the_address_that_is_configured(take, store, server):
    server.sorts, server.public = False, "http://internal.example:8080/r4"
    for number in range(9):
        server.put(patient(number))
    server.put(observation(1, subject={"reference": "http://internal.example:8080/r4/Patient/p1"}))
    assert take(also=("http://internal.example:8080/r4",)).stored == 10
    with store.reading() as connection:
        assert len(connection.execute(select(PatientRow.id)).all()) == 9


def test_an_absolute_reference_under_the_base_url_is_the_same_patient(take, store, server):
    server.put(patient(1))
    server.put(observation(1, subject={"reference": f"{server.url}/Patient/p1"}))
    take()
    with store.reading() as connection:
        assert len(connection.execute(select(PatientRow.id)).all()) == 1
        assert len(connection.execute(select(MeasurementRow.resource_id)).all()) == 1


def test_resources_of_another_server_are_refused(take, store, server):
    server.put(patient(1))
    server.page_body = lambda body: body.replace(
        b'"fullUrl": "%b/Patient/p1"' % server.url.encode(), b'"fullUrl": "http://other.example/Patient/p1"'
    )
    tally = take(types=("Patient",))
    assert (tally.offered, tally.reasons) == (1, {"identity-conflict": 1})


def test_a_circle_of_links_ends(take, server):
    server.sorts = False
    for number in range(9):
        server.put(patient(number))
    links = []
    server.next_link = lambda link: links.append(link) or links[0]
    with pytest.raises(SourceUnavailable, match="circle"):
        take()


def test_links_that_lead_on_without_end_to_nothing_are_left(take, store, server, monkeypatch):
    monkeypatch.setattr(search, "BARREN", 5)
    links = (f"{server.url}/Patient?n={number}" for number in range(1000))

    def empty(body):
        if b"searchset" not in body:
            return body
        link = {"relation": "next", "url": next(links)}
        return orjson.dumps({"resourceType": "Bundle", "type": "searchset", "link": [link]})

    server.page_body = empty
    with pytest.raises(SourceUnavailable, match="pages with nothing on them"):
        take(types=("Patient",))
    assert len(server.requests) < 20
    assert mark(store, "Patient") is None


def test_a_window_whose_links_expire_is_searched_anew(take, store, server):
    server.sorts, server.paging, server.lifetime = False, SNAPSHOT, 2
    for number in range(9):
        server.put(patient(number))
    expired = []

    def lets_live_after_the_first(its, path):
        if "_page" in path and not expired:
            expired.append(path)
            return 410

    server.on_request = lets_live_after_the_first
    assert take(types=("Patient",)).stored == 9


def test_links_that_always_expire_are_told_and_the_mark_stays(take, store, server):
    server.sorts, server.on_request = False, lambda _server, path: 410 if "_page" in path else None
    for number in range(9):
        server.put(patient(number))
    with pytest.raises(SourceUnavailable, match="larger `count`"):
        take(types=("Patient",))
    assert mark(store, "Patient") is None


def test_what_came_before_a_failure_is_stored_and_the_next_run_goes_on_there(take, store, server):
    for number in range(12):
        server.now += MINUTE
        server.put(patient(number))
    server.on_request = lambda its, _path: 503 if len(its.searches) == 3 else None
    with pytest.raises(SourceUnavailable, match="HTTP 503"):
        take(overlap_s=0)
    before = len(held(store))
    server.requests.clear()
    server.on_request = lambda _server, _path: None
    tally = take(overlap_s=0)
    assert 0 < before < 12
    assert len(held(store)) == 12
    assert "_lastUpdated" in server.searches[0]
    assert tally.offered < 12


def test_a_page_that_is_cut_off_is_asked_for_again(take, server):
    server.put(patient(1))
    cut = []
    server.page_body = lambda body: body if cut or cut.append(1) else body[:-20]
    assert take(patience=SOON).stored == 1


@pytest.mark.parametrize("status", [400, 403, 404, 501])
def test_a_type_that_is_refused_is_told_and_the_others_are_read(take, server, status):
    server.refused = {"Patient": status}
    server.put(observation(1))
    tally = take()
    assert tally.stored == 1
    assert f"HTTP {status}" in tally.broken["Patient"]


def test_a_server_that_refuses_every_type_is_an_error(take, server):
    server.refused = {"Patient": 403, "Observation": 403}
    with pytest.raises(ConfigurationError, match="HTTP 403.*scopes"):
        take()


def test_types_that_a_server_does_not_offer_are_told_where_they_were_asked_for(take, server):
    server.types = ("Patient",)
    server.put(patient(1))
    assert "CapabilityStatement" in take().broken["Observation"]


def test_a_bad_resource_is_a_reject_that_says_where_it_came_from_and_the_rest_is_taken(take, store, server):
    server.put(patient(1))
    server.put(observation(1, status="no such status"))
    server.put(observation(2))
    tally = take()
    with store.reading() as connection:
        (reject,) = list_rejects(connection)
    assert (tally.stored, tally.rejected) == (2, 1)
    assert (reject.origin, reject.payload) == ("ehr/Observation/o1", True)


def test_a_reject_of_a_server_is_replayed_as_of_its_system(store, settings, server):
    server.put(observation(1, subject={"reference": f"{server.url}/Patient/p1"}, issued="2026-01-01T00:08:00"))
    ehr = {"kind": "fhir-server", "url": server.url, "types": ["Observation"], "source": "lab"}
    settings = load_settings(home=settings.home, sources={"ehr": ehr})
    fetch_records(store, settings, FhirSource.model_validate(ehr), "ehr", patience=ONCE)
    assert held(store, "lab") == {}
    again = load_settings(home=settings.home, sources={"ehr": ehr}, timezone="Europe/Berlin")
    tally = replay.replay_rejects(steps.Site(settings=again, store=store, registry=Registry(models={}, broken=())))
    assert (tally.stored, tally.rejected) == (1, 0)
    assert held(store, "lab") == {"Observation/o1": "1"}
    with store.reading() as connection:
        assert len(connection.execute(select(MeasurementRow.resource_id)).all()) == 1


def test_included_resources_come_with_what_includes_them(take, store, server):
    server.put(patient(1))
    server.put(observation(1))
    take(types=("Observation",), include=("Observation:subject", "Encounter:subject"))
    assert set(held(store)) == {"Patient/p1", "Observation/o1"}
    assert all("Encounter" not in path for path in server.requests)


def test_what_the_server_has_to_say_is_told_apart_from_what_it_has(take, server):
    server.warns = True
    server.put(patient(1))
    tally = take(types=("Patient",))
    assert tally.offered == 1
    assert tally.notes["server-warning:not-supported"] == 1


def test_deletions_are_seen_in_the_history(take, store, server):
    server.put(patient(1))
    server.put(patient(2))
    take()
    server.delete("Patient", "p1")
    server.delete("Patient", "p2")
    server.put(patient(2))
    server.held["Patient", "p2"].deleted = False
    take()
    assert held(store) == {"Patient/p1": "deleted", "Patient/p2": "3"}


def test_a_server_without_a_history_is_said_to_tell_no_deletions(take, server):
    server.history, server.types = False, ("Patient",)
    server.put(patient(1))
    assert take(types=("Patient",)).notes["deletions-not-told"] == 1


def test_a_server_that_ignores_lastUpdated_is_noticed(take, server):
    server.filters = False
    for number in range(9):
        server.now += 60 * MINUTE
        server.put(patient(number))
    take(types=("Patient",))
    tally = take(types=("Patient",))
    assert tally.notes["ignores-lastUpdated"] == tally.notes["self-link-without-lastUpdated"] == 1
    assert tally.stored == 0


def test_no_mark_is_set_behind_an_answer_that_is_cut_off(take, store, server):
    server.sorts, server.next_links = False, False
    for number in range(9):
        server.put(patient(number))
    server.put(patient(0, active=True))  # which comes first, and is the newest
    server.self_links = False
    tally = take(types=("Patient",))
    assert tally.broken == {"Patient": "the server cuts its answers off without a next link: choose a larger `count`"}
    assert mark(store, "Patient") is None
    take(types=("Patient",), count=20)
    assert len(held(store)) == 9


def test_a_server_that_finds_nothing_by_lastUpdated_is_read_whole(take, store, server):
    server.filters, server.finds_nothing, server.self_links = False, True, False
    server.put(patient(1))
    take(types=("Patient",))
    server.put(patient(2))
    tally = take(types=("Patient",))
    assert tally.notes["finds-nothing-by-lastUpdated"] == 1
    assert "Patient/p2" in held(store)


def test_everything_is_read_of_the_patients_that_changed(take, store, server):
    for number in (1, 2):
        server.put(patient(number))
        server.put(observation(number, of=number))
    take(mode="everything", types=("Patient",))
    server.now += 60 * MINUTE
    server.put(observation(3, of=1))
    server.put(patient(1, gender="male"))
    server.requests.clear()
    take(mode="everything", types=("Patient",))
    assert held(store)["Observation/o3"] == "1"
    assert sum("$everything" in path for path in server.requests) == 2  # p2 is seen once more, as the last of before


def test_a_server_that_has_patients_and_not_everything_is_told_and_its_mark_stays(take, store, server):
    server.everything = False
    server.put(patient(1))
    tally = take(mode="everything", types=("Patient",))
    assert "HTTP 404" in tally.broken["Patient/$everything"]
    assert tally.notes["patient-gone"] == 0
    assert mark(store, "Patient/$everything") is None


def test_no_more_patients_are_asked_for_where_none_of_the_first_is_given(take, server):
    server.everything = False
    for number in range(30):
        server.put(patient(number))
    with pytest.raises(ConfigurationError, match="mode search"):
        take(mode="everything", types=("Patient",))
    assert sum("$everything" in path for path in server.requests) <= 10


def test_a_mark_does_not_follow_a_resource_of_the_future(take, store, server):
    server.put(patient(1))
    stored = server.put(patient(2))
    stored["meta"]["lastUpdated"] = "2099-01-01T00:00:00Z"
    take(types=("Patient",))
    assert 0 < (mark(store, "Patient") or 0) <= (START + MINUTE).timestamp() * 1_000_000


def test_the_next_page_is_asked_for_while_one_is_written(take, server):
    for number in range(8):
        server.put(patient(number))
    asked = []

    def progress(_count):
        deadline = time.monotonic() + 5
        while len(server.searches) < 2 and time.monotonic() < deadline:
            time.sleep(0.005)
        asked.append(len(server.searches))

    take(types=("Patient",), progress=progress)
    assert asked[0] >= 2


def test_two_servers_are_kept_apart(take, store, settings, server):
    server.put(patient(1))
    take(types=("Patient",))
    with paging_fhir() as other:
        other.put(patient(1))
        lab = FhirSource.model_validate({"kind": "fhir-server", "url": other.url, "types": ("Patient",)})
        with pytest.raises(ConfigurationError, match="`source`"):
            fetch_records(store, settings, lab, "lab", patience=ONCE)
        named = lab.model_copy(update={"source": "lab"})
        fetch_records(store, settings, named, "lab", patience=ONCE)
    with store.reading() as connection:
        assert len(connection.execute(select(PatientRow.id)).all()) == 2


def test_marks_of_another_server_are_not_believed(take, store, settings, server):
    server.now += timedelta(days=300)
    server.put(patient(1))
    take(types=("Patient",))
    with paging_fhir() as moved:
        moved.put(patient(2))
        source = FhirSource.model_validate({"kind": "fhir-server", "url": moved.url, "types": ("Patient",)})
        same = source.model_copy(update={"source": "local"})  # said to be the same system
        fetch_records(store, settings, same, "ehr", patience=ONCE)
    assert set(held(store)) == {"Patient/p1", "Patient/p2"}


def test_a_server_that_nobody_here_wrote_is_read_twice(store, settings, fhir_server):
    for _ in range(5):
        httpx.post(f"{fhir_server}/Patient", json={"resourceType": "Patient"}).raise_for_status()
    source = FhirSource.model_validate(
        {"kind": "fhir-server", "url": fhir_server, "types": ("Patient",), "count": 2, "overlap_s": 0}
    )
    first = fetch_records(store, settings, source, "medplum", patience=ONCE)
    name = httpx.get(f"{fhir_server}/Patient?_count=1").json()["entry"][0]["resource"]
    httpx.put(f"{fhir_server}/Patient/{name['id']}", json={**name, "gender": "other"}).raise_for_status()
    second = fetch_records(store, settings, source, "medplum", patience=ONCE)
    assert (first.stored, first.rejected, first.broken) == (5, 0, {})  # though its answers end without next links
    assert (second.stored, second.rejected) == (1, 0)


# --- whatever happens, each resource arrives once ------------------------------------------------------------------

LATE_S = 30
Changes = st.tuples(st.sampled_from(["put", "put", "put", "delete", "wait"]), st.integers(0, 9), st.integers(0, LATE_S))
Crash = st.one_of(st.none(), st.tuples(st.sampled_from(["request", "committed"]), st.integers(1, 6)))
Round = st.tuples(st.lists(Changes, max_size=12), st.lists(st.one_of(st.none(), Changes), max_size=8), Crash)
_systems = iter(range(1_000_000))


class Killed(Exception):
    """Stands for what ends a process."""


def apply(server, change):
    what, number, seconds = change
    key = ("Patient", f"p{number}")
    if what == "put":
        server.put(patient(number, multipleBirthInteger=seconds), late=timedelta(seconds=seconds))
        server.held[key].deleted = False
    elif what == "delete" and key in server.held and not server.held[key].deleted:
        server.delete(*key)
    elif what == "wait":
        server.now += timedelta(seconds=10 * seconds)


SHIFTS = (
    [(what, number, 10) for number in range(9) for what in ("put", "wait")],
    [None, None, None, ("put", 0, 1), ("put", 1, 1)],
    None,
)


@example(rounds=[SHIFTS], count=3, sorts=True, self_links=True, skew_s=0, dated=True)
@example(
    rounds=[([("put", 0, 0)], [], None), ([], [("delete", 0, 0)], None)],
    count=3,
    sorts=False,
    self_links=False,
    skew_s=32,
    dated=True,
)
@example(
    rounds=[([("put", 0, 0)], [], ("committed", 1)), ([("delete", 0, 0)], [], None)],
    count=3,
    sorts=False,
    self_links=False,
    skew_s=-50_000,
    dated=True,
)
@examples(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    phases=(Phase.explicit, Phase.reuse, Phase.generate),  # shrinking would read servers for minutes
)
@given(
    rounds=st.lists(Round, min_size=1, max_size=4),
    count=st.integers(3, 5),
    sorts=st.booleans(),
    self_links=st.booleans(),
    skew_s=st.integers(-80_000, 80_000),
    dated=st.booleans(),
)
def test_every_resource_arrives_once_whatever_dies_when_and_whose_clock_is_wrong(
    store, settings, rounds, count, sorts, self_links, skew_s, dated
):
    system = f"s{next(_systems)}"
    # only a search in order stands changes under way where pages shift: other servers' pages must be snapshots
    paging = SHIFTING if sorts and self_links else SNAPSHOT
    with paging_fhir(
        paging=paging, sorts=sorts, self_links=self_links, date_skew=timedelta(seconds=skew_s), dated=dated
    ) as server:
        options = {"types": ("Patient",), "count": count, "overlap_s": LATE_S + 1, "source": system}
        source = FhirSource.model_validate({"kind": "fhir-server", "url": server.url, **options})

        def run(under_way, crash):
            pending = list(under_way)
            begun, taken = len(server.requests), []

            def meanwhile(its, _path):
                if crash is not None and crash[0] == "request" and len(its.requests) - begun == crash[1]:
                    return 503
                change = pending.pop(0) if pending else None
                if change is not None and change[0] != "wait":
                    apply(its, change)

            def progress(_count):
                taken.append(1)
                if crash is not None and crash[0] == "committed" and len(taken) == crash[1]:
                    raise Killed

            server.on_request = meanwhile
            fetch_records(store, settings, source, system, patience=ONCE, progress=progress)

        for before, under_way, crash in rounds:
            for change in before:
                apply(server, change)
            try:
                run(under_way, crash)
            except (Killed, SourceUnavailable):
                assert crash is not None
        server.now += timedelta(seconds=LATE_S)  # whatever was late is there by now
        run([], None)
        expected = {f"Patient/{name}": str(item.version) for (_, name), item in server.held.items() if not item.deleted}
        found = {name: version for name, version in held(store, system).items() if version != "deleted"}
        assert found.items() >= expected.items()
        if dated:  # else nothing but our clock, which is months ahead, says from when on to ask for deletions
            assert found == expected
