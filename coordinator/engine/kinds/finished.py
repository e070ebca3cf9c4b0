"""Finished: the command's end.

A ``completed`` that crossed a cancel or a deadline is senseless: the contrary decision came first in the log, was
perhaps answered to somebody, and stands.
"""

from __future__ import annotations

from coordinator.engine.state import Command
from coordinator.model.command import FINAL, State
from coordinator.model.records import Finished


def apply(command: Command, record: Finished) -> None:
    if record.state not in FINAL:
        raise ValueError(f"no command ends {record.state!r}")
    command.finishing = False
    if record.state == State.COMPLETED and (command.contrary is not None or command.aborted):
        return
    if record.state in (State.COMPENSATED, State.FAILED) and command.aborted:
        return
    command.finished = record
