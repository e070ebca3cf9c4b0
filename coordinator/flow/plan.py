"""Who makes what for whom: worked out once, when a flow is built, and everything that is wrong with it told at once.

A datum has one source: the payload, a field of it, a step, or clients (*provided*).  A field that may be null and is
provided as well is taken from the payload where it is there.  A step comes after the sources of its inputs; an input
that may be missing is not waited for, unless its step says that it may make none (``-> X | None``): that is an answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, get_type_hints

from msgspec import Struct

from coordinator.awaitables import StepCall
from coordinator.engine.misuse import MisusedSaga, check
from coordinator.engine.topology import find_cycle
from coordinator.flow.data import Kind, Use, use_of
from coordinator.flow.steps import FlowStep, Input
from coordinator.model.call import Request


class FlowError(ValueError):
    """A flow that cannot be built; ``faults`` are sentences, each a thing to be repaired."""

    def __init__(self, name: str, faults: Sequence[str]) -> None:
        super().__init__(f"flow {name} cannot be built:" + "".join(f"\n- {fault}" for fault in faults))
        self.faults = tuple(faults)


class Source(Struct, frozen=True):
    """Where a datum comes from: ``node`` is a step's name, or the datum's own if clients provide it; ``field`` is the
    payload's.  ``nullable``: there may be none."""

    kind: Kind
    origin: Literal["payload", "field", "step", "provided"]
    node: str = ""
    field: str = ""
    nullable: bool = False

    @property
    def described(self) -> str:
        return {
            "payload": "the payload",
            "field": f"the payload's field {self.field}",
            "step": f"step {self.node}",
            "provided": "who provides it",
        }[self.origin]


class Plan(Struct, frozen=True):
    """A flow that holds together; ``sources`` are those of data by name, ``result`` is the step that makes it."""

    name: str
    payload: Kind
    steps: tuple[FlowStep, ...]
    sources: Mapping[str, Source]
    provided: tuple[Kind, ...]
    late: frozenset[str]
    result: str | None

    def source(self, taken: Input) -> Source:
        return self.sources[taken.kind.name]

    def needed(self, name: str) -> bool:
        """Whether any step waits for the datum."""
        return any(each.kind.name == name and not each.optional for step in self.steps for each in step.inputs)


def triggers(steps: Iterable[FlowStep], name: str) -> bool:
    """Whether a new value of the datum runs any of the steps again."""
    return any(
        step.reruns and any(each.kind.name == name and not each.read_only for each in step.inputs) for step in steps
    )


def plan_of(
    name: str,
    payload: Any,
    steps: Sequence[FlowStep],
    provided: Sequence[Any],
    late: Sequence[Any],
    result: Any,
    services: Iterable[str] | None,
) -> Plan:
    """Raises FlowError with all that is wrong."""
    return _Planner(name, steps).plan(payload, provided, late, result, services)


class _Planner:
    def __init__(self, name: str, steps: Sequence[FlowStep]) -> None:
        self.name = name
        self.faults: list[str] = []
        self.steps = [step for step in steps if self._is_step(step)]
        self.kinds: dict[str, Kind] = {}
        self.sources: dict[str, Source] = {}

    def plan(
        self, payload: Any, provided: Sequence[Any], late: Sequence[Any], result: Any, services: Iterable[str] | None
    ) -> Plan:
        self._check_steps(services)
        start = self._kind("the payload", payload)
        later = [kind for each in dict.fromkeys((*provided, *late)) if (kind := self._kind("a provided datum", each))]
        if start is not None:
            self._source(Source(start, "payload"))
        for step in self.steps:
            self._makes(step, start)
        self._fields(payload, later)
        for kind in later:
            if not self._may_be_in_payload(kind):
                self._source(Source(kind, "provided", node=kind.name))
        for step in self.steps:
            for each in step.inputs:
                self._takes(step, each)
        reopening = frozenset(kind.name for each in late if (kind := self._kind("a late datum", each, told=True)))
        self._check_provided(later, reopening)
        maker = self._result(result)
        self._check_cycle()
        if self.faults:
            raise FlowError(self.name, list(dict.fromkeys(self.faults)))
        assert start is not None
        return Plan(self.name, start, tuple(self.steps), self.sources, tuple(later), reopening, maker)

    # ------------------------------------------------------------ what there is

    def _is_step(self, step: Any) -> bool:
        if isinstance(step, FlowStep):
            return True
        self.faults.append(f"{getattr(step, '__name__', step)!r} is no step: decorate it with @step")
        return False

    def _check_steps(self, services: Iterable[str] | None) -> None:
        names: set[str] = set()
        if not self.steps:
            self.faults.append("it has no steps")
        for step in self.steps:
            self.faults += step.faults
            if step.name in names:
                self.faults.append(f"two steps are called {step.name}: give one another name, {step.name}.named(…)")
            names.add(step.name)
            self._check_options(step)
            if services is not None and step.asks not in ("", "local", *services):
                self.faults.append(f"step {step.name} asks {step.asks}, which is not among the flow's services")

    def _check_options(self, step: FlowStep) -> None:
        """What would be a mistake of exec when the step is issued is one now: its name, durations, retries."""
        call = StepCall(
            name=step.name,
            request=Request(service=step.asks or "any"),
            retry=step.retry,
            undo_retry=step.undo_retry,
            timeout=step.timeout,
            undo_timeout=step.undo_timeout,
            give_up_after=step.give_up_after,
            deadline=step.deadline,
        )
        try:
            check(call)
        except MisusedSaga as mistake:
            self.faults.append(str(mistake))
        point = step.savepoint
        if point is not None and (point.attempts < 1 or point.then not in ("retry", "undo", "dead_letter")):
            self.faults.append(f"step {step.name}: a savepoint retries, undoes or holds, 1 time or more, not {point}")

    def _kind(self, what: str, type: Any, *, told: bool = False) -> Kind | None:
        """``told``: what is wrong with it has been said already."""
        try:
            use = use_of(type)
        except TypeError as error:
            if not told:
                self.faults.append(f"{what}: {error}")
            return None
        if use.kind is None or use.optional or use.read_only:
            if not told:
                self.faults.append(f"{what} is a plain type, not {type}")
            return None
        return use.kind if told else self._known(use.kind)

    def _known(self, kind: Kind) -> Kind:
        """The same name means the same type everywhere."""
        known = self.kinds.setdefault(kind.name, kind)
        if known != kind:
            self.faults.append(
                f"two different data are called {kind.name}, {_shown(known.type)} and {_shown(kind.type)}: "
                f'name one of them, Annotated[…, Datum("name")]'
            )
        return known

    def _source(self, source: Source) -> None:
        known = self.sources.setdefault(source.kind.name, source)
        if known is not source:
            self.faults.append(f"{source.kind.name} comes from two: {known.described} and {source.described}")

    def _makes(self, step: FlowStep, payload: Kind | None) -> None:
        if step.makes is None:
            return
        kind = self._known(step.makes)
        if payload is not None and kind.name == payload.name:
            self.faults.append(f"step {step.name} makes {kind.name}, which is the payload")
        else:
            self._source(Source(kind, "step", node=step.name, nullable=step.nullable))

    def _fields(self, payload: Any, later: Sequence[Kind]) -> None:
        """The payload's fields that are data which steps take, or clients may provide."""
        wanted = {each.kind.name for step in self.steps for each in step.inputs} | {kind.name for kind in later}
        try:
            fields = _fields_of(payload)
        except NameError as error:
            self.faults.append(f"the payload, {_shown(payload)}: {error} (where its types are to be found)")
            return
        for field, use in fields.items():
            kind = use.kind
            if kind is not None and kind.name in wanted and self.kinds.get(kind.name, kind) == kind:
                self._source(Source(self._known(kind), "field", node=self._listened(kind, later), field=field,
                                    nullable=use.optional))  # fmt: skip

    def _listened(self, kind: Kind, later: Sequence[Kind]) -> str:
        return kind.name if kind in later else ""

    def _may_be_in_payload(self, kind: Kind) -> bool:
        source = self.sources.get(kind.name)
        return source is not None and source.origin == "field" and source.nullable

    # ------------------------------------------------------------ what is wanted

    def _takes(self, step: FlowStep, taken: Input) -> None:
        kind = self._known(taken.kind)
        source = self.sources.get(kind.name)
        if source is None:
            self.faults.append(
                f"step {step.name} needs {kind.name}, which no step makes and nobody provides"
                if not taken.optional
                else f"step {step.name} may take {kind.name}, which no step makes and nobody provides"
            )
        elif source.nullable and not taken.optional and source.node != kind.name:
            self.faults.append(
                f"step {step.name} needs {kind.name}, but {source.described} may give none: take {kind.name} | None"
            )

    def _check_provided(self, later: Sequence[Kind], reopening: frozenset[str]) -> None:
        taken = {each.kind.name for step in self.steps for each in step.inputs}
        names = {step.name for step in self.steps}
        for kind in later:
            if kind.name not in taken:
                self.faults.append(f"{kind.name} is provided, but no step takes it")
            elif kind.name in reopening and not triggers(self.steps, kind.name):
                self.faults.append(f"{kind.name} comes late, but no step that takes it reruns")
            if kind.name in names:
                self.faults.append(f"a step and a datum that is provided are both called {kind.name}")

    def _result(self, result: Any) -> str | None:
        if result is None:
            return None
        kind = self._kind("the result", result)
        if kind is None:
            return None
        source = self.sources.get(kind.name)
        if source is None or source.origin != "step":
            self.faults.append(f"no step makes the result, {kind.name}")
            return None
        return source.node

    def _check_cycle(self) -> None:
        made = {step.name: step.makes for step in self.steps}
        sources = {
            step.name: [
                source.node
                for each in step.inputs
                if (source := self.sources.get(each.kind.name)) is not None and source.origin == "step"
            ]
            for step in self.steps
        }
        circle = find_cycle(sources)
        if circle is not None:
            data = [kind.name if (kind := made[name]) is not None else "" for name in circle[:-1]]
            way = "".join(f"{name} –{datum}→ " for name, datum in zip(circle, data, strict=False)) + circle[-1]
            self.faults.append(f"steps wait for each other in a circle: {way}")


def _fields_of(payload: Any) -> dict[str, Use]:
    """The fields of a payload that are data; raises NameError for a type that is not where its class is."""
    uses: dict[str, Use] = {}
    if not (isinstance(payload, type) and hasattr(payload, "__annotations__")):
        return uses
    for field, annotation in get_type_hints(payload, include_extras=True).items():
        try:
            uses[field] = use_of(annotation)
        except TypeError:
            continue
    return uses


def _shown(type: Any) -> str:
    module = getattr(type, "__module__", "")
    return f"{module}.{getattr(type, '__qualname__', type)}" if module else str(type)
