"""A scenario once for every place at which a process can die: does the saga survive?

What a coordinator does it does because of a record that is durable, so all that a crash can change is decided by which
of its appends had landed.  A scenario that appends n times is therefore run 2 n times more: for each append once with
the process dying just before it lands (calls that it was to record were made, and nobody knows), once just after
(nobody has acted on it yet).  The next life replays the log, and the scenario goes on as its author wrote it: requests
that were under way are asked again, and its own assertions judge.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any, Final

from coordinator.embedding.clock import START, FakeClock
from coordinator.embedding.handle import Embedded
from coordinator.embedding.life import MortalLog
from coordinator.embedding.starting import make
from coordinator.log.memory import Fault, MemoryStorage
from coordinator.saga import App
from coordinator.wire.codec import read

Scenario = Callable[[Embedded], Awaitable[Any]]

_FAULTS: Final = ((Fault.CRASH_BEFORE, "just before"), (Fault.CRASH_AFTER, "just after"))


async def crash_everywhere(
    app: App | None,
    scenario: Scenario,
    *,
    services: Collection[str] = (),
    clock: str = START,
    max_commands: int = 1000,
    slow_retry_interval: str = "200ms",
) -> int:
    """Runs ``scenario(c)`` undisturbed, then once for each place at which the coordinator can crash; returns how often
    it crashed.

    Each run begins anew: an empty log, a FakeClock at ``clock``, and ``c.services`` without a script, of the services
    that the application declares and of those named.  The scenario scripts them, acts, and asserts what must hold
    however often the coordinator crashed; count `Scripted.effects`, as calls may well come twice.  What it raises is
    raised here, with a note of where the crash was.
    """

    async def run(at: int, fault: Fault) -> _Disk:
        disk = _Disk(at, fault)
        c = make(
            app,
            services=services,
            clock=FakeClock(clock),
            max_commands=max_commands,
            slow_retry_interval=slow_retry_interval,
            open_log=disk.open,
        )
        try:
            async with c:
                await scenario(c)
        except BaseException as error:
            if disk.met:
                error.add_note(disk.met)
            raise
        return disk

    appends = (await run(0, Fault.NONE)).appends
    for at in range(1, appends + 1):
        for fault, _ in _FAULTS:
            await run(at, fault)
    return 2 * appends


class _Disk:
    """The log that outlives the lives of one run; its append number ``at`` meets the fault."""

    def __init__(self, at: int, fault: Fault) -> None:
        self.storage = MemoryStorage()
        self.at = at
        self.fault = fault
        self.appends = 0
        self.met = ""

    def open(self) -> MortalLog:
        return MortalLog(storage=self.storage, choose=self._choose)

    def _choose(self, partition: int, records: Sequence[bytes]) -> Fault:
        self.appends += 1
        if self.appends != self.at:
            return Fault.NONE
        self.met = (
            f"the coordinator had crashed {dict(_FAULTS)[self.fault]} its append {self.at}: {_told(partition, records)}"
        )
        return self.fault


def _told(partition: int, records: Sequence[bytes]) -> str:
    """Which records they were."""
    told = []
    for data in records:
        record = read(data, partition=partition, offset=-1)
        step = getattr(record, "step", "")
        told.append(f"{type(record).__name__}{f' of {step}' if step else ''}")
    return ", ".join(told)
