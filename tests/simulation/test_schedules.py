"""Schedules in played worlds: owners die, hang and are fenced, and no run is doubled, lost, or beside another."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from coordinator.engine.schedules import Schedules, Series, Step
from coordinator.errors import CoordinatorError
from coordinator.lane import Lane
from coordinator.model.ids import partition_of
from coordinator.model.records import CommandRecord, Finished, Schedule, Submitted
from coordinator.model.schedule import run_id
from coordinator.testing.simulator.judge import Judge
from coordinator.testing.simulator.plan import plan
from coordinator.testing.simulator.process import Gone, Process
from coordinator.testing.simulator.world import Report, World, play
from coordinator.transport.base import Front

SEEDS = 60
NAME = "tick"


class ScheduleJudge(Judge):
    """Knows what a schedule promises."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.schedule: list[tuple[int, Schedule]] = []  # the records that count
        self.going: list[str] = []
        self.runs: list[str] = []

    def landed(self, partition: int, base: int, records: Sequence[bytes]) -> None:
        before = len(self.log[partition])
        super().landed(partition, base, records)
        for offset, (record, valid) in enumerate(self.log[partition][before:], base):
            if valid and isinstance(record, Schedule):
                self._world.note("schedule", record.action, record.due, record.reason)
                self._recorded(offset, record)

    def _recorded(self, offset: int, record: Schedule) -> None:
        again = [each for _, each in self.schedule if (each.action, each.due) == (record.action, record.due)]
        self.hold(record.action != "fired" or not again, f"{record.command} was fired twice")
        if record.action == "fired":
            self.hold(record.command in self.runs, f"{record.command} was fired, and was never submitted")
        self.schedule.append((offset, record))

    def _count(self, partition: int, offset: int, record: CommandRecord) -> None:
        super()._count(partition, offset, record)
        if not record.id.startswith(f"{NAME}@"):
            return
        if isinstance(record, Submitted):
            self.hold(not self.going, f"{record.id} begins while {self.going} still goes on")
            announced = [
                each for _, each in self.schedule if each.action == "starting" and run_id(NAME, each.due) == record.id
            ]
            self.hold(bool(announced), f"{record.id} was submitted before there was a record of that")
            self.runs.append(record.id)
            self.going.append(record.id)
        elif isinstance(record, Finished) and record.id in self.going and self.folds[record.id].finished is not None:
            self.going.remove(record.id)

    def acquired(self, process: Process, lane: Lane) -> None:
        """A new owner has what the records below its Epoch make, from a snapshot or not."""
        super().acquired(process, lane)
        if lane.partition != partition_of(NAME, self._world.plan.partitions):
            return
        folded = Schedules()
        for offset, record in self.schedule:
            if offset < lane.epoch:
                folded.apply(lane.partition, offset, record)
        same = list(folded.pieces(lane.partition)) == list(process.engine.schedules.pieces(lane.partition))
        self.hold(same, f"{process.name} acquired partition {lane.partition} with another schedule than the log has")


class ScheduledWorld(World):
    """A world with one schedule, which ends before the trouble does."""

    def __init__(self, seed: int, directory: Path) -> None:
        super().__init__(plan(seed), directory)
        self.judge: ScheduleJudge = ScheduleJudge(self)
        overlap = ("skip", "queue", "replace")[seed % 3]
        self.content: dict[str, Any] = {
            "every": "1s",
            "overlap": overlap,
            "command": {
                "definition": {
                    "name": "run",
                    "steps": [
                        {"name": "work", "service": self.plan.services[0], "path": "/ok", "undo": {"path": "/undo"}},
                        {"name": "more", "service": self.plan.services[-1], "path": "/ok"},
                    ],
                },
            },
        }
        self.put = False
        self.deleted = False

    async def _run(self) -> None:
        keeper = self._spawn(self._keep())
        await super()._run()
        keeper.cancel()

    async def _keep(self) -> None:
        """Puts the schedule, pauses and resumes it now and then, and deletes it in the end: at any instance."""
        await self._ask("put", lambda front: front.put_schedule(NAME, self.content, "keeper"))
        self.put = True
        while self.trouble:
            await asyncio.sleep(self.random.uniform(0.5, 4))
            for action in ("pause", "resume") if self.random.random() < 0.3 else ():
                await self._ask(action, partial(_control, action=action))
        await self._until(self.loop.time() + 20, self._settled)
        await self._ask("delete", partial(_control, action="delete"))
        self.deleted = True

    async def _ask(self, what: str, request: Any) -> None:
        """Until it is granted, or what was asked before was done."""
        while True:
            process = self.any_process()
            try:
                if process is not None:
                    await process.ask(request, 3)
                    return
            except Gone:
                pass
            except CoordinatorError as error:
                if error.code == "unknown_schedule" and what == "delete":
                    return
                self.judge.hold(error.retryable, f"{what} was refused for good: {error!r}")
            await asyncio.sleep(0.2)

    def _settled(self) -> bool:
        """Whether nothing waits for its turn: with the queue's grid going on, the moment is caught."""
        return not self.judge.going and not any(
            process.engine.schedules.get(lane.partition, NAME).queued  # type: ignore[union-attr]
            for process in self.living()
            for lane in process.pipeline.lanes
            if lane.acting and process.engine.schedules.get(lane.partition, NAME) is not None
        )

    def _still(self) -> bool:
        return self.deleted and super()._still()


async def _control(front: Front, *, action: Any) -> Any:
    return await front.control_schedule(NAME, action, by="keeper", reason="")


def played(seed: int) -> tuple[ScheduledWorld, Report]:
    """One world, and what became of it."""
    worlds: list[ScheduledWorld] = []

    def make(directory: Path) -> World:
        worlds.append(ScheduledWorld(seed, directory))
        return worlds[0]

    report = play(make)
    return worlds[0], report


def test_no_run_is_doubled_lost_or_beside_another() -> None:
    """Every run was announced, is one command, begins when the last one has ended, and is recorded as fired."""
    actions: Counter[str] = Counter()
    for seed in range(SEEDS):
        world, report = played(seed)
        assert not report.violations, f"seed {seed}: {report.violations}"
        actions += Counter(record.action for _, record in world.judge.schedule)
    assert all(actions[each] > SEEDS / 4 for each in ("starting", "fired", "queued", "skipped", "pause", "put")), (
        actions
    )


def test_an_owner_that_does_not_ask_what_goes_on_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes the last run of its predecessor to have ended: two runs go on side by side."""
    step = Series.step

    def guess(series: Series, now: int, since: int, going: bool | None, *, refused: bool = False) -> Step:
        return step(series, now, since, False if going is None else going, refused=refused)

    monkeypatch.setattr(Series, "step", guess)
    found = [violation for seed in range(12) for violation in played(seed)[1].violations]
    assert any("still goes on" in violation for violation in found), found
