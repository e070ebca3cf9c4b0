"""Signal: data from outside.  No step can wait for one yet; the record is kept in the history."""

from __future__ import annotations

from coordinator.engine.state import Command
from coordinator.model.records import Signal


def apply(command: Command, record: Signal) -> None:
    """Nothing of the command depends on it."""
