"""Programs under measurement: started by this module, stopped by pid, read through /proc."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from http.client import HTTPConnection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache" / "bench"
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_STOP_S = 30
_READY_S = 120


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def cpu_seconds(pid: int) -> float:
    """CPU time of all threads of a process, user and system; resolution 10 ms."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * _TICK_S


def peak_mib(pid: int) -> float:
    """The most memory that a process ever had resident (VmHWM)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise ValueError(f"process {pid} has no VmHWM")


def request(address: str, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    """One HTTP request with JSON; returns status and JSON.  Raises OSError where nobody answers."""
    host, _, port = address.rpartition(":")
    connection = HTTPConnection(host, int(port), timeout=60)
    try:
        text = None if body is None else json.dumps(body)
        connection.request(method, path, text, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        content = answer.read()
        kind = answer.getheader("Content-Type", "")
        return answer.status, json.loads(content) if "json" in kind else content.decode()
    finally:
        connection.close()


class Program:
    """One child process, from entering the block to leaving it; its output goes to a file."""

    def __init__(self, arguments: Sequence[str], log: Path) -> None:
        self._arguments = arguments
        self._log = log

    def __enter__(self) -> Self:
        with self._log.open("wb") as output:
            self._process = subprocess.Popen(
                self._arguments, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    @property
    def pid(self) -> int:
        return self._process.pid

    def output(self) -> str:
        return self._log.read_text(errors="replace")

    def until(self, what: str, done: Any) -> float:
        """Polls ``done()`` until it is true; returns seconds.  Raises RuntimeError with the output.

        Polls become rarer (1 % of the time waited), since a poll costs the program that is measured.
        """
        began = time.monotonic()
        while not done():
            if self._process.poll() is not None:
                raise RuntimeError(f"{self._arguments} ended before it was {what}:\n{self.output()[-4000:]}")
            if time.monotonic() - began > _READY_S:
                raise RuntimeError(f"{self._arguments} was not {what} after {_READY_S} s:\n{self.output()[-4000:]}")
            time.sleep(max(0.005, (time.monotonic() - began) / 100))
        return time.monotonic() - began


class Service(Program):
    """The service that sagas call; ``address`` is known inside the block."""

    def __init__(self, directory: Path, delay_ms: int = 0) -> None:
        program = _go_service() or [sys.executable, "-m", "bench.service.fallback"]
        super().__init__([*program, "-delay", f"{delay_ms}ms"], directory / "service.log")
        self.language = "Python" if program[0] == sys.executable else "Go"

    def __enter__(self) -> Self:
        super().__enter__()
        self.until("listening", lambda: self.output().startswith("listening on ") and self.output().endswith("\n"))
        self.address = self.output().removeprefix("listening on ").strip()
        return self

    def stats(self) -> dict[str, int]:
        """``requests`` answered, ``in_flight``, and their ``peak``."""
        answer: dict[str, int] = request(self.address, "GET", "/stats")[1]
        return answer


def _go_service() -> list[str] | None:
    if shutil.which("go") is None:
        return None
    CACHE.mkdir(parents=True, exist_ok=True)
    binary = CACHE / "service"
    subprocess.run(["go", "build", "-o", str(binary), str(ROOT / "bench/service/main.go")], check=True)
    return [str(binary)]


class Daemon(Program):
    """``coordinator serve`` with one service, ``bench``; ready inside the block.

    ``log`` is the ``[log]`` table of its configuration as text, ``ready_s`` the time from exec to ``/readyz``.
    """

    def __init__(self, directory: Path, log: str, service: str, max_commands: int = 1000) -> None:
        self.http = f"127.0.0.1:{free_port()}"
        self.tcp = f"127.0.0.1:{free_port()}"
        config = directory / "coordinator.toml"
        config.write_text(_CONFIG.format(log=log, http=self.http, tcp=self.tcp, url=service, max_commands=max_commands))
        serve = [sys.executable, "-m", "coordinator", "serve", "--config", str(config), "--app", "bench.commands:app"]
        super().__init__(serve, directory / "daemon.log")

    def __enter__(self) -> Self:
        super().__enter__()
        try:
            self.ready_s = self.until("ready", self._ready)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _ready(self) -> bool:
        try:
            return request(self.http, "GET", "/readyz")[0] == 200
        except OSError:
            return False


_CONFIG = """\
[coordinator]
name = "bench"
max_commands = {max_commands}

[log]
{log}

[listen]
http = "{http}"
tcp = "{tcp}"
grpc = "off"

[logging]
format = "json"
level = "warning"

[services.bench]
url = "http://{url}"
"""


def sqlite_section(directory: Path) -> str:
    return f'kind = "sqlite"\ndata_dir = {json.dumps(str(directory / "data"))}'


def kafka_section(directory: Path, bootstrap: str, topic: str) -> str:
    return (
        f'kind = "kafka"\nbootstrap = "{bootstrap}"\ntopic = "{topic}"\n'
        f"data_dir = {json.dumps(str(directory / 'data'))}"
    )
