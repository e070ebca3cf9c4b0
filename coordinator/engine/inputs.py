"""What the expressions of a definition may refer to: checked when it is registered, and not when it runs, because then
it is half way through.

``payload`` and ``command`` are there always.  The outcome of a step is there once the step has ended, so an expression
may use those steps that its own comes after; they may have been skipped, or given up as another was first in a join,
and are null then.  A callback is for what a step sends, and only while somebody is still to take the datum.
"""

from __future__ import annotations

from collections.abc import Iterable

from coordinator.engine.expressions import COMMAND_FIELDS, Expression
from coordinator.engine.syntax import Path
from coordinator.model.definition import Definition
from coordinator.model.reading import Report, did_you_mean


class Inputs:
    """Checks the expressions of one definition.

    ``callbacks`` leads from what a callback may be called, the name of a datum or of a step that takes it, to the
    datum.
    """

    def __init__(self, definition: Definition, report: Report) -> None:
        self.steps = frozenset(step.name for step in definition.steps)
        self.blocks = definition.blocks
        self.data = definition.data
        self.callbacks = {name: rule.name for name, rule in self.data.items()}
        self.callbacks |= {rule.name: rule.name for rule in self.data.values()}
        self.report = report

    def check(
        self, expressions: Iterable[Expression], before: frozenset[str], step: str, *, sends: bool = False
    ) -> None:
        """That they use only what is there when they are evaluated, for ``step``, which comes after ``before``;
        ``sends``: they are in what the step sends."""
        for expression in expressions:
            for path in expression.inputs:
                fault = self._fault(path, before, step, sends)
                if fault is not None:
                    shown = f"{expression.source[:100]}"
                    self.report(expression.path, f"in {shown!r} at character {path.start}: {fault}")

    def _fault(self, path: Path, before: frozenset[str], step: str, sends: bool) -> str | None:
        if path.root == "payload":
            return None
        if path.root == "command":
            if not path.keys or path.keys[0] in COMMAND_FIELDS:
                return None
            return f"unknown input {str(path)!r}: command has {', '.join(COMMAND_FIELDS)}"
        if path.root == "callback":
            return self._callback_fault(path, before, sends)
        if not path.keys or not isinstance(path.keys[0], str):
            return 'steps is used with the name of a step: steps.charge or steps["charge"]'
        name = path.keys[0]
        if name in self.blocks:
            return f'"{name}" is a block and has no outcome of its own: use a step in it'
        if name not in self.steps:
            return f'unknown step "{name}"{did_you_mean(name, self.steps)}'
        if name in before:
            return None
        if name == step:
            return f'the outcome of step "{name}" is not there before it has run (its undo may use it)'
        return f'step "{name}" does not come before "{step}": name it in after'

    def _callback_fault(self, path: Path, before: frozenset[str], sends: bool) -> str | None:
        if not sends:
            return "a callback is for what a step sends: its path, body and headers, or a decision's input"
        if len(path.keys) != 1 or not isinstance(path.keys[0], str):
            return 'callback is used with the name of data: callback.otp or callback["otp"]'
        name = path.keys[0]
        if name not in self.callbacks:
            hint = did_you_mean(name, self.callbacks) if self.callbacks else ": no step is given data"
            return f'unknown data "{name}"{hint}'
        takers = [step for step, rule in self.data.items() if rule.name == self.callbacks[name]]
        if before.issuperset(takers) and not any(self.data[step].optional for step in takers):
            return f'step "{takers[-1]}" has been given "{name}" before: nobody would take another one'
        return None
