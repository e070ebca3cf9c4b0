"""Data, decisions, callbacks, undos mended by hand and schedules, asked of instances that do not own them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from coordinator.errors import (
    CoordinatorError,
    Forbidden,
    IllegalState,
    InvalidPayload,
    LogUnavailable,
    NoOwner,
    UnknownCommand,
    UnknownSchedule,
    UnknownStep,
    WaitTimeout,
)
from coordinator.log.memory import Fault
from coordinator.model.command import CommandView, Operation, State, Submission
from coordinator.model.ids import partition_of
from coordinator.transport.base import Caller, Gathered, caller
from coordinator.transport.tcp import TcpServer
from tests.integration.routing_kit import PARTITIONS, Instance, World, id_at, world

OTP: dict[str, Any] = {"name": "pay", "steps": [{"name": "ask", "data": "otp"}], "result": "${steps.ask}"}
TWICE: dict[str, Any] = {"name": "twice", "steps": [{"name": "a", "data": "otp"}, {"name": "b", "data": "otp"}]}
APPROVE: dict[str, Any] = {
    "name": "refund",
    "steps": [{"name": "approve", "decision": {"roles": ["boss"]}}],
    "result": "${steps.approve}",
}
BANK: dict[str, Any] = {
    "name": "bank",
    "steps": [
        {"name": "begin", "service": "payments", "path": "/begin", "body": {"back": "${callback.paid}"}},
        {"name": "paid", "data": "paid"},
    ],
    "result": "${steps.paid}",
}
DAILY: dict[str, Any] = {"cron": "0 3 * * *", "command": {"definition": OTP}}


@pytest.fixture
async def group(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as made:
        yield made


def someone_else(group: World, id: str) -> Instance:
    """An instance that does not own the partition of a command, or of a schedule."""
    owner = group.owner(id)
    return next(each for each in group.living if each is not owner)


async def begun(group: World, id: str, definition: dict[str, Any]) -> Instance:
    """Submits the command, which then waits; returns an instance that does not own it."""
    other = someone_else(group, id)
    await other.front.submit_and_wait(Submission(id=id, definition=definition, payload={"n": 1}), 0)
    return other


async def decide(instance: Instance, id: str, approve: bool = True, **rest: Any) -> CommandView:
    given: dict[str, Any] = {"by": "ann", "comment": "fine", "roles": ["boss"]} | rest
    return await instance.front.decide(id, "approve", approve=approve, **given)


# ---------------------------------------------------------------- what is asked of one command


async def test_data_decisions_and_resolutions_reach_the_owner(group: World) -> None:
    """Through an instance that does not own the command, as if it did."""
    await group.start("a", "b")
    paid, refund, undone = (id_at(0, each) for each in ("pay", "refund", "undo"))
    other = await begun(group, paid, OTP)
    assert (await other.front.get(paid)).waiting_for == ["otp"]
    await other.front.provide(paid, "otp", {"code": [1, None]}, signal_id="sms-1", by="ann")
    assert (await other.front.get(paid, 10_000)).result == {"code": [1, None]}

    await begun(group, refund, APPROVE)
    await decide(other, refund)
    result = (await other.front.get(refund, 10_000)).result
    assert (result["approve"], result["by"], result["comment"]) == (True, "ann", "fine")

    group.services["payments"].answers["/pay"] = [409]
    group.services["shipping"].answers["/back"] = [409]
    steps = [
        {"name": "ship", "service": "shipping", "path": "/ship", "undo": {"path": "/back"}},
        {"name": "pay", "service": "payments", "path": "/pay"},
    ]
    await begun(group, undone, {"name": "order", "steps": steps})
    await group.until(lambda: any(each.parked for each in group.owner(undone).pipeline.engine.commands.values()))
    await other.front.control(undone, Operation.RESOLVE, reason="by hand", by="ann", step="ship")
    assert (await other.front.get(undone, 10_000)).state is State.COMPENSATED


async def test_a_callback_comes_to_any_instance(group: World) -> None:
    """A wrong token is unknown there too; the right one counts once, wherever it is sent."""
    await group.start("a", "b")
    id = id_at(1)
    other = await begun(group, id, BANK)
    payments = group.services["payments"]
    await payments.until(lambda: len(payments.arrivals) == 1)
    name, token = payments.arrivals[0].json["back"].split("/")[-2:]
    with pytest.raises(UnknownCommand):
        await other.front.callback(id, name, token[:-1] + ("0" if token[-1] != "0" else "1"), 1)
    for each in (other, group.owner(id), other):
        await each.front.callback(id, name, token, {"by": each.name})
    assert (await other.front.get(id, 10_000)).result == {"by": other.name}


async def test_the_owner_s_refusals_are_told_as_they_are(group: World) -> None:
    """With all that they say: the roles that may, the states in which it is legal, who was first."""
    await group.start("a", "b")
    id = id_at(2)
    other = await begun(group, id, APPROVE)
    with pytest.raises(Forbidden) as forbidden:
        await decide(other, id, roles=[])
    assert forbidden.value.extra["roles"] == ["boss"]
    with pytest.raises(UnknownStep):
        await other.front.provide(id, "otp", 1)
    with pytest.raises(InvalidPayload):
        await other.front.provide(id, "", 1)
    await decide(other, id, approve=True)
    await other.front.get(id, 10_000)
    with pytest.raises(IllegalState) as decided:
        await decide(other, id, approve=False)
    assert decided.value.extra["legal_states"]
    for asked in (other.front.provide("nobody", "otp", 1), decide(other, "nobody")):
        with pytest.raises(UnknownCommand):
            await asked


# ---------------------------------------------------------------- the owner is lost under way


async def lost_while(group: World, owner: Instance, asked: Awaitable[CommandView]) -> CommandView:
    """What is answered where the owner dies with the request on its way to the log."""
    owner.log.inject(Fault.STALL)
    asking = asyncio.ensure_future(asked)
    await owner.log.until_stalled()
    listener = owner.servers["tcp"]
    assert isinstance(listener, TcpServer)
    for peer in list(listener._peers):
        peer.abort()  # as by kill -9: there is nobody left to say anything
    await owner.kill()
    group.agree(group.shares())
    return await asking


async def test_data_with_an_id_is_sent_again_to_the_heir(group: World) -> None:
    """Whether the first owner recorded it or not, it counts once."""
    await group.start("a", "b")
    id = id_at(0)
    other = await begun(group, id, TWICE)
    view = await lost_while(group, group.owner(id), other.front.provide(id, "otp", 1, signal_id="one"))
    assert (view.state, [step.outcome for step in view.steps]) == (State.WAITING, [1, None])
    await other.front.provide(id, "otp", 1, signal_id="one")
    assert (await other.front.get(id)).state is State.WAITING
    await other.front.provide(id, "otp", 1, signal_id="two")
    assert (await other.front.get(id, 10_000)).state is State.COMPLETED


async def test_a_callback_survives_the_owner(group: World) -> None:
    """Who sends it cannot look; so it is sent on until it has arrived."""
    await group.start("a", "b")
    id = id_at(1)
    other = await begun(group, id, BANK)
    payments = group.services["payments"]
    await payments.until(lambda: len(payments.arrivals) == 1)
    name, token = payments.arrivals[0].json["back"].split("/")[-2:]
    await group.until(lambda: group.owner(id).pipeline.engine.has(id))  # type: ignore[arg-type]

    async def sent() -> CommandView:
        await other.front.callback(id, name, token, "paid")
        return await other.front.get(id, 10_000)

    assert (await lost_while(group, group.owner(id), sent())).result == "paid"


async def provide(instance: Instance, id: str) -> CommandView:
    return await instance.front.provide(id, "otp", 1)


ONCE: dict[str, tuple[dict[str, Any], Callable[[Instance, str], Awaitable[CommandView]]]] = {
    "data": (TWICE, provide),
    "decision": (APPROVE, decide),
}


@pytest.mark.parametrize("what", ONCE)
async def test_what_must_not_be_done_twice_is_in_doubt(group: World, what: str) -> None:
    """It may have been recorded: who asked is told so, and looks."""
    await group.start("a", "b")
    id = id_at(2)
    definition, ask = ONCE[what]
    other = await begun(group, id, definition)
    with pytest.raises(LogUnavailable) as raised:
        await lost_while(group, group.owner(id), ask(other, id))
    assert raised.value.extra["in_doubt"] is True
    assert "look at the command" in raised.value.detail
    assert (await other.front.get(id)).state is State.WAITING


async def test_what_an_owner_does_not_answer_in_time_is_in_doubt(group: World) -> None:
    """The caller waits no longer; whether the owner will record it, nobody knows yet."""
    await group.start("a", "b")
    id = id_at(2)
    other, owner = await begun(group, id, APPROVE), group.owner(id)
    owner.log.inject(Fault.STALL)
    caller.set(Caller(asyncio.get_running_loop().time() + 0.2))
    with pytest.raises(WaitTimeout) as raised:
        await decide(other, id)
    assert raised.value.extra["in_doubt"] is True
    owner.log.release()
    caller.set(None)
    assert (await other.front.get(id, 10_000)).result["by"] == "ann"


# ---------------------------------------------------------------- of all


async def test_decisions_are_gathered_from_all(group: World) -> None:
    """The oldest first, wherever they are; those of an instance that is gone are said to be missing."""
    a, b = await group.start("a", "b")
    known = [id_at(partition, f"r{n}") for n, partition in enumerate([2, 0, 3, 1])]
    for id in known:
        await begun(group, id, APPROVE)
        await asyncio.sleep(0.002)  # the clock goes on: "since" has milliseconds
    for each in (a, b):
        found = await each.front.decisions()
        assert [item["command_id"] for item in found] == known
        assert isinstance(found, Gathered)
        assert found.incomplete == ()
    lost = set(b.owned)
    await b.kill()
    await group.until(lambda: not a.front.directory.links())
    rest = await a.front.decisions()
    assert isinstance(rest, Gathered)
    assert set(rest.incomplete) == lost
    assert {partition_of(item["command_id"], PARTITIONS) for item in rest} == set(a.owned)


async def test_schedules_can_be_asked_for_anywhere(group: World) -> None:
    """Each lives in the partition of its name."""
    await group.start("a", "b")
    for partition in range(PARTITIONS):
        name = id_at(partition, "nightly")
        other = someone_else(group, name)
        put = await other.front.put_schedule(name, DAILY, "ann")
        assert put["by"] == "ann"
        assert await group.owner(name).local.schedule(name) == put
    names = sorted(id_at(partition, "nightly") for partition in range(PARTITIONS))
    for each in group.living:
        assert [item["name"] for item in await each.front.schedules()] == names
    name = names[0]
    other = someone_else(group, name)
    paused = await other.front.control_schedule(name, "pause", by="ann", reason="closed")
    assert (paused["state"], (await other.front.schedule(name))["reason"]) == ("paused", "closed")
    await other.front.control_schedule(name, "delete", by="ann", reason="")
    with pytest.raises(UnknownSchedule):
        await other.front.schedule(name)
    with pytest.raises(UnknownSchedule):
        await other.front.control_schedule(name, "resume", by="ann", reason="")
    with pytest.raises(InvalidPayload):
        await other.front.put_schedule(name, {"cron": "never"}, "")


async def test_nobody_owns_what_is_asked_for(group: World) -> None:
    """Then all of these wait a while, and are told so."""
    a, b = await group.start("a", "b")
    await group.expel(a)
    id = id_at(b.owned[0])
    await b.kill()
    asked: list[Awaitable[Any]] = [
        a.front.provide(id, "otp", 1),
        a.front.provide(id, "otp", 1, signal_id="one"),
        a.front.callback(id, "otp", "0.0", 1),
        decide(a, id),
        a.front.put_schedule(id, DAILY, ""),
        a.front.schedule(id),
        a.front.control_schedule(id, "pause", by="", reason=""),
    ]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert all(isinstance(answer, NoOwner) and answer.retryable for answer in answers), answers
    assert not any(isinstance(answer, CoordinatorError) and answer.extra.get("in_doubt") for answer in answers)
