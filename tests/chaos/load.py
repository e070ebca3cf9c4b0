"""Clients as they are in life: the real client library, over TCP and HTTP, each beginning at another instance.

A load balancer gives a connection to any instance; so every few calls a worker makes a new client that begins at the
next one, with the others behind it for when that one refuses.  What the library absorbs is absorbed; what it lets
through is written down as an error.

    waiter      submits and waits for the end
    starter     submits, and asks for the end on another instance
    doubler     submits one id on two instances at once
    watcher     submits, and watches it on another instance
    canceller   submits, cancels on another instance, and asks for the end
    forgetter   gives its call up after a moment and submits the same id elsewhere
    repeater    submits once more, or asks for, what somebody submitted some time ago
    anonymous   lets the library make the id

Holders, one a partition, submit commands whose second step takes `HOLD_S`: whenever a fault strikes, every partition
has something to inherit.

Probes, one a partition, submit an empty command every `PROBE_S` and wait for nothing but its acceptance: the longest
time between two of their answers is how long the partition kept callers waiting.
"""

from __future__ import annotations

import asyncio
import random
import ssl
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final

from coordinator_client import AsyncClient, Command, ConnectionLost, CoordinatorError, IllegalState, LogUnavailable

from coordinator.model.ids import partition_of
from tests.chaos.chaos_app import STEPS
from tests.chaos.checker import Answer
from tests.chaos.instances import Instance

PROBE_S: Final = 0.05
PAUSE_S: Final = 0.3  # at most: between two commands of a worker, so that a small machine is not simply full
HOLD_S: Final = 1.0
CALLS_PER_CLIENT: Final = 10
WAIT_S: Final = 60
DECLINED: Final = 0.2


class Load:
    """Clients, each with one command at a time, and the probes.  Runs from `start` to `stop`."""

    def __init__(self, instances: Sequence[Instance], partitions: int, *, seed: int) -> None:
        self.answers: list[Answer] = []
        self.probes: dict[int, list[Answer]] = {partition: [] for partition in range(partitions)}
        self._instances = instances
        self._partitions = partitions
        self._chance = random.Random(seed)
        self._stopping = False
        self._tasks: list[asyncio.Task[None]] = []
        self._turn = 0
        self._former: deque[tuple[str, dict[str, str]]] = deque(maxlen=300)

    def start(self, workers: int) -> None:
        jobs = [self._work() for _ in range(workers)]
        for partition in range(self._partitions):
            jobs += [self._probe(partition), self._hold(partition)]
        self._tasks = [asyncio.create_task(job) for job in jobs]

    async def stop(self) -> None:
        """No new commands; returns when every call that was under way has its answer."""
        self._stopping = True
        await asyncio.gather(*self._tasks)

    def _done(self) -> bool:
        return self._stopping

    @property
    def failed(self) -> bool:
        """Whether the load itself has broken, which would make everything look calm."""
        return any(task.done() and not task.cancelled() and task.exception() for task in self._tasks)

    # ------------------------------------------------------------ workers

    async def _work(self) -> None:
        kinds: list[Callable[[Any, Any], Coroutine[Any, Any, None]]]
        kinds = [self._waiter, self._waiter, self._starter, self._doubler, self._forgetter, self._anonymous]
        kinds += [self._watcher, self._canceller, self._repeater]
        while not self._done():
            async with self._client() as one, self._client() as other:
                for _ in range(CALLS_PER_CLIENT):
                    if not self._done():
                        await self._chance.choice(kinds)(one, other)
                        await asyncio.sleep(self._chance.uniform(0, PAUSE_S))

    async def _waiter(self, one: _Client, other: _Client) -> None:
        id, payload = self._command()
        await self._told(one, "submit and wait", id, one.submit("Order", payload, id=id, wait=WAIT_S))

    async def _starter(self, one: _Client, other: _Client) -> None:
        id, payload = self._command()
        if await self._told(one, "submit", id, one.submit("Order", payload, id=id)):
            await self._told(other, "wait", id, other.wait(id, WAIT_S))

    async def _watcher(self, one: _Client, other: _Client) -> None:
        id, payload = self._command()
        if await self._told(one, "submit", id, one.submit("Order", payload, id=id)):
            await self._told(other, "watch", id, _watched(other, id))

    async def _canceller(self, one: _Client, other: _Client) -> None:
        """A cancel may come too late, and is not asked for twice where the first time may have been recorded: then the
        error says so, as it should."""
        id, payload = self._command()
        if await self._told(one, "submit", id, one.submit("Order", payload, id=id)):
            await asyncio.sleep(self._chance.uniform(0, 0.3))
            cancelled = await _asked(other, "cancel", id, other.cancel(id, reason="chaos"))
            if cancelled.error not in (IllegalState.code, ConnectionLost.code, LogUnavailable.code):
                self.answers.append(cancelled)
            await self._told(other, "wait", id, other.wait(id, WAIT_S))

    async def _repeater(self, one: _Client, other: _Client) -> None:
        if self._former:
            id, payload = self._chance.choice(self._former)
            await self._told(one, "submit again", id, one.submit("Order", payload, id=id, wait=WAIT_S))
            await self._told(other, "get", id, other.get(id))

    async def _doubler(self, one: _Client, other: _Client) -> None:
        id, payload = self._command()
        await asyncio.gather(
            *(
                self._told(each, "submit twice", id, each.submit("Order", payload, id=id, wait=WAIT_S))
                for each in (one, other)
            )
        )

    async def _forgetter(self, one: _Client, other: _Client) -> None:
        id, payload = self._command()
        try:
            async with asyncio.timeout(self._chance.uniform(0.005, 0.2)):
                await self._told(one, "submit and forget", id, one.submit("Order", payload, id=id, wait=WAIT_S))
        except TimeoutError:
            await self._told(other, "submit again", id, other.submit("Order", payload, id=id, wait=WAIT_S))

    async def _anonymous(self, one: _Client, other: _Client) -> None:
        await self._told(one, "submit without id", "", one.submit("Order", self._payload(), wait=WAIT_S))

    async def _told(self, client: _Client, call: str, id: str, asking: Coroutine[Any, Any, Command]) -> bool:
        """Writes the answer down; False for an error."""
        answer = await _asked(client, call, id, asking)
        self.answers.append(answer)
        return not answer.error

    def _command(self) -> tuple[str, dict[str, str]]:
        command = f"order-{self._chance.getrandbits(64):016x}", self._payload()
        self._former.append(command)
        return command

    def _payload(self) -> dict[str, str]:
        return {"decline": self._chance.choice(STEPS)[0]} if self._chance.random() < DECLINED else {}

    # ------------------------------------------------------------ a partition each

    async def _hold(self, partition: int) -> None:
        while not self._done():
            async with self._client() as one, self._client() as other:
                id = self._id_in(partition, "held")
                if await self._told(one, "submit", id, one.submit("Order", {"hold": HOLD_S}, id=id)):
                    await self._told(other, "wait", id, other.wait(id, WAIT_S))

    async def _probe(self, partition: int) -> None:
        while not self._done():
            async with self._client() as client:
                for _ in range(CALLS_PER_CLIENT):
                    if self._done():
                        return
                    id = self._id_in(partition, "probe")
                    self.probes[partition].append(await _asked(client, "probe", id, client.submit("Probe", {}, id=id)))
                    await asyncio.sleep(PROBE_S)

    def _id_in(self, partition: int, kind: str) -> str:
        while True:
            id = f"{kind}-{self._chance.getrandbits(48):012x}"
            if partition_of(id, self._partitions) == partition:
                return id

    # ------------------------------------------------------------ the library

    def _client(self) -> _Client:
        self._turn += 1
        first = self._turn % len(self._instances)
        order = [*self._instances[first:], *self._instances[:first]]
        transport = "tcp" if self._chance.random() < 0.6 else "http"
        return _Client([each.urls[transport] for each in order], transport, order[0].number)


_TLS = ssl.create_default_context()  # not used, but made anew (45 ms of CPU) for each HTTP address that is given none


class _Client(AsyncClient):
    """A client of the library that knows where it began."""

    def __init__(self, urls: list[str], transport: str, via: int) -> None:
        super().__init__(urls, ssl=_TLS if transport == "http" else None)
        self.transport = transport
        self.via = via

    async def __aenter__(self) -> _Client:
        return self


async def _watched(client: _Client, id: str) -> Command:
    """The end, as the last event tells it."""
    command = None
    async with asyncio.timeout(WAIT_S):
        async for event in client.watch(id):
            command = event.command or command
    assert command is not None
    return command


async def _asked(client: _Client, call: str, id: str, asking: Coroutine[Any, Any, Command]) -> Answer:
    asked = time.monotonic()
    command, error = None, ""
    try:
        command = await asking
    except CoordinatorError as refusal:
        error, id = refusal.code, refusal.command_id or id
    except TimeoutError:
        error = "no end within a minute"
    common = {"call": call, "transport": client.transport, "via": client.via, "asked": asked}
    if command is None:
        return Answer(id=id, answered=time.monotonic(), error=error, **common)  # type: ignore[arg-type]
    return Answer(
        id=command.id,
        answered=time.monotonic(),
        state=command.state,
        result=command.result,
        position=command.position,
        failure=command.error.code if command.error else "",
        **common,  # type: ignore[arg-type]
    )
