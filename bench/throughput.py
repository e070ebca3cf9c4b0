"""Sagas through a daemon: log x transport x in flight x kind of command, a fresh daemon on a fresh log for each
cell."""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from msgspec import Struct

from bench import floors, load
from bench.commands import DEFINITION, PAYLOAD, TYPES
from bench.floors import Floor
from bench.measure import Figures, Load
from bench.processes import Daemon, Service, kafka_section, peak_mib, request, sqlite_section

Say = Callable[[str], None]

LOGS = ("sqlite", "kafka")
TRANSPORTS = ("tcp", "http")
IN_FLIGHT = (1, 64)


class Cell(Struct, frozen=True, kw_only=True):
    """One combination; its name is what ``--only`` selects by."""

    log: str
    transport: str
    in_flight: int
    command: str

    @property
    def name(self) -> str:
        return f"{self.log}-{self.transport}-{self.in_flight}-{self.command}"


class Measured(Struct, frozen=True, kw_only=True):
    """A cell, what the daemon did in it, and the floors measured beside it."""

    cell: Cell
    figures: Figures
    peak_mib: float
    floor: Floor

    @property
    def cpu_ratio(self) -> float:
        return self.figures.cpu_ms / self.floor.cpu_ms

    @property
    def p50_ratio(self) -> float:
        return self.figures.p50_ms / self.floor.p50_ms


def cells() -> list[Cell]:
    return [
        Cell(log=log, transport=transport, in_flight=in_flight, command=command)
        for log, in_flight, transport, command in itertools.product(LOGS, IN_FLIGHT, TRANSPORTS, TYPES)
    ]


def measure(wanted: list[Cell], seconds: float, bootstrap: str | None, say: Say) -> Iterator[Measured | str]:
    """Measures ``wanted``, the floors first for each log and number in flight; what failed comes as a text."""
    for (log, in_flight), group in itertools.groupby(wanted, key=lambda cell: (cell.log, cell.in_flight)):
        with tempfile.TemporaryDirectory(prefix="coordinator-bench-") as name, Service(Path(name)) as service:
            say(f"floors for {log} at {in_flight} in flight (service in {service.language})")
            floor = floors.measure(
                service.address, _target(log, Path(name), bootstrap), Path(name), in_flight, seconds / 2
            )
            for cell in group:
                say(cell.name)
                try:
                    yield _measure_cell(cell, floor, service.address, seconds, bootstrap)
                except RuntimeError as failure:
                    yield f"{cell.name}: {failure}"


def _target(log: str, directory: Path, bootstrap: str | None) -> str:
    return f"sqlite:{directory / 'floor'}" if log == "sqlite" else f"kafka:{bootstrap}/{_topic()}"


def _topic() -> str:
    return f"bench-{os.urandom(4).hex()}"


def _measure_cell(cell: Cell, floor: Floor, service: str, seconds: float, bootstrap: str | None) -> Measured:
    with tempfile.TemporaryDirectory(prefix="coordinator-bench-") as name:
        directory = Path(name)
        log = sqlite_section(directory) if bootstrap is None or cell.log == "sqlite" else kafka_section(
            directory, bootstrap, _topic()
        )  # fmt: skip
        with Daemon(directory, log, service) as daemon:
            register(daemon)
            window = Load(in_flight=cell.in_flight, seconds=seconds, warm_up=seconds / 4, pid=daemon.pid)
            address = daemon.tcp if cell.transport == "tcp" else daemon.http
            figures = load.measure(cell.transport, address, window, TYPES[cell.command], PAYLOAD)
            return Measured(cell=cell, figures=figures, peak_mib=peak_mib(daemon.pid), floor=floor)


def register(daemon: Daemon) -> None:
    """Registers the definition; raises RuntimeError where it is refused."""
    path = f"/v1/definitions/{DEFINITION['name']}/{DEFINITION['version']}"
    status, answer = request(daemon.http, "PUT", path, DEFINITION)
    if status not in (200, 201):
        raise RuntimeError(f"the definition was refused: HTTP {status} {answer}")
