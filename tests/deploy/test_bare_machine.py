"""The systemd path, end to end: every ExecStart as written, from images received to results delivered."""

import json
import re
import signal
import socket
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from pydicom import dcmread

from medflow.sample import write_sample
from tests.deploy.bare_machine import BareMachine, wait_for
from tests.services import free_port
from tests.services.dcmtk import run

pytestmark = pytest.mark.slow
SERVICES = [
    "medflow-metrics.service",  # in no order: After= has to make one
    "medflow-serve.service",
    "medflow-receive.service",
    "medflow-worker@cpu.service",
    "medflow-setup.service",
    "medflow-prefect-server.service",
]
MODEL = "splice-site"
TRIGGER = """
import sys
from prefect.deployments import run_deployment
run = run_deployment("nightly/nightly", parameters={"models": [sys.argv[1]]}, timeout=300, poll_interval=1)
print(run.state.type.value, run.state.name, run.state.message)
"""


def answers(url: str) -> bool:
    try:
        return urllib.request.urlopen(url, timeout=10).status == 200
    except (urllib.error.URLError, OSError):
        return False


@pytest.fixture(scope="module")
def machine(tmp_path_factory, postgres):
    """The services, up. What differs from the examples: where databases and ports are, and what is to be taken in."""
    root = tmp_path_factory.mktemp("machine")
    sample = write_sample(root / "sample", stays=4)
    for name in ("bare_medflow", "bare_prefect"):
        postgres.execute(f"CREATE DATABASE {name}")
    ports = {name: str(free_port()) for name in ("prefect", "receive", "metrics")}
    address = f"http://127.0.0.1:{ports['prefect']}/api"
    received = {"kind": "dicom", "paths": ["/var/lib/medflow/home/received"], "remove_received": True}
    made = BareMachine(
        root=root,
        services=SERVICES,
        sample=sample,
        ports=ports,
        changes={
            "MEDFLOW_DATABASE_URL": postgres.url("bare_medflow"),
            "MEDFLOW_SOURCES": json.dumps(
                {"received": received, "sequences": {"kind": "fasta", "paths": [str(sample.fasta)]}}
            ),
            "PREFECT_API_AUTH_STRING": "medflow:secret",
            "PREFECT_SERVER_API_AUTH_STRING": "medflow:secret",
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": postgres.url("bare_prefect").replace("psycopg", "asyncpg"),
            "PREFECT_API_URL": address,
            "PREFECT_SERVER_UI_API_URL": address,
            "PREFECT_SERVER_API_PORT": ports["prefect"],
            "MEDFLOW_RECEIVE_PORT": ports["receive"],
            "METRICS_PORT": ports["metrics"],
        },
    )
    try:
        made.start()
        yield made
    finally:
        made.stop()
        for name in ("bare_medflow", "bare_prefect"):
            postgres.execute(f"DROP DATABASE {name} WITH (FORCE)")


def logs(machine: BareMachine) -> str:
    return "\n".join(f"--- {name}\n{machine.log(name).read_text()[-3000:]}" for name in machine.services)


def test_the_services_start_in_an_order_that_works(machine):
    order = [unit.name for unit in machine.in_order()]

    assert order[:2] == ["medflow-prefect-server.service", "medflow-setup.service"]
    assert all(process.poll() is None for process in machine.running.values()), logs(machine)


def test_the_pages_ask_for_the_password_and_the_health_check_for_none(machine):
    address = f"http://127.0.0.1:{machine.ports['prefect']}/api"

    assert answers(f"{address}/health")
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{address}/admin/version", timeout=10)


def test_a_night_takes_what_was_received_scores_it_on_the_worker_and_delivers(machine):
    files = slices(machine.sample.dicom)
    home = machine.root / "var/lib/medflow"

    wait_for("the receiver", lambda: listening(int(machine.ports["receive"])))
    sent = run("storescu", "-aec", "MEDFLOW", "127.0.0.1", machine.ports["receive"], *files)
    assert sent.returncode == 0, sent.stderr + logs(machine)
    spooled = [path for path in (home / "home/received").rglob("*.dcm")]
    assert len(spooled) == len(files)

    done = machine.by_hand("/opt/medflow/bin/python", "-c", TRIGGER, MODEL)

    assert done.returncode == 0, done.stderr + logs(machine)
    kind, name, *_ = done.stdout.split()
    assert (kind, name) in {("COMPLETED", "Completed"), ("COMPLETED", "CompletedWithProblems")}, logs(machine)
    observations = (home / "results/Observation.ndjson").read_text().splitlines()
    assert len(observations) > 0
    assert not [path for path in (home / "home/received").rglob("*.dcm")]  # taken, and safe in the store
    status = json.loads(machine.by_hand("/opt/medflow/bin/medflow", "status", "--json").stdout)
    assert "splice-site" in json.dumps(status)


def test_a_second_night_delivers_nothing_twice(machine):
    folder = machine.root / "var/lib/medflow/results"
    before = {path.name: path.read_bytes() for path in folder.glob("*.ndjson")}

    done = machine.by_hand("/opt/medflow/bin/python", "-c", TRIGGER, MODEL)

    assert done.stdout.startswith("COMPLETED"), done.stdout + logs(machine)
    assert {path.name: path.read_bytes() for path in folder.glob("*.ndjson")} == before


def test_metrics_tell_prometheus_of_the_worker(machine):
    with urllib.request.urlopen(f"http://127.0.0.1:{machine.ports['metrics']}/metrics", timeout=10) as answer:
        said = answer.read().decode()

    assert re.search(r'^medflow_worker_up\{.*device="cpu".*\} 1', said, re.M), said
    assert f'medflow_jobs{{model="{MODEL}"' in said


def test_nothing_about_a_patient_is_in_what_the_services_say(machine):
    dataset = dcmread(slices(machine.sample.dicom)[0])
    said = logs(machine)

    for secret in (str(dataset.PatientName), str(dataset.PatientID), "secret@", "medflow:secret"):
        assert secret not in said


def test_every_service_ends_well_when_it_is_asked_to(machine):
    machine.stop()

    assert set(machine.ended) == set(SERVICES) - {"medflow-setup.service"}
    # Prefect's web server shuts down in order, then ends by the signal itself; systemd counts that as well ended
    prefect = machine.ended.pop("medflow-prefect-server.service")
    assert prefect in (0, -signal.SIGTERM)
    assert machine.ended == dict.fromkeys(machine.ended, 0), logs(machine)


def slices(folder: Path) -> list[Path]:
    """A few files of one series that can be sent."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*.dcm")):
        dataset = dcmread(path, stop_before_pixels=True, force=True)
        if dataset.get("Modality") == "CT" and "TransferSyntaxUID" in dataset.file_meta:
            found.setdefault(dataset.SeriesInstanceUID, []).append(path)
    return max(found.values(), key=len)[:6]


def listening(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=2).close()
    except OSError:
        return False
    return True
