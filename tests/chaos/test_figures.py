"""The figures of faults whose length is known."""

from __future__ import annotations

import pytest
from msgspec import structs

from tests.chaos.book import Reign
from tests.chaos.checker import Answer, Story
from tests.chaos.figures import Row, Strike, Target, gaps, handovers, percentile, table, takeovers
from tests.chaos.services import Entry


def entry(at: float, command: str, epoch: int) -> Entry:
    return Entry(at, command, f"{command}/charge", False, epoch, 1, "done")


def probe(answered: float, error: str = "") -> Answer:
    return Answer(
        id="p", call="probe", transport="tcp", via=1, asked=answered, answered=answered, state="running", error=error
    )


def test_taking_over_ends_with_the_first_call_for_what_was_left() -> None:
    """Calls of the former owner, and of the new one for new commands, do not count."""
    strike = Strike(fault="kill", began=100.0, taken={0: 10})
    reigns = {0: [Reign(10, "a", 0), Reign(50, "b", 0)]}
    stories = {"old": Story("old", 0, 20, "Order"), "new": Story("new", 0, 60, "Order")}
    ledger = [entry(99.0, "old", 10), entry(100.1, "old", 10), entry(100.5, "new", 50), entry(100.8, "old", 50)]
    assert takeovers(strike, reigns, stories, ledger) == {0: pytest.approx(0.8)}


def test_a_partition_that_nobody_takes_over_has_no_time() -> None:
    """No later epoch, or nothing left behind: nothing is made up."""
    strike = Strike(fault="kill", began=100.0, taken={0: 10, 1: 11})
    reigns = {0: [Reign(10, "a", 0)], 1: [Reign(11, "a", 0), Reign(30, "b", 0)]}
    stories = {"old": Story("old", 0, 20, "Order"), "new": Story("new", 1, 40, "Order")}
    assert takeovers(strike, reigns, stories, [entry(101, "old", 10), entry(101, "new", 30)]) == {}


def test_the_gap_is_the_longest_silence_round_the_fault() -> None:
    """From the last answer before it, to its end at most: then the next one begins.  An error is no answer."""
    strike = Strike(fault="kill", began=100.0, ended=103.0)
    answers = [probe(98.0), probe(99.9), probe(101.0, "no_owner"), probe(102.4), probe(102.5), probe(103.1)]
    assert gaps(strike, {0: answers}) == {0: pytest.approx(2.5)}
    assert gaps(strike, {0: []}) == {0: pytest.approx(3.0)}


def test_a_hand_over_is_how_long_a_caller_waited_round_a_change_of_owner() -> None:
    """Only where it was planned, and only that wait: not the probe's pause before it, not what others waited."""
    strike = Strike(fault="rolling restart", began=100.0, ended=110.0, planned=True)
    reigns = {0: [Reign(0, "a", 90_000 + 50_000), Reign(50, "b", 102_200 + 50_000)]}
    calls = [(99.8, 99.9, ""), (101.9, 102.0, ""), (102.05, 102.1, "no_owner"), (102.15, 102.4, ""), (102.5, 106.0, "")]
    probes = {0: [structs.replace(probe(answered, error), asked=asked) for asked, answered, error in calls]}
    assert handovers(strike, reigns, probes, clock=50.0) == [pytest.approx(0.35)]
    strike.planned = False
    assert handovers(strike, reigns, probes, clock=50.0) == []


def test_percentiles_are_values_that_were_measured() -> None:
    """p99 of few values is the largest; of none there is none."""
    assert percentile([3.0, 1.0, 2.0], 50) == 2.0
    assert percentile([3.0, 1.0, 2.0], 99) == 3.0
    assert percentile([], 50) is None


def test_every_broken_target_is_a_sentence() -> None:
    """Lost commands, errors, a slow take-over and a long gap are all told; what was kept is not."""
    row = Row(
        fault="kill", strikes=1, takeovers=[0.5, 3.5], handovers=[0.2, 0.7], lost=1, errors=2, complaints=["it hung"]
    )
    broken = row.broken(Target(takeover_p50=1.0, takeover_p99=3.0, handover=0.5))
    assert [text.removeprefix("kill: ") for text in broken] == [
        "it hung",
        "1 lost, 0 contradicted",
        "2 errors reached a client",
        "taking over, p99: 3.50 s, and 3 s was promised",
        "the longest hand-over: 0.70 s, and 0.5 s was promised",
    ]
    assert Row(fault="kill", takeovers=[0.5], gaps=[9.0]).broken(Target(takeover_p50=1.0)) == []


def test_a_fault_without_a_measure_is_no_success() -> None:
    """Where something had to be taken over and nothing was seen to be, that is told."""
    row = Row(fault="kill", strikes=1)
    assert row.broken(Target(takeover_p99=3.0)) == ["kill: nothing was seen to be taken over"]
    assert row.broken(Target(takeover_p99=3.0, may_stay=True)) == []


def test_rows_add_up_and_are_shown() -> None:
    """The rows of several rounds become one line."""
    row = Row(fault="kill", strikes=1, commands=5, takeovers=[0.25])
    row.add(Row(fault="kill", strikes=1, commands=6, takeovers=[0.75], gaps=[1.5]))
    assert (
        table([row]).splitlines()[-1] == "| kill | 2 | 11 | 0 | 0 | 0 | 0 | 0.25 s | 0.75 s | 2 | – | – | 0 | 1.50 s |"
    )
