"""A definition made ready to run: its templates compiled, and what they refer to checked.

An expression may use ``payload``, ``command`` (id, type, attributes) and the outcomes of steps that have certainly
ended when it is evaluated: those that its step comes after, for an undo also the step's own, for the result all.
Everything else is refused when the definition is registered and not when it runs, because then it is half way
through.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from coordinator.awaitables import Retry
from coordinator.engine import syntax
from coordinator.engine.expressions import COMMAND_FIELDS, Expression, Scope, compile_expression
from coordinator.engine.templates import Template, path_template, text_template, value_template
from coordinator.errors import InvalidPayload
from coordinator.model import definition as source
from coordinator.model.call import Request
from coordinator.model.definition import Definition, RequestSource, Services, did_you_mean

FAULTS_MAX = 100


class RequestPlan(Struct, frozen=True, kw_only=True):
    """Makes the request of a step or an undo; ``fixed`` is the request itself if no expression decides about it."""

    source: RequestSource
    path: Template
    body: Template
    headers: tuple[tuple[str, Template], ...]
    retry: Retry | None
    fixed: Request | None

    def request(self, scope: Scope) -> Request:
        """Raises ExpressionError."""
        if self.fixed is not None:
            return self.fixed
        source = self.source
        return Request(
            service=source.service,
            method=source.method,
            path=self.path.render(scope),
            body=self.body.render(scope),
            headers={name: _header(value, scope) for name, value in self.headers} if self.headers else source.headers,
            answers=source.answers,
        )


class StepPlan(Struct, frozen=True, kw_only=True):
    """One step, ready to run."""

    name: str
    service: str
    after: tuple[str, ...]
    when: Expression | None
    request: RequestPlan
    undo: RequestPlan | None
    timeout: str | None
    give_up_after: str | None


class Plan(Struct, frozen=True, kw_only=True):
    """A definition, ready to run; `interpreter.run` runs it."""

    definition: Definition
    steps: tuple[StepPlan, ...]
    result: Template
    linear: bool
    services: frozenset[str]


def compile_definition(content: Any, *, services: Services) -> Plan:
    """Checks and compiles a definition; raises InvalidPayload with all faults, each with its path.

    ``services`` as in `model.definition.parse`.
    """
    faults: list[tuple[str, str]] = []
    definition = source.parse(content, services, lambda path, fault: faults.append((path, fault)))
    plan = None if definition is None else _Compiler(definition, faults).plan()
    if faults or plan is None:
        raise InvalidPayload.all(sorted(set(faults), key=faults.index)[:FAULTS_MAX])
    return plan


class _Compiler:
    """Compiles one definition, collecting faults."""

    def __init__(self, definition: Definition, faults: list[tuple[str, str]]) -> None:
        self.definition = definition
        self.names = frozenset(step.name for step in definition.steps)
        self.faults = faults

    def report(self, path: str, fault: str) -> None:
        self.faults.append((path, fault))

    def plan(self) -> Plan:
        definition = self.definition
        result = value_template(definition.result, "$.result", self.report)
        self.check(result.expressions, self.names, None)
        return Plan(
            definition=definition,
            steps=tuple(self.step(step) for step in definition.steps),
            result=result,
            linear=definition.linear,
            services=definition.services,
        )

    def step(self, step: source.Step) -> StepPlan:
        before = step.ancestors
        when = None if step.when is None else self.condition(step.when, f"{step.at}.when")
        if when is not None:
            self.check([when], before, step.name)
        return StepPlan(
            name=step.name,
            service=step.service,
            after=step.after,
            when=when,
            request=self.request(step.request, before, step.name),
            undo=None if step.undo is None else self.request(step.undo, before | {step.name}, step.name),
            timeout=step.request.timeout,
            give_up_after=step.give_up_after,
        )

    def condition(self, text: str, at: str) -> Expression | None:
        try:
            return compile_expression(text, at)
        except syntax.Fault as fault:
            self.report(at, f"bad expression: {fault}")
            return None

    def request(self, request: RequestSource, before: frozenset[str], step: str) -> RequestPlan:
        at = request.at
        compile_path = path_template if request.path else text_template  # a gRPC request has none
        path = compile_path(request.path, f"{at}.path", self.report)
        body = value_template(request.body, f"{at}.body", self.report)
        headers = tuple(
            (name, text_template(text, f"{at}.headers.{name}", self.report)) for name, text in request.headers.items()
        )
        for template in (path, body, *(value for _, value in headers)):
            self.check(template.expressions, before, step)
        for name, value in headers:
            if value.static and not _is_header_text(value.render({})):
                self.report(f"{at}.headers.{name}", "a header has no line breaks and no control characters")
        plan = RequestPlan(source=request, path=path, body=body, headers=headers, retry=_retry(request), fixed=None)
        if path.static and body.static and all(value.static for _, value in headers):
            return replace(plan, fixed=plan.request({}))
        return plan

    def check(self, expressions: Iterable[Expression], before: frozenset[str], step: str | None) -> None:
        """That expressions use only what is there when they are evaluated."""
        for expression in expressions:
            for path in expression.inputs:
                fault = self.fault(path, before, step)
                if fault is not None:
                    shown = f"{expression.source[:100]}"
                    self.report(expression.path, f"in {shown!r} at character {path.start}: {fault}")

    def fault(self, path: syntax.Path, before: frozenset[str], step: str | None) -> str | None:
        if path.root == "payload":
            return None
        if path.root == "command":
            if not path.keys or path.keys[0] in COMMAND_FIELDS:
                return None
            return f"unknown input {str(path)!r}: command has {', '.join(COMMAND_FIELDS)}"
        if not path.keys or not isinstance(path.keys[0], str):
            return 'steps is used with the name of a step: steps.charge or steps["charge"]'
        name = path.keys[0]
        if name not in self.names:
            return f'unknown step "{name}"{did_you_mean(name, self.names)}'
        if name in before:
            return None
        if name == step:
            return f'the outcome of step "{name}" is not there before it has run (its undo may use it)'
        return f'step "{name}" does not come before "{step}": name it in after'


def _retry(request: RequestSource) -> Retry | None:
    rule = request.retry
    if rule is None:
        return None
    given = {field: getattr(rule, field) for field in rule.__struct_fields__}
    return Retry(**{field: value for field, value in given.items() if value is not None})


def _is_header_text(text: str) -> bool:
    return all(character == "\t" or " " <= character != "\x7f" for character in text)


def _header(value: Template, scope: Scope) -> str:
    text: str = value.render(scope)
    if value.expressions and not _is_header_text(text):
        raise value.expressions[0].error("a header has no line breaks and no control characters")
    return text
