"""The Kubernetes manifests: Kubernetes knows each field, and they agree with the daemon, the image and each other."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from coordinator.server.config import Config, advertised
from coordinator.server.config_sources import load
from deploy.check import documents, faults, main, manifests, supported

ROOT = Path(__file__).resolve().parents[3]
DIRECTORY = ROOT / "deploy" / "kubernetes"


@pytest.fixture(scope="module")
def objects() -> dict[tuple[str, str], Any]:
    """Every object by kind and name."""
    found = [each for file in manifests(DIRECTORY) for each in documents(file)]
    return {(each["kind"], each["metadata"]["name"]): each for each in found}


@pytest.fixture(scope="module")
def pod(objects: dict[tuple[str, str], Any]) -> Any:
    return objects["Deployment", "coordinator"]["spec"]["template"]


@pytest.fixture(scope="module")
def container(pod: Any) -> Any:
    (only,) = pod["spec"]["containers"]
    return only


@pytest.fixture(scope="module")
def config(objects: dict[tuple[str, str], Any], tmp_path_factory: pytest.TempPathFactory) -> Config:
    """What the daemon reads in a pod."""
    file = tmp_path_factory.mktemp("pod") / "coordinator.toml"
    file.write_text(objects["ConfigMap", "coordinator"]["data"]["coordinator.toml"])
    return load(file, environ=image_variables()).config


def image_variables() -> dict[str, str]:
    """The variables of the daemon that the image sets."""
    return dict(re.findall(r"(COORDINATOR_\w+)=(\S+)", (ROOT / "Dockerfile").read_text()))


# ---------------------------------------------------------------- Kubernetes' schemas


@pytest.mark.parametrize("version", [supported()[0], supported()[-1]])
def test_every_object_is_known_to_kubernetes(version: str) -> None:
    """The oldest and the newest supported version know each field; `deploy/check.py` asks those between too."""
    assert list(faults(DIRECTORY, [version])) == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("data: {a: 1}", "data.a: 1 is not of type 'string'"),
        ("dta: {}", "'dta' was unexpected"),
        ("data: {}\ndata: {}", "'data' is said twice"),
        ("data: [", "while parsing"),
    ],
)
def test_the_check_finds_faults(text: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong type, an unknown field, a key said twice and broken YAML are told with their file; the exit code is 1."""
    (tmp_path / "it.yaml").write_text(f"apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: it}}\n{text}\n")
    assert main([str(tmp_path), "--kubernetes", supported()[-1]]) == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("it.yaml: ")
    assert says in line


def test_the_kustomization_takes_every_file() -> None:
    """`kubectl apply -k` leaves out none of the manifests."""
    (kustomization,) = documents(DIRECTORY / "kustomization.yaml")
    assert sorted(kustomization["resources"]) == [file.name for file in manifests(DIRECTORY)]


# ---------------------------------------------------------------- what the daemon makes of it


def test_the_daemon_accepts_the_configuration(config: Config) -> None:
    """The ConfigMap's file is one that the daemon starts with: on Kafka, reachable from other pods."""
    assert config.log.kind == "kafka"
    assert all(host == "0.0.0.0" for host, _ in config.listen.addresses().values())


def test_the_configuration_is_found(pod: Any, container: Any) -> None:
    """The variable that names the file points into the volume that holds the ConfigMap."""
    mounted = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
    paths = {mount["mountPath"]: mounted[mount["name"]] for mount in container["volumeMounts"]}
    (file,) = (Path(each["value"]) for each in container["env"] if each["name"] == "COORDINATOR_CONFIG")
    assert paths[str(file.parent)]["configMap"]["name"] == "coordinator"
    assert file.name == "coordinator.toml"


def test_what_is_written_has_a_volume(pod: Any, container: Any, config: Config) -> None:
    """The root file system is read-only, and the two directories that are written to are volumes."""
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    empty = {volume["name"] for volume in pod["spec"]["volumes"] if "emptyDir" in volume}
    writable = {mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] in empty}
    assert writable == {config.log.data_dir, "/tmp"}


def test_a_pod_may_drain_before_it_is_killed(pod: Any, container: Any, config: Config) -> None:
    """The grace period holds preStop, drain_timeout and the second in which the last answers leave."""
    needed_s = container["lifecycle"]["preStop"]["sleep"]["seconds"] + int(config.coordinator.drain_timeout) / 1000 + 1
    assert pod["spec"]["terminationGracePeriodSeconds"] > needed_s


def test_only_readiness_asks_whether_it_serves(container: Any) -> None:
    """A replay and an outage of Kafka make an instance unready; neither is cured by a restart."""
    probes = {name: container[name]["httpGet"]["path"] for name in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert probes == {"startupProbe": "/healthz", "readinessProbe": "/readyz", "livenessProbe": "/healthz"}
    startup = container["startupProbe"]
    assert (
        startup["periodSeconds"] * startup["failureThreshold"] > 30
    )  # the log may take 10 s to say that it is not there


# ---------------------------------------------------------------- one with another


def test_ports_are_the_listeners(container: Any, config: Config) -> None:
    """A port of the container is where the daemon listens, by the listener's own name."""
    assert {port["name"]: port["containerPort"] for port in container["ports"]} == {
        name: port for name, (_, port) in config.listen.addresses().items()
    }


def test_ports_are_named_alike(objects: dict[tuple[str, str], Any], container: Any) -> None:
    """Services, probes and the network policy name ports that the container has."""
    names = {port["name"] for port in container["ports"]}
    services = [each for (kind, _), each in objects.items() if kind == "Service"]
    assert all({port["targetPort"] for port in service["spec"]["ports"]} == names for service in services)
    policy = objects["NetworkPolicy", "coordinator"]["spec"]
    assert {port["port"] for rule in policy["ingress"] for port in rule["ports"]} == names
    probes = (container[name]["httpGet"]["port"] for name in ("startupProbe", "readinessProbe", "livenessProbe"))
    assert set(probes) <= names


def test_selectors_find_the_pods(objects: dict[tuple[str, str], Any], pod: Any) -> None:
    """Everything that selects the pods selects them by labels that they bear."""
    spec = objects["Deployment", "coordinator"]["spec"]
    selectors = [
        spec["selector"]["matchLabels"],
        objects["PodDisruptionBudget", "coordinator"]["spec"]["selector"]["matchLabels"],
        objects["NetworkPolicy", "coordinator"]["spec"]["podSelector"]["matchLabels"],
        *(each["spec"]["selector"] for (kind, _), each in objects.items() if kind == "Service"),
        *(each["labelSelector"]["matchLabels"] for each in pod["spec"]["topologySpreadConstraints"]),
    ]
    labels = pod["metadata"]["labels"].items()
    assert all(selector.items() <= labels for selector in selectors)


def test_one_instance_at_a_time_goes(objects: dict[tuple[str, str], Any], config: Config) -> None:
    """A roll-out brings one before it takes one, an eviction takes one; and there is a partition for everybody."""
    spec = objects["Deployment", "coordinator"]["spec"]
    assert spec["replicas"] == 3
    assert spec["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    assert objects["PodDisruptionBudget", "coordinator"]["spec"]["maxUnavailable"] == 1
    assert config.log.partitions >= spec["replicas"] + 1


@pytest.mark.parametrize(("pod_ip", "address"), [("10.1.2.3", "10.1.2.3:7070"), ("fd00::5", "[fd00::5]:7070")])
def test_the_others_are_told_the_pods_address(container: Any, pod_ip: str, address: str) -> None:
    """The variable is the pod's IP, of either family, and the daemon takes it."""
    (variable,) = (each for each in container["env"] if each["name"] == "COORDINATOR_LISTEN__ADVERTISE")
    assert variable["valueFrom"] == {"fieldRef": {"fieldPath": "status.podIP"}}
    config = load(None, environ={**image_variables(), variable["name"]: pod_ip}).config
    _, port = config.listen.addresses()["tcp"]
    assert advertised(config.listen.advertise, port) == address


def test_the_instances_may_talk_to_each_other(objects: dict[tuple[str, str], Any]) -> None:
    """Both ways, over TCP, by a rule that is not the clients'."""
    policy = objects["NetworkPolicy", "coordinator"]["spec"]
    peers = [{"podSelector": policy["podSelector"]}]
    assert {"from": peers, "ports": [{"port": "tcp"}]} in policy["ingress"]
    assert {"to": peers, "ports": [{"port": "tcp"}]} in policy["egress"]


def test_an_instance_has_no_rights(pod: Any, container: Any) -> None:
    """What the `restricted` pod security standard asks for, and no token of the cluster."""
    assert pod["spec"]["automountServiceAccountToken"] is False
    assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
    assert pod["spec"]["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_the_user_is_the_images(pod: Any) -> None:
    """The pod's user and group are the ones that own the data directory in the image."""
    user = re.search(r"^USER (\d+):(\d+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    context = pod["spec"]["securityContext"]
    assert user is not None
    assert [context["runAsUser"], context["runAsGroup"]] == [int(user[1]), int(user[2])]
    assert context["fsGroup"] == context["runAsGroup"]


def test_the_image_is_this_version(container: Any) -> None:
    """A release names its own image."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert container["image"] == f"coordinator:{version}"
