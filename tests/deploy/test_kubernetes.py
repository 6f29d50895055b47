"""The Kubernetes manifests cannot be applied here: kustomize builds them, and each is held against its schema."""

import re
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from medflow.config import Settings
from tests.deploy.tools import DEPLOY, run, tool

FOLDER = DEPLOY / "kubernetes"
VERSIONS = ["1.30", "1.37"]  # the oldest that is supported by anybody, and the newest


def build(folder: Path) -> list[dict]:
    """What `kubectl apply -k` would apply."""
    kubectl = tool("kubectl", "1.21 or newer, for `kubectl kustomize`")
    return [item for item in yaml.safe_load_all(run(kubectl, "kustomize", folder)) if item]


@pytest.fixture(scope="module", params=["base", "overlays/gpu"])
def built(request) -> list[dict]:
    return build(FOLDER / request.param)


@pytest.fixture(scope="module")
def with_gpu() -> list[dict]:
    return build(FOLDER / "overlays" / "gpu")


def pods(items: list[dict]) -> dict[str, dict]:
    """The pod templates, by the name of what makes them."""
    return {item["metadata"]["name"]: item["spec"]["template"] for item in items if "template" in item.get("spec", {})}


def containers(pod: dict) -> list[dict]:
    return [*pod["spec"].get("initContainers", ()), *pod["spec"]["containers"]]


@pytest.mark.parametrize("version", VERSIONS)
def test_everything_is_as_its_schema_says(built, version):
    for item in built:
        kubernetes_validate.validate(item, version, strict=True)
    assert len(built) > 15


def test_the_example_of_the_secrets_is_as_its_schema_says_and_has_none():
    items = list(yaml.safe_load_all((FOLDER / "secrets.example.yaml").read_text()))

    for item in items:
        kubernetes_validate.validate(item, VERSIONS[-1], strict=True)
        assert all("FILL-IN" in value for value in item["stringData"].values())
    assert {item["metadata"]["name"] for item in items} == {"medflow", "medflow-prefect-server"}


def test_no_secret_is_applied(built):
    assert not [item for item in built if item["kind"] == "Secret"]


def test_every_pod_keeps_the_restricted_standard(built):
    namespace = next(item for item in built if item["kind"] == "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for name, pod in pods(built).items():
        security = pod["spec"]["securityContext"]
        assert security["runAsNonRoot"] is True and security["runAsUser"] == 10001, name
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert pod["spec"]["automountServiceAccountToken"] is False, name
        assert pod["spec"]["enableServiceLinks"] is False, name  # PREFECT_SERVER_PORT would be taken for a setting
        for container in containers(pod):
            own = container["securityContext"]
            assert own["allowPrivilegeEscalation"] is False and own["readOnlyRootFilesystem"] is True, name
            assert own["capabilities"] == {"drop": ["ALL"]}, name
            assert container["resources"]["requests"] and container["resources"]["limits"]["memory"], name


def test_a_label_chosen_by_a_selector_is_on_its_pods(built):
    labels = [pod["metadata"]["labels"] for pod in pods(built).values()]
    selectors = [
        item["spec"]["selector"] if item["kind"] == "Service" else item["spec"]["selector"]["matchLabels"]
        for item in built
        if item["kind"] in ("Service", "PodDisruptionBudget", "Deployment")
    ]
    for selector in selectors:
        assert any(selector.items() <= have.items() for have in labels), selector


def test_every_name_that_is_referred_to_is_there(built):
    names = {kind: {item["metadata"]["name"] for item in built if item["kind"] == kind} for kind in known_kinds(built)}
    secrets = {"medflow", "medflow-prefect-server"}
    for pod in pods(built).values():
        assert pod["spec"]["serviceAccountName"] in names["ServiceAccount"]
        for volume in pod["spec"]["volumes"]:
            if claim := volume.get("persistentVolumeClaim"):
                assert claim["claimName"] in names["PersistentVolumeClaim"]
        for container in containers(pod):
            for source in container["envFrom"]:
                assert source.get("configMapRef", {}).get("name") in {None} | names["ConfigMap"]
                assert source.get("secretRef", {}).get("name") in {None} | secrets


def known_kinds(items: list[dict]) -> set[str]:
    return {item["kind"] for item in items}


def test_only_the_prefect_server_is_given_its_database(built):
    for name, pod in pods(built).items():
        told = str([container["envFrom"] for container in containers(pod)])
        assert ("medflow-prefect-server" in told) == (name == "prefect-server"), name


def test_every_setting_of_the_config_map_is_one(built):
    data = next(item for item in built if item["kind"] == "ConfigMap")["data"]
    settings = {f"MEDFLOW_{field.upper()}" for field in Settings.model_fields}

    assert {name for name in data if name.startswith("MEDFLOW_")} <= settings
    made = {name.removeprefix("MEDFLOW_").lower(): value for name, value in data.items() if name in settings}
    assert yaml.safe_load(made["sources"])["received"]["paths"] == ["/data/received"]


def test_every_image_has_an_exact_version(built):
    for name, pod in pods(built).items():
        for container in containers(pod):
            assert re.fullmatch(r"medflow-[cg]pu:\d+\.\d+\.\d+", container["image"]), name


def test_workers_and_flow_runs_have_time_to_drain(with_gpu):
    grace = {name: pod["spec"].get("terminationGracePeriodSeconds", 30) for name, pod in pods(with_gpu).items()}

    assert grace["worker"] >= 300 and grace["worker-gpu"] >= 300
    assert grace["serve"] >= 120
    assert grace["receive"] > Settings.model_fields["receive_grace_s"].default


def test_a_gpu_worker_asks_for_a_gpu_and_goes_where_they_are(with_gpu):
    pod = pods(with_gpu)["worker-gpu"]["spec"]

    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert pod["nodeSelector"] == {"nvidia.com/gpu.present": "true"}
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in pod["tolerations"]
    assert "nvidia.com/gpu" not in str(pods(with_gpu)["worker"])


def test_what_is_let_in_is_listed(built):
    policies = {item["metadata"]["name"]: item["spec"] for item in built if item["kind"] == "NetworkPolicy"}

    assert policies["nothing"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for name, spec in policies.items():
        for rule in spec.get("ingress", ()):
            assert rule["from"] and rule["ports"], name  # an empty list would mean everybody


def test_the_component_for_the_prometheus_operator_can_be_added(tmp_path):
    overlay = tmp_path / "overlay"
    overlay.mkdir()
    relative = Path("../" * len(overlay.parts)) / str(FOLDER).lstrip("/")
    (overlay / "kustomization.yaml").write_text(
        f"resources: [{relative}/base]\ncomponents: [{relative}/components/prometheus-operator]\n"
    )

    items = build(overlay)

    assert [item["metadata"]["name"] for item in items if item["kind"] == "PodMonitor"] == ["medflow"]
