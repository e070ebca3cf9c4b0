"""The start of an ownership: what the log has is folded, and finished commands go to the view."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import Iterator

from coordinator.engine import snapshots
from coordinator.engine.engine import Engine
from coordinator.engine.state import Command
from coordinator.model.damaged import Damaged
from coordinator.model.records import Epoch, Record
from coordinator.recovery import Start
from coordinator.view import FinishedCommand, View
from coordinator.wire.codec import stored

_replays = 0  # under way in this process


@contextlib.contextmanager
def collector_at_rest() -> Iterator[None]:
    """Keeps the cycle collector out of a replay: it makes millions of objects, and no cycles.

    With it, half of a restore went into looking at what had just been made, up to a second at a time (measured).  What
    is there afterwards stays, so it is not looked at again.
    """
    global _replays
    if not _replays and not gc.isenabled():
        yield  # start-up has put it to rest already
        return
    _replays += 1
    gc.disable()
    try:
        yield
    finally:
        _replays -= 1
        if not _replays:
            gc.freeze()
            gc.enable()


class Replay:
    """Folds what the log has, at the start of an ownership; finished commands go to the view."""

    def __init__(self, engine: Engine, view: View, partition: int, start: Start) -> None:
        self.engine = engine
        self.view = view
        self.partition = partition
        self.start = start
        self.identity = b"" if start.snapshot is None else start.snapshot.identity
        self.count = 0
        self._watermark = 0

    async def restore(self) -> None:
        """Puts back the Snapshot that the replay begins with, if there is one."""
        whole = self.start.snapshot
        if whole is None:
            return
        self._watermark = self.view.begin(self.partition, whole.identity, whole.covered, whole.token_in_force)
        for count in snapshots.restore(self.engine, self.partition, whole):
            self.count = count
            await asyncio.sleep(0)

    def records(self, batch: list[tuple[int, Record | Damaged]]) -> None:
        engine, partition = self.engine, self.partition
        for offset, record in batch:
            if isinstance(record, Epoch):
                if not self.identity:
                    self.identity = record.token
                    self._watermark = self.view.begin(partition, record.token, self.start.offset)
                self.view.saw(partition, offset, record.token)
            else:
                engine.apply(partition, offset, record)
        self.count += len(batch)
        ended = [each for each in engine.take_replayed() if each.history[-1][0] >= self._watermark]
        self.view.put_many([finished_command(command) for command in ended])
        reached(engine, self.view, partition, batch[-1][0] + 1)


def reached(engine: Engine, view: View, partition: int, upto: int) -> None:
    """Tells the view that the fold stands at ``upto``: after each batch, with all that finished in it put."""
    view.reached(partition, upto, engine.oldest(partition, upto))


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
        finished_at=finished.at,
    )
