"""A definition as its author wrote it (docs/definitions.md), checked for everything but its expressions.

It is data, made by `model.reading`: templates and conditions are still text, which `engine.plan` compiles and checks.

What an author nests (blocks of steps, what runs ``else``) is flat here: a definition is **steps**, which do something,
and **joints**, which only wait and decide, in one order without cycles.

    step with `when`, `else`    S/in ─yes→ S ──→ S/out         a block b     b/in ─yes→ its steps ─→ b
                                  └─no──→ its else ─┘                          └─no──→ its else ──┘

A joint ``/in`` decides the condition, once; every step under it has it as its *guard* and is skipped when the guard
says otherwise.  Who comes after the whole comes after its last joint.  No step can have a joint's name, since a block
is named like a step and a step's name has no ``/``.  A joint ``S/any`` is the first of what S comes after, where S has
to wait for its guard besides.

``after`` is spelled out everywhere, in particular the default (the step listed before).  ``ancestors`` are the steps
that come before: the only ones that expressions may use.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

from msgspec import Struct

STEPS_MAX: Final = 200  # blocks count too
DEPTH_MAX: Final = 64
ATTEMPTS_MAX: Final = 1_000
VERSION_MAX: Final = 2**31 - 1

Join = Literal["all", "any"]
Losers = Literal["undo", "keep"]


class RetryRule(Struct, frozen=True, kw_only=True):
    """Fields as `saga.Retry`; a field that is None was not given."""

    attempts: int | None = None
    backoff: str | None = None
    first: str | None = None
    max: str | None = None
    jitter: float | None = None


class RequestSource(Struct, frozen=True, kw_only=True):
    """What a step or an undo sends; ``path``, ``body`` and ``headers`` are templates.  ``at`` is its place in the
    definition."""

    at: str
    service: str
    method: str = "POST"
    path: str = "/"
    body: Any = None
    headers: dict[str, str] = {}
    answers: dict[str, str] = {}
    retry: RetryRule | None = None
    timeout: str | None = None


class DecisionRule(Struct, frozen=True, kw_only=True):
    """What a person is asked; ``input`` is a template, ``roles`` are who may answer (none: anybody).

    A rejection fails the step (``undo``), or is an outcome like any other (``continue``).
    """

    input: Any = None
    roles: tuple[str, ...] = ()
    timeout: str | None = None
    on_timeout: Literal["reject", "approve", "fail"] = "reject"
    on_reject: Literal["undo", "continue"] = "undo"


class DataRule(Struct, frozen=True, kw_only=True):
    """What datum a step is given; nobody waits for an ``optional`` one, and what comes after it runs again when it
    arrives (``reruns``), even when the command has completed (``reopens``)."""

    name: str
    timeout: str | None = None
    on_timeout: Literal["fail", "null"] = "fail"
    optional: bool = False
    reruns: bool = False
    reopens: bool = False


class SavepointRule(Struct, frozen=True, kw_only=True):
    """What a failure after the step leads to, once all that came after it is undone; as `saga.Saga.savepoint`."""

    then: Literal["retry", "undo", "dead_letter"] = "retry"
    attempts: int = 1
    exhausted: Literal["undo", "dead_letter"] = "undo"


class Guard(Struct, frozen=True):
    """What decides whether something runs at all: it does if the joint ``entry`` decided ``value``."""

    entry: str
    value: bool


class Step(Struct, frozen=True, kw_only=True):
    """One step: just one of ``request``, ``decision``, ``data`` and ``sleep`` (a duration) is what it does.

    ``block`` is the name of the innermost block around it, or nothing.
    """

    at: str
    name: str
    request: RequestSource | None = None
    decision: DecisionRule | None = None
    data: DataRule | None = None
    sleep: str | None = None
    undo: RequestSource | None = None
    after: tuple[str, ...] = ()
    join: Join = "all"
    losers: Losers = "undo"
    guard: Guard | None = None
    when: str | None = None
    savepoint: SavepointRule | None = None
    give_up_after: str | None = None
    deadline: str | None = None
    block: str = ""
    ancestors: frozenset[str] = frozenset()

    @property
    def service(self) -> str:
        """The service that it calls; nothing if it calls none."""
        return "" if self.request is None else self.request.service

    @property
    def optional(self) -> bool:
        """Nobody waits for it."""
        return self.data is not None and self.data.optional


class Joint(Struct, frozen=True, kw_only=True):
    """Where something that branches begins (``entry``), or ends (``members`` are then all that it holds)."""

    at: str
    name: str
    entry: bool
    after: tuple[str, ...] = ()
    join: Join = "all"
    losers: Losers = "undo"
    guard: Guard | None = None
    when: str | None = None
    savepoint: SavepointRule | None = None
    members: tuple[str, ...] = ()
    block: str = ""
    ancestors: frozenset[str] = frozenset()


class PauseRule(Struct, frozen=True, kw_only=True):
    """Pauses the command after so many errors; ``resume_after`` is a duration, as `saga.PauseAfter`."""

    errors: int
    resume_after: str | None = None


class Definition(Struct, frozen=True, kw_only=True):
    """A definition; ``result`` is a template, ``content`` what was sent, ``blocks`` lead from the name of a block to
    the one around it (or nothing).  ``deadlines`` are durations by state."""

    name: str
    version: int
    steps: tuple[Step, ...]
    joints: tuple[Joint, ...] = ()
    blocks: Mapping[str, str] = {}
    on_failure: Literal["undo", "dead_letter"] = "undo"
    deadlines: Mapping[str, str] = {}
    pause_after: PauseRule | None = None
    result: Any = None
    content: Any = None

    @property
    def services(self) -> frozenset[str]:
        """All services that it calls, for undos too."""
        return frozenset(
            request.service for step in self.steps for request in (step.request, step.undo) if request is not None
        )

    @property
    def data(self) -> dict[str, DataRule]:
        """The data that it may be given, by the name of the step."""
        return {step.name: step.data for step in self.steps if step.data is not None}

    @property
    def linear(self) -> bool:
        """Whether the steps run one after the other, as they are listed, and never again."""
        names = [(step.name,) for step in self.steps]
        return (
            [step.after for step in self.steps] == [(), *names[:-1]]
            and not self.joints
            and not any(step.savepoint is not None or step.optional for step in self.steps)
        )
