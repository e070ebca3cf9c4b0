"""Commands that late data opens again, decisions that come late, and deadlines of what waits for an operator: on the
embedded engine."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

import coordinator
from coordinator import App, FakeClock, Saga, Scripted
from coordinator.errors import IllegalState

PRICED = {
    "name": "priced",
    "steps": [
        {"name": "stock", "service": "shop", "path": "/stock"},
        {"name": "coupon", "data": {"name": "coupon", "reopens": True, "optional": True}, "after": []},
        {"name": "price", "service": "shop", "path": "/price", "after": ["stock", "coupon"], "body": "${steps.coupon}"},
    ],
    "result": "${steps.price}",
}


def shop() -> Scripted:
    shop = Scripted()
    shop.on("POST", "/stock").answers(200, {"left": 3})
    shop.on("POST", "/price").does(lambda call: (200, {"for": call.body}))
    return shop


def kinds(history: list[dict[str, Any]]) -> list[str]:
    return [entry["kind"] for entry in history]


async def test_a_history_keeps_every_life_of_a_command() -> None:
    """Its ends and how it was opened again included; the datum that it had already opens nothing."""
    async with coordinator.embedded(services={"shop": shop()}, clock=FakeClock("2026-11-21T09:00:00Z")) as c:
        view = await c.run(PRICED, id="p")
        assert (view.revision, view.result) == (1, {"for": None})
        for revision, code in ((2, "a"), (3, "b")):
            await c.provide("p", "coupon", {"code": code})
            view = await c.wait("p")
            assert (view.state, view.revision, view.result) == ("completed", revision, {"for": {"code": code}})
            await c.provide("p", "coupon", {"code": code}, signal_id=f"again-{code}")
            await c.crash()
            assert (await c.get("p")).revision == revision
        history = kinds(list(await c.history("p")))
        assert history[0] == "Submitted"
        assert [each for each in history if each in ("Finished", "Reopened")] == [
            "Finished", "Reopened", "Finished", "Reopened", "Finished",
        ]  # fmt: skip
        assert history.count("Signal") == 2


async def test_a_deadline_ends_what_waits_for_an_operator_because_it_failed() -> None:
    """In dead-letter mode nothing is undone by itself; but whoever set a deadline wants it ended by then."""
    service = Scripted()
    service.on("POST", "/a").answers(200, {})
    service.on("POST", "/a/undo").answers(200, {})
    service.on("POST", "/b").fails(409, {})
    definition = {
        "name": "d",
        "on_failure": "dead_letter",
        "steps": [
            {"name": "a", "service": "s", "path": "/a", "undo": {"path": "/a/undo"}},
            {"name": "b", "service": "s", "path": "/b"},
        ],
    }
    async with coordinator.embedded(services={"s": service}, clock=FakeClock("2026-11-21T09:00:00Z")) as c:
        await c.submit(definition, id="d", timeout="1h")
        await c.settled()
        assert (await c.get("d")).state == "dead_letter"
        await c.crash()
        await c.clock.advance("1h")
        view = await c.wait("d")
        assert view.state == "compensated"
        assert view.error is not None
        assert view.error.code == "deadline_exceeded"


async def test_a_dead_letter_has_no_deadline_and_begins_it_anew() -> None:
    """However long an operator takes over it; else asking again could not mend it."""
    service = Scripted()
    service.on("POST", "/b").fails(409, {}).then.answers(200, {})
    step = {"name": "b", "service": "s", "path": "/b", "deadline": "10m"}
    definition = {"name": "d", "on_failure": "dead_letter", "steps": [step]}
    async with coordinator.embedded(services={"s": service}, clock=FakeClock("2026-11-21T09:00:00Z")) as c:
        await c.submit(definition, id="d")
        await c.clock.advance("1h")
        assert (await c.get("d")).state == "dead_letter"
        await c.requeue("d", "b")
        assert (await c.wait("d")).state == "completed"


async def test_a_decision_that_came_too_late_is_refused_though_the_command_sleeps_again() -> None:
    """A datum was first, and has left the question behind: who decided is told so, and not that it counts."""
    app = App()

    @app.command(name="Race")
    class Race(msgspec.Struct):
        async def exec(self, saga: Saga) -> None:
            await saga.any(saga.receive("word"), saga.decision("ok"))
            await saga.sleep("1h")

    async with coordinator.embedded(app, clock=FakeClock("2026-11-21T09:00:00Z")) as c:
        await c.submit("Race", {}, id="r")
        decision = c.decide("r", "ok", approve=True, by="ann")
        given, decided = await asyncio.gather(c.provide("r", "word", 1), decision, return_exceptions=True)
        assert not isinstance(given, BaseException)
        assert isinstance(decided, IllegalState)
        assert (await c.get("r")).waiting_for == ["sleep"]
