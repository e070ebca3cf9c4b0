"""One command as the log tells it, in the plainest way: what the judge holds the instances to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import msgspec

from coordinator.model.command import Operation, State
from coordinator.model.records import (
    CommandRecord,
    Control,
    Finished,
    Outcome,
    Reopened,
    Signal,
    StepFailed,
    Submitted,
    Timer,
    Undone,
    unraw,
)
from coordinator.testing.simulator.trees import Account, Node, base, kept_by_losers, round_of, rounds, steps_of

ENDED_BY_UNDOING: Final = (State.COMPENSATED, State.FAILED)
_LETTING: Final = (Operation.RETRY, Operation.REQUEUE)


class Fold:
    """Its records that count, as (offset, record), and its end if it has one.

    ``records`` are those since it was last opened again, ``earlier`` those from before; ``ends`` has every end.
    """

    def __init__(self, partition: int) -> None:
        self.partition = partition
        self.records: list[tuple[int, CommandRecord]] = []
        self.earlier: list[tuple[int, CommandRecord]] = []
        self.ends: list[Finished] = []
        self.finished: Finished | None = None
        self.contrary = False
        self.aborted = False
        self.late = False  # a time came that ends it: its deadline, or that of a state
        self.moves = 0
        self.signals = 0
        self.data: dict[str, list[Any]] = {}  # what has come under each name, each once
        self._ids: set[str] = set()

    def add(self, offset: int, record: CommandRecord) -> None:
        if self.finished is not None:
            if isinstance(record, Reopened):
                self.earlier += self.records
                self.records = [(offset, record)]
                self.finished = None
            return
        if isinstance(record, Reopened):
            return  # somebody else was first
        self.records.append((offset, record))
        if isinstance(record, Timer):
            self._time(record)
        elif isinstance(record, Control):
            self.contrary |= record.operation == Operation.CANCEL
            self.aborted |= record.operation == Operation.ABORT
        elif isinstance(record, Signal):
            self._signal(record)
        elif isinstance(record, Finished) and not self._senseless(record):
            self.finished = record
            self.ends.append(record)
        self.moves += not isinstance(record, Submitted)

    def _time(self, record: Timer) -> None:
        """A deadline's; that of a state only if nothing has happened since."""
        if record.what == "deadline" or (record.what == "state" and record.moves == self.moves):
            self.late = self.late or not self.contrary
            self.contrary = True

    def _signal(self, record: Signal) -> None:
        if record.signal_id and record.signal_id in self._ids:
            return
        self._ids.add(record.signal_id)
        self.signals += 1
        if record.channel == "data":
            self.data.setdefault(record.name, []).append(unraw(record.value))

    def _senseless(self, end: Finished) -> bool:
        """An end that a decision before it in the log, or a datum, has overtaken."""
        if end.state == State.COMPLETED:
            return self.contrary or self.aborted or end.signals not in (self.signals, -1)
        return end.state in ENDED_BY_UNDOING and self.aborted

    @property
    def all(self) -> Iterator[CommandRecord]:
        """Its records from the beginning."""
        return (record for _, record in (*self.earlier, *self.records))

    def dead_undos(self) -> set[str]:
        """Steps whose undo was a dead letter: a cancel passes them over, and they are undone when somebody sees to
        them."""
        return {
            record.step
            for record in self.all
            if isinstance(record, StepFailed) and record.undo and record.verdict == "parked"
        }

    def steps(self, kind: type[Outcome] | type[Undone]) -> list[str]:
        """The steps that have such a record, in log order, each once."""
        return list(dict.fromkeys(record.step for record in self.all if isinstance(record, kind)))

    def by_hand(self) -> set[str]:
        """Steps whose undo somebody has done by hand, or meant to."""
        return {
            record.step for record in self.all if isinstance(record, Control) and record.operation == Operation.RESOLVE
        }

    def undone(self) -> set[str]:
        return {*self.steps(Undone), *self.by_hand()}

    def decider(self, step: str) -> str | None:
        """Who was the first to decide the step; None while nobody has."""
        for record in self.all:
            if isinstance(record, Signal) and record.channel == "decision" and record.name == step:
                return record.by
        return None

    def decided_first(self, name: str) -> str | None:
        """Who was the first to decide a step of this name in any of its rounds, before time ended that round."""
        over: set[str] = set()
        for record in self.all:
            if isinstance(record, Timer) and record.what == "step":
                over.add(record.name)
            elif not isinstance(record, Signal) or record.channel != "decision" or record.name in over:
                continue
            elif base(record.name) == name:
                return record.by
        return None

    # ------------------------------------------------------------ what a tree may be, and tells of itself

    def misruns(self, root: Node) -> Iterator[str]:
        """Steps that ran more often than the tree says: what follows a join runs once."""
        releases = sum(isinstance(record, Control) and record.operation in _LETTING for record in self.all)
        most = rounds(root, releases)
        for record in self.all:
            if isinstance(record, (Outcome, StepFailed)) and base(record.step) in most:
                allowed = most[base(record.step)]
                if round_of(record.step) > allowed:
                    yield f"{record.step} has run more than {allowed} times"

    def mistold(self, root: Node, live: set[str]) -> Iterator[str]:
        """Where what a completed tree tells of itself is not so; ``live``: its effects, as keys."""
        assert self.finished is not None
        account = msgspec.convert(unraw(self.finished.result), Account)
        book, kept = set(account.book), kept_by_losers(root)
        fixed = {step.name for step in steps_of(root) if not step.undoable}
        lost = sorted(book - live)
        extra = sorted(key for key in live - book if base(key.partition("/")[2]) not in kept | fixed)
        if lost:
            yield f"what its code has done is gone: {lost}"
        if extra:
            yield f"what its code has given up is live: {extra}"
        for name, got in account.got.items():
            came = iter(self.data.get(name, ()))
            if not all(any(datum == each for each in came) for datum in got):
                yield f"it got {got} as {name}, of {self.data.get(name)} that came, each once and in that order"
        for wanted, passed in account.slept:
            if passed < wanted:
                yield f"it slept for {passed} ms and not for {wanted} ms"
        for step, by in account.decided.items():
            if by and by != self.decided_first(step):
                yield f"{step} was decided by {by}, and {self.decided_first(step)} was first"

    def unfounded(self) -> bool:
        """Whether it ended because a time had come that has not."""
        failure = None if self.finished is None else self.finished.failure
        return failure is not None and failure.code == "deadline_exceeded" and not failure.step and not self.late
