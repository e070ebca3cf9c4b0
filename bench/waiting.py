"""Commands that wait: what each costs in memory, and what waking one costs.

In a process of its own, through the engine alone: records are folded as they would come back from the log, and the
engine decides after each thousand, as the daemon does after each batch.  The commands have taken one step and wait for
a person, with a timeout of a month: payload, attributes and an outcome as in the example of the README.
"""

from __future__ import annotations

import gc
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import msgspec
from msgspec import Struct

from coordinator import App, Saga, post
from coordinator.engine.engine import Engine
from coordinator.engine.registry import Registry
from coordinator.model.ids import CommandId
from coordinator.model.records import SCHEMA, Outcome, Submitted, raw
from coordinator.model.settings import EngineSettings

_TOKEN = b"t" * 16
_AT = 1_760_000_000_000
_TURN = 1_000
_LOOKS = 5_000

app = App()


@app.command(services=["stock"])
class Approve(msgspec.Struct):
    order: str
    amount: int

    async def exec(self, saga: Saga) -> None:
        await saga.step("reserve", post("stock", "/reservations", {"order": self.order}))
        await saga.decision("approve", input={"amount": self.amount}, roles=["manager"], timeout="30d")


class Waiting(Struct, frozen=True, kw_only=True):
    """``commands`` that wait: bytes of resident memory and microseconds of CPU each, to fall asleep and to be woken."""

    commands: int
    bytes_each: float
    asleep_us: float
    woken_us: float


def measure(commands: int) -> Waiting:
    """In a process of its own, so that its memory is that of the commands."""
    told = subprocess.run(
        [sys.executable, "-m", "bench.waiting", str(commands)], capture_output=True, text=True, check=False
    )
    if told.returncode:
        raise RuntimeError(told.stderr[-2000:])
    return msgspec.json.decode(told.stdout, type=Waiting)


def _measured(commands: int) -> Waiting:
    engine = Engine(EngineSettings(max_commands=commands + 1), {}, Registry(app, {"stock": "http"}), Random(1))
    engine.open(0, _TOKEN, 0)
    gc.collect()
    before, began = _resident(), time.process_time()
    for first in range(0, commands, _TURN):
        for number in range(first, min(first + _TURN, commands)):
            _begin(engine, number)
        engine.take(_AT + commands)
    asleep = time.process_time() - began
    gc.collect()
    after = _resident()
    if engine.commands or engine.under_way != commands:
        raise RuntimeError(f"{len(engine.commands)} of {engine.under_way} commands are awake")
    looks = min(_LOOKS, commands)
    began = time.process_time()
    for number in range(looks):
        engine.look_at(0, _id(number))
    woken = time.process_time() - began
    return Waiting(
        commands=commands,
        bytes_each=(after - before) / commands,
        asleep_us=asleep / commands * 1e6,
        woken_us=woken / looks * 1e6,
    )


def _begin(engine: Engine, number: int) -> None:
    id, offset = _id(number), 1 + 2 * number
    payload, attributes = raw({"order": f"order-{number}", "amount": number}), {"customer": f"c-{number}"}
    engine.apply(0, offset, Submitted(SCHEMA, _TOKEN, _AT, id, "Approve", 1, payload, b"f" * 16, attributes=attributes))
    engine.apply(0, offset + 1, Outcome(SCHEMA, _TOKEN, _AT, id, "reserve", "stock", 1, raw({"id": f"r-{number}"})))


def _id(number: int) -> CommandId:
    return CommandId(f"01JD{number:022d}")


def _resident() -> int:
    """Bytes of memory that the process has in use."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("the system does not tell the memory of a process")


if __name__ == "__main__":
    sys.stdout.write(msgspec.json.encode(_measured(int(sys.argv[1]))).decode())
