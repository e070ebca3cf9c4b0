"""What every reader of a part of a definition needs: the report of faults, and the values that occur everywhere.

Every method takes a value and its path, reports what is wrong with it there, and returns what is usable of it, so that
the reading goes on and finds the next fault.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from difflib import get_close_matches
from typing import Any, Final, TypeVar

from coordinator.model.durations import parse_duration

NAME_RULE: Final = "a name has 1 to 64 letters, digits, _ or - and starts with a letter or _"

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")

Report = Callable[[str, str], None]
Services = Mapping[str, str] | Collection[str] | None

C = TypeVar("C", bound=str)


def did_you_mean(wrong: str, known: Collection[str]) -> str:
    """A suggestion to append to a fault, or nothing."""
    close = get_close_matches(wrong, sorted(known), n=1)
    return f' (did you mean "{close[0]}"?)' if close else ""


class Fields:
    """Reads plain values."""

    def __init__(self, report: Report) -> None:
        self.report = report

    def is_object(self, value: Any, at: str, fields: Collection[str] | None) -> bool:
        """Whether it is an object; its fields are ``fields`` (None: any)."""
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            self.report(at, f"an object is needed, not {shown(value)}")
            return False
        for key in value if fields is not None else ():
            if fields is not None and key not in fields:
                self.report(f"{at}.{key}", f'unknown field "{key}"{did_you_mean(key, fields)}')
        return True

    def name(self, value: Any, at: str) -> str:
        if isinstance(value, str) and _NAME.fullmatch(value):
            return value
        self.report(at, f"{NAME_RULE}, not {shown(value)}")
        return value if isinstance(value, str) else ""

    def duration(self, value: dict[str, Any], at: str, field: str, least: int = 1) -> str | None:
        """The duration's text, if it is a good one; ``least`` in milliseconds."""
        text = value.get(field)
        return None if text is None else self.duration_text(text, f"{at}.{field}", least)

    def duration_text(self, text: Any, at: str, least: int = 1) -> str | None:
        try:
            if parse_duration(text if isinstance(text, str) else repr(text)) >= least:
                return str(text)
            self.report(at, f"{text} is no time at all")
        except ValueError as error:
            self.report(at, str(error))
        return None

    def choice(self, value: dict[str, Any], at: str, field: str, choices: tuple[C, ...]) -> C:
        """One of ``choices``, of which the first is the default."""
        given = value.get(field)
        for choice in choices:
            if given == choice and isinstance(given, str):
                return choice
        if given is not None:
            quoted = [f'"{choice}"' for choice in choices]
            self.report(f"{at}.{field}", f"{field} is {_either(quoted)}, not {shown(given)}")
        return choices[0]

    def flag(self, value: dict[str, Any], at: str, field: str) -> bool | None:
        """True, false, or None where it is not given."""
        given = value.get(field)
        if given is None or isinstance(given, bool):
            return given
        self.report(f"{at}.{field}", f"{field} is true or false, not {shown(given)}")
        return None

    def count(self, value: dict[str, Any], at: str, field: str, most: int, default: int) -> int:
        """A whole number from 1."""
        given = value.get(field)
        if given is None:
            return default
        if is_whole(given, 1, most):
            return int(given)
        self.report(f"{at}.{field}", f"{field} is a whole number from 1 to {most}, not {shown(given)}")
        return default


def is_whole(value: Any, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def shown(value: Any) -> str:
    """A value in a message."""
    text = repr(value)
    return text if len(text) <= 80 else text[:79] + "…"


def _either(words: list[str]) -> str:
    return " or ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]
