"""Data that is kept until somebody waits for it."""

from __future__ import annotations

from typing import Any

from coordinator.engine.mailbox import Mailbox
from coordinator.model.ids import CommandId
from coordinator.model.records import SCHEMA, Signal, raw


def datum(value: Any, name: str = "otp", signal_id: str = "") -> Signal:
    return Signal(SCHEMA, b"", 1, CommandId("c"), name, raw(value), signal_id)


def taken(mailbox: Mailbox, name: str = "otp") -> list[bytes]:
    found = []
    while (kept := mailbox.take(name)) is not None:
        found.append(bytes(kept.value))
    return found


def test_data_leaves_in_the_order_in_which_it_came() -> None:
    """By name: what came under another does not matter."""
    mailbox = Mailbox()
    for value, name in ((1, "otp"), (9, "papers"), (2, "otp")):
        mailbox.put(datum(value, name), wanted=False)
    assert taken(mailbox) == [b"\x01", b"\x02"]
    assert taken(mailbox, "papers") == [b"\x09"]
    assert mailbox.take("otp") is None


def test_the_same_value_again_is_the_same_datum() -> None:
    """Nobody waits for another, and it has no id: a client has sent it twice."""
    mailbox = Mailbox()
    for value in (1, 1, 2, 1):
        mailbox.put(datum(value), wanted=False)
    assert taken(mailbox) == [b"\x01", b"\x02", b"\x01"]


def test_it_is_the_same_datum_also_when_the_first_has_been_taken() -> None:
    """What counts is what came last, not what is still there."""
    mailbox = Mailbox()
    mailbox.put(datum(1), wanted=True)
    assert taken(mailbox) == [b"\x01"]
    mailbox.put(datum(1), wanted=False)
    assert taken(mailbox) == []


def test_the_same_value_is_another_datum_for_somebody_who_waits_for_another() -> None:
    """A password that is typed wrong twice in the same way was typed twice."""
    mailbox = Mailbox()
    for _ in range(2):
        mailbox.put(datum(1), wanted=True)
    assert taken(mailbox) == [b"\x01", b"\x01"]


def test_who_gives_an_id_means_each_of_them() -> None:
    """The same value under two ids is two data; that one id counts once is the fold's to see."""
    mailbox = Mailbox()
    for signal_id in ("a", "b"):
        mailbox.put(datum(1, signal_id=signal_id), wanted=False)
    assert taken(mailbox) == [b"\x01", b"\x01"]
