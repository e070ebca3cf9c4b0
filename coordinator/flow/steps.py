"""A step: a function, what its types say, and how it is run.

Three sorts of function make steps:

    def tokenise(card: Card) -> Asks[Token]                     asks a service: it returns the Request
    async def price(cart: Cart, coupon: Coupon | None) -> Price     runs here, as a local step; it may do I/O
    async def approve(saga: Saga, order: Order) -> Approval     is a part of exec: it may await what the saga gives

A step is a value, so a library of them serves many flows; `FlowStep.on` and `FlowStep.named` fit one in.  What is
wrong with one is kept, and told by each flow that uses it, together with all else that is wrong there.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any, Literal, ParamSpec, TypeVar, get_type_hints, overload

from msgspec import Struct
from msgspec.structs import replace

from coordinator.awaitables import Retry
from coordinator.engine.topology import Savepoint
from coordinator.flow.data import WHOLE_SAGA, Kind, Use, asked_of, use_of
from coordinator.model.call import LocalCall, Request

P = ParamSpec("P")
R = TypeVar("R")

Sort = Literal["asks", "local", "within"]


class Input(Struct, frozen=True):
    """One parameter: its name and the datum it takes."""

    parameter: str
    kind: Kind
    optional: bool
    read_only: bool


class FlowStep(Struct, frozen=True, kw_only=True):
    """One step; called, it calls the function, so that a test can.

    ``inputs`` are its data, ``saga`` the parameter that is given the saga; ``makes`` is the datum of its outcome (None:
    it makes none), and ``nullable`` tells that there may be none.  ``undo`` is a Request, or a function whose first
    parameter is the outcome and whose others are named as inputs of the step.  ``service`` is where it asks; ``bound``
    is where it asks instead.
    """

    name: str
    function: Callable[..., Any]
    sort: Sort = "asks"
    inputs: tuple[Input, ...] = ()
    saga: str | None = None
    makes: Kind | None = None
    nullable: bool = False
    service: str | None = None
    bound: str | None = None
    undo: Request | LocalCall | Callable[..., Any] | None = None
    undo_takes: tuple[str, ...] = ()
    undo_retry: Retry | None = None
    undo_timeout: str | None = None
    retry: Retry | None = None
    timeout: str | None = None
    give_up_after: str | None = None
    deadline: str | None = None
    savepoint: Savepoint | None = None
    reruns: bool = False
    faults: tuple[str, ...] = ()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    def named(self, name: str) -> FlowStep:
        """The same step under another name, for a flow that uses it twice or has that name already."""
        return replace(self, name=name, faults=tuple(fault.replace(self.name, name, 1) for fault in self.faults))

    def on(self, service: str) -> FlowStep:
        """The same step, asking another service than it declares; so does its undo."""
        if self.service is None:
            raise ValueError(f"step {self.name} declares no service, so there is none to ask another instead of")
        return replace(self, bound=service)

    @property
    def asks(self) -> str:
        """The service that counts for it: empty if it is not known before it runs."""
        return self.bound or self.service or ("local" if self.sort == "local" else "")


@overload
def step(function: Callable[P, R], /) -> FlowStep: ...
@overload
def step(
    *,
    service: str | None = ...,
    name: str | None = ...,
    undo: Request | LocalCall | Callable[..., Any] | None = ...,
    undo_retry: Retry | None = ...,
    undo_timeout: str | None = ...,
    retry: Retry | None = ...,
    timeout: str | None = ...,
    give_up_after: str | None = ...,
    deadline: str | None = ...,
    savepoint: Savepoint | None = ...,
    reruns: bool = ...,
) -> Callable[[Callable[P, R]], FlowStep]: ...
def step(function: Callable[..., Any] | None = None, /, *, name: str | None = None, **options: Any) -> Any:
    """Makes a step of a function: ``@step``, or ``@step(service=…, undo=…)``.

    ``service`` is where it asks (of a local step: the service whose breaker guards it).  ``retry``, ``timeout``,
    ``give_up_after``, ``deadline`` and those of the undo are as in `Saga.step`.  ``savepoint``: a failure after this
    step undoes what came after it and tries again, as `Saga.savepoint` says.  ``reruns``: a new value of an input
    that is not ReadOnly runs the step again; what its run before has done stays, unless the command fails.
    """
    around = sys._getframe(1).f_locals  # types may be a function's own, as in a test

    def made(function: Callable[..., Any]) -> FlowStep:
        called = name or str(getattr(function, "__name__", "step"))
        return _read(FlowStep(name=called, function=function, **options), around)

    return made if function is None else made(function)


# ---------------------------------------------------------------- what a function says


def _read(bare: FlowStep, around: dict[str, Any]) -> FlowStep:
    """The step with what its function's types say, faults included."""
    faults: list[str] = []
    try:
        hints = _hints(bare.function, around)
        parameters = list(inspect.signature(bare.function).parameters.values())
    except (NameError, TypeError, ValueError) as error:
        return replace(bare, faults=(f"step {bare.name}: {error}",))
    inputs, saga = _inputs(bare, parameters, hints, faults)
    sort, makes = _outcome(bare, hints, saga, faults)
    made = replace(
        bare,
        sort=sort,
        inputs=inputs,
        saga=saga,
        makes=makes.kind,
        nullable=makes.optional,
        undo_takes=_undo_takes(bare, inputs, faults),
    )
    if sort == "within":
        given = [field for field in _CALLED if getattr(made, field) is not None]
        if given:
            faults.append(f"step {bare.name} is given the saga, so it is no call: it has no {', '.join(given)}")
    elif saga is not None and sort == "local":
        faults.append(f"step {bare.name} runs outside exec and cannot have the saga: make it `async def`, or ask")
    if made.reruns and all(each.read_only for each in inputs):
        faults.append(f"step {bare.name} reruns, but no input of it can run it again")
    return replace(made, faults=tuple(faults))


_CALLED = (
    "service", "undo", "undo_retry", "undo_timeout", "retry", "timeout", "give_up_after", "deadline",
)  # fmt: skip


def _hints(function: Callable[..., Any], around: dict[str, Any]) -> dict[str, Any]:
    try:
        return get_type_hints(function, include_extras=True)
    except NameError:
        return get_type_hints(function, localns=around, include_extras=True)


def _inputs(
    bare: FlowStep, parameters: list[inspect.Parameter], hints: dict[str, Any], faults: list[str]
) -> tuple[tuple[Input, ...], str | None]:
    inputs: list[Input] = []
    saga: str | None = None
    for parameter in parameters:
        name = parameter.name
        where = f"step {bare.name}, parameter {name}"
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            faults.append(f"{where}: it is passed by name, so it cannot be {parameter}")
            continue
        if name not in hints:
            faults.append(f"{where} has no type, so nobody knows which datum it takes")
            continue
        try:
            use = use_of(hints[name])
        except TypeError as error:
            faults.append(f"{where}: {error}")
            continue
        if use is WHOLE_SAGA:
            saga = name
        elif use.kind is None:
            faults.append(f"{where} takes None, which is no datum")
        elif parameter.default not in (parameter.empty, None) or (parameter.default is None and not use.optional):
            faults.append(f"{where} has a default: an input that may be missing is `{use.kind.name} | None`")
        elif any(each.kind.name == use.kind.name for each in inputs):
            faults.append(f"{where} takes {use.kind.name}, as another parameter does")
        else:
            inputs.append(Input(name, use.kind, use.optional, use.read_only))
    return tuple(inputs), saga


def _outcome(bare: FlowStep, hints: dict[str, Any], saga: str | None, faults: list[str]) -> tuple[Sort, Use]:
    asynchronous = inspect.iscoroutinefunction(bare.function)
    sort: Sort = "local" if not asynchronous or saga is None else "within"
    if "return" not in hints:
        faults.append(f"step {bare.name} does not say what it returns")
        return sort, Use(None)
    annotation, omissible = hints["return"], False
    try:
        annotation, omissible = asked_of(annotation)
        sort = "asks"
    except LookupError:
        pass
    if sort == "asks" and asynchronous:
        faults.append(f"step {bare.name} asks a service, so it is a plain function that returns the request")
    if annotation is Request:
        faults.append(f"step {bare.name} returns a Request: say what its outcome is, Asks[…]")
        return "asks", Use(None)
    try:
        use = use_of(annotation)
    except TypeError as error:
        faults.append(
            f"step {bare.name} returns what {error}"
            if "may be" in str(error)
            else f"step {bare.name}, its outcome: {error}"
        )
        return sort, Use(None)
    if use.read_only:
        faults.append(f"step {bare.name} makes a ReadOnly, which is a way to take a datum, not to make one")
    if use is WHOLE_SAGA:
        faults.append(f"step {bare.name} returns the saga, which is no datum")
        return sort, Use(None)
    return sort, replace(use, optional=use.optional or omissible)


def _undo_takes(bare: FlowStep, inputs: tuple[Input, ...], faults: list[str]) -> tuple[str, ...]:
    """The inputs that the undo takes besides the outcome."""
    undo: Any = bare.undo
    if undo is None or isinstance(undo, (Request, LocalCall)):
        return ()
    if not callable(undo):
        faults.append(f"step {bare.name}: its undo is a Request or a function, not {type(undo).__name__}")
        return ()
    names = [
        each.name
        for each in inspect.signature(undo).parameters.values()
        if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY, each.POSITIONAL_ONLY)
    ]
    known = {each.parameter for each in inputs}
    if not names:
        faults.append(f"step {bare.name}: its undo takes the outcome as its first parameter")
    faults += [
        f"step {bare.name}: its undo takes {name!r}, which is no parameter of the step"
        for name in names[1:]
        if name not in known
    ]
    return tuple(names[1:])
