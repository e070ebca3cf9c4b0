"""Who ought to own a partition, as three instances a, b and c come to hear of it."""

from __future__ import annotations

import pytest

from coordinator.cluster.assignment import heir
from coordinator.cluster.base import Assignment, Member
from coordinator.cluster.succession import (
    ACQUIRING,
    HOLD_MS,
    OFFER_MS,
    SETTLING_MS,
    SPEAK_MS,
    UNABLE,
    Succession,
)

NAMES = ("a", "b", "c")


def agreement(*owners: str, members: tuple[str, ...] = NAMES, generation: int = 1) -> Assignment:
    """The group with these members; partition i is assigned to the i-th name."""
    return Assignment(generation, {each: Member(each, f"{each}:1") for each in members}, dict(enumerate(owners)))


def instance(name: str, *owners: str, now: int = 0) -> Succession:
    """What ``name`` knows once the group has agreed."""
    succession = Succession(Member(name, f"{name}:1"), max(1, len(owners)))
    succession.agreed(agreement(*owners), now)
    return succession


def all_heard(succession: Succession, now: int = 0, **held: dict[int, int]) -> None:
    for each in NAMES:
        if each != succession.me:
            succession.heard(each, held.get(each, {}), leaving=False, now=now)


def test_who_is_no_member_acquires_nothing() -> None:
    """Before the group has agreed, or after it has expelled us, every partition may be somebody's."""
    succession = Succession(Member("a", "a:1"), 1)
    assert not succession.may_acquire(0, 10_000_000)
    succession.agreed(agreement("a"), 0)
    succession.agreed(Assignment(-1, {}, {}), 0)
    assert not succession.may_acquire(0, 10_000_000)


def test_the_assigned_member_acquires_a_free_partition_once_all_have_spoken() -> None:
    succession = instance("a", "a")
    succession.heard("b", {}, leaving=False, now=0)
    assert not succession.may_acquire(0, 0)  # c may own it
    succession.heard("c", {}, leaving=False, now=0)
    assert succession.may_acquire(0, 0)


def test_a_member_that_does_not_speak_is_waited_for_only_so_long() -> None:
    succession = instance("a", "a")
    assert not succession.may_acquire(0, SPEAK_MS - 1)
    assert succession.may_acquire(0, SPEAK_MS)


def test_who_is_not_the_heir_acquires_nothing() -> None:
    succession = instance("b", "a")
    all_heard(succession)
    assert not succession.may_acquire(0, 10_000_000)


def test_a_dead_owners_partition_is_acquired_at_once_by_the_same_heir_for_all() -> None:
    """Seconds before the group notices; everybody who saw the link die names the same instance."""
    views = {name: instance(name, "a") for name in ("b", "c")}
    for view in views.values():
        all_heard(view, a={0: 7})
        view.died("a")
    assert {view.heir(0) for view in views.values()} == {heir(0, ["b", "c"])}
    assert [view.may_acquire(0, 0) for view in views.values()].count(True) == 1


def test_an_expelled_owners_partition_is_acquired_at_once() -> None:
    """The group's session timeout: the instance hangs, or is cut off."""
    succession = instance("b", "a")
    all_heard(succession, a={0: 7})
    succession.agreed(agreement("b", members=("b", "c"), generation=2), 6_000)
    assert succession.may_acquire(0, 6_000)


def test_an_epoch_in_the_log_refutes_a_death() -> None:
    succession = instance("b", "a")
    all_heard(succession, a={0: 7})
    succession.died("a")
    succession.fenced(0, "a", 9, 0)
    assert succession.heir(0) == "a"
    succession.heard("a", {0: 10}, leaving=False, now=100)
    assert not succession.may_acquire(0, SETTLING_MS)
    assert succession.heir(0) == "a"


def test_a_late_epoch_of_a_killed_process_does_not_bring_it_back_to_life() -> None:
    """It was on its way when the process died: nobody speaks, so the heir need not wait for the group."""
    succession = Succession(Member("b", "b:1"), 1)
    succession.agreed(agreement("a", members=("a", "b")), 0)
    succession.heard("a", {0: 7}, leaving=False, now=0)
    succession.died("a")
    succession.acquired(0, 8, 0)
    succession.fenced(0, "a", 8, 0)
    assert not succession.may_acquire(0, 0)
    assert succession.may_acquire(0, SETTLING_MS)


def test_who_fences_us_again_lives_although_nobody_hears_it() -> None:
    """A cut between us and not between it and the log: we do not fence each other for ever."""
    succession = instance("b", "a")
    all_heard(succession)
    succession.died("a")
    succession.fenced(0, "a", 9, 0)
    succession.may_acquire(0, SETTLING_MS)
    assert "a" in succession.dead
    succession.fenced(0, "a", 11, 2 * SETTLING_MS)
    succession.may_acquire(0, 10 * SETTLING_MS)
    assert succession.heir(0) == "a"


def test_a_partition_that_its_heir_cannot_acquire_is_another_members() -> None:
    """Its disk is full, say; where nobody can, it stays with whom it is assigned to."""
    succession = instance("b", "a")
    succession.heard("c", {0: UNABLE}, leaving=False, now=0)
    succession.heard("a", {0: UNABLE}, leaving=False, now=0)
    assert succession.heir(0) == "b"
    assert succession.may_acquire(0, 0)
    succession.unable.add(0)
    assert succession.heir(0) == "a"
    assert not succession.offered(0, 7), "it would have no owner"


def test_an_old_offer_is_not_taken() -> None:
    """It was late: the partition has been ours, or another's, since."""
    succession = instance("b", "c")
    all_heard(succession)
    succession.acquired(0, 7, 0)
    assert not succession.offered(0, 5)


def test_an_offer_is_over_when_another_has_taken_the_partition() -> None:
    succession = instance("b", "c")
    all_heard(succession)
    assert succession.offered(0, 7)
    succession.heard("c", {0: 9}, leaving=False, now=0)
    assert not succession.may_acquire(0, 0)


def test_a_living_owners_partition_is_waited_for_until_it_is_offered() -> None:
    succession = instance("b", "b")
    all_heard(succession, a={0: 7})
    assert not succession.may_acquire(0, 100)
    assert succession.offered(0, 7)
    assert succession.may_acquire(0, 100)
    succession.acquired(0, 8, 100)
    assert succession.owners[0].instance == "b"
    assert not succession.given


def test_an_offer_is_taken_also_by_one_who_does_not_think_itself_the_heir() -> None:
    """The owner has let go: somebody must own it, and who is asked may have older news."""
    succession = instance("b", "c")
    all_heard(succession)
    assert succession.offered(0, 7)
    assert succession.may_acquire(0, 0)


def test_an_owner_that_does_not_offer_is_fenced_after_a_while_but_not_one_that_is_leaving() -> None:
    succession = instance("b", "b")
    all_heard(succession, a={0: 7})
    assert not succession.may_acquire(0, 0)
    assert succession.may_acquire(0, OFFER_MS)
    succession.heard("a", {0: 7}, leaving=True, now=0)
    assert not succession.may_acquire(0, 10 * OFFER_MS)


def test_a_partition_that_its_owner_tells_of_no_more_is_acquired_at_once() -> None:
    succession = instance("b", "b")
    all_heard(succession, a={0: 7})
    succession.heard("a", {}, leaving=False, now=0)
    assert succession.may_acquire(0, 0)


def test_who_has_just_fenced_us_is_given_time_to_tell_of_it() -> None:
    succession = instance("b", "b")
    all_heard(succession)
    succession.acquired(0, 5, 0)
    succession.fenced(0, "a", 5, 1_000)
    assert not succession.may_acquire(0, 1_000)
    assert succession.may_acquire(0, 1_000 + SETTLING_MS)


def test_while_a_peer_is_acquiring_nobody_else_does() -> None:
    succession = instance("b", "b")
    all_heard(succession, c={0: ACQUIRING})
    assert not succession.may_acquire(0, 0)
    assert succession.may_acquire(0, OFFER_MS)  # it does not get on


def test_an_owner_offers_what_is_anothers_but_not_just_after_it_acquired() -> None:
    """Two instances with different agreements must not play ball with a partition."""
    succession = instance("a", "b")
    all_heard(succession)
    assert succession.successor(0, 0, HOLD_MS - 1) is None
    assert succession.successor(0, 0, HOLD_MS) == "b"


def test_an_owner_keeps_what_the_heir_could_not_be_told_to_take() -> None:
    """A cut between the two, and not between them and the log."""
    succession = instance("a", "b")
    assert succession.successor(0, 0, HOLD_MS) is None


def test_a_rebalance_leaves_a_partition_that_stays_alone() -> None:
    succession = instance("a", "a")
    all_heard(succession)
    for generation in range(2, 6):
        succession.agreed(agreement("a", generation=generation), generation)
        assert succession.successor(0, 0, 10_000_000) is None


def test_an_expelled_owner_keeps_what_it_has_until_the_log_says_otherwise() -> None:
    succession = instance("a", "a")
    all_heard(succession)
    succession.agreed(Assignment(-1, {}, {}), 0)
    assert succession.successor(0, 0, 10_000_000) is None


def test_who_leaves_hands_over_at_once_and_takes_nothing() -> None:
    succession = instance("a", "a", "b")
    all_heard(succession)
    succession.leaving = True
    assert succession.successor(0, 0, 0) in ("b", "c")
    assert not succession.offered(1, 3)
    assert not succession.may_acquire(1, 10_000_000)


def test_nothing_is_handed_to_who_is_leaving_or_dead() -> None:
    succession = instance("a", "b")
    all_heard(succession)
    succession.heard("b", {}, leaving=True, now=0)
    succession.died("c")
    assert succession.heir(0) == "a"
    assert succession.successor(0, 0, 10_000_000) is None


@pytest.mark.parametrize("name", NAMES)
def test_all_who_have_heard_the_same_name_the_same_heir(name: str) -> None:
    succession = instance(name, *("a", "b", "c", "a", "b", "c"))
    for each in NAMES:
        succession.heard(each, {}, leaving=each == "b", now=0)
    assert {succession.heir(partition) for partition in (0, 3)} == {"a"}
    assert {succession.heir(partition) for partition in (1, 4)} <= {"a", "c"}
