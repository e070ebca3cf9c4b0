"""What the engine promises, from outside: a real daemon, real services, the clock on the wall."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.daemon import Arrival, Daemon, Service, config

World = dict[str, Service]
PATIENT = 'breaker = { failures = 10000, reset = "300ms" }'
QUICK = 'slow_retry_interval = "100ms"\nretry_jitter = "20ms"'

APP = """
import asyncio
import msgspec
from pathlib import Path
from coordinator import App, Blocked, CommandFailed, Delayed, Saga, StepFailed, post

app = App()
MENDED = Path(__file__).with_name("mended")


def do(saga: Saga, service: str, name: str):
    return saga.step(name, post(service, f"/{name}"), undo=post(service, f"/undo-{name}"))


async def local(kind: str) -> str:
    if MENDED.exists():
        return kind
    if kind == "delayed":
        raise Delayed("later")
    if kind == "wrapped":
        try:
            raise Delayed("later")
        except Delayed as error:
            raise RuntimeError("outer") from error
    if kind == "business":
        raise CommandFailed("no money", code="poor")
    if kind == "stopped":
        raise asyncio.CancelledError
    if kind == "large":
        return "x" * 9_000_000
    raise ValueError("a mistake")


@app.command(services=["stock"])
class Local(msgspec.Struct):
    kind: str

    async def exec(self, saga: Saga) -> str:
        await do(saga, "stock", "before")
        return await saga.step("local", local, self.kind)


@app.command(services=["stock"])
class Poison(msgspec.Struct):
    async def exec(self, saga: Saga) -> dict:
        got = await do(saga, "stock", "before")
        if not MENDED.exists():
            raise ZeroDivisionError("a mistake in exec")
        return got


@app.command(services=["stock"])
class Sleeps(msgspec.Struct):
    async def exec(self, saga: Saga) -> None:
        await do(saga, "stock", "before")
        await asyncio.sleep(0.1)


@app.command(services=["stock", "payments", "shipping"])
class Parallel(msgspec.Struct):
    async def exec(self, saga: Saga) -> list:
        return await saga.all(do(saga, "stock", "x"), do(saga, "payments", "y"), do(saga, "shipping", "z"))


@app.command()
class Undeclared(msgspec.Struct):
    async def exec(self, saga: Saga) -> dict:
        return await do(saga, "shipping", "alone")
"""


def one(service: str = "payments", **step: Any) -> dict[str, Any]:
    return {"name": "one", "steps": [{"name": "a", "service": service, "path": "/a", "undo": {"path": "/b"}, **step}]}


def two(**last: Any) -> dict[str, Any]:
    steps = [
        {"name": "first", "service": "stock", "path": "/first", "undo": {"path": "/undo-first"}},
        {"name": "last", "service": "payments", "path": "/last", "undo": {"path": "/undo-last"}, **last},
    ]
    return {"name": "two", "steps": steps}


class Client:
    """An HTTP client with the words of these tests."""

    def __init__(self, base_url: str) -> None:
        self.http = httpx.AsyncClient(base_url=base_url, timeout=30)

    async def submit(self, id: str, what: dict[str, Any] | str, *, wait: str = "0s", **rest: Any) -> httpx.Response:
        key = "type" if isinstance(what, str) else "definition"
        body = {"id": id, key: what, "payload": {}, **rest}
        return await self.http.post("/v1/commands", params={"wait": wait}, json=body)

    async def get(self, id: str) -> dict[str, Any]:
        found: dict[str, Any] = (await self.http.get(f"/v1/commands/{id}")).json()
        return found

    async def until(self, id: str, *states: str) -> dict[str, Any]:
        async with asyncio.timeout(15):
            while (view := await self.get(id))["state"] not in states:
                pass
            return view

    async def ask(self, id: str, operation: str, **body: Any) -> tuple[int, str | list[str]]:
        """The status, and the state that follows or the states in which it would be legal."""
        answer = await self.http.post(f"/v1/commands/{id}/{operation}", json=body)
        told = answer.json()
        return answer.status_code, told["state"] if answer.status_code == 200 else told.get(
            "legal_states", told["code"]
        )


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "semantics_app.py").write_text(APP)
    return tmp_path


Start = Callable[[str], Awaitable[Client]]


@pytest.fixture
async def start(daemons: list[Daemon], directory: Path) -> AsyncIterator[Start]:
    """Starts a daemon with this configuration and the application above."""
    clients: list[Client] = []

    async def start(text: str) -> Client:
        daemon = Daemon(directory, text, app="semantics_app:app")
        daemons.append(daemon)
        await asyncio.to_thread(daemon.start)
        clients.append(Client(daemon.http))
        return clients[-1]

    yield start
    for client in clients:
        await client.http.aclose()


async def test_a_hundred_delayed_commands_are_retried_within_one_interval(
    world: World, start: Start, directory: Path
) -> None:
    """Spread over the interval while the service is down; when it is back, all have been asked after about one."""
    text = config(directory, world, engine='slow_retry_interval = "1s"\nretry_jitter = "100ms"', service=PATIENT)
    client = await start(text)
    payments = world["payments"]
    payments.down = True
    await asyncio.gather(*(client.submit(f"c-{n}", one()) for n in range(100)))
    await payments.until(lambda: len(payments.arrivals) >= 300)
    rounds = Counter(arrival.key for arrival in payments.arrivals)
    assert max(rounds.values()) - min(rounds.values()) <= 2, "each in its turn"
    spread = Counter(int(arrival.at * 4) for arrival in payments.arrivals[100:])
    assert max(spread.values()) <= 60, "a trickle, not a storm"
    payments.down = False
    began = time.monotonic()
    await payments.until(lambda: len(payments.remembered) == 100)
    assert time.monotonic() - began < 1.6
    for n in range(100):
        assert (await client.until(f"c-{n}", "completed"))["steps"][0]["attempts"] == 1


async def test_an_open_breaker_lets_one_probe_through_and_suspends_what_the_setting_says(
    world: World, start: Start, directory: Path
) -> None:
    """`suspend = "coordinator"`: one service is down, and nobody but known ids is taken; then all is as before."""
    client = await start(config(directory, world, engine=f'{QUICK}\nsuspend = "coordinator"'))
    payments = world["payments"]
    payments.down = True
    await asyncio.gather(*(client.submit(f"c-{n}", one()) for n in range(5)))
    await payments.until(lambda: len(payments.arrivals) >= 6)
    refused = await client.submit("other", one("stock"))
    assert refused.status_code == 503
    assert (refused.json()["code"], refused.json()["services"]) == ("suspended", ["payments"])
    assert (await client.submit("c-0", one())).status_code == 202
    seen = len(payments.arrivals)
    await payments.until(lambda: len(payments.arrivals) >= seen + 3)
    probes = [arrival.at for arrival in payments.arrivals[seen:]]
    assert all(later - earlier > 0.25 for earlier, later in pairwise(probes)), "one a reset time"
    payments.down = False
    async with asyncio.timeout(10):
        while (await client.submit("other", one("stock"))).status_code == 503:
            pass
    for n in range(5):
        await client.until(f"c-{n}", "completed")


async def test_a_type_that_declares_no_services_is_suspended_by_any(
    world: World, start: Start, directory: Path
) -> None:
    """An operator opens one breaker: the undeclared type is refused, one that declares another service is not."""
    client = await start(config(directory, world, engine=QUICK))
    await client.http.post("/v1/services/payments/breaker", json={"state": "open"})
    assert (await client.submit("u", "Undeclared")).json()["code"] == "suspended"
    assert (await client.submit("l", "Poison")).status_code == 202
    await client.http.post("/v1/services/payments/breaker", json={"state": "auto"})
    assert (await client.submit("u", "Undeclared", wait="5s")).json()["state"] == "completed"


async def test_what_a_service_wishes_is_honoured(world: World, start: Start, directory: Path) -> None:
    """Retry-After keeps its step away as long as it says; a step's own timeout is shorter than the service's."""
    client = await start(config(directory, world, engine=QUICK, service=PATIENT))
    wishes = await _service_that_says("HTTP/1.1 503 X\r\nretry-after: 1\r\ncontent-length: 0\r\n\r\n", world["stock"])
    await client.submit("wish", one("stock"))
    await client.until("wish", "completed")
    first, second = wishes
    assert 1.0 <= second - first < 1.6
    payments = world["payments"]
    payments.gate = asyncio.Event()
    await client.submit("slow", one(timeout="200ms"))
    await payments.until(lambda: len(payments.arrivals) >= 3)
    times = [arrival.at for arrival in payments.arrivals]
    assert 0.25 < times[2] - times[1] < 1
    payments.gate.set()
    await client.until("slow", "completed")


async def _service_that_says(answer: str, in_place_of: Service) -> list[float]:
    """Answers the first request with these bytes, and leaves the rest to the service; returns when both came."""
    times: list[float] = []
    serve = in_place_of._one

    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        if times:
            goes_on = await serve(reader, writer)
            times.append(time.monotonic())
            return goes_on
        head = await reader.readuntil(b"\r\n\r\n")
        length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
        await reader.readexactly(int(length or 0))
        times.append(time.monotonic())
        writer.write(answer.encode())
        return True

    in_place_of._one = once  # type: ignore[method-assign]
    return times


async def test_a_step_that_is_given_up_waits_in_doubt_for_a_decision(
    world: World, start: Start, directory: Path
) -> None:
    """`give_up_after`: dead letter, nothing undone; then each decision does what it says, and twice is once."""
    client = await start(config(directory, world, engine=QUICK, service=PATIENT))
    stock, payments = world["stock"], world["payments"]
    payments.down = True
    ids = ["retried", "requeued", "cancelled", "aborted", "paused"]
    for id in ids:
        await client.submit(id, two(give_up_after="300ms"))
    for id in ids:
        view = await client.until(id, "dead_letter")
        assert [step["state"] for step in view["steps"]] == ["succeeded", "dead_letter"]
    seen = len(payments.arrivals)
    assert set(stock.keys()) == {f"{id}/first" for id in ids}, "nothing undone"
    assert await client.ask("paused", "pause") == (200, "paused")
    assert await client.ask("paused", "pause") == (200, "paused")
    assert await client.ask("paused", "requeue", step="last") == (409, ["dead_letter"])
    assert await client.ask("paused", "resume") == (200, "dead_letter")
    assert await client.ask("paused", "resume") == (409, ["paused"])
    assert await client.ask("requeued", "requeue", step="nobody") == (404, "unknown_step")
    assert await client.ask("requeued", "requeue", step="first") == (409, ["dead_letter"])
    assert len(payments.arrivals) == seen, "nobody called while nobody decided"
    payments.down = False
    assert (await client.ask("retried", "retry"))[0] == 200
    assert (await client.ask("requeued", "requeue", step="last", input={"by": "hand"}))[0] == 200
    assert (await client.ask("cancelled", "cancel", reason="enough"))[0] == 200
    assert await client.ask("aborted", "abort", reason="enough") == (200, "aborted")
    await client.until("retried", "completed")
    await client.until("requeued", "completed")
    assert payments.remembered["requeued/last"] is not None
    assert next(a for a in payments.arrivals[::-1] if a.key == "requeued/last").json == {"by": "hand"}
    await client.until("cancelled", "compensated")
    sent, undone = payments.keys(), stock.keys()
    assert [key for key in sent if key.startswith("cancelled")][-2:] == ["cancelled/last", "cancelled/last/undo"]
    assert "aborted/first/undo" not in undone
    for operation in ("pause", "resume", "cancel", "abort", "retry"):
        assert (await client.ask("aborted", operation))[0] == 409


async def test_a_cancel_resolves_the_step_in_doubt_and_undoes_it(world: World, start: Start, directory: Path) -> None:
    """The service did it, its answer was lost, and the cancel comes between: asked again, then undone in reverse."""
    client = await start(config(directory, world, engine=QUICK, service=PATIENT))
    payments = world["payments"]
    payments.gate = asyncio.Event()
    answer = payments._answer

    def lost(arrival: Arrival) -> tuple[int, Any]:
        payments._answer = answer  # type: ignore[method-assign]
        answer(arrival)
        return 0, None

    payments._answer = lost  # type: ignore[method-assign]
    await client.submit("c", two())
    await payments.until(lambda: bool(payments.arrivals))
    assert await client.ask("c", "cancel") == (200, "compensating")
    assert await client.ask("c", "cancel") == (200, "compensating")
    payments.gate.set()
    assert (await client.until("c", "compensated"))["error"]["code"] == "cancelled"
    assert payments.keys() == ["c/last", "c/last", "c/last/undo"]
    assert world["stock"].keys() == ["c/first", "c/first/undo"]


async def test_an_abort_is_answered_with_the_end(world: World, start: Start, directory: Path) -> None:
    """It stops at once: the answer shows `aborted`, and what is under way is left alone."""
    client = await start(config(directory, world, engine=QUICK, service=PATIENT))
    world["payments"].gate = asyncio.Event()
    await client.submit("c", two())
    await world["payments"].until(lambda: bool(world["payments"].arrivals))
    assert await client.ask("c", "abort") == (200, "aborted")
    world["payments"].gate.set()
    assert (await client.get("c"))["finished_at"] is not None
    assert world["stock"].keys() == ["c/first"]


async def test_mistakes_in_a_commands_code_hurt_nobody_else(
    world: World, start: Start, daemons: list[Daemon], directory: Path
) -> None:
    """Parked with its traceback while neighbours go on; with the code mended and a restart, a retry goes on."""
    client = await start(config(directory, world, engine=QUICK, service=PATIENT))
    await client.submit("p", "Poison")
    view = await client.until("p", "dead_letter")
    assert view["error"]["code"] == "poison"
    assert "a mistake in exec" in view["error"]["traceback"]
    sleeps = (await client.submit("s", "Sleeps", wait="500ms")).json()
    assert "saga.step" in sleeps["error"]["message"]
    assert (await client.submit("n", one("stock"), wait="5s")).json()["state"] == "completed"
    assert (await client.ask("p", "retry"))[0] == 200
    await client.until("p", "dead_letter")
    (daemon,) = daemons
    assert await asyncio.to_thread(daemon.stop) == 0
    (directory / "mended").touch()
    await asyncio.to_thread(daemon.start)
    assert (await client.get("p"))["state"] == "dead_letter"
    assert (await client.ask("p", "retry"))[0] == 200
    await client.until("p", "completed")
    assert world["stock"].keys().count("p/before") == 1


async def test_what_a_local_function_raises(world: World, start: Start, directory: Path) -> None:
    """Delayed, also as the cause of another error, is tried again; anything else fails that one command and no more."""
    client = await start(config(directory, world, engine=QUICK, service=PATIENT))
    for kind in ("delayed", "wrapped"):
        view = (await client.submit(kind, "Local", payload={"kind": kind}, wait="300ms")).json()
        assert view["state"] == "delayed"
    for kind, code in (("other", "exception"), ("business", "poor"), ("stopped", "exception")):
        view = (await client.submit(kind, "Local", payload={"kind": kind}, wait="5s")).json()
        assert (view["state"], view["error"]["code"]) == ("compensated", code)
        assert world["stock"].keys()[-1] == f"{kind}/before/undo"
    large = (await client.submit("large", "Local", payload={"kind": "large"}, wait="500ms")).json()
    assert large["state"] == "dead_letter"
    assert large["steps"][1]["error"]["code"] == "outcome_too_large"
    (directory / "mended").touch()
    for kind in ("delayed", "wrapped"):
        assert (await client.until(kind, "completed"))["result"] == kind
    assert (await client.ask("large", "retry"))[0] == 200
    await client.until("large", "completed")


async def test_a_branch_that_fails_waits_for_its_siblings_and_undoes_them(
    world: World, start: Start, directory: Path
) -> None:
    """One of three side by side is refused while another has no answer yet: first known, then undone, all of them."""
    client = await start(config(directory, world, engine=QUICK, service=PATIENT))
    world["payments"].answers["/y"] = [409]
    world["stock"].gate = asyncio.Event()
    await client.submit("c", "Parallel")
    await client.until("c", "compensating")
    await world["shipping"].until(lambda: bool(world["shipping"].arrivals))
    assert world["shipping"].keys() == ["c/z"]
    world["stock"].gate.set()
    view = await client.until("c", "compensated")
    assert {step["name"]: step["state"] for step in view["steps"]} == {"x": "undone", "y": "failed", "z": "undone"}
    assert view["error"]["step"] == "y"


async def test_a_deadline_that_passes_while_a_step_is_delayed(world: World, start: Start, directory: Path) -> None:
    """The step in doubt is asked until it is known, however long that takes, and then undone."""
    client = await start(config(directory, world, engine=QUICK, service=PATIENT))
    payments = world["payments"]
    payments.down = True
    await client.submit("c", one(), timeout="300ms")
    assert (await client.until("c", "compensating"))["error"]["code"] == "deadline_exceeded"
    seen = len(payments.arrivals)
    await payments.until(lambda: len(payments.arrivals) > seen + 2)
    payments.down = False
    await client.until("c", "compensated")
    assert payments.keys()[-2:] == ["c/a", "c/a/undo"]
