"""A whole round, as it ought to be and with one thing broken at a time: the program must not call that success."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from msgspec import structs

from tests.chaos.book import Reign
from tests.chaos.chaos_app import STEPS
from tests.chaos.checker import Answer, Ending, Story
from tests.chaos.faults import FAULTS
from tests.chaos.figures import Strike
from tests.chaos.reckoning import BETWEEN, Account, reckon
from tests.chaos.services import Entry

RESULT = {"keys": ["c/reserve", "c/charge", "c/ship"]}


def account() -> Account:
    """Order ``c`` was accepted before a kill at 100 s under epoch 4, and ended by the heir under epoch 9."""
    answer = Answer(
        id="c", call="submit", transport="tcp", via=1, asked=99.0, answered=101.0, state="completed", result=RESULT
    )
    probe = Answer(id="p", call="probe", transport="tcp", via=1, asked=100.1, answered=100.7, state="running")
    story = Story("c", 0, 5, "Order", {b"1"}, [Ending(14, "completed", RESULT)], {name for name, _ in STEPS})
    epochs = {"reserve": 4, "charge": 9, "ship": 9}
    at = {"reserve": 99.5, "charge": 100.4, "ship": 100.5}
    return Account(
        strikes=[Strike(fault="kill", began=100.0, ended=103.0, taken={0: 4})],
        answers=[answer],
        probes={0: [probe]},
        stories={"c": story, "p": Story("p", 0, 10, "Probe", {b"2"}, [Ending(11, "completed")])},
        reigns={0: [Reign(4, "a", 0), Reign(9, "b", 0)]},
        ledgers={
            service: [Entry(at[name], "c", f"c/{name}", False, epochs[name], 1, "done")] for name, service in STEPS
        },
        clock=0.0,
    )


def broken(round: Account) -> list[str]:
    """All that the program would complain about."""
    rows, faulty = reckon(round)
    return [*faulty, *(text for row in rows if row.fault in FAULTS for text in row.broken(FAULTS[row.fault].target))]


def test_a_round_without_faults_is_called_one() -> None:
    """Nothing is said, everything is counted where it was asked for, and the take-over is measured."""
    assert broken(account()) == []
    kill, between = reckon(account())[0]
    assert (kill.fault, kill.commands, kill.answers) == ("kill", 1, 1)
    assert kill.takeovers == [pytest.approx(0.4)]
    assert (between.fault, between.commands, between.answers) == (BETWEEN, 1, 1)


def _no_end(round: Account) -> None:
    round.stories["c"].ends.clear()


def _not_in_the_log(round: Account) -> None:
    round.stories = {"p": round.stories["p"]}


def _effect_gone(round: Account) -> None:
    round.ledgers = {**round.ledgers, "shipping": []}


def _told_otherwise(round: Account) -> None:
    round.answers = [structs.replace(round.answers[0], state="compensated", result=None)]


def _ended_twice(round: Account) -> None:
    round.stories["c"].ends.append(Ending(20, "completed", RESULT))


def _error(round: Account) -> None:
    round.answers = [*round.answers, structs.replace(round.answers[0], id="d", state="", error="no_owner")]
    round.answers[1] = structs.replace(round.answers[1], asked=101.0)


def _late(round: Account) -> None:
    for entries in round.ledgers.values():
        for number, entry in enumerate(entries):
            if entry.epoch == 9:
                entries[number] = structs.replace(entry, at=entry.at + 5)  # type: ignore[index]


def _not_taken_over(round: Account) -> None:
    round.reigns = {0: [Reign(4, "a", 0)]}


def _complaint(round: Account) -> None:
    round.strikes[0].complaints.append("it hung")


@pytest.mark.parametrize(
    ("doctor", "says"),
    [
        (_no_end, "never ended"),
        (_not_in_the_log, "the log does not know it"),
        (_effect_gone, "the effect of ship is not there"),
        (_told_otherwise, "was told compensated"),
        (_ended_twice, "has 2 ends"),
        (_error, "1 errors reached a client"),
        (_late, "taking over, p99: 5.40 s"),
        (_not_taken_over, "nothing was seen to be taken over"),
        (_complaint, "it hung"),
    ],
)
def test_a_round_with_one_thing_broken_is_no_success(doctor: Callable[[Account], None], says: str) -> None:
    """Each account is doctored in turn: what the program says then names what was done to it."""
    round = account()
    doctor(round)
    assert says in "; ".join(broken(round))
