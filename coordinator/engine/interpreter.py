"""Runs a definition, as an ``exec`` over the same `Saga` that code commands use: one recovery path, one way to undo.

Steps that follow one another run in a plain loop.  Otherwise every step and every joint is a node of an `engine.graph`,
which starts it the moment *its own* predecessors have ended, not when a whole layer has.

``when`` that is false skips the step: its outcome is null, and who comes after it goes on; so does a guard, which is
the condition of a block or of an ``else`` around it, decided once by the joint that lets in.  An expression without a
value fails the command (code ``expression``) where it stands, and what was recorded is undone.  In an undo's own
request there is nothing left to fail into: the error is raised to the engine, which parks that undo as a dead letter.

A node runs again after a savepoint that came before it, and when late data has renewed what it comes after.  What it
sees then are the newest outcomes; what undoes its earlier run was made of the outcomes of that run.  Steps follow one
another for what they do and not only for what they return, so a new outcome that is equal to the last one (`_Outcome`)
is a new one all the same.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any

import msgspec

from coordinator.awaitables import Skip, StepCall, Wait
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
    alone = definition.on_failure == "dead_letter"  # a failed step is a dead letter, and no failure of the command's
    graph = None if plan.linear and not alone else Graph(_nodes(plan))

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
        steps = scope["steps"]
        for step in plan.steps:
            if _left_out(step, scope):
                await Skip(step.name, step.service)
                steps[step.name] = None
            else:
                steps[step.name] = await _step(step, running, scope)
    else:
        alone = plan.definition.on_failure == "dead_letter"
        ended = await run_graph(graph, saga, context=running, dead_letter=alone)
        scope["steps"] = {step.name: _value(ended.get(step.name)) for step in plan.steps}
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
        return {**self.scope, "steps": {name: _value(values.get(name)) for name in place.uses}}

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


class _Outcome:
    """A node's value: of one round, and so equal to no other."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


def _value(outcome: _Outcome | None) -> Any:
    """What expressions see; null for what was skipped, has lost, or is not there."""
    return None if outcome is None else outcome.value


def _nodes(plan: Plan) -> list[Node]:
    return [
        *[_node(step, _step_run(step), listens=step.listens) for step in plan.steps],
        *[_node(joint, _joint_run(joint)) for joint in plan.joints],
    ]


def _node(place: Place, run: Callable[[Run], Coroutine[Any, Any, Any]], *, listens: bool = False) -> Node:
    saved = place.savepoint
    return Node(
        name=place.name,
        run=run,
        after=place.after,
        optional=tuple(dict.fromkeys((*place.optional, *place.renewed))),
        reads=tuple(name for name in place.optional if name not in place.renewed),
        join=place.join,
        losers=place.losers,
        savepoint=None
        if saved is None
        else Savepoint(then=saved.then, attempts=saved.attempts, exhausted=saved.exhausted),
        listens=listens,
        reruns=place.reruns and not listens,  # it listens on as it is
    )


def _step_run(step: StepPlan) -> Callable[[Run], Coroutine[Any, Any, Any]]:
    once = step.request is None and step.decision is None  # a datum or a time: it is there, whatever else is renewed

    async def run(node: Run) -> Any:
        running: _Running = node.context
        scope = running.seen(step, node.values)
        if not _let_in(step, node) or _left_out(step, scope):
            running.skipped.add(step.name)
            await Skip(step.name, step.service)
            return SKIPPED
        running.skipped.discard(step.name)
        former: _Outcome | None = node.values.get(step.name)
        if once and not step.listens and former is not None:
            return _Outcome(former.value)
        value = await _step(step, running, scope)
        if step.listens and former is not None and former.value == value:
            return former  # the same datum: nothing new
        return _Outcome(value)

    return run


def _joint_run(joint: JointPlan) -> Callable[[Run], Coroutine[Any, Any, Any]]:
    async def enter(node: Run) -> Any:
        running: _Running = node.context
        if not _let_in(joint, node):
            return SKIPPED
        try:
            return _Outcome(joint.when is None or joint.when.holds(running.seen(joint, node.values)))
        except ExpressionError as error:
            raise _failed(error) from None

    async def leave(node: Run) -> Any:
        """Skipped if all that it holds was."""
        running: _Running = node.context
        return SKIPPED if running.skipped.issuperset(joint.members) else _Outcome(None)

    return enter if joint.entry else leave


def _let_in(place: Place, node: Run) -> bool:
    return place.guard is None or _value(node.values.get(place.guard.entry)) is place.guard.value


# ---------------------------------------------------------------- steps


def _left_out(step: StepPlan, scope: dict[str, Any]) -> bool:
    """By its own condition."""
    try:
        return step.when is not None and not step.when.holds(scope)
    except ExpressionError as error:
        raise _failed(error) from None


def _step(step: StepPlan, running: _Running, scope: dict[str, Any]) -> Awaitable[Any]:
    """What the step does; awaits to its outcome."""
    try:
        if step.callbacks:
            scope = {**scope, "callback": running.callbacks(step.callbacks)}
        if step.request is not None:
            return _call(step, step.request, scope)
        if step.decision is not None:
            return _decided(_decision(step.name, step.decision, scope))
    except ExpressionError as error:
        raise _failed(error) from None
    if step.data is not None:
        return running.receive(step.name, step.data)
    return Wait(name=step.name, kind="sleep", timeout=step.sleep)


def _call(step: StepPlan, planned: RequestPlan, scope: dict[str, Any]) -> StepCall:
    undo = step.undo
    return StepCall(
        name=step.name,
        request=planned.request(scope),
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


async def _decided(wait: Wait) -> Any:
    return msgspec.to_builtins(await wait)


def _failed(error: ExpressionError) -> CommandFailed:
    return CommandFailed(str(error), code="expression")
