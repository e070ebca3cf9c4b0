"""What operators ask: controls of a command, breakers by hand, definitions registered."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import Raw

from coordinator.engine.state import Command
from coordinator.engine.transitions import legal_states
from coordinator.errors import IllegalState
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
        command = self.live(id)
        if command is None:
            raise self._ended(id, operation)
        replaced = Raw(msgspec.msgpack.encode(input)) if replace_input else None
        for what, size in (
            ("input", 0 if replaced is None else len(bytes(replaced))),
            ("reason", len(reason)),
            ("by", len(by)),
        ):
            self.check_size(what, size)
        now, earlier = self.pipeline.now(), _controls(command)
        if self.engine.control(command.id, operation, now, reason=reason, by=by, step=step, input=replaced):
            self.pipeline.pump()
            lane = self.pipeline.lanes[command.partition]
            await lane.settled()
            if operation is Operation.ABORT:  # its end was proposed by then: the answer shows it
                await lane.settled()
            if command.finished is not None and _controls(command) == earlier:
                raise self._ended(id, operation)  # its end came first in the log: the request changed nothing
        return self.view_of(id)

    def _ended(self, id: str, operation: Operation) -> IllegalState:
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

    async def register(self, name: str, version: int, content: dict[str, Any], by: str) -> bool:
        lane = self.first_lane()
        self.check_running()
        print_ = self.registry.check(name, version, content)
        if self.registry.has(name, version):
            return False
        encoded = Raw(msgspec.msgpack.encode(content))
        self.check_size("definition", len(bytes(encoded)))
        record = Registered(SCHEMA, b"", self.pipeline.now(), name, version, encoded, print_, by)
        self.engine.register(record, 0)
        self.pipeline.pump()
        await lane.settled()
        self.registry.check(name, version, content)  # another content may have been first in the log
        return True


def _controls(command: Command) -> int:
    """How many requests of operators the command has taken."""
    return sum(type(record) is Control for _, record in command.history)
