"""The log, read from the brokers while the daemons write it, and folded here.

Which records count is decided by the project's own rule (`ownership.validity`): it is what makes a log one history, so
there is no second opinion on it to be had.  What they say is folded here by itself, and, when a round is over, once
more by the engine that the daemons run: the two must agree (`disagreements`).
"""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any

from msgspec import Struct

from coordinator.engine.engine import Engine
from coordinator.engine.registry import Registry
from coordinator.log.base import LogError
from coordinator.log.kafka import KafkaLog
from coordinator.model.records import Control, Epoch, Finished, Outcome, Record, Submitted, unraw
from coordinator.model.settings import BreakerSettings, EngineSettings, ServiceSettings
from coordinator.ownership.validity import Validity
from coordinator.wire.codec import decode
from tests.chaos.chaos_app import app
from tests.chaos.checker import Ending, Story
from tests.chaos.services import NAMES


class Reign(Struct, frozen=True):
    """One Epoch: from its offset on the instance owns the partition.  ``at`` is its writer's clock, ms since 1970."""

    epoch: int
    instance: str
    at: int


class Book:
    """What the topic says, as far as `catch_up` has read it."""

    def __init__(self, bootstrap: str, topic: str, partitions: int) -> None:
        self.partitions = partitions
        self.stories: dict[str, Story] = {}
        self.reigns: dict[int, list[Reign]] = {partition: [] for partition in range(partitions)}
        self.void = 0  # records of former owners that came too late
        self._log = KafkaLog(bootstrap, topic, partitions)
        self._at = dict.fromkeys(range(partitions), 0)
        self._validity = {partition: Validity() for partition in range(partitions)}
        self._valid: dict[int, list[tuple[int, Record]]] = {partition: [] for partition in range(partitions)}
        self._reading = asyncio.Lock()

    async def catch_up(self) -> None:
        """Reads to the present end.  A broker that is away is waited for; the caller bounds it."""
        async with self._reading:
            for partition in range(self.partitions):
                while True:
                    try:
                        async for batch in self._log.read(partition, self._at[partition]):
                            for offset, data in batch:
                                self._take(partition, offset, decode(data, partition=partition, offset=offset))
                        break
                    except LogError:
                        await asyncio.sleep(0.2)

    def _take(self, partition: int, offset: int, record: Record) -> None:
        self._at[partition] = offset + 1
        if not self._validity[partition].admit(offset, record):
            self.void += 1
            return
        self._valid[partition].append((offset, record))
        match record:
            case Epoch():
                self.reigns[partition].append(Reign(offset, record.instance, record.at))
            case Submitted():
                story = self.stories.setdefault(record.id, Story(record.id, partition, offset, record.type))
                story.fingerprints.add(record.fingerprint)
            case Outcome():
                self.stories[record.id].outcomes.add(record.step)
            case Control(operation="cancel"):
                self.stories[record.id].cancelled = True
            case Finished(state="completed") if self.stories[record.id].cancelled:
                pass  # it crossed a cancel, which came first and stands
            case Finished():
                result: Any = unraw(record.result)
                failure = record.failure.code if record.failure else ""
                self.stories[record.id].ends.append(Ending(offset, record.state, result, failure))
            case _:
                pass  # nothing that the checker judges by

    def uncompleted(self) -> set[str]:
        return {id for id, story in self.stories.items() if not story.ends}

    def disagreements(self) -> list[str]:
        """Commands whose end the project's engine folds otherwise."""
        services = {name: ServiceSettings(name=name, breaker=BreakerSettings()) for name in NAMES}
        engine = Engine(EngineSettings(), services, Registry(app, dict.fromkeys(NAMES, "http")), Random(0))
        for partition, records in self._valid.items():
            for offset, record in records:
                if not isinstance(record, Epoch):
                    engine.apply(partition, offset, record)
        ends = {command.id: command.finished.state for command in engine.take_replayed() if command.finished}
        ours = {id: story.ends[0].state for id, story in self.stories.items() if story.ends}
        return [f"{id}: the engine folds it to {ends.get(id)}" for id in ours if ours[id] != ends.get(id)]  # type: ignore[call-overload]

    async def close(self) -> None:
        await self._log.close()
