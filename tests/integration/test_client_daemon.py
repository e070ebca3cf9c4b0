"""The Python client against the real daemon: asynchronous and blocking, over TCP and HTTP, through what goes wrong."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

import coordinator_client as api
import pytest
import pytest_asyncio
from coordinator_client import AsyncClient, Client

from tests.integration.daemon import Daemon, Service, config, services

pytestmark = pytest.mark.asyncio(loop_scope="module")

ORDER: dict[str, Any] = {
    "name": "order",
    "version": 1,
    "steps": [
        {"name": "reserve", "service": "stock", "path": "/reserve", "undo": {"path": "/release"}},
        {"name": "charge", "service": "payments", "path": "/charge", "undo": {"path": "/refund"}},
    ],
    "result": "${steps.charge.id}",
}
PAYMENT: dict[str, Any] = {
    "name": "payment",
    "version": 1,
    "steps": [
        {"name": "otp", "data": "otp"},
        {"name": "approve", "decision": {"input": {"amount": "${payload.amount}"}, "roles": ["manager"]}},
        {"name": "charge", "service": "payments", "path": "/charge"},
    ],
    "result": "${steps.otp}",
}
World = dict[str, Service]
_ids = count(1)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world() -> AsyncIterator[World]:
    async with services("stock", "payments") as started:
        yield started


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def daemon(world: World, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Daemon]:
    directory: Path = tmp_path_factory.mktemp("client")
    daemon = Daemon(directory, config(directory, world))
    try:
        await asyncio.to_thread(daemon.start)
        yield daemon
    finally:
        daemon.close()


class Blocking:
    """A `Client`, each call in a thread of its own: what a program without an event loop does."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._threads = ThreadPoolExecutor(32)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._client, name)

        async def call(*args: Any, **rest: Any) -> Any:
            def run() -> Any:
                answer = method(*args, **rest)
                return list(answer) if inspect.isgenerator(answer) or hasattr(answer, "__next__") else answer

            return await asyncio.get_running_loop().run_in_executor(self._threads, run)

        return call


class Awaited:
    """An `AsyncClient` whose iterators are read to their end."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._client, name)

        async def call(*args: Any, **rest: Any) -> Any:
            answer = method(*args, **rest)
            return [item async for item in answer] if hasattr(answer, "__aiter__") else await answer

        return call


WAYS = ("async-tcp", "async-http", "sync-tcp", "sync-http")


@contextlib.asynccontextmanager
async def calling(way: str, daemon: Daemon) -> AsyncIterator[Any]:
    """One of the four ways to call, awaited."""
    style, _, transport = way.partition("-")
    url = daemon.tcp if transport == "tcp" else daemon.http
    if style == "async":
        async with AsyncClient(url) as client:
            yield Awaited(client)
    else:
        with Client(url) as blocking:
            yield Blocking(blocking)


@pytest_asyncio.fixture(loop_scope="module", params=WAYS)
async def client(request: pytest.FixtureRequest, daemon: Daemon) -> AsyncIterator[Any]:
    async with calling(request.param, daemon) as client:
        yield client


@pytest_asyncio.fixture(loop_scope="module")
async def clients(daemon: Daemon) -> AsyncIterator[list[Any]]:
    """All four, for what is done to all of them at once."""
    async with contextlib.AsyncExitStack() as stack:
        yield [await stack.enter_async_context(calling(way, daemon)) for way in WAYS]


@pytest.fixture
def ids() -> Callable[[], str]:
    return lambda: f"order-{next(_ids)}"


async def test_every_answer_is_the_same_whatever_the_way(client: Any, daemon: Daemon, ids: Callable[[], str]) -> None:
    """Compared with what the asynchronous client gets over TCP."""
    id = ids()
    made = await client.submit(definition=ORDER, payload={"n": 1}, id=id, wait="20s", attributes={"k": id})
    assert (made.state, made.ok, made.final) == ("completed", True, True)
    await client.put_definition("order", 1, ORDER, by="ann")
    async with AsyncClient(daemon.tcp) as plain:
        other = Awaited(plain)
        for ask in (
            lambda c: c.get(id),
            lambda c: c.wait(id, "5s"),
            lambda c: c.history(id),
            lambda c: c.explain(id),
            lambda c: c.diagram(id),
            lambda c: c.list(attributes={"k": id}),
            lambda c: c.list(state="completed", limit=3, page=2),
            lambda c: c.watch(id),
            lambda c: c.outcomes("stock"),
            lambda c: c.dead_letters(),
            lambda c: c.definitions(),
            lambda c: c.get_definition("order"),
            lambda c: c.definition_diagram("order", 1),
        ):
            assert await ask(client) == await ask(other)
    assert [event.kind for event in await client.watch(id)] == ["accepted", "step", "step", "final"]
    assert {service["name"] for service in await client.services()} == {"stock", "payments"}
    assert (await client.cluster())["partitions"][0]["state"] == "acting"


async def test_errors_have_a_class_for_each_code(client: Any, ids: Callable[[], str]) -> None:
    """And carry what the server said: paths, legal states, the id."""
    id = ids()
    await client.submit(definition=ORDER, id=id, wait="20s")
    with pytest.raises(api.IdConflict) as conflict:
        await client.submit(definition=ORDER, payload=2, id=id)
    assert conflict.value.command_id == id
    with pytest.raises(api.InvalidPayload) as invalid:
        await client.submit(definition={**ORDER, "steps": [{"name": "a", "service": "nobody"}]})
    assert invalid.value.faults[0]["path"] == "$.definition.steps[0].service"
    with pytest.raises(api.InvalidPayload, match=r"\$\.id"):
        await client.submit(definition=ORDER, id="a b")
    with pytest.raises(api.IllegalState) as illegal:
        await client.pause(id)
    assert "running" in illegal.value.legal_states
    for error, call in (
        (api.UnknownType, lambda: client.submit("nope")),
        (api.UnknownCommand, lambda: client.get("nope")),
        (api.UnknownCommand, lambda: client.wait("nope")),
        (api.UnknownCommand, lambda: client.watch("nope")),
        (api.UnknownService, lambda: client.outcomes("nope")),
        (api.UnknownService, lambda: client.set_breaker("nope", "open")),
        (api.UnknownDefinition, lambda: client.get_definition("nope")),
        (api.DefinitionConflict, lambda: client.put_definition("order", 1, {**ORDER, "result": None})),
        (api.TooLarge, lambda: client.submit(definition=ORDER, payload="x" * 2_000_000)),
    ):
        with pytest.raises(error):
            await call()


async def test_waiting_outlasts_a_suspension(clients: list[Any], world: World, ids: Callable[[], str]) -> None:
    """The service is down, its breaker opens, intake is suspended; a caller who waits gets its result nevertheless."""
    world["payments"].down = True
    early = [asyncio.create_task(client.submit(definition=ORDER, id=ids(), wait="30s")) for client in clients]
    for client in clients:
        with pytest.raises(api.Suspended) as refused:
            await _submit_until_refused(client, ids)
        assert refused.value.services == ["payments"]
    late = [asyncio.create_task(client.submit(definition=ORDER, id=ids(), wait="30s")) for client in clients]
    seen = len(world["payments"].arrivals)
    await world["payments"].until(lambda: len(world["payments"].arrivals) > seen)  # a probe, while all of them wait
    world["payments"].down = False
    assert {(await task).state for task in [*early, *late]} == {"completed"}


async def _submit_until_refused(client: Any, ids: Callable[[], str]) -> None:
    while True:
        await client.submit(definition=ORDER, id=ids(), deadline="100ms")


async def test_waiting_outlasts_kill_9(
    clients: list[Any], daemon: Daemon, world: World, ids: Callable[[], str]
) -> None:
    """submit, wait and watch go on with the restarted daemon; every step has one effect."""
    stock, payments = world["stock"], world["payments"]
    payments.gate = asyncio.Event()
    before = len(payments.remembered)
    mine = [(client, ids()) for client in clients for _ in range(3)]
    ended = [asyncio.create_task(client.submit(definition=ORDER, id=id, wait="60s")) for client, id in mine]
    await payments.until(lambda: {f"{id}/charge" for _, id in mine} <= set(payments.keys()))
    watched = [asyncio.create_task(client.watch(id)) for client, id in mine]
    ended += [asyncio.create_task(client.wait(id, "60s")) for client, id in mine]
    daemon.kill()
    payments.gate.set()
    payments.gate = None
    ended += [asyncio.create_task(client.submit(definition=ORDER, id=ids(), wait="60s")) for client in clients]
    await asyncio.to_thread(daemon.start)
    assert {(await task).state for task in ended} == {"completed"}
    for task in watched:
        kinds = [event.kind for event in await task if event.kind != "state"]
        assert kinds == ["accepted", "step", "step", "final"]
    assert len(payments.remembered) - before == len(mine) + len(clients)
    assert all(stock.keys().count(f"{id}/reserve") == 1 for _, id in mine)


async def test_a_declined_order_is_undone_and_says_why(client: Any, world: World, ids: Callable[[], str]) -> None:
    """The command comes back, whatever its end; asking for the result of one that failed raises."""
    world["payments"].answers["/charge"] = [402]
    declined = await client.submit(definition=ORDER, id=ids(), wait="20s")
    assert (declined.state, declined.ok) == ("compensated", False)
    assert (declined.error.code, declined.error.status) == ("http_402", 402)
    with pytest.raises(api.CommandFailed):
        declined.raise_for_state()


async def test_a_parked_step_is_requeued(client: Any, world: World, ids: Callable[[], str]) -> None:
    """dead_letters lists it; requeue with another input; a requeue of nothing is refused."""
    id = ids()
    world["payments"].answers["/charge"] = [409]
    world["stock"].answers["/release"] = [400]
    parked = await client.submit(definition=ORDER, id=id, wait="300ms")
    assert parked.state == "dead_letter"
    assert [letter["step"] for letter in await client.dead_letters() if letter["command_id"] == id] == ["reserve"]
    with pytest.raises(api.Conflict):
        await client.requeue(id, "charge")
    await client.requeue(id, "reserve", input={"by": "hand"}, reason="typo", by="ann")
    assert (await client.wait(id, "20s")).state == "compensated"
    assert world["stock"].arrivals[-1].json == {"by": "hand"}
    assert [record.get("by") for record in await client.history(id) if record["kind"] == "Control"] == ["ann"]


async def test_an_undo_that_failed_for_good_is_done_by_hand(client: Any, world: World, ids: Callable[[], str]) -> None:
    """resolve takes it for done: the command goes on undoing, and its history has who said so and why."""
    id = ids()
    world["payments"].answers["/charge"] = [409]
    world["stock"].answers["/release"] = [400]
    assert (await client.submit(definition=ORDER, id=id, wait="300ms")).state == "dead_letter"
    with pytest.raises(api.UnknownStep):
        await client.resolve(id, "nonesuch", "by hand", "ann")
    await client.resolve(id, "reserve", "released by telephone", "ann")
    ended = await client.wait(id, "20s")
    assert (ended.state, ended.step("reserve").state) == ("compensated", "undone")
    [control] = [record for record in await client.history(id) if record["kind"] == "Control"]
    assert (control["operation"], control["by"], control["reason"]) == ("resolve", "ann", "released by telephone")
    with pytest.raises(api.IllegalState):
        await client.resolve(id, "reserve", "once more", "ann")


async def test_a_command_waits_for_data_and_a_person(client: Any, ids: Callable[[], str]) -> None:
    """It says what it waits for, is given it, and goes on; whoever may not decide, or comes second, is told so."""
    id = ids()
    made = await client.submit(definition=PAYMENT, payload={"amount": 1999}, id=id, attributes={"k": id})
    await waits_for(client, id, "otp")
    with pytest.raises(api.IllegalState):
        await client.decide(id, "approve", approve=True, by="ann", roles=["manager"])
    await client.provide(id, "otp", {"code": 123456}, signal_id="sent-once", by="customer")
    await client.provide(id, "otp", {"code": 123456}, signal_id="sent-once", by="customer")
    await waits_for(client, id, "approve")
    [pending] = [each for each in await client.decisions() if each.command_id == id]
    assert (pending.step, pending.type, pending.input, pending.roles) == (
        "approve",
        made.type,
        {"amount": 1999},
        ["manager"],
    )
    assert pending.attributes == {"k": id}
    with pytest.raises(api.Forbidden) as forbidden:
        await client.decide(id, "approve", approve=True, by="eve", roles=["clerk"])
    assert forbidden.value.roles == ["manager"]
    await client.decide(id, "approve", approve=True, by="ann", comment="known", roles=["manager"])
    ended = await client.wait(id, "20s")
    assert (ended.state, ended.result, ended.waiting_for, ended.revision) == ("completed", {"code": 123456}, [], 1)
    again = await client.provide(id, "otp", {"code": 123456}, signal_id="sent-once", by="customer")
    assert again == ended
    decided = ended.step("approve").outcome
    assert (decided["approve"], decided["by"], decided["comment"]) == (True, "ann", "known")
    with pytest.raises(api.IllegalState) as late:
        await client.decide(id, "approve", approve=False, by="bob", roles=["manager"])
    assert (late.value.extra["decided"]["approve"], late.value.extra["decided"]["by"]) == (True, "ann")
    assert id not in [each.command_id for each in await client.decisions()]
    signals = [record for record in await client.history(id) if record["kind"] == "Signal"]
    assert [(record["name"], record["by"]) for record in signals] == [("otp", "customer"), ("approve", "ann")]


class Relay:
    """Stands between client and daemon.  ``cut``: the daemon's next answer is lost, and the connection with it."""

    def __init__(self, port: int) -> None:
        self._to = port
        self.cut = False
        self.cuts = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_daemon, to_daemon = await asyncio.open_connection("127.0.0.1", self._to)
        asked = asyncio.ensure_future(self._pass(reader, to_daemon))
        while (data := await from_daemon.read(65_536)) and not self.cut:
            writer.write(data)
        if data:
            self.cut, self.cuts = False, self.cuts + 1
        asked.cancel()
        for end in (writer, to_daemon):
            end.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            writer.write(data)
        writer.close()


@pytest.mark.parametrize("scheme", ["tcp", "http"])
async def test_what_was_done_though_the_answer_was_lost_is_done_once(
    daemon: Daemon, ids: Callable[[], str], scheme: str
) -> None:
    """Data, a decision and a schedule's end, whose connection breaks behind them: each call is a success, each is done
    once; somebody else's decision is no success."""
    id, other, name = ids(), ids(), f"nightly-{ids()}"
    relay = Relay(daemon.ports[scheme])
    server = await asyncio.start_server(relay, "127.0.0.1", 0)
    address = f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, AsyncClient(address) as client, AsyncClient(daemon.tcp) as direct:
        for each in (id, other):
            await direct.submit(definition=PAYMENT, payload={"amount": 1}, id=each)
            await direct.provide(each, "otp", 1, signal_id="first")
            await waits_for(direct, each, "approve")
        await direct.put_schedule(name, {"cron": "0 3 * * *", "command": {"definition": ORDER}})

        async def lost(call: Callable[[], Any]) -> Any:
            await client.get(id)  # there is a connection, which then breaks
            relay.cut = True
            return await call()

        await lost(lambda: client.provide(id, "otp", 2))
        await lost(lambda: client.decide(id, "approve", approve=True, by="ann", roles=["manager"]))
        await lost(lambda: client.delete_schedule(name))
        await direct.decide(other, "approve", approve=True, by="bob", roles=["manager"])
        with pytest.raises(api.IllegalState):
            await lost(lambda: client.decide(other, "approve", approve=True, by="ann", roles=["manager"]))
        assert relay.cuts == 4
        assert (await direct.wait(id, "20s")).result == 1
        signals = [record for record in await direct.history(id) if record["kind"] == "Signal"]
        assert [(record["name"], record["value"]) for record in signals] == [
            ("otp", 1),
            ("otp", 2),
            ("approve", {"approve": True, "comment": ""}),
        ]


async def waits_for(client: Any, id: str, name: str) -> None:
    """Returns once the command waits for that alone."""
    while (view := await client.get(id)).waiting_for != [name]:
        assert view.state in ("running", "waiting"), view


async def test_what_nobody_waits_for_is_refused(client: Any, ids: Callable[[], str]) -> None:
    """Unknown names of data and decisions, unknown commands, data for a command that has ended."""
    id = ids()
    await client.submit(definition=PAYMENT, payload={"amount": 1}, id=id)
    with pytest.raises(api.UnknownStep, match="otp"):
        await client.provide(id, "colour", "red")
    with pytest.raises(api.UnknownStep):
        await client.decide(id, "nonesuch", approve=True)
    with pytest.raises(api.UnknownCommand):
        await client.provide("nope", "otp", 1)
    with pytest.raises(api.UnknownCommand):
        await client.decide("nope", "approve", approve=True)
    with pytest.raises(api.InvalidPayload):
        await client.provide(id, "o" * 201, 1)
    await client.abort(id, "enough", "ann")
    with pytest.raises(api.IllegalState):
        await client.provide(id, "otp", 1)


async def test_a_rejection_undoes(client: Any, world: World, ids: Callable[[], str]) -> None:
    """The person who rejected stands in the error's place; what nobody charged is not charged."""
    id = ids()
    await client.submit(definition=PAYMENT, payload={"amount": 1}, id=id)
    await client.provide(id, "otp", None)
    await waits_for(client, id, "approve")
    await client.decide(id, "approve", approve=False, by="ann", comment="no", roles=["manager"])
    ended = await client.wait(id, "20s")
    assert (ended.ok, ended.error.code) == (False, "rejected")
    assert world["payments"].keys().count(f"{id}/charge") == 0


async def test_a_command_begins_later(client: Any, world: World, ids: Callable[[], str]) -> None:
    """Until then it waits for its start, and nothing is called."""
    id = ids()
    await client.submit(definition=ORDER, id=id, delay="1h")
    await waits_for(client, id, "start")
    assert (await client.get(id)).state == "waiting"
    soon = await client.submit(definition=ORDER, id=ids(), delay=0.3, wait="20s")
    assert soon.ok
    assert world["stock"].keys().count(f"{id}/reserve") == 0
    await client.cancel(id)
    assert (await client.wait(id, "20s")).final


async def test_a_schedule_is_kept(client: Any, ids: Callable[[], str]) -> None:
    """Put, shown, listed, paused, resumed, deleted; a wrong one is refused with all its faults."""
    name = f"nightly-{ids()}"
    content = {"cron": "0 3 * * *", "timezone": "Europe/Zurich", "command": {"definition": ORDER, "payload": {"n": 1}}}
    put = await client.put_schedule(name, content, by="ann")
    assert (put.name, put.spec, put.state, put.last, put.by) == (name, content, "active", None, "ann")
    assert put.next is not None
    assert await client.get_schedule(name) == put
    assert put in await client.schedules()
    paused = await client.pause_schedule(name, "audit", "bob")
    assert (paused.state, paused.reason, paused.by) == ("paused", "audit", "bob")
    assert (await client.pause_schedule(name)).state == "paused"
    assert (await client.resume_schedule(name)).state == "active"
    await client.delete_schedule(name)
    for gone in (client.get_schedule, client.delete_schedule, client.pause_schedule):
        with pytest.raises(api.UnknownSchedule):
            await gone(name)
    with pytest.raises(api.InvalidPayload) as wrong:
        await client.put_schedule(name, {"cron": "61 * * * *", "command": {"type": "nope"}})
    assert "$.cron" in [fault["path"] for fault in wrong.value.faults]
