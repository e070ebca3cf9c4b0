"""Schedules: what is to be done at a time, whatever has been."""

from __future__ import annotations

from datetime import datetime
from itertools import count
from typing import Any

from coordinator.engine.schedules import QUEUE_MAX, Ask, Cancel, Note, Schedules, Series, Start, Step, Wait
from coordinator.model.records import Schedule, raw
from coordinator.model.schedule import run_id

COMMAND = {"type": "Bill", "payload": {"n": 1}}
T0 = round(datetime.fromisoformat("2026-11-21T09:00:00Z").timestamp() * 1000)


class Book:
    """A schedule and its records, as the log has them."""

    def __init__(self, **content: Any) -> None:
        self.offsets = count()
        self.schedules = Schedules()
        self.series: Series
        self.record("put", at=T0, content=raw({"every": "10s", "command": COMMAND, **content}))
        found = self.schedules.get(0, "s")
        assert found is not None
        self.series = found

    def record(self, action: str, *, at: int = T0, **fields: Any) -> None:
        self.schedules.apply(0, next(self.offsets), Schedule(1, b"", at, "s", action, **fields))

    def fired(self, second: int) -> None:
        due = T0 + second * 1000
        self.record("starting", due=due)
        self.record("fired", due=due, command=run_id("s", due))

    def step(self, second: float, going: bool | None = False, since: int = T0, *, refused: bool = False) -> Step:
        return self.series.step(T0 + round(second * 1000), since, going, refused=refused)


def at(second: int) -> int:
    return T0 + second * 1000


def test_before_its_time_a_schedule_waits_for_it() -> None:
    """The first run is an interval after the put."""
    assert Book().step(9.9) == Wait(at(10))


def test_a_run_is_on_record_before_it_is_submitted() -> None:
    """So that whoever comes after a crash knows that there may be a command."""
    book = Book()
    assert book.step(10.1) == Note("starting", at(10))
    book.record("starting", due=at(10))
    assert book.step(10.2) == Start(at(10))
    book.record("fired", due=at(10), command="s@x")
    assert book.step(10.3, True) == Wait(at(20))
    assert book.series.last is not None
    assert book.series.last.command == "s@x"


def test_skip_leaves_out_what_is_due_while_the_last_run_goes_on() -> None:
    """Once, with the reason; then the grid goes on."""
    book = Book()
    book.fired(10)
    step = book.step(20, True)
    assert isinstance(step, Note)
    assert (step.action, step.due) == ("skipped", at(20))
    assert "s@2026-11-21T09:00:10Z, is still going" in step.reason
    book.record("skipped", due=at(20), reason=step.reason)
    assert book.step(21, True) == Wait(at(30))
    assert book.step(30, False) == Note("starting", at(30))


def test_skip_asks_whether_the_last_run_is_going_where_that_is_not_known() -> None:
    """After a takeover nobody knows, and to guess would be to run twice or not at all."""
    book = Book()
    book.fired(10)
    assert book.step(15, None) == Wait(at(20))
    assert book.step(20, None) == Ask("s@2026-11-21T09:00:10Z")


def test_skip_counts_a_run_that_could_not_begin_as_going() -> None:
    """Its command is refused for the moment: it is asked again, and does not become two."""
    book = Book()
    book.record("starting", due=at(10))
    step = book.step(20, refused=True)
    assert isinstance(step, Note)
    assert (step.action, step.due) == ("skipped", at(20))
    assert "has not begun yet" in step.reason
    book.record("skipped", due=at(20))
    assert book.step(21, refused=True) == Start(at(10))


def test_skip_judges_when_it_is_known_what_became_of_the_run_before() -> None:
    """A former owner was killed while that was starting: it may have ended since, and then nothing is skipped."""
    book = Book()
    book.record("starting", due=at(10))
    assert book.step(35, since=at(34)) == Start(at(10))
    book.record("fired", due=at(10), command="s@x")
    step = book.step(35, False, since=at(34))
    assert isinstance(step, Note)
    assert (step.action, step.due) == ("starting", at(30))


def test_queue_runs_one_after_another() -> None:
    """All that fell due, in its order, each when the one before it has ended."""
    book = Book(overlap="queue")
    book.fired(10)
    for second in (20, 30):
        assert book.step(second, True) == Note("queued", at(second))
        book.record("queued", due=at(second))
    assert book.step(31, True) == Wait(at(40))
    assert book.step(32, None) == Ask("s@2026-11-21T09:00:10Z")
    assert book.step(33, False) == Note("starting", at(20))
    book.record("starting", due=at(20))
    assert book.step(33, False) == Start(at(20))
    book.record("fired", due=at(20), command=run_id("s", at(20)))
    assert book.step(34, True) == Wait(at(40))
    assert book.step(35, False) == Note("starting", at(30))


def test_a_queue_is_bounded() -> None:
    """Beyond the bound a due time is skipped, with the reason."""
    book = Book(overlap="queue")
    book.fired(10)
    for number in range(2, 2 + QUEUE_MAX):
        book.record("queued", due=at(10 * number))
    step = book.step(10 * (QUEUE_MAX + 2), True)
    assert step == Note("skipped", at(10 * (QUEUE_MAX + 2)), f"{QUEUE_MAX} due times wait already")


def test_replace_cancels_the_last_run_and_begins_when_that_is_final() -> None:
    """The two never run side by side."""
    book = Book(overlap="replace")
    book.fired(10)
    assert book.step(20, True) == Note("queued", at(20))
    book.record("queued", due=at(20))
    assert book.step(20.1, True) == Cancel("s@2026-11-21T09:00:10Z")
    assert book.step(20.2, False) == Note("starting", at(20))


def test_replace_keeps_only_the_newest_of_those_that_wait() -> None:
    """Where the cancelled run takes its time to be undone, what waits for it is replaced as well."""
    book = Book(overlap="replace")
    book.fired(10)
    for second in (20, 30):
        book.record("queued", due=at(second))
    step = book.step(31, True)
    assert isinstance(step, Note)
    assert (step.action, step.due) == ("skipped", at(20))
    book.record("skipped", due=at(20))
    assert book.series.queued == [at(30)]
    assert book.step(32, False) == Note("starting", at(30))


def test_replace_does_not_replace_what_may_have_been_submitted() -> None:
    """A former owner was killed between the submission and its record: that run is found, and then cancelled."""
    book = Book(overlap="replace")
    book.record("starting", due=at(10))
    for second in (20, 30):
        book.record("queued", due=at(second))
    step = book.step(31, False, since=at(30))
    assert isinstance(step, Note)
    assert (step.action, step.due) == ("skipped", at(20))
    book.record("skipped", due=at(20))
    assert book.step(31, False, since=at(30)) == Start(at(10))
    book.record("fired", due=at(10), command="s@x")
    assert book.step(32, True) == Cancel("s@x")


def test_after_a_time_in_which_nobody_acted_one_run_catches_up() -> None:
    """The latest of all that was missed, at once; then the grid as before."""
    book = Book(overlap="queue")
    book.fired(10)
    step = book.step(65, False, since=at(64))
    assert isinstance(step, Note)
    assert (step.action, step.due) == ("starting", at(60))
    assert "4 due times before this one are not run" in step.reason
    book.record("starting", due=at(60))
    book.record("fired", due=at(60), command="s@x")
    assert book.step(66, False, since=at(64)) == Wait(at(70))


def test_a_machine_that_slept_catches_up_with_one_run() -> None:
    """The owner was the same all the time, and saw none of it."""
    book = Book(overlap="queue")
    step = book.step(3605)
    assert isinstance(step, Note)
    assert (step.action, step.due) == ("starting", at(3600))


def test_due_times_that_come_together_while_somebody_acts_are_each_dealt_with() -> None:
    """A loop that was busy for some seconds is no reason to leave out what is queued."""
    book = Book(every="2s", overlap="queue")
    assert book.step(5) == Note("starting", at(2))
    book.record("starting", due=at(2))
    assert book.step(5) == Note("queued", at(4))


def test_a_paused_schedule_does_nothing_and_what_fell_due_is_not_caught_up() -> None:
    """After the resume the grid goes on."""
    book = Book()
    book.record("pause", at=at(15), by="ann", reason="holidays")
    assert book.series.paused
    assert book.step(50) == Wait(None)
    assert book.series.next(at(50)) is None
    book.record("resume", at=at(55), by="bob")
    assert not book.series.paused
    assert book.step(55) == Wait(at(60))
    assert (book.series.asked.by, book.series.next(at(55))) == ("bob", at(60))


def test_what_was_queued_before_a_pause_is_run_after_it() -> None:
    """It had its turn; the pause only keeps it from beginning."""
    book = Book()
    book.record("queued", due=at(10))
    book.record("pause", at=at(11))
    assert book.step(12) == Wait(None)
    book.record("resume", at=at(25))
    assert book.step(26) == Note("starting", at(10))


def test_another_put_begins_another_grid_and_keeps_what_has_been() -> None:
    """Also the pause: whoever deploys a schedule does not know why it was paused."""
    book = Book()
    book.fired(10)
    book.record("pause", at=at(12))
    book.record("put", at=at(13), content=raw({"every": "1m", "command": COMMAND}))
    assert book.series.paused
    book.record("resume", at=at(14))
    assert book.step(14, False) == Wait(at(73))
    assert book.series.last is not None


def test_deleted_is_gone_and_what_comes_late_does_not_bring_it_back() -> None:
    """The command of a run that was on its way is recorded for nobody."""
    book = Book()
    book.record("starting", due=at(10))
    book.record("delete")
    book.record("fired", due=at(10), command="s@x")
    assert book.schedules.get(0, "s") is None
    assert list(book.schedules.pieces(0)) == []


def test_a_put_that_cannot_be_read_here_waits_and_says_why() -> None:
    """A later version let it in; it must not keep the partition from being read."""
    book = Book(cron="0 9 * * *", lunar=True)
    assert book.step(100) == Wait(None)
    assert "$.lunar" in book.series.broken


def test_after_its_end_nothing_is_due() -> None:
    """It stays, with its last run, until somebody deletes it."""
    book = Book(end="2026-11-21T09:00:10Z")
    assert book.step(5) == Wait(at(10))
    book.fired(10)
    assert book.step(11, False) == Wait(None)
    assert book.series.next(at(11)) is None
