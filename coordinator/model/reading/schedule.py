"""Reads a schedule: all faults at once, each with its path.

Whether its command would be taken is the registry's to say (`front.schedules`); here it has the form of one.
"""

from __future__ import annotations

from datetime import UTC, datetime, tzinfo
from functools import lru_cache
from importlib.resources import files
from typing import Any, Final
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from coordinator.errors import InvalidPayload
from coordinator.model.durations import format_duration, parse_duration
from coordinator.model.ids import command_id
from coordinator.model.moments import AT_MAX
from coordinator.model.reading.fields import Fields, did_you_mean, shown
from coordinator.model.schedule import Overlap, Spec

NAME_LENGTH_MAX: Final = 170  # `@` and the longest due time make a command's id of it
EVERY_MIN_MS: Final = 1_000
CRON_LENGTH_MAX: Final = 200

_FIELDS: Final = ("cron", "timezone", "every", "command", "overlap", "start", "end")
_COMMAND_FIELDS: Final = ("type", "definition", "payload", "attributes", "timeout", "version", "priority")
_MACROS: Final = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}


def read(name: str, content: Any) -> Spec:
    """The Spec in ``content``; raises InvalidPayload with all faults."""
    spec, faults = check(name, content)
    if spec is None or faults:
        raise InvalidPayload.all(faults)
    return spec


def check(name: str, content: Any) -> tuple[Spec | None, list[tuple[str, str]]]:
    """What can be read of it, and all that is wrong."""
    faults: list[tuple[str, str]] = []
    return _Reader(faults).spec(name, content), faults


class _Reader(Fields):
    """Reads one schedule; what is at fault is reported, and read as if it were absent."""

    def __init__(self, faults: list[tuple[str, str]]) -> None:
        super().__init__(lambda path, fault: faults.append((path, fault)))
        self.faults = faults

    def spec(self, name: str, content: Any) -> Spec | None:
        self.schedule_name(name)
        if not self.is_object(content, "$", _FIELDS):
            return None
        cron, every = self.cron(content.get("cron")), self.every(content.get("every"))
        if (content.get("cron") is None) == (content.get("every") is None):
            self.report("$", "either cron or every is needed, and not both")
        start, end = self.time(content, "start"), self.time(content, "end")
        if start is not None and end is not None and end < start:
            self.report("$.end", "is before start")
        return Spec(
            cron=cron,
            every_ms=every,
            zone=self.zone(content.get("timezone")),
            overlap=self.choice(content, "$", "overlap", tuple(Overlap)),
            start=start,
            end=end,
            command=self.command(content.get("command")),
        )

    def schedule_name(self, name: str) -> None:
        try:
            command_id(name)
        except InvalidPayload:
            sound = False
        else:
            sound = len(name) <= NAME_LENGTH_MAX
        if not sound:
            rule = f"1 to {NAME_LENGTH_MAX} characters, no spaces, control characters or slashes, and is not . or .."
            self.report("$.name", f"a schedule's name, which its commands' ids begin with, has {rule}")

    def cron(self, value: Any) -> str | None:
        if value is None:
            return None
        rule = "five fields (minute, hour, day of month, month, day of week), or six with the second first"
        if not isinstance(value, str) or len(value) > CRON_LENGTH_MAX:
            self.report("$.cron", f"{rule}, in a string of at most {CRON_LENGTH_MAX} characters")
            return None
        expression = _MACROS.get(value.strip().lower(), value)
        try:
            begins = next(CronSim(expression, datetime(2000, 1, 1, tzinfo=UTC)), None)
        except (CronSimError, ValueError, IndexError) as error:
            self.report("$.cron", f"{str(error)[:100].lower()} in {value!r}; it has {rule}, for example 0 9 1 * *")
            return None
        if begins is None:
            self.report("$.cron", f"{value!r} never comes")
        return expression

    def every(self, value: Any) -> int | None:
        text = None if value is None else self.duration_text(value, "$.every", 0)
        millis = None if text is None else parse_duration(text)
        if millis is not None and millis < EVERY_MIN_MS:
            self.report("$.every", f"at least {format_duration(EVERY_MIN_MS)}, not {text}")
        return millis

    def zone(self, value: Any) -> tzinfo:
        if value is None or value == "UTC":
            return UTC  # arithmetic with this one is quicker than with the zone of that name
        try:
            if isinstance(value, str) and value in _zones():
                return ZoneInfo(value)
        except (OSError, ValueError, KeyError):
            pass
        rule = "a name of the IANA time zone database, for example Europe/Zurich"
        hint = did_you_mean(value, _zones()) if isinstance(value, str) else ""
        self.report("$.timezone", f"{rule}, not {shown(value)}{hint}")
        return UTC

    def time(self, content: dict[str, Any], field: str) -> int | None:
        value = content.get(field)
        if value is None:
            return None
        try:
            parsed = datetime.fromisoformat(value)
            if parsed.tzinfo is None or "T" not in value.upper():
                raise ValueError
            millis = round(parsed.timestamp() * 1000)
        except (TypeError, ValueError, OverflowError):
            self.report(f"$.{field}", "a time is RFC 3339 with its offset, for example 2026-12-01T08:00:00Z")
            return None
        return min(max(0, millis), AT_MAX)

    def command(self, value: Any) -> dict[str, Any]:
        if value is None:
            self.report("$.command", "the command to run is needed")
            return {}
        known = len(self.faults)
        if not self.is_object(value, "$.command", _COMMAND_FIELDS):
            return {}
        if (value.get("type") is None) == (value.get("definition") is None):
            self.report("$.command", "either type or definition is needed, and not both")
        for field, kind, noun in (("type", str, "a string"), ("definition", dict, "an object")):
            if value.get(field) is not None and not isinstance(value[field], kind):
                self.report(f"$.command.{field}", f"is {noun}")
        for field in ("version", "priority"):
            if value.get(field) is not None and type(value[field]) is not int:
                self.report(f"$.command.{field}", "is a whole number")
        self.duration(value, "$.command", "timeout", 0)
        self.attributes(value.get("attributes"))
        wrong = {path.split(".")[2] for path, _ in self.faults[known:] if path != "$.command"}
        return {field: value[field] for field in _COMMAND_FIELDS if value.get(field) is not None and field not in wrong}

    def attributes(self, value: Any) -> None:
        if value is None or not self.is_object(value, "$.command.attributes", None):
            return
        for name, each in value.items():
            if not isinstance(each, (str, int, float, bool)):
                self.report(f"$.command.attributes.{name[:100]}", "is a string, a number, true or false")


@lru_cache(1)
def _zones() -> frozenset[str]:
    """The names of the database: those that every instance knows, whatever its system calls a time zone beside them."""
    return frozenset((files("tzdata") / "zones").read_text().split())
