"""The audit must find every way in which an order can be broken; a demo that always passes shows nothing."""

from __future__ import annotations

import pytest

from coordinator.demo.audit import audit
from coordinator.demo.ledger import Entry

COMPLETED = {"stock": "done", "payments": "done", "shipping": "done"}
COMPENSATED = {"stock": "done undone", "payments": "refused", "shipping": ""}
FAILED = {"stock": "refused", "payments": "", "shipping": ""}


def ledgers(book: dict[str, str], order: str = "o-1") -> dict[str, list[Entry]]:
    return {
        service: [Entry(order, action) for action in actions.split()]  # type: ignore[arg-type]
        for service, actions in book.items()
    }


def faults(state: str | None, book: dict[str, str]) -> list[str]:
    states = {} if state is None else {"o-1": state}
    return [fault.what for fault in audit(["o-1"], states, ledgers(book))]


@pytest.mark.parametrize(
    ("state", "book"), [("completed", COMPLETED), ("compensated", COMPENSATED), ("failed", FAILED)]
)
def test_a_whole_order_has_no_fault(state: str, book: dict[str, str]) -> None:
    """Each of the three ends agrees with the ledgers that belong to it."""
    assert faults(state, book) == []


def test_a_late_refusal_undoes_two_services() -> None:
    """Shipping refuses after stock and payments did their part: both are undone, which is whole."""
    assert faults("compensated", {"stock": "done undone", "payments": "done undone", "shipping": "refused"}) == []


def test_a_missing_effect_is_found() -> None:
    """Completed, but one service never heard of it."""
    assert faults("completed", COMPLETED | {"shipping": ""}) == ["completed, but shipping never did its part"]


def test_a_double_effect_is_found() -> None:
    """Payments charged twice, under two keys."""
    assert faults("completed", COMPLETED | {"payments": "done done"}) == ["payments did it 2 times"]


def test_a_double_undo_is_found() -> None:
    """The money went back twice."""
    book = {"stock": "done undone", "payments": "done undone undone", "shipping": "refused"}
    assert faults("compensated", book) == ["payments undid it 2 times"]


def test_an_order_undone_by_half_is_found() -> None:
    """Compensated, but the charge still stands."""
    book = {"stock": "done undone", "payments": "done", "shipping": "refused"}
    assert faults("compensated", book) == ["compensated, but what payments did still stands"]


def test_an_undone_order_that_the_client_was_told_is_completed_is_found() -> None:
    """The client was told the order is complete while a service took its part back."""
    assert faults("completed", COMPLETED | {"payments": "done undone"}) == ["completed, but payments undid its part"]


def test_an_order_undone_without_a_refusal_is_found() -> None:
    """No service said no: an outage or a crash must never be taken for a refusal."""
    book = {"stock": "done undone", "payments": "", "shipping": ""}
    assert faults("compensated", book) == ["compensated, and 0 services refused it"]


def test_an_undo_before_its_deed_is_found() -> None:
    """The order of a ledger's entries counts, not only their number."""
    book = {"stock": "undone done", "payments": "refused", "shipping": ""}
    assert faults("compensated", book) == ["stock undid what it had not done"]


def test_a_failed_order_with_an_effect_is_found() -> None:
    """Failed means that nothing was done."""
    book = {"stock": "done", "payments": "refused", "shipping": ""}
    assert faults("failed", book) == ["failed with nothing done, but stock did its part"]


def test_a_completed_order_that_was_refused_is_found() -> None:
    """A refusal is a step's answer too; completing over it is wrong."""
    assert faults("completed", COMPLETED | {"payments": "refused"}) == ["completed, though payments refused it"]


def test_an_order_without_an_end_is_found() -> None:
    """Submitted, and the client never heard how it ended."""
    assert faults(None, COMPLETED) == ["has no final state"]


def test_an_order_that_is_not_final_is_found() -> None:
    """A state that is no end is no result."""
    assert faults("running", COMPLETED) == ["ended running, which is no end that this demo knows"]


def test_an_order_that_nobody_submitted_is_found() -> None:
    """A ledger holds an order unknown to the client."""
    found = audit([], {}, ledgers(COMPLETED, order="o-9"))
    assert [str(fault) for fault in found] == ["o-9: is in a ledger, but nobody submitted it"]


def test_an_order_lost_without_a_trace_is_found() -> None:
    """Neither the client nor any ledger knows of an order that was submitted."""
    assert [fault.order for fault in audit(["o-1", "o-2"], {"o-1": "completed"}, ledgers(COMPLETED))] == ["o-2"]
