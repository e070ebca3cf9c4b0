"""What every part of the Front stands on: where a command is, and how its present state is shown.

Commands under way are in the engine, finished ones in the view; both only speak for a partition while this instance
owns it.  `Base` knows where to look, and refuses where nobody here may answer.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from coordinator.engine import views
from coordinator.engine.registry import Registry
from coordinator.engine.state import Command
from coordinator.errors import (
    CoordinatorError,
    InvalidPayload,
    NoOwner,
    Stopping,
    TooLarge,
    UnknownCommand,
    UnknownService,
)
from coordinator.lane import Lane
from coordinator.model.command import CommandView
from coordinator.model.durations import parse_duration
from coordinator.model.ids import CommandId, partition_of
from coordinator.pipeline import Pipeline
from coordinator.wire.codec import read


class Base:
    """``payload_bytes_max`` bounds any JSON that a client hands in; ``name`` is the group's."""

    def __init__(self, pipeline: Pipeline, registry: Registry, *, name: str, payload_bytes_max: int = 1 << 20) -> None:
        self.pipeline = pipeline
        self.engine = pipeline.engine
        self.view = pipeline.view
        self.registry = registry
        self.name = name
        self.stopping = False
        self.payload_bytes_max = payload_bytes_max

    @property
    def dedupe_horizon_ms(self) -> int:
        """See Front: what the setting and the bound on receipts leave."""
        return round(self.pipeline.metrics.effective_horizon_s * 1000)

    # ------------------------------------------------------------ may this instance answer?

    def lane_of(self, id: str) -> Lane:
        """The lane of a command; raises its refusal while it does not act (starting, no owner, log unavailable)."""
        return acting(self.pipeline.lanes[partition_of(id, len(self.pipeline.lanes))])

    def lanes_at(self, partitions: Collection[int] | None) -> list[Lane]:
        """The lanes of these partitions (None: of all); raises the refusal of any that does not act."""
        return [acting(self.pipeline.lanes[each]) for each in self.partitions(partitions)]

    def partitions(self, wanted: Collection[int] | None) -> list[int]:
        """These partitions, or all, in order; raises InvalidPayload for one that there is not."""
        known = range(len(self.pipeline.lanes))
        if wanted is None:
            return list(known)
        if not wanted or any(each not in known for each in wanted):
            raise InvalidPayload.at("$.partitions", f"some of 0 to {len(known) - 1}")
        return sorted(set(wanted))

    def acting_lanes(self) -> list[Lane]:
        """For what speaks of all commands: the lanes that act; raises a refusal where none does."""
        lanes = [lane for lane in self.pipeline.lanes if lane.acting]
        if not lanes:
            raise refusal_of(self.pipeline.lanes[0])
        return lanes

    def incomplete(self) -> tuple[int, ...]:
        """The partitions that a list of this instance says nothing of, or not all: the view is still being filled, or
        some commands have not been decided on yet, and show another state than they will."""
        filled, undecided = self.view.filled, self.undecided()
        return tuple(
            lane.partition
            for lane in self.pipeline.lanes
            if not (lane.acting and filled(lane.partition)) or lane.partition in undecided
        )

    def undecided(self) -> set[int]:
        """The partitions whose new owner has not decided on all commands that it has found."""
        return {partition for partition, _ in self.engine.backlog}

    def check_running(self) -> None:
        """For what is new work."""
        if self.stopping:
            raise stopping()

    # ------------------------------------------------------------ where is it, and how does it look?

    def live(self, id: str) -> Command | None:
        """The command, if it is under way, to look at (it may sleep); raises as `lane_of`."""
        return self.engine.look_at(self.lane_of(id).partition, CommandId(id))

    def live_here(self, id: str) -> Command | None:
        """As `live`, of a command that a list has found here; None where its partition is another's by now."""
        return self.engine.look_at(partition_of(id, len(self.pipeline.lanes)), CommandId(id))

    def awake(self, id: str) -> Command | None:
        """The command, if it is under way, for who asks something of it; raises as `lane_of`."""
        self.lane_of(id)
        command = self.engine.find(CommandId(id))
        if command is not None and command.execution is None:
            self.engine.retraced(command)  # one of a hundred thousand, which a new owner sees to one after the other
        return command

    def live_view(self, command: Command) -> CommandView:
        return views.command_view(command, self.registry.planned(command.submitted))

    def view_of(self, id: str) -> CommandView:
        """The command as it is, under way or finished; raises UnknownCommand, and as `lane_of`."""
        command = self.live(id)
        if command is not None:
            return self.live_view(command)
        finished = self.view.get(id)
        if finished is None:
            raise UnknownCommand(f"no command has the id {id!r}")
        return finished

    def records_of(self, id: str) -> tuple[int, list[tuple[int, Any]]]:
        """The command's partition and its records so far, under way or finished; raises as `view_of`."""
        command = self.live(id)
        if command is not None:
            return command.partition, list(command.history)
        found = self.view.records(id)
        if found is None:
            raise UnknownCommand(f"no command has the id {id!r}")
        partition, records = found
        return partition, [(offset, read(data, partition=partition, offset=offset)) for offset, data in records]

    def known(self, id: str) -> bool:
        """Whether something is to be found here of the command; raises as `lane_of`."""
        self.lane_of(id)
        return self.engine.has(CommandId(id)) or self.view.fingerprint(id) is not None

    async def surely(self, id: str) -> None:
        """Returns when what is here of a command is what there is, be it nothing; raises as `lane_of`.

        A partition's owner alone may say that nobody knows an id (`Lane.proven`), and a new one may have to look for it
        in the log (`Lane.fetch`).
        """
        if self.known(id):
            return
        lane = self.lane_of(id)
        await lane.fetch(CommandId(id))
        if not self.known(id):
            await lane.proven()

    # ------------------------------------------------------------ checks

    def check_size(self, what: str, size: int) -> None:
        limit = min(self.payload_bytes_max, self.pipeline.log.record_bytes_max // 2 - 4096)
        if size > limit:
            fault = f"{size} bytes, at most {limit} are allowed"
            raise TooLarge(f"the {what} has {fault}", faults=[{"path": f"$.{what}", "fault": fault}])

    def unknown_service(self, name: str) -> UnknownService:
        known = ", ".join(sorted(self.engine.services)) or "none"
        return UnknownService(f"no service {name!r}; configured: {known}")


def stopping() -> Stopping:
    """What new work is told by an instance that drains."""
    return Stopping("this instance is stopping: go elsewhere, or ask again soon", retry_after_ms=100)


def acting(lane: Lane) -> Lane:
    """The lane, if it acts; raises its refusal otherwise."""
    if not lane.acting:
        raise refusal_of(lane)
    return lane


def refusal_of(lane: Lane) -> CoordinatorError:
    """Why a lane does not act, fit to be raised; names who owns the partition, where that is known."""
    error = lane.refusal
    if isinstance(error, NoOwner) and lane.owner is not None:
        error.extra.update(owner=lane.owner[0], address=lane.owner[1])
    return error.with_traceback(None)  # it is raised again and again: its traceback would grow with each


def duration(text: str | None, path: str) -> int | None:
    """Milliseconds of a duration that a client wrote at ``path``; raises InvalidPayload."""
    if text is None:
        return None
    try:
        return parse_duration(text)
    except ValueError as error:
        raise InvalidPayload.at(path, str(error)) from None


def nothing(*_: Any) -> None:
    """An Unwatch where there is nothing to leave."""
