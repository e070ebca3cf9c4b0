"""Daemons that start in a tenth of a second, so that a test can kill one at every point of a scenario.

Half of what `coordinator serve` takes to start is Python importing it.  The nursery is a process that has imported
everything and run nothing: for each daemon it forks, and the child runs the command line as if it had just been typed.
What comes of it is a process of its own with its own sockets, files and environment; kill -9 and SIGTERM are the real
ones.

    python -m tests.scenarios.nursery       one JSON request a line, one JSON answer a line
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from importlib import import_module
from pathlib import Path
from typing import Any

HERE = Path(__file__).parents[2]
ALL_THAT_A_DAEMON_IMPORTS = (
    "coordinator.cli.main",
    "coordinator.cli.serve",
    "coordinator.server.app",
    "coordinator.server.config_sources",
    "coordinator.transport.http",
    "coordinator.transport.tcp",
    "uvicorn.supervisors",
    "uvloop",
)


class Child:
    """A daemon that the nursery has borne; as much of `subprocess.Popen` as `Daemon` uses."""

    def __init__(self, nursery: Nursery, pid: int) -> None:
        self._nursery = nursery
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._nursery.ask({"poll": self.pid})
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """As Popen's, but that it waits for ever whatever is asked: pytest's own timeout ends that."""
        if self.returncode is None:
            self.returncode = self._nursery.ask({"wait": self.pid})
        assert self.returncode is not None
        return self.returncode

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)


class Nursery:
    """The process that forks; one for all tests of a run."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.scenarios.nursery"], cwd=HERE, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._lock = threading.Lock()  # daemons are started in threads, so that the services of a test go on

    def ask(self, request: dict[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
            return json.loads(self._process.stdout.readline())

    def bear(self, argv: list[str], out: Path, cwd: Path, environment: dict[str, str]) -> Child:
        """Runs ``python <argv>`` for an ``argv`` of ``-m coordinator …``; what it prints is appended to ``out``."""
        request = {"argv": argv, "out": str(out), "cwd": str(cwd), "environment": environment}
        return Child(self, self.ask({"bear": request}))

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


# ---------------------------------------------------------------- in the nursery itself


def _serve() -> None:
    for name in ALL_THAT_A_DAEMON_IMPORTS:
        import_module(name)
    known: dict[int, int] = {}
    for line in sys.stdin.buffer:
        request = json.loads(line)
        if "bear" in request:
            answer: int | None = _bear(**request["bear"])
        else:
            answer = _ended(request.get("poll") or request["wait"], known, block="wait" in request)
        print(json.dumps(answer), flush=True)


def _bear(argv: list[str], out: str, cwd: str, environment: dict[str, str]) -> int:
    if pid := os.fork():
        return pid
    code = 1
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        log = os.open(out, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.chdir(cwd)
        os.environ.clear()
        os.environ.update(environment)
        sys.path[:0] = [cwd]
        sys.argv = argv
        from coordinator.cli.main import main

        code = _code_of(main)
    finally:
        os._exit(code)


def _code_of(main: Any) -> int:
    try:
        main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
        return 1
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
    return 0


def _ended(pid: int, known: dict[int, int], *, block: bool) -> int | None:
    """Its exit code, however often it is asked for."""
    if pid not in known:
        found, status = os.waitpid(pid, 0 if block else os.WNOHANG)
        if not found:
            return None
        known[pid] = os.waitstatus_to_exitcode(status)
    return known[pid]


if __name__ == "__main__":
    _serve()
