"""Reads a definition as a whole, and reports *all* its faults, each with its path, so that an author mends it in one
go."""

from __future__ import annotations

from typing import Any, Final, Literal

from coordinator.model.command import DEADLINE_STATES
from coordinator.model.definition import DEPTH_MAX, STEPS_MAX, VERSION_MAX, Definition, PauseRule
from coordinator.model.reading.fields import Fields, Report, Services, did_you_mean, is_whole, shown
from coordinator.model.reading.order import ordered
from coordinator.model.reading.steps import Steps, Written

ERRORS_MAX: Final = 1_000_000

_FIELDS: Final = ("name", "version", "on_failure", "deadlines", "pause_after", "steps", "result")


def parse(content: Any, services: Services, report: Report) -> Definition | None:
    """Reads a definition; each fault goes to ``report(path, fault)``.

    ``services`` are the configured ones, by name to ``http`` or ``grpc`` (a plain collection of names leaves the kind
    open; None accepts any name).  Returns None if there were faults that leave nothing to go on with.
    """
    if not _shallow(content):
        report("$", f"nests deeper than {DEPTH_MAX} levels")
        return None
    return _Document(services, report).definition(content)


class _Document(Fields):
    def __init__(self, services: Services, report: Report) -> None:
        super().__init__(report)
        self.services = services

    def definition(self, content: Any) -> Definition | None:
        if not self.is_object(content, "$", _FIELDS):
            return None
        name = self.name(content.get("name", "definition"), "$.name")
        version = content.get("version", 1)
        if not is_whole(version, 1, VERSION_MAX):
            self.report("$.version", f"a version is a whole number from 1 to {VERSION_MAX}, not {shown(version)}")
        on_failure: Literal["undo", "dead_letter"] = self.choice(content, "$", "on_failure", ("undo", "dead_letter"))
        deadlines = self.deadlines(content.get("deadlines"))
        pause_after = self.pause_after(content.get("pause_after"))
        written = self.written(content.get("steps"))
        if written is None:
            return None
        steps, joints, blocks = ordered(written, self.report)
        return Definition(
            name=name,
            version=version,
            steps=steps,
            joints=joints,
            blocks=blocks,
            on_failure=on_failure,
            deadlines=deadlines,
            pause_after=pause_after,
            result=content.get("result"),
            content=content,
        )

    def written(self, value: Any) -> tuple[Written, ...] | None:
        reader = Steps(self.services, self.report)
        if isinstance(value, list) and value:
            if len(value) > STEPS_MAX:
                self.report("$.steps", f"a definition has at most {STEPS_MAX} steps, not {len(value)}")
                return None
            written = reader.steps(value, "$.steps")
            if reader.read > STEPS_MAX:
                self.report("$.steps", f"a definition has at most {STEPS_MAX} steps, not {reader.read}")
                return None
            return written
        self.report("$.steps", "a definition has a list of at least one step")
        return None

    def deadlines(self, value: Any) -> dict[str, str]:
        if value is None or not self.is_object(value, "$.deadlines", None):
            return {}
        states = sorted(DEADLINE_STATES)
        for state in value:
            if state not in states:
                fault = f'a deadline is for one of {", ".join(states)}, not "{state}"{did_you_mean(state, states)}'
                self.report(f"$.deadlines.{state}", fault)
            elif value[state] is None:
                self.report(f"$.deadlines.{state}", "a deadline is a duration")
        good = {state: self.duration(value, "$.deadlines", state) for state in value if state in states}
        return {state: duration for state, duration in good.items() if duration is not None}

    def pause_after(self, value: Any) -> PauseRule | None:
        at = "$.pause_after"
        if value is None or not self.is_object(value, at, ("errors", "resume_after")):
            return None
        if value.get("errors") is None:
            self.report(at, "pause_after needs errors: how many")
        return PauseRule(
            errors=self.count(value, at, "errors", ERRORS_MAX, default=1),
            resume_after=self.duration(value, at, "resume_after"),
        )


def _shallow(content: Any) -> bool:
    """Whether it nests at most DEPTH_MAX levels; everything after this may recurse."""
    level = [content]
    for _ in range(DEPTH_MAX):
        level = [
            below
            for value in level
            if isinstance(value, dict | list)
            for below in (value.values() if isinstance(value, dict) else value)
        ]
        if not level:
            return True
    return False
