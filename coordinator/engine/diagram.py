"""Draws commands for people, as Mermaid flowcharts.

A definition is drawn as it was written: an arrow for each ``after``, ``when`` on the step's own line, the undo dotted
beside its step; each kind of step has its shape, a block is a frame around its steps, and a condition that leads two
ways is a rhombus.  The same picture with each step's state in colour shows a command that runs it.  Code has no plan
to draw, so its command is drawn as the sequence of steps that it has taken so far.

Everything an author chose is escaped to Mermaid's entity codes, since a diagram is often rendered in a web page.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from coordinator.model.command import CommandView, StepState, StepView
from coordinator.model.definition import Definition, Guard, Joint, RequestSource, SavepointRule, Step

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

_UNANSWERED: Final = frozenset({StepState.WAITING, StepState.SKIPPED})

_BOX: Final = ('["', '"]')
_DECISION: Final = ('{{"', '"}}')
_DATA: Final = ('[/"', '"/]')
_SLEEP: Final = ('(["', '"])')
_CONDITION: Final = ('{"', '"}')


def of_definition(definition: Definition, steps: Sequence[StepView] = ()) -> str:
    """A definition's flowchart; ``steps`` colour it with the states of a command that runs it."""
    picture = _Picture(definition, steps)
    lines = ["flowchart TD", *picture.nodes(), *picture.arrows(), *picture.undos()]
    return finished(lines, picture.states())


def of_steps(steps: Sequence[StepView]) -> str:
    """The flowchart of what a command has done so far, in the order of ``steps``."""
    lines = ["flowchart TD"]
    if not steps:
        lines.append('  none["no step yet"]')
    for index, view in enumerate(steps):
        service = [escaped(view.service)] if view.service else []
        label = "<br/>".join([f"<b>{escaped(view.name)}</b>", *service, progress(view)])
        lines.append(f'  s{index}["{label}"]')
    lines += [f"  s{index} --> s{index + 1}" for index in range(len(steps) - 1)]
    return finished(lines, [(f"s{index}", view.state) for index, view in enumerate(steps)])


def of_command(view: CommandView, definition: Definition | None) -> str:
    """A command's flowchart: its definition with states, or, of a code command, its steps so far."""
    return of_steps(view.steps) if definition is None else of_definition(definition, view.steps)


class _Picture:
    """One definition's.  A step that has run again (``charge#2``) is shown in its newest round; one that only listens
    on, after it has been given its datum, in the one before."""

    def __init__(self, definition: Definition, views: Sequence[StepView]) -> None:
        self.definition = definition
        self.joints = {joint.name: joint for joint in definition.joints}
        self.steps = {step.name: step for step in definition.steps}
        self.views: dict[str, StepView] = {}
        for view in views:
            step = self.steps.get(_first_name(view.name))
            if step is not None and not (step.optional and step.name in self.views and view.state in _UNANSWERED):
                self.views[step.name] = view
        self.ids = {name: f"s{index}" for index, name in enumerate(self.steps)}
        self.ids |= {name: f"c{index}" for index, name in enumerate(self.joints)}

    def nodes(self, block: str = "", depth: int = 1) -> Iterator[str]:
        """The nodes of a block (nothing: of none), and the frames of the blocks in it."""
        indent = "  " * depth
        for name, step in self.steps.items():
            if step.block == block:
                opening, closing = _shape(step)
                yield f"{indent}{self.ids[name]}{opening}{_label(step, self.views.get(name))}{closing}"
        for name, joint in self.joints.items():
            if joint.block == block and joint.when is not None:
                opening, closing = _CONDITION
                yield f"{indent}{self.ids[name]}{opening}{escaped(joint.when)}{closing}"
        for index, (name, around) in enumerate(self.definition.blocks.items()):
            if around == block:
                joint = self.joints[name]
                label = "<br/>".join([escaped(name), *_saved(joint.savepoint)])
                yield f'{indent}subgraph b{index}["{label}"]'
                yield from self.nodes(name, depth + 1)
                yield f"{indent}end"

    def arrows(self) -> Iterator[str]:
        """Joints that decide nothing are not drawn: what they wait for leads on to who waits for them."""
        for step in self.steps.values():
            yield from self._into(step, "when" if step.when is not None else "")
        for joint in self.joints.values():
            if joint.when is not None:
                yield from self._into(joint, "")

    def _into(self, place: Step | Joint, label: str) -> Iterator[str]:
        drawn: dict[str, None] = {}
        for before, said, dotted in self._before(place):
            words = " ".join(dict.fromkeys(word for word in (said, label) if word))
            arrow = "-.->" if dotted else "-->"
            shown = f"{arrow}|{words}|" if words else arrow
            drawn[f"  {self.ids[before]} {shown} {self.ids[place.name]}"] = None
        yield from drawn

    def _before(self, place: Step | Joint) -> Iterator[tuple[str, str, bool]]:
        """What leads to the place, through joints that are not drawn: (name, what the arrow says, dotted)."""
        for name in place.after:
            joint = self.joints.get(name)
            said = "any" if place.join == "any" else ""
            if joint is None:
                optional = self.steps[name].optional
                yield name, "if there" if optional else said, optional
            elif joint.when is not None:
                guard = place.guard
                yield name, "" if guard is None or guard.entry != name else "yes" if guard.value else "no", False
            else:
                yield from ((before, said or word, dotted) for before, word, dotted in self._through(joint))

    def _through(self, joint: Joint) -> Iterator[tuple[str, str, bool]]:
        yield from self._before(joint)
        entry = self.joints.get(f"{joint.name}/in")
        if not joint.entry and entry is not None and entry.when is not None and not self._has_else(entry):
            yield entry.name, "no", False

    def _has_else(self, entry: Joint) -> bool:
        places: list[Step | Joint] = [*self.steps.values(), *self.joints.values()]
        return any(place.guard == Guard(entry.name, False) for place in places)

    def undos(self) -> Iterator[str]:
        for name, step in self.steps.items():
            if step.undo is not None:
                node = self.ids[name]
                yield f'  {node} -.-|undo| {node}u(["{_target(step.undo)}"])'

    def states(self) -> list[tuple[str, StepState]]:
        return [(self.ids[name], view.state) for name, view in self.views.items()]


def _first_name(name: str) -> str:
    """``charge`` of ``charge#2``, which is its second round."""
    return name.partition("#")[0]


def _shape(step: Step) -> tuple[str, str]:
    if step.decision is not None:
        return _DECISION
    if step.data is not None:
        return _DATA
    return _BOX if step.request is not None else _SLEEP


def _label(step: Step, view: StepView | None) -> str:
    lines = [f"<b>{escaped(step.name)}</b>", *_does(step)]
    if step.when is not None:
        lines.append(f"when {escaped(step.when)}")
    if step.deadline is not None:
        lines.append(f"deadline {escaped(step.deadline)}")
    lines += _saved(step.savepoint)
    if view is not None:
        lines.append(progress(view))
    return "<br/>".join(lines)


def _does(step: Step) -> Iterator[str]:
    if step.request is not None:
        yield _target(step.request)
    elif step.decision is not None:
        rule = step.decision
        yield escaped("decision" + (f" by {', '.join(rule.roles)}" if rule.roles else ""))
        if rule.timeout is not None:
            yield escaped(f"{rule.on_timeout} after {rule.timeout}")
    elif step.data is not None:
        data = step.data
        late = "reopens" if data.reopens else "reruns" if data.reruns else "optional" if data.optional else ""
        yield escaped(f"data {data.name}" + (f", {late}" if late else ""))
        if data.timeout is not None:
            yield escaped(f"{data.on_timeout} after {data.timeout}")
    else:
        yield escaped(f"sleep {step.sleep}")


def _saved(rule: SavepointRule | None) -> Iterator[str]:
    if rule is not None:
        then = f"retry {rule.attempts}, then {rule.exhausted}" if rule.then == "retry" else rule.then
        yield escaped(f"savepoint, then {then}")


def _target(request: RequestSource) -> str:
    return escaped(" ".join(part for part in (request.service, request.method, request.path) if part))


def progress(view: StepView) -> str:
    """A step's state for its label, with its round and how often it was called."""
    again = view.name.partition("#")[2]
    words = [str(view.state), *([f"round {again}"] if again else [])]
    return escaped(", ".join(words if view.attempts < 2 else [*words, f"{view.attempts} calls"]))


def finished(lines: list[str], states: list[tuple[str, StepState]]) -> str:
    """The chart's text, its nodes coloured by state."""
    lines = list(lines)
    lines += [f"  classDef {state} {COLOURS[state]}" for state in dict.fromkeys(state for _, state in states)]
    lines += [f"  class {node} {state}" for node, state in states]
    return "\n".join(lines) + "\n"


_PLAIN: Final = frozenset(" ,.-_/+")


def escaped(text: str) -> str:
    """A label's text: anything but letters, digits and a few signs as its code, and not longer than LABEL_MAX."""
    short = text if len(text) <= LABEL_MAX else text[: LABEL_MAX - 1] + "…"
    return "".join(each if each.isalnum() or each in _PLAIN else f"#{ord(each)};" for each in short)
