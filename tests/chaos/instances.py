"""A daemon's process in its own network: started, waited for, killed, stopped and continued, drained."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx

from tests.chaos.network import Network

ROOT = Path(__file__).parents[2]
HTTP, TCP, GRPC = 8080, 7070, 9090
READY_S = 30.0
DRAIN_S = 30.0


class Instance:
    """The daemon ``number``, over all its lives; ``output`` has the log lines of all of them."""

    def __init__(self, number: int, directory: Path, network: Network, config: str) -> None:
        self.number = number
        self.network = network
        self.directory = directory
        directory.mkdir(parents=True)
        self.output = directory / "output"
        self._config = directory / "coordinator.toml"
        self._process: subprocess.Popen[bytes] | None = None
        self._ports = {"http": HTTP, "tcp": TCP, "grpc": GRPC} if network.can_cut else _shifted(number)
        listen = "".join(f'{name} = "{network.listen(number)}:{port}"\n' for name, port in self._ports.items())
        advertise = f'advertise = "{network.peer_host(number)}:{self._ports["tcp"]}"\n'
        self._config.write_text(f"{config}\n[listen]\n{listen}{advertise}")

    @property
    def urls(self) -> dict[str, str]:
        """By transport of the client library."""
        host = self.network.host(self.number)
        return {"http": f"http://{host}:{self._ports['http']}", "tcp": f"tcp://{host}:{self._ports['tcp']}"}

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def is_named(self, instance: str) -> bool:
        """Whether an instance id of the log means this process (ids have the pid in them)."""
        return f"-{self.pid}-" in instance

    def start(self) -> None:
        argv = [*self.network.prefix(self.number), sys.executable, "-m", "coordinator", "serve"]
        argv += ["--config", str(self._config), "--app", "tests.chaos.chaos_app:app"]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("COORDINATOR_")}
        environment |= {"COORDINATOR_LOGGING__FORMAT": "json", "PYTHONPATH": str(ROOT)}
        with self.output.open("ab") as out:
            self._life = out.tell()
            self._process = subprocess.Popen(argv, stdout=out, stderr=out, cwd=ROOT, env=environment)

    async def ready(self) -> None:
        """Waits until it says so.  Raises RuntimeError with its last words."""
        deadline = time.monotonic() + READY_S
        async with httpx.AsyncClient(trust_env=False) as client:
            while time.monotonic() < deadline:
                assert self._process is not None
                if self._process.poll() is not None:
                    raise RuntimeError(f"instance {self.number} ended with {self._process.returncode}:\n{self.tail()}")
                try:
                    if (await client.get(f"{self.urls['http']}/readyz", timeout=2)).status_code == 200:
                        return
                except httpx.TransportError:
                    pass
                await asyncio.sleep(0.05)
        raise RuntimeError(f"instance {self.number} was not ready within {READY_S:.0f} s:\n{self.tail()}")

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    async def drain(self) -> str | None:
        """SIGTERM, then waits for the end; what was wrong with it, or None."""
        assert self._process is not None
        self._process.terminate()
        try:
            code = await asyncio.to_thread(self._process.wait, DRAIN_S)
        except subprocess.TimeoutExpired:
            self.kill()
            return f"instance {self.number} had not ended {DRAIN_S:.0f} s after SIGTERM:\n{self.tail()}"
        if code != 0:
            return f"instance {self.number} ended with {code} on SIGTERM:\n{self.tail()}"
        if "safe to stop" not in self.life():
            return f"instance {self.number} ended without saying that it is safe to stop:\n{self.tail()}"
        return None

    def life(self) -> str:
        """What this life has logged."""
        return self.output.read_bytes()[self._life :].decode(errors="replace")

    def tail(self) -> str:
        return self.output.read_text(errors="replace")[-2500:]

    def close(self) -> None:
        """Whatever state it is in: gone."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGCONT)
            self.kill()


def _shifted(number: int) -> dict[str, int]:
    """Ports of daemons that share one address; far from where the kernel takes ports for outgoing connections."""
    base = 18000 + os.getpid() % 1000 * 10 + number * 3
    return {"http": base, "tcp": base + 1, "grpc": base + 2}
