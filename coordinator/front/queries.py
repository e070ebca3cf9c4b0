"""Everything that only looks: commands, their records and events, outcomes, services, the instance itself.

Lists of many commands are in `lists`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Iterable
from typing import Any

from coordinator import outcomes
from coordinator.engine import diagram, views
from coordinator.engine.explain import explain
from coordinator.engine.kinds import beginning, flat
from coordinator.errors import InvalidPayload, LogUnavailable
from coordinator.front.base import nothing
from coordinator.front.lists import Lists
from coordinator.front.watching import Join, Later, Waiter
from coordinator.lane import Lane
from coordinator.log.base import LogError
from coordinator.model.command import FINAL, CommandView, State
from coordinator.model.ids import parse_position, partition_of, position
from coordinator.model.moments import timestamp
from coordinator.transport.base import Event, Gathered, OutcomeItem, Unwatch, Watcher

# kinds of record that are no event of their own
_NOT_TOLD = ("Finished", "Control", "Timer", "Signal", "Damaged", "Reopened")


class Queries(Lists):
    """The part of the Front that changes nothing."""

    # ------------------------------------------------------------ one command

    async def get(self, id: str, wait_ms: int = 0) -> CommandView:
        await self.surely(id)
        view = self.view_of(id)
        if wait_ms <= 0 or view.state in FINAL:
            return view
        waiter = Waiter()
        unwatch = self.pipeline.watchers.add(id, waiter, "final")
        try:
            async with asyncio.timeout(wait_ms / 1000):
                return await waiter.final
        except TimeoutError:
            return self.view_of(id)
        finally:
            unwatch()

    def watch(self, id: str, watcher: Watcher, after: str | None = None) -> Unwatch:
        if not self.known(id):
            return Later(id, watcher, lambda: self.surely(id), lambda: self._watch_late(id, watcher, after))
        seen = self._offset(id, after)
        return Join(self.pipeline.loop, id, watcher, lambda: self._watch(id, watcher, seen))

    def _watch_late(self, id: str, watcher: Watcher, after: str | None) -> Unwatch:
        self.view_of(id)  # that nobody knows the command comes before what is wrong with the rest
        return self._watch(id, watcher, self._offset(id, after))

    def _offset(self, id: str, after: str | None) -> int:
        """The offset of a place in the command's own partition, None: before all; raises InvalidPayload."""
        if after is None:
            return -1
        partition, offset = parse_position(after, "$.after")
        if partition != partition_of(id, len(self.pipeline.lanes)):
            raise InvalidPayload.at("$.after", f"{after} is not a place of this command")
        return offset

    def _watch(self, id: str, watcher: Watcher, seen: int) -> Unwatch:
        view = self.view_of(id)
        for event in self._past(id, view, seen):
            watcher(event)
        if view.state in FINAL:
            return nothing
        self.pipeline.watchers.shown.setdefault(id, view.state.value)
        return self.pipeline.watchers.add(id, watcher, "events")

    def _past(self, id: str, view: CommandView, seen: int) -> list[Event]:
        """The durable events after the offset ``seen``; the end comes always, so that nobody waits for it in vain."""
        events = []
        partition, records = self.records_of(id)
        for offset, record in flat(partition, records):
            kind = type(record).__name__
            if offset <= seen or kind in _NOT_TOLD:
                continue
            place = position(partition, offset)
            if kind == "Submitted":
                events.append(Event("accepted", id, place, State.RUNNING.value))  # as it was told when it happened
            else:
                entry = views.history_entry(partition, offset, record)
                events.append(Event("step", id, place, view.state.value, record=entry))
        if view.state in FINAL:
            events.append(Event("final", id, position(partition, records[-1][0]), view.state.value, view=view))
        return events

    async def history(self, id: str) -> list[dict[str, Any]]:
        await self.surely(id)
        partition, records = self.records_of(id)
        return [views.history_entry(partition, offset, record) for offset, record in flat(partition, records)]

    async def explain(self, id: str) -> dict[str, Any]:
        await self.surely(id)
        command = self.live(id)
        if command is None:
            view = self.view_of(id)
            return {
                "id": id,
                "state": view.state.value,
                "since": view.finished_at,
                "waits": [],
                "summary": f"{view.state.value}: it has ended and waits for nothing",
                "owner": self._owner(view.partition),
            }
        owner = self._owner(command.partition)
        slots = (len(self.engine.slots), self.engine.settings.max_commands)
        return explain(command, self.pipeline.now(), owner=owner, slots=slots)

    def _owner(self, partition: int) -> dict[str, Any]:
        epoch = self.pipeline.lanes[partition].epoch
        return {"instance": self.pipeline.instance, "address": self.pipeline.address, "epoch": epoch}

    async def diagram(self, id: str) -> str:
        await self.surely(id)
        command = self.live(id)
        if command is None:
            partition, records = self.records_of(id)
            submitted = beginning(partition, records[0][1])
        else:
            submitted = command.submitted
        view = self.view_of(id)
        drawn = self.registry.diagram_of(submitted)
        return diagram.of_command(view, self.registry.definition_of(submitted)) if drawn is None else drawn(view.steps)

    # ------------------------------------------------------------ records, the log

    async def quarantine(self) -> list[dict[str, Any]]:
        """See Front; of the partitions that this instance acts for, or has stopped."""
        stopped = [lane for lane in self.pipeline.lanes if lane.stopped is not None]
        acts = self.acting_lanes() if not stopped else [lane for lane in self.pipeline.lanes if lane.acting]
        items = [views.stopped(lane.partition, str(lane.stopped), lane.stopped.damaged) for lane in stopped]  # type: ignore[union-attr]
        items += [
            views.quarantined(lane.partition, entry)
            for lane in acts
            if lane.partition in self.engine.quarantined
            for entry in self.engine.quarantined[lane.partition].entries
        ]
        known = {lane.partition for lane in [*acts, *stopped]}
        return Gathered(items, tuple(each for each in self.incomplete() if each not in known))

    async def log_state(self) -> list[dict[str, Any]]:
        """See Front; of the partitions that this instance acts for, LogUnavailable where none can be told of."""
        lanes = self.acting_lanes()
        told = await asyncio.gather(*(self._log_state(lane) for lane in lanes), return_exceptions=True)
        rows, faults = [], []
        for each in told:
            if isinstance(each, LogError):
                faults.append(each)
            elif isinstance(each, BaseException):
                raise each
            else:
                rows.append(each)
        if not rows:
            raise LogUnavailable(f"the log does not answer: {faults[0]}", retry_after_ms=1000)
        return Gathered(rows, without(rows, len(self.pipeline.lanes)))

    async def _log_state(self, lane: Lane) -> dict[str, Any]:
        within_s = self.pipeline.append_timeout_ms / 1000
        try:
            async with asyncio.timeout(within_s):
                told = await lane.snapshots.explain()
        except TimeoutError:
            raise LogError(f"it did not tell its bounds within {within_s:g} s") from None
        owner = {"owner": self.pipeline.instance, "address": self.pipeline.address}
        return {"partition": lane.partition, **owner, **told}

    # ------------------------------------------------------------ services, instance, definitions

    def outcomes(
        self, service: str, start: str | None, follow: bool, partitions: Collection[int] | None = None
    ) -> AsyncIterator[list[OutcomeItem]]:
        begin = outcomes.Start(start, len(self.pipeline.lanes))
        if service not in self.engine.services:
            raise self.unknown_service(service)
        self.lanes_at(partitions)
        return outcomes.stream(self.pipeline, service, begin, follow, self._type_of, partitions)

    def _type_of(self, id: str) -> str:
        command = self.live_here(id)
        if command is not None:
            return command.submitted.type
        finished = self.view.get(id)
        return finished.type if finished else ""

    async def services(self) -> list[dict[str, Any]]:
        now = self.pipeline.now()
        return [service.inspect(now) for service in self.engine.services.values()]

    async def cluster(self) -> dict[str, Any]:
        """See Front; an instance alone is all that there is, in a group it is what the others gather from."""
        commands = {
            "under_way": self.engine.under_way,
            "slots": len(self.engine.slots),
            "max": self.engine.settings.max_commands,
        }
        this = {
            "instance": self.pipeline.instance,
            "address": self.pipeline.address,
            "state": "leaving" if self.stopping else "up",
            "partitions": [lane.partition for lane in self.pipeline.lanes if lane.acting],
            "commands": commands["under_way"],
        }
        return {
            "name": self.name,
            "instance": self.pipeline.instance,
            "address": self.pipeline.address,
            "instances": [this],
            "partitions": [self._place(lane) for lane in self.pipeline.lanes],
            "commands": commands,
        }

    def _place(self, lane: Lane) -> dict[str, Any]:
        """``end``: the next offset, ``lag``: records that whoever takes over has to read (behind the last Snapshot),
        ``since``: when it was acquired, ``filled``: whether a list has all that ended in it."""
        snapshot = lane.snapshots.latest
        here = (self.pipeline.instance, self.pipeline.address)
        owner, address = here if lane.acting else lane.owner or (None, None)
        return {
            "partition": lane.partition,
            "state": "acting" if lane.acting else lane.refusal.code,
            "owner": owner,
            "address": address,
            "epoch": lane.epoch,
            "end": lane.end,
            "lag": max(0, lane.end - (lane.snapshots.first if snapshot is None else snapshot.covered)),
            "since": timestamp(lane.acquired_at) if lane.acquired_at else None,
            "filled": lane.acting and self.view.filled(lane.partition),
        }

    async def definition(self, name: str, version: int | None) -> dict[str, Any]:
        return self.registry.content(name, version)

    async def definitions(self) -> list[dict[str, Any]]:
        return self.registry.listing()

    async def definition_diagram(self, name: str, version: int) -> str:
        return diagram.of_definition(self.registry.definition(name, version))

    def ready(self) -> tuple[bool, dict[str, Any]]:
        waiting = [lane for lane in self.pipeline.lanes if not lane.acting]
        if self.stopping:
            return False, {"ready": False, "code": "stopping", "why": "this instance is stopping"}
        details: dict[str, Any] = {"ready": not waiting}
        if waiting:
            details |= {"code": waiting[0].refusal.code, "why": waiting[0].refusal.detail}
        details["partitions"] = {str(lane.partition): lane.refusal.detail for lane in waiting}
        return not waiting, details


def without(rows: Iterable[dict[str, Any]], partitions: int) -> tuple[int, ...]:
    """The partitions of which no row tells."""
    told = {row["partition"] for row in rows}
    return tuple(each for each in range(partitions) if each not in told)
