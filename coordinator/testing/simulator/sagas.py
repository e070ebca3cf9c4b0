"""A user's own sagas in the simulator: what ``coordinator simulate`` runs.

    calm      each command once, nothing goes wrong: how many appends and calls it makes, which steps
    crashes   each command again and again: the process dies before and after every single append and call, while all
              goes well, and while each step in turn is refused for good
    worlds    seeds, as everywhere else in the simulator: several instances, every fault

The services are scripted: what they say to each key is the seed's, what they answer is an example's, or is made up from
the type that the step asks for (``into``), or is ``{"id": <key>}``.  They are idempotent by key, as services must be.

What a saga can do wrong, and how it shows:

- *a step's name, or whether it is issued at all, hangs on time or chance*: after a crash ``exec`` does not issue it any
  more, or its effect is live and nothing of it is recorded: a double effect, or one that nobody will ever undo;
- *its request does*: one key, two requests, and the second is answered as the first;
- *``exec`` raises what is no failure of a step*: the command cannot go on; with the line;
- *a step with an effect has no undo*: it stays done although the command did not complete; told as a note, since it may
  be meant so, and with ``strict`` as a mistake.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from random import Random
from typing import Any, Final

import msgspec
from msgspec import Struct

from coordinator.engine.registry import Registry
from coordinator.errors import CoordinatorError
from coordinator.model.call import Call
from coordinator.saga import App
from coordinator.testing.simulator.examples import CannotMakeUp, made_up
from coordinator.testing.simulator.plan import WHOLE, Crash, Cut, Example, Plan, calm, plan, stream
from coordinator.testing.simulator.world import Report, World, play

PAYLOADS: Final = 3  # made up for each type
_ID: Final = re.compile(r"\bc\d+(-\d+)?\b")


class Unusable(Exception):
    """There is nothing to simulate; the text says what is missing."""


class Examples(Struct, frozen=True, forbid_unknown_fields=True):
    """What a user gives: commands with their payloads, answers by service and step (``*``: any), services that only
    read."""

    commands: tuple[Example, ...] = ()
    answers: Mapping[str, Mapping[str, Any]] = {}
    reads: tuple[str, ...] = ()


class Run(Struct, frozen=True):
    """One run: a seed's world, or (``crash``, ``declining``) one command in peace; what came of it, and how it is asked
    for again."""

    report: Report
    again: str
    peaceful: bool  # nothing went wrong in it
    steps: tuple[str, ...]
    left: frozenset[tuple[str, str]]  # type and step: live although the command did not complete, and without undo


class Sagas:
    """The commands of an application, ready to be run; raises Unusable."""

    def __init__(self, app: App, examples: Examples, *, strict: bool = False) -> None:
        self.app = app
        self.strict = strict
        self._answers = examples.answers
        self._reads = frozenset(examples.reads)
        self.examples = examples.commands or tuple(_made_up(app))
        self.services = tuple(sorted({*_services(app), *examples.answers, *_named(self.examples)})) or ("service",)
        self._check()

    def _check(self) -> None:
        """What a daemon would not admit is no use here."""
        registry = Registry(self.app, dict.fromkeys(self.services, "http"))
        for example in self.examples:
            try:
                if example.definition is not None:
                    registry.resolve_inline(example.definition)
                else:
                    registry.resolve(example.type or "").check_payload(example.payload)
            except CoordinatorError as refusal:
                raise Unusable(f"{example.name}: {refusal}") from None

    # ------------------------------------------------------------ runs

    def calm(self, number: int, crash: Crash | None = None, declining: str = "", *, journal: bool = False) -> Run:
        """One command, by its place among the examples."""
        words = [f"--command {number}"]
        words += [f"--crash {crash}"] if crash is not None else []
        words += [f"--declining {declining}"] if declining else []
        peace = calm([self.examples[number]], self.services, crash=crash, declining=declining)
        return self._play(peace, " ".join(words), journal=journal)

    def world(self, seed: int, *, journal: bool = False) -> Run:
        """One seed's world, with all of the commands."""
        return self._play(
            plan(seed, examples=self.examples, services=self.services), f"--seed {seed} --replay", journal=journal
        )

    def crashes(self, number: int) -> Iterator[Run]:
        """Every crash that one command can meet."""
        peaceful = self.calm(number)
        yield peaceful
        if peaceful.report.violations:
            return
        for declining in ("", *peaceful.steps):
            whole = self.calm(number, declining=declining) if declining else peaceful
            if declining:
                yield whole
            for kind, count in (("append", whole.report.appends), ("call", whole.report.calls)):
                for at in range(1, count + 1):
                    for after in (False, True):
                        yield self.calm(number, Crash(kind, at, after), declining)

    def _play(self, planned: Plan, again: str, *, journal: bool, cut: Cut = WHOLE) -> Run:
        worlds: list[World] = []

        def make(directory: Path) -> World:
            world = World(planned, directory, keep_journal=journal, users=self.app)
            world.ledger.reads = self._reads
            world.ledger.bodies = self._bodies(world)
            worlds.append(world)
            return world

        chance = random.getstate()
        random.seed(planned.seed)  # a saga that asks for it gets the same each time
        try:
            report = play(make, cut)
        finally:
            random.setstate(chance)
        judge = worlds[0].judge
        left = frozenset(judge.left)
        if self.strict and left and not report.violations:
            told = tuple(f"{type} did not complete, and step {step} has no undo" for type, step in sorted(left))
            report = msgspec.structs.replace(report, violations=told)
        report = msgspec.structs.replace(report, violations=_named_by_type(report.violations, planned))
        steps = dict.fromkeys(step for _, step in judge.declared)
        peaceful = planned.crash is None and not planned.declining and not planned.faults
        return Run(report, again, peaceful, tuple(steps), left)

    def _bodies(self, world: World) -> Callable[[Call], Any]:
        """What the services answer."""

        def body(call: Call) -> Any:
            known = self._answers.get(call.request.service, {})
            for step in (f"{call.step}/undo" if call.undo else call.step, "*"):
                if step in known:
                    return known[step]
            declared = world.judge.declared.get((call.command, call.step))
            if declared is None or declared.into is None or call.undo:
                return {"id": call.key}
            return made_up(declared.into, stream(world.plan.seed, call.key), f"$.{call.step}")

        return body


def _named_by_type(violations: tuple[str, ...], planned: Plan) -> tuple[str, ...]:
    """What the judge has found, in words that a user knows: his types, not the ids that we made up."""
    types = {order.id: order.example.name for order in planned.orders}
    return tuple(_ID.sub(lambda found: types.get(found[0], found[0]), violation) for violation in violations)


# ---------------------------------------------------------------- what is there to run


def _made_up(app: App) -> Iterator[Example]:
    """Some payloads for each type of the application."""
    if not app.commands:
        raise Unusable("the application has no commands: give one with --definition, or with --type and --payload")
    for (name, _), type in app.commands.items():
        for number in range(PAYLOADS):
            try:
                yield Example(name, made_up(type.payload, Random(number)))
            except CannotMakeUp as why:
                raise Unusable(f"a payload of {name} cannot be made up: {why}") from None


def _services(app: App) -> set[str]:
    return {service for type in app.commands.values() for service in type.services} | set(app.clients)


def _named(examples: tuple[Example, ...]) -> set[str]:
    """The services that definitions name."""
    found: set[str] = set()
    for example in examples:
        steps = (example.definition or {}).get("steps", [])
        for step in steps if isinstance(steps, list) else ():
            undo = step.get("undo") if isinstance(step, dict) else None
            for named in (step, undo):
                service = named.get("service") if isinstance(named, dict) else None
                if isinstance(service, str):
                    found.add(service)
    return found
