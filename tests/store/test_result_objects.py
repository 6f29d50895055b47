"""DICOM objects of jobs: on record with the job, sent to folders only, and gone from the outbox with their result."""

from __future__ import annotations

from dataclasses import replace

from medflow.records import DueUnit, Instant, ResultObject, Unit, UnitKind
from medflow.store import Store, jobs, outbox, result_objects, standing
from medflow.store.ledger import now_us
from tests.results import risk_of

FOLDER, SERVER, ME = "/results", "https://fhir.example/r4", "somewhere|1|1|me"
MASK = ResultObject(
    kind="segmentation",
    sop_class_uid="1.2.840.10008.5.1.4.1.1.66.4",
    sop_instance_uid="2.25.1",
    series_uid="2.25.2",
    study_uid="2.25.3",
    sha256="a" * 64,
    size=1000,
    content="c" * 64,
    outputs=("liver", "spleen"),
)
OTHER = replace(MASK, sop_instance_uid="2.25.9", sha256="b" * 64, content="d" * 64)


def job_of(store: Store, input_key: str = "k") -> int:
    with store.writing() as connection:
        model_id = jobs.register_model(connection, name="m", version="1", digest="d", distribution="x", spec={})
        unit = Unit(kind=UnitKind.SERIES, id=1)
        due = DueUnit(unit=unit, revision=1, input_key=input_key, prediction_time=Instant(utc_us=0))
        jobs.enqueue(connection, model_id, [due])
        [job] = jobs.lease(connection, model_id, ME, limit=1, seconds=60, max_attempts=5)
    return job.id


def commit(store: Store, job_id: int, *objects: ResultObject) -> None:
    """As scoring does: the record and the outbox in one transaction."""
    files = [result_objects.outgoing(item, "patient/1") for item in objects]
    with store.writing() as connection:
        result_objects.record(connection, {job_id: objects})
        outbox.queue(connection, job_id, [*risk_of(1), *files])


def sent(store: Store, target: str) -> list[outbox.PendingResource]:
    """What a delivery would send; noted as delivered."""
    with store.writing() as connection:
        outbox.claim_target(connection, target, ME, seconds=60, kind="fhir" if "://" in target else "folder")
        envelopes = outbox.pending_envelopes(connection, target, at_us=now_us())
        found = outbox.load_resources(connection, target, [key for keys in envelopes for key in keys])
        outbox.record_delivered(connection, target, list(found.values()))
    return list(found.values())


def dicom(resources: list[outbox.PendingResource]) -> list[tuple[str, bytes]]:
    return [(item.id, item.body) for item in resources if item.type == outbox.DICOM]


def recorded(store: Store, job_id: int) -> list[ResultObject]:
    with store.reading() as connection:
        return result_objects.of_job(connection, job_id)


def test_what_a_job_made_is_on_record(store: Store) -> None:
    job_id = job_of(store)

    commit(store, job_id, MASK, OTHER)

    assert recorded(store, job_id) == [replace(item, content="") for item in (MASK, OTHER)]


def test_a_folder_is_sent_objects_with_their_resources_and_once(store: Store) -> None:
    commit(store, job_of(store), MASK)

    assert dicom(sent(store, FOLDER)) == [("2.25.1", b"a" * 64)]
    assert sent(store, FOLDER) == []


def test_a_server_is_sent_none_and_none_waits_for_it(store: Store) -> None:
    commit(store, job_of(store), MASK)

    assert len(sent(store, SERVER)) == len(risk_of(1))
    commit(store, job_of(store, "later"), OTHER)
    with store.reading() as connection:
        counted = outbox.counts(connection)[SERVER]
        (line,) = standing.deliveries(connection, at_us=now_us())
    assert counted == {"pending": 0, "delivered": 3, "failed": 0, "dead": 0, "withheld": 0}
    assert dict(line.states) == counted
    assert line.oldest_us is None


def test_the_same_object_made_again_is_not_sent_again(store: Store) -> None:
    job_id = job_of(store)
    commit(store, job_id, MASK)
    sent(store, FOLDER)

    commit(store, job_id, replace(MASK, sha256="e" * 64))  # another day's date in it

    assert sent(store, FOLDER) == []
    assert [item.sha256 for item in recorded(store, job_id)] == ["e" * 64]


def test_another_mask_of_the_same_job_takes_the_place_of_the_first(store: Store) -> None:
    job_id = job_of(store)
    commit(store, job_id, MASK)

    commit(store, job_id, OTHER)

    assert [item.sop_instance_uid for item in recorded(store, job_id)] == ["2.25.9"]
    assert dicom(sent(store, FOLDER)) == [("2.25.9", b"b" * 64)]


def test_an_object_of_a_superseded_result_is_sent_to_nobody_any_more(store: Store) -> None:
    old, new = job_of(store), job_of(store, "later")
    commit(store, old, MASK)
    sent(store, "/elsewhere")

    with store.writing() as connection:
        outbox.supersede(connection, [old], "amended")
    commit(store, new, OTHER)

    assert [uid for uid, _ in dicom(sent(store, FOLDER))] == ["2.25.9"]
    assert [uid for uid, _ in dicom(sent(store, "/elsewhere"))] == ["2.25.9"]
    assert [item.sop_instance_uid for item in recorded(store, old)] == ["2.25.1"]  # on record all the same


def test_a_result_that_holds_again_is_sent_with_its_object(store: Store) -> None:
    job_id = job_of(store)
    commit(store, job_id, MASK)
    with store.writing() as connection:
        outbox.supersede(connection, [job_id], "amended")

    commit(store, job_id, MASK)

    assert dicom(sent(store, FOLDER)) == [("2.25.1", b"a" * 64)]
