"""A flow's plan as nodes of `engine.graph`: one for each step, one for each datum that clients may give.

Nodes are made once for all commands; what belongs to one command comes with its Run, the payload as its context.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Any

import msgspec
from msgspec import Struct, ValidationError
from msgspec.structs import replace

from coordinator.awaitables import Skip, StepCall, Undo, Wait
from coordinator.engine.topology import SKIPPED, Graph, Node, Run
from coordinator.flow.data import Kind
from coordinator.flow.plan import Plan, Source, triggers
from coordinator.flow.steps import FlowStep
from coordinator.model.call import LocalCall, Request
from coordinator.model.records import Failure
from coordinator.saga import StepFailed

Fetch = Callable[[Run], Any]


def graph_of(plan: Plan) -> Graph:
    """The nodes of a flow; ``context`` of a run is its payload."""
    return Graph([*(_listener(plan, kind) for kind in plan.provided), *(_node(plan, step) for step in plan.steps)])


# ---------------------------------------------------------------- data from clients


def _listener(plan: Plan, kind: Kind) -> Node:
    """A datum that is needed is waited for; one that may come, or come again, is listened for."""
    needed = plan.needed(kind.name)
    again = not needed or triggers(plan.steps, kind.name)
    source = plan.sources[kind.name]
    return Node(name=kind.name, listens=again, run=partial(_receive, kind, source.field, needed))


async def _receive(kind: Kind, field: str, needed: bool, run: Run) -> Any:
    """The next value, from the payload if it is there already.  What has another shape was refused at the door; where
    it came by a version of the type that took it, the next one is waited for: a bad datum must not end a payment."""
    if field and run.round == 1 and (given := getattr(run.context, field)) is not None:
        return given
    while True:
        value = await Wait(name=kind.name, kind="data", channel=kind.name, listens=not needed or run.round > 1)
        try:
            return msgspec.convert(value, kind.type, str_keys=True)
        except ValidationError:
            continue


# ---------------------------------------------------------------- steps


def _node(plan: Plan, step: FlowStep) -> Node:
    after: list[str] = []
    optional: list[str] = []
    reads: list[str] = []
    fetched: dict[str, Fetch] = {}
    for each in step.inputs:
        source = plan.source(each)
        fetched[each.parameter] = _fetch(source)
        if not source.node:
            continue
        waited = not each.optional or (source.origin == "step" and source.nullable)
        if not waited:
            optional.append(source.node)
        if each.read_only:
            reads.append(source.node)
        elif waited:
            after.append(source.node)
    run = {"asks": _asks, "local": _local, "within": _within}[step.sort]
    return Node(
        name=step.name,
        after=tuple(after),
        optional=tuple(optional),
        reads=tuple(reads),
        savepoint=step.savepoint,
        reruns=step.reruns,
        run=partial(run, step, fetched),
    )


def _fetch(source: Source) -> Fetch:
    if source.node:
        return lambda run, name=source.node: run.values.get(name)  # type: ignore[misc]
    if source.field:
        return lambda run, field=source.field: getattr(run.context, field)  # type: ignore[misc]
    return lambda run: run.context


def _given(step: FlowStep, fetched: Mapping[str, Fetch], run: Run) -> dict[str, Any]:
    given = {parameter: fetch(run) for parameter, fetch in fetched.items()}
    if step.saga is not None:
        given[step.saga] = run.saga
    return given


async def _asks(step: FlowStep, fetched: Mapping[str, Fetch], run: Run) -> Any:
    given = _given(step, fetched, run)
    request = step.function(**given)
    if request is None and step.nullable:
        await Skip(step.name, step.asks)
        return SKIPPED
    if not isinstance(request, Request):
        raise TypeError(f"step {step.name} returns the Request to make, not {type(request).__name__}")
    return await _call(step, _bound(step, request), given)


async def _local(step: FlowStep, fetched: Mapping[str, Fetch], run: Run) -> Any:
    given = _given(step, fetched, run)
    return await _call(step, LocalCall(partial(_computed, step), (_Inputs(given),), step.asks), given)


async def _within(step: FlowStep, fetched: Mapping[str, Fetch], run: Run) -> Any:
    """A part of exec; what it awaits is recorded, so its own value need not be."""
    value = await step.function(**_given(step, fetched, run))
    try:
        return msgspec.convert(value, _shape(step))
    except ValidationError as error:
        shape = "None" if step.makes is None else step.makes.name
        failure = Failure("bad_outcome", f"the outcome is no {shape}: {error}", step=step.name)
        raise StepFailed(step.name, failure) from None


def _call(step: FlowStep, request: Request | LocalCall, given: Mapping[str, Any]) -> StepCall:
    return StepCall(
        name=step.name,
        request=request,
        into=_shape(step),
        undo=_undo(step, given),
        undo_retry=step.undo_retry,
        undo_timeout=step.undo_timeout,
        retry=step.retry,
        timeout=step.timeout,
        give_up_after=step.give_up_after,
        deadline=step.deadline,
    )


class _Inputs(Struct, frozen=True):
    """What a local step is called with, by parameter."""

    given: dict[str, Any]


async def _computed(step: FlowStep, inputs: Any) -> Any:
    """Calls a local step; an operator's own input (`requeue`) is the only datum's value, or an object by parameter."""
    if isinstance(inputs, _Inputs):
        given = inputs.given
    else:
        named = inputs if len(step.inputs) != 1 else {step.inputs[0].parameter: inputs}
        given = {
            each.parameter: msgspec.convert(
                named.get(each.parameter), each.kind.type | None if each.optional else each.kind.type, str_keys=True
            )
            for each in step.inputs
        }
    value = step.function(**given)
    return await value if isinstance(value, Coroutine) else value


def _shape(step: FlowStep) -> Any:
    """What its outcome is decoded as; an outcome that makes no datum may be anything."""
    if step.makes is None:
        return None
    return step.makes.type | None if step.nullable else step.makes.type


# ---------------------------------------------------------------- undo


def _undo(step: FlowStep, given: Mapping[str, Any]) -> Undo | None:
    """As `StepCall` has it: a request, or a function of the outcome, here with the inputs that it also takes."""
    undo = step.undo
    if undo is None or isinstance(undo, LocalCall):
        return undo
    if isinstance(undo, Request):
        return _bound(step, undo)
    return partial(_undo_of, step, {name: given[name] for name in step.undo_takes})


def _undo_of(step: FlowStep, given: Mapping[str, Any], outcome: Any) -> Request | LocalCall:
    undo: Any = step.undo
    made = partial(undo, outcome, **given)
    if inspect.iscoroutinefunction(undo):
        return LocalCall(made, (), step.asks or "local")
    request = made()
    return _bound(step, request) if isinstance(request, Request) else request


def _bound(step: FlowStep, request: Request) -> Request:
    if step.bound is not None and request.service == step.service:
        return replace(request, service=step.bound)
    return request
