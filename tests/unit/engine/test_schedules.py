"""Schedules: what is read, when they are due, and what is to be done at a time."""

from __future__ import annotations

from datetime import datetime
from itertools import count
from typing import Any

import pytest

from coordinator.engine.schedules import (
    NAME_LENGTH_MAX,
    QUEUE_MAX,
    Ask,
    Cancel,
    Note,
    Schedules,
    Series,
    Spec,
    Start,
    Step,
    Wait,
    check,
    moment,
    read,
    run_id,
)
from coordinator.errors import InvalidPayload
from coordinator.model.command import Submission
from coordinator.model.records import Schedule, raw

COMMAND = {"type": "Bill", "payload": {"n": 1}}


def ms(text: str) -> int:
    return round(datetime.fromisoformat(text).timestamp() * 1000)


def spec(**fields: Any) -> Spec:
    return read("s", {"command": COMMAND, **fields})


def due_times(spec: Spec, after: str, number: int) -> list[str]:
    """The first so many due times of a schedule that was put then."""
    since = at = ms(after)
    found = []
    for _ in range(number):
        due = spec.after(at, since)
        if due is None:
            break
        found.append(moment(due))
        at = due
    return found


def faults(name: str = "s", **content: Any) -> dict[str, str]:
    return dict(check(name, content)[1])


# ---------------------------------------------------------------- due times


def test_a_month_is_counted_in_the_schedules_own_zone() -> None:
    """Nine o'clock in Zurich on the first is another time in UTC in winter than in summer."""
    monthly = spec(cron="0 9 1 * *", timezone="Europe/Zurich")
    assert due_times(monthly, "2026-02-15T00:00:00Z", 3) == [
        "2026-03-01T08:00:00Z",
        "2026-04-01T07:00:00Z",
        "2026-05-01T07:00:00Z",
    ]


def test_a_time_that_the_clock_leaps_over_is_run_right_behind_the_leap() -> None:
    """On 29 March 2026, Zurich has no half past two: the run of that day is at three."""
    nightly = spec(cron="30 2 * * *", timezone="Europe/Zurich")
    assert due_times(nightly, "2026-03-28T00:00:00Z", 3) == [
        "2026-03-28T01:30:00Z",
        "2026-03-29T01:00:00Z",
        "2026-03-30T00:30:00Z",
    ]


def test_a_time_that_comes_twice_is_run_once() -> None:
    """On 25 October 2026, Zurich has two half past twos: the first one counts."""
    nightly = spec(cron="30 2 * * *", timezone="Europe/Zurich")
    assert due_times(nightly, "2026-10-24T12:00:00Z", 2) == ["2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"]


@pytest.mark.parametrize("at", ["2026-10-25T00:31:00Z", "2026-10-25T01:10:00Z", "2026-10-25T01:29:59Z"])
def test_what_was_due_in_the_first_round_of_a_doubled_hour_is_over_in_the_second(at: str) -> None:
    """Asked from within the second round, when the hands point before half past two again."""
    assert due_times(spec(cron="30 2 * * *", timezone="Europe/Zurich"), at, 1) == ["2026-10-26T01:30:00Z"]


def test_every_quarter_of_an_hour_goes_on_through_both_rounds_of_a_doubled_hour() -> None:
    """What runs all the time is a matter of time gone by, and not of where the hands point."""
    quarters = spec(cron="*/15 * * * *", timezone="Europe/Zurich")
    times = due_times(quarters, "2026-10-24T23:50:00Z", 12)
    assert [later - at for at, later in zip(map(ms, times), map(ms, times[1:]), strict=False)] == [900_000] * 11


def test_every_counts_from_the_put_without_drift() -> None:
    """In whole seconds from the second that followed; however late one is asked."""
    every = spec(every="30s")
    put = ms("2026-11-21T09:00:00.250Z")
    assert [moment(every.after(put + late, put) or 0) for late in (0, 30_000, 61_000, 86_400_000)] == [
        "2026-11-21T09:00:31Z",
        "2026-11-21T09:00:31Z",
        "2026-11-21T09:01:31Z",
        "2026-11-22T09:00:01Z",
    ]


def test_every_counts_from_its_start_where_it_has_one() -> None:
    """So that a day's run is at six, whenever it was put; the start is the first due time."""
    daily = spec(every="24h", start="2026-12-01T06:00:00+01:00")
    assert due_times(daily, "2026-11-21T09:13:00Z", 2) == ["2026-12-01T05:00:00Z", "2026-12-02T05:00:00Z"]
    assert due_times(daily, "2026-12-24T09:13:00Z", 1) == ["2026-12-25T05:00:00Z"]


def test_start_and_end_are_due_times_themselves() -> None:
    """Both bounds belong to what they bound, and behind the end nothing is due."""
    bounded = spec(cron="0 9 * * *", start="2026-12-01T09:00:00Z", end="2026-12-02T09:00:00Z")
    assert due_times(bounded, "2026-11-21T00:00:00Z", 5) == ["2026-12-01T09:00:00Z", "2026-12-02T09:00:00Z"]


def test_a_cron_expression_may_have_seconds_and_names() -> None:
    """Six fields begin with the second; days, months and the usual macros have names."""
    assert due_times(spec(cron="*/20 * * * * *"), "2026-11-21T09:00:00Z", 2) == [
        "2026-11-21T09:00:20Z",
        "2026-11-21T09:00:40Z",
    ]
    assert due_times(spec(cron="0 12 * dec mon"), "2026-11-21T09:00:00Z", 1) == ["2026-12-07T12:00:00Z"]
    assert due_times(spec(cron="@monthly"), "2026-11-21T09:00:00Z", 1) == ["2026-12-01T00:00:00Z"]


def test_the_last_due_time_before_a_moment() -> None:
    """What a schedule that was not looked after for months catches up with."""
    monthly = spec(cron="0 9 1 * *", timezone="Europe/Zurich")
    since, now = ms("2026-01-15T00:00:00Z"), ms("2026-11-21T00:00:00Z")
    assert moment(monthly.latest(since, now, since) or 0) == "2026-11-01T08:00:00Z"
    assert monthly.latest(ms("2026-11-02T00:00:00Z"), now, since) is None


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    "cron",
    ["", "* * * *", "* * * * * * *", "60 * * * *", "0 24 * * *", "0 0 0 * *", "0 0 30 2 *", "x", "@often",
     "*/0 * * * *", "0 0 */31 * MON#2", "5-1 * * * *", "1" * 5000, 7, ["0 9 * * *"], "0 9 * * MON#6"],
)  # fmt: skip
def test_a_bad_cron_expression_is_refused(cron: Any) -> None:
    """Whatever is wrong with it, it is said at its path."""
    assert "$.cron" in faults(cron=cron, command=COMMAND)


@pytest.mark.parametrize("zone", ["Europe/Zurch", "", "../etc/passwd", "localtime", "posix/Europe/Zurich", "+01:00", 1])
def test_an_unknown_time_zone_is_refused(zone: Any) -> None:
    """Only names that every instance of a group knows."""
    assert "$.timezone" in faults(cron="0 9 * * *", timezone=zone, command=COMMAND)


@pytest.mark.parametrize("every", ["999ms", "0s", "-5s", "30", 30, "often", "200000d"])
def test_a_bad_interval_is_refused(every: Any) -> None:
    """A second is the shortest one."""
    assert "$.every" in faults(every=every, command=COMMAND)


@pytest.mark.parametrize("fields", [{}, {"cron": "0 9 * * *", "every": "30s"}, {"cron": None}])
def test_either_cron_or_every(fields: dict[str, Any]) -> None:
    """Exactly one of the two."""
    assert faults(command=COMMAND, **fields) == {"$": "either cron or every is needed, and not both"}


@pytest.mark.parametrize("time", ["tomorrow", "2026-12-01", "2026-12-01T09:00:00", 17, "0001-01-01T00:00:00+14:00x"])
def test_a_bound_is_a_whole_time(time: Any) -> None:
    """With its offset: a time without one is another time for everybody."""
    assert set(faults(every="1s", start=time, end=time, command=COMMAND)) == {"$.start", "$.end"}


def test_an_end_before_the_start_is_refused() -> None:
    """There would be nothing in between."""
    wrong = faults(every="1s", start="2026-12-02T00:00:00Z", end="2026-12-01T00:00:00Z", command=COMMAND)
    assert wrong == {"$.end": "is before start"}


@pytest.mark.parametrize("name", ["", " ", "a b", "a/b", "..", "x" * (NAME_LENGTH_MAX + 1), "a\n"])
def test_a_name_must_make_a_commands_id(name: str) -> None:
    """`<name>@<due time>` is the id of each run."""
    assert set(faults(name, every="1s", command=COMMAND)) == {"$.name"}


def test_all_faults_are_told_at_once() -> None:
    """Each with its path, those of the command among them, with a hint where a name was nearly right."""
    with pytest.raises(InvalidPayload) as refusal:
        read(
            "a/b",
            {
                "cron": "nonsense",
                "time_zone": "Europe/Zurich",
                "overlap": "maybe",
                "end": "never",
                "command": {
                    "type": 7,
                    "version": "1",
                    "priority": 1.5,
                    "timeout": "soon",
                    "attributes": {"k": []},
                    "paylod": 1,
                },
            },
        )
    told = {fault["path"]: fault["fault"] for fault in refusal.value.extra["faults"]}
    assert set(told) == {
        "$.name",
        "$.time_zone",
        "$.cron",
        "$.overlap",
        "$.end",
        "$.command.paylod",
        "$.command.type",
        "$.command.version",
        "$.command.priority",
        "$.command.timeout",
        "$.command.attributes.k",
    }
    assert 'did you mean "timezone"' in told["$.time_zone"]
    assert 'did you mean "payload"' in told["$.command.paylod"]


@pytest.mark.parametrize("content", [None, [], "x", 7])
def test_a_schedule_is_an_object(content: Any) -> None:
    """Nothing else is read any further."""
    assert check("s", content) == (None, [("$", "a schedule is an object")])


@pytest.mark.parametrize(
    "command", [None, [], "Bill", {}, {"type": "Bill", "definition": {}}, {"id": "x", "type": "Bill"}]
)
def test_a_command_names_what_it_runs(command: Any) -> None:
    """One type or one definition, and no id: that is the schedule's to make."""
    assert any(path.startswith("$.command") for path in faults(every="1s", command=command))


def test_a_run_is_submitted_with_an_id_that_its_due_time_makes() -> None:
    """And with what was put for it; the schedule's name is among its attributes, so that its runs can be listed."""
    content = {**COMMAND, "attributes": {"customer": "c-1"}, "timeout": "5m", "version": 2, "priority": 3}
    due = ms("2026-12-01T08:00:00Z")
    assert read("monthly", {"cron": "@monthly", "command": content}).submission("monthly", due) == Submission(
        id="monthly@2026-12-01T08:00:00Z",
        type="Bill",
        version=2,
        payload={"n": 1},
        priority=3,
        timeout="5m",
        attributes={"schedule": "monthly", "customer": "c-1"},
    )
    assert run_id("s", due + 500) == "s@2026-12-01T08:00:00.500Z"


# ---------------------------------------------------------------- what is to be done

T0 = ms("2026-11-21T09:00:00Z")


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
