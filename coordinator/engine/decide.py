"""What follows from a command's fold: the one place where the course of a command is decided.

    aborted? → end          quarantined, paused? → call nothing new          poison? → wait for an operator
    forward: call every pending step, resolve and undo what exec has given up, wait for what comes from outside
             exec has returned → the rest of what was left behind → completed
    ending:  (a) resolve: call every step in doubt until its outcome is known, even if this instance never called it
             (b) undo what is recorded, one at a time, in reverse order of the recorded outcomes
             (c) compensated; or failed, when nothing was recorded

Only reads the fold and drives the Execution over it, so running it again, here or on another instance, decides the
same.
"""

from __future__ import annotations

import inspect
from collections.abc import Container
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import Raw

from coordinator.awaitables import Retry, StepCall
from coordinator.engine import callbacks, faults, stepper, times, waits
from coordinator.engine.misuse import MisusedSaga
from coordinator.engine.retry import backoff_ms
from coordinator.engine.service import Work
from coordinator.engine.state import Command, Contrary, Moment
from coordinator.engine.stepper import Execution, Pending
from coordinator.errors import CoordinatorError
from coordinator.model.call import LocalCall, Request
from coordinator.model.command import State
from coordinator.model.durations import parse_duration
from coordinator.model.records import NIL, SCHEMA, Failure, Finished, Signal, StepFailed, unraw
from coordinator.saga import Blocked, CommandFailed, Rejected, Saga
from coordinator.saga import StepFailed as StepFailedError

if TYPE_CHECKING:
    from random import Random

    from coordinator.engine.engine import Engine

_ONCE = Retry()

RESULT_BYTES_MAX: Final = 1 << 20  # what exec returns, as msgpack: it is one record of the log


def command(engine: Engine, command: Command, now: float) -> None:
    """Decides what follows for one command whose fold, or whose work, has changed."""
    if command.finished is not None or command.finishing:
        return
    command.waits = ()
    if command.partition in engine.held:
        engine.withhold(command.work.values())
        return
    if command.aborted:
        command.failure = Failure("aborted", command.reason or "aborted by an operator")
        engine.propose(command, _end(command, State.ABORTED, now))
        return
    if command.quarantined is not None:
        engine.stop_waiting(command)
        engine.withhold(command.work.values())
        return
    if command.started_at is not None:
        _course(engine, command, now)
    else:
        _before_start(engine, command, now)
    if command.type is not None and command.type.deadlines:
        times.of_state(engine, command, now)


def _course(engine: Engine, command: Command, now: float) -> None:
    """Of a command that has begun."""
    execution = _synchronise(engine, command, now)
    if command.type is not None and command.type.pause_after is not None:
        times.of_errors(engine, command, command.type.pause_after, now)
    if command.paused or command.poison is not None:
        engine.withhold(command.work.values())
        if command.poison is None and execution is not None:
            command.waits = _awaited(execution)
        return
    if execution is None:
        return
    if command.dead_letters:
        _take_off(engine, command, execution, now)
    if command.failure is not None:
        _compensate(engine, command, execution, now)
    elif execution.done:
        _complete(engine, command, execution, now)
    else:
        _forward(engine, command, execution, now)


def _take_off(engine: Engine, command: Command, execution: Execution, now: float) -> None:
    """Dead letters that nobody waits for any more: what is known to have failed has failed, and a savepoint that was
    given up stops nobody.  A step in doubt and an undo are still to be seen to; a deadline leaves all to a person."""
    if command.contrary is Contrary.DEADLINE:
        return
    for name, step in command.steps.items():
        if not step.parked or step.undoing or step.in_doubt or step.failure is None or command.proposed is not None:
            continue
        if name not in execution.holds if step.held else name in execution.orphans:
            record = StepFailed(
                SCHEMA, b"", int(now), command.id, name, step.service, step.attempts, step.failure, "failed"
            )
            _park(engine, command, record)


def _before_start(engine: Engine, command: Command, now: float) -> None:
    """Of a command whose delay is not over: nothing of it has been called, so a contrary decision ends it at once."""
    if command.contrary is not None:
        command.failure = _contrary(command)
        engine.propose(command, _end(command, State.FAILED, now))
        return
    if not command.paused:
        times.due(engine, command, "start", "", command.submitted.start_at, now)
    command.waits = ("start",)


# ---------------------------------------------------------------- exec


def _synchronise(engine: Engine, command: Command, now: float) -> Execution | None:
    """Brings the execution to where the fold is; None while there is none (poison, or told to run again later)."""
    if command.rerun_at:
        if now < command.rerun_at and command.contrary is None:
            return None
        engine.stop_waiting(command)
    try:
        execution = _executed(engine, command)
    except Exception as error:
        poisoned(engine, command, error, now)
        return None
    _conclude(engine, command, execution, now)
    return None if execution.error is not None and command.failure is None else execution


def retrace(engine: Engine, command: Command) -> None:
    """Runs exec over the record, to see which steps it issued and skipped; decides nothing, and may find nothing."""
    if command.started_at is None:
        return  # when it will have begun is not known yet, and exec may ask for that
    try:
        _executed(engine, command)
    except Exception:
        command.execution = None


def _executed(engine: Engine, command: Command) -> Execution:
    """The execution, at the end of the trail.

    Data that comes when exec has returned, before the end is recorded, opens the command again as it would after its
    end: exec is run over the same trail under the next revision, and waits for it.
    """
    while True:
        if command.execution is None:
            command.fed = 0
            command.execution = Execution(*_start(engine, command))
        execution = command.execution
        _feed(command, execution)
        opens = _opens_again(command, execution)
        if opens is None:
            return execution
        command.revision += 1
        command.opened_by = opens
        command.execution = None


def _opens_again(command: Command, execution: Execution) -> int | None:
    """The first datum that came too late for exec, and opens the command again; each does so once, taken or not.

    A contrary decision behind it changes nothing about that: what exec has begun since is in doubt, whoever reads it.
    """
    if not execution.late or execution.error is not None or command.type is None:
        return None
    opening = (number for number, name in execution.late if name in command.type.reopens)
    return next((number for number in opening if number > command.opened_by), None)


def _feed(command: Command, execution: Execution) -> None:
    """Hands the execution what it has not seen of the trail, in log order."""
    trail = command.trail
    while command.fed < len(trail):
        if command.contrary is not None and command.fed == command.contrary_at:
            execution.stop()
        name, at, answer = trail[command.fed]
        command.fed += 1
        if isinstance(answer, Raw):
            execution.outcome(name, answer, at)
        elif isinstance(answer, Failure):
            execution.failed(name, answer, at)
        elif isinstance(answer, Signal):
            execution.signal(answer)
        else:
            _MOMENTS[answer](execution, name, at)
    if command.contrary is not None and command.fed >= command.contrary_at:
        execution.stop()


_MOMENTS: Final = {
    Moment.FIRED: Execution.timer,
    Moment.UNDONE: Execution.undone,
    Moment.RELEASED: Execution.released,
}


def _start(engine: Engine, command: Command) -> tuple[Any, Saga]:
    submitted = command.submitted
    resolved = engine.registry.resolve_submitted(submitted)
    command.type = resolved.type
    saga = Saga(
        id=submitted.id,
        type=submitted.type,
        version=submitted.version,
        attributes=submitted.attributes,
        now=command.begins_at,
        revision=command.revision,
        callback=partial(callbacks.url, engine.settings.callback_url, submitted),
    )
    return (lambda given: resolved.start(submitted.payload, given)), saga


def _conclude(engine: Engine, command: Command, execution: Execution, now: float) -> None:
    """Reads how exec ended, if it did: sets the command's failure, reschedules it, or parks it as poison."""
    error = execution.error
    command.failure = None
    if error is None and command.contrary is None:
        return
    told = faults.told_by(error)
    if isinstance(told, (StepFailedError, CommandFailed)):
        failure = _failure_of(told) if isinstance(told, StepFailedError) else _refusal_of(told)
        waits = command.type is not None and command.type.on_failure == "dead_letter" and not isinstance(told, Rejected)
        if waits and command.contrary is None:
            _parked_whole(engine, command, failure, now)
        else:
            command.failure = failure
    elif command.contrary is not None:
        command.failure = _contrary(command)
    elif told is not None:
        jitter = engine.random.uniform(-1, 1) * engine.settings.retry_jitter_ms
        due = now + max(1, engine.settings.slow_retry_interval_ms + jitter)
        engine.run_again(command, due, blocked=isinstance(told, Blocked))
    elif error is not None:
        poisoned(engine, command, error, now)


def _refusal_of(error: CommandFailed) -> Failure:
    return Failure(faults.printable(getattr(error, "code", "failed"), faults.CODE_MAX), faults.message_of(error))


def _failure_of(error: StepFailedError) -> Failure:
    """The step's own failure; also of an error that exec's author has made, with whatever in it."""
    failure = getattr(error, "failure", None)
    if not isinstance(failure, Failure):
        return Failure("failed", faults.message_of(error))
    return faults.recordable(msgspec.structs.replace(failure, step=getattr(error, "step", "")))


def _contrary(command: Command) -> Failure:
    if command.contrary is Contrary.CANCELLED:
        return Failure("cancelled", "cancelled by an operator")
    return Failure("deadline_exceeded", command.contrary_why or "the command's deadline passed")


def poisoned(engine: Engine, command: Command, error: BaseException, now: float) -> None:
    """Parks a command whose code cannot go on, with its traceback; ``undo`` in the record: not even on the way back."""
    if command.poison is not None or command.proposed is not None:
        return
    code = error.code if isinstance(error, CoordinatorError) else "poison"
    failure = Failure(code, faults.described(error), traceback=faults.traceback_of(error, __name__, stepper.__name__))
    _parked_whole(engine, command, failure, now)


def _parked_whole(engine: Engine, command: Command, failure: Failure, now: float) -> None:
    """Makes the command itself a dead letter, where no step of it is to blame."""
    if command.poison is None and command.proposed is None:
        back = command.contrary is not None
        _park(engine, command, StepFailed(SCHEMA, b"", int(now), command.id, "", "", 0, failure, "parked", undo=back))


def _park(engine: Engine, command: Command, record: StepFailed) -> None:
    """Proposes a dead letter, or its end, once: until it is applied, what is decided anew must not propose it again."""
    command.proposed = record.step
    engine.propose(command, record)


# ---------------------------------------------------------------- forward


def _forward(engine: Engine, command: Command, execution: Execution, now: float) -> None:
    """Exec goes on: everything that can be done now is done side by side."""
    for waiting in execution.pending.values():
        if waiting.call.deadline is not None:
            times.of_step(engine, command, waiting, now)
        _call_step(engine, command, waiting, now)
    for hold in execution.holds.values():
        _hold(engine, command, hold, now)
    times.of_waits(engine, command, execution.waits.values(), now)
    settled = not execution.orphans or _resolved(engine, command, execution, now)
    if settled and execution.unwanted:  # what is in doubt may follow from these: it is undone first, if it was done
        _undone(engine, command, execution, execution.unwanted, now)
    command.waits = _awaited(execution)


def _awaited(execution: Execution) -> tuple[str, ...]:
    """What it waits for, where nothing else is to be done for it."""
    if execution.pending or execution.holds or execution.orphans or execution.unwanted:
        return ()
    return tuple(waits.name_of(waiting) for waiting in execution.waiting)


def _hold(engine: Engine, command: Command, hold: Pending, now: float) -> None:
    """Exec has stopped at a savepoint: recorded once, and then until an operator lets it go on."""
    if hold.name not in command.steps and command.proposed is None:
        failure = faults.recordable(hold.call.failure)
        _park(engine, command, StepFailed(SCHEMA, b"", int(now), command.id, hold.name, "", 0, failure, "held"))


def _complete(engine: Engine, command: Command, execution: Execution, now: float) -> None:
    """Exec has returned; what an abandoned branch left behind is resolved and undone first."""
    if not _resolved(engine, command, execution, now):
        return
    if execution.unwanted and not _undone(engine, command, execution, execution.unwanted, now):
        return
    try:
        result = _encoded(execution.result)
    except MisusedSaga as error:
        poisoned(engine, command, error, now)
        return
    engine.propose(command, _end(command, State.COMPLETED, now, result))


def _encoded(result: Any) -> Raw:
    try:
        encoded = msgspec.msgpack.encode(msgspec.to_builtins(result))
    except Exception as error:
        raise MisusedSaga(f"what exec returned cannot be recorded: {faults.described(error)}") from error
    if len(encoded) > RESULT_BYTES_MAX:
        raise MisusedSaga(
            f"what exec returned is too large: it has {len(encoded)} bytes, and may have {RESULT_BYTES_MAX}"
        )
    return Raw(encoded)


def _compensate(engine: Engine, command: Command, execution: Execution, now: float) -> None:
    if not _resolved(engine, command, execution, now):
        return
    if _undone(engine, command, execution, None, now):
        engine.propose(command, _end(command, State.COMPENSATED if command.recorded else State.FAILED, now))


def _end(command: Command, state: State, now: float, result: Raw = NIL) -> Finished:
    return Finished(SCHEMA, b"", int(now), command.id, state.value, result, command.failure, command.signals)


def _resolved(engine: Engine, command: Command, execution: Execution, now: float) -> bool:
    """Asks for the outcome of every step in doubt, backoff or not; True when there is none left."""
    for waiting in execution.orphans.values():
        _call_step(engine, command, waiting, now, backoff=False)
    return not execution.orphans


def _call_step(engine: Engine, command: Command, waiting: Pending, now: float, *, backoff: bool = True) -> None:
    name, call = waiting.name, waiting.call
    if name in command.work:
        return
    step = command.steps.get(name)
    request = call.request
    since = waiting.since
    if step is not None:
        if step.parked or (backoff and _waits(engine, command, step.retry_at, now)):
            return
        since = max(since, step.released_at)
        if step.input is not None:
            request = _with_input(request, step.input)
    give_up_at = since + parse_duration(call.give_up_after) if call.give_up_after else None
    _offer(engine, command, name, request, call.retry, call, now, undo=False, give_up_at=give_up_at)


def _waits(engine: Engine, command: Command, retry_at: int, now: float) -> bool:
    if retry_at > now:
        engine.wake(command, retry_at, now)
        return True
    return False


def _offer(
    engine: Engine,
    command: Command,
    name: str,
    request: Request | LocalCall,
    retry: Retry | None,
    call: StepCall,
    now: float,
    *,
    undo: bool,
    give_up_at: float | None = None,
) -> None:
    timeout = (call.undo_timeout or call.timeout) if undo else call.timeout
    timeout_ms = parse_duration(timeout) if timeout else None
    service = engine.service(request.service)
    work = Work(command, name, service, request, undo=undo, retry=retry, timeout_ms=timeout_ms, give_up_at=give_up_at)
    engine.offer(work, now)


def _with_input(request: Request | LocalCall, input: Raw) -> Request | LocalCall:
    """The request with its body (a local function's only argument) replaced."""
    value = unraw(input)
    if isinstance(request, Request):
        return msgspec.structs.replace(request, body=value)
    return msgspec.structs.replace(request, args=(value,))


# ---------------------------------------------------------------- undo


def _undone(engine: Engine, command: Command, execution: Execution, among: Container[str] | None, now: float) -> bool:
    """Undoes what is recorded (``among`` these steps), last first, one at a time; True when nothing is left to undo."""
    clean = True
    for name in reversed(command.standing):
        call = execution.calls.get(name)
        step = command.steps[name]
        if (among is not None and name not in among) or (call is not None and call.undo is None):
            continue
        if step.parked:
            clean = False
            if command.skip_parked:
                continue
            return False
        # After a requeue a later undo may be under way already: still one at a time.
        if not any(work.undo or among is None for work in command.work.values()) and not _waits(
            engine, command, step.retry_at, now
        ):
            _call_undo(engine, command, name, call, now)
        return False
    return clean


def _call_undo(engine: Engine, command: Command, name: str, call: StepCall | None, now: float) -> None:
    step = command.steps[name]
    assert step.outcome is not None
    try:
        if call is None:
            raise LookupError("exec does not issue this step any more, so what would undo it is not known")
        request = _undo_request(call, step.outcome)
        if step.undo_input is not None:
            request = _with_input(request, step.undo_input)
    except (Exception, SystemExit) as error:
        if command.proposed is None:
            failure = Failure("undo_request", faults.described(error), traceback=faults.traceback_of(error, __name__))
            record = StepFailed(
                SCHEMA, b"", int(now), command.id, name, step.service, step.undo_attempts, failure, "parked", undo=True
            )
            _park(engine, command, record)
        return
    _offer(engine, command, name, request, call.undo_retry, call, now, undo=True)


def _undo_request(call: StepCall, outcome: Raw) -> Request | LocalCall:
    undo = call.undo
    if isinstance(undo, (Request, LocalCall)):
        return undo
    assert undo is not None
    value = unraw(outcome) if call.into is None else msgspec.msgpack.decode(outcome, type=call.into)
    if inspect.iscoroutinefunction(undo):
        return LocalCall(undo, (value,), call.request.service)
    request = undo(value)
    if not isinstance(request, (Request, LocalCall)):
        raise TypeError(f"the undo of a step is a Request or returns one, not {type(request).__name__}")
    return request


# ---------------------------------------------------------------- answers


def negative(command: Command, work: Work, failure: Failure, answered: int, now: float, random: Random) -> StepFailed:
    """The record of a known negative answer, its verdict included.

    A step in doubt is not tried again: what was asked is known now.  An undo has nowhere to fail to: it is parked.
    """
    retry = work.retry or _ONCE
    retry_at = 0
    execution = command.execution
    in_doubt = command.ending or (execution is not None and work.step in execution.orphans)
    step = command.steps.get(work.step)
    counted = answered - (0 if step is None else step.undo_forgiven if work.undo else step.forgiven)
    if counted < retry.attempts and (work.undo or not in_doubt):
        verdict = "retry"
        retry_at = int(now) + backoff_ms(retry, counted, random)
    elif work.undo or (not in_doubt and command.type is not None and command.type.on_failure == "dead_letter"):
        verdict = "parked"
    else:
        verdict = "failed"
    return StepFailed(
        SCHEMA,
        b"",
        int(now),
        command.id,
        work.step,
        work.service.name,
        answered,
        failure,
        verdict,
        undo=work.undo,
        retry_at=retry_at,
    )


def given_up(command: Command, work: Work, failure: Failure, now: float) -> StepFailed:
    """The record of a step whose answer stayed unknown for too long: parked, in doubt."""
    step = command.steps.get(work.step)
    answered = 0 if step is None else step.undo_attempts if work.undo else step.attempts
    told = msgspec.structs.replace(failure, code="gave_up", message=f"no answer in time: {failure.message}")
    return StepFailed(
        SCHEMA, b"", int(now), command.id, work.step, work.service.name, answered, told, "parked", undo=work.undo
    )


def unknown(command: Command, work: Work, failure: Failure, now: float) -> StepFailed:
    """The record of an unknown answer, where errors are counted: it has to outlive a restart."""
    return StepFailed(
        SCHEMA, b"", int(now), command.id, work.step, work.service.name, 0, failure, "delayed", undo=work.undo
    )


def parked_names(command: Command) -> list[str]:
    """The steps of a command that are dead letters."""
    return [name for name, step in command.steps.items() if step.parked]
