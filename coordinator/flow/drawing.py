"""Draws a flow as a Mermaid flowchart: its steps, and the data between them as the words on the arrows.

A dotted arrow is an input that is not waited for, or never runs the step again.  A command that runs the flow has each
step in the colour of its last round.
"""

from __future__ import annotations

from collections.abc import Sequence

from coordinator.engine.diagram import escaped, finished, progress
from coordinator.flow.plan import Plan
from coordinator.flow.steps import FlowStep
from coordinator.model.command import StepState, StepView


def drawn(plan: Plan, views: Sequence[StepView] = ()) -> str:
    """The flow's chart; ``views`` colour it."""
    last = _last_rounds(views)
    nodes = {step.name: f"s{index}" for index, step in enumerate(plan.steps)}
    data = {kind.name: f"d{index}" for index, kind in enumerate(plan.provided)}
    lines = ["flowchart TD", f'  payload[/"{escaped(plan.payload.name)}"/]']
    lines += [f'  {data[kind.name]}[/"{_lines(kind.name, "provided", last)}"/]' for kind in plan.provided]
    lines += [f'  {nodes[step.name]}["{_lines(step.name, step.asks, last)}"]' for step in plan.steps]
    for step in plan.steps:
        lines += _arrows(plan, step, nodes | data)
    if plan.result is not None:
        makes = next(step.makes for step in plan.steps if step.name == plan.result)
        assert makes is not None
        lines += [f'  result(["{escaped(makes.name)}"])', f"  {nodes[plan.result]} --> result"]
    states: list[tuple[str, StepState]] = [
        (node, last[name].state) for name, node in (nodes | data).items() if name in last
    ]
    return finished(lines, states)


def _arrows(plan: Plan, step: FlowStep, nodes: dict[str, str]) -> list[str]:
    arrows = []
    for each in step.inputs:
        source = plan.source(each)
        start = nodes[source.node] if source.node else "payload"
        arrow = "-.->" if each.optional or each.read_only else "-->"
        arrows.append(f"  {start} {arrow}|{escaped(each.kind.name)}| {nodes[step.name]}")
    return arrows


def _last_rounds(views: Sequence[StepView]) -> dict[str, StepView]:
    """Each step's last round; to listen for another datum is no round while there is one that came."""
    last: dict[str, StepView] = {}
    for view in views:
        name = view.name.partition("#")[0]
        if name not in last or view.state not in (StepState.WAITING, StepState.SKIPPED):
            last[name] = view
    return last


def _lines(name: str, about: str, last: dict[str, StepView]) -> str:
    words = [f"<b>{escaped(name)}</b>", *([escaped(about)] if about else [])]
    if name in last:
        words.append(progress(last[name]))
    return "<br/>".join(words)
