from pathlib import Path

import pytest

from medflow.config import EMPTY_IS_UNSET, load_settings
from medflow.connections.endpoints import Files
from medflow.errors import ConfigurationError


def test_settings_come_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("MEDFLOW_HOME", str(tmp_path))
    monkeypatch.setenv("MEDFLOW_CHUNK_SIZE", "7")
    monkeypatch.setenv("MEDFLOW_SOURCES", '{"pacs": {"kind": "dicom", "paths": ["/in"]}}')

    settings = load_settings()

    assert (settings.home, settings.chunk_size) == (tmp_path, 7)
    assert settings.sources == {"pacs": Files(kind="dicom", paths=(Path("/in"),))}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MEDFLOW_CHUNK_SIZE", "0"),
        ("MEDFLOW_TIMEZONE", "Nowhere/Town"),
        ("MEDFLOW_SOURCES", '{"pacs": {"kind": "hl7", "paths": ["/in"]}}'),
        ("MEDFLOW_SOURCES", "not json"),
        ("MEDFLOW_RESULT_STATUS", "amended"),
    ],
)
def test_a_wrong_value_is_named_by_its_variable_and_never_shown(monkeypatch, name, value):
    monkeypatch.setenv(name, value)

    with pytest.raises(ConfigurationError, match=name) as caught:
        load_settings()

    assert caught.value.__cause__ is None


@pytest.mark.parametrize("name", sorted(EMPTY_IS_UNSET))
def test_what_is_handed_on_empty_is_not_set_and_hides_nothing_of_the_file(monkeypatch, tmp_path, name):
    monkeypatch.setenv(f"MEDFLOW_{name.upper()}", "")
    (tmp_path / "medflow.toml").write_text('regions = "all"\n')
    (tmp_path / "empty.toml").write_text('genes = ""\nreferences = {GRCh37 = "", GRCh38 = "/ref.fa"}\n')

    assert getattr(load_settings(), name) in (None, {})
    assert load_settings(config=str(tmp_path / "medflow.toml")).regions == "all"
    written = load_settings(config=str(tmp_path / "empty.toml"))
    assert written.genes is None and written.references == {"GRCh38": Path("/ref.fa")}


def test_a_field_that_there_is_not_names_those_there_are(monkeypatch):
    monkeypatch.setenv("MEDFLOW_COHORTS", '{"icu": {"min_agee": 18}}')

    with pytest.raises(ConfigurationError, match=r"MEDFLOW_COHORTS\.icu\.min_agee: there is no such field; .*min_age"):
        load_settings()


def test_a_password_is_in_no_repr():
    settings = load_settings(database_url="postgresql://medflow:secret-word@host/db", fhir_token="secret-token")

    assert "secret" not in repr(settings) + str(settings)
    assert "secret-word" in settings.url


def test_a_target_may_be_named_given_or_configured():
    settings = load_settings(targets={"chart": "https://ehr.example/fhir"}, deliver_to="chart")

    assert settings.target(None).public == "https://ehr.example/fhir"
    assert settings.target("chart").public == "https://ehr.example/fhir"
    assert settings.target("/some/folder").public == "/some/folder"
    assert settings.target("./chrat").public.endswith("/chrat")
    with pytest.raises(ConfigurationError, match="no target is called 'chrat'"):
        settings.target("chrat")
    with pytest.raises(ConfigurationError, match="MEDFLOW_DELIVER_TO"):
        load_settings().target(None)


def test_several_targets_are_archives_first_and_known_by_name() -> None:
    chart, pacs = "https://ehr.example/fhir", {"kind": "dicomweb", "url": "https://pacs.example/dicom-web"}
    targets = {"chart": chart, "pacs": pacs, "old": "PACS@10.0.0.1:104"}
    settings = load_settings(targets=targets, deliver_to="chart, pacs")

    assert list(settings.chosen_targets(None)) == ["pacs", "chart"]
    assert list(load_settings(targets=targets, deliver_to=["chart", "old"]).chosen_targets(None)) == ["old", "chart"]
    assert list(settings.chosen_targets("chart")) == ["chart"]
    assert list(settings.chosen_targets(["/some/folder", "old"])) == ["old", "/some/folder"]
    with pytest.raises(ConfigurationError, match="several"):
        settings.target(None)
    with pytest.raises(ConfigurationError, match="'pasc'"):
        load_settings(targets=targets, deliver_to="chart,pasc").chosen_targets(None)
    assert list(load_settings(deliver_to="/a,b/c").chosen_targets(None)) == ["/a,b/c"]


def test_a_source_that_is_not_configured_names_those_that_are():
    settings = load_settings(sources={"pacs": {"kind": "dicom", "paths": ["/in"]}})

    assert list(settings.chosen_sources(None)) == ["pacs"]
    with pytest.raises(ConfigurationError, match="no source is called 'lab'; MEDFLOW_SOURCES has: pacs"):
        settings.chosen_sources(["lab"])
