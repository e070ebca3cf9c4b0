"""What is done to the cluster while the load runs.  Each fault is struck, felt, healed, and waited out."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import Awaitable, Callable
from typing import Final

from msgspec import Struct

from tests.chaos.figures import Strike, Target
from tests.chaos.network import Side
from tests.chaos.stage import Stage

Hit = Callable[[Stage], Awaitable[Strike]]

TAKEN_S: Final = 12.0
LONGER_S: Final = 3  # than the group's session a fault lasts that the group shall notice
CRASH: Final = Target(takeover_p50=1.0, takeover_p99=3.0)
HANG: Final = Target(takeover_p99=10.0)
APART: Final = Target(takeover_p99=10.0, may_stay=True)


class Fault(Struct, frozen=True):
    """``hit`` does it all; ``cuts``: it needs a network that can be cut."""

    name: str
    says: str
    hit: Hit
    target: Target = Target()
    cuts: bool = False


async def _kill(stage: Stage) -> Strike:
    """The process is gone; it comes back when everything has been taken over."""
    victim = await stage.greatest()
    strike = stage.strike("kill", await stage.owned_by(victim))
    victim.kill()
    await _inherited(stage, strike)
    victim.start()
    return await _healed(stage, strike)


async def _churn(stage: Stage) -> Strike:
    """The process is gone, and another one comes up at its address at once."""
    victim = await stage.greatest()
    strike = stage.strike("churn", await stage.owned_by(victim))
    victim.kill()
    victim.start()
    await _inherited(stage, strike)
    return await _healed(stage, strike)


async def _kill_two(stage: Stage) -> Strike:
    """And then the greatest of those that are left, while it may be taking over."""
    first = await stage.greatest()
    strike = stage.strike("kill two")
    first.kill()
    await asyncio.sleep(random.uniform(0, 1))
    second = await stage.greatest(but=first)
    second.kill()
    await asyncio.sleep(3)
    first.start()
    second.start()
    return await _healed(stage, strike)


async def _hang(stage: Stage) -> Strike:
    victim = await stage.greatest()
    strike = stage.strike("hang", await stage.owned_by(victim))
    victim.signal(signal.SIGSTOP)
    try:
        await asyncio.sleep(stage.session_s + LONGER_S)
        await _inherited(stage, strike)
    finally:
        victim.signal(signal.SIGCONT)
    return await _healed(stage, strike)


def _cut(*sides: Side) -> Hit:
    """Who is cut off from the brokers must be replaced; from its peers alone, it need not be."""

    async def hit(stage: Stage) -> Strike:
        victim = await stage.greatest()
        strike = stage.strike(f"cut: {'both' if len(sides) == 2 else sides[0]}", await stage.owned_by(victim))
        stage.network.cut(victim.number, *sides)
        try:
            await asyncio.sleep(stage.session_s + LONGER_S)
            if "brokers" in sides:
                await _inherited(stage, strike)
        finally:
            stage.network.join(victim.number, *sides)
        return await _healed(stage, strike)

    return hit


async def _broker_killed(stage: Stage) -> Strike:
    """The brokers take turns, so that leaders, the group's coordinator and followers are all hit in time."""
    number = _turn(stage)
    strike = stage.strike("broker killed")
    await asyncio.to_thread(stage.brokers.kill, number)
    await asyncio.sleep(6)
    await asyncio.to_thread(stage.brokers.revive, number)
    return await _healed(stage, strike)


async def _broker_paused(stage: Stage) -> Strike:
    number = _turn(stage)
    strike = stage.strike("broker paused")
    await asyncio.to_thread(stage.brokers.pause, number)
    try:
        await asyncio.sleep(8)
    finally:
        stage.brokers.resume(number)
    return await _healed(stage, strike)


async def _rolling(stage: Stage) -> Strike:
    """SIGTERM to each in turn; the next one only when it is back and ready."""
    strike = stage.strike("rolling restart")
    strike.planned = True
    for instance in stage.instances:
        if (complaint := await instance.drain()) is not None:
            strike.complaints.append(complaint)
        instance.start()
        try:
            await instance.ready()
        except RuntimeError as error:
            strike.complaints.append(str(error))
    return await _healed(stage, strike)


async def _inherited(stage: Stage, strike: Strike) -> None:
    """Until every partition of the victim has an owner again."""
    await stage.taken_over(strike.taken, TAKEN_S)
    owners = await stage.owners()
    for partition, epoch in strike.taken.items():
        if owners[partition][1] <= epoch:
            passed = time.monotonic() - strike.began
            strike.complaints.append(f"partition {partition} had no new owner {passed:.1f} s after the fault")


async def _healed(stage: Stage, strike: Strike) -> Strike:
    if (complaint := await stage.settled()) is not None:
        strike.complaints.append(complaint)
    strike.ended = time.monotonic()
    return strike


def _turn(stage: Stage) -> int:
    return int(time.monotonic()) % len(stage.brokers.nodes) + 1


FAULTS: Final = {
    fault.name: fault
    for fault in (
        Fault("kill", "kill -9 of the instance that owns most", _kill, CRASH),
        Fault("kill two", "kill -9 of it, and of another one within a second", _kill_two),
        Fault("hang", "SIGSTOP of it until the group has noticed, then SIGCONT", _hang, HANG),
        Fault("broker killed", "kill -9 of a broker, back after 6 s", _broker_killed),
        Fault("broker paused", "SIGSTOP of a broker for 8 s", _broker_paused),
        Fault("cut: brokers", "no packet to or from the brokers for a while", _cut("brokers"), HANG, cuts=True),
        Fault("cut: peers", "no packet to or from its peers for a while", _cut("peers"), APART, cuts=True),
        Fault("cut: both", "neither for a while", _cut("brokers", "peers"), HANG, cuts=True),
        Fault("rolling restart", "SIGTERM each in turn", _rolling, Target(handover=0.5)),
        Fault("churn", "kill -9, and a new process at its address at once", _churn, CRASH),
    )
}
