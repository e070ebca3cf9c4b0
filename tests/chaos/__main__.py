"""Runs rounds of faults and tells what they cost; exit code 1 when a promise is broken.

python -m tests.chaos [--minutes M] [--only kill,hang,…] [--seed N] [--json FILE] [--keep DIRECTORY]
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import msgspec

from coordinator.testing.kafka import Cluster, install
from tests.chaos.faults import FAULTS, Fault
from tests.chaos.figures import Row, Target, table
from tests.chaos.network import Network, enter, network
from tests.chaos.reckoning import reckon
from tests.chaos.stage import DAEMONS, staged


async def round_of(
    faults: list[Fault], directory: Path, brokers: Cluster, net: Network, seed: int, options: argparse.Namespace
) -> tuple[list[Row], list[str]]:
    """One round; returns its figures and every broken promise about a command as a sentence."""
    async with staged(directory, brokers, net, seed, options.session) as stage:
        stage.quiet_s = options.quiet
        stage.load.start(options.workers)
        strikes = []
        began = time.monotonic()
        complaint = await stage.settled()
        for fault in faults:
            print(f"{time.monotonic() - began:7.1f} s  {fault.name}: {fault.says}", flush=True)
            strikes.append(await fault.hit(stage))
        if stage.load.failed:
            raise RuntimeError("the load has broken")
        await stage.load.stop()
        await stage.ended()
        stops = await asyncio.gather(*(instance.drain() for instance in stage.instances))
        account = stage.account(strikes)
        (stage.directory / "account").write_bytes(msgspec.json.encode(account))
        rows, faulty = reckon(account)
        rows[-1].complaints += [each for each in (complaint, *stops) if each]
        print(f"{stage.book.void} records of former owners were void")
        return rows, [*faulty, *stage.book.disagreements()]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description="Faults on a real cluster under load.")
    parser.add_argument("--minutes", type=float, default=0, help="rounds are begun until then; 0: one round")
    parser.add_argument("--only", default="", help="faults by name, separated by commas, in this order")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    parser.add_argument("--json", type=Path, help="writes the figures there")
    parser.add_argument("--keep", type=Path, help="a directory for logs and ledgers, which are left there")
    parser.add_argument("--quiet", type=float, default=3.5, help="seconds without a move before each fault")
    parser.add_argument("--session", type=int, default=6, help="seconds after which the group misses a silent member")
    parser.add_argument("--workers", type=int, default=8, help="clients, each with one command at a time")
    options = parser.parse_args(arguments)
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # brokers go away here, and it tells of each
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))  # which lets everything be taken down
    install()  # from outside: the namespace has no way out
    enter()
    net = network(DAEMONS)
    faults = [FAULTS[name.strip()] for name in options.only.split(",")] if options.only else list(FAULTS.values())
    left_out = [fault.name for fault in faults if fault.cuts and not net.can_cut]
    faults = [fault for fault in faults if fault.name not in left_out]
    print(f"seed {options.seed}, network: {net.kind}" + (f"; left out: {', '.join(left_out)}" if left_out else ""))
    with tempfile.TemporaryDirectory(prefix="coordinator-chaos-") as scratch:
        directory = options.keep or Path(scratch)
        totals, faulty = asyncio.run(_rounds(faults, directory, net, options))
    print(table(totals.values()))
    broken = [text for name, row in totals.items() for text in row.broken(_target(name))]
    if options.json:
        report = {"seed": options.seed, "network": net.kind, "left_out": left_out, "rows": list(totals.values())}
        options.json.write_bytes(
            msgspec.json.format(msgspec.json.encode({**report, "broken": broken, "faults": faulty}))
        )
    print("\n".join([*faulty[:100], *broken]) or "every promise was kept")
    return 1 if broken or faulty else 0


async def _rounds(
    faults: list[Fault], directory: Path, net: Network, options: argparse.Namespace
) -> tuple[dict[str, Row], list[str]]:
    until = time.monotonic() + options.minutes * 60
    totals: dict[str, Row] = {}
    faulty: list[str] = []
    brokers = Cluster(directory / "kafka", nodes=3, host=net.broker_host)
    await asyncio.to_thread(brokers.start)
    try:
        for number in range(1_000_000):
            place = directory / f"round-{number}-{int(time.monotonic())}"
            rows, found = await round_of(faults, place, brokers, net, options.seed + number, options)
            faulty += found
            for row in rows:
                totals.setdefault(row.fault, Row(fault=row.fault)).add(row)
            if time.monotonic() >= until:
                return totals, faulty
            print(table(totals.values()), flush=True)
    finally:
        await asyncio.to_thread(brokers.stop)
    raise AssertionError("unreachable")


def _target(name: str) -> Target:
    return FAULTS[name].target if name in FAULTS else Target()


if __name__ == "__main__":
    sys.exit(main())
