"""A real Apache Kafka on this machine for tests and for trying things out: KRaft, no container, no ZooKeeper.

    python -m coordinator.testing.kafka install                      fetch the jars (once; needs Maven)
    python -m coordinator.testing.kafka start [--nodes 3] [--port N] [--set KEY=VALUE]…
    python -m coordinator.testing.kafka stop | status
    python -m coordinator.testing.kafka kill|pause|resume|revive NODE

In Python, `Cluster` is the same as a context manager.  A node is the class ``kafka.Kafka`` of the published jars with a
generated configuration: each is broker and controller at once, listens on free ports of 127.0.0.1 and keeps its data
in a directory of its own, so a killed node comes back with what it had.

Everything downloaded lives in ``$COORDINATOR_KAFKA_HOME`` (default ``~/.cache/coordinator-kafka``), one directory a
version, put in place by a rename, so an interrupted install leaves nothing half done.  There is also an archive of the
classes that a started broker has loaded (JDK class data sharing): it halves the time of every later start.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from aiokafka.admin import AIOKafkaAdminClient  # type: ignore[import-untyped]
from aiokafka.errors import KafkaError  # type: ignore[import-untyped]

VERSION: Final = "4.3.1"
HOST: Final = "127.0.0.1"
_CLUSTER_ID: Final = "Y29vcmRpbmF0b3ItdGVzdA"  # any 16 bytes in base64; fixed, so that data outlives a restart
_READY_S: Final = 90.0
_STOP_S: Final = 15.0

_POM: Final = f"""<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>coordinator</groupId><artifactId>test-kafka</artifactId><version>1</version><packaging>pom</packaging>
  <dependencies>
    <dependency>
      <groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>{VERSION}</version>
    </dependency>
    <dependency>
      <groupId>org.slf4j</groupId><artifactId>slf4j-simple</artifactId><version>1.7.36</version>
    </dependency>
  </dependencies>
</project>
"""


class KafkaUnavailable(Exception):
    """Kafka could not be fetched or started; the text says why."""


# ---------------------------------------------------------------- installing


def home() -> Path:
    """Where this version's jars are, or will be."""
    base = os.environ.get("COORDINATOR_KAFKA_HOME")
    return (Path(base) if base else Path.home() / ".cache" / "coordinator-kafka").absolute() / VERSION


def install() -> Path:
    """Fetches the jars if they are not here yet; returns their home.  Safe to call from several processes."""
    target = home()
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target.parent / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.is_dir():
            with tempfile.TemporaryDirectory(dir=target.parent, prefix=".new-") as work:
                _fetch(Path(work) / VERSION)
                (Path(work) / VERSION).rename(target)
            _archive_classes(target)
    return target


def _fetch(target: Path) -> None:
    target.mkdir()
    (target / "pom.xml").write_text(_POM)
    maven = [
        *(os.environ.get("MVN", "mvn"), "-B", "-q", "-f", str(target / "pom.xml"), "dependency:copy-dependencies"),
        *("-DincludeScope=runtime", f"-DoutputDirectory={target / 'jars'}"),
    ]
    try:
        done = subprocess.run(maven, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    except FileNotFoundError as error:
        raise KafkaUnavailable(f"Maven is needed to fetch Kafka, and {maven[0]!r} is not on the path") from error
    if done.returncode:
        raise KafkaUnavailable(f"Maven could not fetch Kafka {VERSION}:\n{done.stdout[-3000:]}")


def _archive_classes(target: Path) -> None:
    """Runs a broker once to record its loaded classes; without the record everything works, only slower."""
    fresh = target / "classes.new"
    try:
        with tempfile.TemporaryDirectory(prefix="coordinator-kafka-") as scratch:
            with Cluster(Path(scratch), jvm=(f"-XX:ArchiveClassesAtExit={fresh}",)):
                pass
            fresh.rename(target / "classes.jsa")
    except (KafkaUnavailable, OSError) as error:
        print(f"no class archive, so starts stay slow: {error}", file=sys.stderr)
        fresh.unlink(missing_ok=True)


# ---------------------------------------------------------------- processes


def _life(pid: int) -> tuple[str, int]:
    """State letter and start time of a process; pid and start time together are its identity, since pids come back."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "X", 0
    return fields[0], int(fields[19])


class Node:
    """One broker: its number (from 1), its ports, its directory, its process if it runs."""

    def __init__(self, number: int, port: int, controller_port: int, directory: Path, host: str = HOST) -> None:
        self.number = number
        self.host = host
        self.port = port
        self.controller_port = controller_port
        self.directory = directory
        self.pid = 0
        self.began = 0
        self._child: subprocess.Popen[bytes] | None = None  # None when another process started it

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def running(self) -> bool:
        if self._child is not None:
            return self._child.poll() is None  # which also reaps it
        state, began = _life(self.pid) if self.pid else ("X", 0)
        return state not in "ZX" and began == self.began

    @property
    def paused(self) -> bool:
        return self.running and _life(self.pid)[0] in "Tt"

    @property
    def stopped(self) -> bool:
        """Whether all its threads are stopped: the signal reaches them one by one."""
        threads = Path(f"/proc/{self.pid}/task").glob("*/stat")
        return all(stat.read_text().rpartition(")")[2].split()[0] in "Tt" for stat in threads)

    def launch(self, properties: Mapping[str, object], jvm: tuple[str, ...]) -> None:
        data = self.directory / "data"
        if not (data / "meta.properties").is_file():  # what Kafka's storage formatter would write
            data.mkdir(parents=True)
            identity = {"version": 1, "cluster.id": _CLUSTER_ID, "node.id": self.number}
            (data / "meta.properties").write_text(_render(identity))
        configuration = self.directory / "server.properties"
        configuration.write_text(_render(properties))
        archive = home() / "classes.jsa"
        argv = [
            *(os.environ.get("JAVA", "java"), "-Xmx384m", "-Xms128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"),
            *("-XX:-UsePerfData", "-Xshare:auto", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"),
            *([f"-XX:SharedArchiveFile={archive}"] if archive.is_file() else []),
            *(*jvm, "-cp", str(home() / "jars" / "*"), "kafka.Kafka", str(configuration)),
        ]
        with open(self.directory / "output", "ab") as output:
            try:
                self._child = subprocess.Popen(
                    argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
                )
            except FileNotFoundError as error:
                raise KafkaUnavailable(
                    f"a Java 17 is needed to run Kafka, and {argv[0]!r} is not on the path"
                ) from error
        self.pid = self._child.pid
        self.began = _life(self.pid)[1]

    def signal(self, number: signal.Signals) -> None:
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def last_words(self) -> str:
        with contextlib.suppress(OSError):
            return (self.directory / "output").read_text(errors="replace")[-2000:]
        return ""


def _render(properties: Mapping[str, object]) -> str:
    return "".join(f"{key}={value}\n" for key, value in properties.items())


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((HOST, 0))
        return [each.getsockname()[1] for each in sockets]


# ---------------------------------------------------------------- the cluster


class Cluster:
    """One or three nodes with their data in ``directory``; as a context manager it starts and stops them.

    ``properties`` are broker settings on top of (and before) the ones chosen here.  ``port`` fixes node 1's port, the
    others follow; otherwise free ones are picked.  ``host`` is the address of this machine at which clients reach the
    brokers.  All methods block; in a test on an event loop call them in a thread.  Errors are KafkaUnavailable with the
    broker's last output.
    """

    def __init__(
        self,
        directory: Path,
        nodes: int = 1,
        *,
        port: int | None = None,
        host: str = HOST,
        properties: Mapping[str, object] | None = None,
        jvm: tuple[str, ...] = (),
    ) -> None:
        self.directory = directory
        self._properties = dict(properties or {})
        self._jvm = jvm
        free = _free_ports(2 * nodes)
        self.nodes = [
            Node(n, free[n - 1] if port is None else port + n - 1, free[nodes + n - 1], directory / f"node-{n}", host)
            for n in range(1, nodes + 1)
        ]

    @property
    def bootstrap(self) -> str:
        """``host:port`` of every node, by commas: what clients are given."""
        return ",".join(node.address for node in self.nodes)

    def __enter__(self) -> Cluster:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Starts every node and waits until each knows all the others."""
        install()
        try:
            for node in self.nodes:
                node.launch(self._settings(node), self._jvm)
            for node in self.nodes:
                self._await(node)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Ends every node, in order if it can be had within 15 s, otherwise at once; the data stays."""
        for node in self.nodes:
            node.signal(signal.SIGCONT)
            node.signal(signal.SIGTERM)
        deadline = time.monotonic() + _STOP_S
        while running := [node for node in self.nodes if node.running]:
            # Leaving in order needs a majority of controllers; the last ones of a bigger cluster have none.
            if time.monotonic() > deadline or (len(self.nodes) > 1 and len(running) <= len(self.nodes) // 2):
                for node in running:
                    node.signal(signal.SIGKILL)
            time.sleep(0.02)

    def kill(self, number: int) -> None:
        """SIGKILL: the node loses what it had not written to the operating system."""
        node = self._node(number, running=True)
        node.signal(signal.SIGKILL)
        while node.running:
            time.sleep(0.01)

    def pause(self, number: int) -> None:
        """SIGSTOP: connections stay open, nothing is answered.  Returns when every thread of it stands still."""
        node = self._node(number, running=True)
        node.signal(signal.SIGSTOP)
        while not node.stopped:
            time.sleep(0.005)

    def resume(self, number: int) -> None:
        """SIGCONT."""
        self._node(number, running=True).signal(signal.SIGCONT)

    def revive(self, number: int) -> None:
        """Starts a killed node again on its own data, and waits until it is back."""
        node = self._node(number, running=False)
        node.launch(self._settings(node), self._jvm)
        self._await(node)

    def _node(self, number: int, *, running: bool) -> Node:
        if not 1 <= number <= len(self.nodes):
            raise KafkaUnavailable(f"there is no node {number}, only 1 to {len(self.nodes)}")
        node = self.nodes[number - 1]
        if node.running != running:
            raise KafkaUnavailable(f"node {number} {'does not run' if running else 'runs'}")
        return node

    def _await(self, node: Node) -> None:
        """Until this node serves and lists every running node as a broker."""
        deadline = time.monotonic() + _READY_S
        while True:
            wanted = {each.number for each in self.nodes if each.running}
            if node.number not in wanted:
                raise KafkaUnavailable(f"Kafka's node {node.number} ended while starting:\n{node.last_words()}")
            if wanted <= _brokers_seen_from(node.address):
                return
            if time.monotonic() > deadline:
                raise KafkaUnavailable(f"Kafka was not ready after {_READY_S:.0f} s:\n{node.last_words()}")
            time.sleep(0.05)

    def _settings(self, node: Node) -> dict[str, object]:
        copies = min(3, len(self.nodes))
        in_sync = 2 if copies == 3 else 1
        return {
            "process.roles": "broker,controller",
            "node.id": node.number,
            "controller.quorum.voters": ",".join(f"{n.number}@{HOST}:{n.controller_port}" for n in self.nodes),
            "listeners": f"PLAINTEXT://{node.address},CONTROLLER://{HOST}:{node.controller_port}",
            "advertised.listeners": f"PLAINTEXT://{node.address}",
            "inter.broker.listener.name": "PLAINTEXT",
            "controller.listener.names": "CONTROLLER",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "log.dirs": node.directory / "data",
            # No topic by accident; what is created without wishes is as durable as the cluster allows.
            "auto.create.topics.enable": "false",
            "default.replication.factor": copies,
            "min.insync.replicas": in_sync,
            # The internal topics: as durable, but small, since the first use of each is waited for.
            "offsets.topic.num.partitions": 1,
            "offsets.topic.replication.factor": copies,
            "transaction.state.log.num.partitions": 1,
            "transaction.state.log.replication.factor": copies,
            "transaction.state.log.min.isr": in_sync,
            # A failure shows within seconds, and a group forms at once.
            "broker.session.timeout.ms": 3000,
            "broker.heartbeat.interval.ms": 500,
            "controller.quorum.election.timeout.ms": 500,
            "controller.quorum.fetch.timeout.ms": 1500,
            "replica.lag.time.max.ms": 5000,
            "group.initial.rebalance.delay.ms": 0,
            "group.min.session.timeout.ms": 1000,
            # A small machine.
            "num.network.threads": 2,
            "num.io.threads": 4,
            "log.cleaner.dedupe.buffer.size": 8 << 20,
            **self._properties,
        }

    # ------------------------------------------------------------ for the command line, which outlives no cluster

    def save(self) -> None:
        """Writes down what `attach` needs."""
        state = {
            "properties": self._properties,
            "nodes": [[node.port, node.controller_port, node.pid, node.began] for node in self.nodes],
        }
        (self.directory / "cluster.json").write_text(json.dumps(state))

    @classmethod
    def attach(cls, directory: Path) -> Cluster:
        """The cluster that another process started in ``directory``."""
        try:
            state: dict[str, Any] = json.loads((directory / "cluster.json").read_text())
        except FileNotFoundError as error:
            raise KafkaUnavailable(f"no cluster was started in {directory}") from error
        cluster = cls(directory, len(state["nodes"]), properties=state["properties"])
        for node, (port, controller_port, pid, began) in zip(cluster.nodes, state["nodes"], strict=True):
            node.port, node.controller_port, node.pid, node.began = port, controller_port, pid, began
        return cluster


def _brokers_seen_from(address: str) -> set[int]:
    """`_brokers` from wherever we are called, be it under a running event loop."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(lambda: asyncio.run(_brokers(address))).result()


async def _brokers(address: str) -> set[int]:
    """The live brokers in the eyes of the node at ``address``; empty while it does not serve."""
    try:
        async with asyncio.timeout(5):
            _, probe = await asyncio.open_connection(*address.split(":"))  # the client logs each failed attempt
            probe.close()
            admin = AIOKafkaAdminClient(bootstrap_servers=address, request_timeout_ms=2000)
            try:
                await admin.start()
                cluster = await admin.describe_cluster()
            finally:
                await admin.close()
    except (KafkaError, TimeoutError, OSError):
        return set()
    return {broker["node_id"] for broker in cluster["brokers"]} if cluster["controller_id"] >= 0 else set()


# ---------------------------------------------------------------- command line


def main(arguments: list[str] | None = None) -> int:
    """The commands of the module's docstring; 0, or 1 with a sentence on standard error."""
    parser = argparse.ArgumentParser(prog="python -m coordinator.testing.kafka", description="A real Kafka for tests.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("install")
    for name in ("start", "stop", "status", "kill", "pause", "resume", "revive"):
        verb = commands.add_parser(name)
        verb.add_argument("--data", type=Path, default=home() / "cluster", help="directory of the cluster")
        if name == "start":
            verb.add_argument("--nodes", type=int, choices=(1, 3), default=1)
            verb.add_argument("--port", type=int, help="of node 1; the others follow")
            verb.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a broker setting")
        elif name not in ("stop", "status"):
            verb.add_argument("node", type=int)
    options = parser.parse_args(arguments)
    try:
        _perform(options)
    except KafkaUnavailable as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _perform(options: argparse.Namespace) -> None:
    if options.command == "install":
        print(install())
        return
    if options.command == "start":
        with contextlib.suppress(KafkaUnavailable):
            if any(node.running for node in Cluster.attach(options.data).nodes):
                raise SystemExit(f"a cluster runs in {options.data} already: stop it first")
        install()
        shutil.rmtree(options.data, ignore_errors=True)
        options.data.mkdir(parents=True)
        properties = dict(pair.split("=", 1) for pair in options.set)
        cluster = Cluster(options.data, options.nodes, port=options.port, properties=properties)
        cluster.start()
        cluster.save()
        print(f"KAFKA_BOOTSTRAP={cluster.bootstrap}")
        return
    cluster = Cluster.attach(options.data)
    match options.command:
        case "stop":
            cluster.stop()
        case "status":
            for node in cluster.nodes:
                state = "paused" if node.paused else "running" if node.running else "down"
                print(f"node {node.number}: {state}, {node.address}, pid {node.pid}")
        case _:
            getattr(cluster, options.command)(options.node)
            cluster.save()


if __name__ == "__main__":
    sys.exit(main())
