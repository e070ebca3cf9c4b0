"""Markdown tables of what was measured, ready for docs/performance.md."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Sequence
from pathlib import Path

from msgspec import Struct

from bench.recovery import Resumed, Start
from bench.throughput import Measured
from bench.waiting import Waiting

CPU_RATIO_MAX, P50_RATIO_MAX, PEAK_MIB_MAX = 3.0, 2.0, 150.0
WAITING_BYTES_MAX = 1_000.0
EMPTY_START_S_MAX, REPLAY_S_MAX = 1.0, 15.0


class Results(Struct, kw_only=True):
    """One run of the benchmark; what was not selected is empty."""

    machine: str
    throughput: list[Measured] = []
    empty: Start | None = None
    replay: Start | None = None
    resume: Resumed | None = None
    waiting: Waiting | None = None
    failures: list[str] = []


def machine() -> str:
    """The machine in a line: figures mean nothing without it."""
    model = next(
        (line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name")), platform.machine()
    )
    return f"{os.cpu_count()} x {model}, {platform.system()} {platform.release()}, Python {platform.python_version()}"


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def markdown(results: Results) -> str:
    """All tables of a run."""
    parts = [f"Measured on {results.machine}."]
    if results.throughput:
        parts += [_throughput(results.throughput), _floors(results.throughput)]
    if results.empty or results.replay:
        parts.append(_starts(results))
    if results.resume:
        parts.append(_resume(results.resume))
    if results.waiting:
        parts.append(_waiting(results.waiting))
    return "\n\n".join(parts) + "\n"


def _throughput(rows: Sequence[Measured]) -> str:
    head = ("log", "transport", "command", "in flight", "sagas/s", "p50 ms", "p99 ms", "CPU ms a saga", "x floor",
            "p50 x floor", "peak MiB")  # fmt: skip
    return _table(head, (_throughput_row(row) for row in rows))


def _throughput_row(row: Measured) -> list[str]:
    cell, figures = row.cell, row.figures
    # Only at one in flight is the sum of the parts a floor of the latency: at 64 it is mostly time spent in queues.
    p50 = _judged(row.p50_ratio, P50_RATIO_MAX) if cell.in_flight == 1 else "–"
    return [
        cell.log, cell.transport, cell.command, str(cell.in_flight), f"{figures.rate:,.0f}", f"{figures.p50_ms:.2f}",
        f"{figures.p99_ms:.2f}", f"{figures.cpu_ms:.3f}", _judged(row.cpu_ratio, CPU_RATIO_MAX), p50,
        _judged(row.peak_mib, PEAK_MIB_MAX, ".0f"),
    ]  # fmt: skip


def _floors(rows: Iterable[Measured]) -> str:
    """Each floor once: the parts, and their sum for a saga."""
    head = ("log", "in flight", "call µs CPU / p50 ms", "append µs CPU / p50 ms", "frame µs CPU / p50 ms",
            "a saga: CPU ms", "a saga: p50 ms")  # fmt: skip
    seen = {(row.cell.log, row.cell.in_flight): row.floor for row in rows}
    return _table(
        head,
        (
            [
                log, str(in_flight),
                *(f"{part.cpu_ms * 1000:.0f} / {part.p50_ms:.2f}" for part in (floor.call, floor.append, floor.frame)),
                f"{floor.cpu_ms:.3f}", f"{floor.p50_ms:.2f}" if in_flight == 1 else "–",
            ]
            for (log, in_flight), floor in seen.items()
        ),
    )  # fmt: skip


def _starts(results: Results) -> str:
    starts = [
        ("an empty log", results.empty, EMPTY_START_S_MAX),
        ("a log of finished commands", results.replay, REPLAY_S_MAX),
    ]
    return _table(
        ("start on", "records", "ready after s", "CPU s", "peak MiB"),
        (
            [what, f"{start.records:,}", _judged(start.ready_s, limit), f"{start.cpu_s:.2f}",
             _judged(start.peak_mib, PEAK_MIB_MAX, ".0f")]
            for what, start, limit in starts
            if start
        ),
    )  # fmt: skip


def _resume(row: Resumed) -> str:
    facts = [
        ("uncompleted commands in the log", f"{row.commands:,}"),
        ("slots (max_commands)", f"{row.limit:,}"),
        ("ready after", f"{row.ready_s:.2f} s"),
        ("most calls held by the service at once", f"{row.calls_peak:,}"),
        ("calls in all", f"{row.calls:,}"),
        ("new commands refused with limit_reached meanwhile", f"{row.refused:,}"),
        ("first new command admitted after", f"{row.admitted_s:.2f} s"),
        ("all at their end after", f"{row.done_s:.2f} s"),
        ("peak memory", f"{row.peak_mib:.0f} MiB"),
    ]
    return _table(("resume", ""), (list(fact) for fact in facts))


def _waiting(row: Waiting) -> str:
    facts = [
        ("commands that wait for a person", f"{row.commands:,}"),
        ("memory of each", f"{_judged(row.bytes_each, WAITING_BYTES_MAX, '.0f')} bytes"),
        ("CPU to come to that point", f"{row.asleep_us:.0f} us"),
        ("CPU to be looked at", f"{row.woken_us:.0f} us"),
    ]
    return _table(("waiting", ""), (list(fact) for fact in facts))


def _judged(value: float, limit: float, form: str = ".2f") -> str:
    """The figure, in bold where it misses its target."""
    return f"{value:{form}}" if value <= limit else f"**{value:{form}}** (target {limit:g})"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
