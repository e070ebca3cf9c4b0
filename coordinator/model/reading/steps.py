"""Reads steps of every kind, nested as their author wrote them; `order` makes them flat.

A step is of the kind of the one field that says so: ``service`` (a request), ``decision``, ``data``, ``sleep``, or
``steps`` (a block).  What else it may have depends on that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from msgspec import Struct

from coordinator.model.definition import (
    ATTEMPTS_MAX,
    DataRule,
    DecisionRule,
    Join,
    Losers,
    RequestSource,
    SavepointRule,
    Step,
)
from coordinator.model.reading.fields import Fields, Report, Services, did_you_mean, shown
from coordinator.model.reading.requests import REQUEST_FIELDS, Requests


class Written(Struct, frozen=True, kw_only=True):
    """A step as it was written: with ``step`` what it does, or a block of ``steps``; ``otherwise`` is its ``else``.

    ``after`` is as given, None for the default.
    """

    at: str
    name: str
    step: Step | None = None
    steps: tuple[Written, ...] = ()
    otherwise: tuple[Written, ...] = ()
    after: Any = None
    join: Join = "all"
    losers: Losers = "undo"
    when: str | None = None
    savepoint: SavepointRule | None = None

    @property
    def end(self) -> str:
        """What those wait for that come after it."""
        return f"{self.name}/out" if self.step is not None and self.otherwise else self.name


_EVERY: Final = ("name", "after", "join", "losers", "when", "else", "savepoint")
_KINDS: Final[dict[str, tuple[str, tuple[str, ...]]]] = {
    "service": ("a request", (*_EVERY, *REQUEST_FIELDS, "undo", "give_up_after", "deadline")),
    "decision": ("a decision", (*_EVERY, "decision")),
    "data": ("a data step", (*_EVERY, "data")),
    "sleep": ("a sleep", (*_EVERY, "sleep")),
    "steps": ("a block", (*_EVERY, "steps")),
}
_ALL_FIELDS: Final = frozenset(field for _, fields in _KINDS.values() for field in fields)
_DECISION_FIELDS: Final = ("input", "roles", "timeout", "on_timeout", "on_reject")
_DATA_FIELDS: Final = ("name", "timeout", "on_timeout", "optional", "reruns", "reopens")
_INNER: Final = {"decision": _DECISION_FIELDS, "data": _DATA_FIELDS, "sleep": ("for",)}


class Steps(Fields):
    """Reads lists of steps; ``read`` counts them, blocks and all."""

    def __init__(self, services: Services, report: Report) -> None:
        super().__init__(report)
        self.requests = Requests(services, report)
        self.read = 0
        self.kinds: Final[dict[str, Callable[[dict[str, Any], str, str], Step]]] = {
            "service": self.request,
            "decision": self.decision,
            "data": self.data,
            "sleep": self.sleep,
        }

    def steps(self, value: Any, at: str) -> tuple[Written, ...]:
        if not isinstance(value, list) or not value:
            self.report(at, f"a list of at least one step is needed, not {shown(value)}")
            return ()
        self.read += len(value)
        return tuple(self.step(step, f"{at}[{index}]") for index, step in enumerate(value))

    def step(self, value: Any, at: str) -> Written:
        if not self.is_object(value, at, None):
            return Written(at=at, name="", step=_nothing(at, ""))
        if "name" not in value:
            self.report(at, "a step needs a name")
        name = self.name(value["name"], f"{at}.name") if "name" in value else ""
        kind = self.kind(value, at)
        self.known(value, at, kind)
        block = kind == "steps"
        when = self.when(value.get("when"), f"{at}.when")
        if value.get("else") is not None and value.get("when") is None:
            self.report(f"{at}.else", "else is what runs when the condition is false: it needs a when")
        return Written(
            at=at,
            name=name,
            step=self.kinds[kind](value, at, name) if kind in self.kinds else None if block else _nothing(at, name),
            steps=self.steps(value["steps"], f"{at}.steps") if block else (),
            otherwise=self.steps(value["else"], f"{at}.else") if value.get("else") is not None else (),
            after=value.get("after"),
            join=self.choice(value, at, "join", ("all", "any")),
            losers=self.losers(value, at),
            when=when,
            savepoint=self.savepoint(value.get("savepoint"), f"{at}.savepoint"),
        )

    def kind(self, value: dict[str, Any], at: str) -> str:
        """What the step does; nothing if that cannot be said."""
        kinds = [kind for kind in _KINDS if value.get(kind) is not None]
        if len(kinds) == 1:
            return kinds[0]
        if "service" in value and not kinds:
            return "service"  # whose fault is told by its reader
        if kinds:
            both = " and ".join(f'"{kind}"' for kind in kinds)
            self.report(at, f"a step does one thing, not {both}")
        else:
            self.report(at, "a step needs a service, or else a decision, data, a sleep or steps")
        return ""

    def known(self, value: dict[str, Any], at: str, kind: str) -> None:
        """Reports the fields that a step of this kind does not have."""
        noun, fields = _KINDS.get(kind, ("", tuple(_ALL_FIELDS)))
        for key in value:
            if key in fields:
                continue
            if kind in _INNER and key in _INNER[kind]:
                fault = f'{noun} has "{key}" inside: {{"{kind}": {{"{key}": …}}}}'
            elif key in _ALL_FIELDS:
                fault = f'{noun} has no "{key}"'
            else:
                fault = f'unknown field "{key}"{did_you_mean(key, fields)}'
            self.report(f"{at}.{key}", fault)

    def when(self, value: Any, at: str) -> str | None:
        if value is None or isinstance(value, str):
            return value
        self.report(at, f"a condition is an expression in a string, not {shown(value)}")
        return None

    def losers(self, value: dict[str, Any], at: str) -> Losers:
        if value.get("losers") is not None and value.get("join") != "any":
            self.report(f"{at}.losers", 'only a join of "any" has losers')
        return self.choice(value, at, "losers", ("undo", "keep"))

    def savepoint(self, value: Any, at: str) -> SavepointRule | None:
        if value is None or value is False:
            return None
        if value is True:
            return SavepointRule()
        if not self.is_object(value, at, ("then", "attempts", "exhausted")):
            return None
        rule = SavepointRule(
            then=self.choice(value, at, "then", ("retry", "undo", "dead_letter")),
            attempts=self.count(value, at, "attempts", ATTEMPTS_MAX, default=1),
            exhausted=self.choice(value, at, "exhausted", ("undo", "dead_letter")),
        )
        for field in ("attempts", "exhausted"):
            if value.get(field) is not None and rule.then != "retry":
                self.report(f"{at}.{field}", f'{field} is for "then": "retry"')
        return rule

    # ------------------------------------------------------------ kinds

    def request(self, value: dict[str, Any], at: str, name: str) -> Step:
        request = self.requests.request(value, at)
        return Step(
            at=at,
            name=name,
            request=request,
            undo=self.requests.undo(value.get("undo"), f"{at}.undo", request.service),
            give_up_after=self.duration(value, at, "give_up_after"),
            deadline=self.duration(value, at, "deadline"),
        )

    def decision(self, value: dict[str, Any], at: str, name: str) -> Step:
        rule, at_rule = value["decision"], f"{at}.decision"
        if rule is True:
            rule = {}
        if not self.is_object(rule, at_rule, _DECISION_FIELDS):
            return Step(at=at, name=name, decision=DecisionRule())
        decision = DecisionRule(
            input=rule.get("input"),
            roles=self.roles(rule.get("roles"), f"{at_rule}.roles"),
            timeout=self.duration(rule, at_rule, "timeout"),
            on_timeout=self.choice(rule, at_rule, "on_timeout", ("reject", "approve", "fail")),
            on_reject=self.choice(rule, at_rule, "on_reject", ("undo", "continue")),
        )
        return Step(at=at, name=name, decision=decision)

    def roles(self, value: Any, at: str) -> tuple[str, ...]:
        if value is None:
            return ()
        if not isinstance(value, list):
            self.report(at, f"roles are a list of names, not {shown(value)}")
            return ()
        for index, role in enumerate(value):
            if not isinstance(role, str) or not role.strip():
                self.report(f"{at}[{index}]", f"a role is named by a string, not {shown(role)}")
        return tuple(role for role in value if isinstance(role, str))

    def data(self, value: dict[str, Any], at: str, name: str) -> Step:
        rule, at_rule = value["data"], f"{at}.data"
        if isinstance(rule, str):
            return Step(at=at, name=name, data=DataRule(name=self.name(rule, at_rule)))
        if rule is True:
            rule = {}
        if not self.is_object(rule, at_rule, _DATA_FIELDS):
            return Step(at=at, name=name, data=DataRule(name=name))
        reopens = self.flag(rule, at_rule, "reopens") or False
        reruns, optional = self.flag(rule, at_rule, "reruns"), self.flag(rule, at_rule, "optional")
        implied = {"reruns": reruns, "optional": optional}
        for field, given in implied.items() if reopens else ():
            if given is False:
                self.report(f"{at_rule}.{field}", f"data that reopens the command is {field} as well")
        if reruns and not optional and not reopens:
            self.report(f"{at_rule}.reruns", 'what nobody waits for can run things again: it needs "optional": true')
        if reopens or optional:
            for field in ("timeout", "on_timeout"):
                if rule.get(field) is not None:
                    self.report(f"{at_rule}.{field}", f"nobody waits for optional data: it has no {field}")
        data = DataRule(
            name=name if rule.get("name") is None else self.name(rule["name"], f"{at_rule}.name"),
            timeout=self.duration(rule, at_rule, "timeout"),
            on_timeout=self.choice(rule, at_rule, "on_timeout", ("fail", "null")),
            optional=bool(optional or reopens),
            reruns=bool(reruns or reopens),
            reopens=reopens,
        )
        return Step(at=at, name=name, data=data)

    def sleep(self, value: dict[str, Any], at: str, name: str) -> Step:
        rule = value["sleep"]
        if isinstance(rule, dict):
            if self.is_object(rule, f"{at}.sleep", _INNER["sleep"]) and rule.get("for") is None:
                self.report(f"{at}.sleep", "a sleep needs for: how long")
            duration = self.duration(rule, f"{at}.sleep", "for")
        else:
            duration = self.duration_text(rule, f"{at}.sleep")
        return Step(at=at, name=name, sleep=duration or "1s")


def _nothing(at: str, name: str) -> Step:
    """Stands for a step that could not be read."""
    return Step(at=at, name=name, request=RequestSource(at=at, service=""))
