"""Who is to own which partition: balance, as few moves as can be, and the same answer everywhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st

from coordinator.cluster.assignment import assign, heir, weight
from coordinator.cluster.base import Held

INSTANCES = st.text("abc", min_size=1, max_size=3)
SIZES = st.integers(0, 20)
WEIGHTS = [0xB78B2EF3C704F401, 0xA96BE28AAECED097, 0x8E830CC99ABDD8C5]  # from the first version


@st.composite
def groups(draw: st.DrawFn) -> tuple[int, dict[str, Held]]:
    """A number of partitions, and members that claim some of them, some of them twice, some that do not exist."""
    partitions = draw(SIZES)
    claims = st.dictionaries(st.integers(0, partitions + 2), st.integers(-1, 30), max_size=partitions + 3)
    return partitions, draw(st.dictionaries(INSTANCES, claims, min_size=1, max_size=6))


def holdings(partitions: int, members: Mapping[str, Held]) -> dict[str, set[int]]:
    """What each member holds without question: it claims the highest epoch alone."""
    held: dict[str, set[int]] = {member: set() for member in members}
    for partition in range(partitions):
        claims = sorted((claim[partition], each) for each, claim in members.items() if partition in claim)
        if claims and (len(claims) == 1 or claims[-1][0] > claims[-2][0]):
            held[claims[-1][1]].add(partition)
    return held


@given(groups())
def test_every_partition_has_one_owner_among_the_members(group: tuple[int, dict[str, Held]]) -> None:
    """None is left out, and none is made up from what members claim."""
    partitions, members = group
    owners = assign(partitions, members)
    assert owners.keys() == set(range(partitions))
    assert set(owners.values()) <= members.keys()


@given(groups())
def test_shares_differ_by_at_most_one(group: tuple[int, dict[str, Held]]) -> None:
    """Whatever was claimed, nobody carries two more than another."""
    partitions, members = group
    counts = Counter(assign(partitions, members).values())
    shares = [counts[member] for member in members]
    assert max(shares) - min(shares) <= 1


@given(groups(), st.randoms(use_true_random=False))
def test_the_order_in_which_members_are_listed_does_not_matter(
    group: tuple[int, dict[str, Held]], random: object
) -> None:
    """Any member could make the assignment for all."""
    partitions, members = group
    shuffled = list(members.items())
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    again = {member: dict(reversed(list(held.items()))) for member, held in shuffled}
    assert assign(partitions, again) == assign(partitions, members)


@given(groups())
def test_as_few_partitions_move_as_balance_allows(group: tuple[int, dict[str, Held]]) -> None:
    """No balanced assignment could leave more of them where they are."""
    partitions, members = group
    share, larger = divmod(partitions, len(members))
    # Ties between equal claims are decided by weight: who wins them holds them.
    disputed = {
        partition: max(
            (claim[partition], weight(partition, each), each) for each, claim in members.items() if partition in claim
        )[2]
        for partition in range(partitions)
        if any(partition in claim for claim in members.values())
    }
    counts = [list(disputed.values()).count(member) for member in members]
    most = sum(min(count, share) for count in counts) + min(larger, sum(count > share for count in counts))
    owners = assign(partitions, members)
    assert sum(owners[partition] == member for partition, member in disputed.items()) == most


@given(groups())
def test_the_highest_epoch_wins_a_dispute(group: tuple[int, dict[str, Held]]) -> None:
    """A member within its share keeps all that it holds by the newest epoch, whoever else claims it."""
    partitions, members = group
    owners = assign(partitions, members)
    for member, held in holdings(partitions, members).items():
        claimed = sum(partition in members[member] for partition in range(partitions))
        if claimed <= partitions // len(members):
            assert {partition for partition in held if owners[partition] != member} == set()


@given(groups())
def test_an_assignment_that_was_carried_out_stays(group: tuple[int, dict[str, Held]]) -> None:
    """Agreeing again with the same members moves nothing."""
    partitions, members = group
    owners = assign(partitions, members)
    carried_out = {member: {each: 1 for each in owners if owners[each] == member} for member in members}
    assert assign(partitions, carried_out) == owners


@given(groups(), INSTANCES)
def test_a_newcomer_takes_its_share_and_nothing_else_moves(group: tuple[int, dict[str, Held]], newcomer: str) -> None:
    """Between those who were there before, no partition changes hands."""
    partitions, members = group
    members.pop(newcomer, None)
    before = assign(partitions, members)
    held = {member: {each: 1 for each in before if before[each] == member} for member in members}
    after = assign(partitions, {**held, newcomer: {}})
    assert {after[each] for each in before if after[each] != before[each]} <= {newcomer}


@given(groups())
def test_what_a_lost_member_had_is_all_that_moves(group: tuple[int, dict[str, Held]]) -> None:
    """The others keep what they have and share the rest."""
    partitions, members = group
    before = assign(partitions, members)
    gone, *others = sorted(members)
    held = {member: {each: 1 for each in before if before[each] == member} for member in others}
    after = assign(partitions, held)
    if others:
        assert {each for each in before if after[each] != before[each]} == {e for e in before if before[e] == gone}
    else:
        assert after == {}


@given(st.integers(0, 100), st.sets(INSTANCES, min_size=2), st.data())
def test_an_heir_changes_only_when_it_goes_itself(partition: int, instances: set[str], data: st.DataObject) -> None:
    """Who else lives or dies is nothing to it, so instances that know of different deaths mostly agree."""
    chosen = heir(partition, instances)
    other = data.draw(st.sampled_from(sorted(instances - {chosen or ""})))
    assert heir(partition, instances - {other}) == chosen
    assert heir(partition, sorted(instances, reverse=True)) == chosen


def test_nobody_inherits_where_nobody_is() -> None:
    """No instances, no heir, and no owners."""
    assert heir(0, []) is None
    assert assign(3, {}) == {}


def test_weights_are_fixed_for_ever() -> None:
    """Instances of two versions must name the same heir, so the hash is part of the protocol."""
    assert [weight(0, "a"), weight(1, "a"), weight(0, "ü")] == WEIGHTS


def test_inheritances_are_spread() -> None:
    """One that goes leaves something to each of the others, not everything to one."""
    counts = Counter(heir(partition, ["a", "b", "c"]) for partition in range(3000))
    assert all(900 < counts[each] < 1100 for each in "abc")
