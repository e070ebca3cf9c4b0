"""Timer: a durable time has come.  Of two contrary decisions the first in the log counts."""

from __future__ import annotations

from coordinator.engine.state import Command, Contrary
from coordinator.model.records import Timer


def apply(command: Command, record: Timer) -> None:
    if record.name == "deadline" and command.contrary is None:
        command.contrary = Contrary.DEADLINE
        command.contrary_at = len(command.trail)
