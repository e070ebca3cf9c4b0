"""Runs a definition, as an ``exec`` over the same `Saga` that code commands use: one recovery path, one way to undo.

Steps that follow one another run in a plain loop.  Otherwise every step is a branch of one fork and waits for the gates
of the steps it comes after, so that it starts the moment *its own* have ended, not when a whole layer has.

``when`` that is false skips the step: its outcome is null, and who comes after it goes on.  An expression without a
value fails the command (code ``expression``) where it stands, and what was recorded is undone.  In an undo's own
request there is nothing left to fail into: the error is raised to the engine, which parks that undo as a dead letter.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from coordinator.awaitables import Gate, Skip
from coordinator.engine.expressions import ExpressionError
from coordinator.engine.plan import Plan, RequestPlan, StepPlan
from coordinator.model.call import Request
from coordinator.saga import CommandFailed, CommandType, Saga


async def run(plan: Plan, payload: Any, saga: Saga) -> Any:
    """Runs the steps and returns the definition's result (null if it names none)."""
    steps: dict[str, Any] = {}
    scope = {
        "payload": payload,
        "steps": steps,
        "command": {"id": saga.id, "type": saga.type, "attributes": dict(saga.attributes)},
    }
    if plan.linear:
        for step in plan.steps:
            steps[step.name] = await _run_step(step, scope, saga)
    else:
        gates = {step.name: Gate() for step in plan.steps}
        await saga.all(*[_branch(step, gates, scope, saga) for step in plan.steps])
    try:
        return plan.result.render(scope)
    except ExpressionError as error:
        raise _failed(error) from None


def definition_type(plan: Plan) -> CommandType:
    """A definition as the engine's type of command; its payload is any JSON value."""

    def start(payload: Any, saga: Saga) -> Coroutine[Any, Any, Any]:
        return run(plan, payload, saga)

    return CommandType(plan.definition.name, plan.definition.version, object, plan.services, start)


async def _branch(step: StepPlan, gates: dict[str, Gate], scope: dict[str, Any], saga: Saga) -> None:
    for name in step.after:
        await gates[name]
    scope["steps"][step.name] = await _run_step(step, scope, saga)
    gates[step.name].open()


async def _run_step(step: StepPlan, scope: dict[str, Any], saga: Saga) -> Any:
    try:
        if step.when is not None and not step.when.holds(scope):
            await Skip(step.name, step.service)
            return None
        request = step.request.request(scope)
    except ExpressionError as error:
        raise _failed(error) from None
    undo = step.undo
    return await saga.step(
        step.name,
        request,
        undo=None if undo is None else undo.fixed or _undo(undo, step.name, scope),
        undo_retry=None if undo is None else undo.retry,
        undo_timeout=None if undo is None else undo.source.timeout,
        retry=step.request.retry,
        timeout=step.timeout,
        give_up_after=step.give_up_after,
    )


def _undo(undo: RequestPlan, name: str, scope: dict[str, Any]) -> Callable[[Any], Request]:
    """The undo's request, made when it is needed, from all outcomes that the step could use and its own."""
    return lambda outcome: undo.request({**scope, "steps": {**scope["steps"], name: outcome}})


def _failed(error: ExpressionError) -> CommandFailed:
    return CommandFailed(str(error), code="expression")
