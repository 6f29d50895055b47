"""Results as FHIR: what every kind of output becomes, that it is valid R4 by three judges, and that ids stay."""

import base64
import hashlib
from dataclasses import replace

import httpx
import orjson
import pytest

from medflow.errors import InputNotUsable, PluginBroken, PredictionInvalid
from medflow.fhir.write import catalog_resources, result_resources
from medflow.plugin import Coding
from medflow.records import Identifier, Instant, Result, Subject, Unit, UnitKind
from tests.every_kind import KINDS
from tests.results import (
    DENSITY,
    ENCOUNTER,
    MORTALITY,
    PNEUMONIA,
    PREDICTION_TIME,
    SPLEEN,
    STAY,
    context,
    model,
    parsed,
    risk_of,
)

FHIR = {"Content-Type": "application/fhir+json"}
READINGS = [(0.91, "POS"), (0.52, "IND"), (0.55, "IND"), (0.551, "POS"), (0.5, "IND"), (0.45, "IND"), (0.1, "NEG")]


def observation(kind: str) -> dict:
    return parsed(result_resources(*KINDS[kind]))[0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_strangers_server_and_both_its_validators_take_every_kind(kind: str, fhir_server: str) -> None:
    job, results = KINDS[kind]

    for item in [*catalog_resources(job.model), *result_resources(job, results)]:
        answer = httpx.put(f"{fhir_server}/{item.type}/{item.id}", content=item.body, headers=FHIR)

        assert answer.is_success, answer.text
        stored, sent = httpx.get(f"{fhir_server}/{item.type}/{item.id}").json(), orjson.loads(item.body)
        assert stored.pop("meta").get("security") == sent.pop("meta", {}).get("security")
        assert stored == sent


def test_that_judge_is_awake(fhir_server: str) -> None:
    found = observation("segment") | {"status": "foo"}

    answer = httpx.put(f"{fhir_server}/Observation/{found['id']}", content=orjson.dumps(found), headers=FHIR)

    assert answer.status_code == 400


def test_a_volume_says_of_which_organ_in_which_study_and_by_which_device() -> None:
    job, results = KINDS["segment"]

    found, provenance = parsed(result_resources(job, results))

    assert found["code"]["coding"][0]["code"] == "118565006"
    assert found["bodySite"]["coding"][0]["code"] == "78961009"
    assert found["valueQuantity"] == {"value": 211.4, "unit": "mL", "system": "http://unitsofmeasure.org", "code": "mL"}
    assert found["category"][0]["coding"][0]["code"] == "imaging"
    assert found["derivedFrom"][0]["identifier"] == {"system": "urn:dicom:uid", "value": "urn:oid:1.2.3.4"}
    assert found["subject"]["reference"] == "Patient/p7"
    assert found["device"]["reference"] == f"Device/{job.model.device_id}"
    assert "performer" not in found
    assert found["method"]["text"] == "test-model@1.2.0"
    assert found["meta"]["security"][0]["code"] == "AIAST"
    assert found["status"] == "preliminary"
    assert found["effectiveDateTime"] == "2012-01-03T00:00:00+00:00"
    assert found["issued"] == "2023-11-14T22:13:20.123+00:00"
    assert provenance["target"] == [{"reference": f"Observation/{found['id']}"}]
    assert {entity["role"] for entity in provenance["entity"]} == {"source", "derivation"}


@pytest.mark.parametrize(
    ("chance", "reading"),
    [(0.91, "POS"), (0.52, "IND"), (0.55, "IND"), (0.551, "POS"), (0.5, "IND"), (0.45, "IND"), (0.1, "NEG")],
)
def test_a_class_probability_is_read_as_positive_negative_or_indeterminate(chance: float, reading: str) -> None:
    result = Result(output="pneumonia", value=chance, probabilities=(1 - chance, chance))

    [found, _] = parsed(result_resources(context(model(PNEUMONIA)), [result]))

    assert found["interpretation"][0]["coding"][0]["code"] == reading
    assert found["valueQuantity"]["value"] == chance and found["valueQuantity"]["code"] == "1"
    assert [part["code"]["text"] for part in found["component"]] == ["normal", "pneumonia", "decision threshold"]


def test_a_segment_says_its_mean_intensity_and_where_its_mask_is() -> None:
    found, provenance = parsed(result_resources(*KINDS["segment with its mask"]))

    mean, mask = found["component"]
    assert mean["code"]["coding"][0]["code"] == "mean-intensity"
    hounsfield = {"value": 118.25, "unit": "HU", "system": "http://unitsofmeasure.org", "code": "[hnsf'U]"}
    assert mean["valueQuantity"] == hounsfield
    assert mask["code"]["coding"][0]["code"] == "segmentation"
    assert mask["valueString"] == "urn:oid:2.25.77"
    assert provenance["target"][1]["identifier"] == {"system": "urn:dicom:uid", "value": "urn:oid:2.25.77"}


def test_a_mean_of_other_than_ct_has_no_unit_and_says_so() -> None:
    mean = observation("segment of an MR")["component"][0]

    assert mean["code"]["text"] == "mean intensity, in the image's own units"
    assert (mean["valueQuantity"]["value"], mean["valueQuantity"]["code"]) == (825.235, "1")


def test_a_heat_map_is_named_by_what_it_explains_and_by_the_provenance() -> None:
    found = parsed(result_resources(*KINDS["explained"]))
    *resources, provenance = found

    links = [[part["valueString"] for part in item.get("component", ()) if "valueString" in part] for item in resources]

    assert [item["resourceType"] for item in resources] == ["Observation"] * 2 + ["RiskAssessment", "Observation"]
    assert links == [["urn:oid:2.25.1234"], ["urn:oid:2.25.1234"], [], []]
    named = [target["identifier"]["value"] for target in provenance["target"] if "identifier" in target]
    assert named == ["urn:oid:2.25.1234"]


def test_no_component_has_the_code_of_its_observation() -> None:
    found = observation("classification")

    codes = [coding["code"] for part in found["component"] for coding in part["code"].get("coding", [])]

    assert found["code"]["coding"][0]["code"] not in codes  # R4 obs-7


def test_of_several_classes_the_most_probable_is_the_value() -> None:
    found = observation("several classes")

    assert found["valueCodeableConcept"]["text"] == "IE"
    assert [part["valueQuantity"]["value"] for part in found["component"]] == [0.2, 0.7, 0.1]
    assert found["derivedFrom"][0]["identifier"]["value"].startswith("urn:sha256:")
    assert "subject" not in found and "interpretation" not in found
    assert found["category"][0]["coding"][0]["code"] == "laboratory"


def test_a_risk_is_an_assessment_that_links_to_its_mirror() -> None:
    mirror, assessment, provenance = parsed(result_resources(*KINDS["risk"]))

    [prediction] = assessment["prediction"]
    assert prediction["probabilityRange"]["low"] == prediction["probabilityRange"]["high"] == mirror["valueQuantity"]
    assert mirror["valueQuantity"]["value"] == 31.25 and mirror["valueQuantity"]["code"] == "%"
    assert prediction["whenPeriod"] == {"start": "2012-01-03T00:00:00+00:00", "end": "2012-02-02T00:00:00+00:00"}
    assert {"reference": f"Observation/{mirror['id']}"} in assessment["basis"]
    assert {"reference": "Encounter/e1", "type": "Encounter"} in assessment["basis"]
    assert mirror["encounter"] == {"reference": "Encounter/e1"} and "derivedFrom" not in mirror
    assert mirror["interpretation"][0]["coding"][0]["code"] == "POS"
    assert "not calibrated" in assessment["note"][0]["text"]
    assert len(provenance["target"]) == 2


def test_what_moved_a_risk_is_said_in_components_in_words_and_by_the_measurements_behind_it() -> None:
    mirror, assessment, provenance = parsed(result_resources(*KINDS["risk that is explained"]))

    threshold, coma, urine, age = mirror["component"]
    assert threshold["code"]["coding"][0]["code"] == "threshold"
    assert [part["valueQuantity"]["value"] for part in (coma, urine, age)] == [0.812, -0.4, 0.1]
    assert coma["code"] == {
        "coding": [{"system": "urn:medflow:observation-component", "code": "contribution"}],
        "text": "contribution of GCS, in log-odds",
    }
    assert coma["extension"][0]["valueCoding"]["code"] == "9269-2"
    assert urine["code"]["text"] == "contribution of Urine (not measured), in log-odds"
    assert "extension" not in age
    said = "Raised by: GCS, age. Lowered by: Urine (not measured)."
    assert mirror["note"][-1]["text"] == assessment["note"][-1]["text"] == said
    assert "not calibrated" in assessment["note"][0]["text"]
    assert mirror["derivedFrom"] == [{"reference": "Observation/o7"}]
    references = [item["reference"] for item in assessment["basis"]]
    assert references == ["Encounter/e1", "Observation/o7", f"Observation/{mirror['id']}"]
    assert [entity["what"]["reference"] for entity in provenance["entity"]][0] == "Encounter/e1"
    assert len(provenance["entity"]) == 2


def test_no_component_can_be_taken_for_the_measurement_that_it_is_about() -> None:
    for part in observation("risk that is explained")["component"]:
        assert {coding["system"] for coding in part["code"]["coding"]} == {"urn:medflow:observation-component"}


def test_explaining_changes_no_id() -> None:
    job, (result,) = KINDS["risk that is explained"]

    plain = result_resources(job, [replace(result, contributions=())])
    explained = result_resources(job, [result])

    assert [(item.type, item.id) for item in plain] == [(item.type, item.id) for item in explained]
    assert [one.sha256 == other.sha256 for one, other in zip(plain, explained, strict=True)] == [False, False, True]


def test_a_risk_of_nobody_is_no_result() -> None:
    with pytest.raises(InputNotUsable):
        result_resources(context(model(MORTALITY), subject=None), [Result(output="mortality", value=0.5)])


@pytest.mark.parametrize("kind", ["out of scope", "risk out of scope"])
def test_out_of_scope_is_a_reason_and_no_value(kind: str) -> None:
    found, provenance = parsed(result_resources(*KINDS[kind]))

    assert found["dataAbsentReason"]["coding"][0]["code"] == "not-performed"
    assert not {"valueQuantity", "component", "interpretation"} & found.keys()
    assert "out of the model's scope" in found["note"][0]["text"]
    assert provenance["resourceType"] == "Provenance"


def test_the_same_result_has_the_same_id_and_bytes_whenever_and_in_whichever_database() -> None:
    first = risk_of(7)
    elsewhere = parsed(risk_of(7, unit=Unit(kind=UnitKind.ENCOUNTER, id=99)))
    later = risk_of(7, issued=Instant(utc_us=1_800_000_000_000_000))

    assert [item["id"] for item in elsewhere] == [item.id for item in first]
    assert [(item.id, item.sha256) for item in later] == [(item.id, item.sha256) for item in first]
    assert [item.body for item in later] != [item.body for item in first]
    assert [item.body for item in risk_of(7)] == [item.body for item in first]


@pytest.mark.parametrize(
    "change",
    [
        {"input_key": "other"},
        {"prediction_time": Instant(utc_us=PREDICTION_TIME.utc_us + 1)},
        {"model": model(MORTALITY, accepts=STAY, name="other")},
        {"model": replace(model(MORTALITY, accepts=STAY), digest="e" * 64)},
        {"subject": Subject(patient_id=7, reference="Patient/other")},
        {"subject": Subject(patient_id=7, identifier=Identifier(system="reference", value="Patient/p7"))},
    ],
)
def test_whatever_the_result_is_of_is_in_its_id(change: dict) -> None:
    job = context(model(MORTALITY, accepts=STAY), inputs=(ENCOUNTER,))
    results = [Result(output="mortality", value=0.25)]

    ids = {item.id for item in result_resources(job, results)}

    assert ids.isdisjoint(item.id for item in result_resources(replace(job, **change), results))


def test_outputs_with_one_code_have_ids_of_their_own() -> None:
    liver = replace(SPLEEN, name="liver", body_site=Coding(system="http://snomed.info/sct", code="10200004"))
    results = [Result(output="spleen", value=1.0), Result(output="liver", value=1.0)]

    found = result_resources(context(model(SPLEEN, liver)), results)

    assert len({item.id for item in found}) == 3


def test_no_id_says_anything_about_the_patient() -> None:
    for item in risk_of(424242):
        assert "424242" not in item.id
        assert item.envelope == "patient/424242"  # a surrogate, and it stays here


def test_without_a_patient_the_unit_is_the_envelope() -> None:
    job, results = KINDS["several classes"]

    assert {item.envelope for item in result_resources(job, results)} == {"unit/series/3"}


def test_a_result_that_is_not_valid_fhir_never_leaves() -> None:
    broken = replace(DENSITY, code=Coding(system="urn:test", code=" with blanks "))

    with pytest.raises(PredictionInvalid) as caught:
        result_resources(context(model(broken)), [Result(output="density", value=1.0)])

    assert "Observation.code" in caught.value.message


def test_a_model_whose_texts_are_not_valid_fhir_is_broken() -> None:
    named = model(DENSITY)

    with pytest.raises(PluginBroken):
        catalog_resources(replace(named, spec=replace(named.spec, title="")))


def test_the_catalog_is_the_device_and_its_card() -> None:
    named = model(DENSITY)
    items = catalog_resources(named)

    device, card = parsed(items)

    text = base64.b64decode(card["content"][0]["attachment"]["data"])
    assert {item.envelope for item in items} == {"catalog"}
    assert device["version"] == [{"value": "1.2.0"}] and device["identifier"][0]["value"] == named.digest
    assert card["subject"]["reference"] == f"Device/{device['id']}"
    assert b"## Intended use\n\nNone: it is made up.\n" in text and b"- AUROC: 0.5 (coin)" in text
    assert base64.b64decode(card["content"][0]["attachment"]["hash"]) == hashlib.sha1(text).digest()
