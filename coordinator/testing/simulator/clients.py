"""Those who use the daemon: clients that want their commands done, operators who interfere, and one who repairs.

A client follows the contract: it makes its own id, and on a lost connection or a retryable error it sends the same
request again, to any instance, until it knows the end.  A client has patience enough to notice a forgotten waiter: as
long as its connection stands it waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from functools import partial
from typing import TYPE_CHECKING

from coordinator.errors import CoordinatorError
from coordinator.model.command import FINAL, CommandView, Operation, State, StepState, Submission
from coordinator.testing.simulator.people import give
from coordinator.testing.simulator.plan import Order
from coordinator.testing.simulator.process import Gone, Process
from coordinator.transport.base import Event, Front, Want

if TYPE_CHECKING:
    from coordinator.testing.simulator.world import World

_FOR_EVER = 10_000.0


class Client:
    """One client with one command; its twin has the same command, and meets others on its way."""

    def __init__(self, world: World, order: Order, *, twin: bool = False) -> None:
        self.world = world
        self.order = order
        self.name = f"client {order.number}" + ("'s twin" if twin else "")
        self.again = order.again
        self.accepted = False
        self.waits_at = "home"  # for the report, should it never come back

    @property
    def submission(self) -> Submission:
        order, example = self.order, self.order.example
        return Submission(
            id=order.id,
            type=example.type,
            payload=example.payload,
            definition=example.definition,
            timeout=order.timeout,
            delay=order.delay,
        )

    async def run(self) -> None:
        """Ends when the client knows its command's end, or has left."""
        world, random = self.world, self.world.random
        await asyncio.sleep(self.order.at + (random.random() * 0.1 if random.random() < 0.5 else 0))
        while not (self.accepted and self.order.style == "leaves") and not world.judge.deleted(self.order.id):
            process = world.any_process()
            if process is None:
                await asyncio.sleep(0.2)
                continue
            self.waits_at = process.name
            try:
                view = await process.ask(self._request, random.choice((0.4, 3, _FOR_EVER, _FOR_EVER)))
            except Gone as lost:
                world.note(self.name, "gone", str(lost))
                await asyncio.sleep(random.uniform(0, 0.3))
            except CoordinatorError as error:
                world.note(self.name, "refused", error.code)
                gone = world.judge.deleted(self.order.id)
                world.judge.hold(error.retryable or gone, f"{self.name} was refused for good: {error!r}")
                await asyncio.sleep((error.retry_after_ms or 100) / 1000 * random.uniform(0.5, 1.5))
            else:
                self.accepted = True
                world.judge.answered(self.name, view)
                world.note(self.name, "got", view.state.value)
                if view.state in FINAL:
                    if not self.again:
                        break
                    self.again -= 1
                await asyncio.sleep(random.uniform(0, 0.5))

    async def _request(self, front: Front) -> CommandView:
        """One request, on the daemon's side; the style says which."""
        id, random, style = self.order.id, self.world.random, self.order.style
        if style == "watches":
            return await self._watch(front)
        if style == "polls" and self.accepted and random.random() < 0.7:
            return await front.get(id, random.choice((0, 500, 100_000)))
        wait_ms = 0 if style in ("polls", "leaves") else random.choice((50, 100_000_000))
        view, _ = await front.submit_and_wait(self.submission, wait_ms)
        return view

    async def _watch(self, front: Front) -> CommandView:
        """As TCP does it: a watcher that is called, and unwatched when the connection breaks."""
        random, loop = self.world.random, self.world.loop
        end: asyncio.Future[CommandView] = loop.create_future()
        seen: list[int] = []

        def watcher(event: Event) -> None:
            self.world.judge.told(self.name, event)
            if event.kind == "step":
                place = int(event.position.partition(":")[2])
                self.world.judge.hold(not seen or seen[-1] < place, f"{self.name} was told steps out of order")
                seen.append(place)
            if end.done():
                return
            if event.kind == "error":
                end.set_exception(event.error or CoordinatorError())
            elif event.kind == "final" and event.view is not None:
                end.set_result(event.view)

        if self.accepted and random.random() < 0.5:
            unwatch = front.watch(self.order.id, watcher)
        else:
            want: Want = random.choice(("final", "events", "events"))
            _, unwatch = front.submit(self.submission, watcher, want)
        try:
            return await end
        finally:
            unwatch()


# ---------------------------------------------------------------- operators


async def operators(world: World) -> None:
    """Now and then somebody interferes with a command, or looks at it; refusals are fine, anything else is not."""
    random = world.random
    orders = world.plan.orders
    while orders:
        await asyncio.sleep(random.uniform(0, 0.7))
        process = world.any_process()
        if process is None or not world.chance("operators/second"):
            continue
        under_way = world.judge.unended()
        id = random.choice(under_way) if under_way and random.random() < 0.8 else random.choice(orders).id
        try:
            if random.random() < 0.3:
                await process.ask(_look(id, random.randrange(9)), 2)
            elif random.random() < 0.1:
                await _in_bulk(world, process)
            else:
                operation = random.choices(list(Operation), (4, 4, 3, 1, 2, 1, 0))[0]  # to resolve needs a step
                world.fault(f"operator: {operation}", id)
                await _operate(world, process, id, operation)
        except (Gone, CoordinatorError) as refused:
            world.note("operator", id, str(refused))


async def _in_bulk(world: World, process: Process) -> None:
    """The same operation on all commands in some state."""
    state = world.random.choice((State.RUNNING, State.DELAYED, State.WAITING, State.PAUSED, State.DEAD_LETTER))
    operation = world.random.choice((Operation.PAUSE, Operation.RESUME, Operation.CANCEL, Operation.RETRY))
    world.fault(f"operator: {operation} in bulk")

    async def listed(front: Front) -> list[str]:
        page = await front.list_commands(state=state, type=None, attributes={}, limit=5, cursor=None)
        return [each.id for each in page.commands]

    for id in await process.ask(listed, 2):
        try:
            await _operate(world, process, id, operation)
        except CoordinatorError as refused:
            world.note("operator", id, str(refused))


class _look:
    """One of the questions that change nothing."""

    def __init__(self, id: str, which: int) -> None:
        self.id = id
        self.which = which

    async def __call__(self, front: Front) -> None:
        questions: list[Awaitable[object]] = []
        match self.which:
            case 0:
                questions.append(front.list_commands(state=None, type=None, attributes={}, limit=5, cursor=None))
            case 1:
                questions.append(front.history(self.id))
            case 2:
                questions.append(front.explain(self.id))
            case 3:
                questions.append(front.diagram(self.id))
            case 4:
                questions.append(front.services())
            case 5:
                questions.append(front.cluster())
            case 6:
                questions.append(front.dead_letters())
            case 7:
                questions.append(front.decisions())
            case _:
                async for _ in front.outcomes("stock", None, False):
                    pass
        for question in questions:
            await question


async def _operate(world: World, process: Process, id: str, operation: Operation, step: str = "") -> None:
    """Asks for an operation; what is granted must be in the log."""
    before = process.name

    async def ask(front: Front) -> CommandView:
        return await front.control(id, operation, reason="simulated", by=before, step=step)

    if not world.trouble:  # who asks for a step again when all is well has seen to what was wrong with it
        world.ledger.forgive(id, step)
    view = await process.ask(ask, 3)
    world.judge.granted(id, operation)
    world.judge.answered("an operator", view)


async def repair(world: World) -> None:
    """When the trouble is over, somebody resumes what is paused and sees to every dead letter."""
    while True:
        for id in world.judge.unended():
            for process in world.living():
                try:
                    view = await process.ask(partial(show, id), 2)
                    await _see_to(world, process, view)
                except (Gone, CoordinatorError) as refused:
                    world.note("repair", id, str(refused))
        await asyncio.sleep(0.7)


async def show(id: str, front: Front) -> CommandView:
    return await front.get(id)


async def _see_to(world: World, process: Process, view: CommandView) -> None:
    if view.state is State.PAUSED:
        await _operate(world, process, view.id, Operation.RESUME)
    elif view.state is State.DEAD_LETTER:
        await _mend(world, process, view)
    else:
        await give(world, process, view)


async def _mend(world: World, process: Process, view: CommandView) -> None:
    """Asks for each dead letter again, or does by hand what an undo should have done; gives up on a poisoned one."""
    letters = [step for step in view.steps if step.state is StepState.DEAD_LETTER]
    for step in letters:
        undoes = step.outcome is not None and not step.name.startswith("savepoint:")
        if undoes and world.random.random() < 0.3:
            world.ledger.by_hand(view.id, step.name)
            await _operate(world, process, view.id, Operation.RESOLVE, step.name)
        elif step.name.startswith("savepoint:") and world.random.random() < 0.3:
            await _operate(world, process, view.id, Operation.CANCEL)
            return
        else:
            await _operate(world, process, view.id, Operation.REQUEUE, step.name)
    if not letters:
        await _operate(world, process, view.id, Operation.CANCEL)
