"""What operators ask: controls of a command, breakers by hand, definitions registered."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal

import msgspec
from msgspec import Raw

from coordinator.engine import requests
from coordinator.engine.state import Command
from coordinator.engine.transitions import legal_states
from coordinator.errors import IllegalState, LogUnavailable, Unavailable
from coordinator.front.base import Base
from coordinator.model.command import CommandView, Operation
from coordinator.model.records import SCHEMA, Control, Registered


class Operations(Base):
    """The part of the Front that interferes.  Controls and registrations answer once their record is durable."""

    async def control(
        self,
        id: str,
        operation: Operation,
        *,
        reason: str,
        by: str,
        step: str = "",
        input: Any = None,
        replace_input: bool = False,
    ) -> CommandView:
        await self.surely(id)
        command = self.awake(id)
        if command is None:
            raise self._refused(id, operation)
        replaced = Raw(msgspec.msgpack.encode(input)) if replace_input else None
        for what, size in (
            ("input", 0 if replaced is None else len(bytes(replaced))),
            ("reason", len(reason)),
            ("by", len(by)),
        ):
            self.check_size(what, size)
        now, earlier = self.pipeline.now(), _controls(command)
        asked = requests.control(command, operation, now, reason=reason, by=by, step=step, input=replaced)
        if asked is not None:
            self.engine.ask(command, asked)
            self.pipeline.pump()
            await self._settled(command.partition)
            if operation is Operation.ABORT:  # its end was proposed by then: the answer shows it
                await self._settled(command.partition)
            if command.finished is not None and _controls(command) == earlier:
                raise self._refused(id, operation)  # its end came first in the log: the request changed nothing
            if command.senseless is asked:
                raise self._overtaken(command, operation)
        return self._afterwards(command)

    def _afterwards(self, command: Command) -> CommandView:
        """How the command looks now; also where the partition is gone by now: a refusal would be asked again."""
        return self.live_view(self.live_here(command.id) or command)

    def _overtaken(self, command: Command, operation: Operation) -> IllegalState:
        """What another operator asked was first in the log."""
        return IllegalState(
            f"{operation.value} came too late: somebody else's request was first, and the command is "
            f"{command.state.value} now",
            legal_states=legal_states(operation),
        )

    def _refused(self, id: str, operation: Operation) -> IllegalState:
        state = self.view_of(id).state.value
        return IllegalState(
            f"{operation.value} is not legal: the command is {state}", legal_states=legal_states(operation)
        )

    async def set_breaker(self, service: str, state: Literal["open", "closed", "auto"]) -> dict[str, Any]:
        found = self.engine.services.get(service)
        if found is None:
            raise self.unknown_service(service)
        now = self.pipeline.now()
        self.engine.set_breaker(found, None if state == "auto" else state, now)
        self.pipeline.schedule()
        return found.inspect(now)

    async def register(
        self, name: str, version: int, content: dict[str, Any], by: str, partitions: Collection[int] | None = None
    ) -> bool:
        """See Front.  A definition is in the log of every partition, so that whoever owns one can run its commands."""
        lanes = self.lanes_at(partitions)
        self.check_running()
        print_ = self.registry.check(name, version, content)
        key = (name, version)
        lacking = [lane for lane in lanes if key not in self.engine.definitions.get(lane.partition, ())]
        if not lacking:
            return False
        encoded = Raw(msgspec.msgpack.encode(content))
        self.check_size("definition", len(bytes(encoded)))
        for lane in lacking:  # a record each: the lane puts its own token in
            record = Registered(SCHEMA, b"", self.pipeline.now(), name, version, encoded, print_, by)
            self.engine.register(record, lane.partition)
        self.pipeline.pump()
        for lane in lacking:
            await self._settled(lane.partition)
        self.registry.check(name, version, content)  # another content may have been first in the log
        return True

    async def _settled(self, partition: int) -> None:
        """Waits until what was asked is durable; raises LogUnavailable with ``in_doubt`` where that is not known.

        ``in_doubt`` tells it from a refusal, after which certainly nothing was done and the same may be asked of
        another instance (`front.routed`).
        """
        try:
            await self.pipeline.lanes[partition].settled()
        except Unavailable as error:
            raise LogUnavailable(
                f"the request may have been recorded, or not: {error.detail}",
                retry_after_ms=error.retry_after_ms or 500,
                in_doubt=True,
            ) from error


def _controls(command: Command) -> int:
    """How many requests of operators the command has taken."""
    return sum(type(record) is Control for _, record in command.history)
