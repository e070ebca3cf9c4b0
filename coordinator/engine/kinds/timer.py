"""Timer: a durable time has come.  Of two contrary decisions the first in the log counts; the time of a state that has
been left since does not."""

from __future__ import annotations

from coordinator.engine.state import Command, Contrary, Moment
from coordinator.model.records import Timer


def apply(command: Command, record: Timer) -> None:
    if record.what == "deadline":
        if command.contrary is None:
            command.turn(Contrary.DEADLINE, record.at, asks_again=False)
    elif record.what == "start":
        if command.started_at is None and command.contrary is None:  # else it ends without having begun
            command.started_at = record.at
    elif record.what == "step":
        command.trail.append((record.name, record.at, Moment.FIRED))
    elif record.what != "state":
        raise ValueError(f"there is no timer {record.what!r}")
    elif record.moves == command.moves and command.contrary is None:
        command.paused = command.paused_auto = False
        command.turn(Contrary.DEADLINE, record.at, f"it was {record.name} for longer than its type allows")
