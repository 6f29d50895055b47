"""Settings from a TOML file: where it is looked for, what wins over it, and what is said of a wrong one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from medflow.cli.app import app
from medflow.config import load_log_settings, load_settings, load_with_origins
from medflow.config_file import everybody_reads, exposure
from medflow.connections.endpoints import DicomWebSource
from medflow.errors import ConfigurationError
from tests.services.certificates import private_key

FILE = """
timezone = "Europe/Berlin"
chunk_size = 7
log_format = "json"
database_url = "postgresql+psycopg://medflow:SECRET@db:5432/medflow"

[sources.pacs]
kind = "dicomweb"
url = "https://pacs.example/dicom-web"
modalities = ["CT"]
patient_id = "SECRET"
auth = { type = "basic", user = "me", password = "SECRET" }

[targets]
ehr = "https://fhir.example/r4"
"""


@pytest.fixture
def named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "medflow.toml"
    path.write_text(FILE)
    monkeypatch.setenv("MEDFLOW_CONFIG", str(path))
    return path


def test_every_kind_of_setting_may_come_from_a_file(named: Path) -> None:
    settings = load_settings()

    assert (settings.timezone, settings.chunk_size, settings.config) == ("Europe/Berlin", 7, named)
    pacs = settings.sources["pacs"]
    assert isinstance(pacs, DicomWebSource) and pacs.modalities == ("CT",)
    assert settings.target("ehr").public == "https://fhir.example/r4"
    assert load_log_settings().log_format == "json"


def test_a_variable_wins_over_the_file_and_replaces_the_whole_setting(
    named: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDFLOW_CHUNK_SIZE", "9")
    monkeypatch.setenv("MEDFLOW_TARGETS", '{"folder": "/results"}')

    loaded = load_with_origins(timezone="UTC")

    assert (loaded.settings.chunk_size, list(loaded.settings.targets)) == (9, ["folder"])
    assert loaded.settings.timezone == "UTC"
    origins = loaded.origins
    assert (origins["chunk_size"], origins["timezone"]) == ("MEDFLOW_CHUNK_SIZE", "given")
    assert origins["sources"] == f"{named}: sources"
    assert "device" not in origins


def test_without_a_name_the_file_in_the_home_is_taken_and_never_one_of_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, here = tmp_path / "home", tmp_path / "here"
    for folder, size in ((home, 7), (here, 8)):
        folder.mkdir()
        (folder / "medflow.toml").write_text(f"chunk_size = {size}")
    monkeypatch.chdir(here)

    assert load_settings(home=home).chunk_size == 7
    assert load_settings(home=tmp_path).chunk_size == 1024
    monkeypatch.setenv("MEDFLOW_CONFIG", "")
    assert load_settings(home=home).chunk_size == 1024


def test_the_home_may_be_set_by_the_file_that_is_named_only(
    named: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named.write_text(f'home = "{tmp_path / "there"}"')
    assert load_settings().home == tmp_path / "there"

    monkeypatch.delenv("MEDFLOW_CONFIG")
    with pytest.raises(ConfigurationError, match="home cannot be set in the file that is found by it"):
        load_settings(home=tmp_path)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ('target = "SECRET"', r"there is no setting 'target'; did you mean targets\?"),
        ('MEDFLOW_DELIVER_TO = "SECRET"', r"no setting 'MEDFLOW_DELIVER_TO'; did you mean deliver_to\?"),
        ("chunk_size = 0", r"medflow\.toml: chunk_size: "),
        ('[sources.a]\nkind = "dicom"\npath = "SECRET"', r"sources\.a\.path: there is no such field; .* paths"),
        (
            '[sources.a]\nkind = "dicomweb"\nurl = "https://x"\nauth = {type = "basic", user = "u", word = "SECRET"}',
            r"sources\.a\.auth\.password: Field required; .*sources\.a\.auth\.word: there is no such field; .* user",
        ),
        ('[targets.a]\nkind = "fhir"\nurl = "https://x"\ntls.cert = "SECRET"', r"targets\.a\.tls: .*cert and key go"),
        ('[targets.a]\nkind = "fhir"\nurl = "https://x"\ntls.crt = "SECRET"', r"tls\.crt: there is no such .* cert"),
        ("chunk_size = 7\n= 8", r"is not TOML: .*line 2"),
        ('config = "SECRET"', "config cannot be set"),
    ],
)
def test_what_is_wrong_is_named_with_its_file_and_key_and_not_quoted(named: Path, written: str, said: str) -> None:
    named.write_text(written)

    with pytest.raises(ConfigurationError, match=said) as caught:
        load_settings()

    assert str(named) in caught.value.message and "SECRET" not in caught.value.message


def test_a_file_that_is_named_and_missing_stops(named: Path) -> None:
    named.unlink()

    with pytest.raises(ConfigurationError, match="which MEDFLOW_CONFIG names, cannot be read"):
        load_settings()


def test_who_else_may_change_or_read_the_file_is_known(tmp_path: Path) -> None:
    folder = tmp_path / "etc"
    folder.mkdir(mode=0o755)
    file = folder / "medflow.toml"
    file.touch(mode=0o640)
    assert exposure(file) == [] and not everybody_reads(file)

    file.chmod(0o646)
    folder.chmod(0o757)

    assert len(exposure(file)) == 2 and everybody_reads(file)


# --- medflow config ------------------------------------------------------------------------------------------------


def test_the_settings_in_effect_are_shown_without_secrets(named: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDFLOW_FHIR_TOKEN", "env:TOKEN")
    monkeypatch.setenv("COLUMNS", "200")

    as_text = CliRunner().invoke(app, ["config"])
    as_json = CliRunner().invoke(app, ["config", "--json"])

    assert as_text.exit_code == as_json.exit_code == 0
    assert "SECRET" not in as_text.output + as_json.output
    assert f"file: {named}" in as_text.output.replace("\n", "")
    told = json.loads(as_json.output)["settings"]
    assert told["fhir_token"] == {"value": "env:TOKEN", "from": "MEDFLOW_FHIR_TOKEN"}
    assert told["database_url"]["value"] == "postgresql+psycopg://medflow@db:5432/medflow"
    assert told["device"] == {"value": "auto", "from": None}
    assert told["sources"] == {
        "value": {
            "pacs": {
                "url": "https://pacs.example/dicom-web",
                "auth": {"type": "basic", "user": "me", "password": "(not shown)"},
                "modalities": ["CT"],
                "patient_id": "(not shown)",
                "kind": "dicomweb",
            }
        },
        "from": f"{named}: sources",
    }


def test_the_public_key_of_a_connection_is_printed_to_be_registered(named: Path, tmp_path: Path) -> None:
    key = private_key(tmp_path, "key", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384")
    auth = f'{{type = "smart-backend", client_id = "me", alg = "ES384", kid = "k1", key = "file:{key}"}}'
    named.write_text(f'[targets.ehr]\nkind = "fhir"\nurl = "https://x"\nauth = {auth}')

    printed = CliRunner().invoke(app, ["config", "--public-key", "ehr"])

    (jwk,) = json.loads(printed.output)["keys"]
    assert (jwk["kid"], jwk["alg"], jwk["crv"], jwk["use"]) == ("k1", "ES384", "P-384", "sig")
    assert "d" not in jwk
