"""A definition made ready to run: its templates compiled, what they refer to checked (`inputs`), its order worked out
with what may come late (`late`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from coordinator.awaitables import Retry
from coordinator.engine import syntax
from coordinator.engine.expressions import Expression, Scope, compile_expression
from coordinator.engine.inputs import Inputs
from coordinator.engine.late import Late
from coordinator.engine.templates import Template, path_template, text_template, value_template
from coordinator.errors import InvalidPayload
from coordinator.model.call import Request
from coordinator.model.definition import (
    DataRule,
    DecisionRule,
    Definition,
    Guard,
    Join,
    Joint,
    Losers,
    RequestSource,
    SavepointRule,
    Step,
)
from coordinator.model.reading import Services, parse

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

    @property
    def templates(self) -> tuple[Template, ...]:
        return (self.path, self.body, *(value for _, value in self.headers))


class DecisionPlan(Struct, frozen=True):
    """What a person is asked, its input ready to be made."""

    rule: DecisionRule
    input: Template


class Place(Struct, frozen=True, kw_only=True):
    """What steps and joints have in common: when they run, and if they do.

    ``after`` are waited for, ``optional`` are optional data that it comes after.  ``reruns``: it comes after data whose
    arrival runs it again, however far behind; what is ``renewed`` then has a new outcome, besides ``after``: such data,
    and what is behind something in ``after`` that may be skipped and so has none.  ``uses`` are the steps whose
    outcomes its expressions name, its own not among them.
    """

    name: str
    after: tuple[str, ...]
    optional: tuple[str, ...]
    renewed: tuple[str, ...]
    reruns: bool
    join: Join
    losers: Losers
    guard: Guard | None
    when: Expression | None
    savepoint: SavepointRule | None
    uses: tuple[str, ...]


class StepPlan(Place, frozen=True, kw_only=True):
    """One step, ready to run: what it does is one of ``request``, ``decision``, ``data`` and ``sleep``.

    ``callbacks`` are those it sends, by the name that its templates use, to the name of the datum.
    """

    service: str
    request: RequestPlan | None
    decision: DecisionPlan | None
    data: DataRule | None
    sleep: str | None
    undo: RequestPlan | None
    timeout: str | None
    give_up_after: str | None
    deadline: str | None
    callbacks: Mapping[str, str]

    @property
    def listens(self) -> bool:
        """Nobody waits for it, and it may come again."""
        return self.data is not None and self.data.optional


class JointPlan(Place, frozen=True, kw_only=True):
    """One joint; ``entry`` and ``members`` as in `model.definition.Joint`."""

    entry: bool
    members: tuple[str, ...]


class Plan(Struct, frozen=True, kw_only=True):
    """A definition, ready to run; `interpreter.definition_type` runs it."""

    definition: Definition
    steps: tuple[StepPlan, ...]
    joints: tuple[JointPlan, ...]
    result: Template
    linear: bool
    services: frozenset[str]


def compile_definition(content: Any, *, services: Services) -> Plan:
    """Checks and compiles a definition; raises InvalidPayload with all faults, each with its path.

    ``services`` as in `model.reading.parse`.
    """
    faults: list[tuple[str, str]] = []
    definition = parse(content, services, lambda path, fault: faults.append((path, fault)))
    plan = None if definition is None else _Compiler(definition, faults).plan()
    if faults or plan is None:
        raise InvalidPayload.all(sorted(set(faults), key=faults.index)[:FAULTS_MAX])
    return plan


class _Compiler:
    """Compiles one definition, collecting faults."""

    def __init__(self, definition: Definition, faults: list[tuple[str, str]]) -> None:
        self.definition = definition
        self.inputs = Inputs(definition, self.report)
        self.late = Late(definition)
        self.faults = faults

    def report(self, path: str, fault: str) -> None:
        self.faults.append((path, fault))

    def plan(self) -> Plan:
        definition = self.definition
        result = value_template(definition.result, "$.result", self.report)
        self.inputs.check(result.expressions, self.inputs.steps, "")
        return Plan(
            definition=definition,
            steps=tuple(self.step(step) for step in definition.steps),
            joints=tuple(self.joint(joint) for joint in definition.joints),
            result=result,
            linear=definition.linear,
            services=definition.services,
        )

    # ------------------------------------------------------------ places

    def step(self, step: Step) -> StepPlan:
        before, name = step.ancestors, step.name
        when = self.condition(step)
        request = None if step.request is None else self.request(step.request, before, name, sends=True)
        undo = None if step.undo is None else self.request(step.undo, before | {name}, name)
        decision = None if step.decision is None else self.decision(step, step.decision)
        sent = request.templates if request is not None else () if decision is None else (decision.input,)
        undone = () if undo is None else undo.templates
        inputs = [path for template in (*sent, *undone) for each in template.expressions for path in each.inputs]
        return StepPlan(
            **self.order(step, when, inputs),
            service=step.service,
            request=request,
            decision=decision,
            data=step.data,
            sleep=step.sleep,
            undo=undo,
            timeout=None if step.request is None else step.request.timeout,
            give_up_after=step.give_up_after,
            deadline=step.deadline,
            callbacks={
                str(path.keys[0]): self.inputs.callbacks[str(path.keys[0])]
                for path in inputs
                if path.root == "callback" and path.keys and path.keys[0] in self.inputs.callbacks
            },
        )

    def joint(self, joint: Joint) -> JointPlan:
        return JointPlan(**self.order(joint, self.condition(joint), []), entry=joint.entry, members=joint.members)

    def order(self, place: Step | Joint, when: Expression | None, inputs: list[syntax.Path]) -> dict[str, Any]:
        """The fields of a Place."""
        after, optional = self.late.before(place)
        paths = [*inputs, *(() if when is None else when.inputs)]
        names = dict.fromkeys(str(path.keys[0]) for path in paths if path.root == "steps" and path.keys)
        uses = tuple(name for name in names if name != place.name)
        return {
            "name": place.name,
            "after": after,
            "optional": optional,
            "renewed": self.late.renewed(place),
            "reruns": self.late.reruns(place),
            "join": place.join,
            "losers": place.losers,
            "guard": place.guard,
            "when": when,
            "savepoint": place.savepoint,
            "uses": uses,
        }

    def condition(self, place: Step | Joint) -> Expression | None:
        if place.when is None:
            return None
        at = f"{place.at}.when"
        try:
            when = compile_expression(place.when, at)
        except syntax.Fault as fault:
            self.report(at, f"bad expression: {fault}")
            return None
        self.inputs.check([when], place.ancestors, place.name.partition("/")[0])
        return when

    # ------------------------------------------------------------ templates

    def request(self, request: RequestSource, before: frozenset[str], step: str, *, sends: bool = False) -> RequestPlan:
        """``sends``: it is what the step sends, not its undo."""
        at = request.at
        compile_path = path_template if request.path else text_template  # a gRPC request has none
        path = compile_path(request.path, f"{at}.path", self.report)
        body = value_template(request.body, f"{at}.body", self.report)
        headers = tuple(
            (name, text_template(text, f"{at}.headers.{name}", self.report)) for name, text in request.headers.items()
        )
        plan = RequestPlan(source=request, path=path, body=body, headers=headers, retry=_retry(request), fixed=None)
        for template in plan.templates:
            self.inputs.check(template.expressions, before, step, sends=sends)
        for name, value in headers:
            if value.static and not _is_header_text(value.render({})):
                self.report(f"{at}.headers.{name}", "a header has no line breaks and no control characters")
        if all(template.static for template in plan.templates):
            return replace(plan, fixed=plan.request({}))
        return plan

    def decision(self, step: Step, rule: DecisionRule) -> DecisionPlan:
        template = value_template(rule.input, f"{step.at}.decision.input", self.report)
        self.inputs.check(template.expressions, step.ancestors, step.name, sends=True)
        return DecisionPlan(rule, template)


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
