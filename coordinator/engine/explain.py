"""Why a command does not move, for people: one entry a thing that it waits for, and what would unblock it."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from coordinator.engine.service import Stage, Work
from coordinator.engine.state import Command, Step
from coordinator.engine.stepper import Pending
from coordinator.engine.views import failure_view
from coordinator.engine.waits import due
from coordinator.model.command import State
from coordinator.model.durations import parse_duration
from coordinator.model.ids import position
from coordinator.model.moments import timestamp


def explain(command: Command, now: float, *, owner: dict[str, Any], slots: tuple[int, int]) -> dict[str, Any]:
    """Why the command is not moving, for a person: one entry a thing that it waits for, and what would unblock it."""
    waits = [_work(work, now) for work in command.work.values()]
    for name, step in command.steps.items():
        if step.parked:
            waits.append(_dead_letter(name, step))
        elif step.retry_at > now:
            waits.append(_backoff(name, step))
    waits += _outside(command)
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
        waits.append(_paused(command))
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
        "revision": command.revision,
        "slots": {"used": slots[0], "max": slots[1], "holds_one": command.holds_slot},
        "deadline": timestamp(command.deadline) if command.deadline is not None else None,
        "summary": _summary(state, waits),
    }


def _dead_letter(name: str, step: Step) -> dict[str, Any]:
    if step.undoing:
        unblock = f"requeue step {name} (its undo is run again), resolve it once it is done by hand, retry or abort"
    elif step.held and name.startswith("failed:"):
        unblock = f"requeue step {name} or retry to run it anew; cancel to undo what was done, or abort"
    elif step.held:
        unblock = f"requeue step {name} or retry to go on from the savepoint; cancel to undo the rest, or abort"
    else:
        unblock = f"requeue step {name} (with a new input if need be), retry, cancel or abort"
    return {
        "step": name,
        "why": "dead_letter",
        "undo": step.undoing,
        "error": msgspec.to_builtins(failure_view(step.failure)),
        "since": timestamp(step.answered_at),
        "unblock": unblock,
    }


def _backoff(name: str, step: Step) -> dict[str, Any]:
    return {
        "step": name,
        "why": "backoff",
        "undo": step.undoing,
        "attempts": step.undo_attempts if step.undoing else step.attempts,
        "error": msgspec.to_builtins(failure_view(step.failure)),
        "next_retry_at": timestamp(step.retry_at),
        "unblock": "nothing to do: it is tried again by itself",
    }


def _outside(command: Command) -> list[dict[str, Any]]:
    """What people, services that were asked earlier, or time have to give."""
    if command.started_at is None:
        at = timestamp(command.submitted.start_at)
        return [{"why": "start delayed", "until": at, "unblock": "nothing to do: it begins by itself"}]
    execution = command.execution
    if execution is None or command.ending:
        return []
    return [_wait(command, waiting) for waiting in execution.waiting]


def _wait(command: Command, waiting: Pending) -> dict[str, Any]:
    wait, name = waiting.call, waiting.name
    until = due(wait, waiting.since)
    entry: dict[str, Any] = {
        "step": name,
        "why": _WHY[wait.kind],
        "since": timestamp(waiting.since),
        "until": None if until is None else timestamp(until),
    }
    if wait.kind == "data":
        entry["data"] = wait.channel
        entry["unblock"] = (
            f"provide {wait.channel} (POST /v1/commands/{command.id}/data/{wait.channel}), or its callback"
        )
    elif wait.kind == "decision":
        who = f" by one of {', '.join(wait.roles)}" if wait.roles else ""
        entry |= {"input": wait.input, "roles": list(wait.roles)}
        entry["unblock"] = f"approve or reject it{who} (POST /v1/commands/{command.id}/decisions/{name})"
    else:
        entry["unblock"] = "nothing to do: it goes on by itself"
    return entry


_WHY: Final = {"data": "waiting for data", "decision": "waiting for a decision", "sleep": "sleeping"}


def _paused(command: Command) -> dict[str, Any]:
    entry = {"why": "paused", "reason": command.reason, "since": timestamp(command.paused_at)}
    rule = None if command.type is None else command.type.pause_after
    if command.paused_auto and rule is not None and rule.resume_after is not None:
        at = timestamp(command.paused_at + parse_duration(rule.resume_after))
        return {**entry, "until": at, "unblock": "nothing to do: it is resumed by itself; or resume, cancel or abort"}
    return {**entry, "unblock": "resume, cancel or abort"}


def _work(work: Work, now: float) -> dict[str, Any]:
    service = work.service
    asked_at = service.due(now)
    return {
        "step": work.step,
        "undo": work.undo,
        "service": service.name,
        "why": "blocked" if work.blocked else "delayed" if work.delayed else work.stage.value,
        "attempts": work.tried,
        "error": msgspec.to_builtins(failure_view(work.failure)),
        "since": timestamp(work.first_at) if work.first_at else None,
        "next_retry_at": timestamp(asked_at) if work.stage is Stage.DELAYED and asked_at is not None else None,
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
