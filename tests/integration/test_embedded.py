"""The coordinator inside a user's own process, as users use it: to run sagas, and to test them."""

from __future__ import annotations

import asyncio
import gc
import signal
import sqlite3
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import structlog

import coordinator
from coordinator import App, FakeClock, Request, Response, Retry, Saga, Scripted, StepFailed, post
from coordinator.errors import (
    ConfigError,
    CoordinatorError,
    CorruptLog,
    Forbidden,
    IdConflict,
    IllegalState,
    InvalidPayload,
    LimitReached,
    Starting,
    StartupError,
    Stopping,
    UnknownCommand,
    UnknownType,
    WaitTimeout,
)
from coordinator.model.settings import ServiceSettings

NINE = "2026-11-21T09:00:00Z"
app = App()


@app.command(services=["stock", "payments"])
class PlaceOrder(msgspec.Struct):
    """Reserves, then charges; what it charges with is tried three times, ten days apart at most."""

    order: str
    amount: int = 5

    async def exec(self, saga: Saga) -> dict[str, Any]:
        await saga.step(
            "reserve",
            post("stock", "/reservations", {"order": self.order}),
            undo=post("stock", f"/reservations/{self.order}/release"),
        )
        charge = await saga.step(
            "charge",
            post("payments", "/charges", {"amount": self.amount}),
            retry=Retry(attempts=3, backoff="exponential", first="5d", max="10d"),
            timeout="2s",
        )
        return {"receipt": charge["id"]}


async def double(number: int) -> int:
    """A step without a service."""
    return number * 2


local = App()


@local.command()
class Double(msgspec.Struct):
    number: int

    async def exec(self, saga: Saga) -> int:
        return int(await saga.step("double", double, self.number))


def scripted(c: coordinator.Embedded) -> None:
    """Services that do what they are asked."""
    c.services["stock"].on("POST", "/reservations").answers(200, {"id": "r-1"})
    c.services["stock"].on("POST", "/reservations/{order}/release").answers(204)
    c.services["payments"].on("POST", "/charges").answers(200, {"id": "c-1"})


def _nonsense() -> None:
    raise AssertionError("nonsense")


# ---------------------------------------------------------------- the library


async def test_a_saga_runs_in_this_process_on_real_time() -> None:
    """Nothing but an application is needed; a step may be a function of it."""
    async with coordinator.embedded(local) as c:
        view = await c.run(Double(21))
        assert (view.state, view.result, view.type) == ("completed", 42, "Double")
        assert (await c.get(view.id)).result == 42
        assert [each.id for each in await c.list(state="completed")] == [view.id]
        assert [each["kind"] for each in await c.history(view.id)] == ["Submitted", "Outcome", "Finished"]
        assert "double" in await c.diagram(view.id)
        assert (await c.explain(view.id))["state"] == "completed"


async def test_a_command_is_said_in_any_of_its_forms() -> None:
    """An instance, its class or its name with a payload, or a definition."""
    definition = {"name": "ship", "steps": [{"name": "send", "service": "shipping", "path": "/parcels"}], "result": "x"}
    async with coordinator.embedded(local, services=["shipping"]) as c:
        c.services["shipping"].on("POST", "/parcels").answers(200)
        assert (await c.run(Double(1))).result == 2
        assert (await c.run(Double, {"number": 2})).result == 4
        assert (await c.run("Double", {"number": 3}, version=1)).result == 6
        assert (await c.run("Double", Double(4))).result == 8
        assert (await c.run(definition)).result == "x"
        assert await c.register(definition)
        assert not await c.register(definition)
        assert (await c.run("ship")).state == "completed"


async def test_the_same_id_is_the_same_command() -> None:
    """Submitted again it attaches; with another payload it is a conflict."""
    async with coordinator.embedded(local) as c:
        first = await c.run(Double(1), id="d-1", attributes={"customer": "c-1"})
        again = await c.run(Double(1), id="d-1", attributes={"customer": "c-1"})
        assert first == again
        with pytest.raises(IdConflict):
            await c.submit(Double(2), id="d-1")
        assert [each.id for each in await c.list(attributes={"customer": "c-1"})] == ["d-1"]


async def test_services_are_urls_clients_or_functions() -> None:
    """As in the daemon's configuration and `App.client`."""

    async def payments(request: Request, headers: Mapping[str, str]) -> Response:
        return Response(200, {}, b'{"id": "c-%d"}' % request.body["amount"])

    def stock(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={"id": "r-1"})

    async with httpx.AsyncClient(transport=httpx.MockTransport(stock), base_url="http://stock") as client:
        services = {"stock": client, "payments": payments, "other": "http://127.0.0.1:1"}
        async with coordinator.embedded(app, services=services) as c:
            assert (await c.run(PlaceOrder("o-1", 7))).result == {"receipt": "c-7"}


async def test_what_happens_can_be_watched() -> None:
    """Events come from the beginning to the end, in log order."""
    async with coordinator.embedded(app, services=["stock", "payments"]) as c:
        scripted(c)
        view = await c.submit(PlaceOrder("o-1"))
        events = [event async for event in c.watch(view.id)]
        assert [event.kind for event in events] == ["accepted", "step", "step", "final"]
        late = [event async for event in c.watch(view.id, after=events[1].position)]
        assert [event.kind for event in late] == ["step", "final"]


async def test_a_failure_is_undone() -> None:
    """The view says why, and the service saw the undo."""
    async with coordinator.embedded(app, services=["stock", "payments"]) as c:
        scripted(c)
        c.services["payments"].on("POST", "/charges").fails(402, {"why": "poor"})
        view = await c.submit(PlaceOrder("o-1"), id="o-1", timeout="200ms", wait="5s")
        assert (view.state, view.error is not None) == ("compensated", True)
        assert [(call.step, call.undo) for call in c.calls if call.service == "stock"] == [
            ("reserve", False),
            ("reserve", True),
        ]


async def test_operators_have_their_say() -> None:
    """Pause, resume and cancel, each with who and why in the history."""
    async with coordinator.embedded(app, clock=FakeClock(NINE)) as c:
        scripted(c)
        c.services["payments"].on("POST", "/charges").fails(409)
        view = await c.submit(PlaceOrder("o-1"))
        await c.settled()
        assert (await c.pause(view.id, by="ann", reason="lunch")).state == "paused"
        assert (await c.resume(view.id, by="ann")).state != "paused"
        await c.cancel(view.id, by="bob", reason="gone")
        assert (await c.wait(view.id)).state == "compensated"
        controls = [(each["operation"], each["by"]) for each in await c.history(view.id) if each["kind"] == "Control"]
        assert controls == [("pause", "ann"), ("resume", "ann"), ("cancel", "bob")]
        with pytest.raises(IllegalState):
            await c.abort(view.id)


async def test_it_leaves_the_process_as_it_was() -> None:
    """No signal handlers, no logging set up, the collector as it was, no task and no file left behind."""
    handlers = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    configured, frozen, threshold = structlog.is_configured(), gc.get_freeze_count(), gc.get_threshold()
    async with coordinator.embedded(local) as c:
        await c.run(Double(1))
        assert {each: signal.getsignal(each) for each in handlers} == handlers
        assert gc.isenabled()
    assert (structlog.is_configured(), gc.get_freeze_count(), gc.get_threshold()) == (configured, frozen, threshold)
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_several_live_side_by_side() -> None:
    """In one loop, with one application, each with a log of its own."""
    async with coordinator.embedded(local, name="a") as a, coordinator.embedded(local, name="b") as b:
        await asyncio.gather(a.run(Double(1), id="d"), b.run(Double(2), id="d"))
        assert ((await a.get("d")).result, (await b.get("d")).result) == (2, 4)


# ---------------------------------------------------------------- on disk


async def test_a_directory_keeps_everything(tmp_path: Path) -> None:
    """What is uncompleted goes on in the next run, what has ended is found, and no step that was done is repeated."""
    payments, stock = Scripted(), Scripted()
    services = {"stock": stock, "payments": payments}
    stock.on("POST", "/reservations").answers(200)
    payments.on("POST", "/charges").unknown()
    async with coordinator.embedded(app, data_dir=tmp_path, services=services) as c:
        view = await c.submit(PlaceOrder("o-1"), id="o-1", wait="200ms")
        assert view.state in ("running", "delayed")
    payments.on("POST", "/charges").answers(200, {"id": "c-1"})
    async with coordinator.embedded(app, data_dir=tmp_path, services=services) as c:
        assert (await c.wait("o-1", within="10s")).result == {"receipt": "c-1"}
    async with coordinator.embedded(app, data_dir=tmp_path, services=services) as c:
        assert (await c.get("o-1")).state == "completed"
        assert (await c.run(PlaceOrder("o-1"), id="o-1")).result == {"receipt": "c-1"}
    assert [call.step for call in stock.calls] == ["reserve"]


async def test_a_crash_on_disk_loses_nothing(tmp_path: Path) -> None:
    """What was acknowledged is there after it, and goes on."""
    async with coordinator.embedded(app, data_dir=tmp_path, clock=FakeClock(NINE)) as c:
        scripted(c)
        c.services["payments"].on("POST", "/charges").unknown(times=3).then.answers(200, {"id": "c-1"})
        for number in range(5):
            await c.submit(PlaceOrder(f"o-{number}"), id=f"o-{number}")
        await c.crash()
        for number in range(5):
            assert (await c.wait(f"o-{number}", within="1h")).state == "completed"
        assert len(c.services["stock"].effects) == 5


async def test_one_directory_is_for_one_at_a_time(tmp_path: Path) -> None:
    """The second is refused at its start; when the first has gone, it may come."""
    async with coordinator.embedded(local, data_dir=tmp_path) as c:
        with pytest.raises(StartupError, match="another embedded coordinator"):
            async with coordinator.embedded(local, data_dir=tmp_path):
                pass
        await c.run(Double(1))
    async with coordinator.embedded(local, data_dir=tmp_path):
        pass


async def test_a_log_that_cannot_be_used_is_told_on_entering(tmp_path: Path) -> None:
    """A file in place of the directory; a record of a kind that only a later version knows."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StartupError):
        async with coordinator.embedded(local, data_dir=tmp_path / "file"):
            pass
    async with coordinator.embedded(local, data_dir=tmp_path / "log") as c:
        await c.run(Double(1))
    with sqlite3.connect(tmp_path / "log" / "log.sqlite3") as db:
        (epoch,) = db.execute("SELECT data FROM log_0 WHERE offset = 0").fetchone()
        later = msgspec.msgpack.encode([99, 1, msgspec.msgpack.decode(epoch)[2]])
        db.execute("UPDATE log_0 SET data = ? WHERE offset = 2", (later,))
    db.close()
    with pytest.raises(CorruptLog):
        async with coordinator.embedded(local, data_dir=tmp_path / "log"):
            pass


# ---------------------------------------------------------------- the test kit


async def test_days_of_retries_take_no_time() -> None:
    """Refused twice, 5 and 10 days apart; every call at its own time."""
    clock = FakeClock(NINE)
    async with coordinator.embedded(app, clock=clock) as c:
        scripted(c)
        c.services["payments"].on("POST", "/charges").fails(402, times=2).then.answers(200, {"id": "c-9"})
        view = await c.submit(PlaceOrder("o-1"))
        still = await c.settled()
        assert still.next_due == "2026-11-26T09:00:00.000Z"
        assert list(still.commands) == [view.id]
        await c.clock.advance("4d")
        assert len(c.services["payments"].calls) == 1
        await c.clock.advance("1d")
        assert len(c.services["payments"].calls) == 2
        await c.clock.until("2026-12-07T09:00:00Z")
        assert (await c.get(view.id)).result == {"receipt": "c-9"}
        assert (await c.get(view.id)).finished_at == "2026-12-06T09:00:00.000Z"


async def test_waiting_within_a_time_lets_it_pass_as_far_as_needed() -> None:
    """`run(within=…)` ends with the command, not with the time."""
    clock = FakeClock(NINE)
    async with coordinator.embedded(app, clock=clock) as c:
        scripted(c)
        c.services["stock"].on("POST", "/reservations").unknown(times=2).then.answers(200)
        view = await c.run(PlaceOrder("o-1"), within="30d")
        assert (view.state, view.finished_at) == ("completed", "2026-11-21T09:00:00.400Z")
        c.services["payments"].on("POST", "/charges").fails(409)
        with pytest.raises(WaitTimeout, match="charge"):
            await c.run(PlaceOrder("o-2"), within="1d")


async def test_waiting_in_vain_says_for_what() -> None:
    """Time stands still: who waits without letting it pass is told what is due when."""
    async with coordinator.embedded(app, clock=FakeClock(NINE)) as c:
        c.patience_s = 0.05
        scripted(c)
        c.services["payments"].on("POST", "/charges").fails(409)
        with pytest.raises(WaitTimeout, match=r"next due: 2026-11-26T09:00:00\.000Z"):
            await c.run(PlaceOrder("o-1"))


async def test_a_task_may_wait_while_the_test_moves_time() -> None:
    """Waiting without a time of its own does not move the clock, and ends when somebody else does."""
    async with coordinator.embedded(app, clock=FakeClock(NINE)) as c:
        scripted(c)
        c.services["payments"].on("POST", "/charges").fails(402, times=1).then.answers(200, {"id": "c-1"})
        waiting = asyncio.create_task(c.run(PlaceOrder("o-1")))
        await c.clock.advance("5d")
        assert (await waiting).state == "completed"


async def test_a_service_that_takes_too_long_has_done_it_all_the_same() -> None:
    """The call's timeout is on the fake clock; its retry gets the first answer, without a second effect."""
    async with coordinator.embedded(app, clock=FakeClock(NINE)) as c:
        scripted(c)
        payments = c.services["payments"]
        payments.on("POST", "/charges").takes("3s").answers(200, {"id": "c-1"})
        view = await c.submit(PlaceOrder("o-1"))
        await c.settled()
        assert (await c.get(view.id)).state == "running"
        await c.clock.advance("2s")
        assert (await c.get(view.id)).state == "delayed"
        assert (await c.wait(view.id, within="1s")).state == "completed"
        assert (len(payments.calls), len(payments.effects)) == (2, 1)


async def test_two_coordinators_share_a_clock() -> None:
    """One move settles both."""
    clock = FakeClock(NINE)
    async with coordinator.embedded(app, clock=clock) as a, coordinator.embedded(app, clock=clock) as b:
        for c in (a, b):
            scripted(c)
            c.services["payments"].on("POST", "/charges").fails(402, times=1).then.answers(200, {"id": "c-1"})
            await c.submit(PlaceOrder("o-1"), id="o-1")
        await clock.advance("5d")
        assert [(await c.get("o-1")).state for c in (a, b)] == ["completed", "completed"]


async def test_what_is_not_scripted_fails_the_test() -> None:
    """Whoever waits is told at once, with the request and with what the script knows."""
    async with coordinator.embedded(app, clock=FakeClock(NINE)) as c:
        c.services["stock"].on("POST", "/reservation").answers(200)
        with pytest.raises(coordinator.Unscripted, match=r"stock was asked POST /reservations .* POST /reservation$"):
            await c.run(PlaceOrder("o-1"))


async def test_all_who_wait_are_told_of_a_mistake() -> None:
    """Nobody waits on for what will not come, and the test cannot go on as if nothing were wrong."""
    async with coordinator.embedded(app, clock=FakeClock(NINE)) as c:
        orders = (c.run(PlaceOrder(f"o-{number}")) for number in range(3))
        told = await asyncio.gather(*orders, return_exceptions=True)
        assert [type(each) for each in told] == [coordinator.Unscripted] * 3
        with pytest.raises(coordinator.Unscripted):
            await c.settled()
        assert len(c.calls) == 3


async def test_what_is_not_scripted_fails_at_the_latest_on_leaving() -> None:
    """Also where the test never looks again."""

    asked = asyncio.Event()

    async def careless() -> None:
        async with coordinator.embedded(app, clock=FakeClock(NINE)) as c:
            c.services["stock"].on("POST", "/reservations").does(lambda _: asked.set() or _nonsense())
            await c.submit(PlaceOrder("o-1"))
            await asked.wait()

    with pytest.raises(AssertionError, match="nonsense"):
        await careless()


async def test_a_test_that_fails_keeps_its_own_error() -> None:
    """What else went wrong does not hide it."""

    asked = asyncio.Event()

    async def failing() -> None:
        async with coordinator.embedded(app, clock=FakeClock(NINE)) as c:
            c.services["stock"].on("POST", "/reservations").does(lambda _: asked.set() or _nonsense())
            await c.submit(PlaceOrder("o-1"))
            await asked.wait()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await failing()


async def test_something_that_does_not_settle_is_named() -> None:
    """A step's function that waits for something of its own: which one, and of which command."""
    never = asyncio.Event()
    stuck = App()

    @stuck.command()
    class Stuck(msgspec.Struct):
        async def exec(self, saga: Saga) -> None:
            await saga.step("hangs", never.wait)

    async with coordinator.embedded(stuck, clock=FakeClock(NINE)) as c:
        c.settle_max_s = 0.05
        await c.submit(Stuck())
        with pytest.raises(AssertionError, match="Stuck-1: hangs asks local"):
            await c.settled()


async def test_ids_in_a_test_can_be_foretold() -> None:
    """They are counted by type, so that output is the same each time."""
    async with coordinator.embedded(local, clock=FakeClock(NINE)) as c:
        assert [(await c.run(Double(n))).id for n in range(3)] == ["Double-1", "Double-2", "Double-3"]


# ---------------------------------------------------------------- crashes


async def test_a_crash_throws_away_all_but_the_log() -> None:
    """A saga goes on after its last outcome; a call that was under way is made again under the same key."""
    async with coordinator.embedded(app, clock=FakeClock(NINE)) as c:
        scripted(c)
        payments = c.services["payments"]
        payments.on("POST", "/charges").takes("1s").answers(200, {"id": "c-1"})
        view = await c.submit(PlaceOrder("o-1"))
        await c.settled()
        await c.crash()
        assert (await c.wait(view.id, within="1h")).state == "completed"
        assert len(c.services["stock"].calls) == 1
        assert [call.key for call in payments.calls] == ["PlaceOrder-1/charge"] * 2
        fences = [tuple(map(int, call.fence.split("."))) for call in payments.calls]
        assert fences == sorted(set(fences))
        await c.crash()
        assert (await c.get(view.id)).result == {"receipt": "c-1"}
        assert [each.id for each in await c.list()] == [view.id]


async def test_who_waits_and_who_watches_outlive_a_crash() -> None:
    """They are told the end by the next life, and nothing twice."""
    async with coordinator.embedded(app, clock=FakeClock(NINE)) as c:
        scripted(c)
        c.services["payments"].on("POST", "/charges").fails(402, times=1).then.answers(200, {"id": "c-1"})
        view = await c.submit(PlaceOrder("o-1"))

        async def watch() -> list[str]:
            return [event.kind async for event in c.watch(view.id)]

        watching, waiting = asyncio.create_task(watch()), asyncio.create_task(c.wait(view.id))
        await c.settled()
        await c.crash()
        await c.crash()
        await c.clock.advance("5d")
        await waiting
        kinds = await watching
        assert kinds.count("accepted") == 1
        assert kinds[-1] == "final"


async def test_a_saga_survives_a_crash_anywhere() -> None:
    """Each append of a scenario is lost once, and once landed without anybody acting on it."""
    runs: list[tuple[int, int]] = []

    async def scenario(c: coordinator.Embedded) -> None:
        scripted(c)
        stock, payments = c.services["stock"], c.services["payments"]
        stock.on("POST", "/reservations").unknown(after_effect=True).then.answers(200)
        payments.on("POST", "/charges").fails(402)
        view = await c.run(PlaceOrder("o-1"), within="60d")
        assert view.state == "compensated"
        assert [(call.step, call.undo) for call in stock.effects] == [("reserve", False), ("reserve", True)]
        assert not payments.effects
        runs.append((len(stock.calls), len(payments.calls)))

    crashes = await coordinator.crash_everywhere(app, scenario, clock=NINE)
    assert len(runs) == crashes + 1 >= 13
    assert max(calls for calls, _ in runs) > runs[0][0]  # some calls were made twice


async def test_a_saga_that_does_not_survive_is_told_where() -> None:
    """The scenario's own assertion fails, with a note of the crash that it did not survive."""
    told: list[int] = []
    careless = App()

    async def send() -> None:
        told.append(1)

    @careless.command()
    class Mail(msgspec.Struct):
        async def exec(self, saga: Saga) -> None:
            await saga.step("mail", send)

    async def scenario(c: coordinator.Embedded) -> None:
        told.clear()
        await c.run(Mail())
        assert told == [1]

    with pytest.raises(AssertionError) as failed:
        await coordinator.crash_everywhere(careless, scenario)
    assert failed.value.__notes__ == ["the coordinator had crashed just before its append 3: Outcome of mail"]


# ---------------------------------------------------------------- misuse


async def test_what_is_wrong_with_a_submission_is_told() -> None:
    """With the errors that every transport tells."""

    class Stranger(msgspec.Struct):
        pass

    async with coordinator.embedded(local, max_commands=1, clock=FakeClock(NINE)) as c:
        with pytest.raises(UnknownType, match="did you mean"):
            await c.submit("Duoble", {})
        with pytest.raises(UnknownType, match="Stranger is no command of this application: Double"):
            await c.submit(Stranger())
        with pytest.raises(InvalidPayload, match=r"\$\.payload\.number"):
            await c.submit(Double, {"number": "one"})
        with pytest.raises(InvalidPayload, match="is the payload"):
            await c.submit(Double(1), {"number": 1})
        with pytest.raises(InvalidPayload, match=r"\$\.wait"):
            await c.submit(Double(1), wait="soon")
        with pytest.raises(InvalidPayload, match=r"\$\.timeout"):
            await c.submit(Double(1), timeout="soon")
        with pytest.raises(UnknownCommand):
            await c.get("nobody")
        with pytest.raises(UnknownCommand):
            await c.wait("nobody", within="1s")
        with pytest.raises(UnknownCommand):
            await c.callback("http://example/somewhere", 1)
        with pytest.raises(InvalidPayload, match="name"):
            await c.register({"steps": []})


async def test_too_much_is_refused() -> None:
    """The limit is the daemon's, and its refusal too."""
    async with coordinator.embedded(app, max_commands=1, clock=FakeClock(NINE)) as c:
        scripted(c)
        c.services["payments"].on("POST", "/charges").unknown()
        await c.submit(PlaceOrder("o-1"))
        with pytest.raises(LimitReached):
            await c.submit(PlaceOrder("o-2"))


async def test_it_is_used_between_entering_and_leaving() -> None:
    """Before and after there is a clear refusal; it is entered once."""
    c = coordinator.embedded(local)
    with pytest.raises(Starting, match="async with"):
        await c.get("d-1")
    async with c:
        with pytest.raises(RuntimeError, match="real time"):
            _ = c.clock
        with pytest.raises(RuntimeError, match="once"):
            await c.__aenter__()
    for ask in (c.get("d-1"), c.submit(Double(1)), c.settled(), c.crash()):
        with pytest.raises(Stopping, match="has ended"):
            await ask
    with pytest.raises(RuntimeError, match="once"):
        async with c:
            pass


async def test_who_waits_when_it_ends_is_told() -> None:
    """Nobody waits for ever on a coordinator that is gone."""
    async with coordinator.embedded(app, clock=FakeClock(NINE)) as c:
        scripted(c)
        c.services["payments"].on("POST", "/charges").unknown()
        waiting = asyncio.create_task(c.run(PlaceOrder("o-1")))
        await c.settled()
    with pytest.raises(Stopping):
        await waiting


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: coordinator.embedded(services={"stock": 7}), r"services\['stock'\]"),
        (lambda: coordinator.embedded(services="stock"), "not text"),
        (lambda: coordinator.embedded(max_commands=0), "max_commands"),
        (lambda: coordinator.embedded(slow_retry_interval="soon"), "duration"),
        (lambda: coordinator.embedded(drain_timeout="soon"), "duration"),
    ],
)
def test_what_makes_no_sense_is_refused_at_once(make: Callable[[], Any], told: str) -> None:
    """Outside of any event loop, with what is allowed."""
    with pytest.raises(ConfigError, match=told):
        make()


def test_it_can_be_made_outside_of_a_loop() -> None:
    """A fixture may make it; it begins where it is entered."""
    c = coordinator.embedded(local, clock=FakeClock(NINE), services={"x": ServiceSettings(name="")})

    async def use() -> Any:
        async with c:
            return (await c.run(Double(2))).result

    assert asyncio.run(use()) == 4


async def test_errors_are_one_tree() -> None:
    """One except clause catches them."""
    assert issubclass(UnknownType, CoordinatorError)
    assert issubclass(coordinator.Unscripted, AssertionError)
    assert issubclass(StepFailed, Exception)


# ---------------------------------------------------------------- people, data, time


people = App()


@people.command(services=["bank", "mail"])
class Transfer(msgspec.Struct):
    """Cools down, asks a bank that answers by a callback, asks a person, then tells the customer."""

    amount: int

    async def exec(self, saga: Saga) -> dict[str, Any]:
        await saga.sleep("3d")
        await saga.step(
            "ask",
            post("bank", "/transfers", {"amount": self.amount, "answer_to": saga.callback_url("bank")}),
            undo=post("bank", "/transfers/withdraw"),
        )
        answer = await saga.receive("bank", timeout="1d")
        decision = await saga.decision("approve", input={"amount": self.amount}, roles=["clerk"], timeout="2d")
        await saga.step("tell", post("mail", "/mails", {"by": decision.by}))
        return {"reference": answer["reference"], "by": decision.by}


async def transferred(c: coordinator.Embedded) -> None:
    """A transfer from its beginning to its end, as bank, clerk and time see it."""
    c.services["bank"].on("POST", "/transfers").answers(202)
    c.services["mail"].on("POST", "/mails").answers(200)
    view = await c.submit(Transfer(5), id="t-1")
    await c.clock.advance("3d")
    assert (await c.get("t-1")).waiting_for == ["bank"]
    await c.callback(c.services["bank"].effects[0].body["answer_to"], {"reference": "x-7"})
    still = await c.settled()
    assert still.commands["t-1"]["state"] == "waiting"
    assert still.next_due is not None
    (asked,) = await c.decisions()
    assert (asked["command_id"], asked["step"], asked["input"]) == ("t-1", "approve", {"amount": 5})
    await c.decide("t-1", "approve", by="ann", roles=["clerk"])
    view = await c.wait("t-1")
    assert (view.state, view.result) == ("completed", {"reference": "x-7", "by": "ann"})
    assert [call.step for call in c.calls if call.effect] == ["ask", "tell"]


async def test_a_saga_that_waits_for_time_a_service_and_a_person() -> None:
    """Days pass, a callback comes, a clerk decides; all in some milliseconds."""
    async with coordinator.embedded(people, clock=FakeClock(NINE)) as c:
        await transferred(c)
        assert (await c.get("t-1")).finished_at == "2026-11-24T09:00:00.000Z"


async def test_it_survives_a_crash_anywhere_with_all_who_take_part() -> None:
    """Requests of bank and clerk that were under way are asked again, and count once."""
    assert await coordinator.crash_everywhere(people, transferred, clock=NINE) >= 16


async def test_nobody_decides_and_time_does() -> None:
    """After two days it counts as rejected, and what was done is undone."""
    async with coordinator.embedded(people, clock=FakeClock(NINE)) as c:
        c.services["bank"].on("POST", "/transfers").answers(202)
        c.services["bank"].on("POST", "/transfers/withdraw").answers(204)
        await c.submit(Transfer(5), id="t-1")
        await c.provide("t-1", "bank", {"reference": "early"}, signal_id="s-1")
        await c.provide("t-1", "bank", {"reference": "twice"}, signal_id="s-1")
        await c.clock.advance("3d")
        with pytest.raises(Forbidden):
            await c.decide("t-1", "approve", by="eve", roles=["visitor"])
        view = await c.wait("t-1", within="2d")
        assert (view.state, view.finished_at) == ("compensated", "2026-11-26T09:00:00.000Z")


async def test_a_command_may_begin_later() -> None:
    """`delay` is time on the clock, and it is waited for."""
    async with coordinator.embedded(local, clock=FakeClock(NINE)) as c:
        view = await c.submit(Double(4), delay="2h")
        assert (await c.get(view.id)).waiting_for == ["start"]
        assert (await c.wait(view.id, within="1d")).finished_at == "2026-11-21T11:00:00.000Z"


async def test_a_dead_letter_is_mended() -> None:
    """Listed, given another input, and on it goes; an undo that cannot be made is resolved by hand."""
    repaired = App()

    @repaired.command(services=["stock"], on_failure="dead_letter")
    class Ship(msgspec.Struct):
        async def exec(self, saga: Saga) -> Any:
            return await saga.step("ship", post("stock", "/parcels", {"to": "nowhere"}), undo=post("stock", "/back"))

    async with coordinator.embedded(repaired, clock=FakeClock(NINE)) as c:
        parcels = c.services["stock"].on("POST", "/parcels").fails(422, times=1).then.answers(200, {"id": "p-1"})
        c.services["stock"].on("POST", "/back").fails(409)
        view = await c.submit(Ship())
        await c.settled()
        (letter,) = await c.dead_letters()
        assert (letter["command_id"], letter["step"]) == (view.id, "ship")
        await c.requeue(view.id, "ship", input={"to": "here"}, by="ann")
        assert (await c.wait(view.id)).result == {"id": "p-1"}
        assert parcels.calls[1].body == {"to": "here"}


async def test_a_schedule_of_months_runs_in_no_time() -> None:
    """Each run at its own time in its own zone; a crash in between loses none."""
    async with coordinator.embedded(local, clock=FakeClock(NINE)) as c:
        command = {"type": "Double", "payload": {"number": 1}}
        await c.put_schedule("monthly", {"cron": "0 6 1 * *", "timezone": "Europe/Berlin", "command": command})
        await c.clock.advance("60d")
        await c.crash()
        await c.clock.until("2027-06-15T00:00:00Z")
        runs = sorted(view.id for view in await c.list(type="Double"))
        assert (len(runs), runs[0], runs[-1]) == (7, "monthly@2026-12-01T05:00:00Z", "monthly@2027-06-01T04:00:00Z")
        assert (await c.control_schedule("monthly", "pause"))["state"] == "paused"
        await c.clock.advance("90d")
        assert len(await c.list(type="Double")) == 7
        assert [each["name"] for each in await c.schedules()] == ["monthly"]
        assert (await c.schedule("monthly"))["by"] == "embedded"


async def test_a_definition_survives_a_crash_anywhere() -> None:
    """A crash during any append: early data is kept, a person decides, time decides in another order's stead."""
    definition = {
        "name": "order",
        "steps": [
            {"name": "reserve", "service": "stock", "path": "/reserve", "undo": {"path": "/release"}},
            {
                "name": "approve",
                "decision": {"timeout": "24h", "on_timeout": "reject"},
                "when": "payload.amount > 1000",
            },
            {"name": "otp", "data": "otp", "after": ["reserve"]},
            {"name": "cool", "sleep": "10s", "after": []},
        ],
        "result": "${steps.otp}",
    }

    async def scenario(c: coordinator.Embedded) -> None:
        c.services["stock"].on("POST", "/*").answers(200)
        await c.submit(definition, {"amount": 2000}, id="o-1")
        await c.provide("o-1", "otp", 7)
        await c.settled()
        await c.decide("o-1", "approve")
        assert (await c.wait("o-1", within="1h")).result == 7
        assert (await c.submit(definition, {"amount": 2000}, id="o-2", wait="25h")).state == "compensated"
        assert [call.key for call in c.services["stock"].effects] == ["o-1/reserve", "o-2/reserve", "o-2/reserve/undo"]

    assert await coordinator.crash_everywhere(None, scenario, services=["stock"]) > 20
