"""Everything that a round needs, set up and taken down: services, daemons, the load, the reader of the log.

The brokers outlast rounds; the topic, the group and the daemons are new in each, so that what a round says is about
this round alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

from coordinator.testing.kafka import Cluster
from tests.chaos.book import Book
from tests.chaos.figures import Strike
from tests.chaos.instances import ROOT, Instance
from tests.chaos.load import Load
from tests.chaos.network import Network
from tests.chaos.reckoning import Account
from tests.chaos.services import NAMES, read_ledger

PARTITIONS: Final = 6
DAEMONS: Final = 3
SETTLED_S: Final = 40.0


class Stage:
    """See the module; made by `staged`."""

    def __init__(
        self, directory: Path, brokers: Cluster, network: Network, ports: dict[str, int], seed: int, session_s: int
    ) -> None:
        self.directory = directory
        self.session_s = session_s  # after which the group takes a silent member for dead
        self.brokers = brokers
        self.network = network
        self.clock = time.time() - time.monotonic()
        self.quiet_s = 3.5  # without a move of any partition, before the next fault; more than the group's hesitation
        topic = f"chaos-{directory.name}"
        self.book = Book(brokers.bootstrap, topic, PARTITIONS)
        self.instances = [
            Instance(number, directory / f"daemon-{number}", network, self._config(topic, number, ports))
            for number in range(1, DAEMONS + 1)
        ]
        self.load = Load(self.instances, PARTITIONS, seed=seed)

    def _config(self, topic: str, number: int, ports: dict[str, int]) -> str:
        lines = ["[coordinator]", f'name = "{topic}"', 'slow_retry_interval = "100ms"', 'retry_jitter = "50ms"']
        lines += ['drain_timeout = "10s"', "[log]", 'kind = "kafka"', f'bootstrap = "{self.brokers.bootstrap}"']
        lines += [f'topic = "{topic}"', f"partitions = {PARTITIONS}", f'session_timeout = "{self.session_s}s"']
        lines += [f'data_dir = "{self.directory / f"daemon-{number}" / "data"}"']
        for name, port in ports.items():
            lines += [f"[services.{name}]", f'url = "http://{self.network.service_host}:{port}"', 'timeout = "3s"']
            lines += ['breaker = { failures = 20, reset = "300ms" }']
        return "\n".join(lines)

    async def owners(self) -> dict[int, tuple[str, int]]:
        """Partition → who owns it and under which epoch, by the log."""
        async with asyncio.timeout(SETTLED_S):
            await self.book.catch_up()
        return {p: (reigns[-1].instance, reigns[-1].epoch) for p, reigns in self.book.reigns.items() if reigns}

    async def owned_by(self, instance: Instance) -> dict[int, int]:
        """Partition → epoch."""
        owners = await self.owners()
        return {partition: epoch for partition, (name, epoch) in owners.items() if instance.is_named(name)}

    async def greatest(self, but: Instance | None = None) -> Instance:
        """The instance that owns most, of those that are not ``but``."""
        owned = [(len(await self.owned_by(each)), each.number, each) for each in self.instances if each is not but]
        return max(owned)[2]

    async def taken_over(self, taken: dict[int, int], within_s: float) -> None:
        """Until every partition has an epoch above the one given, but no longer than that."""
        until = time.monotonic() + within_s
        while time.monotonic() < until:
            owners = await self.owners()
            if all(owners[partition][1] > epoch for partition, epoch in taken.items()):
                return
            await asyncio.sleep(0.1)

    async def settled(self) -> str | None:
        """Until all are ready, every partition answers, and none has moved for a while; what is wrong otherwise."""
        try:
            for instance in self.instances:
                await instance.ready()
        except RuntimeError as error:
            return str(error)
        since, until = time.monotonic(), time.monotonic() + SETTLED_S
        before = await self.owners()
        while time.monotonic() < until:
            await asyncio.sleep(0.2)
            owners = await self.owners()
            if owners != before:
                before, since = owners, time.monotonic()
            silent = [
                partition
                for partition, probes in self.load.probes.items()
                if not probes or probes[-1].error or probes[-1].answered < time.monotonic() - 2
            ]
            living = all(any(each.is_named(name) for each in self.instances) for name, _ in owners.values())
            if not silent and living and len(owners) == PARTITIONS and time.monotonic() - since >= self.quiet_s:
                return None
        return f"not settled after {SETTLED_S:.0f} s: {before}"

    async def ended(self, within_s: float = 30) -> None:
        """Until every accepted command has ended, but no longer than that."""
        until = time.monotonic() + within_s
        while time.monotonic() < until:
            await self.owners()
            if not self.book.uncompleted():
                return
            await asyncio.sleep(0.2)

    def account(self, strikes: list[Strike]) -> Account:
        """What is known when everything has come to its end."""
        return Account(
            strikes=strikes,
            answers=self.load.answers,
            probes=self.load.probes,
            stories=self.book.stories,
            reigns=self.book.reigns,
            ledgers={name: read_ledger(self.directory / f"{name}.ledger") for name in NAMES},
            clock=self.clock,
        )

    def strike(self, fault: str, taken: dict[int, int] | None = None) -> Strike:
        return Strike(fault=fault, began=time.monotonic(), taken=taken or {})


def _services(directory: Path, host: str, seed: int) -> subprocess.Popen[bytes]:
    directory.mkdir(parents=True)
    argv = [sys.executable, "-m", "tests.chaos.services", host, str(directory), str(seed)]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, cwd=ROOT)


@contextlib.asynccontextmanager
async def staged(
    directory: Path, brokers: Cluster, network: Network, seed: int, session_s: int = 6
) -> AsyncIterator[Stage]:
    """A stage with everything running except the load; whatever happens, no process is left."""
    services = await asyncio.to_thread(_services, directory, network.service_host, seed)
    stage: Stage | None = None
    try:
        assert services.stdout is not None
        ports: dict[str, Any] = json.loads(services.stdout.readline())
        stage = Stage(directory, brokers, network, ports, seed, session_s)
        for instance in stage.instances:
            instance.start()
        for instance in stage.instances:
            await instance.ready()
        yield stage
    finally:
        if stage is not None:
            for instance in stage.instances:
                instance.close()
            await stage.book.close()
        services.kill()
        services.wait()
        if services.stdout is not None:
            services.stdout.close()
