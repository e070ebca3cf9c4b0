"""The demos' processes: daemons and three services, each started, killed and stopped by its own pid.

Children get a process group of their own, so that Ctrl-C reaches the demo alone and it, not the terminal, decides in
which order they end.  Their output goes to a file each, which is what a failed demo shows.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from coordinator.demo.services import SERVICES

_STOP_S = 15.0
_WORK_MS = 15  # of a service for one answer


def free_port() -> int:
    """A port that was free just now.  Children bind it themselves: a killed one must leave it refusing connections.

    It is below those that the kernel gives to outgoing connections: one of these might get it while its child is dead.
    """
    while True:
        port = random.randrange(15_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class Child:
    """One program, which can be started again after it ended; its output is appended to ``log``."""

    def __init__(self, name: str, arguments: Sequence[str], log: Path) -> None:
        self.name = name
        self.log = log
        self._arguments = arguments
        self._process: asyncio.subprocess.Process | None = None
        self._last: asyncio.subprocess.Process | None = None  # asked to end, perhaps still ending
        self._watching: asyncio.Task[None] | None = None
        self.ended_by_itself = asyncio.Event()  # nobody asked it to

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    async def start(self) -> None:
        """Starts it; returns at once."""
        with self.log.open("ab") as output:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, *self._arguments, stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output,
                start_new_session=True, env=os.environ | {"PYTHONUNBUFFERED": "1"},
            )  # fmt: skip
        self.ended_by_itself.clear()
        self._watching = asyncio.create_task(self._watch(self._process))

    async def _watch(self, process: asyncio.subprocess.Process) -> None:
        await process.wait()
        if process is self._process:
            self.ended_by_itself.set()

    async def kill(self) -> None:
        """``kill -9``; returns when it is gone."""
        await self._end(signal.SIGKILL)

    async def stop(self) -> int | None:
        """SIGTERM, and SIGKILL where that does not help; returns the exit code, or None if it was not running."""
        return await self._end(signal.SIGTERM)

    async def _end(self, how: signal.Signals) -> int | None:
        process, self._process = self._process, None
        if process is None:
            return None
        self._last = process
        with suppress(ProcessLookupError):
            process.send_signal(how)
        try:
            return await asyncio.wait_for(process.wait(), _STOP_S)
        except TimeoutError:
            process.kill()
            return await process.wait()

    def kill_now(self) -> None:
        """As kill, without an event loop: the last resort on the way out."""
        for process in (self._process, self._last):
            if process is not None and process.returncode is None:
                with suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)

    def tail(self, lines: int) -> str:
        """The last lines of its output."""
        if not self.log.exists():
            return ""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


class Shop:
    """All processes of one demo, their addresses and files, under ``directory``."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.http = f"127.0.0.1:{free_port()}"
        self.tcp = f"127.0.0.1:{free_port()}"
        ports = {name: free_port() for name in SERVICES}
        config = directory / "coordinator.toml"
        log = f'kind = "sqlite"\ndata_dir = {json.dumps(str(directory / "log"))}'
        config.write_text(_config(log, self.http, self.tcp, ports))
        serve = ["-m", "coordinator", "serve", "--config", str(config), "--app", "coordinator.demo.orders:app"]
        self.daemon = Child("coordinator", serve, directory / "daemon.log")
        self.services = {name: service_of(directory, name, port) for name, port in ports.items()}

    def ledger(self, name: str) -> Path:
        return ledger_of(self.directory, name)

    async def start(self) -> None:
        for service in self.services.values():
            await service.start()
        await self.daemon.start()

    async def stop(self) -> int | None:
        """Stops what still runs, the daemon first; returns the daemon's exit code (None: it did not run)."""
        code = await self.daemon.stop()
        await asyncio.gather(*(service.stop() for service in self.services.values()))
        return code

    def kill_now(self) -> None:
        """Leaves nothing behind where `stop` could not run to its end."""
        for child in (self.daemon, *self.services.values()):
            child.kill_now()


class Instance:
    """One daemon of several that share a log on Kafka: its process and its addresses."""

    def __init__(self, name: str, directory: Path, bootstrap: str, topic: str, services: dict[str, int]) -> None:
        self.name = name
        self.http = f"127.0.0.1:{free_port()}"
        self.tcp = f"127.0.0.1:{free_port()}"
        log = (
            f'kind = "kafka"\nbootstrap = {json.dumps(bootstrap)}\ntopic = "{topic}"\npartitions = 6\n'
            f"data_dir = {json.dumps(str(directory / name))}"
        )
        config = directory / f"{name}.toml"
        config.write_text(_config(log, self.http, self.tcp, services))
        serve = ["-m", "coordinator", "serve", "--config", str(config), "--app", "coordinator.demo.orders:app"]
        self.process = Child(name, serve, directory / f"{name}.log")


class Chain:
    """Three instances on one topic, and the shop's services; as `Shop`, which has one instance and no Kafka."""

    def __init__(self, directory: Path, bootstrap: str, topic: str) -> None:
        self.directory = directory
        ports = {name: free_port() for name in SERVICES}
        self.instances = [Instance(f"instance-{n}", directory, bootstrap, topic, ports) for n in (1, 2, 3)]
        self.services = {name: service_of(directory, name, port) for name, port in ports.items()}

    @property
    def children(self) -> list[Child]:
        """Everybody, in the order in which they may be stopped."""
        return [*(instance.process for instance in self.instances), *self.services.values()]

    async def start(self) -> None:
        for child in reversed(self.children):
            await child.start()

    async def stop(self) -> None:
        """Stops what still runs."""
        for child in self.children:
            await child.stop()

    def kill_now(self) -> None:
        """Leaves nothing behind where `stop` could not run to its end."""
        for child in self.children:
            child.kill_now()


def service_of(directory: Path, name: str, port: int) -> Child:
    """One of the shop's services, with a ledger of its own."""
    arguments = ["-m", "coordinator.demo.services", name, "--port", str(port), "--work-ms", str(_WORK_MS)]
    return Child(name, [*arguments, "--ledger", str(ledger_of(directory, name))], directory / f"{name}.log")


def ledger_of(directory: Path, name: str) -> Path:
    """Where a service writes down what it did."""
    return directory / f"{name}.db"


def _config(log: str, http: str, tcp: str, ports: dict[str, int]) -> str:
    """The daemon's configuration: short intervals, so that an outage of seconds shows all that one of hours would."""
    services = "\n".join(
        f'[services.{name}]\nurl = "http://127.0.0.1:{port}"\ntimeout = "2s"\n'
        'breaker = { failures = 5, reset = "500ms" }\n'
        for name, port in ports.items()
    )
    return f"""\
[coordinator]
name = "demo"
slow_retry_interval = "200ms"
retry_jitter = "100ms"

[log]
{log}

[listen]
http = "{http}"
tcp = "{tcp}"
grpc = "off"

{services}"""
