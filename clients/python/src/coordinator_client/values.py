"""What goes out: payloads as JSON values, durations as milliseconds.  Faults are found before anything is sent."""

from __future__ import annotations

import math
import re
from datetime import timedelta
from typing import Any

import msgspec

from coordinator_client.errors import InvalidPayload

DEPTH_MAX = 255
Duration = float | int | str | timedelta
"""Seconds as a number, ``"1.5s"`` text (ms, s, m, h, d), or a timedelta; ``math.inf`` waits for ever."""

_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,6})?)(ms|s|m|h|d)")
_UNITS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


def seconds(duration: Duration | None, name: str = "duration") -> float:
    """Seconds of a duration, None meaning for ever; raises ValueError."""
    match duration:
        case None:
            return math.inf
        case timedelta():
            value = duration.total_seconds()
        case str():
            found = _DURATION.fullmatch(duration)
            if not found:
                raise ValueError(f"{name}: a duration is a number and a unit (ms, s, m, h, d), not {duration!r}")
            value = float(found[1]) * _UNITS[found[2]] / 1000
        case _:
            value = float(duration)
    if math.isnan(value) or value < 0:
        raise ValueError(f"{name}: {duration!r} is not a duration")
    return value


def duration_text(duration: Duration | None, name: str) -> str | None:
    """A duration as the server reads it."""
    if duration is None or isinstance(duration, str):
        seconds(duration, name)
        return duration
    return f"{round(seconds(duration, name) * 1000)}ms"


def json_value(value: Any, path: str = "$") -> Any:
    """``value`` as plain dicts, lists, strings, numbers; Structs, dataclasses, datetimes, enums, … are converted.

    Raises InvalidPayload with the path: NaN, infinities, integers outside −2⁶³ … 2⁶⁴−1, keys that are no strings,
    bytes, more than 255 levels.
    """
    try:
        plain = msgspec.to_builtins(value, str_keys=False, builtin_types=(bytes, bytearray))
    except RecursionError:
        raise InvalidPayload.at(path, f"nested more than {DEPTH_MAX} levels deep") from None
    except TypeError as why:
        raise InvalidPayload.at(path, str(why)) from None
    _check(plain, path, DEPTH_MAX)
    return plain


def _check(value: Any, path: str, depth: int) -> None:
    match value:
        case str():
            try:
                value.encode()
            except UnicodeEncodeError:
                raise InvalidPayload.at(path, "text with a lone surrogate is not valid Unicode") from None
        case None | bool():
            pass
        case int() if not -(2**63) <= value < 2**64:
            raise InvalidPayload.at(path, "an integer must lie between -2^63 and 2^64-1; send larger ones as text")
        case float() if not math.isfinite(value):
            raise InvalidPayload.at(path, f"{value} is not a JSON number")
        case dict() | list() if depth == 0:
            raise InvalidPayload.at(path, f"nested more than {DEPTH_MAX} levels deep")
        case dict():
            for key, member in value.items():
                if not isinstance(key, str):
                    raise InvalidPayload.at(path, f"keys of an object are strings, not {key!r:.40}")
                _check(member, f"{path}.{key}", depth - 1)
        case list():
            for index, member in enumerate(value):
                _check(member, f"{path}[{index}]", depth - 1)
        case int() | float():
            pass
        case _:
            raise InvalidPayload.at(path, f"{type(value).__name__} is not a JSON value")
