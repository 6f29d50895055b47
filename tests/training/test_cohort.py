"""Which stays a model is trained on, at which moments, with which outcomes; and what is left out for which reason."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import orjson
import pytest

from medflow import steps
from medflow.config import Cohort, LabelTable, load_settings
from medflow.errors import ConfigurationError
from medflow.plugin import TimeSeriesInput
from medflow.records import Instant
from medflow.registry import Registry
from medflow.store import Store
from medflow.training.cohort import Members, find
from medflow.training.dataset import read_dataset
from tests.stays import HEART_RATE, MRN, HeartRisk, Stay, write_stays
from tests.trained_stays import risk_of, series_of

NOW = Instant.of(datetime(2026, 3, 1, tzinfo=UTC))
RISK, SERIES = risk_of(HeartRisk), series_of(HeartRisk)
HOURLY = replace(SERIES, anchor="prediction-time")
STAYS = [
    Stay(number=1, rate=80, disposition="home", born="1950-06-01"),
    Stay(number=2, rate=120, disposition="exp", born="1990-06-01"),
    Stay(number=3, rate=90, disposition="oth", born="2020-06-01"),
    Stay(number=4, rate=90, ended=False, born="1950-06-01"),
]


def taken(store, settings, folder, stays=STAYS, more=()) -> steps.Site:
    site = steps.Site(settings=settings, store=store, registry=Registry(models={}, broken=()))
    path = write_stays(folder / "in", stays)
    if more:
        path.write_bytes(path.read_bytes() + b"\n" + b"\n".join(orjson.dumps(item) for item in more))
    assert steps.ingest(site, steps.source_of("fhir", [path])).rejected == 0
    return site


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A store that only questions are asked of."""
    folder = tmp_path_factory.mktemp("cohort")
    settings = load_settings(home=folder / "home")
    store = Store(settings).open()
    yield taken(store, settings, folder)
    store.close()


def of(site: steps.Site, labels=None, *, spec: TimeSeriesInput = SERIES, output=RISK, **cohort) -> Members:
    return find(site.store, site.settings, Cohort(**cohort), spec, output, labels, now=NOW)


def test_each_stay_with_a_known_outcome_counts_and_each_other_is_accounted_for(store, settings, tmp_path):
    found = of(taken(store, settings, tmp_path))

    assert found.outcome.tolist() == [0, 1]
    assert [item.time.datetime().isoformat() for item in found.moments] == ["2026-01-01T01:00:00+00:00"] * 2
    assert found.left_out == {"outcome-unknown": 2}
    assert found.encounters == 4 == len(found.moments) + sum(found.left_out.values())


@pytest.mark.parametrize(
    ("cohort", "left_out"),
    [
        ({"since": "2026-01-01T00:00:00Z", "until": "2026-01-02T00:00:00Z"}, {"outcome-unknown": 2}),
        ({"since": "2026-01-01T00:00:01Z"}, {"outside-the-period": 4}),
        ({"until": "2026-01-01T00:00:00Z"}, {"outside-the-period": 4}),
        ({"encounter_classes": ["IMP"]}, {"of-another-class": 4}),
        ({"encounter_types": ["urn:example|icu"]}, {"of-another-type": 4}),
        ({"min_age": 18, "max_age": 75}, {"outcome-unknown": 1, "too-young": 1}),
        ({"max_age": 40}, {"outcome-unknown": 1, "too-old": 2}),
    ],
)
def test_a_cohort_asks_for_what_it_names(kept, cohort, left_out):
    found = of(kept, **cohort)

    assert found.left_out == left_out
    assert len(found.moments) + sum(left_out.values()) == 4


def test_a_stay_that_was_over_before_the_window_or_has_not_lasted_it_does_not_count(store, settings, tmp_path):
    site = taken(store, settings, tmp_path)
    long = replace(SERIES, window=timedelta(days=4, hours=1))

    assert of(site, spec=long).left_out == {"too-short": 3, "outcome-unknown": 1}
    early = find(store, settings, Cohort(), long, RISK, None, now=Instant.of(datetime(2026, 1, 2, tzinfo=UTC)))
    assert early.left_out == {"too-short": 4}


def test_a_model_asked_again_and_again_has_several_moments_of_a_stay_until_nothing_new_is_known(
    store, settings, tmp_path
):
    """Stays 1 and 2 are measured until the third day; the open stay 4 is not asked about for ever."""
    more = [measured(who, who, 100, "2026-01-03T12:00:00Z") for who in (1, 2)]
    site = taken(store, settings, tmp_path, more=more)

    found = of(site, spec=HOURLY, output=replace(RISK, horizon=timedelta(days=2)))

    hours = [(item.encounter_id, (item.time_us - NOW.utc_us) / 3.6e9 + 59 * 24) for item in found.moments]
    assert [hour for encounter, hour in hours if encounter == hours[0][0]] == [24, 48]  # home: after day 2 unknown
    assert [hour for encounter, hour in hours if encounter == hours[-1][0]] == [24, 48, 72]
    assert found.outcome.tolist() == [0, 0, 0, 1, 1]
    assert found.left_out == {"outcome-unknown": 3}  # of stay 1 within the horizon of day 3, and of stays 3 and 4


def test_labels_are_of_the_cohorts_stays_and_say_when_they_became_known(store, settings, tmp_path):
    site = taken(store, settings, tmp_path)
    path = tmp_path / "labels.csv"
    lines = [
        f"{MRN}|M0001,1,2026-01-03T00:00:00Z",
        f"{MRN}|M0002,0,2026-01-01T00:30:00Z",
        f"{MRN}|M0003,1,",
        f"{MRN}|M9999,1,",
    ]
    path.write_text("\n".join(["patient,outcome,known_at", *lines]))

    found = of(site, LabelTable(path=path))

    assert found.outcome.tolist() == [1, 1]
    assert found.left_out == {"known-before-the-prediction": 1, "no-label": 1}
    assert (found.labels_unmatched, len(found.labels_sha256 or "")) == (1, 64)


def measured(number: int, who: int, value: float, effective: str, issued: str | None = None) -> dict:
    return {
        "resourceType": "Observation",
        "id": f"late-{number}",
        "status": "final",
        "code": {"coding": [{"system": HEART_RATE.system, "code": HEART_RATE.code}]},
        "subject": {"reference": f"Patient/p{who}"},
        "encounter": {"reference": f"Encounter/e{who}"},
        "effectiveDateTime": effective,
        **({"issued": issued} if issued else {}),
        "valueQuantity": {"value": value, "unit": "/min", "system": "http://unitsofmeasure.org", "code": "/min"},
    }


@pytest.mark.parametrize("spec", [SERIES, HOURLY], ids=["admission", "prediction-time"])
def test_what_was_known_only_after_the_prediction_time_reaches_no_array(store, settings, tmp_path, spec):
    """Who died has a rate of 250 written down later, about a time before and a time after the prediction."""
    late = [
        measured(1, 2, 250, "2026-01-01T00:20:00Z", "2026-01-04T23:30:00Z"),
        measured(2, 2, 250, "2026-01-04T23:30:00Z"),
    ]
    spec = replace(spec, window=timedelta(hours=24), min_measurements=0)
    site = taken(store, settings, tmp_path, more=late)
    members = of(site, spec=spec, output=replace(RISK, horizon=None))

    data = read_dataset(store, spec, members, tmp_path)

    assert (members.outcome == 1).any()
    assert set(data.values[~np.isnan(data.values)].tolist()) == {80, 120}


def test_who_has_no_usable_input_is_counted_and_the_array_is_read_once(store, settings, tmp_path):
    site = taken(store, settings, tmp_path, stays=[*STAYS, Stay(number=7, rate=70, disposition="home")])
    spec = replace(SERIES, channels=(replace(SERIES.channels[0], valid_range=(75, 300)),))
    members = of(site, spec=spec)

    data = read_dataset(store, spec, members, tmp_path)

    assert data.members.left_out == {"outcome-unknown": 2, "too-few-measurements": 1}
    assert data.values[:, 0, 0].tolist() == [80, 120]
    assert data.examples.outcome.tolist() == [0, 1]
    assert all(path.stat().st_mode & 0o77 == 0 for path in tmp_path.glob("*.npy"))
    again = read_dataset(_Unreachable(), spec, members, tmp_path)  # type: ignore[arg-type]  # must not be asked
    assert again.values.tolist() == data.values.tolist()


@pytest.mark.parametrize("name", ["values.npy", "statics.npy", "refused.json"])
def test_an_array_that_was_damaged_is_read_again(store, settings, tmp_path, name):
    site = taken(store, settings, tmp_path)
    members = of(site)
    whole = read_dataset(store, SERIES, members, tmp_path).values
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-1])

    assert read_dataset(store, SERIES, members, tmp_path).values.tolist() == whole.tolist()


class _Unreachable:
    """A store that is away."""

    def reading(self):
        raise AssertionError("the store was asked")


def test_a_cohort_that_is_not_configured_is_a_sentence():
    configured = load_settings(cohorts={"adults": {"min_age": 18}})

    assert configured.cohort("all") == Cohort()
    with pytest.raises(ConfigurationError, match="no cohort is called 'adult'; MEDFLOW_COHORTS has: all, adults"):
        configured.cohort("adult")


def test_a_moment_without_a_zone_is_refused():
    with pytest.raises(ConfigurationError, match="MEDFLOW_COHORTS.adults.since"):
        load_settings(cohorts={"adults": {"since": "2025-01-01T00:00:00"}})
