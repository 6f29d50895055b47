"""A score that is asked again every night: each prediction counts, with what came after it; on both databases."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import orjson
import pytest

from medflow import steps
from medflow.config import LabelTable
from medflow.errors import ConfigurationError
from medflow.evaluation.outcomes import Moment, Question, outcomes_of
from medflow.plugin import SNOMED, Coding
from medflow.records import Instant, UnitKind
from medflow.registry import Registry
from tests.evaluation.test_run import registered
from tests.stays import HeartRisk, Stay, write_stays

ON_SQLITE = pytest.mark.parametrize("engine", ["sqlite"], indirect=True)  # what no SQL decides
SEPSIS = Coding(system=SNOMED, code="91302008")
NIGHTS = [datetime(2026, 1, 1 + night, 6, tzinfo=UTC) for night in range(3)]
STAYS = [Stay(number=number, rate=80 + number) for number in range(12)]  # until 2026-01-05T00:00Z


class NextDay(HeartRisk):
    """Death within a day of the prediction, from the hour before it."""

    spec = replace(
        HeartRisk.spec,
        accepts=(replace(HeartRisk.spec.accepts[0], anchor="prediction-time"),),
        outputs=(replace(HeartRisk.spec.outputs[0], horizon=timedelta(days=1), outcome=SEPSIS),),
    )


@pytest.fixture
def site(store, settings) -> steps.Site:
    registry = Registry(models={"heart-risk": registered(NextDay)}, broken=())
    return steps.Site(settings=settings, store=store, registry=registry)


def resource(kind: str, name: str, stay: Stay, **fields) -> bytes:
    return orjson.dumps(
        {
            "resourceType": kind,
            "id": name,
            "subject": {"reference": f"Patient/p{stay.number}"},
            "encounter": {"reference": f"Encounter/e{stay.number}"},
            **fields,
        }
    )


def take(site: steps.Site, path, lines: list[bytes]) -> None:
    path.write_bytes(b"\n".join(lines))
    assert steps.ingest(site, steps.source_of("fhir", [path])).rejected == 0


def rate(stay: Stay, at: datetime, value: float, name: str = "") -> bytes:
    return resource(
        "Observation",
        name or f"r{stay.number}-{at:%d}",
        stay,
        status="final",
        code={"coding": [{"system": "http://loinc.org", "code": "8867-4"}]},
        effectiveDateTime=(at - timedelta(minutes=30)).isoformat(),
        valueQuantity={"value": value, "unit": "/min", "system": "http://unitsofmeasure.org", "code": "/min"},
    )


def three_nights(site: steps.Site, folder) -> steps.Site:
    """Twelve stays, all measured and scored every night."""
    steps.ingest(site, steps.source_of("fhir", [write_stays(folder / "in", STAYS)]))
    for night, at in enumerate(NIGHTS):
        take(site, folder / f"night{night}.ndjson", [rate(stay, at, stay.rate + 5 * night) for stay in STAYS])
        assert steps.score(site, ["heart-risk"], as_of=Instant.of(at)).done == 12
    return site


def condition(stay: Stay, onset: str, **fields) -> bytes:
    code = {"coding": [{"system": SEPSIS.system, "code": SEPSIS.code}]}
    return resource("Condition", f"c{stay.number}", stay, code=code, onsetDateTime=onset, **fields)


def test_every_prediction_counts_with_what_came_in_its_own_horizon(site, tmp_path):
    site = three_nights(site, tmp_path)
    onsets = ["2026-01-01T12:00:00Z", "2026-01-02T12:00:00Z", "2026-01-04T00:00:00Z"]
    take(site, tmp_path / "c.ndjson", [condition(stay, onset) for stay, onset in zip(STAYS, onsets, strict=False)])

    found = steps.evaluate(site, "heart-risk")

    # horizons end at 06:00 on the 2nd, 3rd and 4th: each onset lies in one, and is known to those that follow it
    assert (found.counted, found.predictions, found.patients) == ("every", 36, 12)
    assert found.left_out == {"known-before-the-prediction": 3}
    assert found.events == {"no": 30, "yes": 3}


def test_a_prediction_that_was_taken_back_does_not_count(site, tmp_path):
    site = three_nights(site, tmp_path)
    take(site, tmp_path / "c.ndjson", [condition(stay, "2026-01-03T12:00:00Z") for stay in STAYS[:6]])
    wrong = {"status": "entered-in-error", "code": {"coding": [{"system": "http://loinc.org", "code": "8867-4"}]}}
    values = [f"r0-{at:%d}" for at in NIGHTS]
    take(site, tmp_path / "wrong.ndjson", [resource("Observation", name, STAYS[0], **wrong) for name in values])
    assert steps.score(site, ["heart-risk"], as_of=Instant.of(NIGHTS[2])).notes["withdrawn"] == 1

    found = steps.evaluate(site, "heart-risk")

    assert found.predictions == 35


@ON_SQLITE
def test_a_table_says_when_it_happened(site, tmp_path):
    site = three_nights(site, tmp_path)
    path = tmp_path / "labels.csv"
    lines = ["e0,1,2026-01-01T12:00:00Z", "e0,1,2026-01-02T12:00:00Z", "e1,1,2026-01-02T12:00:00Z", "e2,1,"]
    lines += [f"e{number},0," for number in range(3, 12)]
    path.write_text("encounter,outcome,happened_at\n" + "\n".join(lines) + "\n")

    found = steps.evaluate(site, "heart-risk", labels=LabelTable(path=path))

    assert found.left_out == {"known-before-the-prediction": 3, "outcome-unknown": 3}  # e0 twice, e1 once; e2 always
    assert found.events == {"no": 28, "yes": 2}


@ON_SQLITE
def test_what_a_table_says_was_known_before_is_no_outcome_though_it_happened_later(site, tmp_path):
    site = three_nights(site, tmp_path)
    path = tmp_path / "labels.csv"
    lines = ["e0,1,2026-01-01T12:00:00Z,2025-12-30T00:00:00Z", *(f"e{number},0,," for number in range(1, 12))]
    path.write_text("encounter,outcome,happened_at,known_at\n" + "\n".join(lines) + "\n")

    found = steps.evaluate(site, "heart-risk", labels=LabelTable(path=path))

    assert found.left_out == {"known-before-the-prediction": 3}
    assert found.events == {"no": 33, "yes": 0}


@ON_SQLITE
def test_a_table_that_does_not_say_when_is_refused(site, tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("encounter,outcome\ne0,1\n")

    with pytest.raises(ConfigurationError, match="in a column happened_at"):
        steps.evaluate(three_nights(site, tmp_path), "heart-risk", labels=LabelTable(path=path))


def test_a_prediction_made_again_for_the_same_moment_counts_once_as_it_was_said_last(site, tmp_path):
    site = three_nights(site, tmp_path)
    take(site, tmp_path / "again.ndjson", [rate(stay, NIGHTS[2], 149.0, f"more{stay.number}") for stay in STAYS])
    assert steps.score(site, ["heart-risk"], as_of=Instant.of(NIGHTS[2])).done == 12
    take(site, tmp_path / "c.ndjson", [condition(STAYS[0], "2026-01-04T00:00:00Z")])

    found = steps.evaluate(site, "heart-risk")

    assert (found.predictions, found.events) == (36, {"no": 35, "yes": 1})
    said = [found.confusion[truth][1] for truth in (0, 1)]
    assert sum(said) == 12  # the last night's, now above the threshold of 0.6


@ON_SQLITE
def test_intervals_draw_patients_and_groups_are_of_ten_patients(site, tmp_path):
    site = three_nights(site, tmp_path)
    others = [replace(stay, number=stay.number + 20, sex="male") for stay in STAYS[:5]]
    steps.ingest(site, steps.source_of("fhir", [write_stays(tmp_path / "others", others)]))
    for night, at in enumerate(NIGHTS):
        take(site, tmp_path / f"other{night}.ndjson", [rate(stay, at, stay.rate) for stay in others])
        assert steps.score(site, ["heart-risk"], as_of=Instant.of(at)).done == 5
    take(site, tmp_path / "c.ndjson", [condition(stay, "2026-01-02T12:00:00Z") for stay in STAYS[6:9]])

    found = steps.evaluate(site, "heart-risk")

    assert found.metrics["auroc"].interval is not None
    assert [(group.name, group.cases) for group in found.groups if group.dimension == "sex"] == [("female", 33)]
    assert "sex male" in found.hidden  # fifteen cases, of five patients


@ON_SQLITE
def test_no_outcome_counts_before_its_horizon_is_over(site, tmp_path):
    site = three_nights(site, tmp_path)
    take(site, tmp_path / "c.ndjson", [condition(STAYS[0], "2026-01-02T12:00:00Z")])
    question = Question(unit=UnitKind.ENCOUNTER, output=NextDay.spec.outputs[0])
    asked = [Moment(unit_id=unit, time_us=Instant.of(NIGHTS[1]).utc_us) for unit in (1, 2)]

    with site.store.reading() as connection:
        until = Instant.of(NIGHTS[1] + timedelta(hours=12)).utc_us
        early = outcomes_of(connection, site.settings, question, asked, until_us=until)
        late = outcomes_of(connection, site.settings, question, asked)

    assert early == (["horizon-not-over"] * 2, 0)
    assert late == ([1, 0], 0)
