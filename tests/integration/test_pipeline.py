"""The straight line in one process over a log that fails on request: who is told what, and that nobody waits for ever.

Everything is the real thing but the disk: engine, gateway, view, front, and services behind sockets.  The log is the
memory log with its faults, so that each trouble comes at the very append that it is meant for.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest

from coordinator.engine.engine import Engine
from coordinator.engine.registry import Registry
from coordinator.errors import CoordinatorError, InvalidPayload, LogUnavailable, NoOwner, TooLarge, Unavailable
from coordinator.front import CoordinatorFront
from coordinator.gateway.gateway import Gateway
from coordinator.log.memory import Fault, MemoryLog, MemoryStorage
from coordinator.model.command import Operation, Submission
from coordinator.model.records import SCHEMA, Epoch, Finished, Outcome, Submitted
from coordinator.model.settings import BreakerSettings, EngineSettings, ServiceSettings
from coordinator.pipeline import Pipeline, shown
from coordinator.server.clock import Clock
from coordinator.server.metrics import Metrics
from coordinator.transport.base import Event
from coordinator.view import View
from coordinator.wire.codec import decode, encode
from tests.integration.daemon import Service

SHIP = {"name": "ship", "service": "shipping", "path": "/ship", "undo": {"path": "/back"}}
ONE_STEP = {"name": "one", "steps": [SHIP]}


class Line:
    """One instance: everything between the transports and the services."""

    def __init__(
        self, directory: Path, log: MemoryLog, service: Service, name: str, clock: Clock | None = None
    ) -> None:
        shipping = ServiceSettings(
            name="shipping", url=service.url, timeout_ms=2_000, breaker=BreakerSettings(failures=1000, reset_ms=100)
        )
        services = {"shipping": shipping}
        settings = EngineSettings(slow_retry_interval_ms=50, retry_jitter_ms=0)
        registry = Registry(None, {"shipping": "http"})
        self.log = log
        self.alive = True
        self.gateway = Gateway(services, {}, asyncio.get_running_loop())
        engine = Engine(settings, services, registry, Random(7))
        self.view = View(directory / f"{name}.sqlite3", partial(shown, engine))
        self.view.open()
        self.pipeline = Pipeline(
            log=log,
            engine=engine,
            gateway=self.gateway,
            view=self.view,
            metrics=Metrics("test", "0"),
            clock=(clock or Clock()).now,
            random=Random(7),
            instance=name,
            address="127.0.0.1:1",
            append_timeout_ms=400,
            probe=self._probe,
        )
        self.front = CoordinatorFront(self.pipeline, registry, name="test")
        self._task = asyncio.create_task(self.pipeline.run())

    async def _probe(self, address: str, instance: str) -> bool:
        return True  # whoever fenced us is alive

    async def ready(self) -> Line:
        async with asyncio.timeout(5):
            while not self.front.ready()[0]:
                self.pipeline.changed.clear()
                await self.pipeline.changed.wait()
        return self

    async def lost(self) -> None:
        async with asyncio.timeout(5):
            while self.front.ready()[0]:
                self.pipeline.changed.clear()
                await self.pipeline.changed.wait()

    def submit(self, id: str) -> Seen:
        seen = Seen()
        self.front.submit(Submission(id=id, definition=ONE_STEP, payload={}), seen, "events")
        return seen

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self.gateway.close()
        await self.view.close()


class Seen:
    """A watcher that keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._changed = asyncio.Event()

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        self._changed.set()

    @property
    def kinds(self) -> list[str]:
        return [event.kind for event in self.events]

    async def until(self, *kinds: str) -> Event:
        """The first event of one of these kinds."""
        async with asyncio.timeout(5):
            while True:
                for event in self.events:
                    if event.kind in kinds:
                        return event
                self._changed.clear()
                await self._changed.wait()


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    started = await Service().start()
    yield started
    await started.stop()


Start = Callable[..., Any]


@pytest.fixture
async def start(tmp_path: Path, service: Service) -> AsyncIterator[Start]:
    """Starts instances on one storage."""
    storage = MemoryStorage()
    lines: list[Line] = []

    async def start(name: str = "a", *, wait: bool = True, **rest: Any) -> Line:
        line = Line(tmp_path, MemoryLog(storage=storage), service, name, **rest)
        lines.append(line)
        return await line.ready() if wait else line

    yield start
    for line in lines:
        await line.close()


def choose(line: Line, fault: Fault, kind: type) -> None:
    """The next append that has a record of this kind meets the fault."""
    left = [fault]

    def chosen(partition: int, records: Any) -> Fault:
        hit = any(isinstance(decode(each, partition=0, offset=0), kind) for each in records)
        return left.pop() if hit and left else Fault.NONE

    line.log._choose = chosen


async def test_a_submission_that_was_not_confirmed_is_told_so_and_may_be_repeated(start: Start) -> None:
    """Refused by the log: `log_unavailable`, retryable, and no service was called; the repetition is a new command."""
    line = await start()
    choose(line, Fault.REFUSE, Submitted)
    event = await line.submit("c").until("error", "accepted")
    assert isinstance(event.error, LogUnavailable)
    assert event.error.retryable
    await line.ready()
    assert (await line.submit("c").until("final")).state == "completed"


async def test_a_submission_of_the_turn_in_which_the_partition_is_lost_is_answered(start: Start) -> None:
    """It was proposed, but not on its way to the log, when the partition closed: its client must not wait for ever."""
    line = await start()
    seen = line.submit("c")
    lane = line.pipeline.lanes[0]
    lane.refusal = LogUnavailable("lost")
    lane._close()
    assert isinstance((await seen.until("error")).error, LogUnavailable)


@pytest.mark.parametrize("fault", [Fault.LOSE_ACK, Fault.NO_OFFSET])
async def test_an_append_without_its_ack_is_found_in_the_log(start: Start, fault: Fault) -> None:
    """Nobody notices: the records are there, before any other epoch."""
    line = await start()
    for kind in (Submitted, Outcome, Finished):
        choose(line, fault, kind)
        assert (await line.submit(f"c-{kind.__name__}").until("final", "error")).kind == "final"


@pytest.mark.parametrize("kind", [Outcome, Finished])
async def test_who_watches_is_told_what_landed_while_the_log_was_away(start: Start, kind: type) -> None:
    """The append was not answered and landed later: its events come after the next replay, none twice, in order."""
    line = await start()
    choose(line, Fault.LATE, kind)
    seen = line.submit("c")
    await seen.until("accepted")
    waiting = asyncio.create_task(line.front.get("c", 5_000))
    await line.lost()
    line.log.land()
    final = await seen.until("final", "error")
    assert final.state == "completed"
    assert (await waiting).state == "completed"
    assert [each for each in seen.kinds if each != "state"] == ["accepted", "step", "final"]
    places = [int(event.position.partition(":")[2]) for event in seen.events if event.kind != "state"]
    assert places == sorted(places)


async def test_a_step_whose_outcome_was_lost_is_called_again_and_its_watcher_waits_on(
    start: Start, service: Service
) -> None:
    """The outcome never reached the log, so it never was: the same key is called again, under a newer fence."""
    line = await start()
    choose(line, Fault.LOSE_REQUEST, Outcome)
    final = await line.submit("c").until("final", "error")
    assert final.state == "completed"
    assert service.keys() == ["c/ship", "c/ship"]
    assert service.arrivals[0].fence < service.arrivals[1].fence


async def test_a_stalled_append_calls_nobody_and_is_told_in_time(start: Start, service: Service) -> None:
    """No answer from the log within `append_timeout`: the client is told, the service was not called."""
    line = await start()
    choose(line, Fault.STALL, Submitted)
    seen = line.submit("c")
    assert isinstance((await seen.until("error", "accepted")).error, LogUnavailable)
    assert service.arrivals == []
    line.log.release()
    await line.ready()


async def test_a_step_that_is_delayed_is_not_called_while_the_log_is_silent(start: Start, service: Service) -> None:
    """Who owns the partition is not known then, so a retry that needs no record is held back too; it goes on after."""
    service.down = True
    line = await start()
    line.submit("c")
    await service.until(lambda: len(service.arrivals) > 2)
    line.log.break_reads()
    choose(line, Fault.STALL, Submitted)
    stuck = line.submit("d")
    await stuck.until("error")
    while line.gateway.in_flight("shipping"):
        await service.until(lambda: service.concurrent == 0)
        await asyncio.sleep(0)
    calls = len(service.arrivals)
    with contextlib.suppress(TimeoutError):
        await service.until(lambda: len(service.arrivals) > calls, timeout=0.5)
    assert len(service.arrivals) == calls
    service.down = False
    line.log.release()
    line.log.mend_reads()
    await line.ready()
    async with asyncio.timeout(5):
        assert (await line.front.get("c", 5_000)).state == "completed"


async def test_an_instance_that_slept_calls_nobody_before_it_has_looked_at_the_log(
    start: Start, service: Service
) -> None:
    """Stopped for longer than a look at the log counts, while another took over: the sleeper's retries stay home."""
    service.down = True
    wall = [0]
    sleeper = await start("sleeper", clock=Clock(lambda: time.time_ns() + wall[0], time.monotonic_ns))
    seen = sleeper.submit("c")
    await service.until(lambda: len(service.arrivals) > 2)
    second = await start("second")
    # As after SIGSTOP and SIGCONT: much later, and the first thing that happens is that its timers fire.
    wall[0] += 60_000_000_000
    sleeper.pipeline._fire()
    await seen.until("error")
    assert isinstance(seen.events[-1].error, NoOwner)
    service.down = False
    assert (await second.front.get("c", 5_000)).state == "completed"
    old, new = sleeper.pipeline.lanes[0].epoch, second.pipeline.lanes[0].epoch
    epochs = [arrival.fence[0] for arrival in service.arrivals]
    first_new = epochs.index(new)
    assert old not in epochs[first_new:], "the sleeper called after the take-over"


async def test_a_clock_that_jumps_ahead_fires_what_is_due(start: Start, service: Service) -> None:
    """A deadline of an hour, and the wall clock jumps by two: it fires within a second or so, whatever else happens."""
    service.down = True
    wall = [0]
    line = await start(clock=Clock(lambda: time.time_ns() + wall[0], time.monotonic_ns))
    seen = Seen()
    line.front.submit(Submission(id="c", definition=ONE_STEP, payload={}, timeout="1h"), seen, "events")
    await seen.until("accepted")
    line.pipeline.engine.services["shipping"].force("open", 0)
    wall[0] += 7_200_000_000_000
    while (await seen.until("state")).state != "compensating":
        seen.events.clear()
    service.down = False
    line.pipeline.engine.set_breaker(line.pipeline.engine.services["shipping"], "closed", line.pipeline.now())
    line.pipeline.schedule()
    final = await seen.until("final")
    assert final.view is not None
    assert final.view.error is not None
    assert final.view.error.code == "deadline_exceeded"


async def test_a_control_in_the_lost_batch_is_answered(start: Start, service: Service) -> None:
    """An operator's request that was not confirmed is told `log_unavailable`; asked again, it counts."""
    service.down = True
    line = await start()
    line.submit("c")
    await service.until(lambda: len(service.arrivals) > 0)
    line.log.inject(Fault.REFUSE)
    with pytest.raises(LogUnavailable):
        await line.front.control("c", Operation.PAUSE, reason="", by="op")
    await line.ready()
    assert (await line.front.control("c", Operation.PAUSE, reason="", by="op")).state == "paused"


async def test_what_does_not_fit_into_a_record_is_refused_at_the_door(start: Start) -> None:
    """On a log with small records neither a command nor an operator's reason can stop the partition."""
    line = await start()
    line.log.record_bytes_max = 64 * 1024
    big = "x" * 20_000
    parts = Submission(id="c", definition=ONE_STEP, payload=big, attributes={"a": big, "b": big, "c": big})
    with pytest.raises((TooLarge, InvalidPayload)):
        line.front.submit(parts, None)
    line.submit("d")
    with contextlib.suppress(CoordinatorError):
        await line.front.control("d", Operation.PAUSE, reason="y" * 100_000, by="op")
    assert line.front.ready()[0]
    assert (await line.submit("e").until("final")).state == "completed"


async def test_a_view_that_is_damaged_while_it_runs_is_made_anew(start: Start, tmp_path: Path) -> None:
    """What is in it is in the log: the partition is replayed, and the finished commands are found again."""
    line = await start()
    for n in range(50):
        await line.submit(f"c-{n}").until("final")
    await line.view._flush()
    line.view._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    with (tmp_path / "a.sqlite3").open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (file.seek(0, 2) - 4096))
    found = None
    async with asyncio.timeout(10):
        while found is None:
            with contextlib.suppress(Unavailable):
                line.view._reader.execute("PRAGMA cache_size=0")
                found = await line.front.get("c-7")
            await asyncio.sleep(0.01)
    assert found.state == "completed"
    page = await line.front.list_commands(state=None, type=None, attributes={}, limit=100, cursor=None)
    assert len(page.commands) == 50
    with sqlite3.connect(tmp_path / "a.sqlite3") as database:
        assert database.execute("PRAGMA quick_check").fetchone() == ("ok",)
    database.close()


async def test_a_mistake_of_ours_costs_its_partition_and_no_more(start: Start, monkeypatch: Any) -> None:
    """An exception in the middle of acting steps down and starts over from the log; nothing is lost, nobody hangs."""
    line = await start()
    real = line.pipeline.engine.take
    left = [ValueError("a broken invariant")]

    def take(now: float) -> Any:
        output = real(now)
        if output.calls and left:
            raise left.pop()
        return output

    monkeypatch.setattr(line.pipeline.engine, "take", take)
    assert (await line.submit("c").until("final", "error")).state == "completed"


async def test_a_standby_finds_its_late_epoch_in_a_trimmed_log(start: Start) -> None:
    """The owner has deleted what the standby read last: it looks for the Epoch from where the log begins now."""
    line = await start()
    storage = line.log.storage
    ours = Epoch(SCHEMA, b"t" * 16, 0, line.pipeline.instance, "")
    offset = storage.append(0, [encode(ours)])
    storage.trim(0, offset)
    assert await line.pipeline.lanes[0]._newest_epoch(0) == (offset + 1, ours)
