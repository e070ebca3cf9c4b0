"""The rules of acting, row by row (`coordinator.ownership.owner`)."""

from __future__ import annotations

import pytest

from coordinator.model.ids import CommandId
from coordinator.model.records import Epoch, Record, Timer
from coordinator.ownership.owner import Act, Down, Owner, Phase, Read, Seen, Wait
from coordinator.wire.codec import encode

MINE, OTHER, OLDER = b"mine____", b"other___", b"older___"


def epoch(token: bytes, instance: str = "b") -> Epoch:
    return Epoch(1, token, 0, instance, f"{instance}:7070")


def timer(token: bytes, name: str = "deadline") -> Record:
    return Timer(1, token, 0, CommandId("c1"), name)


def seen(offset: int, token: bytes, data: bytes = b"stale") -> Seen:
    return Seen(offset, token, data)


def seen_epoch(offset: int, token: bytes, instance: str = "b") -> Seen:
    record = epoch(token, instance)
    return Seen(offset, token, encode(record), record)


def owning(verified: int = 1) -> Owner:
    """An owner whose Epoch is the record below ``verified``."""
    owner = Owner(MINE)
    owner.fold([(verified - 1, epoch(MINE))])
    return owner


# ---------------------------------------------------------------- acquiring


def test_the_own_epoch_is_found_by_its_token() -> None:
    """Its offset becomes the epoch's number, and everything behind it is not yet verified."""
    owner = Owner(MINE)
    assert owner.phase is Phase.ACQUIRING
    assert len(owner.fold([(0, epoch(OTHER)), (1, timer(OTHER))])) == 2
    assert owner.phase is Phase.ACQUIRING
    owner.fold([(2, epoch(MINE)), (3, epoch(OTHER))])
    assert (owner.phase, owner.epoch, owner.verified) == (Phase.OWNING, 2, 3)


def test_only_valid_records_up_to_the_own_epoch_are_handed_on() -> None:
    """Stale records are withheld; what lies behind the own Epoch is left to settlement."""
    owner = Owner(MINE)
    log = [epoch(OLDER), timer(OLDER), epoch(OTHER), timer(OLDER), timer(OTHER), epoch(MINE), timer(MINE)]
    assert [offset for offset, _ in owner.fold(enumerate(log))] == [0, 1, 2, 4, 5]


def test_an_older_own_epoch_is_not_the_own_one() -> None:
    """An attempt is known by its token, not by who made it."""
    owner = Owner(MINE)
    owner.fold([(0, epoch(OLDER, "me"))])
    assert owner.phase is Phase.ACQUIRING


def test_a_zombie_start_is_fenced_at_its_first_append() -> None:
    """A foreign Epoch right behind the own one stops the owner before it acts on anything."""
    owner = Owner(MINE)
    owner.fold([(0, epoch(MINE)), (1, epoch(OTHER))])
    ticket = owner.sent([b"r"])
    owner.acked(ticket, 2)
    assert owner.settle() == Read(1, 2)
    assert not owner.observe(seen_epoch(1, OTHER))
    assert isinstance(owner.settle(), Down)


# ---------------------------------------------------------------- settling: acks


def test_nothing_to_settle() -> None:
    """An idle owner waits."""
    assert owning().settle() == Wait()


def test_nothing_is_acted_on_before_its_ack() -> None:
    """(a) Acting before the ack was shown to lose a command."""
    owner = owning()
    owner.sent([b"r"])
    assert owner.settle() == Wait()


def test_an_ack_right_at_verified_is_acted_on() -> None:
    """The fast path: nothing lies between, so there is nothing to read."""
    owner = owning()
    ticket = owner.sent([b"r1", b"r2"])
    owner.acked(ticket, 1)
    assert owner.settle() == Act(ticket, 1)
    assert owner.verified == 3
    assert owner.settle() == Wait()


def test_a_gap_with_a_foreign_epoch_steps_down() -> None:
    """(b) Skipping the gap was shown to let two owners act on contrary decisions."""
    owner = owning()
    owner.acked(owner.sent([b"r"]), 3)
    assert owner.settle() == Read(1, 3)
    assert owner.observe(seen(1, OLDER))
    assert not owner.observe(seen_epoch(2, OTHER, "b"))
    assert owner.settle() == Down("another epoch began", "b", "b:7070")
    assert owner.in_flight == 0


def test_an_own_older_epoch_in_the_gap_is_foreign() -> None:
    """A ghost of a dead attempt of the same instance fences as any other."""
    owner = owning()
    owner.acked(owner.sent([b"r"]), 2)
    owner.settle()
    assert not owner.observe(seen_epoch(1, OLDER, "me"))
    assert isinstance(owner.settle(), Down)


def test_a_gap_of_stale_records_only_is_passed() -> None:
    """A fenced zombie's bytes hurt nobody: the rightful owner does not step down for them."""
    owner = owning()
    ticket = owner.sent([b"r"])
    owner.acked(ticket, 3)
    assert owner.settle() == Read(1, 3)
    assert owner.observe(seen(1, OLDER))
    assert owner.observe(seen(2, OTHER))
    assert not owner.observe(seen(3, MINE, b"r"))
    assert owner.settle() == Act(ticket, 3)
    assert owner.verified == 4


def test_a_gap_is_read_until_its_far_side_is_seen() -> None:
    """A reader that lags has not proved the gap clean; it is asked to go on from where it came to."""
    owner = owning()
    ticket = owner.sent([b"r"])
    owner.acked(ticket, 3)
    assert owner.settle() == Read(1, 3)
    assert owner.observe(seen(1, OLDER))
    owner.end_reached()
    assert owner.settle() == Read(2, 3)
    assert owner.observe(seen(1, OLDER))  # read again: judged before
    owner.observe(seen(2, OLDER))
    owner.observe(seen(3, MINE, b"r"))
    assert owner.settle() == Act(ticket, 3)


def test_an_ack_that_the_log_belies_steps_down() -> None:
    """Something else lies where the batch was confirmed."""
    owner = owning()
    owner.acked(owner.sent([b"r"]), 2)
    owner.settle()
    owner.observe(seen(1, OLDER))
    assert not owner.observe(seen(2, MINE, b"another"))
    assert isinstance(owner.settle(), Down)


def test_an_ack_below_verified_steps_down() -> None:
    """That place is another record's."""
    owner = owning(5)
    owner.acked(owner.sent([b"r"]), 3)
    assert isinstance(owner.settle(), Down)


def test_a_refused_batch_steps_down_with_the_reason() -> None:
    """What the batch said is not so, and what was decided on top of it neither."""
    owner = owning()
    owner.refused(owner.sent([b"r"]), "the disk is full")
    down = owner.settle()
    assert isinstance(down, Down)
    assert "the disk is full" in down.reason


# ---------------------------------------------------------------- settling: order


def test_batches_are_settled_in_send_order() -> None:
    """(e) The second batch's ack says nothing about the first."""
    owner = owning()
    first, second = owner.sent([b"r1"]), owner.sent([b"r2"])
    owner.acked(second, 2)
    assert owner.settle() == Wait()
    owner.acked(first, 1)
    assert owner.settle() == Act(first, 1)
    assert owner.settle() == Act(second, 2)
    assert owner.settle() == Wait()


def test_a_gap_is_scanned_from_verified_not_from_the_assumed_end_of_the_batch_before() -> None:
    """(e) A foreign Epoch sits where the batch in doubt was expected: scanning from behind that place misses it."""
    owner = owning()
    first, second = owner.sent([b"r1"]), owner.sent([b"r2"])
    owner.unknown(first)
    owner.acked(second, 3)
    assert owner.settle() == Read(1, None)
    assert not owner.observe(seen_epoch(1, OTHER))
    assert isinstance(owner.settle(), Down)
    assert owner.in_flight == 0


def test_batches_that_changed_places_step_down() -> None:
    """The second batch landed before the first: a reader folds them in that order, so nobody may act in the other."""
    owner = owning()
    first, second = owner.sent([b"r1"]), owner.sent([b"r2"])
    owner.acked(first, 2)
    owner.acked(second, 1)
    assert owner.settle() == Read(1, 2)
    assert not owner.observe(seen(1, MINE, b"r2"))
    assert isinstance(owner.settle(), Down)


# ---------------------------------------------------------------- settling: unknown


def test_an_unknown_batch_that_is_found_is_acted_on() -> None:
    """The ack was lost, the records were not."""
    owner = owning()
    ticket = owner.sent([b"r1", b"r2"])
    owner.unknown(ticket)
    assert owner.settle() == Read(1, None)
    assert owner.observe(seen(1, OLDER))
    assert owner.observe(seen(2, MINE, b"r1"))
    assert not owner.observe(seen(3, MINE, b"r2"))
    assert owner.settle() == Act(ticket, 2)
    assert owner.verified == 4


def test_an_unknown_batch_found_before_a_foreign_epoch_is_acted_on() -> None:
    """It was valid when it landed; the foreign Epoch behind it is met by the next batch."""
    owner = owning()
    ticket = owner.sent([b"r"])
    owner.unknown(ticket)
    owner.settle()
    assert not owner.observe(seen(1, MINE, b"r"))
    assert owner.settle() == Act(ticket, 1)
    owner.observe(seen_epoch(2, OTHER))
    assert isinstance(owner.settle(), Down)


def test_an_unknown_batch_behind_a_foreign_epoch_is_void() -> None:
    """It landed, and counts for nobody."""
    owner = owning()
    owner.unknown(owner.sent([b"r"]))
    owner.settle()
    assert not owner.observe(seen_epoch(1, OTHER))
    assert not owner.observe(seen(2, MINE, b"r"))
    assert isinstance(owner.settle(), Down)


def test_an_unknown_batch_that_is_not_found_steps_down() -> None:
    """(c, h) Neither success nor absence: it may still land, so nothing may follow it under this token."""
    owner = owning()
    owner.unknown(owner.sent([b"r"]))
    owner.settle()
    owner.observe(seen(1, OLDER))
    owner.end_reached()
    assert isinstance(owner.settle(), Down)


def test_an_unknown_batch_in_whose_place_a_later_one_lies_steps_down() -> None:
    """The session's order broke."""
    owner = owning()
    first, second = owner.sent([b"r1"]), owner.sent([b"r2"])
    owner.unknown(first)
    owner.acked(second, 1)
    owner.settle()
    assert not owner.observe(seen(1, MINE, b"r2"))
    assert isinstance(owner.settle(), Down)


def test_a_confirmation_without_a_place_is_unknown() -> None:
    """An offset below 0 is a duplicate's answer: the batch is there, but where must be read."""
    owner = owning()
    ticket = owner.sent([b"r"])
    owner.acked(ticket, -1)
    assert owner.settle() == Read(1, None)
    owner.observe(seen(1, MINE, b"r"))
    assert owner.settle() == Act(ticket, 1)


def test_a_torn_batch_steps_down() -> None:
    """Batches are atomic; half of one is no batch."""
    owner = owning()
    owner.unknown(owner.sent([b"r1", b"r2"]))
    owner.settle()
    assert owner.observe(seen(1, MINE, b"r1"))
    assert not owner.observe(seen(2, OLDER))
    assert isinstance(owner.settle(), Down)


def test_two_unknown_batches_are_found_one_after_the_other() -> None:
    """Each read settles one batch; the scan goes on behind it."""
    owner = owning()
    first, second = owner.sent([b"r"]), owner.sent([b"r"])
    owner.unknown(first)
    owner.unknown(second)
    assert owner.settle() == Read(1, None)
    assert not owner.observe(seen(1, MINE, b"r"))
    assert owner.settle() == Act(first, 1)
    assert owner.settle() == Read(2, None)
    owner.end_reached()
    assert isinstance(owner.settle(), Down)


# ---------------------------------------------------------------- idle, and the end


def test_an_idle_owner_steps_down_at_a_foreign_epoch() -> None:
    """A look at the tail finds the successor before the next append does."""
    owner = owning()
    assert owner.observe(seen(1, OLDER))
    assert owner.verified == 2
    assert not owner.observe(seen_epoch(2, OTHER, "b"))
    assert owner.settle() == Down("another epoch began", "b", "b:7070")


def test_a_look_at_the_tail_leaves_batches_in_flight_alone() -> None:
    """Their records may be read before their answer comes; the answer tells."""
    owner = owning()
    ticket = owner.sent([b"r"])
    assert not owner.observe(seen(1, MINE, b"r"))
    assert owner.settle() == Wait()
    owner.acked(ticket, 1)
    assert owner.settle() == Act(ticket, 1)


def test_a_second_copy_of_the_own_epoch_changes_nothing() -> None:
    """A request that the broker took twice."""
    owner = owning()
    assert owner.observe(seen_epoch(1, MINE))
    assert owner.verified == 2
    assert owner.phase is Phase.OWNING


def test_a_record_under_the_own_token_that_was_never_sent_steps_down() -> None:
    """Two processes would be sharing a token (f); a token is one session's."""
    owner = owning()
    assert not owner.observe(seen(1, MINE, b"whose?"))
    assert isinstance(owner.settle(), Down)


def test_down_is_for_ever_and_the_first_reason_stays() -> None:
    """What was in flight is dropped, and its late answers change nothing."""
    owner = owning()
    ticket = owner.sent([b"r"])
    down = owner.step_down("first")
    assert owner.step_down("second") == down
    owner.acked(ticket, 1)
    owner.unknown(ticket)
    owner.refused(ticket, "late")
    owner.end_reached()
    assert not owner.observe(seen(1, MINE, b"r"))
    assert owner.settle() == down
    assert (owner.phase, owner.in_flight) == (Phase.DOWN, 0)


def test_nothing_is_sent_without_owning() -> None:
    """Neither before the own Epoch was found nor after stepping down."""
    with pytest.raises(AssertionError):
        Owner(MINE).sent([b"r"])
    owner = owning()
    owner.step_down("over")
    with pytest.raises(AssertionError):
        owner.sent([b"r"])
