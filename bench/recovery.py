"""Starting: on an empty log, on a log of 1,000,000 records, and with 10,000 commands that are not at their end.

The logs are written directly through `SqliteLog` and the codec, in the form that the daemon would have written them,
since running 200,000 sagas first would measure something else, and longer.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from msgspec import Struct

from bench.commands import PAYLOAD, STEPS
from bench.processes import Daemon, Service, cpu_seconds, peak_mib, request, sqlite_section
from coordinator.engine.registry import fingerprint
from coordinator.log.sqlite import SqliteLog
from coordinator.model.ids import CommandId
from coordinator.model.records import SCHEMA, Epoch, Finished, Outcome, Record, Submitted, raw
from coordinator.wire.codec import encode

_TOKEN = b"\x01" * 8
_AT = 1_700_000_000_000
_BATCH_COMMANDS = 2_000
_ANSWER = raw({"id": "0123456789abcdef", "status": "done", "note": "an answer of about one hundred bytes, as told"})
_PAYLOAD = raw(PAYLOAD)

Records = Callable[[CommandId], list[Record]]


class Start(Struct, frozen=True, kw_only=True):
    """A start that found ``records`` in the log: seconds to ready, CPU seconds of that, the most memory it took."""

    records: int
    ready_s: float
    cpu_s: float
    peak_mib: float


class Resumed(Struct, frozen=True, kw_only=True):
    """Uncompleted commands carried to their end under a limit.

    ``calls_peak`` is the most calls that the service ever held at once, ``refused`` how many new commands were refused
    while the resumed ones held all slots, ``admitted_s`` when the first one was admitted (seconds after ready).
    """

    commands: int
    limit: int
    ready_s: float
    done_s: float
    calls_peak: int
    calls: int
    refused: int
    admitted_s: float
    peak_mib: float


def start_empty() -> Start:
    return _start(0, finished)


def replay(commands: int) -> Start:
    """Ready on a log of ``commands`` finished commands, five records each; the last one must be known afterwards."""
    return _start(commands, finished)


def _start(commands: int, records: Records) -> Start:
    with tempfile.TemporaryDirectory(prefix="coordinator-bench-") as name, Service(Path(name)) as service:
        directory = Path(name)
        count = asyncio.run(write_log(directory / "data", commands, records)) if commands else 0
        with Daemon(directory, sqlite_section(directory), service.address) as daemon:
            peak, cpu_s = peak_mib(daemon.pid), cpu_seconds(daemon.pid)
            if commands:
                _must_be_completed(daemon, command_id(commands - 1))
            return Start(records=count, ready_s=daemon.ready_s, cpu_s=cpu_s, peak_mib=max(peak, peak_mib(daemon.pid)))


def _must_be_completed(daemon: Daemon, id: str) -> None:
    status, answer = request(daemon.http, "GET", f"/v1/commands/{id}")
    if status != 200 or answer["state"] != "completed":
        raise RuntimeError(f"command {id} was not found completed after replay: HTTP {status} {answer}")


def resume(commands: int, limit: int) -> Resumed:
    """Starts on ``commands`` uncompleted ones with ``limit`` slots, and offers new ones until one is admitted."""
    with tempfile.TemporaryDirectory(prefix="coordinator-bench-") as name, Service(Path(name), delay_ms=2) as service:
        directory = Path(name)
        asyncio.run(write_log(directory / "data", commands, begun))
        with Daemon(directory, sqlite_section(directory), service.address, max_commands=limit) as daemon:
            began = time.monotonic()
            refused = 0
            while not _admitted(daemon, "newcomer"):
                refused += 1
                time.sleep(0.01)
            admitted_s = time.monotonic() - began
            expected = commands * (len(STEPS) - 1) + len(STEPS)
            daemon.until("through with its calls", lambda: service.stats()["requests"] >= expected)
            for index in range(0, commands, max(1, commands // 100)):
                _must_end(daemon, command_id(index))
            stats = service.stats()
            return Resumed(
                commands=commands, limit=limit, ready_s=daemon.ready_s, done_s=time.monotonic() - began,
                calls_peak=stats["peak"], calls=stats["requests"], refused=refused, admitted_s=admitted_s,
                peak_mib=peak_mib(daemon.pid),
            )  # fmt: skip


def _admitted(daemon: Daemon, id: str) -> bool:
    body = {"id": id, "type": "ThreeSteps", "payload": PAYLOAD}
    status, answer = request(daemon.http, "POST", "/v1/commands", body)
    if status not in (200, 202, 429):
        raise RuntimeError(f"a new command got HTTP {status} {answer}")
    return status != 429


def _must_end(daemon: Daemon, id: str) -> None:
    status, answer = request(daemon.http, "GET", f"/v1/commands/{id}?wait=30s")
    if status != 200 or answer["state"] != "completed":
        raise RuntimeError(f"command {id} was not resumed to its end: HTTP {status} {answer}")


# ---------------------------------------------------------------- logs


def command_id(index: int) -> CommandId:
    return CommandId(f"bench-{index:07}")


def finished(id: CommandId) -> list[Record]:
    """A command that completed: five records."""
    outcomes = [_outcome(id, step) for step in STEPS]
    return [_submitted(id), *outcomes, Finished(SCHEMA, _TOKEN, _AT + 4, id, "completed", raw({"receipt": "r-1"}))]


def begun(id: CommandId) -> list[Record]:
    """A command whose first step is done: two records."""
    return [_submitted(id), _outcome(id, STEPS[0])]


def _submitted(id: CommandId) -> Submitted:
    return Submitted(SCHEMA, _TOKEN, _AT, id, "ThreeSteps", 1, _PAYLOAD, _FINGERPRINT)


def _outcome(id: CommandId, step: str) -> Outcome:
    return Outcome(SCHEMA, _TOKEN, _AT + 1, id, step, "bench", 1, _ANSWER)


_FINGERPRINT = fingerprint("ThreeSteps", None, PAYLOAD, None)


async def write_log(data_dir: Path, commands: int, records: Records) -> int:
    """Writes a log of ``commands``, interleaved as a daemon interleaves them; returns how many records it holds."""
    log = SqliteLog(data_dir)
    await log.open()
    writer = await log.writer(0)
    count = 0
    await writer.append([encode(Epoch(SCHEMA, _TOKEN, _AT, "bench", ""))])
    for batch in _batches(commands):
        stages = zip(*(records(id) for id in batch), strict=True)
        share = [encode(record) for stage in stages for record in stage]
        await writer.append(share)
        count += len(share)
    await writer.close()
    await log.close()
    return count


def _batches(commands: int) -> Iterator[list[CommandId]]:
    for start in range(0, commands, _BATCH_COMMANDS):
        yield [command_id(index) for index in range(start, min(commands, start + _BATCH_COMMANDS))]
