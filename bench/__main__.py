"""``python -m bench [--only sqlite-tcp-64] [--seconds 8]``; writes bench/results/<time>.json and prints markdown."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from bench import recovery, report, throughput, waiting
from bench.processes import ROOT

_RECOVERY = ("start", "replay", "resume", "waiting")


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    cells = [cell for cell in throughput.cells() if _selected(cell.name, options.only)]
    results = report.Results(machine=report.machine())
    with _kafka(any(cell.log == "kafka" for cell in cells)) as bootstrap:
        for measured in throughput.measure(cells, options.seconds, bootstrap, _say):
            if isinstance(measured, str):
                results.failures.append(measured)
            else:
                results.throughput.append(measured)
    _recover(results, options)
    _say(f"written to {_write(results).relative_to(ROOT)}")
    sys.stdout.write(report.markdown(results))
    for failure in results.failures:
        _say(f"FAILED {failure}")
    sys.exit(1 if results.failures else 0)


def _recover(results: report.Results, options: argparse.Namespace) -> None:
    """The starts; one that fails does not cost the figures of the others."""
    if _selected("start", options.only):
        with _part("start on an empty log", results):
            results.empty = recovery.start_empty()
    if _selected("replay", options.only):
        with _part(f"replay of {options.commands:,} finished commands", results):
            results.replay = recovery.replay(options.commands)
    if _selected("resume", options.only):
        with _part(f"resume of {options.uncompleted:,} commands", results):
            results.resume = recovery.resume(options.uncompleted, options.limit)
    if _selected("waiting", options.only):
        with _part(f"{options.waiting:,} commands that wait", results):
            results.waiting = waiting.measure(options.waiting)


@contextmanager
def _part(name: str, results: report.Results) -> Iterator[None]:
    _say(name)
    try:
        yield
    except RuntimeError as failure:
        results.failures.append(f"{name}: {failure}")


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    names = ", ".join([cell.name for cell in throughput.cells()][:3])
    parser.add_argument(
        "--only", action="append", default=[], help=f"parts whose name has this in it: {names} … {', '.join(_RECOVERY)}"
    )
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement (default: 8)")
    parser.add_argument("--commands", type=int, default=200_000, help="finished commands to replay (default: 200000)")
    parser.add_argument("--uncompleted", type=int, default=10_000, help="commands to resume (default: 10000)")
    parser.add_argument("--waiting", type=int, default=1_000_000, help="commands that wait (default: 1000000)")
    parser.add_argument("--limit", type=int, default=1_000, help="max_commands while resuming (default: 1000)")
    return parser.parse_args(arguments)


def _selected(name: str, only: list[str]) -> bool:
    return not only or any(part in name for part in only)


@contextmanager
def _kafka(needed: bool) -> Iterator[str | None]:
    """The address of a real broker of this run's own, where one is needed."""
    if not needed:
        yield None
        return
    from coordinator.testing.kafka import Cluster

    with tempfile.TemporaryDirectory(prefix="coordinator-bench-kafka-") as directory:
        _say("starting Kafka")
        with Cluster(Path(directory)) as cluster:
            yield cluster.bootstrap


def _write(results: report.Results) -> Path:
    path = ROOT / "bench" / "results" / f"{time.strftime('%Y%m%d-%H%M%S')}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(results)))
    return path


def _say(line: str) -> None:
    print(f"… {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
