"""The Compose file: three brokers as the daemon wants them, three instances that differ only in where they are."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from coordinator.server.config import Config
from coordinator.server.config_sources import load
from coordinator.testing import kafka
from deploy.check import documents

ROOT = Path(__file__).resolve().parents[3]
BROKERS = ("kafka-1", "kafka-2", "kafka-3")
INSTANCES = ("coordinator-1", "coordinator-2", "coordinator-3")


@pytest.fixture(scope="module")
def project() -> Any:
    (only,) = documents(ROOT / "deploy" / "compose.yaml")
    return only


@pytest.fixture(scope="module")
def services(project: Any) -> Any:
    return project["services"]


def config_of(services: Any, name: str) -> Config:
    """What the daemon makes of an instance's variables."""
    return load(None, environ=services[name]["environment"]).config


def test_it_starts_brokers_and_instances(services: Any) -> None:
    """Nothing else runs."""
    assert sorted(services) == sorted(BROKERS + INSTANCES)


def test_kafka_is_the_version_of_the_tests(services: Any) -> None:
    """What was tested is what a laptop runs."""
    assert {services[name]["image"] for name in BROKERS} == {f"apache/kafka:{kafka.VERSION}"}


def test_the_brokers_know_each_other(services: Any) -> None:
    """Each broker has a number and an address of its own, and all three vote."""
    voters = []
    for name in BROKERS:
        environment = services[name]["environment"]
        assert environment["KAFKA_ADVERTISED_LISTENERS"] == f"PLAINTEXT://{name}:9092"
        voters.append(f"{environment['KAFKA_NODE_ID']}@{name}:9093")
    assert {services[name]["environment"]["KAFKA_CONTROLLER_QUORUM_VOTERS"] for name in BROKERS} == {",".join(voters)}


def test_one_lost_broker_loses_nothing(services: Any) -> None:
    """Three copies, two of which must have a record; and every broker keeps its own volume."""
    for name in BROKERS:
        environment = services[name]["environment"]
        assert (environment["KAFKA_DEFAULT_REPLICATION_FACTOR"], environment["KAFKA_MIN_INSYNC_REPLICAS"]) == ("3", "2")
        assert services[name]["volumes"] == [f"{name}:{environment['KAFKA_LOG_DIRS']}"]


def test_the_daemon_accepts_the_variables(services: Any) -> None:
    """What Compose sets is a configuration that the daemon starts with, of one log in those three brokers."""
    first, *others = (config_of(services, name) for name in INSTANCES)
    assert all(structs.replace(each, listen=first.listen) == first for each in others)
    assert first.log.kind == "kafka"
    assert first.log.bootstrap == ",".join(f"{name}:9092" for name in BROKERS)


def test_the_instances_reach_each_other(services: Any) -> None:
    """Each tells the others the name that Compose's network knows it by."""
    for name in INSTANCES:
        assert config_of(services, name).listen.advertise == name


def test_an_instance_may_drain_before_it_is_killed(services: Any) -> None:
    """The grace period is above drain_timeout."""
    for name in INSTANCES:
        drain_ms = int(config_of(services, name).coordinator.drain_timeout)
        grace = re.fullmatch(r"(\d+)s", services[name]["stop_grace_period"])
        assert grace is not None
        assert int(grace[1]) * 1000 > drain_ms


def test_only_this_machine_reaches_it(services: Any) -> None:
    """There is no authentication, so every published port is of the loopback address; and no two are the same."""
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert all(port.startswith("127.0.0.1:") for port in ports)
    assert len({port.rsplit(":", 1)[0] for port in ports}) == len(ports) == 9


def test_an_instance_has_no_rights(services: Any) -> None:
    """As in Kubernetes: a read-only root, no capability, and two directories to write to."""
    for name in INSTANCES:
        service = services[name]
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["tmpfs"] == ["/tmp"]
        assert service["volumes"] == [f"view-{name[-1]}:/var/lib/coordinator"]


def test_every_volume_is_declared(project: Any) -> None:
    """Named volumes outlive `docker compose down`."""
    used = {volume.split(":")[0] for service in project["services"].values() for volume in service["volumes"]}
    assert used == set(project["volumes"])
