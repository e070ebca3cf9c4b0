"""Which records count."""

from __future__ import annotations

import pytest

from coordinator.errors import CorruptLog
from coordinator.model.ids import CommandId
from coordinator.model.records import Epoch, Record, Timer
from coordinator.ownership.validity import Validity

A, B = b"a" * 8, b"b" * 8


def epoch(token: bytes) -> Record:
    return Epoch(1, token, 0, "instance", "address:1")


def record(token: bytes) -> Record:
    return Timer(1, token, 0, CommandId("c1"), "deadline")


def judged(validity: Validity, *records: Record) -> list[bool]:
    return [validity.admit(offset, each) for offset, each in enumerate(records)]


def test_records_count_under_the_last_epoch_only() -> None:
    """The last Epoch before a record decides; what the former owner still wrote behind it is void."""
    log = [epoch(A), record(A), epoch(B), record(A), record(B), record(A)]
    assert judged(Validity(), *log) == [True, True, True, False, True, False]


def test_nothing_counts_before_the_first_epoch() -> None:
    """A record without an Epoch before it was written by nobody in force."""
    assert judged(Validity(), record(A), epoch(A), record(A)) == [False, True, True]


def test_a_token_that_returns_would_count_again() -> None:
    """Why tokens are never used twice: a second Epoch with an old token revives what is late."""
    assert judged(Validity(), epoch(A), epoch(B), record(A), epoch(A), record(A)) == [True, True, False, True, True]


def test_a_reader_in_the_middle_goes_by_the_token_in_force() -> None:
    """Starting in the middle with the token in force there gives what starting at 0 gives."""
    log = [epoch(A), record(A), epoch(B), record(A), record(B), epoch(A[::-1]), record(B)]
    whole = Validity()
    everything = judged(whole, *log)
    running = Validity()
    for start, each in enumerate(log):
        later = Validity(start, running.token) if start else Validity()
        assert judged(later, *log[start:]) == everything[start:]
        assert later.token == whole.token
        running.admit(start, each)


def test_a_reader_in_the_middle_without_a_token_is_refused() -> None:
    """Guessing was shown to lose or to invent decisions."""
    with pytest.raises(CorruptLog, match="offset 7"):
        Validity(7).admit(7, record(A))


def test_a_reader_in_the_middle_may_begin_with_an_epoch() -> None:
    """An Epoch needs nothing before it."""
    assert judged(Validity(7), epoch(A), record(A), record(B)) == [True, True, False]
