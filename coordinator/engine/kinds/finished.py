"""Finished: the command's end.

A ``completed`` that crossed a cancel or a deadline is senseless: the contrary decision came first in the log, was
perhaps answered to somebody, and stands.  So is one that crossed data: it is decided anew.
"""

from __future__ import annotations

from coordinator.engine.state import Command
from coordinator.model.command import FINAL, State
from coordinator.model.records import Finished

UNKNOWN = -1  # in records from before it was told


def apply(command: Command, record: Finished) -> bool:
    if record.state not in FINAL:
        raise ValueError(f"no command ends {record.state!r}")
    command.finishing = False
    if record.state == State.COMPLETED and (command.contrary is not None or command.aborted):
        return False
    if record.state == State.COMPLETED and record.signals not in (command.signals, UNKNOWN):
        return False  # data has come in between, which may open it again
    if record.state in (State.COMPENSATED, State.FAILED) and command.aborted:
        return False
    command.finished = record
    return True
