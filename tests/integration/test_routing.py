"""Any instance takes any request: three instances in one process, real links between them, one of which is lost.

Each instance owns a part of the partitions; what is asked of the wrong one is answered as if it were the right one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import grpc.aio  # type: ignore[import-untyped]
import httpx
import pytest

from coordinator.cluster.succession import HOLD_MS
from coordinator.errors import (
    CoordinatorError,
    DefinitionConflict,
    IdConflict,
    LimitReached,
    NoOwner,
    Unavailable,
    UnknownCommand,
)
from coordinator.log.memory import Fault
from coordinator.log.owned import OwnedPartition
from coordinator.model.command import Operation, State, Submission
from coordinator.model.ids import partition_of
from coordinator.transport.base import Caller, caller
from coordinator.transport.pb import coordinator_pb2 as pb
from coordinator.transport.pb.coordinator_pb2_grpc import CoordinatorStub
from tests.integration.daemon import Daemon, Service, config, services
from tests.integration.routing_kit import ORDER, PARTITIONS, Instance, Seen, World, id_at, ids, world
from tests.integration.strangers import TRANSPORTS, frame, read_frame, stranger


@pytest.fixture
async def group(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as made:
        yield made


def order(id: str | None = None, **rest: Any) -> Submission:
    return Submission(id=id, definition=ORDER, payload={"n": 1}, **rest)


def someone_else(group: World, id: str) -> Instance:
    """An instance that does not own the command's partition."""
    owner = group.owner(id)
    return next(each for each in group.living if each is not owner)


# ---------------------------------------------------------------- one command, asked of the wrong instance


async def test_a_command_submitted_anywhere_runs_at_its_owner(group: World) -> None:
    """Twelve commands in every partition, through one instance: all complete, each was accepted by its owner."""
    a, *_ = await group.start("a", "b", "c")
    views = await asyncio.gather(*(a.front.submit_and_wait(order(f"o-{n}"), 10_000) for n in range(12)))
    assert {view.state for view, _ in views} == {State.COMPLETED}
    assert {view.partition for view, _ in views} == {partition_of(f"o-{n}", PARTITIONS) for n in range(12)}
    for view, attached in views:
        assert not attached
        assert group.owner(view.id).local.view.get(view.id) == view


async def test_who_does_not_wait_is_shown_the_same_everywhere(group: World) -> None:
    """The command as it was accepted, with the steps that it will have, whoever was asked."""
    await group.start("a", "b")
    group.services["shipping"].gate = asyncio.Event()
    id = id_at(0)
    first, attached = await someone_else(group, id).front.submit_and_wait(order(id), 0)
    assert not attached
    assert [step.name for step in first.steps] == ["ship", "pay"]
    again, attached = await group.owner(id).front.submit_and_wait(order(id), 0)
    assert attached
    assert (again.id, again.position, again.submitted_at) == (first.id, first.position, first.submitted_at)


async def test_every_question_about_a_command_can_be_asked_anywhere(group: World) -> None:
    """get, history, explain, diagram: the wrong instance answers as the right one does; explain names the owner."""
    await group.start("a", "b", "c")
    group.services["payments"].down = True
    id = id_at(1)
    await group.instances["b"].front.submit_and_wait(order(id), 0)
    await group.services["payments"].until(lambda: len(group.services["payments"].arrivals) > 0)
    owner, other = group.owner(id), someone_else(group, id)
    explained = await other.front.explain(id)
    assert explained["owner"]["instance"] == owner.name
    assert explained["owner"]["address"] == owner.member.address
    assert (await other.front.get(id)).id == id
    group.services["payments"].down = False
    assert await other.front.get(id, 10_000) == await owner.front.get(id, 10_000)
    assert await other.front.history(id) == await owner.front.history(id)
    assert await other.front.diagram(id) == await owner.front.diagram(id)
    with pytest.raises(UnknownCommand):
        await other.front.get("nobody")


async def test_a_control_reaches_the_owner(group: World) -> None:
    """Paused and aborted through an instance that does not own it."""
    await group.start("a", "b")
    group.services["shipping"].down = True
    id = id_at(0)
    other = someone_else(group, id)
    await other.front.submit_and_wait(order(id), 0)
    assert (await other.front.control(id, Operation.PAUSE, reason="wait", by="me")).state is State.PAUSED
    assert (await other.front.control(id, Operation.ABORT, reason="no", by="me")).state is State.ABORTED
    assert [each["by"] for each in await other.front.history(id) if each["kind"] == "Control"] == ["me", "me"]


async def test_a_control_that_is_the_last_before_a_hand_over_is_done_once(group: World) -> None:
    """It was recorded, and then the partition was gone: the answer tells what it did; nobody asks the heir for it."""
    a, b = await group.start("a", "b")
    id = id_at(a.owned[0])
    lane = a.pipeline.lanes[partition_of(id, PARTITIONS)]
    group.services["shipping"].down = True
    await b.front.submit_and_wait(order(id), 0)
    await b.front.control(id, Operation.PAUSE, reason="", by="me")
    await group.until(lambda: a.group.now() - lane.acquired_at > HOLD_MS)
    a.log.inject(Fault.STALL)
    resumed = asyncio.create_task(b.front.control(id, Operation.RESUME, reason="", by="me"))
    await a.log.until_stalled()
    group.agree(dict.fromkeys(range(PARTITIONS), "b"))
    await group.until(lambda: lane._heir == "b")
    a.log.release()
    assert (await resumed).state in (State.RUNNING, State.DELAYED)
    await group.until(lambda: len(b.owned) == PARTITIONS)
    controls = [each["operation"] for each in await b.front.history(id) if each["kind"] == "Control"]
    assert controls == ["pause", "resume"]


async def test_a_refusal_by_the_owner_is_the_caller_s(group: World) -> None:
    """id_conflict and limit_reached come from where the command would run, and are not asked again."""
    await group.start("a", "b", max_commands=1)
    group.services["shipping"].down = True
    id = id_at(0)
    other = someone_else(group, id)
    await other.front.submit_and_wait(order(id), 0)
    with pytest.raises(IdConflict):
        await other.front.submit_and_wait(Submission(id=id, definition=ORDER, payload={"n": 2}), 0)
    with pytest.raises(LimitReached):
        await other.front.submit_and_wait(order(id_at(0, "another")), 0)
    patient = asyncio.create_task(other.front.submit_and_wait(order(id_at(0, "patient"), admit_within="10s"), 0))
    group.services["shipping"].down = False
    assert (await patient)[0].id == id_at(0, "patient"), "the owner kept it waiting until there was a slot"


async def test_watching_from_elsewhere(group: World) -> None:
    """Every event once and in order, whoever is asked."""
    await group.start("a", "b")
    id = id_at(0)
    seen = Seen()
    someone_else(group, id).front.submit(order(id), seen)
    await seen.until("final")
    assert (seen.kinds[0], seen.steps, seen.kinds[-1]) == ("accepted", ["ship", "pay"], "final")
    again = Seen()
    someone_else(group, id).front.watch(id, again)
    await again.until("final")
    assert again.steps == ["ship", "pay"]
    nobody = Seen()
    someone_else(group, "nobody-0").front.watch("nobody-0", nobody)
    assert isinstance((await nobody.until("error")).error, UnknownCommand)


async def test_trace_context_and_deadline_reach_the_owner(group: World) -> None:
    """Whatever transport the caller uses: the owner is asked in the caller's name."""
    await group.start("a", "b")
    id = id_at(0)
    owner, other = group.owner(id), someone_else(group, id)
    asked_by: list[Caller | None] = []
    submit_as = owner.local.submit_as

    def noted(*rest: Any) -> Any:
        asked_by.append(caller.get())
        return submit_as(*rest)

    owner.local.submit_as = noted  # type: ignore[assignment, method-assign]
    trace = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
    body = {"definition": ORDER, "payload": 1}
    async with httpx.AsyncClient(base_url=other.http) as client:
        assert (await client.post("/v1/commands", json={"id": id, **body}, headers=trace)).status_code == 202
    async with grpc.aio.insecure_channel(other.grpc) as channel:
        submission = pb.Submission(id=id, definition_json=json.dumps(ORDER).encode(), payload_json=b"1")
        await CoordinatorStub(channel).Submit(  # type: ignore[no-untyped-call]
            pb.SubmitRequest(submission=submission), metadata=tuple(trace.items()), timeout=5
        )
    reader, writer = await asyncio.open_connection("127.0.0.1", other.ports["tcp"])
    writer.write(frame(0, 0, "coordinator", 1, 1) + frame(1, 1, "accepted", 3_000, {"id": id, **body}, trace))
    while (await read_frame(reader))[0] != 4:
        pass
    writer.close()
    assert [each and each.meta for each in asked_by] == [trace, trace, trace]
    now = asyncio.get_running_loop().time()
    left = [each.deadline and each.deadline - now for each in asked_by if each]
    assert left[0] is None
    assert 3 < (left[1] or 0) < 5
    assert 1 < (left[2] or 0) < 3


# ---------------------------------------------------------------- the owner is lost


async def test_who_waits_gets_the_result_although_the_owner_is_killed(group: World) -> None:
    """A submission with its events, a wait and a watch through A for a command of B, which dies between two steps:
    nothing is told twice, nothing is left out, and the end comes."""
    a, b, _ = await group.start("a", "b", "c")
    group.services["payments"].gate = asyncio.Event()
    id = id_at(1)
    assert group.owner(id) is b
    submitted, watched = Seen(), Seen()
    a.front.submit(order(id), submitted)
    await submitted.until("step")
    a.front.watch(id, watched)
    waiting = asyncio.create_task(a.front.get(id, 15_000))
    again = asyncio.create_task(a.front.submit_and_wait(order(id), 15_000))
    await watched.until("step")
    await b.kill()
    group.services["payments"].gate.set()
    assert (await waiting).state is State.COMPLETED
    assert (await again)[0].state is State.COMPLETED
    for seen in (submitted, watched):
        await seen.until("final")
        assert seen.kinds.count("accepted") == 1
        assert seen.steps == ["ship", "pay"]
        assert "error" not in seen.kinds


async def test_server_sent_events_survive_the_owner(group: World) -> None:
    """Read from A over HTTP, of a command of B, which dies: every event once, to the end; of nobody's command: 404."""
    a, b, _ = await group.start("a", "b", "c")
    group.services["payments"].gate = asyncio.Event()
    id = id_at(1)
    await b.front.submit_and_wait(order(id), 0)
    async with httpx.AsyncClient(base_url=a.http, timeout=20) as client:
        assert (await client.get("/v1/commands/nobody/events")).status_code == 404
        kinds: list[str] = []
        async with client.stream("GET", f"/v1/commands/{id}/events") as answer:
            async for line in answer.aiter_lines():
                if line.startswith("event: "):
                    kinds.append(line.removeprefix("event: "))
                    if kinds.count("step") == 1 and b.alive:
                        await b.kill()
                        group.services["payments"].gate.set()
    assert [kind for kind in kinds if kind != "state"] == ["accepted", "step", "step", "final"]


async def test_a_submission_to_a_dying_owner_is_asked_again(group: World) -> None:
    """It was sent and never confirmed: the next owner is asked with the same id, and there is one command."""
    a, b, _ = await group.start("a", "b", "c")
    loop = asyncio.get_running_loop()
    names = [id_at(1, f"o{n}") for n in range(20)]
    asked = [asyncio.create_task(a.front.submit_and_wait(order(id), 15_000)) for id in names]
    loop.call_soon(b.pipeline.lanes[1].fail, RuntimeError("nothing is appended any more"))
    await asyncio.sleep(0)
    await b.kill()
    for id, task in zip(names, asked, strict=True):
        view, _ = await task
        assert view.state is State.COMPLETED
        assert [each["kind"] for each in await a.front.history(id)].count("Submitted") == 1


async def test_a_partition_that_is_handed_over_is_followed(group: World) -> None:
    """A rebalance under way: those who wait at the old owner's and elsewhere get their results, at the new owner."""
    a, b = await group.start("a", "b")
    group.services["shipping"].gate = asyncio.Event()
    id = id_at(0)
    assert group.owner(id) is a
    here, there = Seen(), Seen()
    a.front.submit(order(id), here)
    b.front.submit(order(id), there)
    await here.until("accepted")
    await there.until("accepted")
    await group.until(lambda: a.group.now() - a.pipeline.lanes[0].acquired_at > 3_000)
    group.agree(dict.fromkeys(range(PARTITIONS), "b"))
    group.services["shipping"].gate.set()
    await group.until(lambda: b.owned == list(range(PARTITIONS)))
    for seen in (here, there):
        await seen.until("final")
        assert (seen.kinds.count("accepted"), seen.steps) == (1, ["ship", "pay"])
    assert (await a.front.get(id)).state is State.COMPLETED


async def test_who_cannot_acquire_tries_more_and_more_seldom(group: World) -> None:
    """Also where another instance once fenced it: each attempt costs the log a session, and may leave an Epoch."""
    a, b = await group.start("a", "b")
    lane = a.pipeline.lanes[0]
    await group.until(lambda: a.group.now() - lane.acquired_at > HOLD_MS)
    group.agree(dict.fromkeys(range(PARTITIONS), "b"))
    await group.until(lambda: len(b.owned) == PARTITIONS)
    assert lane.owner is not None
    attempts: list[float] = []
    make = a.pipeline.owned_partition

    def counted(partition: int) -> OwnedPartition:
        if partition == 0:
            attempts.append(a.pipeline.loop.time())
        return make(partition)

    a.pipeline.owned_partition = counted  # type: ignore[method-assign]
    a.log.break_reads()
    await b.kill()
    await group.until(lambda: len(attempts) == 6)
    assert attempts[-1] - attempts[0] > 1.2, "six in half a second, if nothing but the group's look paced them"
    a.log.mend_reads()
    await group.until(lambda: lane.acting)


async def test_a_partition_under_load_is_handed_over(group: World) -> None:
    """There is always something more to append while it is taken in: the hand-over does not wait for a quiet moment."""
    a, b = await group.start("a", "b")
    lane = a.pipeline.lanes[0]
    await group.until(lambda: a.group.now() - lane.acquired_at > HOLD_MS)
    some = ids("load")
    seen: list[Seen] = []

    def another(partition: int, records: Sequence[bytes]) -> Fault:
        if partition == 0 and lane.acting:
            seen.append(Seen())
            a.front.submit(order(next(id for id in some if partition_of(id, PARTITIONS) == 0)), seen[-1])
        return Fault.NONE

    a.log._choose = another
    another(0, [])
    await group.until(lambda: len(seen) > 20)
    group.agree(dict.fromkeys(range(PARTITIONS), "b"))
    await group.until(lambda: len(b.owned) == PARTITIONS)
    for each in seen:
        assert (await each.until("final", "error")).kind == "final"


async def test_nobody_owns_the_partition(group: World) -> None:
    """Its owner is gone and nobody follows: a retryable refusal with a delay, soon; a watch that is confirmed waits."""
    a, b = await group.start("a", "b")
    group.services["shipping"].gate = asyncio.Event()
    id = id_at(1)
    seen = Seen()
    a.front.submit(order(id), seen)
    await seen.until("accepted")
    await group.expel(a)
    await b.kill()
    began = asyncio.get_running_loop().time()
    asked = (
        a.front.submit_and_wait(order(id_at(1, "new")), 0),
        a.front.get(id),
        a.front.explain(id),
        a.front.control(id, Operation.PAUSE, reason="", by=""),
    )
    for told in await asyncio.gather(*asked, return_exceptions=True):
        assert isinstance(told, NoOwner), told
        assert told.retryable
        assert told.retry_after_ms
    assert asyncio.get_running_loop().time() - began < 5
    assert seen.kinds[-1] != "error"
    group.agree(group.shares())
    group.services["shipping"].gate.set()
    assert (await seen.until("final")).view is not None


# ---------------------------------------------------------------- gathered


async def test_a_list_is_gathered_page_by_page(group: World) -> None:
    """Newest first over all owners, without a gap or a repetition, whatever the size of the page."""
    a, *_ = await group.start("a", "b", "c")
    await asyncio.gather(*(a.front.submit_and_wait(order(f"o-{n}"), 10_000) for n in range(23)))
    found, cursor = [], None
    while True:
        page = await a.front.list_commands(state="completed", type=None, attributes={}, limit=5, cursor=cursor)
        assert page.incomplete == ()
        found += page.commands
        if (cursor := page.next_cursor) is None:
            break
    assert sorted(view.id for view in found) == sorted(f"o-{n}" for n in range(23))
    assert [view.submitted_at for view in found] == sorted((view.submitted_at for view in found), reverse=True)


async def test_a_list_says_what_it_lacks(group: World) -> None:
    """A partition without an owner is named, in the page and in the header; the rest is there."""
    a, b = await group.start("a", "b")
    group.services["shipping"].down = True
    for partition in range(PARTITIONS):
        await a.front.submit_and_wait(order(id_at(partition)), 0)
    await group.expel(a)
    await b.kill()
    await group.until(lambda: not a.front.routes.served(1))
    page = await a.front.list_commands(state=None, type=None, attributes={}, limit=50, cursor=None)
    assert page.incomplete == (1, 3)
    assert {view.partition for view in page.commands} == {0, 2}
    async with httpx.AsyncClient(base_url=a.http) as client:
        answer = await client.get("/v1/commands")
        assert answer.headers["coordinator-incomplete"] == "1,3"
        assert answer.json()["incomplete"] == [1, 3]
        assert (await client.get("/v1/dead-letters")).headers["coordinator-incomplete"] == "1,3"


async def test_dead_letters_of_all(group: World) -> None:
    """Parked steps of every owner in one list."""
    a, *_ = await group.start("a", "b")
    group.services["payments"].answers["/pay"] = [422] * PARTITIONS
    group.services["shipping"].answers["/back"] = [422] * PARTITIONS
    for partition in range(PARTITIONS):
        a.front.submit(order(id_at(partition)), Seen())
    async with asyncio.timeout(10):
        while len(letters := await a.front.dead_letters()) < PARTITIONS:  # noqa: ASYNC110 - only asking tells
            await asyncio.sleep(0.01)
    assert {letter["command_id"] for letter in letters} == {id_at(partition) for partition in range(PARTITIONS)}


async def test_outcomes_of_all_in_order(group: World) -> None:
    """Partition after partition; from a position on; from a time on; an unknown service is refused."""
    a, *_ = await group.start("a", "b", "c")
    await asyncio.gather(*(a.front.submit_and_wait(order(f"o-{n}"), 10_000) for n in range(20)))
    items = [item async for batch in a.front.outcomes("shipping", None, False) for item in batch]
    places = [tuple(map(int, item.position.split(":"))) for item in items]
    assert places == sorted(places)
    assert {item.command_id for item in items} == {f"o-{n}" for n in range(20)}
    rest = [item async for batch in a.front.outcomes("shipping", items[7].position, False) for item in batch]
    assert rest == items[7:]
    none = [item async for batch in a.front.outcomes("shipping", "2099-01-01T00:00:00Z", False) for item in batch]
    assert none == []
    with pytest.raises(CoordinatorError, match="no service"):
        await anext(a.front.outcomes("nobody", None, False))


async def test_followed_outcomes_survive_the_owner(group: World) -> None:
    """Each outcome once, those of the new owner too."""
    a, b, _ = await group.start("a", "b", "c")
    got: list[str] = []

    async def follow() -> None:
        async with contextlib.aclosing(a.front.outcomes("shipping", None, True)) as batches:  # type: ignore[type-var]
            async for batch in batches:
                got.extend(item.command_id for item in batch)

    following = asyncio.create_task(follow())
    await asyncio.gather(*(a.front.submit_and_wait(order(f"o-{n}"), 10_000) for n in range(12)))
    await group.until(lambda: len(got) == 12)
    await b.kill()
    await asyncio.gather(*(a.front.submit_and_wait(order(f"p-{n}"), 15_000) for n in range(12)))
    await group.until(lambda: len(got) == 24)
    assert Counter(got).most_common(1)[0][1] == 1
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)


# ---------------------------------------------------------------- the group


async def test_the_cluster_as_anybody_sees_it(group: World) -> None:
    """Members with what they own, partitions with their owner, its address and its epoch; a dead member is down."""
    a, b, c = await group.start("a", "b", "c")
    await a.front.submit_and_wait(order("o-1"), 10_000)
    told = [await each.front.cluster() for each in (a, b, c)]
    assert [each["instance"] for each in told] == ["a", "b", "c"]
    for answer in told:
        assert {each["instance"]: each["partitions"] for each in answer["instances"]} == {
            "a": [0, 3],
            "b": [1],
            "c": [2],
        }
        assert [each["owner"] for each in answer["partitions"]] == ["a", "b", "c", "a"]
        assert {each["state"] for each in answer["partitions"]} == {"acting"}
        assert all(each["since"] and each["epoch"] >= 0 for each in answer["partitions"])
        assert answer["commands"]["max"] == 3000
    addresses = {each["instance"]: each["address"] for each in told[0]["instances"]}
    assert addresses == {each.name: each.member.address for each in (a, b, c)}
    await c.kill()
    await group.until(lambda: group.sees_all(a))
    states = {each["instance"]: each["state"] for each in (await a.front.cluster())["instances"]}
    assert states["c"] == "down"


async def test_a_breaker_is_set_everywhere(group: World) -> None:
    """One request, every instance; the answer says whom it reached."""
    a, b, c = await group.start("a", "b", "c")
    answer = await a.front.set_breaker("shipping", "open")
    assert (answer["breaker"], answer["instances"], answer["unreached"]) == ("open", {"b": "open", "c": "open"}, [])
    (shipping,) = [each for each in await b.front.services() if each["name"] == "shipping"]
    assert shipping["breaker"] == "open"
    assert {name: each["breaker"] for name, each in shipping["instances"].items()} == {"a": "open", "c": "open"}
    await c.kill()
    await group.until(lambda: len(a.front.directory.links()) == 1)
    assert (await a.front.set_breaker("shipping", "auto"))["unreached"] == ["c"]


async def test_a_definition_is_registered_everywhere(group: World) -> None:
    """Recorded in every partition, known to every instance; other content is a conflict wherever it is asked; a
    partition without an owner makes it fail, and asking again mends that."""
    a, b, c = await group.start("a", "b", "c")
    assert await b.front.register("order", 1, ORDER | {"version": 1}, "me") is True
    assert await c.front.register("order", 1, ORDER | {"version": 1}, "me") is False
    for each in (a, b, c):
        assert [listed["name"] for listed in await each.front.definitions()] == ["order"]
        assert (await each.front.definition("order", None))["version"] == 1
        with pytest.raises(DefinitionConflict):
            await each.front.register("order", 1, {**ORDER, "version": 1, "result": "${payload}"}, "me")
    for partition in range(PARTITIONS):
        view, _ = await a.front.submit_and_wait(Submission(id=id_at(partition), type="order", payload={}), 10_000)
        assert view.state is State.COMPLETED
    await group.expel(a, b)
    await c.kill()
    with pytest.raises(Unavailable) as told:
        await a.front.register("order", 2, ORDER | {"version": 2}, "me")
    assert (told.value.extra["registered"], told.value.extra["missing"]) == ([0, 1, 3], [2])
    group.agree(group.shares())
    await group.until(lambda: group.sees_all(a) and group.sees_all(b))
    assert await b.front.register("order", 2, ORDER | {"version": 2}, "me") is False, "the first owner had it"
    view, _ = await a.front.submit_and_wait(Submission(id=id_at(2, "v2"), type="order", version=2), 10_000)
    assert view.state is State.COMPLETED


async def test_two_contents_at_once_never_both_count(group: World) -> None:
    """Asked of two instances, one of them for other partitions only: one owner decides, and the other is a conflict."""
    a, b = await group.start("a", "b")
    one, other = ORDER | {"version": 1}, {**ORDER, "version": 1, "result": "${payload}"}
    results = await asyncio.gather(
        a.front.register("order", 1, one, "me"),
        b.front.register("order", 1, other, "you", [1, 3]),
        return_exceptions=True,
    )
    assert sorted(map(type, results), key=str) == sorted([bool, DefinitionConflict], key=str)
    known = [await each.front.definition("order", 1) for each in (a, b)]
    assert known[0] == known[1]


async def test_ready_is_about_what_this_instance_ought_to_own(group: World) -> None:
    """The others' partitions do not count, unless nobody can be reached at all."""
    a, b = await group.start("a", "b")
    assert a.front.ready() == (True, {"ready": True, "partitions": {}})
    assert b.front.ready()[0]
    a.local.stopping = True
    assert a.front.ready()[1]["code"] == "stopping"


# ---------------------------------------------------------------- idempotent ingestion


async def test_one_id_fifty_times_over_three_transports_on_three_instances(group: World) -> None:
    """One command, one call of each step, equal answers; exactly one of them made it."""
    instances = await group.start("a", "b", "c")
    async with contextlib.AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(stranger(each, transport))  # type: ignore[arg-type]
            for each in instances
            for transport in TRANSPORTS
        ]
        for id in (id_at(0, "one"), id_at(1, "two")):
            body = {"id": id, "definition": ORDER, "payload": {"a": 1, "b": [2.5, "x"]}}
            told = await asyncio.gather(*(clients[n % len(clients)].submit(body, 20_000) for n in range(54)))
            assert {each.code for each in told} == {None}
            assert len({str(each.command) for each in told}) == 1
            assert told[0].state == "completed"
            assert Counter(each.attached for each in told) == {False: 1, True: 53}
            for service, step in (("shipping", "ship"), ("payments", "pay")):
                assert [each.key for each in group.services[service].arrivals].count(f"{id}/{step}") == 1
            kinds = [each["kind"] for each in await instances[0].front.history(id)]
            assert kinds == ["Submitted", "Outcome", "Outcome", "Finished"]


# ---------------------------------------------------------------- three processes on a real Kafka


@pytest.fixture
async def three(
    kafka_bootstrap: str, tmp_path: Path, shops: dict[str, Service]
) -> AsyncIterator[tuple[list[Daemon], dict[str, Service]]]:
    """Three daemons of one group, ready, each of which owns something."""
    name = f"routing-{os.urandom(4).hex()}"
    daemons = []
    for number in range(3):
        directory = tmp_path / str(number)
        log = (
            f'kind = "kafka"\nbootstrap = "{kafka_bootstrap}"\ntopic = "{name}"\npartitions = 6\n'
            f'data_dir = "{directory / "data"}"'
        )
        daemons.append(Daemon(directory, config(directory, shops, log=log).replace('"test"', f'"{name}"')))
    try:
        await asyncio.gather(*(asyncio.to_thread(daemon.start) for daemon in daemons))
        await shared_out(daemons)
        yield daemons, shops
    finally:
        for daemon in daemons:
            daemon.close()


@pytest.fixture
async def shops() -> AsyncIterator[dict[str, Service]]:
    async with services("shipping", "payments") as started:
        yield started


async def shared_out(daemons: list[Daemon]) -> dict[int, str]:
    """Waits until every daemon sees every partition owned, and all of them own some; who owns what."""
    async with asyncio.timeout(30), httpx.AsyncClient(timeout=5) as client:
        while True:
            seen = [(await client.get(f"{daemon.http}/v1/cluster")).json() for daemon in daemons]
            owners = [{each["partition"]: each["owner"] for each in cluster["partitions"]} for cluster in seen]
            states = {each["state"] for cluster in seen for each in cluster["partitions"]}
            up = {each["state"] for cluster in seen for each in cluster["instances"]}
            agreed = states == {"acting"} and up == {"up"} and owners[1:] == owners[:-1]
            if agreed and set(owners[0].values()) == {cluster["instance"] for cluster in seen}:
                return owners[0]
            await asyncio.sleep(0.05)


async def test_fifty_at_once_on_three_daemons(three: tuple[list[Daemon], dict[str, Service]]) -> None:
    """TCP, gRPC and HTTP, every instance: one command an id, one call a step, equal answers."""
    daemons, shops = three
    async with contextlib.AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(stranger(each, transport)) for each in daemons for transport in TRANSPORTS
        ]
        for id in ("one", "two", "three"):
            body = {"id": id, "definition": ORDER, "payload": {"a": 1, "b": [2.5, "x"]}}
            told = await asyncio.gather(*(clients[n % len(clients)].submit(body, 20_000) for n in range(54)))
            assert {each.code for each in told} == {None}
            assert len({str(each.command) for each in told}) == 1
            assert told[0].state == "completed"
            assert Counter(each.attached for each in told) == {False: 1, True: 53}
            assert [each.key for each in shops["shipping"].arrivals].count(f"{id}/ship") == 1
            assert [each.key for each in shops["payments"].arrivals].count(f"{id}/pay") == 1


async def test_clients_elsewhere_get_their_results_although_the_owner_is_killed(
    three: tuple[list[Daemon], dict[str, Service]],
) -> None:
    """kill -9 of one daemon while clients of the others wait, by every transport, for commands of all partitions."""
    daemons, shops = three
    shops["payments"].gate = asyncio.Event()
    names = [f"o-{n}" for n in range(24)]
    async with contextlib.AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(stranger(each, transport))
            for each in daemons[1:]
            for transport in TRANSPORTS
        ]
        asked = [
            asyncio.create_task(clients[n % len(clients)].submit({"id": id, "definition": ORDER, "payload": n}, 25_000))
            for n, id in enumerate(names)
        ]
        await shops["payments"].until(lambda: shops["payments"].concurrent == len(names))
        daemons[0].kill()
        shops["payments"].gate.set()
        told = await asyncio.gather(*asked)
    assert [(each.code, each.state) for each in told] == [(None, "completed")] * len(names)
    assert {arrival.key for arrival in shops["shipping"].arrivals} == {f"{id}/ship" for id in names}
