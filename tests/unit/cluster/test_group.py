"""What an instance tells the others of a partition that it cannot acquire."""

from __future__ import annotations

import asyncio

import pytest

from coordinator.cluster import group as module
from coordinator.cluster.base import Member
from coordinator.cluster.group import Group
from coordinator.cluster.succession import UNABLE


@pytest.mark.parametrize("for_good", [False, True])
async def test_who_has_stopped_stays_unable_and_who_only_failed_tries_again(
    for_good: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the partition would be handed back to a lane that never acquires it, and nobody would own it."""
    monkeypatch.setattr(module, "UNABLE_S", 0.0)
    group = Group(Member("a", "a:1"), 1, name="orders", now=lambda: 0)
    told = asyncio.Event()
    group.unable(0, for_good=for_good)
    assert group.owned() == {0: UNABLE}
    assert group.claims() == {}
    group.on_change(told.set)
    asyncio.get_running_loop().call_later(0, told.set)  # behind the timer, if there is one
    await told.wait()
    await asyncio.sleep(0)
    assert group.owned() == ({0: UNABLE} if for_good else {})
    await group.leave()
