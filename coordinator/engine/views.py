"""How a command looks from outside: the view, the history, the dead letters, the decisions.  Reads state, changes
nothing.  (`engine.explain` has the reasons why it does not move.)"""

from __future__ import annotations

import base64
from collections.abc import Iterable
from typing import Any

import msgspec
from msgspec import Raw

from coordinator.engine import waits
from coordinator.engine.quarantine import BYTES_MAX, Entry
from coordinator.engine.state import Command, Step
from coordinator.engine.waits import Answered
from coordinator.model.command import CommandView, FailureView, StepState, StepView
from coordinator.model.damaged import Damaged
from coordinator.model.ids import position
from coordinator.model.moments import timestamp
from coordinator.model.records import NIL, Failure, Record

_decode_value = msgspec.msgpack.Decoder(ext_hook=lambda _code, data: bytes(data)).decode


def shown(value: Raw) -> Any:
    """A recorded value for people; one that is no msgpack within as its bytes, so that it spoils no list."""
    try:
        return _decode_value(value)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        return {"unreadable": str(error), "bytes": base64.b64encode(bytes(value)).decode()}


def failure_view(failure: Failure | None) -> FailureView | None:
    if failure is None:
        return None
    return FailureView(
        code=failure.code,
        message=failure.message,
        status=failure.status,
        body=shown(failure.body),
        traceback=failure.traceback,
        step=failure.step,
    )


def command_view(command: Command, planned: Iterable[tuple[str, str]] = ()) -> CommandView:
    """The command as every transport shows it.  ``planned``: (step, service) that its definition has, in order."""
    submitted = command.submitted
    finished = command.finished
    failure = finished.failure if finished else _failure(command)
    return CommandView(
        id=submitted.id,
        type=submitted.type,
        version=submitted.version,
        state=command.state,
        result=shown(finished.result) if finished else None,
        error=failure_view(failure),
        steps=_steps(command, planned),
        waiting_for=[] if finished else waiting_for(command),
        attributes=submitted.attributes,
        submitted_at=timestamp(submitted.at),
        finished_at=timestamp(finished.at) if finished else None,
        partition=command.partition,
        position=position(command.partition, command.offset),
        payload=shown(submitted.payload),
        priority=submitted.priority,
        reason=command.reason or None,
        revision=command.revision,
    )


def waiting_for(command: Command) -> list[str]:
    """What it waits for from outside, whatever else it is about: data by name, decisions and sleeps by step."""
    if command.ending:
        return []
    if command.started_at is None:
        return ["start"]
    execution = command.execution
    return [] if execution is None else [waits.name_of(each) for each in execution.waiting]


def _failure(command: Command) -> Failure | None:
    if command.quarantined is not None:
        return command.quarantined
    if command.poison is not None:
        return command.poison
    if command.failure is not None:
        return command.failure
    for name, step in command.steps.items():
        if step.parked and step.failure is not None:
            return msgspec.structs.replace(step.failure, step=step.failure.step or name)  # a hold has failed by another
    return None


def _steps(command: Command, planned: Iterable[tuple[str, str]]) -> list[StepView]:
    execution = command.execution
    names = dict(planned)
    if execution is not None:
        for name in execution.names:
            call = execution.calls.get(name)
            names.setdefault(name, "" if call is None else call.request.service)
        for name, service in execution.skipped.items():
            names.setdefault(name, service)
    for name, step in command.steps.items():
        names[name] = step.service
    return [_step(command, name, service) for name, service in names.items()]


def _step(command: Command, name: str, service: str) -> StepView:
    execution = command.execution
    answered = None if execution is None else execution.waited.get(name)
    if execution is not None and answered is not None:
        return _wait(name, answered, waiting=name in execution.waits)
    step = command.steps.get(name)
    work = command.work.get(name)
    skipped = execution is not None and name in execution.skipped
    attempts = 0
    if step is not None:
        attempts = step.attempts
    if work is not None and not work.undo:
        attempts += work.tried
    error = (
        work.failure if work is not None and work.failure is not None else step.failure if step is not None else None
    )
    return StepView(
        name=name,
        service=service,
        state=StepState.SKIPPED if skipped else _step_state(command, name, step),
        attempts=attempts,
        outcome=shown(step.outcome) if step is not None and step.outcome is not None else None,
        error=failure_view(error),
    )


def _wait(name: str, answered: Answered, *, waiting: bool) -> StepView:
    """A wait among the steps: what it waits for is its outcome when it is there."""
    if waiting:
        state = StepState.WAITING
    elif answered.failure is not None:
        state = StepState.FAILED
    else:
        state = StepState.SKIPPED if answered.value is None else StepState.SUCCEEDED
    outcome = None if answered.value is None else shown(answered.value)
    return StepView(
        name=name, service="", state=state, attempts=0, outcome=outcome, error=failure_view(answered.failure)
    )


def _step_state(command: Command, name: str, step: Step | None) -> StepState:
    work = command.work.get(name)
    if step is not None:
        if step.undone:
            return StepState.UNDONE
        if step.parked:
            return StepState.DEAD_LETTER
        if step.failed:
            return StepState.FAILED
        if step.held:
            return StepState.SUCCEEDED
    if work is not None:
        if work.undo:
            return StepState.UNDOING
        return StepState.DELAYED if work.delayed else StepState.RUNNING
    if step is not None and step.outcome is not None:
        return StepState.UNDOING if step.retry_at else StepState.SUCCEEDED
    if step is not None and step.retry_at:
        return StepState.RUNNING
    return StepState.PENDING


# ---------------------------------------------------------------- dead letters, decisions


def dead_letters(command: Command) -> list[dict[str, Any]]:
    """What of the command waits for a person, as `GET /v1/dead-letters` lists it."""
    items: list[dict[str, Any]] = []
    common = {"command_id": command.id, "type": command.submitted.type, "state": command.state.value}
    if command.quarantined is not None:
        error = msgspec.to_builtins(failure_view(command.quarantined))
        items.append({**common, "step": "", "undo": False, "error": error, "at": timestamp(command.touched)})
    if command.poison is not None:
        items.append({**common, "step": "", "undo": False, "error": msgspec.to_builtins(failure_view(command.poison))})
    for name, step in command.steps.items():
        if step.parked:
            items.append(
                {
                    **common,
                    "step": name,
                    "service": step.service,
                    "undo": step.undoing,
                    "attempts": step.undo_attempts if step.undoing else step.attempts,
                    "error": msgspec.to_builtins(failure_view(step.failure)),
                    "at": timestamp(step.answered_at),
                }
            )
    return items


def decisions(command: Command) -> list[dict[str, Any]]:
    """The decisions that the command asks people for now, as `GET /v1/decisions` lists them."""
    execution = command.execution
    if execution is None or command.ending:
        return []
    found = []
    for waiting in execution.waits.values():
        wait = waiting.call
        if wait.kind == "decision":
            due = waits.due(wait, waiting.since)
            found.append(
                {
                    "command_id": command.id,
                    "type": command.submitted.type,
                    "step": waiting.name,
                    "input": wait.input,
                    "roles": list(wait.roles),
                    "since": timestamp(waiting.since),
                    "timeout_at": None if due is None else timestamp(due),
                    "on_timeout": wait.on_timeout if due is not None else None,
                    "attributes": command.submitted.attributes,
                    "paused": command.paused,
                }
            )
    return found


# ---------------------------------------------------------------- quarantine


def quarantined(partition: int, entry: Entry) -> dict[str, Any]:
    """One record in quarantine, as `GET /v1/quarantine` lists it; ``bytes`` are its first ones, in base64."""
    return {
        "partition": partition,
        "offset": entry.offset,
        "position": position(partition, entry.offset),
        "effect": entry.effect,
        "kind": entry.kind or None,
        "command_id": entry.command or None,
        "reason": entry.reason,
        "at": timestamp(entry.at) if entry.at else None,
        "size": entry.size,
        "bytes": base64.b64encode(entry.data).decode(),
    }


def stopped(partition: int, reason: str, damaged: Damaged | None) -> dict[str, Any]:
    """What a partition stopped at, as the same list shows it; not every log can tell the bytes."""
    if damaged is None:
        unknown = dict.fromkeys(("offset", "position", "kind", "command_id", "at", "size", "bytes"))
        return {"partition": partition, **unknown, "effect": "stopped", "reason": reason}
    entry = Entry(
        damaged.offset,
        damaged.at,
        reason,
        len(damaged.data),
        damaged.data[:BYTES_MAX],
        damaged.name,
        damaged.id or "",
        "stopped",
    )
    return quarantined(partition, entry)


# ---------------------------------------------------------------- history

_HIDDEN = frozenset({"schema", "token", "id", "at", "fingerprint", "meta", "moves", "records", "signals"})


def history_entry(partition: int, offset: int, record: Record | Damaged) -> dict[str, Any]:
    """One record for `GET …/history`: kind, position, at, then the record's own fields (raw values decoded).

    Of one in quarantine: its kind, why it is there (``quarantined``) and its first bytes, in base64.
    """
    if isinstance(record, Damaged):
        return {
            "kind": record.name,
            "position": position(partition, offset),
            "at": timestamp(record.at) if record.at else None,
            "quarantined": record.reason,
            "size": len(record.data),
            "bytes": base64.b64encode(record.data[:BYTES_MAX]).decode(),
        }
    entry: dict[str, Any] = {
        "kind": type(record).__name__,
        "position": position(partition, offset),
        "at": timestamp(record.at),
    }
    for field in record.__struct_fields__:
        value = getattr(record, field)
        if field not in _HIDDEN and not _empty(value):
            entry[field] = _plain(value)
    return entry


def _empty(value: Any) -> bool:
    return value is None or value in ("", 0, {}) or (isinstance(value, Raw) and value == NIL)


def _plain(value: Any) -> Any:
    if isinstance(value, Raw):
        return shown(value)
    if isinstance(value, Failure):
        return msgspec.to_builtins(failure_view(value))
    return value
