"""The load generator: ``python -m bench.load tcp 127.0.0.1:7070 --pid 4711``, a process of its own; prints Figures as
JSON.

It must cost little, since it shares the machine with what it measures: no client library, no task a saga, and of each
answer only the end is decoded.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import msgspec
import uvloop

from bench import wire_http, wire_tcp
from bench.measure import Figures, Load
from bench.processes import ROOT

_RUN = {"tcp": wire_tcp.run, "http": wire_http.run}


def measure(transport: str, address: str, load: Load, type: str, payload: Any) -> Figures:
    """Runs the load generator as a process; raises RuntimeError with its complaint."""
    arguments = [
        sys.executable, "-m", "bench.load", transport, address, "--pid", str(load.pid), "--type", type,
        "--in-flight", str(load.in_flight), "--seconds", str(load.seconds), "--warm-up", str(load.warm_up),
        "--payload", json.dumps(payload),
    ]  # fmt: skip
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the load generator failed: {done.stderr.decode(errors='replace')[-4000:]}")
    return msgspec.json.decode(done.stdout, type=Figures)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.load")
    parser.add_argument("transport", choices=_RUN)
    parser.add_argument("address")
    parser.add_argument("--pid", type=int, required=True, help="whose CPU time to read")
    parser.add_argument("--type", required=True)
    parser.add_argument("--payload", type=json.loads, default={})
    parser.add_argument("--in-flight", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--warm-up", type=float, default=1.0)
    options = parser.parse_args(arguments)
    load = Load(in_flight=options.in_flight, seconds=options.seconds, warm_up=options.warm_up, pid=options.pid)
    figures = uvloop.run(_RUN[options.transport](options.address, load, options.type, options.payload))
    sys.stdout.buffer.write(msgspec.json.encode(figures))


if __name__ == "__main__":
    main()
