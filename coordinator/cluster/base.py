"""The words that the parts of the cluster share, and the port of a membership."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from msgspec import Struct


class Member(Struct, frozen=True):
    """One instance of the group: one life of one process.  ``address`` is ``host:port`` of its TCP listener, or empty
    where it has none: nobody can forward to it then."""

    instance: str
    address: str


class Assignment(Struct, frozen=True):
    """What the group has agreed on: its members by instance, and who is to own each partition.

    A hint, never a right: it may be old, and two members may hold different ones for a while.  ``generation`` grows
    with each agreement; -1 is "no agreement": this instance is not, or not any more, a member.
    """

    generation: int
    members: Mapping[str, Member]
    owners: Mapping[int, str]


Held = Mapping[int, int]
"""Partitions that an instance acts for, with the epoch of each."""


class Membership(Protocol):
    """Liveness and assignment.  For Kafka: its consumer group (`cluster.kafka`)."""

    async def run(self, on_change: Callable[[Assignment], None]) -> None:
        """Takes part until cancelled; tells each new agreement, on the event loop, and never blocks on the teller.

        Raises nothing that a broken connection causes: it goes on trying.
        """
        ...

    async def leave(self) -> None:
        """Leaves at once, so that the others need not wait for the session timeout; ends `run`.  Never hangs."""
        ...


Unsubscribe = Callable[[], None]


class Cluster(Protocol):
    """What an instance tells the others of the group, and lets itself be asked by them (`transport.tcp` serves it).

    Everything is called on the event loop.
    """

    @property
    def leaving(self) -> bool:
        """This instance drains: it takes nothing over any more, and hands over what it has."""
        ...

    def owned(self) -> Held:
        """The partitions that this instance acts for now."""
        ...

    def on_change(self, callback: Callable[[], None]) -> Unsubscribe:
        """Calls ``callback`` after each change of `owned` or `leaving`, until unsubscribed."""
        ...

    async def take(self, partition: int, epoch: int, by: str) -> bool:
        """Instance ``by`` has let go of a partition that it held under ``epoch``: acquire it now.

        Returns whether this instance takes it; False where it does not (it leaves too).  Raises CoordinatorError.
        """
        ...
