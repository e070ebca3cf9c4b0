"""Values made up from a type: payloads for commands, and answers for steps that say what they want to be answered.

Names help a reader of a report more than noise does: a text is its field's name and a number.
"""

from __future__ import annotations

import datetime
import decimal
import uuid
from random import Random
from typing import Any

import msgspec
from msgspec import inspect

_BEGAN = datetime.datetime(2027, 1, 15, 8, tzinfo=datetime.UTC)


class CannotMakeUp(Exception):
    """No value of this type can be made up; the text says where, and why."""


def made_up(type: Any, random: Random, path: str = "$") -> Any:
    """A value of a type, as JSON would have it; raises CannotMakeUp."""
    return msgspec.to_builtins(_value(inspect.type_info(type), random, path), str_keys=True)


def _value(kind: inspect.Type, random: Random, path: str) -> Any:
    match kind:
        case inspect.AnyType() | inspect.RawType():
            return {"value": random.randint(1, 99)}
        case inspect.NoneType():
            return None
        case inspect.BoolType():
            return random.random() < 0.5
        case inspect.IntType() | inspect.FloatType():
            return _number(kind, random, path)
        case inspect.StrType():
            return _text(kind, random, path)
        case inspect.BytesType() | inspect.ByteArrayType() | inspect.MemoryViewType():
            return random.randbytes(8)
        case inspect.DateTimeType():
            return _BEGAN + datetime.timedelta(seconds=random.randint(0, 86_400))
        case inspect.DateType():
            return _BEGAN.date() + datetime.timedelta(days=random.randint(0, 99))
        case inspect.TimeType():
            return _BEGAN.time()
        case inspect.TimeDeltaType():
            return datetime.timedelta(seconds=random.randint(1, 99))
        case inspect.UUIDType():
            return uuid.UUID(int=random.getrandbits(128), version=4)
        case inspect.DecimalType():
            return decimal.Decimal(random.randint(1, 9_999)) / 100
        case inspect.EnumType():
            return random.choice([each.value for each in kind.cls])
        case inspect.LiteralType():
            return random.choice(list(kind.values))
        case inspect.UnionType():
            return _value(random.choice([each for each in kind.types if not _is_none(each)]), random, path)
        case inspect.TupleType():
            return [_value(each, random, f"{path}[{at}]") for at, each in enumerate(kind.item_types)]
        case inspect.DictType():
            return {"key" if isinstance(kind.key_type, inspect.StrType) else 1: _value(kind.value_type, random, path)}
        case inspect.StructType() | inspect.TypedDictType() | inspect.DataclassType():
            return _fields(kind, random, path)
        case _:
            return _many(kind, random, path)


def _many(kind: inspect.Type, random: Random, path: str) -> Any:
    if isinstance(kind, (inspect.ListType, inspect.VarTupleType, inspect.SetType, inspect.FrozenSetType)):
        least = kind.min_length or 1
        most = max(least, min(kind.max_length or 3, least + 2))
        return [_value(kind.item_type, random, f"{path}[{at}]") for at in range(random.randint(least, most))]
    raise CannotMakeUp(f"{path}: a value of {kind} cannot be made up; give an example of the payload")


def _is_none(kind: inspect.Type) -> bool:
    return isinstance(kind, inspect.NoneType)


def _number(kind: inspect.IntType | inspect.FloatType, random: Random, path: str) -> Any:
    step: Any = kind.multiple_of or (1 if isinstance(kind, inspect.IntType) else 0.25)
    least = kind.ge if kind.ge is not None else kind.gt + step if kind.gt is not None else None
    most = kind.le if kind.le is not None else kind.lt - step if kind.lt is not None else None
    if least is None:
        least = 1 if most is None or most >= 1 else most - 99
    if most is None:
        most = least + 99 * step
    first, last = -(-least // step), most // step
    if first > last:
        raise CannotMakeUp(f"{path}: no number is between {least} and {most}")
    return random.randint(int(first), int(last)) * step


def _text(kind: inspect.StrType, random: Random, path: str) -> str:
    if kind.pattern is not None:
        raise CannotMakeUp(
            f"{path}: a text that fits {kind.pattern!r} cannot be made up; give an example of the payload"
        )
    text = f"{path.rpartition('.')[2].strip('$[]0123456789') or 'text'}-{random.randint(1, 999)}"
    text = text.ljust(kind.min_length or 0, "x")
    return text if kind.max_length is None else text[: kind.max_length]


def _fields(
    kind: inspect.StructType | inspect.TypedDictType | inspect.DataclassType, random: Random, path: str
) -> dict[str, Any] | list[Any]:
    """A field that may be left out is left out half of the time."""
    values: dict[str, Any] = {}
    array = isinstance(kind, inspect.StructType) and kind.array_like
    if isinstance(kind, inspect.StructType) and kind.tag_field is not None:
        values[kind.tag_field] = kind.tag
    for field in kind.fields:
        if field.required or array or random.random() < 0.5:
            values[field.encode_name] = _value(field.type, random, f"{path}.{field.name}")
    return list(values.values()) if array else values
