"""The event loop in virtual time: what real code may rely on, and what it may not."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from random import Random
from typing import Any, TypeVar

import pytest

from coordinator.testing.virtual import Deadlock, VirtualLoop

T = TypeVar("T")


@pytest.fixture
def loop() -> Generator[VirtualLoop]:
    made = VirtualLoop(Random(1))  # type: ignore[abstract]
    yield made
    made.close()


async def counting(name: str, into: list[str]) -> None:
    for number in range(3):
        into.append(f"{name}{number}")
        await asyncio.sleep(0)


def test_an_hour_passes_at_once(loop: VirtualLoop) -> None:
    """Time jumps to the next timer when nothing is ready."""

    async def sleeper() -> float:
        await asyncio.sleep(3600)
        return loop.time()

    assert 3600 <= loop.run(sleeper()) < 3601


def test_timeouts_and_groups_work_as_on_any_loop(loop: VirtualLoop) -> None:
    """asyncio's own tools need no more of a loop than this one has."""

    async def main() -> list[int]:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5):
                await asyncio.Event().wait()
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(asyncio.sleep(n, n)) for n in (2, 1)]
        return [task.result() for task in tasks] + [await loop.run_in_executor(None, sum, (1, 2))]

    assert loop.run(main()) == [2, 1, 3]


def orders_of(seed: int) -> list[str]:
    """In which order two strands and two timers of one moment run."""
    loop = VirtualLoop(Random(seed))  # type: ignore[abstract]
    seen: list[str] = []

    async def main() -> None:
        for name in "ab":
            loop.spawn(loop.strand(name), counting(name, seen))
        for name in ("first", "second"):
            loop.call_at(5.0, seen.append, name)
        await asyncio.sleep(10)

    loop.run(main())
    loop.close()
    return seen


def test_a_seed_decides_the_order_and_nothing_else() -> None:
    """The same seed gives the same order; other seeds give others, in which each strand still keeps its own."""
    found = [orders_of(seed) for seed in range(20)]
    assert found == [orders_of(seed) for seed in range(20)]
    assert len({tuple(each) for each in found}) > 5
    for seen in found:
        assert [name for name in seen if name[0] == "a"] == ["a0", "a1", "a2"]
    assert {tuple(seen[-2:]) for seen in found} == {("first", "second"), ("second", "first")}


def test_a_paused_strand_waits_while_the_world_goes_on(loop: VirtualLoop) -> None:
    """What came due meanwhile runs when it wakes, as after SIGSTOP and SIGCONT."""
    strand = loop.strand("paused")

    async def sleeper() -> float:
        await asyncio.sleep(1)
        return loop.time()

    async def main() -> float:
        task = loop.spawn(strand, sleeper())
        await asyncio.sleep(0.5)
        loop.pause(strand)
        await asyncio.sleep(100)
        assert not task.done()
        loop.wake(strand)
        return await task

    assert loop.run(main()) > 100


def test_nothing_of_an_ended_strand_runs_any_more(loop: VirtualLoop) -> None:
    """Neither what is ready, nor its timers, nor what others hand to it; its finally waits until the loop closes."""
    strand = loop.strand("ended")
    seen: list[str] = []

    async def dying() -> None:
        try:
            await asyncio.sleep(1)
            seen.append("woke")
        finally:
            seen.append("finally")

    async def main() -> None:
        loop.spawn(strand, dying())
        await asyncio.sleep(0.5)
        loop.end(strand)
        loop.post(strand, seen.append, "posted")
        await asyncio.sleep(100)

    loop.run(main())
    assert seen == []
    loop.close()
    assert "woke" not in seen


def test_what_can_never_come_is_a_deadlock(loop: VirtualLoop) -> None:
    """A real loop would wait for ever; this one says so."""

    async def waiter() -> None:
        await asyncio.Event().wait()

    with pytest.raises(Deadlock):
        loop.run(waiter())


@pytest.mark.parametrize("leaves", [lambda loop: loop.add_signal_handler(2, print), lambda loop: loop.sock_recv(0, 1)])
def test_nothing_leaves_the_process(loop: VirtualLoop, leaves: Any) -> None:
    """Sockets and signals are not there, so no simulation can depend on them unnoticed."""

    async def main() -> None:
        found = leaves(loop)
        if isinstance(found, Coroutine):
            await found

    with pytest.raises(NotImplementedError):
        loop.run(main())
