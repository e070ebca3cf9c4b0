"""The daemon as a stranger uses it: a real process, a real log, real services, kill -9."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from coordinator.wire.codec import decode
from tests.integration.daemon import Daemon, Service, config, services

ORDER: dict[str, Any] = {
    "name": "order",
    "version": 1,
    "steps": [
        {"name": "reserve", "service": "stock", "path": "/reserve", "undo": {"path": "/release"}},
        {"name": "charge", "service": "payments", "path": "/charge", "undo": {"path": "/refund"}},
        {"name": "ship", "service": "shipping", "path": "/ship", "undo": {"path": "/recall"}},
    ],
    "result": "${steps.charge.id}",
}
NAMES = ("stock", "payments", "shipping")


@pytest.fixture
async def world() -> AsyncIterator[dict[str, Service]]:
    async with services(*NAMES) as started:
        yield started


@pytest.fixture
def daemons(tmp_path: Path) -> Iterator[list[Daemon]]:
    """Whatever a test puts in is stopped."""
    made: list[Daemon] = []
    yield made
    for daemon in made:
        daemon.close()


@pytest.fixture(params=["sqlite", "kafka"])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The [log] section: each test that takes it runs on both."""
    data = f'data_dir = "{tmp_path / "data"}"'
    if request.param == "sqlite":
        return data
    bootstrap = request.getfixturevalue("kafka_bootstrap")
    topic = f"t{time.monotonic_ns()}"
    return (
        f'kind = "kafka"\nbootstrap = "{bootstrap}"\ntopic = "{topic}"\npartitions = 2\n{data}\nappend_timeout = "3s"'
    )


async def started(daemons: list[Daemon], directory: Path, text: str, **rest: Any) -> Daemon:
    daemon = Daemon(directory, text, **rest)
    daemons.append(daemon)
    return await asyncio.to_thread(daemon.start)


def order(id: str, **rest: Any) -> dict[str, Any]:
    return {"id": id, "definition": ORDER, "payload": {"n": 1}, **rest}


async def finals(client: httpx.AsyncClient, ids: list[str], wait: str = "20s") -> Counter[str]:
    """The states in which commands end."""
    views = await asyncio.gather(*(client.get(f"/v1/commands/{id}", params={"wait": wait}) for id in ids))
    return Counter(view.json()["state"] for view in views)


async def test_nothing_is_lost_or_doubled_over_kill_9(
    world: dict[str, Service], daemons: list[Daemon], tmp_path: Path, log: str
) -> None:
    """Killed in the middle of 60 orders and started again, it goes on where the log says: every step has one effect."""
    daemon = await started(daemons, tmp_path, config(tmp_path, world, log=log))
    world["payments"].gate = asyncio.Event()
    ids = [f"o-{n}" for n in range(60)]
    async with httpx.AsyncClient(base_url=daemon.http, timeout=30) as client:
        answers = await asyncio.gather(*(client.post("/v1/commands", json=order(id)) for id in ids))
        assert {answer.status_code for answer in answers} == {202}
        await world["payments"].until(lambda: len(world["payments"].arrivals) >= 40)
        daemon.kill()
        world["payments"].gate.set()
        await asyncio.to_thread(daemon.start)
        again = await client.post("/v1/commands", json=order("o-0"))
        assert again.status_code in (200, 202)
        assert await finals(client, ids) == {"completed": 60}
    for name, path in (("stock", "reserve"), ("payments", "charge"), ("shipping", "ship")):
        service = world[name]
        assert set(service.keys()) == {f"{id}/{path}" for id in ids}
        assert len(service.remembered) == 60
    for arrivals in _by_key(world["payments"]).values():
        fences = [arrival.fence for arrival in arrivals]
        assert fences == sorted(set(fences)), "the fence only grows"


def _by_key(service: Service) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for arrival in service.arrivals:
        found.setdefault(arrival.key, []).append(arrival)
    return found


async def _until_state(client: httpx.AsyncClient, id: str, state: str) -> None:
    async with asyncio.timeout(15):
        while (await client.get(f"/v1/commands/{id}")).json()["state"] != state:  # noqa: ASYNC110
            await asyncio.sleep(0.01)  # the daemon is asked: nothing here could wake us


async def test_a_second_daemon_on_one_log_takes_over_and_the_first_steps_down(
    world: dict[str, Service], daemons: list[Daemon], tmp_path: Path
) -> None:
    """Where there is no group (SQLite), the older one says so, answers with a retryable error, and calls nothing."""
    text = config(tmp_path, world)
    first = await started(daemons, tmp_path / "first", text)
    world["stock"].down = True
    async with httpx.AsyncClient(timeout=10) as client:
        assert (await client.post(f"{first.http}/v1/commands", json=order("o-1"))).status_code == 202
        await world["stock"].until(lambda: len(world["stock"].arrivals) > 1)
        second = await started(daemons, tmp_path / "second", text)
        answer = await _until_refused(client, first)
        assert answer.status_code == 503
        assert answer.json()["code"] == "no_owner"
        assert "retry-after" in answer.headers
        assert (await client.get(f"{first.http}/readyz")).status_code == 503
        assert "stepped down" in first.text()
        seen = len(world["stock"].arrivals)
        epochs = {arrival.fence[0] for arrival in world["stock"].arrivals}
        world["stock"].down = False
        assert (await client.get(f"{second.http}/v1/commands/o-1", params={"wait": "10s"})).json()[
            "state"
        ] == "completed"
        later = {arrival.fence[0] for arrival in world["stock"].arrivals[seen:]}
        assert min(later) > min(epochs), "after the take-over only the newer epoch calls"


async def _until_refused(client: httpx.AsyncClient, daemon: Daemon) -> httpx.Response:
    async with asyncio.timeout(15):
        while True:
            answer = await client.get(f"{daemon.http}/v1/commands/o-1")
            if answer.status_code != 200:
                return answer


async def test_a_service_that_is_down_suspends_intake_until_its_backlog_has_drained(
    world: dict[str, Service], daemons: list[Daemon], tmp_path: Path
) -> None:
    """Existing commands wait and complete; new ones get 503 with the service's name and a delay; then all is well."""
    daemon = await started(daemons, tmp_path, config(tmp_path, world))
    world["payments"].down = True
    ids = [f"o-{n}" for n in range(20)]
    other = {
        "definition": {"name": "only", "version": 1, "steps": [{"name": "ship", "service": "shipping", "path": "/x"}]}
    }
    async with httpx.AsyncClient(base_url=daemon.http, timeout=30) as client:
        await asyncio.gather(*(client.post("/v1/commands", json=order(id)) for id in ids))
        await world["payments"].until(lambda: len(world["payments"].arrivals) >= 6)
        refused = await client.post("/v1/commands", json=order("late"))
        assert refused.status_code == 503
        assert refused.json()["code"] == "suspended"
        assert refused.json()["services"] == ["payments"]
        assert int(refused.headers["retry-after"]) >= 1
        assert (await client.get("/v1/commands/late")).status_code == 404
        assert (await client.post("/v1/commands", params={"wait": "5s"}, json=other)).json()["state"] == "completed"
        assert (await client.post("/v1/commands", json=order("o-0"))).status_code == 202, "a retry finds its command"
        explained = (await client.get("/v1/commands/o-0/explain")).json()
        assert explained["state"] in ("blocked", "delayed")
        assert explained["waits"][0]["service"] == "payments"
        world["payments"].down = False
        assert await finals(client, ids) == {"completed": 20}
        assert (await client.post("/v1/commands", params={"wait": "5s"}, json=order("late"))).json()[
            "state"
        ] == "completed"


async def test_a_refused_step_undoes_the_rest_in_reverse(
    world: dict[str, Service], daemons: list[Daemon], tmp_path: Path
) -> None:
    """A 4xx is a business failure: what was recorded is undone, last first, and the view shows why."""
    daemon = await started(daemons, tmp_path, config(tmp_path, world))
    world["shipping"].answers["/ship"] = [409]
    async with httpx.AsyncClient(base_url=daemon.http, timeout=30) as client:
        view = (await client.post("/v1/commands", params={"wait": "10s"}, json=order("o-1"))).json()
    assert view["state"] == "compensated"
    assert view["error"]["code"] == "http_409"
    assert view["error"]["step"] == "ship"
    assert {step["name"]: step["state"] for step in view["steps"]} == {
        "reserve": "undone",
        "charge": "undone",
        "ship": "failed",
    }
    assert world["payments"].keys() == ["o-1/charge", "o-1/charge/undo"]
    assert world["stock"].keys() == ["o-1/reserve", "o-1/reserve/undo"]
    assert world["payments"].arrivals[-1].at < world["stock"].arrivals[-1].at


async def test_an_undo_that_is_refused_is_listed_and_requeued(
    world: dict[str, Service], daemons: list[Daemon], tmp_path: Path
) -> None:
    """It waits as a dead letter over a kill -9; requeue runs the undo, not the step, with the new input."""
    daemon = await started(daemons, tmp_path, config(tmp_path, world))
    world["shipping"].answers["/ship"] = [409]
    world["payments"].answers["/refund"] = [400]
    async with httpx.AsyncClient(base_url=daemon.http, timeout=30) as client:
        await client.post("/v1/commands", json=order("o-1"))
        await _until_state(client, "o-1", "dead_letter")
        daemon.kill()
        await asyncio.to_thread(daemon.start)
        (letter,) = (await client.get("/v1/dead-letters")).json()
        assert (letter["command_id"], letter["step"], letter["undo"]) == ("o-1", "charge", True)
        assert (await client.post("/v1/commands/o-1/requeue", json={"step": "ship"})).status_code == 409
        requeued = await client.post("/v1/commands/o-1/requeue", json={"step": "charge", "input": {"by": "hand"}})
        assert requeued.status_code == 200
        assert await finals(client, ["o-1"]) == {"compensated": 1}
    assert world["payments"].keys() == ["o-1/charge", "o-1/charge/undo", "o-1/charge/undo"]
    assert world["payments"].arrivals[-1].json == {"by": "hand"}


async def test_sigterm_drains_and_exits_0(world: dict[str, Service], daemons: list[Daemon], tmp_path: Path) -> None:
    """What is under way is settled, the waiting client is answered, and the log says that it is safe to stop."""
    daemon = await started(daemons, tmp_path, config(tmp_path, world))
    world["payments"].gate = asyncio.Event()
    async with httpx.AsyncClient(base_url=daemon.http, timeout=30) as client:
        waiting = asyncio.create_task(client.post("/v1/commands", params={"wait": "20s"}, json=order("o-1")))
        await world["payments"].until(lambda: bool(world["payments"].arrivals))
        stopping = asyncio.create_task(asyncio.to_thread(daemon.stop))
        async with asyncio.timeout(10):
            while "stopping" not in daemon.text():  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        world["payments"].gate.set()
        assert (await waiting).json()["state"] == "completed"
        assert await stopping == 0
    assert "safe to stop" in daemon.text()


async def test_a_deadline_that_passed_while_nobody_ran_fires_late(
    world: dict[str, Service], daemons: list[Daemon], tmp_path: Path
) -> None:
    """A command's timeout is durable: it counts from the submission, not from the restart."""
    daemon = await started(daemons, tmp_path, config(tmp_path, world))
    world["payments"].down = True
    async with httpx.AsyncClient(base_url=daemon.http, timeout=30) as client:
        await client.post("/v1/commands", json=order("o-1", timeout="1s"))
        await world["payments"].until(lambda: bool(world["payments"].arrivals))
        daemon.kill()
        world["payments"].down = False
        world["payments"].gate = asyncio.Event()
        await asyncio.sleep(1.0)  # the time that passes is what is tested
        await asyncio.to_thread(daemon.start)
        world["payments"].gate.set()
        view = (await client.get("/v1/commands/o-1", params={"wait": "10s"})).json()
    assert view["state"] == "compensated"
    assert view["error"]["code"] == "deadline_exceeded"
    assert world["shipping"].arrivals == []


async def test_a_record_that_cannot_be_read_stops_the_start(
    world: dict[str, Service], daemons: list[Daemon], tmp_path: Path
) -> None:
    """A kind that this version does not know, written by the owner: it names partition, offset and kind, exits with a
    failure, and skips nothing."""
    daemon = await started(daemons, tmp_path, config(tmp_path, world))
    async with httpx.AsyncClient(base_url=daemon.http, timeout=30) as client:
        await client.post("/v1/commands", params={"wait": "5s"}, json=order("o-1"))
    assert daemon.stop() == 0
    with sqlite3.connect(tmp_path / "data" / "log.sqlite3") as database:
        (epoch,) = database.execute("SELECT data FROM log_0 WHERE offset = 0").fetchone()
        unknown = msgspec.msgpack.encode([77, 1, decode(epoch, partition=0, offset=0).token, 0, "o-1"])
        database.execute("UPDATE log_0 SET data = ? WHERE offset = 2", (unknown,))
    database.close()
    daemon.spawn()
    assert daemon.process is not None
    assert daemon.process.wait(20) != 0
    assert "offset 2" in daemon.text()
    assert "77" in daemon.text()
    assert "Traceback" not in daemon.text()


async def test_outcomes_come_in_log_order_and_resume(
    world: dict[str, Service], daemons: list[Daemon], tmp_path: Path
) -> None:
    """Every outcome of a service, exactly as recorded; `from` is inclusive."""
    daemon = await started(daemons, tmp_path, config(tmp_path, world))
    async with httpx.AsyncClient(base_url=daemon.http, timeout=30) as client:
        for n in range(5):
            await client.post("/v1/commands", params={"wait": "5s"}, json=order(f"o-{n}"))
        lines = (await client.get("/v1/outcomes", params={"service": "payments"})).text.splitlines()
        assert [httpx.Response(200, text=line).json()["command_id"] for line in lines] == [f"o-{n}" for n in range(5)]
        third = httpx.Response(200, text=lines[2]).json()
        rest = (await client.get("/v1/outcomes", params={"service": "payments", "from": third["position"]})).text
        assert rest.splitlines() == lines[2:]
        assert (await client.get("/v1/outcomes", params={"service": "nobody"})).status_code == 404


async def test_the_limit_refuses_explicitly_and_loses_nothing(
    world: dict[str, Service], daemons: list[Daemon], tmp_path: Path
) -> None:
    """429 with a delay above max_commands; resumed commands may exceed a lower limit, new ones may not join."""
    daemon = await started(daemons, tmp_path, config(tmp_path, world, engine="max_commands = 8"))
    world["payments"].gate = asyncio.Event()
    async with httpx.AsyncClient(base_url=daemon.http, timeout=30) as client:
        answers = await asyncio.gather(*(client.post("/v1/commands", json=order(f"o-{n}")) for n in range(12)))
        assert Counter(answer.status_code for answer in answers) == {202: 8, 429: 4}
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert refused.json()["code"] == "limit_reached"
        assert "retry-after" in refused.headers
        daemon.kill()
        text = config(tmp_path, world, engine="max_commands = 4")
        daemon.config.write_text(text)
        await asyncio.to_thread(daemon.start)
        assert (await client.post("/v1/commands", json=order("new"))).status_code == 429
        world["payments"].gate.set()
        accepted = [answer.json()["id"] for answer in answers if answer.status_code == 202]
        assert await finals(client, accepted) == {"completed": 8}
        assert (await client.post("/v1/commands", params={"wait": "5s"}, json=order("new"))).status_code == 200
