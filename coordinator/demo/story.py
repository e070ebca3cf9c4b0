"""What happens in the demo, and when.

    0 %   64 customers at a time submit orders, each waiting for the result of one before the next
    25 %  payments is killed: orders are delayed, its breaker opens, intake suspends; seconds later it is back
    50 %  the coordinator is killed with -9 and started again; the customers' connections break and come back
    100 % everything is stopped, and the ledgers are audited

Nobody helps the client or the coordinator over any of it.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Coroutine
from typing import Any

import httpx
from coordinator_client import AsyncClient
from msgspec import Struct

from coordinator.demo.audit import audit
from coordinator.demo.customer import customer
from coordinator.demo.ledger import Entry, read_entries
from coordinator.demo.orders import PlaceOrder
from coordinator.demo.processes import Shop
from coordinator.demo.services import CREDIT_LIMIT, SERVICES, SOLD_OUT, UNREACHABLE
from coordinator.demo.tally import Report, Tally

Tell = Callable[[str], None]

_CUSTOMERS = 64
_OUTAGE_S = 3.0
_POLL_S = 0.05
_START_LIMIT_S = 30.0
_LIMIT_S = 300.0


class DemoFailed(Exception):
    """The demo could not be played to its end."""


class Plot(Struct, frozen=True):
    """What is to happen; ``seed`` makes the orders, ``kill`` is the coordinator's fate."""

    orders: int = 1000
    kill: bool = True
    seed: int = 1


def make_orders(count: int, seed: int) -> list[PlaceOrder]:
    """Orders, the same ones for the same seed; of 100 some 3 are sold out, 9 exceed the credit, 3 can not ship."""
    chance = random.Random(seed)
    return [
        PlaceOrder(
            order=f"order-{number:05}",
            item=SOLD_OUT if chance.random() < 0.03 else chance.choice(("kettle", "lamp", "chair")),
            amount=chance.randint(1_00, CREDIT_LIMIT * 11 // 10),
            city=UNREACHABLE if chance.random() < 0.03 else chance.choice(("Ghent", "Porto", "Turku")),
        )
        for number in range(1, count + 1)
    ]


async def play(plot: Plot, shop: Shop, tally: Tally, tell: Tell) -> Report:
    """Plays the whole story on ``shop``; raises DemoFailed.  If it raises, processes may still run."""
    orders = make_orders(plot.orders, plot.seed)
    tell(f"starting the coordinator and three services in {shop.directory}")
    await shop.start()
    await _ready(shop)
    began = time.monotonic()
    tell(f"submitting {plot.orders} orders, {_CUSTOMERS} at a time, to tcp://{shop.tcp}")
    try:
        async with asyncio.timeout(_LIMIT_S):
            restart_s = await _live(plot, orders, shop, tally, tell)
    except TimeoutError:
        raise DemoFailed(f"{tally.total - tally.settled} orders had no end after {_LIMIT_S:.0f} s") from None
    except BaseExceptionGroup as failures:
        raise _first(failures) from None
    seconds = time.monotonic() - began
    tell("stopping everything")
    exit_code = await shop.stop()
    ledgers = {name: read_entries(shop.ledger(name)) for name in SERVICES}
    return _report(orders, tally, ledgers, seconds=seconds, restart_s=restart_s, exit_code=exit_code)


async def _live(plot: Plot, orders: list[PlaceOrder], shop: Shop, tally: Tally, tell: Tell) -> float | None:
    """From the first order to the last; returns the seconds that the restart took."""
    async with asyncio.TaskGroup() as onlookers:
        watching = [
            onlookers.create_task(_observe(f"http://{shop.http}", tally, tell)),
            onlookers.create_task(_guard(shop)),
        ]
        async with asyncio.TaskGroup() as actors:
            trouble = actors.create_task(_trouble(plot, shop, tally, tell))
            actors.create_task(_submit_all(f"tcp://{shop.tcp}", orders, tally))
        for onlooker in watching:
            onlooker.cancel()
    return trouble.result()


def _first(failures: BaseExceptionGroup[BaseException]) -> BaseException:
    """The failure that began it: task groups only wrap it, once for each group."""
    first = failures.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first


async def _guard(shop: Shop) -> None:
    """Raises DemoFailed if the coordinator ends when nobody killed it, since nobody would start it again."""
    await shop.daemon.ended_by_itself.wait()
    raise DemoFailed("the coordinator ended by itself")


async def _ready(shop: Shop) -> float:
    """Waits until ``/readyz`` says so; returns how long that took in seconds."""
    began = time.monotonic()
    try:
        async with asyncio.timeout(_START_LIMIT_S), httpx.AsyncClient() as http:
            while not await _answers(http, f"http://{shop.http}/readyz"):
                if shop.daemon.ended_by_itself.is_set():
                    raise DemoFailed("the coordinator ended at start")
                await asyncio.sleep(_POLL_S / 5)
    except TimeoutError:
        raise DemoFailed(f"the coordinator was not ready after {_START_LIMIT_S:.0f} s") from None
    return time.monotonic() - began


async def _answers(http: httpx.AsyncClient, url: str) -> bool:
    try:
        return (await http.get(url)).is_success
    except httpx.TransportError:
        return False


async def _submit_all(url: str, orders: list[PlaceOrder], tally: Tally) -> None:
    """Submits every order once, `_CUSTOMERS` at a time; the client alone copes with suspension and restarts."""
    waiting = iter(orders)
    async with AsyncClient(url) as client, asyncio.TaskGroup() as customers:
        for _ in range(min(_CUSTOMERS, len(orders))):
            customers.create_task(customer(client, waiting, tally))


async def _observe(url: str, tally: Tally, tell: Tell) -> None:
    """Looks at the coordinator as an operator would, for as long as the story lasts."""
    async with httpx.AsyncClient(base_url=url, timeout=2.0) as http:
        while True:
            try:
                answer = await http.get("/v1/services")
            except httpx.TransportError:
                tally.watch.lost()
            else:
                for news in tally.watch.saw(answer.json()) if answer.is_success else ():
                    tell(news)
            await asyncio.sleep(_POLL_S)


async def _trouble(plot: Plot, shop: Shop, tally: Tally, tell: Tell) -> float | None:
    """The outage and the kill; returns the seconds from starting again to ready, None if it was not killed."""
    await tally.reaches(0.25)
    await _outage(shop, tally, tell)
    if not plot.kill:
        return None
    await tally.reaches(0.5)
    tell(f"kill -9 {shop.daemon.pid}: the coordinator dies with orders under way")
    await shop.daemon.kill()
    await shop.daemon.start()
    seconds = await _ready(shop)
    tell(f"the coordinator is back after {seconds:.2f} s and goes on where its log ends")
    return seconds


async def _outage(shop: Shop, tally: Tally, tell: Tell) -> None:
    payments = shop.services["payments"]
    tell(f"kill -9 {payments.pid}: payments is down")
    await payments.kill()
    # Either, since the last orders may be through before the breaker has seen enough.
    await _either(tally.watch.suspends("payments"), tally.reaches(1.0))
    await asyncio.sleep(_OUTAGE_S)  # the outage itself
    tell(f"payments is started again; {tally.watch.delayed} orders are delayed")
    await payments.start()
    await _either(tally.watch.resumes("payments"), tally.reaches(1.0))


async def _either(*waits: Coroutine[Any, Any, None]) -> None:
    """Returns when one of them does."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


def _report(
    orders: list[PlaceOrder],
    tally: Tally,
    ledgers: dict[str, list[Entry]],
    *,
    seconds: float,
    restart_s: float | None,
    exit_code: int | None,
) -> Report:
    faults = [str(fault) for fault in audit((order.order for order in orders), tally.states, ledgers)]
    faults += [f"{order}: the client gave up: {why}" for order, why in tally.errors.items()]
    if exit_code != 0:
        faults.append(f"the coordinator ended with exit code {exit_code} on SIGTERM, not 0")
    entries = [entry for ledger in ledgers.values() for entry in ledger]
    return Report(
        orders=len(orders),
        counts=tally.counts,
        faults=faults,
        seconds=seconds,
        restart_s=restart_s,
        delayed_peak=tally.watch.delayed_peak,
        suspensions=tally.watch.suspensions,
        effects=len(entries),
        repeats=sum(entry.asked - 1 for entry in entries),
        exit_code=exit_code,
    )
