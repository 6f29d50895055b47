"""medflow doctor against real servers that are well, away, strange, or closed to us."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from medflow.cli.app import app
from medflow.config import Settings, load_settings, load_with_origins
from medflow.dicom.receive import receiver
from medflow.doctor import Finding, examine, here
from medflow.doctor.finding import Check, State, run_checks
from medflow.doctor.web import clock
from tests.services import free_port
from tests.services.faulty_fhir import Reply, faulty_fhir
from tests.services.oauth import Client, authorisation_server, protect
from tests.services.orthanc import Orthanc


def found(name: str, *, timeout_s: float = 5.0, **settings: Any) -> list[Finding]:
    """What is said of one source or target."""
    return examine(load_settings(**settings), {}, names=[name], timeout_s=timeout_s)


def said(findings: list[Finding], state: str | None = None) -> str:
    return "\n".join(finding.message for finding in findings if state in (None, finding.state))


def states(findings: list[Finding]) -> set[str]:
    return {str(finding.state) for finding in findings}


# --- all is well -------------------------------------------------------------------------------------------------


def test_what_works_is_said_so(
    tmp_path: Path, fhir_server: str, orthanc: Orthanc, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = tmp_path / "in"
    inputs.mkdir()
    config = tmp_path / "medflow.toml"
    config.write_text(f"""
        home = "{tmp_path / "home"}"
        deliver_to = "ehr"
        [sources]
        files = {{kind = "dicom", paths = ["{inputs}"]}}
        ehr = {{kind = "fhir-server", url = "{fhir_server}", types = ["Patient", "Observation"]}}
        web = {{kind = "dicomweb", url = "{orthanc.dicomweb}"}}
        pacs = {{kind = "pacs", address = "{orthanc.address}"}}
        [targets]
        ehr = {{kind = "fhir", url = "{fhir_server}"}}
        web = {{kind = "dicomweb", url = "{orthanc.dicomweb}"}}
        pacs = {{kind = "pacs", address = "{orthanc.address}"}}
        folder = {{kind = "folder", path = "{tmp_path / "out"}"}}
    """)
    monkeypatch.setenv("MEDFLOW_CONFIG", str(config))

    ended = CliRunner().invoke(app, ["doctor", "--json"])

    told = json.loads(ended.output)
    assert (ended.exit_code, told["failed"], told["warning"]) == (0, 0, 0), told
    names = {finding["name"] for finding in told["findings"]}
    sources = {f"source {name}" for name in ("files", "ehr", "web", "pacs")}
    targets = {f"target {name}" for name in ("ehr", "web", "pacs", "folder")}
    assert names == {"configuration", "database", "objects"} | sources | targets
    assert not (tmp_path / "home").exists() and not (tmp_path / "out").exists()


def test_a_server_behind_an_authorisation_server(fhir_server: str) -> None:
    with authorisation_server() as oauth, protect(fhir_server, oauth) as guarded:
        oauth.clients["me"] = Client(secret="word")
        auth = {"type": "client-credentials", "token_url": oauth.token_url, "client_id": "me", "client_secret": "word"}
        source = {"kind": "fhir-server", "url": guarded.url, "types": ["Patient"]}

        well = found("ehr", sources={"ehr": {**source, "auth": auth}})
        wrong = found("ehr", sources={"ehr": {**source, "auth": {**auth, "client_secret": "hidden"}}})
        nobody = found("ehr", sources={"ehr": source})

    assert states(well) == {"ok"} and "gives us a token" in said(well)
    assert states(wrong) == {"failed"} and "invalid_client" in said(wrong) and "hidden" not in said(wrong)
    assert states(nobody) == {"failed"} and "HTTP 401" in said(nobody)


# --- servers that are not well -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "where", "message"),
    [
        ("fhir", "away", "cannot be reached"),
        ("fhir", "orthanc", "is no FHIR server"),
        ("dicomweb", "away", "cannot be reached"),
        ("dicomweb", "fhir", "STOW-RS"),
    ],
)
def test_a_target_that_is_away_or_is_another_kind_of_server(
    fhir_server: str, orthanc: Orthanc, kind: str, where: str, message: str
) -> None:
    url = {"away": f"http://127.0.0.1:{free_port()}", "orthanc": orthanc.url, "fhir": fhir_server}[where]

    findings = found("t", targets={"t": {"kind": kind, "url": url}})

    assert states(findings) == {"failed"} and message in said(findings)


@pytest.mark.parametrize(("retrieve", "service"), [("get", "C-GET"), ("move", "C-MOVE")])
def test_an_archive_that_answers_and_does_not_allow_what_is_needed(retrieve: str, service: str, storage_only) -> None:
    source = {"kind": "pacs", "address": storage_only, "retrieve": retrieve}

    findings = found("pacs", sources={"pacs": source})

    assert "answers C-ECHO, and knows us as MEDFLOW" in said(findings, "ok")
    assert "does not accept C-FIND" in said(findings, "failed") and f"not accept {service}" in said(findings, "failed")


@pytest.fixture
def storage_only(tmp_path: Path) -> Iterator[str]:
    """Our own receiver: it takes images and answers no questions."""
    settings = load_settings(home=tmp_path, receive_port=free_port())
    running = receiver(settings)
    running.start()
    yield f"MEDFLOW@127.0.0.1:{settings.receive_port}"
    running.stop()


def test_a_fhir_server_that_cannot_do_what_is_needed() -> None:
    statement = {
        "resourceType": "CapabilityStatement",
        "fhirVersion": "4.0.1",
        "rest": [
            {
                "mode": "server",
                "interaction": [{"code": "batch"}],
                "resource": [
                    {"type": "Patient", "interaction": [{"code": "read"}, {"code": "search-type"}]},
                    {"type": "Observation", "interaction": [{"code": "update"}], "updateCreate": True},
                ],
            }
        ],
    }
    with faulty_fhir() as server:
        server.metadata = Reply(body=json.dumps(statement).encode())
        types = ["Patient", "Observation"]
        source = {"kind": "fhir-server", "url": server.url}
        read = found("ehr", sources={"ehr": {**source, "types": types}})
        exported = found("ehr", sources={"ehr": {**source, "mode": "export", "level": "Group/1"}})
        written = found("ehr", targets={"ehr": server.url})

    assert "no search of Observation" in said(read, "warning") and "_lastUpdated" in said(read, "warning")
    assert "1 of 2 types" in said(read, "ok")
    assert "no $export (Group/1)" in said(exported, "warning")
    assert "no transactions" in said(written, "warning")
    assert "has no RiskAssessment" in said(written, "failed") and "Observation" not in said(written, "failed")


def test_a_server_that_hangs_is_given_up_on_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        began = time.monotonic()
        web = found("t", targets={"t": f"http://127.0.0.1:{port}/fhir"}, timeout_s=0.2)
        dicom = found("t", targets={"t": f"PACS@127.0.0.1:{port}"}, timeout_s=0.2)

    assert time.monotonic() - began < 5
    assert states(web) == states(dicom) == {"failed"}


def test_a_check_that_never_ends_does_not_keep_the_others() -> None:
    def forever() -> Iterator[tuple[State, str]]:
        yield State.OK, "begun"
        time.sleep(60)

    def broken() -> Iterator[tuple[State, str]]:
        yield State.OK, "begun"
        raise ZeroDivisionError("SECRET")

    checks = [Check(name="slow", run=forever), Check(name="broken", run=broken)]
    findings = run_checks(checks, deadline_s=0.3)

    assert [(each.name, str(each.state)) for each in findings] == [
        ("slow", "ok"),
        ("slow", "failed"),
        ("broken", "ok"),
        ("broken", "failed"),
    ]
    assert "0.3 s" in findings[1].message
    assert "ZeroDivisionError" in findings[3].message and "SECRET" not in findings[3].message


def test_a_clock_that_is_off_is_told_of() -> None:
    def answer(ahead_s: float) -> httpx.Response:
        return httpx.Response(200, headers={"Date": formatdate(time.time() + ahead_s, usegmt=True)})

    assert list(clock(answer(10))) == list(clock(httpx.Response(200))) == []
    ((state, message),) = clock(answer(-300))
    assert state == "warning" and "s behind ours" in message


def test_credentials_that_anybody_on_the_way_can_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    auth = {"type": "basic", "user": "me", "password": "word"}
    findings = found("ehr", sources={"ehr": {"kind": "fhir-server", "url": "http://ehr.invalid/fhir", "auth": auth}})

    assert "use https" in said(findings, "warning") and "cannot be reached" in said(findings, "failed")


def test_a_secret_that_is_not_there_is_named(fhir_server: str) -> None:
    target = {"kind": "fhir", "url": fhir_server, "auth": {"type": "bearer", "token": "env:NOT_SET_ANYWHERE"}}

    assert "NOT_SET_ANYWHERE" in said(found("ehr", targets={"ehr": target}), "failed")


def test_a_name_that_there_is_not() -> None:
    ended = CliRunner().invoke(app, ["doctor", "nothing"], env={"MEDFLOW_TARGETS": '{"a": "/out"}'})

    assert "there are: a" in str(ended.exception)


# --- this machine ------------------------------------------------------------------------------------------------


@pytest.fixture
def mine(tmp_path: Path) -> Settings:
    return load_settings(home=tmp_path / "home")


def test_folders_that_are_not_there_or_closed(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    sources = {"in": {"kind": "vcf", "paths": [str(tmp_path / "nothing")], "reference": str(tmp_path / "ref.fa")}}

    assert "ref.fa; make or mount it" in said(found("in", sources=sources), "failed")
    assert "is a file" in said(found("out", targets={"out": str(tmp_path / "file" / "out")}), "failed")
    assert "cannot be made in /proc" in said(found("out", targets={"out": "/proc/results"}), "failed")


def test_a_database_that_is_not_of_this_version(postgres, mine: Settings) -> None:
    postgres.execute("CREATE DATABASE not_upgraded")
    foreign = load_settings(home=mine.home, database_url=postgres.url("not_upgraded"))

    ((state, message),) = here.database(foreign)

    assert state == "failed" and "run `medflow db upgrade`" in message


def test_an_object_store_that_is_not_mounted(tmp_path: Path) -> None:
    findings = examine(load_settings(home=tmp_path, objects=str(tmp_path / "mount")), {})
    (objects,) = [finding for finding in findings if finding.name == "objects"]
    assert objects.state == "failed" and "mount it" in objects.message

    (tmp_path / "mount").mkdir()
    assert list(here.objects(load_settings(home=tmp_path, objects=str(tmp_path / "mount"))))[0][0] == "ok"
    assert not [path for path in (tmp_path / "mount").rglob("*") if path.is_file()]


def test_a_configuration_that_others_may_change_or_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "medflow.toml"
    file.write_text(f'fhir_token = "word"\nbundles = "somewhere"\nhome = "{tmp_path}"\n[targets]\nehr = "/out"')
    file.chmod(0o666)
    monkeypatch.setenv("MEDFLOW_CONFIG", str(file))
    loaded = load_with_origins()

    warnings = "\n".join(message for state, message in here.configuration(loaded.settings, loaded.origins))

    assert "everybody may write" in warnings and "fhir_token holds a secret" in warnings
    assert "somewhere; write absolute paths" in warnings and "no default target" in warnings
    assert "word" not in warnings


def receiver_found(**settings: Any) -> list[Finding]:
    findings = examine(load_settings(**settings), {}, timeout_s=5)
    return [finding for finding in findings if finding.name == "receiver"]


def test_the_port_of_the_receiver(tmp_path: Path, storage_only: str, fhir_server: str) -> None:
    ours, strange = int(storage_only.rpartition(":")[2]), httpx.URL(fhir_server).port
    free = receiver_found(home=tmp_path, receive_port=free_port())

    assert states(free) == {"ok"} and "is free" in said(free)
    assert "MEDFLOW answers" in said(receiver_found(home=tmp_path, receive_port=ours), "ok")
    assert "something else" in said(receiver_found(home=tmp_path, receive_port=strange), "failed")
    assert receiver_found(home=tmp_path) == []


def test_who_is_told_of_storage_commitment_is_called(tmp_path: Path, orthanc: Orthanc) -> None:
    away = f"AWAY@127.0.0.1:{free_port()}"
    told = receiver_found(home=tmp_path, receive_port=free_port(), receive_report_to=[orthanc.address, away])

    assert "AWAY" in said(told, "warning") and "ORTHANC" not in said(told)


def test_a_receiver_that_takes_from_everybody(tmp_path: Path) -> None:
    open_to_all = {"home": tmp_path, "receive_port": free_port(), "receive_host": "0.0.0.0"}

    assert "may send" in said(receiver_found(**open_to_all), "warning")
    assert "may send" not in said(receiver_found(**open_to_all, receive_allow=["CT1"]))
