"""Receipts: 48 bytes a finished command, found by the hash of its id."""

from __future__ import annotations

from coordinator.admission.receipts import (
    FINGERPRINT_BYTES,
    RECEIPT_BYTES,
    Receipt,
    Receipts,
    below,
    merged,
    receipt,
    since_for,
)
from coordinator.engine.registry import fingerprint


def print_of(n: int) -> bytes:
    return n.to_bytes(FINGERPRINT_BYTES, "big")


def some(*numbers: int, end: int = 0, at: int = 0) -> list[bytes]:
    """Receipts of the commands c<n>, sorted."""
    return sorted(receipt(f"c{n}", print_of(n), n, end or n + 1, at or 1_000 + n) for n in numbers)


def kept(*runs: list[bytes], since: int = 0) -> Receipts:
    return Receipts(b"".join(merged(*runs, since=since)))


def test_a_fingerprint_fits() -> None:
    """The one that is compared with is as long as the one that the registry makes."""
    assert len(fingerprint("T", 1, {}, None)) == FINGERPRINT_BYTES
    assert RECEIPT_BYTES == 48


def test_a_finished_command_is_found_by_its_id() -> None:
    """With all that a repeated request needs to be answered; an id that never was is not found."""
    receipts = kept(some(*range(1_000)))
    assert len(receipts) == 1_000
    for n in range(1_000):
        assert receipts.find(f"c{n}") == Receipt(print_of(n), n, n + 1, 1_000 + n)
    for n in range(1_000, 2_000):
        assert receipts.find(f"c{n}") is None


def test_nothing_is_found_in_nothing() -> None:
    """A partition without history."""
    assert Receipts().find("c") is None
    assert list(Receipts()) == []


def test_a_run_is_read_as_it_was_written() -> None:
    """What a snapshot gave goes into the next one."""
    assert list(kept(some(*range(50)))) == some(*range(50))


def test_two_runs_are_merged_in_order() -> None:
    """What the last snapshot knew, and what the view has learnt since."""
    assert list(kept(some(*range(0, 100, 2)), some(*range(1, 100, 2)))) == some(*range(100))


def test_what_both_runs_know_is_there_once() -> None:
    """A view that is being filled overlaps with the snapshot it started from."""
    assert list(kept(some(*range(60)), some(*range(40, 100)))) == some(*range(100))


def test_of_two_ends_of_one_id_the_later_stays() -> None:
    """An id that was used again after its horizon: who asks now means the last one."""
    old, new = some(7, end=20, at=1_000), some(7, end=90, at=9_000)
    for runs in ((old, new), (new, old)):
        found = kept(*runs).find("c7")
        assert found is not None
        assert found.end == 90
    expired = kept(old, new, since=5_000).find("c7")
    assert expired is not None
    assert expired.end == 90


def test_receipts_expire_with_the_horizon() -> None:
    """A snapshot does not carry what nobody is promised any more."""
    receipts = kept(some(*range(100)), since=1_040)
    assert len(receipts) == 60
    assert receipts.find("c39") is None
    assert receipts.find("c40") is not None


def test_what_ended_above_an_offset_is_left_to_the_log() -> None:
    """A view goes on filling while a snapshot of an earlier moment is made of it."""
    assert list(below(some(*range(100)), 51)) == some(*range(50))


def test_a_limit_keeps_about_so_many_of_the_newest() -> None:
    """The order by hash makes any prefix a fair sample of the times."""
    run = some(*range(20_000))
    since = since_for(len(run), iter(run), 5_000)
    assert 4_500 <= len(kept(run, since=since)) <= 5_500
    assert since_for(len(run), iter(run), 20_000) == 0
    assert len(kept(run, since=since_for(len(run), iter(run), 0))) == 0
