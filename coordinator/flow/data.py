"""What a type says about data.

A datum is known by its type: a class (a msgspec.Struct mostly), a NewType, or any type at all that is given a name,
``Annotated[T, Datum("name")]``.  The name of the type is the datum's name, by which clients provide it and people see
it.  ``X | None`` may be missing, ``ReadOnly[X]`` never runs a step again.
"""

from __future__ import annotations

import builtins
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Generic, NewType, TypeAlias, TypeVar, Union, get_args, get_origin

from msgspec import Meta, Struct

from coordinator.model.call import Request
from coordinator.saga import Saga

T = TypeVar("T")


class Datum(Struct, frozen=True):
    """Names a datum whose type has no name of its own: ``Annotated[list[Item], Datum("Items")]``."""

    name: str


class _ReadOnly:
    """The mark that `ReadOnly` leaves."""


class OutcomeOf(Generic[T]):
    """The part of `Asks` that says what the service answers; nothing is ever an instance."""


ReadOnly = Annotated[T, _ReadOnly()]
"""An input that never runs its step again."""

Asks: TypeAlias = Request | OutcomeOf[T]
"""What a step returns that asks a service: a Request, whose outcome is a ``T``."""


class Kind(Struct, frozen=True):
    """A datum: its name, and what its value is decoded as.  Two are the same if both are."""

    name: str
    type: Any


class Use(Struct, frozen=True):
    """What an annotation says.  ``kind`` is None for None itself."""

    kind: Kind | None
    optional: bool = False
    read_only: bool = False


WHOLE_SAGA: Final = Use(Kind("Saga", Saga))
"""A parameter that is given the saga, not a datum."""

_GENERAL: Final = frozenset({"builtins", "typing", "collections", "datetime", "decimal", "uuid", "pathlib"})


def use_of(annotation: Any) -> Use:
    """Raises TypeError with what is wrong with it, as the end of a sentence about it."""
    optional = read_only = False
    name: str | None = None
    limits: tuple[Meta, ...] = ()
    while True:
        origin = get_origin(annotation)
        if origin is Annotated:
            annotation, *marks = get_args(annotation)
            read_only = read_only or any(isinstance(mark, _ReadOnly) for mark in marks)
            limits += tuple(mark for mark in marks if isinstance(mark, Meta))
            name = next((mark.name for mark in marks if isinstance(mark, Datum)), name)
        elif name is None and origin in (Union, UnionType):
            members = [member for member in get_args(annotation) if member is not NoneType]
            optional = optional or len(members) < len(get_args(annotation))
            if len(members) > 1:
                raise TypeError("may be one of several; a step takes and makes one datum each")
            annotation = members[0]
        else:
            break
    if annotation is None or annotation is NoneType:
        return Use(None)
    if annotation is Saga:
        return WHOLE_SAGA
    decoded = Annotated[annotation, *limits] if limits else annotation
    return Use(Kind(name or _name_of(annotation), decoded), optional, read_only)


def asked_of(annotation: Any) -> tuple[Any, bool]:
    """The ``T`` of an ``Asks[T]``, and whether it may be left out (``Asks[T] | None``); LookupError if it is none."""
    members = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else ()
    for member in members:
        if get_origin(member) is OutcomeOf:
            return get_args(member)[0], NoneType in members
    raise LookupError


def _name_of(type: Any) -> str:
    if isinstance(type, NewType):
        return type.__name__
    if not isinstance(type, builtins.type) or get_origin(type) is not None:
        raise TypeError(f'{type} has no name to know it by: use a class, a NewType or Annotated[…, Datum("name")]')
    if type.__module__ in _GENERAL:
        raise TypeError(
            f"{type.__name__} is no datum, since many things are one: use a class, a NewType or "
            f'Annotated[{type.__name__}, Datum("name")]'
        )
    return type.__name__
