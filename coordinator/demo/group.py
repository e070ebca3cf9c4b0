"""Three instances, one log: a load, a kill -9, a newcomer, a drain; then the audit.

    python -m coordinator.demo.group --bootstrap 127.0.0.1:9092        (`make demo-cluster` starts a Kafka for it)

    0 %    32 customers submit orders to all three instances; each instance takes any order
    30 %   the instance that acts for most partitions is killed with -9; the others take over
    55 %   it is started again, and gets its share back
    75 %   another one is told to stop: it hands over, and says when it is safe to
    100 %  every order is looked up in the services' ledgers

Nobody tells the customers, whose client library finds its own way.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
from coordinator_client import AsyncClient

from coordinator.demo.audit import audit
from coordinator.demo.customer import customer
from coordinator.demo.ledger import read_entries
from coordinator.demo.orders import PlaceOrder
from coordinator.demo.processes import Chain, Instance, ledger_of
from coordinator.demo.story import DemoFailed, make_orders
from coordinator.demo.tally import Tally

_CUSTOMERS = 32
_POLL_S = 0.02
_START_LIMIT_S = 60.0
_LIMIT_S = 300.0

Row = dict[str, Any]


class Operator:
    """Who looks at the group, as `coordinator cluster` does, through any instance that answers."""

    def __init__(self, instances: list[Instance], http: httpx.AsyncClient) -> None:
        self.instances = instances
        self.http = http

    async def ready(self, instance: Instance) -> None:
        """Waits until it is; raises DemoFailed where it ends instead."""
        while True:
            if instance.process.ended_by_itself.is_set():
                raise DemoFailed(f"{instance.name} ended at start:\n{instance.process.tail(10)}")
            try:
                if (await self.http.get(f"http://{instance.http}/readyz")).is_success:
                    return
            except httpx.TransportError:
                pass
            await asyncio.sleep(_POLL_S)

    async def owners(self, but: Instance | None = None) -> list[str | None]:
        """The owner's address of each partition, as one of the instances sees it (not ``but``)."""
        for instance in self.instances:
            if instance is not but and instance.process.pid is not None:
                try:
                    answer = await self.http.get(f"http://{instance.http}/v1/cluster")
                    return [row["address"] for row in answer.json()["partitions"]]
                except (httpx.TransportError, ValueError, KeyError):
                    continue
        return [None]

    async def all_owned(self, *, but: Instance | None = None, by: Instance | None = None) -> list[str | None]:
        """Waits until every partition has an owner that is not ``but``, some of them ``by`` if given."""
        while True:
            owners = await self.owners(but)
            if None not in owners and (but is None or but.tcp not in owners) and (by is None or by.tcp in owners):
                return owners
            await asyncio.sleep(_POLL_S)


async def play(chain: Chain, orders: list[PlaceOrder]) -> list[str]:
    """Plays the story, and tells it; returns what the audit has found."""
    tally = Tally(len(orders))
    async with asyncio.timeout(_LIMIT_S), _operator(chain) as operator:
        await chain.start()
        async with asyncio.timeout(_START_LIMIT_S):
            for instance in chain.instances:
                await operator.ready(instance)
            await operator.all_owned()
        _tell("three instances are ready:")
        await _show(chain.instances[0])
        _tell(f"submitting {len(orders)} orders, {_CUSTOMERS} at a time, to all three")
        async with asyncio.TaskGroup() as actors:
            actors.create_task(_submit_all(chain, orders, tally))
            actors.create_task(_trouble(chain, operator, tally))
    await chain.stop()
    ledgers = {name: read_entries(ledger_of(chain.directory, name)) for name in chain.services}
    _tell(", ".join(f"{count} {state}" for state, count in sorted(tally.counts.items())))
    faults = [str(fault) for fault in audit((order.order for order in orders), tally.states, ledgers)]
    return faults + [f"{order}: the client gave up: {why}" for order, why in tally.errors.items()]


@asynccontextmanager
async def _operator(chain: Chain) -> AsyncIterator[Operator]:
    async with httpx.AsyncClient(timeout=2.0, verify=False) as http:  # nothing here speaks TLS
        yield Operator(chain.instances, http)


async def _trouble(chain: Chain, operator: Operator, tally: Tally) -> None:
    await tally.reaches(0.3)
    owners = await operator.owners()
    killed = max(chain.instances, key=lambda instance: owners.count(instance.tcp))
    _tell(f"kill -9 {killed.process.pid}: {killed.name} dies, who acts for {owners.count(killed.tcp)} partitions")
    began = time.monotonic()
    await killed.process.kill()
    await operator.all_owned(but=killed)
    _tell(f"the others act for all of them {time.monotonic() - began:.2f} s later:")
    asked, leaver = (instance for instance in chain.instances if instance is not killed)
    await _show(asked)

    await tally.reaches(0.55)
    _tell(f"{killed.name} is started again")
    began = time.monotonic()
    await killed.process.start()
    await operator.ready(killed)
    await operator.all_owned(by=killed)
    _tell(f"it is ready, and has got partitions back, after {time.monotonic() - began:.2f} s")

    await tally.reaches(0.75)
    _tell(f"SIGTERM {leaver.process.pid}: {leaver.name} is to stop")
    began = time.monotonic()
    code = await leaver.process.stop()
    seconds = time.monotonic() - began
    if code != 0:
        raise DemoFailed(f"{leaver.name} ended with exit code {code} on SIGTERM, not 0")
    await operator.all_owned(but=leaver)
    _tell(f"it has handed over and ended with exit code 0 after {seconds:.2f} s:")
    await _show(asked)


async def _submit_all(chain: Chain, orders: list[PlaceOrder], tally: Tally) -> None:
    """Each third of the customers prefers another instance; all know the three addresses."""
    waiting = iter(orders)
    addresses = [f"tcp://{instance.tcp}" for instance in chain.instances]
    clients = [AsyncClient(addresses[n:] + addresses[:n]) for n in range(len(addresses))]
    try:
        async with asyncio.TaskGroup() as customers:
            for n in range(_CUSTOMERS):
                customers.create_task(customer(clients[n % len(clients)], waiting, tally))
    finally:
        for client in clients:
            await client.close()


async def _show(instance: Instance) -> None:
    """What an operator would type, and sees."""
    _tell(f"$ coordinator cluster --server http://{instance.http}")
    verb = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "coordinator", "cluster", "--server", f"http://{instance.http}"),
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await verb.communicate()
    for line in out.decode().splitlines():
        _tell(f"    {line.rstrip()}")


def _tell(line: str) -> None:
    print(f"  {line}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="Three instances on one Kafka topic, under load and in trouble.")
    parser.add_argument("--bootstrap", default=os.environ.get("KAFKA_BOOTSTRAP", "127.0.0.1:9092"))
    parser.add_argument("--orders", type=int, default=3000)
    parser.add_argument("--keep", action="store_true", help="keep ledgers and output")
    given = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="coordinator-demo-"))
    chain = Chain(directory, given.bootstrap, f"demo-{secrets.token_hex(4)}.log")
    faults: list[str] = ["it was not played to its end"]
    try:
        faults = asyncio.run(play(chain, make_orders(given.orders, seed=1)))
    except (DemoFailed, TimeoutError, ExceptionGroup) as failure:
        _tell(f"the demo failed: {failure!r}")
    except KeyboardInterrupt:
        _tell("the demo was interrupted")
    finally:
        chain.kill_now()
    for fault in faults[:20]:
        _tell(f"FAULT {fault}")
    if faults or given.keep:
        _tell(f"ledgers and output: {directory}")
    else:
        shutil.rmtree(directory)
        _tell("audit: every order is wholly done or wholly undone, and every client was told so")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
