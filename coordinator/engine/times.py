"""Everything that a command does because of time: waits, deadlines of steps and states, its start, pauses by itself.

A time is durable in that it follows from times that are recorded, so that whoever owns the command next finds it again;
that it *has* come is a record too (Timer, or a Control of our own), since exec and the fold must see the same on every
replay.  Late is as good as in time.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from coordinator.engine import waits
from coordinator.engine.state import Command
from coordinator.engine.stepper import Pending
from coordinator.model.command import Operation, State
from coordinator.model.durations import parse_duration
from coordinator.model.records import SCHEMA, Control, Timer

if TYPE_CHECKING:
    from coordinator.engine.engine import Engine
    from coordinator.saga import PauseAfter

US = "coordinator"  # the actor of what nobody asked for


def due(engine: Engine, command: Command, what: str, name: str, at: float, now: float) -> None:
    """Proposes the Timer if its time has come, once; otherwise sees to it that the command is decided on then."""
    if at > now:
        engine.wake(command, at, now)
    elif (what, name) not in command.on_the_way:
        command.on_the_way.add((what, name))
        engine.propose(command, Timer(SCHEMA, b"", int(now), command.id, name, what, command.moves))


def of_step(engine: Engine, command: Command, waiting: Pending, now: float) -> None:
    """A step's deadline; a dead letter has none, and one that an operator asks for again has as long as at first."""
    step = command.steps.get(waiting.name)
    since = waiting.since
    if step is not None:
        if step.parked:
            return
        since = max(since, step.released_at)
    due(engine, command, "step", waiting.name, since + parse_duration(waiting.call.deadline), now)


def of_waits(engine: Engine, command: Command, waiting: Iterable[Pending], now: float) -> None:
    """Sleeps' ends, and when data or decisions are not waited for any longer: one timer, for the first of them."""
    first: float | None = None
    for each in waiting:
        at = waits.due(each.call, each.since)
        if at is None:
            continue
        if at <= now:
            due(engine, command, "step", each.name, at, now)
        elif first is None or at < first:
            first = at
    if first is not None:
        engine.wake(command, first, now)


def of_state(engine: Engine, command: Command, now: float) -> None:
    """How long the command may be in its present state; on its way back it may be for as long as it takes."""
    if command.type is None or command.ending or command.finishing:
        return
    state = command.state
    longest = command.type.deadlines.get(state)
    if longest is not None:
        due(engine, command, "state", state.value, state_deadline(command, state, longest), now)


def state_deadline(command: Command, state: State, longest: int) -> int:
    """When it will have been in the state for so long (ms)."""
    return _since(command, state) + longest


def _since(command: Command, state: State) -> int:
    """Since when the command has been in the state, by the records: of one that is volatile, since when the step that
    it shows has been tried.  Data that is kept for later changes no state; what was left for a pause begins anew."""
    if state is State.PAUSED:
        return command.paused_at
    entered = command.begins_at
    execution = command.execution
    if state is State.DEAD_LETTER:
        entered = command.parked_at
    elif execution is not None:
        tried = [waiting.since for name, waiting in execution.pending.items() if _is_delayed(command, name)]
        entered = min(tried) if tried and state in (State.DELAYED, State.BLOCKED) else execution.moved_at
    return max(entered, command.resumed_at, command.reopened_at)


def _is_delayed(command: Command, name: str) -> bool:
    work = command.work.get(name)
    return work is not None and work.delayed


def of_errors(engine: Engine, command: Command, rule: PauseAfter, now: float) -> None:
    """Pauses after errors, and the resume that follows; never one of an operator's pause."""
    if not command.paused:
        if command.errors >= rule.errors:
            _control(engine, command, Operation.PAUSE, f"paused by itself after {command.errors} errors", now)
    elif command.paused_auto and rule.resume_after is not None:
        at = command.paused_at + parse_duration(rule.resume_after)
        if at > now:
            engine.wake(command, at, now)
        else:
            _control(engine, command, Operation.RESUME, f"resumed by itself after {rule.resume_after}", now)


def _control(engine: Engine, command: Command, operation: Operation, reason: str, now: float) -> None:
    if (operation, "") not in command.on_the_way:
        command.on_the_way.add((operation, ""))
        engine.propose(
            command, Control(SCHEMA, b"", int(now), command.id, operation.value, reason=reason, by=US, auto=True)
        )
