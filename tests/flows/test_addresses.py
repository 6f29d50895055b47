"""Prefect is told names of servers, and no address."""

import pickle

import pytest

from medflow.config import load_settings
from medflow.errors import TargetUnavailable
from medflow.flows.addresses import addresses_kept, by_name

URL, PACS = "https://ehr.example:8443/fhir", "PACS@10.1.2.3:11112"


@pytest.fixture
def settings(tmp_path):
    ehr = {"kind": "fhir-server", "url": URL}
    return load_settings(home=tmp_path, sources={"ehr": ehr}, targets={"chart": URL, "pacs": PACS})


@pytest.mark.parametrize(("of", "name"), [("sources", "ehr"), ("targets", "chart")])
def test_an_address_becomes_the_name_of_what_is_there(settings, of, name):
    assert by_name(settings, f"{URL} cannot be reached", of=of) == f"{name} cannot be reached"
    assert by_name(settings, {"errors": {f"at {URL}: no": 1}, "offered": 3}, of=of) == {
        "errors": {f"at {name}: no": 1},
        "offered": 3,
    }


def test_so_does_a_shorter_form_of_it(settings):
    assert by_name(settings, "what listens at 10.1.2.3:11112 is not called PACS") == (
        "what listens at pacs is not called PACS"
    )


def test_an_error_keeps_its_type_and_fields(settings):
    with pytest.raises(TargetUnavailable) as caught, addresses_kept(settings, of="targets"):
        raise TargetUnavailable(f"{PACS} cannot be reached", retry_after_s=7)

    told = pickle.loads(pickle.dumps(caught.value))
    assert (told.message, str(caught.value), told.retry_after_s) == (
        "pacs cannot be reached",
        "pacs cannot be reached",
        7,
    )


def test_a_default_target_that_has_no_name_is_the_target(tmp_path):
    settings = load_settings(home=tmp_path, deliver_to=str(tmp_path / "out"))

    assert by_name(settings, f"{tmp_path / 'out'} cannot be written") == "the target cannot be written"
