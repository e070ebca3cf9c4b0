"""Schedules: commands that are submitted by the clock, as a fold over records and a decision about the next step.

A schedule is *put* under a name and lives in the partition that its name hashes to; whoever owns that fires it.  Its
times of execution are its *due times*, and what becomes of each is in the log before anything is done about it:

    a due time comes ─▶ starting ─▶ (submitted as ``<name>@<due time>``) ─▶ fired
        │                 ▲  └─▶ skipped: the command is refused for good
        ├─▶ queued ───────┘  the last run is still going, and the schedule says queue or replace
        │      └─▶ skipped: a later one has replaced it
        └─▶ skipped: the last run is still going, and the schedule says skip; or too many are queued

The way from ``starting`` to ``fired`` may be gone twice, by a process that was killed on it and by its successor: the
command's id comes from the due time, so the second submission finds the command that the first one made.  And since
``starting`` is durable before the submission, a successor knows that there may be such a command, whatever is due by
then: it goes that way to its end before it does anything else.

*Times that nobody saw.*  What fell due while nobody acted for the partition is not run again and again: the latest of
it is run, once, and then the schedule goes on by its grid (`Series.step`, ``since``).  What falls due while the
schedule is paused is not run at all.

Here is no clock: ``now`` is an argument, and so is all that is known about the last run.  `coordinator.scheduling` has
the hands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from msgspec import Struct

from coordinator.model.reading.schedule import read
from coordinator.model.records import Schedule, unraw
from coordinator.model.schedule import Overlap, Spec, moment

QUEUE_MAX: Final = 100  # due times that wait for the last run to end
STALLED_MS: Final = 10_000  # a due time seen so late was missed, whoever owned the partition: the machine slept
MISSED_TOLD_MAX: Final = 1_000  # more are not counted

_AHEAD: Final = ("queued", "starting")  # of a due time that is still to be fired

# ---------------------------------------------------------------- what is to be done


class Wait(Struct, frozen=True):
    """Nothing before ``until`` (ms; None: nothing at all), unless something happens."""

    until: int | None


class Note(Struct, frozen=True):
    """A Schedule record with this ``action`` (``queued``, ``starting``, ``skipped``) is to be appended."""

    action: str
    due: int
    reason: str = ""


class Start(Struct, frozen=True):
    """The run that was due at ``due`` is to be submitted."""

    due: int


class Ask(Struct, frozen=True):
    """Whether the last run, ``command``, has ended is to be found out."""

    command: str


class Cancel(Struct, frozen=True):
    """The last run, ``command``, is to be cancelled: the next one replaces it."""

    command: str


Step = Wait | Note | Start | Ask | Cancel


class Series:
    """One schedule, as its records have made it.

    Of all its records a few say everything: the newest of each action, what is queued, and the one with the latest due
    time (``_mark``).  They are what a snapshot keeps, and in whatever order they are folded, after the put, they make
    the same state.
    """

    __slots__ = ("_kept", "_mark", "_queued", "broken", "name", "spec")

    def __init__(self, name: str) -> None:
        self.name = name
        self.spec: Spec | None = None
        self.broken = ""  # why there is none: this version, or this machine, cannot read what was put
        self._kept: dict[str, tuple[int, Schedule]] = {}
        self._mark: tuple[int, Schedule] | None = None
        self._queued: dict[int, tuple[int, Schedule]] = {}

    # ------------------------------------------------------------ the fold

    def apply(self, offset: int, record: Schedule) -> None:
        """Folds one record; never raises, whatever it holds."""
        action, due = record.action, record.due
        kept = self._kept.get(action)
        if kept is not None and kept[0] > offset:
            return
        if action not in _AHEAD:
            self._kept[action] = offset, record
        if action == "put":
            self._read(record)
        elif action in _AHEAD or action in ("fired", "skipped"):
            self._queued.pop(due, None)
            if action in _AHEAD:
                self._queued[due] = offset, record
            if self._mark is None or due >= self._mark[1].due:
                self._mark = offset, record

    def _read(self, record: Schedule) -> None:
        try:
            self.spec, self.broken = read(self.name, unraw(record.content)), ""
        except Exception as error:  # another version let it in, or the time zone has no name here
            self.spec, self.broken = None, str(error) or repr(error)

    def pieces(self) -> list[tuple[int, Schedule]]:
        """The records that make this state: the put first, for nothing counts before it."""
        rest = dict(each for name, each in self._kept.items() if name != "put")
        rest.update(self._queued.values())
        if self._mark is not None:
            rest[self._mark[0]] = self._mark[1]
        return [self._kept["put"], *sorted(rest.items(), key=lambda each: each[0])]

    # ------------------------------------------------------------ as it is

    @property
    def content(self) -> Any:
        """What was put."""
        return unraw(self._kept["put"][1].content)

    @property
    def paused(self) -> bool:
        return self._offset("pause") > self._offset("resume")

    @property
    def asked(self) -> Schedule:
        """What an operator asked last: put, pause or resume."""
        return max((self._kept[each] for each in ("put", "pause", "resume") if each in self._kept), key=_offset_of)[1]

    @property
    def last(self) -> Schedule | None:
        """The last run that was fired."""
        return self._kept["fired"][1] if "fired" in self._kept else None

    @property
    def skipped(self) -> Schedule | None:
        """The last due time that was skipped."""
        return self._kept["skipped"][1] if "skipped" in self._kept else None

    @property
    def queued(self) -> list[int]:
        """Due times that are to be run, and are not fired yet, the earliest first."""
        return sorted(self._queued)

    def starting(self, due: int) -> bool:
        """Whether the command of a queued due time may have been submitted already."""
        return self._queued[due][1].action == "starting"

    @property
    def handled(self) -> int:
        """Due times up to this one have been dealt with, or were never this schedule's."""
        resumed = self._kept.get("resume")
        return max(
            self._put_at, 0 if resumed is None else resumed[1].at, 0 if self._mark is None else self._mark[1].due
        )

    def next(self, now: int) -> int | None:
        """The next due time; None while it is paused, and when there is none any more."""
        if self.spec is None or self.paused:
            return None
        return self.spec.after(max(now, self.handled), self._put_at)

    @property
    def _put_at(self) -> int:
        return self._kept["put"][1].at

    def _offset(self, action: str) -> int:
        return self._kept[action][0] if action in self._kept else -1

    # ------------------------------------------------------------ what follows

    def step(self, now: int, since: int, going: bool | None, *, refused: bool = False) -> Step:
        """What is to be done next; to be asked again when that is done, and when anything has changed.

        ``since`` is when this instance began to act for the partition: what was due until then, nobody saw.  ``going``
        tells whether the last run has not ended yet; None: not known, as it is not after a takeover.  ``refused``: what
        is starting was submitted, and refused for the moment.
        """
        if self.spec is None or self.paused:
            return Wait(None)
        going = going if self.last is not None else False
        come = self._come(now, since)
        if come is not None:
            return self._dealt_with(*come, going, refused)
        queued = self.queued
        if queued and self.spec.overlap is Overlap.REPLACE:
            for due in queued[:-1]:
                if not self.starting(due):
                    return Note("skipped", due, f"the run due at {moment(queued[-1])} replaced it before it began")
        if queued and (self.starting(queued[0]) or going is False):
            return Start(queued[0]) if self.starting(queued[0]) else Note("starting", queued[0])
        if queued and self.last is not None:
            if going is None:
                return Ask(self.last.command)
            if self.spec.overlap is Overlap.REPLACE:
                return Cancel(self.last.command)
        return Wait(self.spec.after(self.handled, self._put_at))

    def _come(self, now: int, since: int) -> tuple[int, str] | None:
        """The due time to be dealt with now, and what is to be said of it."""
        assert self.spec is not None
        put_at, handled = self._put_at, self.handled
        first = self.spec.after(handled, put_at)
        if first is None or first > now:
            return None
        unseen = now if first < now - STALLED_MS else min(since, now)
        if first > unseen:
            return first, ""
        latest = self.spec.latest(handled, unseen, put_at)
        assert latest is not None
        return latest, _late(self._missed(handled, latest))

    def _missed(self, after: int, upto: int) -> int:
        """How many due times lie between; counted up to a bound."""
        assert self.spec is not None
        count, due = 0, self.spec.after(after, self._put_at)
        while due is not None and due < upto and count <= MISSED_TOLD_MAX:
            count, due = count + 1, self.spec.after(due, self._put_at)
        return count

    def _dealt_with(self, due: int, late: str, going: bool | None, refused: bool) -> Step:
        assert self.spec is not None
        queued = self.queued
        match self.spec.overlap:
            case Overlap.SKIP:
                if queued and self.starting(queued[0]) and not refused:
                    return Start(queued[0])  # what becomes of it is known in a moment; a former owner may have done it
                if queued:
                    return Note("skipped", due, f"the run due at {moment(queued[0])} has not begun yet")
                if going:
                    assert self.last is not None
                    return Note("skipped", due, f"the last run, {self.last.command}, is still going")
                if going is None:
                    assert self.last is not None
                    return Ask(self.last.command)
            case Overlap.QUEUE:
                if len(queued) >= QUEUE_MAX:
                    return Note("skipped", due, f"{len(queued)} due times wait already")
            case Overlap.REPLACE:
                pass
        return Note("queued" if queued or going is not False else "starting", due, late)


def _offset_of(kept: tuple[int, Schedule]) -> int:
    return kept[0]


def _late(missed: int) -> str:
    if not missed:
        return "late: nobody acted for the schedule when it was due"
    count = str(missed) if missed <= MISSED_TOLD_MAX else f"more than {MISSED_TOLD_MAX}"
    return f"catching up: nobody acted for the schedule, and {count} due times before this one are not run"


# ---------------------------------------------------------------- all of them


def _nobody(partition: int, record: Schedule | None) -> None:
    """Nobody listens: on replay, and where records are only looked at."""


class Schedules:
    """All schedules of one engine, by partition and name.

    ``changed`` is told of each record that was folded, and with None when a partition is opened or dropped.
    """

    def __init__(self) -> None:
        self.changed: Callable[[int, Schedule | None], None] = _nobody
        self._series: dict[int, dict[str, Series]] = {}

    def apply(self, partition: int, offset: int, record: Schedule) -> None:
        """Folds a durable record; those of a schedule that is not there (any more) change nothing."""
        known = self._series.setdefault(partition, {})
        if record.action == "delete":
            known.pop(record.name, None)
        else:
            series = known.get(record.name)
            if series is None and record.action == "put":
                series = known[record.name] = Series(record.name)
            if series is not None:
                series.apply(offset, record)
        self.changed(partition, record)

    def opened(self, partition: int) -> None:
        """The partition is acted for from now on."""
        self.changed(partition, None)

    def drop(self, partition: int) -> None:
        """The partition is not owned any more."""
        self._series.pop(partition, None)
        self.changed(partition, None)

    def get(self, partition: int, name: str) -> Series | None:
        return self._series.get(partition, {}).get(name)

    def of(self, partition: int) -> Iterable[Series]:
        """Those of a partition; they may change while whoever asked goes through them."""
        return list(self._series.get(partition, {}).values())

    def pieces(self, partition: int) -> Iterator[tuple[int, Schedule]]:
        """What a snapshot of the partition must hold of them, in the order in which it is put back."""
        for series in self.of(partition):
            yield from series.pieces()
