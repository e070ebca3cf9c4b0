"""How a command looks from outside: the view, the explanation, the history, the dead letters.  Reads state, changes
nothing."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import msgspec
from msgspec import Raw

from coordinator.engine.quarantine import BYTES_MAX, Entry
from coordinator.engine.service import Stage
from coordinator.engine.state import Command, Step
from coordinator.model.command import CommandView, FailureView, State, StepState, StepView
from coordinator.model.damaged import Damaged
from coordinator.model.ids import position
from coordinator.model.records import NIL, Failure, Record
from coordinator.wire.codec import AT_MAX

_decode_value = msgspec.msgpack.Decoder(ext_hook=lambda _code, data: bytes(data)).decode


@lru_cache(64)
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def timestamp(millis: float) -> str:
    """RFC 3339 in UTC with milliseconds; what the calendar has no name for is its first or last moment."""
    seconds, rest = divmod(min(max(0, int(millis)), AT_MAX), 1000)
    return f"{_second(seconds)}.{rest:03d}Z"


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
        waiting_for=[],
        attributes=submitted.attributes,
        submitted_at=timestamp(submitted.at),
        finished_at=timestamp(finished.at) if finished else None,
        partition=command.partition,
        position=position(command.partition, command.offset),
        payload=shown(submitted.payload),
        priority=submitted.priority,
        reason=command.reason or None,
    )


def _failure(command: Command) -> Failure | None:
    if command.quarantined is not None:
        return command.quarantined
    if command.poison is not None:
        return command.poison
    if command.failure is not None:
        return command.failure
    for name, step in command.steps.items():
        if step.parked and step.failure is not None:
            return msgspec.structs.replace(step.failure, step=name)
    return None


def _steps(command: Command, planned: Iterable[tuple[str, str]]) -> list[StepView]:
    execution = command.execution
    names = dict(planned)
    if execution is not None:
        for name, call in execution.calls.items():
            names.setdefault(name, call.request.service)
        for name, service in execution.skipped.items():
            names.setdefault(name, service)
    for name, step in command.steps.items():
        names[name] = step.service
    return [_step(command, name, service) for name, service in names.items()]


def _step(command: Command, name: str, service: str) -> StepView:
    step = command.steps.get(name)
    work = command.work.get(name)
    skipped = command.execution is not None and name in command.execution.skipped
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


def _step_state(command: Command, name: str, step: Step | None) -> StepState:
    work = command.work.get(name)
    if step is not None:
        if step.undone:
            return StepState.UNDONE
        if step.parked:
            return StepState.DEAD_LETTER
        if step.failed:
            return StepState.FAILED
    if work is not None:
        if work.undo:
            return StepState.UNDOING
        return StepState.DELAYED if work.delayed else StepState.RUNNING
    if step is not None and step.outcome is not None:
        return StepState.UNDOING if step.retry_at else StepState.SUCCEEDED
    if step is not None and step.retry_at:
        return StepState.RUNNING
    return StepState.PENDING


# ---------------------------------------------------------------- explain


def explain(command: Command, now: float, *, owner: dict[str, Any], slots: tuple[int, int]) -> dict[str, Any]:
    """Why the command is not moving, for a person: one entry a thing that it waits for, and what would unblock it."""
    waits = [_explain_work(work, now) for work in command.work.values()]
    for name, step in command.steps.items():
        if step.parked:
            waits.append(
                {
                    "step": name,
                    "why": "dead_letter",
                    "undo": step.undoing,
                    "error": msgspec.to_builtins(failure_view(step.failure)),
                    "since": timestamp(step.answered_at),
                    "unblock": f"requeue step {name} (with a new input if need be), retry, cancel or abort",
                }
            )
        elif step.retry_at > now:
            waits.append(
                {
                    "step": name,
                    "why": "backoff",
                    "undo": step.undoing,
                    "attempts": step.undo_attempts if step.undoing else step.attempts,
                    "error": msgspec.to_builtins(failure_view(step.failure)),
                    "next_retry_at": timestamp(step.retry_at),
                    "unblock": "nothing to do: it is tried again by itself",
                }
            )
    if command.quarantined is not None:
        waits = [
            {
                "why": "quarantined",
                "error": msgspec.to_builtins(failure_view(command.quarantined)),
                "unblock": "what the record has decided is not known: look at the history and at the quarantine list, "
                "mend by hand what must be mended, then abort",
            },
            *waits,
        ]
    if command.poison is not None:
        waits.append(
            {
                "why": "poison",
                "error": msgspec.to_builtins(failure_view(command.poison)),
                "unblock": "mend the command's code, then retry; or cancel or abort",
            }
        )
    if command.paused:
        waits.append({"why": "paused", "reason": command.reason, "unblock": "resume, cancel or abort"})
    if command.rerun_at:
        waits.append(
            {
                "why": f"{'blocked' if command.rerun_blocked else 'delayed'} by its code",
                "next_retry_at": timestamp(command.rerun_at),
                "unblock": "nothing to do: it is run again by itself",
            }
        )
    state = command.state
    return {
        "id": command.id,
        "state": state.value,
        "since": timestamp(command.touched),
        "for_ms": max(0, round(now - command.touched)),
        "owner": owner,
        "position": position(command.partition, command.offset),
        "waits": waits,
        "slots": {"used": slots[0], "max": slots[1], "holds_one": command.holds_slot},
        "deadline": timestamp(command.deadline) if command.deadline is not None else None,
        "summary": _summary(state, waits),
    }


def _explain_work(work: Any, now: float) -> dict[str, Any]:
    service = work.service
    due = service.due(now)
    return {
        "step": work.step,
        "undo": work.undo,
        "service": service.name,
        "why": "blocked" if work.blocked else "delayed" if work.delayed else work.stage.value,
        "attempts": work.tried,
        "error": msgspec.to_builtins(failure_view(work.failure)),
        "since": timestamp(work.first_at) if work.first_at else None,
        "next_retry_at": timestamp(due) if work.stage is Stage.DELAYED and due is not None else None,
        "breaker": service.breaker.shown(now).value,
        "in_flight": service.in_flight,
        "ahead": service.backlog if work.stage is Stage.DELAYED else len(service.ready),
        "unblock": f"{service.name} must answer; it is asked again by itself",
    }


def _summary(state: State, waits: list[dict[str, Any]]) -> str:
    if not waits:
        return f"{state}: nothing holds it back"
    first = waits[0]
    where = f" at {'the undo of ' if first.get('undo') else ''}step {first['step']}" if first.get("step") else ""
    error = first.get("error")
    why = f": {error.get('message') or error['code']}" if error else ""
    return f"{state}: {first['why']}{where}{why}"


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

_HIDDEN = frozenset({"schema", "token", "id", "at", "fingerprint", "meta"})


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
