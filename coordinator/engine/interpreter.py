"""Runs a definition, as an ``exec`` over the same `Saga` that code commands use: one recovery path, one way to undo.

Steps that follow one another run in a plain loop.  Otherwise every step and every joint is a node of an `engine.graph`,
which starts it the moment *its own* predecessors have ended, not when a whole layer has.

``when`` that is false skips the step: its outcome is null, and who comes after it goes on; so does a guard, which is
the condition of a block or of an ``else`` around it, decided once by the joint that lets in.  An expression without a
value fails the command (code ``expression``) where it stands, and what was recorded is undone.  In an undo's own
request there is nothing left to fail into: the error is raised to the engine, which parks that undo as a dead letter.

A node runs again after a savepoint that came before it, and when late data has renewed what it comes after.  What it
sees then are the newest outcomes; what undoes its earlier run was made of the outcomes of that run.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any

import msgspec

from coordinator.awaitables import Gate, Skip, Wait
from coordinator.engine.expressions import ExpressionError
from coordinator.engine.graph import run_graph
from coordinator.engine.plan import DecisionPlan, JointPlan, Place, Plan, RequestPlan, StepPlan
from coordinator.engine.topology import SKIPPED, Graph, Node, Run, Savepoint
from coordinator.model.call import Request
from coordinator.model.definition import DataRule
from coordinator.saga import CommandFailed, CommandType, PauseAfter, Saga, state_deadlines


def definition_type(plan: Plan) -> CommandType:
    """A definition as the engine's type of command; its payload is any JSON value."""
    definition = plan.definition
    graph = None if plan.linear else Graph(_nodes(plan))

    def start(payload: Any, saga: Saga) -> Coroutine[Any, Any, Any]:
        return _run(plan, graph, payload, saga)

    pause = definition.pause_after
    return CommandType(
        definition.name,
        definition.version,
        object,
        plan.services,
        start,
        on_failure=definition.on_failure,
        deadlines=state_deadlines(definition.deadlines),
        pause_after=None if pause is None else PauseAfter(errors=pause.errors, resume_after=pause.resume_after),
        data=frozenset(rule.name for rule in definition.data.values()),
        reopens=frozenset(rule.name for rule in definition.data.values() if rule.reopens),
    )


async def _run(plan: Plan, graph: Graph | None, payload: Any, saga: Saga) -> Any:
    """Runs the steps and returns the definition's result (null if it names none)."""
    running = _Running(payload, saga)
    scope = running.scope
    if graph is None:
        for step in plan.steps:
            scope["steps"][step.name] = await _step(step, running, scope)
    else:
        ended = await run_graph(graph, saga, context=running)
        scope["steps"] = {step.name: ended.get(step.name) for step in plan.steps}
    try:
        return plan.result.render(scope)
    except ExpressionError as error:
        raise _failed(error) from None


class _Running:
    """One run of a definition: what its expressions see, and the callbacks it has handed out.

    A callback is one address for as long as its step waits for the datum, however many requests hold it; the next one
    is made when the step has ended, or was given up.
    """

    __slots__ = ("saga", "scope", "skipped", "urls")

    def __init__(self, payload: Any, saga: Saga) -> None:
        self.saga = saga
        self.scope: dict[str, Any] = {
            "payload": payload,
            "steps": {},
            "command": {"id": saga.id, "type": saga.type, "attributes": dict(saga.attributes)},
        }
        self.skipped: set[str] = set()
        self.urls: dict[str, str] = {}

    def seen(self, place: Place, values: Mapping[str, Any]) -> dict[str, Any]:
        """The scope of a node's expressions; what has no value, as it lost or has not come, is null."""
        return {**self.scope, "steps": {name: values.get(name) for name in place.uses}}

    def callbacks(self, names: Mapping[str, str]) -> dict[str, str]:
        for datum in names.values():
            if datum not in self.urls:
                self.urls[datum] = self.saga.callback_url(datum)
        return {name: self.urls[datum] for name, datum in names.items()}

    async def receive(self, name: str, rule: DataRule) -> Any:
        try:
            return await Wait(
                name=name,
                kind="data",
                channel=rule.name,
                timeout=rule.timeout,
                on_timeout=rule.on_timeout,
                listens=rule.optional,
            )
        finally:
            self.urls.pop(rule.name, None)


# ---------------------------------------------------------------- nodes


def _nodes(plan: Plan) -> list[Node]:
    return [
        *[_node(step, _step_run(step, listens=step.listens), listens=step.listens) for step in plan.steps],
        *[_node(joint, _joint_run(joint)) for joint in plan.joints],
    ]


def _node(place: Place, run: Callable[[Run], Coroutine[Any, Any, Any]], *, listens: bool = False) -> Node:
    saved = place.savepoint
    return Node(
        name=place.name,
        run=run,
        after=place.after,
        optional=place.optional,
        reads=tuple(name for name in place.optional if name not in place.renewed),
        join=place.join,
        losers=place.losers,
        savepoint=None
        if saved is None
        else Savepoint(then=saved.then, attempts=saved.attempts, exhausted=saved.exhausted),
        listens=listens,
        reruns=place.reruns and not listens,  # it listens on as it is
    )


def _step_run(step: StepPlan, *, listens: bool) -> Callable[[Run], Coroutine[Any, Any, Any]]:
    async def run(node: Run) -> Any:
        running: _Running = node.context
        running.skipped.discard(step.name)
        if _let_in(step, node):
            value = await _step(step, running, running.seen(step, node.values), skipped=SKIPPED)
        else:
            await Skip(step.name, step.service)
            value = SKIPPED
        if value is SKIPPED:
            running.skipped.add(step.name)
            if listens:
                await Gate()  # that nobody opens: a listener that returned would be begun again
        return value

    return run


def _joint_run(joint: JointPlan) -> Callable[[Run], Coroutine[Any, Any, Any]]:
    async def enter(node: Run) -> Any:
        running: _Running = node.context
        if not _let_in(joint, node):
            return SKIPPED
        try:
            return joint.when is None or joint.when.holds(running.seen(joint, node.values))
        except ExpressionError as error:
            raise _failed(error) from None

    async def leave(node: Run) -> Any:
        """Skipped if all that it holds was."""
        running: _Running = node.context
        return SKIPPED if running.skipped.issuperset(joint.members) else None

    return enter if joint.entry else leave


def _let_in(place: Place, node: Run) -> bool:
    return place.guard is None or node.values.get(place.guard.entry) is place.guard.value


# ---------------------------------------------------------------- steps


async def _step(step: StepPlan, running: _Running, scope: dict[str, Any], skipped: Any = None) -> Any:
    """Runs one step; returns its outcome, or ``skipped``."""
    try:
        if step.when is not None and not step.when.holds(scope):
            await Skip(step.name, step.service)
            return skipped
        awaited = _awaited(step, running, scope)
    except ExpressionError as error:
        raise _failed(error) from None
    outcome = await awaited
    return outcome if step.decision is None else msgspec.to_builtins(outcome)


def _awaited(step: StepPlan, running: _Running, scope: dict[str, Any]) -> Awaitable[Any]:
    """What the step does; raises ExpressionError."""
    if step.callbacks:
        scope = {**scope, "callback": running.callbacks(step.callbacks)}
    if step.request is not None:
        return _call(step, step.request, scope, running.saga)
    if step.decision is not None:
        return _decision(step.name, step.decision, scope)
    if step.data is not None:
        return running.receive(step.name, step.data)
    return Wait(name=step.name, kind="sleep", timeout=step.sleep)


def _call(step: StepPlan, planned: RequestPlan, scope: dict[str, Any], saga: Saga) -> Awaitable[Any]:
    undo = step.undo
    return saga.step(
        step.name,
        planned.request(scope),
        undo=None if undo is None else undo.fixed or _undo(undo, step.name, scope),
        undo_retry=None if undo is None else undo.retry,
        undo_timeout=None if undo is None else undo.source.timeout,
        retry=planned.retry,
        timeout=step.timeout,
        give_up_after=step.give_up_after,
        deadline=step.deadline,
    )


def _undo(undo: RequestPlan, name: str, scope: dict[str, Any]) -> Callable[[Any], Request]:
    """The undo's request, made when it is needed, from all outcomes that the step could use and its own."""
    return lambda outcome: undo.request({**scope, "steps": {**scope["steps"], name: outcome}})


def _decision(name: str, planned: DecisionPlan, scope: dict[str, Any]) -> Wait:
    rule = planned.rule
    return Wait(
        name=name,
        kind="decision",
        channel=name,
        input=planned.input.render(scope),
        roles=rule.roles,
        timeout=rule.timeout,
        on_timeout=rule.on_timeout,
        rejected="return" if rule.on_reject == "continue" else "fail",
    )


def _failed(error: ExpressionError) -> CommandFailed:
    return CommandFailed(str(error), code="expression")
