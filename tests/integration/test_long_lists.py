"""Lists over a hundred thousand commands that wait: who asks for one keeps nobody else from anything."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import Raw

from coordinator.engine.asleep import packed
from coordinator.engine.registry import fingerprint
from coordinator.engine.state import Command
from coordinator.front.lists import SLICE_S
from coordinator.model.command import Operation, State, Submission
from coordinator.model.ids import CommandId, partition_of
from coordinator.model.records import SCHEMA, Finished, Submitted, raw
from coordinator.view import FinishedCommand
from coordinator.wire.codec import encode
from tests.integration.routing_kit import PARTITIONS, Instance, id_at, world

MANY = 100_000
BEGAN = 1_700_000_000_000
ASK: dict[str, Any] = {"name": "ask", "steps": [{"name": "otp", "data": "otp"}]}
HURT: dict[str, Any] = {"name": "hurt", "on_failure": "dead_letter", "steps": [{"name": "ship", "service": "shipping"}]}


@pytest.fixture
async def alone(tmp_path: Path) -> AsyncIterator[Instance]:
    """An instance that owns everything."""
    async with world(tmp_path) as made:
        (instance,) = await made.start("a")
        yield instance


def fill(instance: Instance, count: int) -> None:
    """Commands that wait, a millisecond after one another, every thousandth for somebody special.

    They are put where the engine keeps them, asleep: to submit them all would take the test a minute.
    """
    definition = Raw(msgspec.msgpack.encode(ASK))
    for n in range(count):
        id = CommandId(f"w-{n}")
        partition = partition_of(id, PARTITIONS)
        submitted = Submitted(
            SCHEMA,
            b"",
            BEGAN + n,
            id,
            "ask",
            1,
            Raw(msgspec.msgpack.encode(n)),
            fingerprint(None, None, n, ASK),
            definition=definition,
            attributes={"special": n} if n % 1000 == 0 else {},
        )
        command = Command(partition, n, submitted)
        command.history = [(n, submitted)]
        command.waits = ("otp",)
        instance.pipeline.engine.shards[partition].commands[id] = packed(command)


def fill_ended(instance: Instance, count: int) -> None:
    """Commands that have ended, as the view is given them."""
    rows = []
    for n in range(count):
        id = CommandId(f"e-{n}")
        payload, at = Raw(msgspec.msgpack.encode(n)), BEGAN - count + n
        print_ = fingerprint(None, None, n, ASK)
        submitted = Submitted(SCHEMA, b"", at, id, "ask", 1, payload, print_, definition=raw(ASK))
        finished = Finished(SCHEMA, b"", at, id, "completed", raw(n))
        state, attributes = ("failed" if n == 7 else "completed"), ({"special": n} if n == 8 else {})
        records = [(2 * n, encode(submitted)), (2 * n + 1, encode(msgspec.structs.replace(finished, state=state)))]
        partition = partition_of(id, PARTITIONS)
        rows.append(FinishedCommand(id, "ask", state, at, partition, print_, attributes, records, at))
    instance.view.put_many(rows)


@contextlib.contextmanager
def turns() -> Iterator[list[float]]:
    """How long (s of this thread's time, which others' load does not lengthen) each turn of the loop took."""
    took: list[float] = []

    async def watch() -> None:
        before = time.thread_time()
        while True:
            await asyncio.sleep(0)
            now = time.thread_time()
            took.append(now - before)
            before = now

    gc.freeze()
    gc.disable()  # as in the daemon, where what start-up made is not looked at again
    watching = asyncio.get_running_loop().create_task(watch())
    try:
        yield took
    finally:
        watching.cancel()
        gc.enable()
        gc.unfreeze()


async def every(instance: Instance, limit: int, **wanted: Any) -> list[str]:
    """The ids on all pages."""
    found: list[str] = []
    cursor = None
    while True:
        filters = {"state": None, "type": None, "attributes": {}} | wanted
        page = await instance.front.list_commands(limit=limit, cursor=cursor, **filters)
        assert len(page.commands) <= limit
        found += [view.id for view in page.commands]
        cursor = page.next_cursor
        if cursor is None:
            return found


async def test_a_list_of_a_hundred_thousand_gives_the_loop_back(alone: Instance) -> None:
    """Plain, by state and by an attribute that hardly any has: no turn of the loop takes 20 ms, most take a slice."""
    fill(alone, MANY)
    with turns() as took:
        page = await alone.front.list_commands(state=None, type=None, attributes={}, limit=50, cursor=None)
        assert [view.id for view in page.commands] == [f"w-{n}" for n in range(MANY - 1, MANY - 51, -1)]
        assert {(view.state, tuple(view.waiting_for)) for view in page.commands} == {(State.WAITING, ("otp",))}
        special = await every(alone, 60, state="waiting", attributes={"special": "77000"})
        assert special == ["w-77000"]
        assert await every(alone, 1000, state="paused") == []
        assert await alone.front.dead_letters() == []
        assert await alone.front.decisions() == []
    assert sum(took) > 10 * SLICE_S
    assert max(took) < 0.02


async def test_a_list_of_a_long_past_gives_the_loop_back_too(alone: Instance) -> None:
    """A page costs what it shows; a filter that hardly any matches reads all of it, beside the loop."""
    fill_ended(alone, 30_000)
    with turns() as took:
        page = await alone.front.list_commands(state=None, type=None, attributes={}, limit=1000, cursor=None)
        assert [view.id for view in page.commands] == [f"e-{n}" for n in range(29_999, 28_999, -1)]
        assert page.commands[0].result == 29_999
        assert await every(alone, 50, state="failed") == ["e-7"]
        assert await every(alone, 50, type="ask", attributes={"special": "8"}) == ["e-8"]
        assert await every(alone, 50, state="waiting") == []
    assert max(took) < 0.02


async def test_page_after_page_shows_each_command_once(alone: Instance) -> None:
    """Those that sleep, one that is awake, and those that have ended, newest first."""
    fill(alone, 100)
    await alone.front.submit_and_wait(Submission(id="done", definition=ASK), 0)
    await alone.front.provide("done", "otp", 1)
    assert (await alone.front.get("done", 5_000)).state is State.COMPLETED
    found = await every(alone, 7)
    assert found == ["done", *(f"w-{n}" for n in range(99, -1, -1))]
    assert await every(alone, 7, type="ask", state="waiting") == found[1:]
    assert await every(alone, 7, type="other") == []
    assert await every(alone, 7, state="completed") == ["done"]


async def test_what_ends_while_a_list_is_made_is_in_it(alone: Instance) -> None:
    """In one state or the other; those that were there before and after are all there."""
    fill(alone, 20_000)
    live = [f"live-{n}" for n in range(40)]
    for id in live:
        await alone.front.submit_and_wait(Submission(id=id, definition=ASK), 0)
    listing = asyncio.create_task(
        alone.front.list_commands(state=None, type=None, attributes={}, limit=60, cursor=None)
    )
    await asyncio.gather(*(alone.front.provide(id, "otp", 1) for id in live))
    found = [view.id for view in (await listing).commands]
    assert sorted(found[:40]) == sorted(live)
    assert found[40:] == [f"w-{n}" for n in range(19_999, 19_979, -1)]


async def test_a_filter_by_state_goes_on_below_what_has_left_the_state(alone: Instance) -> None:
    """All that waited at first go on; the page is filled with older ones, and the next goes on below."""
    fill(alone, 20_000)
    live = [f"live-{n}" for n in range(10)]
    for id in live:
        await alone.front.submit_and_wait(Submission(id=id, definition=ASK), 0)
    listing = asyncio.create_task(
        alone.front.list_commands(state="waiting", type=None, attributes={}, limit=10, cursor=None)
    )
    await asyncio.sleep(0)
    await asyncio.gather(*(alone.front.provide(id, "otp", 1) for id in live))
    page = await listing
    assert page.next_cursor is not None
    shown = [view.id for view in page.commands if view.id.startswith("w-")]
    assert shown == [f"w-{n}" for n in range(19_999, 19_999 - len(shown), -1)]
    assert len(page.commands) == 10
    assert {view.state for view in page.commands} == {State.WAITING}


async def test_a_dead_letter_that_is_paused_is_listed(alone: Instance) -> None:
    """A pause hides the state, not what has to be mended; that commands sleep beside it hides nothing either."""
    alone.world.services["shipping"].answers["/ship"] = [422]
    fill(alone, 10)
    id = id_at(2)
    definition = HURT | {"steps": [HURT["steps"][0] | {"path": "/ship"}]}
    await alone.front.submit_and_wait(Submission(id=id, definition=definition), 0)
    await alone.world.until(lambda: alone.pipeline.engine.commands[CommandId(id)].parked)
    await alone.front.control(id, Operation.PAUSE, reason="", by="me")
    assert [(each["command_id"], each["step"]) for each in await alone.front.dead_letters()] == [(id, "ship")]
