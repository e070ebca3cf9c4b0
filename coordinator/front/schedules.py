"""What clients ask of schedules: to put them, to look at them, to pause, resume and delete them.

A schedule is checked as a whole when it is put, its command included, as if that were submitted now: what could never
run is refused while somebody is there to mend it.  When it runs is not decided here (`coordinator.scheduling`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec
from msgspec import Raw

from coordinator.engine.registry import content_fingerprint
from coordinator.engine.schedules import Series
from coordinator.errors import InvalidPayload, UnknownSchedule, UnknownType
from coordinator.front.intake import Faults, Intake
from coordinator.front.operations import Operations
from coordinator.model.ids import CommandId, partition_of
from coordinator.model.moments import timestamp
from coordinator.model.reading.schedule import check
from coordinator.model.records import SCHEMA, Schedule, raw
from coordinator.model.schedule import Spec, moment
from coordinator.transport.base import Gathered

if TYPE_CHECKING:
    from coordinator.scheduling import Scheduling

_IN_EFFECT: Final = {"pause": True, "resume": False}


class Schedules(Intake, Operations):
    """The part of the Front that speaks of schedules; ``scheduling`` is what fires them, where anything does."""

    scheduling: Scheduling | None = None

    async def put_schedule(self, name: str, content: dict[str, Any], by: str) -> dict[str, Any]:
        """See Front.  The same content again changes nothing: it begins no new grid."""
        spec, faults = check(name, content)
        faults += [each for each in self._faults_of_command(spec, name) if each[0] not in dict(faults)]
        if spec is None or faults:
            raise InvalidPayload.all(faults)
        now = self.pipeline.now()
        if spec.after(now, now) is None:
            raise InvalidPayload.at("$.start" if spec.end is None else "$.end", "no due time is left")
        lane = self.lane_of(name)
        self.check_running()
        try:
            encoded = raw(content)
        except (OverflowError, TypeError, ValueError, RecursionError, msgspec.MsgspecError) as error:
            raise InvalidPayload.at("$", f"cannot be recorded: {error}") from error
        self.check_size("schedule", len(bytes(encoded)))
        self.check_size("by", len(by))
        known = self.engine.schedules.get(lane.partition, name)
        if known is None or content_fingerprint(known.content) != content_fingerprint(content):
            await self._record_schedule(lane.partition, name, "put", by, content=encoded)
        return await self.schedule(name)

    async def schedule(self, name: str) -> dict[str, Any]:
        """See Front."""
        return (await self._views([await self._series(name)]))[0]

    async def schedules(self) -> list[dict[str, Any]]:
        """See Front."""
        lanes = self.acting_lanes()
        found = [series for lane in lanes for series in self.engine.schedules.of(lane.partition)]
        missing = tuple(lane.partition for lane in self.pipeline.lanes if not lane.acting)
        return Gathered(await self._views(sorted(found, key=lambda series: series.name)), missing)

    async def control_schedule(
        self, name: str, action: Literal["pause", "resume", "delete"], *, by: str, reason: str
    ) -> dict[str, Any]:
        """See Front; what was deleted is shown once more, as ``deleted``."""
        series = await self._series(name)
        for what, text in (("reason", reason), ("by", by)):
            self.check_size(what, len(text))
        if action == "delete":
            gone = (await self._views([series]))[0]
            await self._record_schedule(self._partition(name), name, action, by, reason=reason)
            return {**gone, "state": "deleted", "next": None, "waiting": None, "by": by, "reason": reason}
        if series.paused is not _IN_EFFECT[action]:
            await self._record_schedule(self._partition(name), name, action, by, reason=reason)
        return await self.schedule(name)

    # ------------------------------------------------------------ inside

    def _partition(self, name: str) -> int:
        return partition_of(name, len(self.pipeline.lanes))

    async def _series(self, name: str) -> Series:
        """The schedule; raises UnknownSchedule once the log has said that this instance may speak for the partition."""
        lane = self.lane_of(name)
        series = self.engine.schedules.get(lane.partition, name)
        if series is None:
            await lane.proven()
            raise UnknownSchedule(f"no schedule has the name {name[:200]!r}")
        return series

    def _faults_of_command(self, spec: Spec | None, name: str) -> Faults:
        """What a submission of its command would be refused for now, as far as that can be read."""
        if spec is None or ("type" in spec.command) == ("definition" in spec.command):
            return []
        try:
            self._record(spec.submission(name, self.pipeline.now()), CommandId(name))
        except (InvalidPayload, UnknownType) as error:
            return [(fault["path"].replace("$", "$.command", 1), fault["fault"]) for fault in error.extra["faults"]]
        return []

    async def _record_schedule(
        self, partition: int, name: str, action: str, by: str, *, content: Raw | None = None, reason: str = ""
    ) -> None:
        record = Schedule(SCHEMA, b"", self.pipeline.now(), name, action, by=by, reason=reason)
        if content is not None:
            record = msgspec.structs.replace(record, content=content)
        self.engine.register(record, partition)
        self.pipeline.pump()
        await self._settled(partition)

    async def _views(self, found: Iterable[Series]) -> list[dict[str, Any]]:
        now = self.pipeline.now()
        views = [self._view(series, now) for series in found]
        runs = [view["last"] for view in views if view["last"] is not None]
        if self.scheduling is not None:
            states = await self.scheduling.states([run["command"] for run in runs])
            for run, state in zip(runs, states, strict=True):
                if state is not None:
                    run["state"] = state
        return views

    def _view(self, series: Series, now: int) -> dict[str, Any]:
        asked, last, skipped = series.asked, series.last, series.skipped
        due = series.next(now)
        return {
            "name": series.name,
            "spec": series.content,
            "state": "paused" if series.paused else "active",
            "next": None if due is None else timestamp(due),
            "last": None if last is None else {"due": timestamp(last.due), "command": last.command},
            "waiting": self._waiting(series),
            "skipped": None
            if skipped is None
            else {"due": timestamp(skipped.due), "reason": skipped.reason, "at": timestamp(skipped.at)},
            "by": asked.by,
            "reason": asked.reason,
        }

    def _waiting(self, series: Series) -> str | None:
        """Why a run that is due has not begun; None where none is."""
        if series.broken:
            return f"it cannot run here: {series.broken}"
        queued = series.queued
        if not queued:
            return None
        why = self.scheduling.why(series) if self.scheduling is not None else "nothing fires schedules here"
        more = f"; {len(queued) - 1} more wait behind it" if len(queued) > 1 else ""
        return f"the run due at {moment(queued[0])}: {'the schedule is paused' if series.paused else why}{more}"
