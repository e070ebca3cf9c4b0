"""Draws commands for people, as Mermaid flowcharts.

A definition is drawn as it was written: an arrow for each ``after``, ``when`` on the step's own line, the undo dotted
beside its step. The same picture with each step's state in colour shows a command that runs it.  Code has no plan to
draw, so its command is drawn as the sequence of steps that it has taken so far.

Everything an author chose is escaped to Mermaid's entity codes, since a diagram is often rendered in a web page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from coordinator.model.command import CommandView, StepState, StepView
from coordinator.model.definition import Definition, RequestSource, Step

LABEL_MAX: Final = 80

COLOURS: Final[Mapping[StepState, str]] = {
    StepState.PENDING: "fill:#f4f4f5,stroke:#a1a1aa,color:#52525b",
    StepState.RUNNING: "fill:#dbeafe,stroke:#2563eb,color:#1e3a8a",
    StepState.DELAYED: "fill:#fef3c7,stroke:#d97706,color:#78350f",
    StepState.WAITING: "fill:#ede9fe,stroke:#7c3aed,color:#4c1d95",
    StepState.SUCCEEDED: "fill:#dcfce7,stroke:#16a34a,color:#14532d",
    StepState.FAILED: "fill:#fee2e2,stroke:#dc2626,color:#7f1d1d",
    StepState.UNDOING: "fill:#ffedd5,stroke:#ea580c,color:#7c2d12",
    StepState.UNDONE: "fill:#e7e5e4,stroke:#78716c,color:#44403c",
    StepState.SKIPPED: "fill:#ffffff,stroke:#a1a1aa,color:#71717a,stroke-dasharray:4",
    StepState.DEAD_LETTER: "fill:#7f1d1d,stroke:#450a0a,color:#ffffff",
}


def of_definition(definition: Definition, steps: Sequence[StepView] = ()) -> str:
    """A definition's flowchart; ``steps`` colour it with the states of a command that runs it."""
    states = {view.name: view for view in steps}
    nodes = {step.name: f"s{index}" for index, step in enumerate(definition.steps)}
    lines = ["flowchart TD"]
    lines += [f'  {nodes[step.name]}["{_label(step, states.get(step.name))}"]' for step in definition.steps]
    for step in definition.steps:
        arrow = "-->|when|" if step.when is not None else "-->"
        lines += [f"  {nodes[before]} {arrow} {nodes[step.name]}" for before in step.after]
    for step in definition.steps:
        if step.undo is not None:
            node = nodes[step.name]
            lines.append(f'  {node} -.-|undo| {node}u(["{_target(step.undo)}"])')
    return _finished(lines, [(nodes[view.name], view.state) for view in steps if view.name in nodes])


def of_steps(steps: Sequence[StepView]) -> str:
    """The flowchart of what a command has done so far, in the order of ``steps``."""
    lines = ["flowchart TD"]
    if not steps:
        lines.append('  none["no step yet"]')
    for index, view in enumerate(steps):
        label = "<br/>".join([f"<b>{_escaped(view.name)}</b>", _escaped(view.service), _progress(view)])
        lines.append(f'  s{index}["{label}"]')
    lines += [f"  s{index} --> s{index + 1}" for index in range(len(steps) - 1)]
    return _finished(lines, [(f"s{index}", view.state) for index, view in enumerate(steps)])


def of_command(view: CommandView, definition: Definition | None) -> str:
    """A command's flowchart: its definition with states, or, of a code command, its steps so far."""
    return of_steps(view.steps) if definition is None else of_definition(definition, view.steps)


def _label(step: Step, view: StepView | None) -> str:
    lines = [f"<b>{_escaped(step.name)}</b>", _target(step.request)]
    if step.when is not None:
        lines.append(f"when {_escaped(step.when)}")
    if view is not None:
        lines.append(_progress(view))
    return "<br/>".join(lines)


def _target(request: RequestSource) -> str:
    return _escaped(" ".join(part for part in (request.service, request.method, request.path) if part))


def _progress(view: StepView) -> str:
    return _escaped(view.state if view.attempts < 2 else f"{view.state}, {view.attempts} calls")


def _finished(lines: list[str], states: list[tuple[str, StepState]]) -> str:
    lines = list(lines)
    lines += [f"  classDef {state} {COLOURS[state]}" for state in dict.fromkeys(state for _, state in states)]
    lines += [f"  class {node} {state}" for node, state in states]
    return "\n".join(lines) + "\n"


_PLAIN: Final = frozenset(" ,.-_/+")


def _escaped(text: str) -> str:
    """A label's text: anything but letters, digits and a few signs as its code, and not longer than LABEL_MAX."""
    short = text if len(text) <= LABEL_MAX else text[: LABEL_MAX - 1] + "…"
    return "".join(each if each.isalnum() or each in _PLAIN else f"#{ord(each)};" for each in short)
