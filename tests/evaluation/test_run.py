"""Models held against labels and records, on both databases: which predictions are cases, and what is said of them."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from medflow import steps
from medflow.config import LabelTable
from medflow.errors import ConfigurationError, UnknownModel
from medflow.evaluation.report import markdown
from medflow.plugin import Coding
from medflow.registry import RegisteredModel, Registry
from tests.models import GcContent
from tests.stays import MRN, VISIT, HeartRisk, Letters, Stay, write_stays

DIED = {1, 4, 6, 7, 9, 10, 11}
STAYS = [
    Stay(
        number=number,
        rate=60 + 7 * number,
        disposition="exp" if number in DIED else "home",
        sex="male" if number % 3 == 0 else "female",
        born="1950-06-01" if number < 11 else "2000-06-01",
    )
    for number in range(13)
]
TRUTH = np.array([int(stay.number in DIED) for stay in STAYS])
RISK = np.array([stay.risk for stay in STAYS])


def registered(model) -> RegisteredModel:
    name = model.spec.name
    return RegisteredModel(spec=model.spec, distribution="t 1", entry_point=name, digest="d1", factory=model)


@pytest.fixture
def site(store, settings) -> steps.Site:
    models = {model.spec.name: registered(model) for model in (HeartRisk, Letters)}
    return steps.Site(settings=settings, store=store, registry=Registry(models=models, broken=()))


def scored(site: steps.Site, folder: Path, stays: Sequence[Stay] = STAYS) -> steps.Site:
    taken = steps.ingest(site, steps.source_of("fhir", [write_stays(folder / "in", stays)]))
    assert taken.rejected == 0
    tally = steps.score(site, ["heart-risk"])
    assert tally.dead == tally.failed == 0
    return site


def labelled(folder: Path, column: str, name: Callable[[Stay], str], stays: Sequence[Stay] = STAYS) -> LabelTable:
    lines = [f"{name(stay)},{int(stay.number in DIED)}" for stay in stays]
    path = folder / "labels.csv"
    path.write_text("\n".join([f"{column},outcome", *lines]) + "\n")
    return LabelTable(path=path)


def test_the_records_that_came_later_are_the_outcomes(site, tmp_path):
    found = steps.evaluate(scored(site, tmp_path), "heart-risk")

    decided = RISK >= 0.6
    assert (found.outcomes, found.cases, found.predictions, found.patients) == ("store", 13, 13, 13)
    assert found.events == {"no": 6, "yes": 7}
    assert found.metrics["auroc"].value == pytest.approx(roc_auc_score(TRUTH, RISK))
    assert found.metrics["auprc"].value == pytest.approx(average_precision_score(TRUTH, RISK))
    assert found.metrics["brier"].value == pytest.approx(np.mean((RISK - TRUTH) ** 2))
    assert found.metrics["recall"].value == pytest.approx(np.mean(decided[TRUTH == 1]))
    assert found.metrics["precision"].value == pytest.approx(np.mean(TRUTH[decided]))
    assert found.confusion == [
        [int((~decided & (TRUTH == 0)).sum()), int((decided & (TRUTH == 0)).sum())],
        [int((~decided & (TRUTH == 1)).sum()), int((decided & (TRUTH == 1)).sum())],
    ]


def test_a_group_of_fewer_than_ten_is_named_and_not_shown(site, tmp_path):
    found = steps.evaluate(scored(site, tmp_path), "heart-risk")

    assert [(group.dimension, group.name, group.cases) for group in found.groups] == [("age", "65-79", 11)]
    assert found.hidden == ["sex female", "sex male", "age 18-39"]


@pytest.mark.parametrize(
    ("column", "name"),
    [
        ("encounter", lambda stay: f"e{stay.number}"),
        ("encounter", lambda stay: f"Encounter/e{stay.number}"),
        ("encounter", lambda stay: f"{VISIT}|V{stay.number:04d}"),
        ("patient", lambda stay: f"p{stay.number}"),
        ("patient", lambda stay: f"Patient/p{stay.number}"),
        ("patient", lambda stay: f"{MRN}|M{stay.number:04d}"),
    ],
)
def test_a_label_may_name_its_stay_in_several_ways(site, tmp_path, column, name):
    site = scored(site, tmp_path)

    found = steps.evaluate(site, "heart-risk", labels=labelled(tmp_path, column, name))

    assert (found.outcomes, found.cases, found.labels_unmatched) == ("labels", 13, 0)
    assert found.metrics["auroc"].value == pytest.approx(roc_auc_score(TRUTH, RISK))


def test_values_alone_are_of_the_tables_system(site, tmp_path):
    site = scored(site, tmp_path)
    table = labelled(tmp_path, "RecordID", lambda stay: f"M{stay.number:04d}")
    table = table.model_copy(update={"unit": "patient", "column": "RecordID", "system": MRN})

    assert steps.evaluate(site, "heart-risk", labels=table).cases == 13


def test_surrogate_ids_name_units(site, tmp_path):
    site = scored(site, tmp_path)
    path = tmp_path / "labels.csv"
    lines = [f"encounter/{number},{number % 2}" for number in range(1, 7)] + [f"{n},{n % 2}" for n in range(7, 14)]
    path.write_text("unit,outcome\n" + "\n".join(lines) + "\n")

    assert steps.evaluate(site, "heart-risk", labels=LabelTable(path=path)).cases == 13


def test_every_prediction_that_is_no_case_is_accounted_for(site, tmp_path):
    stays = [*STAYS, *(Stay(number=number, rate=90, patient=20) for number in (20, 21))]
    site = scored(site, tmp_path, [*stays, *(Stay(number=number, rate=80) for number in range(30, 34))])
    table = labelled(tmp_path, "patient", lambda stay: f"p{stay.patient or stay.number}", stays)
    more = ["p30,", "p31,1", "p31,0", "p99,1"]
    table.path.write_text(table.path.read_text() + "\n".join(more) + "\n")

    found = steps.evaluate(site, "heart-risk", labels=table)

    assert found.left_out == {
        "several-units-of-that-name": 2,
        "outcome-unknown": 1,
        "contradictory-labels": 1,
        "no-label": 2,
    }
    assert found.labels_unmatched == 1
    assert found.cases + sum(found.left_out.values()) == found.predictions == 19


def test_an_outcome_that_was_known_at_the_prediction_does_not_count(site, tmp_path):
    site = scored(site, tmp_path)
    path = tmp_path / "labels.csv"  # the model speaks of 2026-01-01T01:00Z
    times = ["2026-01-01T01:00:00Z", "2026-01-01T01:00:01Z"]
    lines = [f"e{stay.number},{stay.number % 2},{times[stay.number > 1]}" for stay in STAYS]
    path.write_text("encounter,outcome,known_at\n" + "\n".join(lines) + "\n")

    found = steps.evaluate(site, "heart-risk", labels=LabelTable(path=path))

    assert (found.cases, found.left_out) == (11, {"known-before-the-prediction": 2})


def test_a_stay_whose_outcome_nobody_recorded_is_left_out(site, tmp_path):
    open_stay, silent = Stay(number=20, rate=90, ended=False), Stay(number=21, rate=90)
    later = Stay(number=22, rate=130, deceased="2026-01-04T12:00:00Z")
    found = steps.evaluate(scored(site, tmp_path, [*STAYS, open_stay, silent, later]), "heart-risk")

    assert found.left_out == {"outcome-unknown": 2}
    assert found.events == {"no": 6, "yes": 8}


def test_a_condition_may_be_the_outcome(site, tmp_path):
    sepsis = Coding(system="http://snomed.info/sct", code="91302008")
    spec = replace(HeartRisk.spec, outputs=(replace(HeartRisk.spec.outputs[0], outcome=sepsis),))
    model = type("Sepsis", (HeartRisk,), {"spec": spec})
    site = scored(
        steps.Site(
            settings=site.settings,
            store=site.store,
            registry=Registry(models={"heart-risk": registered(model)}, broken=()),
        ),
        tmp_path,
    )
    folder = tmp_path / "later"
    folder.mkdir()
    found = [
        {
            "resourceType": "Condition",
            "id": f"c{number}",
            "code": {"coding": [{"system": sepsis.system, "code": sepsis.code}]},
            "subject": {"reference": f"Patient/p{number}"},
            "encounter": {"reference": f"Encounter/e{number}"},
            "recordedDate": "2026-01-03T00:00:00Z",
        }
        | ({"verificationStatus": {"coding": [{"system": "urn:v", "code": "refuted"}]}} if number == 2 else {})
        for number in (2, 5, 8)
    ]
    (folder / "c.ndjson").write_text("\n".join(map(json.dumps, found)))
    steps.ingest(site, steps.source_of("fhir", [folder]))
    steps.score(site, ["heart-risk"])

    assert steps.evaluate(site, "heart-risk").events == {"no": 11, "yes": 2}


def test_only_the_installed_version_is_evaluated(site, tmp_path):
    site = scored(site, tmp_path)
    newer = replace(registered(HeartRisk), spec=replace(HeartRisk.spec, version="2.0.0"), digest="d2")
    site = replace(site, registry=Registry(models={"heart-risk": newer}, broken=()))

    with pytest.raises(ConfigurationError, match="no predictions of death by heart-risk 2.0.0"):
        steps.evaluate(site, "heart-risk")


def test_a_model_of_several_classes(site, tmp_path):
    names = {"AAAAAACG": "mostly-a", "CCCCCATG": "mostly-c", "GGTTGGTA": "other", "CCCAAAAT": "mostly-c"}
    bases = [text[place:] + text[:place] for text in names for place in range(4)]
    labels = [name for name in names.values() for _ in range(4)]
    (tmp_path / "in.fasta").write_text("".join(f">s{n} patient=urn:t|{n}\n{text}\n" for n, text in enumerate(bases)))
    steps.ingest(site, steps.source_of("fasta", [tmp_path / "in.fasta"]))
    steps.score(site, ["letters"])
    path = tmp_path / "labels.csv"
    path.write_text("sequence,outcome\n" + "".join(f"s{n},{label}\n" for n, label in enumerate(labels)))

    found = steps.evaluate(site, "letters", labels=LabelTable(path=path))

    shares = np.array([[text.count("A") / 8, text.count("C") / 8] for text in bases])
    score = np.column_stack([shares, 1 - shares.sum(axis=1)])
    wanted = roc_auc_score(labels, score, multi_class="ovr", labels=["mostly-a", "mostly-c", "other"])
    assert found.cases == 16
    assert found.metrics["accuracy"].value == 12 / 16  # CCCAAAAT has more A
    assert found.metrics["auroc"].value == pytest.approx(wanted)
    assert found.confusion == [[4, 0, 0], [4, 4, 0], [0, 0, 4]]
    by_class = {group.name: group for group in found.groups if group.dimension == "class"}
    assert by_class["mostly-a"].metrics["precision"].value == 4 / 8
    assert by_class["other"].metrics["auroc"].value == 1.0
    assert "mostly-c" in markdown(found, {})


def test_the_store_cannot_tell_the_class_of_a_sequence(site):
    with pytest.raises(ConfigurationError, match="give a label table"):
        steps.evaluate(site, "letters")


def test_an_unknown_model_or_output_is_a_sentence(site):
    with pytest.raises(UnknownModel, match="installed: heart-risk, letters"):
        steps.evaluate(site, "nothing")
    with pytest.raises(ConfigurationError, match="no risk or classification called 'life'; it has: death"):
        steps.evaluate(site, "heart-risk", output="life")


def test_a_model_without_an_outcome_is_not_evaluated(site):
    site = replace(site, registry=Registry(models={"gc-content": registered(GcContent)}, broken=()))

    with pytest.raises(ConfigurationError, match="no outcome to hold it against"):
        steps.evaluate(site, "gc-content")


def test_without_predictions_it_says_to_score_first(site):
    with pytest.raises(ConfigurationError, match="run `medflow score --model heart-risk` first"):
        steps.evaluate(site, "heart-risk")


def test_without_overlap_the_account_is_the_message(site, tmp_path):
    site = scored(site, tmp_path)
    table = labelled(tmp_path, "encounter", lambda stay: f"other{stay.number}")

    with pytest.raises(
        ConfigurationError, match=r"none has a known outcome \(13 no-label; 13 lines of the label table.*system\|value"
    ):
        steps.evaluate(site, "heart-risk", labels=table)


def test_fewer_than_ten_cases_are_not_shown(site, tmp_path):
    site = scored(site, tmp_path)
    table = labelled(tmp_path, "encounter", lambda stay: f"e{stay.number}", STAYS[:9])

    with pytest.raises(ConfigurationError, match="fewer than 10 patients have a known outcome"):
        steps.evaluate(site, "heart-risk", labels=table)


def test_the_wrong_kind_of_label_is_a_sentence(site, tmp_path):
    site = scored(site, tmp_path)

    with pytest.raises(ConfigurationError, match="names each series, but the model scores each encounter"):
        steps.evaluate(site, "heart-risk", labels=labelled(tmp_path, "series", lambda stay: f"1.2.{stay.number}"))


def test_one_outcome_alone_is_said_so(site, tmp_path):
    stays = [replace(stay, disposition="home") for stay in STAYS]

    found = steps.evaluate(scored(site, tmp_path, stays), "heart-risk")

    assert found.metrics["auroc"].value is None
    assert found.notes == ["AUROC and AUPRC are not defined: all cases have the same outcome"]
    assert "| AUROC | not defined |" in markdown(found, {})


def test_an_evaluation_is_on_record(site, tmp_path):
    site = scored(site, tmp_path)
    table = labelled(tmp_path, "encounter", lambda stay: f"e{stay.number}")

    found = steps.evaluate(site, "heart-risk", labels=table)

    with site.store.reading() as connection:
        run = connection.exec_driver_sql("SELECT command, status, counts FROM run ORDER BY id DESC").first()
        line = connection.exec_driver_sql("SELECT action, subject, detail FROM audit ORDER BY id DESC").first()
    assert run is not None and line is not None
    counts, detail = (json.loads(text) if isinstance(text, str) else text for text in (run[2], line[2]))
    assert (run[0], run[1], counts["cases"]) == ("evaluate", "completed", 13)
    assert counts["metrics"]["auroc"] == pytest.approx(found.metrics["auroc"].value, abs=1e-6)
    assert (line[0], line[1]) == ("evaluate", "heart-risk")
    assert detail["labels_sha256"] == found.labels_sha256
