"""The start of an ownership: what the log has is folded, and finished commands go to the view."""

from __future__ import annotations

from coordinator.engine.engine import Engine
from coordinator.engine.state import Command
from coordinator.model.damaged import Damaged
from coordinator.model.records import Epoch, Record
from coordinator.view import FinishedCommand, View
from coordinator.wire.codec import stored


class Replay:
    """Folds what the log has, at the start of an ownership; finished commands go to the view."""

    def __init__(self, engine: Engine, view: View, partition: int) -> None:
        self.engine = engine
        self.view = view
        self.partition = partition
        self.epochs: list[tuple[int, bytes]] = []
        self.count = 0
        self._watermark = 0

    def records(self, batch: list[tuple[int, Record | Damaged]]) -> None:
        engine, partition = self.engine, self.partition
        for offset, record in batch:
            if isinstance(record, Epoch):
                if not self.epochs:
                    self._watermark = self.view.adopt(partition, record.token)
                self.epochs.append((offset, record.token))
            else:
                engine.apply(partition, offset, record)
        self.count += len(batch)
        ended = [each for each in engine.take_replayed() if each.history[-1][0] >= self._watermark]
        self.view.put_many([finished_command(command) for command in ended])


def finished_command(command: Command) -> FinishedCommand:
    """What the view keeps of a command that has ended."""
    submitted, finished = command.submitted, command.finished
    assert finished is not None
    return FinishedCommand(
        id=command.id,
        type=submitted.type,
        state=finished.state,
        submitted_at=submitted.at,
        partition=command.partition,
        fingerprint=submitted.fingerprint,
        attributes=submitted.attributes,
        records=[(offset, stored(record)) for offset, record in command.history],
    )
