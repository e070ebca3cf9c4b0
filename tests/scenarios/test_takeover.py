"""On a real Kafka, with two daemons: what waits goes on where its partition goes, when its owner is killed.

Data flows, callbacks, joins, people, time and dead letters all at once, some in code and some as JSON; half of them are
the other daemon's.  All of it is asked of the survivor, whoever owned it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from coordinator.model.ids import partition_of
from tests.scenarios import test_01_data_flow, test_02_fork_and_join, test_06_signals, test_09_dead_letters
from tests.scenarios.conftest import APP, SERVICES
from tests.scenarios.kit import QuickDaemon, Stage, definition, effects, step
from tests.scenarios.nursery import Nursery

pytestmark = pytest.mark.asyncio(loop_scope="module")

PARTITIONS = 4
DECIDED = definition("decided", step("a"), {"name": "ok", "decision": {"input": "please"}}, step("z"))
SLEPT = definition("slept", step("a"), {"name": "sleep", "sleep": "3s"}, step("z"))
WAITS: dict[str, tuple[tuple[str, dict[str, Any]], tuple[str, ...]]] = {
    "flow": (("Paying", test_01_data_flow.PAYING), ("Otp",)),
    "callback": (("CalledBack", test_06_signals.CALLED), ("answer",)),
    "decision": (("OneDecision", DECIDED), ("ok",)),
    "sleep": (("Sleeper", SLEPT), ("sleep",)),
}
"""What waits for what, in code and as JSON."""


class Pair(Stage):
    """A stage with two daemons on one Kafka; what is asked is asked of ``daemon``, whichever that is."""

    def __init__(self, nursery: Nursery, directory: Path, bootstrap: str) -> None:
        super().__init__(nursery, directory, SERVICES, app=APP, deadly=False, engine="")
        self.bootstrap = bootstrap
        self.name = f"scenarios-{os.urandom(4).hex()}"
        self.daemons: list[QuickDaemon] = []

    async def start(self) -> None:
        for party in self.parties.values():
            await party.start()
        self.daemons = [self._daemon(self.directory / str(number)) for number in range(2)]
        await asyncio.gather(*(asyncio.to_thread(daemon.start) for daemon in self.daemons))
        self.daemon = self.daemons[0]
        await self.shared_out()

    def _daemon(self, directory: Path) -> QuickDaemon:
        lines = ["[coordinator]", f'name = "{self.name}"', 'slow_retry_interval = "50ms"', "[log]", 'kind = "kafka"']
        lines += [f'bootstrap = "{self.bootstrap}"', f"partitions = {PARTITIONS}", f'data_dir = "{directory / "data"}"']
        for name, party in self.parties.items():
            lines += [f"[services.{name}]", f'url = "{party.url}"', "breaker = { failures = 1000 }"]
        return QuickDaemon(self.nursery, directory, "\n".join(lines) + "\n", app=APP)

    async def shared_out(self) -> None:
        """Waits until both own something, and both know it."""
        async with asyncio.timeout(30), httpx.AsyncClient(timeout=5) as client:
            while True:
                seen = [(await client.get(f"{each.http}/v1/cluster")).json() for each in self.daemons]
                acting = {part["state"] for cluster in seen for part in cluster["partitions"]} == {"acting"}
                owners = [{part["partition"]: part["owner"] for part in cluster["partitions"]} for cluster in seen]
                if acting and owners[0] == owners[1] and len(set(owners[0].values())) == 2:
                    return
                await asyncio.sleep(0.05)

    async def kill(self) -> None:
        """kill -9 of the one that has been asked; from now on the other one is."""
        self.daemon.kill()
        self.daemon = self.daemons[1]

    async def close(self) -> None:
        for each in self.daemons:
            each.close()
        await super().close()


@pytest_asyncio.fixture(loop_scope="module")
async def pair(nursery: Nursery, kafka_bootstrap: str, tmp_path: Path) -> AsyncIterator[Pair]:
    made = Pair(nursery, tmp_path, kafka_bootstrap)
    try:
        await made.start()
        yield made
    finally:
        await made.close()


def spread(prefix: str) -> list[str]:
    """An id in each partition."""
    found: dict[int, str] = {}
    for number in count():
        if len(found) == PARTITIONS:
            return list(found.values())
        found.setdefault(partition_of(f"{prefix}-{number}", PARTITIONS), f"{prefix}-{number}")
    raise AssertionError


async def test_what_waits_goes_on_with_the_next_owner(pair: Pair) -> None:
    """Each is there and waits as before, goes on when it is given what it waits for, and repeats nothing."""
    stock = pair.parties["stock"]
    begun: dict[str, tuple[str, str]] = {}
    for name, (forms, waits) in WAITS.items():
        for number, id in enumerate(spread(name)):
            payload = {"duration": "3s"} if (name, number % 2) == ("sleep", 0) else {}
            await pair.submit(forms[number % 2], payload or {"id": "o-1"} if name == "flow" else payload, id=id)
            begun[id] = (name, waits[0])
    for id, (_, waits) in begun.items():
        await pair.waiting(id, waits)
    calls = stock.keys()
    await pair.kill()
    for id, (name, waits) in begun.items():
        if name != "sleep":
            await pair.waiting(id, waits)
    assert [each.key for each in stock.arrivals if not each.key.endswith("/z")] == calls
    listed = {each["command_id"] for each in await pair.done("GET", "/v1/decisions")}
    assert listed == {id for id, (name, _) in begun.items() if name == "decision"}
    for id, (name, _) in begun.items():
        if name == "flow":
            await pair.provide(id, "Otp", {"code": "1234"})
        elif name == "callback":
            url = str(
                stock.asked(id, "ask")["answer_to"]
            )  # it leads to the daemon that is gone: see [listen] callback_url
            await pair.done("POST", url[url.index("/v1/") :], {"status": "paid"})
        elif name == "decision":
            await pair.decide(id, "ok", True)
    for id, (name, _) in begun.items():
        view = await pair.ended(id)
        done = effects(pair, id)["stock"]
        assert len(done) == len(set(done)), done
        if name == "callback":
            assert view["result"] == {"status": "paid"}
    late = next(id for id, (name, _) in begun.items() if name == "flow")
    await pair.provide(late, "Coupon", {"off": 5})
    assert (await pair.until(late, lambda view: view["revision"] == 2 and view["state"] == "completed"))["result"]


async def test_joins_and_dead_letters_go_on_with_the_next_owner(pair: Pair) -> None:
    """Forks with a branch under way, and steps that wait for an operator, in every partition."""
    stock = pair.parties["stock"]
    stock.held.add("/e")
    stock.says["/a"] = lambda arrival: (422, None) if arrival.key.startswith("letters") else (200, None)
    nested, letters = spread("nested"), spread("letters")
    forms = {"nested": ("Nested", test_02_fork_and_join.NESTED), "letters": ("Letters", test_09_dead_letters.LETTERS)}
    for ids in (nested, letters):
        for number, id in enumerate(ids):
            await pair.submit(forms[id.partition("-")[0]][number % 2], {}, id=id)
    await stock.until(lambda: all(stock.has_been_asked(id, "e") for id in nested))
    for id in letters:
        await pair.until(id, "dead_letter")
    await pair.kill()
    stock.release("/e")
    stock.says.clear()
    for id in letters:
        await pair.until(id, "dead_letter")  # once it has an owner again; until then a list says that it lacks some
    listed = {each["command_id"] for each in await pair.done("GET", "/v1/dead-letters")}
    assert listed == set(letters)
    for id in letters:
        await pair.control(id, "requeue", step="a")
    for id in (*nested, *letters):
        await pair.ended(id)
        done = effects(pair, id)["stock"]
        assert sorted(done) == sorted("abcdez" if id in nested else "abcz")
        assert done[-1] == "z"
