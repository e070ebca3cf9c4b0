"""The checker over histories that were broken by hand: each kind of broken promise must be found, and named."""

from __future__ import annotations

from typing import Any

import pytest

from tests.chaos.checker import Answer, Ending, Story, judge
from tests.chaos.services import Did, Entry

STEPS = {"Order": (("reserve", "stock"), ("charge", "payments"))}
RESULT = {"keys": ["c/reserve", "c/charge"]}


def told(state: str = "completed", result: Any = RESULT, **rest: Any) -> Answer:
    """What a client was told about command ``c``."""
    given = {"id": "c", "call": "submit", "transport": "tcp", "via": 1, "asked": 1.0, "answered": 2.0}
    return Answer(**{**given, "position": "0:5", "state": state, "result": result, **rest})


def story(*ends: Ending, outcomes: tuple[str, ...] = ("reserve", "charge"), fingerprints: int = 1) -> Story:
    prints = {bytes([number]) for number in range(fingerprints)}
    return Story("c", 0, 5, "Order", prints, list(ends), set(outcomes))


COMPLETED = Ending(9, "completed", RESULT)
COMPENSATED = Ending(9, "compensated", None, "declined")


def entries(*did: tuple[str, Did]) -> list[Entry]:
    """A ledger's entries for command ``c``: step and what was done."""
    return [
        Entry(float(at), "c", f"c/{step}/undo" if deed == "undone" else f"c/{step}", deed == "undone", 4, 1, deed)
        for at, (step, deed) in enumerate(did)
    ]


def books(stock: list[Entry], payments: list[Entry]) -> dict[str, list[Entry]]:
    return {"stock": stock, "payments": payments}


WHOLE = books(entries(("reserve", "done")), entries(("charge", "done"), ("charge", "again")))
TAKEN_BACK = books(entries(("reserve", "done"), ("reserve", "undone")), entries(("charge", "refused")))


def found(answers: list[Answer], log: Story | None, ledgers: dict[str, list[Entry]]) -> tuple[str, str]:
    """The sentences about what was lost and what was contradicted."""
    verdict = judge(answers, {"c": log} if log else {}, ledgers, STEPS)
    return "; ".join(map(str, verdict.lost)), "; ".join(map(str, verdict.contradicted))


def test_what_is_whole_is_found_whole() -> None:
    """Completed with every effect, repeats included, and compensated with none left: nothing is said."""
    assert found([told(), told("running", None)], story(COMPLETED), WHOLE) == ("", "")
    compensated = story(COMPENSATED, outcomes=("reserve",))
    assert found([told("compensated", None, failure="declined")], compensated, TAKEN_BACK) == ("", "")


def test_an_accepted_command_that_never_ends_is_lost() -> None:
    """The log has it, but no end."""
    lost, _ = found([told("running", None)], story(), WHOLE)
    assert "never ended" in lost


def test_an_answer_about_nothing_is_lost() -> None:
    """A client was told "accepted", and the log has never heard of it."""
    lost, contradicted = found([told("running", None)], None, {})
    assert "does not know it" in lost
    assert contradicted == ""


def test_an_error_is_no_answer() -> None:
    """A call that ended with an error promised nothing."""
    assert found([told("", None, error="no_owner")], None, {}) == ("", "")


def test_unknown_after_accepted_is_a_contradiction() -> None:
    """Whoever asks after an acceptance must find the command; who asks at the same time need not."""
    denied = told("", None, error="unknown_command", asked=3.0, answered=3.1)
    assert "unknown to who asked afterwards" in found([told(), denied], story(COMPLETED), WHOLE)[1]
    assert found([told(asked=2.9, answered=3.0), denied], story(COMPLETED), WHOLE) == ("", "")


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (told("compensated", None), "told compensated , the log says completed"),
        (told(result={"keys": []}), "told the result"),
        (told(position="0:6"), "told position 0:6, the log has it at 0:5"),
        (told("completed", RESULT, failure="declined"), "told completed declined"),
    ],
)
def test_an_answer_that_the_log_contradicts(answer: Answer, says: str) -> None:
    """Another end, another result, another place, another reason: each is found, beside an answer that is right."""
    assert says in found([told(), answer], story(COMPLETED), WHOLE)[1]


def test_two_ends_are_a_contradiction() -> None:
    """Two valid Finished records, even if clients were told only the first."""
    assert "has 2 ends" in found([told()], story(COMPLETED, COMPENSATED), WHOLE)[1]


def test_two_payloads_under_one_id_are_a_contradiction() -> None:
    """Two valid Submitted records that are not the same request."""
    assert "two different payloads" in found([told()], story(COMPLETED, fingerprints=2), WHOLE)[1]


@pytest.mark.parametrize(
    ("ledgers", "says"),
    [
        (books(entries(("reserve", "done")), []), "completed, but the effect of charge is not there (never called)"),
        (books(entries(("reserve", "done")), entries(("charge", "refused"))), "charge is not there (refused)"),
        (
            books(entries(("reserve", "done"), ("reserve", "undone")), entries(("charge", "done"))),
            "reserve is not there (done, undone)",
        ),
        (books(entries(("reserve", "done")), entries(("charge", "done"), ("charge", "done"))), "took effect 2 times"),
    ],
)
def test_a_completed_command_without_its_effects(ledgers: dict[str, list[Entry]], says: str) -> None:
    """Never called, refused, taken back, or twice."""
    assert says in found([told()], story(COMPLETED), ledgers)[1]


@pytest.mark.parametrize(
    ("ledgers", "says"),
    [
        (books(entries(("reserve", "done")), entries(("charge", "refused"))), "the effect of reserve is live"),
        (
            books(entries(("reserve", "undone"), ("reserve", "done")), entries(("charge", "refused"))),
            "reserve took effect after it was undone",
        ),
        (
            books(entries(("reserve", "done"), ("reserve", "undone")), entries(("charge", "done"))),
            "the log has no outcome of charge, its ledger says done",
        ),
    ],
)
def test_a_compensated_command_with_effects(ledgers: dict[str, list[Entry]], says: str) -> None:
    """Not undone, done once more after the undo, or done and never recorded: a live effect is found in each."""
    compensated = story(COMPENSATED, outcomes=("reserve",))
    assert says in found([], compensated, ledgers)[1]


def test_an_outcome_that_no_service_gave() -> None:
    """The log says that a step succeeded, and its service knows nothing of it."""
    ledgers = books([], entries(("charge", "refused")))
    assert (
        "has outcome of reserve, its ledger says nothing"
        in found([], story(COMPENSATED, outcomes=("reserve",)), ledgers)[1]
    )


def test_calls_for_a_command_that_was_never_accepted() -> None:
    """A service was called, and the log has no such command."""
    assert "the log does not know it" in found([], None, WHOLE)[1]
