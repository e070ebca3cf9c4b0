"""A schedule as it is put: its due times, and what is refused."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from coordinator.errors import InvalidPayload
from coordinator.model.command import Submission
from coordinator.model.reading.schedule import NAME_LENGTH_MAX, check, read
from coordinator.model.schedule import Spec, moment, run_id

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
    spec, [(path, fault)] = check("s", content)
    assert (spec, path) == (None, "$")
    assert "an object is needed" in fault


def test_names_that_are_no_strings_are_refused() -> None:
    """JSON has none, but msgpack does."""
    assert set(faults(every="1s", command={"type": "Bill", 1: 2})) == {"$.command"}
    spec, _ = check("s", {"every": "1s", "command": {"type": "Bill", "a.b": 1, "timeout": "soon"}})
    assert spec is not None
    assert spec.command == {"type": "Bill"}  # what is left is sound
    assert set(faults(every="1s", command={"type": "Bill", "attributes": {1: 2}})) == {"$.command.attributes"}


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
