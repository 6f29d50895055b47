"""The job templates: their schema, their placeholders, and the jobs that Prefect's own workers make of them."""

import json
import re
from functools import partial
from uuid import uuid4

import anyio
import httpx
import jsonschema
import kubernetes_validate
import pytest
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.workers.process import ProcessJobConfiguration
from prefect_docker.worker import DockerWorker, DockerWorkerJobConfiguration
from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration

from tests.deploy.tools import DEPLOY
from tests.services.prefect_server import prefect_server

TEMPLATES = {path.stem: json.loads(path.read_text()) for path in sorted((DEPLOY / "work-pools").glob("*.json"))}
KINDS = {"process": "process", "docker": "docker", "kubernetes": "kubernetes", "kubernetes-gpu": "kubernetes"}
CLASSES = {
    "process": ProcessJobConfiguration,
    "docker": DockerWorkerJobConfiguration,
    "kubernetes": KubernetesWorkerJobConfiguration,
    "kubernetes-gpu": KubernetesWorkerJobConfiguration,
}


@pytest.fixture(scope="module")
def server():
    with prefect_server() as running:
        yield running


@pytest.fixture
def job(server):
    """Makes the configuration that Prefect's worker makes of a template for a flow run."""

    def make(name: str, **values: object):
        told = partial(CLASSES[name].from_template_and_values, base_job_template=TEMPLATES[name], values=values)
        with temporary_settings({PREFECT_API_URL: server.api_url}):  # it looks for blocks that values refer to
            made = anyio.run(told)
            made.prepare_for_flow_run(FlowRun(id=uuid4(), name="nightly-run", flow_id=uuid4()))
        return made

    return make


def test_there_is_a_template_for_every_kind():
    assert set(TEMPLATES) == set(KINDS)


@pytest.mark.parametrize("name", KINDS)
def test_the_variables_are_a_schema_whose_defaults_keep_it(name):
    variables = TEMPLATES[name]["variables"]
    jsonschema.Draft202012Validator.check_schema(variables)
    defaults = {key: item["default"] for key, item in variables["properties"].items() if "default" in item}

    jsonschema.validate(defaults, variables)
    assert all(item.get("title") and item.get("description") for item in variables["properties"].values())


@pytest.mark.parametrize("name", KINDS)
def test_every_placeholder_is_declared_and_every_variable_used(name):
    used = set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(TEMPLATES[name]["job_configuration"])))

    assert used == set(TEMPLATES[name]["variables"]["properties"])


@pytest.mark.parametrize("name", KINDS)
def test_no_password_is_in_a_template(name):
    assert not re.search(r"postgresql|PASSWORD|AUTH_STRING|TOKEN", json.dumps(TEMPLATES[name]["job_configuration"]))


@pytest.mark.parametrize("name", ["kubernetes", "kubernetes-gpu"])
def test_the_job_that_prefect_makes_is_as_kubernetes_wants_it(name, job):
    made = job(name)

    manifest = made.job_manifest
    kubernetes_validate.validate(manifest, "1.37", strict=True)
    pod = manifest["spec"]["template"]["spec"]
    container = pod["containers"][0]
    assert container["command"] == ["tini", "--"]  # the image's own entry point is medflow
    assert container["args"] == ["prefect", "flow-run", "execute"]
    assert {"secretRef": {"name": "medflow"}} in container["envFrom"]
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert pod["securityContext"]["runAsNonRoot"] is True


def test_a_gpu_is_asked_for_in_the_number_that_is_wanted(job):
    made = job("kubernetes-gpu", gpus=2, node_selector={"pool": "a100"})

    pod = made.job_manifest["spec"]["template"]["spec"]
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 2
    assert pod["nodeSelector"] == {"pool": "a100"}
    assert pod["tolerations"][0]["key"] == "nvidia.com/gpu"


def test_a_container_of_docker_reads_its_secrets_from_a_file(job):
    # in a container the server has a name; for an address of this machine Prefect asks Docker for the host's
    made = job("docker", env={"PREFECT_API_URL": "http://prefect-server:4200/api"})

    container = DockerWorker(work_pool_name="any")._build_container_settings(None, made)
    assert container["entrypoint"][-2:] == ['set -a && . /run/medflow.env && set +a && exec "$@"', "flow-run"]
    assert container["command"] == "prefect flow-run execute"
    assert container["read_only"] is True
    assert container["cap_drop"] == ["ALL"]
    assert "/etc/medflow/flow-run.env:/run/medflow.env:ro" in container["volumes"]


@pytest.mark.parametrize("name", KINDS)
def test_a_real_server_makes_the_pool_and_holds_runs_to_its_variables(server, name):
    told = {"name": name, "type": KINDS[name], "base_job_template": TEMPLATES[name]}

    answer = httpx.post(f"{server.api_url}/work_pools/", json=told, timeout=30)

    assert answer.status_code == 201, answer.text
    kept = httpx.get(f"{server.api_url}/work_pools/{name}", timeout=30).json()["base_job_template"]
    assert kept == TEMPLATES[name]
