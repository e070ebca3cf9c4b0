"""People who answer what commands wait for: data, early or late or twice; decisions, two at once who differ.

They follow the contract, as clients do: a datum has an id of its own, and is sent again under it until somebody has
taken it; a decision is made when it is asked for, and of two who make it one is told so.
"""

from __future__ import annotations

import asyncio
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any

from coordinator.errors import CoordinatorError, IllegalState
from coordinator.model.command import FINAL, CommandView, State
from coordinator.testing.simulator.plan import Order, stream
from coordinator.testing.simulator.process import Gone, Process
from coordinator.testing.simulator.trees import DATA, LATE, base, nodes_of
from coordinator.transport.base import Front

if TYPE_CHECKING:
    from coordinator.testing.simulator.world import World


async def answer(world: World, order: Order) -> None:
    """All that one command is given from outside while there is trouble."""
    root = order.root
    if root is None:
        return
    random = stream(world.plan.seed, "people", order.number)
    async with asyncio.TaskGroup() as group:
        for number, node in enumerate(nodes_of(root)):
            if node.kind == "receive":
                for _ in range(random.choice((1, 1, 1, 2))):  # by two who know the same
                    group.create_task(_provide(world, order, node.name, f"{node.name} {number}", random))
            elif node.kind == "decision":
                for who in ("ann", "bob"):
                    group.create_task(_decide(world, order, node.name, who, approve=random.random() < 0.7))
        if order.type == "Late":
            for number in range(random.randint(0, 2)):
                group.create_task(_reopen(world, order, f"late {number}", random))


async def _provide(world: World, order: Order, name: str, value: Any, random: Random) -> None:
    """Hands a datum in: perhaps before anybody waits for it, or when the command has ended."""
    await asyncio.sleep(order.at + random.choice((0.05, 0.3, 0.3, 1, 3)) * random.random())
    while world.trouble:
        process = world.any_process()
        try:
            if process is not None:
                await process.ask(partial(_hand_in, order.id, name, value), 2)
                return
        except Gone as lost:
            world.note("provider", order.id, str(lost))
        except CoordinatorError as refused:
            world.note("provider", order.id, refused.code)
            if isinstance(refused, IllegalState):  # it has ended
                return
        await asyncio.sleep(random.uniform(0.05, 0.4))


async def _hand_in(id: str, name: str, value: str, front: Front) -> CommandView:
    return await front.provide(id, name, value, signal_id=f"the {value}", by="someone")


async def _reopen(world: World, order: Order, value: str, random: Random) -> None:
    """Late data: sent when the command has ended, or just before."""
    while world.trouble:
        await asyncio.sleep(random.uniform(0.1, 0.6))
        fold = world.judge.folds.get(order.id)
        if fold is not None and (fold.finished is not None or random.random() < 0.1):
            world.fault("late data", order.id)
            await _provide(world, order, LATE, value, random)
            return


async def _decide(world: World, order: Order, step: str, who: str, *, approve: bool) -> None:
    """Watches until it is asked, and decides."""
    while world.trouble:
        await asyncio.sleep(0.1)
        process = world.any_process()
        if process is None or order.id not in world.judge.folds:
            continue
        try:
            view = await process.ask(partial(_look, order.id), 2)
            if view.state in FINAL:
                return
            if step in view.waiting_for:
                await decide(world, process, order.id, step, who, approve=approve)
                return
        except (Gone, CoordinatorError) as refused:
            world.note(who, order.id, str(refused))


async def _look(id: str, front: Front) -> CommandView:
    return await front.get(id)


async def decide(world: World, process: Process, id: str, step: str, who: str, *, approve: bool) -> None:
    """Decides; whoever is told that it counts was the first."""

    async def ask(front: Front) -> CommandView:
        return await front.decide(id, step, approve=approve, by=who, comment="")

    await process.ask(ask, 2)
    world.fault("decided", id, step, who)
    world.judge.decides(who, id, step)


async def give(world: World, process: Process, view: CommandView) -> None:
    """In peace: whatever it waits for."""
    world.judge.waits(view)
    if view.state is not State.WAITING:
        return
    for name in view.waiting_for:
        if name in (*DATA, LATE):
            value = f"{name} in the end, {len(world.judge.folds[view.id].data.get(name, ()))}"
            await process.ask(partial(_hand_in, view.id, name, value), 2)
        elif base(name).startswith("de"):
            await decide(world, process, view.id, name, "zoe", approve=True)
