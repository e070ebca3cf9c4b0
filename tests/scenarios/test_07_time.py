"""7. Time: sleeps, deadlines of a step, a state and a command, a later start, and schedules, through kill -9."""

from __future__ import annotations

import asyncio
import time
from datetime import datetime
from operator import attrgetter
from typing import Any

import pytest

from tests.scenarios.kit import Stage, definition, effects, step

pytestmark = pytest.mark.asyncio(loop_scope="module")

KEY = attrgetter("key")
NEWS = {"name": "news", "data": "news"}


def at(record: dict[str, Any]) -> float:
    return datetime.fromisoformat(record["at"]).timestamp()


def recorded(history: list[dict[str, Any]], kind: str, step: str = "") -> float:
    """When it was recorded, in seconds since 1970."""
    return next(at(each) for each in history if each["kind"] == kind and each.get("step") in (step, None, ""))


async def test_a_sleep_is_as_long_as_it_says(stage: Stage, form: str) -> None:
    """Not begun anew by a crash, nor cut short; nobody is asked anything meanwhile, and no slot is held."""
    slept = definition("slept", step("a"), {"name": "sleep", "sleep": "900ms"}, step("z"))
    id = await (stage.submit("Sleeper", {"duration": "900ms"}) if form == "code" else stage.submit(slept))
    await stage.waiting(id, "sleep")
    await stage.ended(id)
    history = await stage.history(id)
    outcomes = {each["step"]: at(each) for each in history if each["kind"] == "Outcome"}
    assert 0.9 <= outcomes["z"] - outcomes["a"] < 3
    assert effects(stage, id)["stock"] == ["a", "z"]


async def test_a_step_has_a_deadline_retries_and_all(stage: Stage, form: str) -> None:
    """It is counted from the step's beginning, whoever dies meanwhile."""
    stage.parties["stock"].says["/b"] = (409, {"message": "busy"})
    hurried = definition("hurried", step("a"), step("b", retry={"attempts": 1000, "first": "50ms"}, deadline="700ms"))
    id = await stage.submit("Hurried" if form == "code" else hurried)
    view = await stage.ended(id, "compensated")
    assert (view["error"]["code"], view["error"]["step"]) == ("deadline_exceeded", "b")
    assert effects(stage, id)["stock"] == ["a", "a/undo"]


def impatient(form: str) -> Any:
    return (
        "Impatient"
        if form == "code"
        else definition("impatient", step("a"), NEWS, step("z"), deadlines={"waiting": "600ms"})
    )


async def test_a_state_has_a_deadline(stage: Stage, form: str) -> None:
    """It fires once, and undoes."""
    id = await stage.submit(impatient(form))
    await stage.waiting(id, "news")
    view = await stage.ended(id, "compensated")
    assert view["error"]["code"] == "deadline_exceeded"
    assert effects(stage, id)["stock"] == ["a", "a/undo"]
    fired = [each for each in await stage.history(id) if each["kind"] == "Timer"]
    assert len(fired) == 1


async def test_a_state_s_deadline_is_disarmed_on_leaving(calm: Stage, form: str) -> None:
    """What comes in time is enough, however long the next state takes; another command's runs out all the same."""
    calm.fresh()
    calm.parties["stock"].held.add("/z")
    id, other = [await calm.submit(impatient(form)) for _ in range(2)]
    await calm.waiting(id, "news")
    await calm.provide(id, "news", 1)
    await calm.ended(other, "compensated")
    assert (await calm.view(id))["state"] == "running"
    calm.parties["stock"].release("/z")
    await calm.ended(id)
    assert not [each for each in await calm.history(id) if each["kind"] == "Timer"]


async def test_a_command_has_a_deadline_of_its_own(calm: Stage, form: str) -> None:
    """For that command only."""
    calm.fresh()
    what = "Told" if form == "code" else definition("told", step("a"), NEWS)
    hurried, patient = await calm.submit(what, timeout="600ms"), await calm.submit(what)
    await calm.waiting(patient, "news")
    view = await calm.ended(hurried, "compensated")
    assert view["error"]["code"] == "deadline_exceeded"
    assert (await calm.view(patient))["state"] == "waiting"
    await calm.control(patient, "abort")


async def test_late_rather_than_never(deadly: Stage, form: str) -> None:
    """Deadlines and sleeps that ran out while nobody was there are found by who starts next."""
    deadly.deadly = False
    first = await deadly.submit(impatient(form))
    second = await deadly.submit(definition("slept", {"name": "sleep", "sleep": "600ms"}, step("z")))
    for id, name in ((first, "news"), (second, "sleep")):
        await deadly.waiting(id, name)
    deadly.daemon.kill()
    await asyncio.sleep(0.7)  # nobody is there: time itself is what is tried here
    await deadly.crash()
    await deadly.ended(first, "compensated")
    await deadly.ended(second)


async def test_a_command_may_begin_later(stage: Stage, form: str) -> None:
    """It waits for `start`, holds no slot, and nothing is asked before; its own deadline counts from the start."""
    what = "Plain" if form == "code" else definition("plain", step("a"), step("b"), step("c"))
    id = await stage.submit(what, delay="700ms", timeout="15s")
    await stage.waiting(id, "start")
    assert not stage.parties["stock"].has_been_asked(id, "a")
    await stage.ended(id)
    history = await stage.history(id)
    assert recorded(history, "Outcome", "a") - recorded(history, "Submitted") >= 0.7
    assert effects(stage, id)["stock"] == ["a", "b", "c"]


async def test_a_schedule_catches_up_once_after_downtime(deadly: Stage) -> None:
    """Of the due times that went by the newest runs, once; then it goes on by its grid; listed, paused, deleted."""
    deadly.deadly = False
    put = {"every": "1s", "command": {"type": "Plain", "payload": {}}, "overlap": "queue"}
    await deadly.done("PUT", "/v1/schedules/tick?by=ann", put)
    stock = deadly.parties["stock"]
    ran: list[str] = []

    def runs() -> list[str]:
        ran[:] = sorted({key.partition("/")[0] for key in map(KEY, stock.arrivals) if key.endswith("/a")})
        return ran

    await stock.until(lambda: len(runs()) >= 1)
    deadly.daemon.kill()
    before = len(runs())
    await asyncio.sleep(2.5)
    await deadly.crash()
    up = time.time()
    await stock.until(lambda: len(runs()) >= before + 2)
    due = [datetime.fromisoformat(id.partition("@")[2]).timestamp() for id in runs()]
    missed = [each for each in due[before:] if each <= up]
    assert len(missed) == 1
    assert [each["name"] for each in await deadly.done("GET", "/v1/schedules")] == ["tick"]
    paused = await deadly.done("POST", "/v1/schedules/tick/pause", {"by": "ann", "reason": "enough"})
    assert (paused["state"], paused["next"], paused["by"]) == ("paused", None, "ann")
    await deadly.crash()
    assert (await deadly.done("GET", "/v1/schedules/tick"))["state"] == "paused"
    assert (await deadly.ask("DELETE", "/v1/schedules/tick")).status_code == 200
    assert (await deadly.refused("GET", "/v1/schedules/tick"))["status"] == 404
    for id in runs():
        await deadly.ended(id)
        assert effects(deadly, id)["stock"].count("a") == 1
