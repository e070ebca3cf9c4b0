"""Who is to own which partition: pure, and the same on every machine.

Two questions are answered here.  *The assignment* is made by one member for all, whenever the group agrees anew.  It is
balanced (two members' counts differ by at most one) and, among the balanced ones, one that moves the fewest
partitions, since each that moves costs its commands a pause.  *The heir* needs no agreement: whoever knows the same
partition and the same instances names the same one.

Both rest on rendezvous hashing: every pair of partition and instance has a weight, and the greatest weight wins.  An
instance that goes gives its partitions to many others, and changes nothing between the others.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from hashlib import blake2b

from coordinator.cluster.base import Held


def weight(partition: int, instance: str) -> int:
    """How much the instance is for the partition: 64 bits that look random."""
    return int.from_bytes(blake2b(b"%d/%b" % (partition, instance.encode()), digest_size=8).digest(), "big")


def heir(partition: int, instances: Iterable[str]) -> str | None:
    """The one of ``instances`` that inherits the partition; None if there is none."""
    return max(instances, key=lambda each: (weight(partition, each), each), default=None)


def assign(partitions: int, members: Mapping[str, Held]) -> dict[int, str]:
    """An owner for every partition from 0; empty without members.

    ``members`` has what each instance acts for.  Where two claim a partition, the higher epoch is the newer ownership;
    what nobody has, and what a member has above its share, goes to those that have too few.
    """
    if not members:
        return {}
    holdings = _holdings(partitions, members)
    share, larger_shares = divmod(partitions, len(members))
    owners: dict[int, str] = {}
    # The few larger shares go to those that hold most: each then saves one move, and no rule could save more.
    for member in sorted(members, key=lambda each: (-len(holdings[each]), each)):
        held = holdings[member]
        if len(held) > share and larger_shares:
            larger_shares -= 1
            keeps = held[: share + 1]
        else:
            keeps = held[:share]
        owners.update(dict.fromkeys(keeps, member))
    _hand_out([each for each in range(partitions) if each not in owners], owners, members, share, larger_shares)
    return owners


def _holdings(partitions: int, members: Mapping[str, Held]) -> dict[str, list[int]]:
    """Undisputed: what each member may keep, dearest first."""
    holdings: dict[str, list[int]] = {member: [] for member in members}
    for partition in range(partitions):
        claims = [
            (held[partition], weight(partition, each), each) for each, held in members.items() if partition in held
        ]
        if claims:
            holdings[max(claims)[2]].append(partition)
    for member, held in holdings.items():
        held.sort(key=lambda partition: (-weight(partition, member), partition))
    return holdings


def _hand_out(
    free: list[int], owners: dict[int, str], members: Collection[str], share: int, larger_shares: int
) -> None:
    """Fills the shares; they are exactly as many as there are partitions, so nothing is left over."""
    counts = dict.fromkeys(members, 0)
    for owner in owners.values():
        counts[owner] += 1
    for partition in free:
        room = [each for each in members if counts[each] < share or (larger_shares and counts[each] == share)]
        taker = heir(partition, room)
        assert taker is not None, "the shares add up to the partitions"
        larger_shares -= counts[taker] == share
        counts[taker] += 1
        owners[partition] = taker
