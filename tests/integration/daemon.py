"""Real daemons and services for the integration tests: `coordinator serve` as a process, scripted HTTP services."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx

from coordinator.demo.processes import free_port

READY_S = 30.0


class Daemon:
    """`coordinator serve` in a process of its own, on free ports that stay the same over restarts."""

    def __init__(self, directory: Path, config: str, *, app: str | None = None, cwd: Path | None = None) -> None:
        self.directory = directory
        self.app = app
        self.cwd = cwd or directory
        directory.mkdir(parents=True, exist_ok=True)
        self.config = directory / "coordinator.toml"
        self.config.write_text(config)
        self.log = directory / "daemon.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.ports: dict[str, int] = {}

    @property
    def http(self) -> str:
        return f"http://127.0.0.1:{self.ports['http']}"

    @property
    def tcp(self) -> str:
        return f"tcp://127.0.0.1:{self.ports['tcp']}"

    @property
    def grpc(self) -> str:
        return f"127.0.0.1:{self.ports['grpc']}"

    def spawn(self, *extra: str) -> None:
        """Starts the process without waiting for anything."""
        argv = [sys.executable, "-m", "coordinator", "serve", "--config", str(self.config)]
        for name in ("http", "grpc", "tcp"):
            argv += [f"--{name}", f"127.0.0.1:{self.ports.setdefault(name, free_port())}"]
        if self.app:
            argv += ["--app", self.app]
        with self.log.open("ab") as out:
            self._from = out.tell()
            self.process = subprocess.Popen([*argv, *extra], stdout=out, stderr=out, cwd=self.cwd, env=environment())

    def start(self, *extra: str) -> Daemon:
        """Starts and waits until it is ready."""
        self.spawn(*extra)
        self.listening()
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{self.http}/readyz", timeout=2).status_code == 200:
                    return self
            self._alive()
            time.sleep(0.02)
        raise AssertionError(f"not ready:\n{self.tail()}")

    def listening(self) -> None:
        """Waits until the log tells where it listens."""
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline:
            for line in self.text().splitlines():
                if '"event": "listening"' in line:
                    told = json.loads(line)
                    self.ports = {n: int(told[n].rpartition(":")[2]) for n in ("http", "grpc", "tcp") if n in told}
                    return
            self._alive()
            time.sleep(0.01)
        raise AssertionError(f"not listening:\n{self.tail()}")

    def text(self) -> str:
        """What this run of the process has logged."""
        return self.log.read_bytes()[self._from :].decode(errors="replace")

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-4000:]

    def _alive(self) -> None:
        assert self.process is not None
        if self.process.poll() is not None:
            raise AssertionError(f"the daemon ended with {self.process.returncode}:\n{self.tail()}")

    def kill(self) -> None:
        """kill -9."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def signal(self, number: int) -> None:
        assert self.process is not None
        os.kill(self.process.pid, number)

    def stop(self, timeout: float = 30) -> int:
        """SIGTERM; returns the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout)

    def close(self) -> None:
        """Whatever state it is in: gone."""
        if self.process is not None and self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, signal.SIGCONT)
            self.process.kill()
            self.process.wait()


def environment() -> dict[str, str]:
    """What a daemon of a test sees of this process's: no settings, and this checkout before all."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("COORDINATOR_")}
    return {
        **kept,
        "COORDINATOR_LOGGING__FORMAT": "json",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]),
    }


Handler = Callable[["Arrival"], Awaitable[tuple[int, Any]]]


class Arrival:
    """One request as a service saw it."""

    def __init__(self, method: str, path: str, headers: dict[str, str], body: bytes) -> None:
        self.method = method
        self.path = path
        self.headers = headers
        self.body = body
        self.at = time.monotonic()

    @property
    def key(self) -> str:
        return self.headers.get("idempotency-key", "")

    @property
    def fence(self) -> tuple[int, ...]:
        return tuple(int(part) for part in self.headers["coordinator-fence"].split("."))

    @property
    def json(self) -> Any:
        return json.loads(self.body) if self.body else None


class Service:
    """A scripted HTTP service: records what arrives, answers what its script says.

    ``answers[path]`` (or the default) is a list of statuses that are used up in turn, then 200; a status of 0 closes
    the connection without an answer; ``down`` refuses everything with 503.  It remembers outcomes by key, as services
    must.
    """

    def __init__(self) -> None:
        self.arrivals: list[Arrival] = []
        self.answers: dict[str, list[int]] = defaultdict(list)
        self.down = False
        self.gate: asyncio.Event | None = None
        self.remembered: dict[str, Any] = {}
        self.concurrent = 0
        self.concurrent_max = 0
        self.changed = asyncio.Event()
        self._server: asyncio.Server | None = None
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self, port: int = 0) -> Service:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while await self._one(reader, writer):
                pass
        writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, path, _ = head[0].split(" ", 2)
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in head[1:] if line)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        arrival = Arrival(method, path, headers, body)
        self.arrivals.append(arrival)
        self.changed.set()
        self.concurrent += 1
        self.concurrent_max = max(self.concurrent_max, self.concurrent)
        try:
            await self.hold(arrival)
            status, answer = self._answer(arrival)
        finally:
            self.concurrent -= 1
        if status == 0:
            return False
        data = json.dumps(answer).encode()
        head_line = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
        writer.write(head_line.encode() + data)
        await writer.drain()
        await self.answered(arrival)
        return True

    async def hold(self, arrival: Arrival) -> None:
        """What an arrival waits for before the service does anything."""
        if self.gate is not None:
            await self.gate.wait()

    async def answered(self, arrival: Arrival) -> None:
        """The answer is on its way."""

    def _answer(self, arrival: Arrival) -> tuple[int, Any]:
        if self.down:
            return 503, {"error": "down"}
        if arrival.key in self.remembered:
            return 200, self.remembered[arrival.key]
        script = self.answers.get(arrival.path)
        status = script.pop(0) if script else 200
        answer = {"id": f"r{len(self.arrivals)}", "path": arrival.path}
        if status == 200:
            self.remembered[arrival.key] = answer
        return status, answer

    def keys(self) -> list[str]:
        return [arrival.key for arrival in self.arrivals]

    async def until(self, condition: Callable[[], bool], timeout: float = 20) -> None:
        """Waits for an arrival that makes the condition true."""
        async with asyncio.timeout(timeout):
            while not condition():
                self.changed.clear()
                await self.changed.wait()


@contextlib.asynccontextmanager
async def services(*names: str) -> AsyncIterator[dict[str, Service]]:
    """Started services by name."""
    started = {name: await Service().start() for name in names}
    try:
        yield started
    finally:
        for service in started.values():
            await service.stop()


def config(directory: Path, services: dict[str, Service], *, engine: str = "", log: str = "", service: str = "") -> str:
    """A coordinator.toml for a test: quick intervals, a small breaker reset."""
    lines = ["[coordinator]", 'name = "test"', engine, "[log]", log or f'data_dir = "{directory / "data"}"']
    for name, each in services.items():
        lines += [f"[services.{name}]", f'url = "{each.url}"', 'timeout = "2s"']
        lines += [service or 'breaker = { failures = 5, reset = "300ms" }']
    return "\n".join(lines) + "\n"
