"""What comes from outside for a command under way: data, callbacks of services, decisions of people.

All are Signal records.  Data may come before anybody waits for it; a decision only while somebody is asked.  Data for a
command that has ended is refused, unless its type says that this datum opens it again: then all that is recorded of it
is put into one Reopened record, and it goes on from there under its next revision.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import msgspec
from msgspec import Raw
from msgspec.structs import replace

from coordinator.engine import callbacks, views
from coordinator.engine.asleep import unpacked
from coordinator.engine.kinds import flat
from coordinator.engine.registry import misfit
from coordinator.engine.state import Command
from coordinator.engine.transitions import waiting_states
from coordinator.errors import Forbidden, IllegalState, InvalidPayload, TooLarge, UnknownCommand, UnknownStep
from coordinator.front.lists import Slices
from coordinator.front.operations import Operations
from coordinator.model.command import CommandView, Operation, State
from coordinator.model.damaged import Damaged
from coordinator.model.ids import CommandId
from coordinator.model.moments import timestamp
from coordinator.model.records import SCHEMA, Control, Reopened, Signal, Timer, raw
from coordinator.transport.base import Gathered
from coordinator.wire.codec import stored

NAME_MAX = 200
CALLBACK = "callback:"
SIGNALS_MAX = 10_000  # of one command: all are kept until it ends
TEXT_MAX = 2_000  # of a comment, or of who decided


class Signals(Operations):
    """The part of the Front that hands things in; each answers once its record is durable."""

    # ------------------------------------------------------------ data

    async def provide(self, id: str, name: str, value: Any, *, signal_id: str = "", by: str = "") -> CommandView:
        """See Front."""
        _check_text("name", name, NAME_MAX, empty=False)
        _check_text("signal_id", signal_id, NAME_MAX)
        _check_text("by", by, NAME_MAX)
        if signal_id.startswith(CALLBACK):
            raise InvalidPayload.at("$.signal_id", f"ids that begin with {CALLBACK!r} are those of callbacks")
        await self.surely(id)
        return await self._take(id, self._signal(id, name, value, signal_id=signal_id, by=by))

    async def _take(self, id: str, signal: Signal) -> CommandView:
        command = self.awake(id)
        if command is None:
            return await self._provide_late(id, signal)
        return await self._provide(command, signal)

    async def callback(self, id: str, name: str, token: str, value: Any) -> None:
        """See Front."""
        await self.surely(id)
        known = self.live(id) or self._ended_command(id)
        number = callbacks.number_of(known.submitted, name, token)
        if number is None:
            raise UnknownCommand("no command waits for this callback")
        signal = self._signal(id, name, value, signal_id=f"{CALLBACK}{name}#{number}", by="callback")
        if signal.signal_id not in known.signal_ids:
            await self._take(id, signal)

    def _signal(self, id: str, name: str, value: Any, *, signal_id: str = "", by: str = "") -> Signal:
        at, encoded = self.pipeline.now(), self._encoded(value)
        return Signal(SCHEMA, b"", at, CommandId(id), name, encoded, signal_id, by)

    def _encoded(self, value: Any) -> Raw:
        try:
            encoded = Raw(msgspec.msgpack.encode(value))
        except (OverflowError, TypeError, ValueError, RecursionError, msgspec.MsgspecError) as error:
            raise InvalidPayload.at("$", f"cannot be recorded: {error}") from error
        self.check_size("data", len(bytes(encoded)))
        return encoded

    async def _provide(self, command: Command, signal: Signal) -> CommandView:
        self._check_known(command, signal)
        if command.quarantined is not None or command.aborted:
            raise IllegalState("data is of no use to the command any more", legal_states=waiting_states())
        if not self._is_known(command, signal):
            if command.signals >= SIGNALS_MAX:
                raise TooLarge(f"the command has been given {command.signals} data, more than it may have")
            self.engine.ask(command, signal)
            self.pipeline.pump()
            await self._settled(command.partition)
            if command.finished is not None and command.expected:
                return await self._provide_late(command.id, signal)  # its end was first in the log
        return self._afterwards(command)

    def _is_known(self, command: Command, signal: Signal) -> bool:
        """Whether it would change nothing."""
        if signal.signal_id and signal.signal_id in command.signal_ids:
            return True
        return command.execution is not None and command.execution.redundant(signal)

    def _check_known(self, command: Command, signal: Signal) -> None:
        """That the type takes data of this name and shape, where it says what it takes."""
        name, kind = signal.name, self.registry.resolve_submitted(command.submitted).type
        if kind.data is not None and name not in kind.data:
            there = ", ".join(sorted(kind.data)) or "none"
            raise UnknownStep(f"{kind.name} takes no data named {name!r} (it takes: {there})")
        shape = kind.shapes.get(name)
        if shape is None:
            return
        try:
            msgspec.msgpack.decode(signal.value, type=shape)
        except (msgspec.ValidationError, ValueError, TypeError) as error:
            raise misfit(str(error), "$") from None

    # ------------------------------------------------------------ late data

    async def _provide_late(self, id: str, signal: Signal) -> CommandView:
        """For a command that has ended."""
        command = self._ended_command(id)
        self._check_known(command, signal)
        view = self.live_view(command)
        if signal.signal_id and signal.signal_id in command.signal_ids:
            return view  # asked again after an answer that was lost
        kind = self.registry.resolve_submitted(command.submitted).type
        if view.state is not State.COMPLETED or signal.name not in kind.reopens:
            why = f"{signal.name} does not open it again" if view.state is State.COMPLETED else "nothing opens it again"
            raise IllegalState(f"the command is {view.state.value}, and {why}", legal_states=waiting_states())
        if self._is_known(command, replace(signal, signal_id="")):
            return view  # the very datum that it had
        self.check_running()
        self.engine.reopen(command.partition, self._reopened(command, signal), signal)
        self.pipeline.pump()
        await self._settled(command.partition)
        return self.view_of(id)

    def _ended_command(self, id: str) -> Command:
        partition, records = self.records_of(id)
        return self.engine.recall(partition, list(records))

    def _reopened(self, command: Command, signal: Signal) -> Reopened:
        if any(isinstance(record, Damaged) for _, record in command.history):
            raise IllegalState(
                "a record of the command is in quarantine: what it did is not known, so it is not opened again",
                legal_states=waiting_states(),
            )
        records = [
            (offset, stored(replace(record, records=[]) if isinstance(record, Reopened) else record))
            for offset, record in flat(command.partition, command.history)
        ]
        size = sum(len(data) for _, data in records)
        if size > self.pipeline.log.record_bytes_max - 4096:
            raise TooLarge(f"the command's history has {size} bytes, too many to open it again")
        return Reopened(SCHEMA, b"", signal.at, command.id, command.revision + 1, records, signal.by)

    # ------------------------------------------------------------ decisions

    async def decide(
        self, id: str, step: str, *, approve: bool, by: str, comment: str, roles: Collection[str] = ()
    ) -> CommandView:
        """See Front."""
        for what, text in (("by", by), ("comment", comment)):
            _check_text(what, text, TEXT_MAX)
        await self.surely(id)
        command = self.awake(id)
        if command is None:
            raise self._not_asked(self._ended_command(id), step)
        waiting = None if command.execution is None else command.execution.waits.get(step)
        if waiting is None or waiting.call.kind != "decision" or command.ending:
            raise self._not_asked(command, step)
        wanted = waiting.call.roles
        if wanted and not set(wanted) & set(roles):
            raise Forbidden(f"{step} is decided by one of: {', '.join(wanted)}", roles=list(wanted))
        value = raw({"approve": approve, "comment": comment})
        signal = Signal(SCHEMA, b"", self.pipeline.now(), command.id, step, value, by=by, channel="decision")
        self.engine.ask(command, signal)
        self.pipeline.pump()
        await self._settled(command.partition)
        now = self.live_here(id) or command  # which sleeps again, perhaps, and has nothing to show
        if _first_decision(command, step) is not signal or _left_undecided(now, step):
            raise self._not_asked(now, step)  # somebody else, or time, was first
        return self._afterwards(command)

    def _not_asked(self, command: Command, step: str) -> UnknownStep | IllegalState:
        """Why nobody can decide that now."""
        execution = command.execution
        answered = None if execution is None else execution.waited.get(step)
        if answered is not None and answered.wait.kind == "decision" and (answered.value or answered.failure):
            who = f"by {answered.by}" if answered.by else "by time"
            verdict = "approved" if _approved(answered.value) else "rejected"
            return IllegalState(
                f"{step} was {verdict} {who} at {timestamp(answered.at)}",
                legal_states=waiting_states(),
                decided={"approve": verdict == "approved", "by": answered.by, "at": timestamp(answered.at)},
            )
        if step in {name for name, _ in self.registry.planned(command.submitted)} or answered is not None:
            return IllegalState(
                f"nobody is asked for {step} now: the command is {command.state.value}", legal_states=waiting_states()
            )
        asked = ", ".join(each["step"] for each in views.decisions(command)) or "none"
        return UnknownStep(f"the command has no decision {step!r} (it waits for: {asked})")

    async def decisions(self) -> list[dict[str, Any]]:
        """See Front; of the partitions that this instance acts for."""
        self.acting_lanes()
        found: list[dict[str, Any]] = []
        slices = Slices()
        for partition, id, entry in self.engine.entries():
            if slices.over():
                await slices.next()
            if not isinstance(entry, bytes) or unpacked(entry).asks:
                command = self.engine.look_at(partition, id)
                found += [] if command is None else views.decisions(command)
        found.sort(key=lambda each: (each["since"], each["command_id"]))
        undecided = self.undecided()
        lanes = self.pipeline.lanes
        lacking = tuple(lane.partition for lane in lanes if not lane.acting or lane.partition in undecided)
        return Gathered(found, lacking)


def _first_decision(command: Command, step: str) -> object:
    """What decided the step: the first in the log of what a person said, the time that came, and an abort."""
    for _, record in command.history:
        if isinstance(record, Control) and record.operation == Operation.ABORT:
            return record
        if isinstance(record, Signal) and record.channel == "decision" and record.name == step:
            return record
        if isinstance(record, Timer) and record.what == "step" and record.name == step:
            return record
    return None


def _left_undecided(command: Command, step: str) -> bool:
    """Whether exec has seen all that is recorded and the step is open: it was not asked for any more by then."""
    execution = command.execution
    if execution is None or command.fed < len(command.trail):
        return False
    answered = execution.waited.get(step)
    return answered is not None and answered.value is None and answered.failure is None


def _approved(value: Raw | None) -> bool:
    return value is not None and bool(msgspec.msgpack.decode(value).get("approve"))


def _check_text(what: str, text: str, longest: int, *, empty: bool = True) -> None:
    if not isinstance(text, str) or len(text) > longest or not (text or empty):
        raise InvalidPayload.at(f"$.{what}", f"text of {0 if empty else 1} to {longest} characters")
    if any(character < " " and character not in "\t\n\r" for character in text) or not _is_utf8(text):
        raise InvalidPayload.at(f"$.{what}", "text without control characters")


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
