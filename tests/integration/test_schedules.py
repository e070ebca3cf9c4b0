"""Schedules on real daemons: on time, once, and through kill -9, pauses, refusals and takeovers."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from coordinator.errors import UnknownSchedule
from coordinator.model.ids import partition_of
from coordinator.scheduling import Scheduling
from tests.integration.daemon import Daemon, Service, config, services
from tests.integration.routing_kit import PARTITIONS, SHIP, Instance, World, id_at, world

pytestmark = pytest.mark.asyncio(loop_scope="module")

ONE = {
    "name": "one",
    "steps": [{"name": "reserve", "service": "stock", "path": "/reserve", "undo": {"path": "/release"}}],
}
EVERY_SECOND = {"every": "1s", "command": {"definition": ONE, "payload": {"n": 1}}}


class Office:
    """A daemon on SQLite with one service, its clients, and what a schedule of its has made."""

    def __init__(self, daemon: Daemon, stock: Service, name: str = "tick") -> None:
        self.daemon = daemon
        self.stock = stock
        self.name = name
        self.http: httpx.AsyncClient

    async def start(self) -> None:
        if self.daemon.process is None or self.daemon.process.poll() is not None:
            await asyncio.to_thread(self.daemon.start)
        self.http = httpx.AsyncClient(base_url=self.daemon.http, timeout=20)

    async def kill(self) -> None:
        self.daemon.kill()
        await self.http.aclose()

    async def put(self, **fields: Any) -> dict[str, Any]:
        return await self.ask("PUT", "?by=ann", {**EVERY_SECOND, **fields})

    async def get(self) -> dict[str, Any]:
        return await self.ask("GET")

    async def control(self, action: str) -> dict[str, Any]:
        return await self.ask("POST", f"/{action}", {"by": "bob", "reason": "why not"})

    async def ask(self, method: str, rest: str = "", body: Any = None) -> dict[str, Any]:
        answer = await self.http.request(method, f"/v1/schedules/{self.name}{rest}", json=body)
        assert answer.status_code == 200, answer.text
        value: dict[str, Any] = answer.json()
        return value

    async def until(self, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The schedule, once it is like this."""
        async with asyncio.timeout(20):
            while not holds(view := await self.get()):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        return view

    async def runs(self) -> list[dict[str, Any]]:
        """The commands of the schedule, the first one first."""
        answer = await self.http.get("/v1/commands", params={"attribute.schedule": self.name, "limit": 500})
        found: list[dict[str, Any]] = answer.json()["commands"]
        return sorted(found, key=lambda command: command["id"])

    def ran(self) -> list[str]:
        """The keys of the forward calls that the service got for it, in order, each once."""
        arrivals = [each.key for each in self.stock.arrivals if each.path == "/reserve"]
        return [key for key in dict.fromkeys(arrivals) if key.startswith(f"{self.name}@")]

    async def until_ran(self, count: int) -> None:
        await self.stock.until(lambda: len(self.ran()) >= count)


def due(id: str) -> float:
    """The due time (s) in a run's id."""
    return datetime.fromisoformat(id.partition("@")[2].partition("/")[0]).timestamp()


@pytest_asyncio.fixture(loop_scope="module")
async def office(daemon: Daemon, stock: Service, request: pytest.FixtureRequest) -> AsyncIterator[Office]:
    """A schedule's name of its own on a daemon that the tests share; the schedule is deleted when a test is over."""
    made = Office(daemon, stock, request.node.name.removeprefix("test_").replace("_", "-"))
    await made.start()
    yield made
    stock.gate = None
    await made.http.delete(f"/v1/schedules/{made.name}")
    await made.http.aclose()


@pytest_asyncio.fixture(loop_scope="module")
async def own(tmp_path: Path) -> AsyncIterator[Office]:
    """A daemon of its own, which may be killed."""
    async with services("stock") as running:
        daemon = Daemon(tmp_path / "daemon", config(tmp_path, running))
        made = Office(daemon, running["stock"])
        try:
            await made.start()
            yield made
        finally:
            await made.http.aclose()
            daemon.close()


# ---------------------------------------------------------------- runs


async def test_every_second_one_command_on_the_grid(office: Office) -> None:
    """Named by its due time, a second apart without drift, with what was put; and all that a schedule shows."""
    put = await office.put()
    assert (put["state"], put["last"], put["waiting"], put["by"]) == ("active", None, None, "ann")
    await office.until_ran(3)
    view = await office.until(lambda view: view["last"] is not None and view["last"]["state"] == "completed")
    runs = await office.runs()
    first = datetime.fromisoformat(put["next"]).timestamp()
    assert [due(run["id"]) for run in runs][:3] == [first, first + 1, first + 2]
    assert {(run["type"], run["attributes"]["schedule"]) for run in runs} == {("one", office.name)}
    assert view["last"]["command"] in [run["id"] for run in runs]
    assert view["spec"] == EVERY_SECOND
    assert 'coordinator_schedule_runs_total{action="fired"}' in (await office.http.get("/metrics")).text


async def test_the_same_put_again_changes_nothing_and_another_begins_anew(office: Office) -> None:
    """Who deploys the same schedules every day does not move their grids."""
    first = await office.put(every="1h")
    assert (await office.put(every="1h"))["next"] == first["next"]
    other = await office.put(every="2h")
    assert datetime.fromisoformat(other["next"]) > datetime.fromisoformat(first["next"])


async def test_all_faults_of_a_schedule_at_once(office: Office) -> None:
    """Those of its times and those of its command, each with its path; nothing is kept of it."""
    nobody = {"name": "x", "steps": [{"name": "a", "service": "nobody", "path": "/"}]}
    for content, paths in (
        (
            {
                "cron": "61 * * * *",
                "timezone": "Mars/Olympus",
                "surprise": 1,
                "command": {"definition": nobody, "attributes": {"k": []}},
            },
            {
                "$.cron", "$.timezone", "$.surprise", "$.command.attributes.k",
                "$.command.definition.steps[0].service",
            },
        ),
        ({"every": "10ms", "command": {"type": "Nope"}}, {"$.every", "$.command.type"}),
        ({**EVERY_SECOND, "end": "2020-01-01T00:00:00Z"}, {"$.end"}),
        ({}, {"$", "$.command"}),
    ):  # fmt: skip
        answer = await office.http.put(f"/v1/schedules/{office.name}", json=content)
        assert answer.status_code == 422, answer.text
        assert {fault["path"] for fault in answer.json()["faults"]} == paths
    assert (await office.http.get(f"/v1/schedules/{office.name}")).status_code == 404


async def test_a_deleted_schedule_is_gone(office: Office) -> None:
    """404 from then on, in no list, and nothing more is run; the runs that were stay."""
    await office.put()
    await office.until_ran(1)
    assert office.name in [each["name"] for each in (await office.http.get("/v1/schedules")).json()]
    assert (await office.ask("DELETE"))["state"] == "deleted"
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/pause"), ("POST", "/resume")):
        answer = await office.http.request(method, f"/v1/schedules/{office.name}{path}")
        assert (answer.status_code, answer.json()["code"]) == (404, "unknown_schedule")
    assert office.name not in [each["name"] for each in (await office.http.get("/v1/schedules")).json()]
    ran = await office.runs()
    other = Office(office.daemon, office.stock, f"{office.name}-other")
    await other.start()
    await other.put()
    await other.until_ran(1)  # by then, what was deleted had been due
    await other.ask("DELETE")
    await other.http.aclose()
    assert len(await office.runs()) == len(ran)


async def test_what_fell_due_during_a_pause_is_not_run(office: Office) -> None:
    """Not even the last of it; twice is the same; who paused it and why is shown."""
    await office.put()
    await office.until_ran(1)
    paused = await office.control("pause")
    assert (paused["state"], paused["next"], paused["by"], paused["reason"]) == ("paused", None, "bob", "why not")
    before = (await office.get())["last"]["command"]
    await asyncio.sleep(1.2)  # a due time goes by: there is nothing else to wait for
    assert (await office.control("pause"))["last"]["command"] == before
    resumed = await office.control("resume")
    assert resumed["state"] == "active"
    view = await office.until(lambda view: view["last"]["command"] != before)
    assert view["last"]["due"] == resumed["next"]


# ---------------------------------------------------------------- the last run is still going


async def test_skip_while_the_last_run_goes_on(office: Office) -> None:
    """Its due times are recorded as skipped, with the reason; the next one after its end is run."""
    office.stock.gate = asyncio.Event()
    await office.put()
    view = await office.until(lambda view: view["skipped"] is not None)
    first = view["last"]["command"]
    assert first in view["skipped"]["reason"]
    assert [run["id"] for run in await office.runs()] == [first]
    assert '"event": "a scheduled run is skipped"' in office.daemon.text()
    office.stock.gate.set()
    view = await office.until(lambda view: view["last"]["command"] != first)
    assert due(view["last"]["command"]) > datetime.fromisoformat(view["skipped"]["due"]).timestamp()


async def test_replace_cancels_the_last_run_first(office: Office) -> None:
    """The new one begins when the old one is undone; who cancelled it, and why, is in its history."""
    office.stock.gate = asyncio.Event()
    await office.put(overlap="replace")
    view = await office.until(lambda view: view["waiting"] is not None and "cancelled" in view["waiting"])
    first = view["last"]["command"]
    (cancel,) = await _history(office, first, "Control")
    assert (cancel["operation"], cancel["by"]) == ("cancel", f"schedule {office.name}")
    assert "replaced by the schedule's next run" in json.dumps(cancel)
    office.stock.gate.set()
    await office.until_ran(2)
    assert (await office.http.get(f"/v1/commands/{first}")).json()["state"] == "compensated"
    keys = [each.key for each in office.stock.arrivals]
    assert keys.index(f"{first}/reserve/undo") < keys.index(office.ran()[1])


async def _history(office: Office, id: str, kind: str) -> list[dict[str, Any]]:
    answer = await office.http.get(f"/v1/commands/{id}/history")
    return [entry for entry in answer.json() if entry["kind"] == kind]


# ---------------------------------------------------------------- crashes, deployments


async def test_kill_9_and_one_run_that_catches_up(own: Office) -> None:
    """Of the due times that went by while no daemon was there the latest is run, once; then the grid as before."""
    await own.put()
    await own.until_ran(2)
    await own.until(lambda view: view["last"] is not None and view["last"]["state"] == "completed")
    await own.kill()
    killed = own.ran()
    await asyncio.sleep(2.5)  # the downtime
    await own.start()
    await own.until_ran(len(killed) + 3)
    times = [due(run["id"]) for run in await own.runs()]
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert len([gap for gap in gaps if gap != 1]) == 1
    assert max(gaps) >= 3
    assert len(own.ran()) == len({key.partition("/")[0] for key in own.ran()})


async def test_killed_again_and_again_no_run_is_doubled(own: Office) -> None:
    """Right at the due times: between the records of a run and its command, wherever it hits."""
    await own.put()
    for _ in range(3):
        count = len(own.stock.arrivals)
        await own.stock.until(lambda count=count: len(own.stock.arrivals) > count)  # type: ignore[misc]
        await own.kill()
        await own.start()
    view = await own.until(lambda view: view["last"] is not None and view["last"]["state"] == "completed")
    runs = await own.runs()
    assert view["last"]["command"] in [run["id"] for run in runs]
    assert {len(await _history(own, run["id"], "Submitted")) for run in runs} == {1}


async def test_queue_runs_each_due_time_one_after_another(own: Office) -> None:
    """Those that wait survive a kill -9, and none of them begins before the one before it has ended."""
    own.stock.gate = asyncio.Event()
    put = await own.put(overlap="queue")
    view = await own.until(lambda view: view["waiting"] is not None and "1 more wait" in view["waiting"])
    first = view["last"]["command"]
    assert first in view["waiting"]
    assert [run["id"] for run in await own.runs()] == [first]
    await own.kill()
    await own.start()
    own.stock.gate.set()
    await own.until(lambda view: view["waiting"] is None)
    begin = datetime.fromisoformat(put["next"]).timestamp()
    assert [due(run["id"]) for run in await own.runs()][:3] == [begin, begin + 1, begin + 2]
    assert [due(key) for key in own.ran()] == sorted(due(key) for key in own.ran())


async def test_a_snapshot_keeps_the_schedules(own: Office) -> None:
    """With a pause and a last run, although the log before it is deleted."""
    await own.put()
    await own.until(lambda view: view["last"] is not None)
    await own.control("pause")
    kept = Office(own.daemon, own.stock, "kept")
    await kept.start()
    await kept.put(every="1h")
    before = (await own.http.get("/v1/schedules")).json()
    await own.kill()
    own.daemon.config.write_text(own.daemon.config.read_text().replace("[log]", '[log]\nretain = "1s"'))
    await own.start()
    async with asyncio.timeout(30):
        while not (await own.http.get("/v1/log")).json()[0]["first"]:
            await own.http.post("/v1/commands?wait=1s", json={"definition": ONE, "payload": {}})
    await own.kill()
    await own.start()
    after = (await own.http.get("/v1/schedules")).json()
    await kept.http.aclose()
    assert [each["name"] for each in after] == ["kept", "tick"]
    for each in (*before, *after):
        (each["last"] or {}).pop("state", None)  # the last run itself may be deleted by now
    assert after == before


async def test_a_run_that_finds_no_slot_is_asked_again_until_it_has_one(own: Office) -> None:
    """It is shown as waiting with the reason, and nothing is lost when the slot comes free."""
    await own.kill()
    text = own.daemon.config.read_text()
    own.daemon.config.write_text(text.replace("[coordinator]", "[coordinator]\nmax_commands = 1"))
    await own.start()
    own.stock.gate = asyncio.Event()
    await own.http.post("/v1/commands", json={"id": "other", "definition": ONE, "payload": {}})
    put = await own.put()
    view = await own.until(lambda view: view["waiting"] is not None and "limit_reached" in view["waiting"])
    assert view["last"] is None
    own.stock.gate.set()
    view = await own.until(lambda view: view["last"] is not None)
    assert view["last"]["due"] == put["next"]


async def test_a_type_that_is_gone_is_skipped_with_the_reason(own: Office) -> None:
    """After a deploy without the service, the schedule tells why nothing is run; after the next one it runs again."""
    await own.put()
    await own.until(lambda view: view["last"] is not None)
    await own.kill()
    whole = own.daemon.config.read_text()
    own.daemon.config.write_text(whole.replace("services.stock", "services.warehouse"))
    await own.start()
    view = await own.until(lambda view: view["skipped"] is not None and "stock" in view["skipped"]["reason"])
    last = view["last"]["command"]
    await own.kill()
    own.daemon.config.write_text(whole)
    await own.start()
    await own.until(lambda view: view["last"]["command"] != last)


# ---------------------------------------------------------------- the command line


async def test_the_command_line_keeps_schedules(office: Office) -> None:
    """put, get, list, pause, resume, delete, for people and for programs."""

    async def run(*arguments: str, stdin: str = "") -> tuple[int, str, str]:
        verb = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "coordinator", "schedules", *arguments, "--server", office.daemon.http,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, told = await asyncio.wait_for(verb.communicate(stdin.encode()), 60)
        assert verb.returncode is not None
        return verb.returncode, out.decode(), told.decode()

    monthly = {"cron": "0 9 1 * *", "timezone": "Europe/Zurich", "command": {"definition": ONE, "payload": {}}}
    code, out, told = await run("put", office.name, "-", "--by", "ann", "--json", stdin=json.dumps(monthly))
    assert code == 0, told
    assert json.loads(out)["spec"] == monthly
    code, out, _ = await run("list")
    assert code == 0
    assert office.name in out
    assert "0 9 1 * * (Europe/Zurich)" in out
    code, out, _ = await run("pause", office.name, "--reason", "holidays", "--by", "bob")
    assert (code, "paused" in out, "holidays" in out) == (0, True, True)
    code, out, _ = await run("resume", office.name, "--json")
    assert json.loads(out)["state"] == "active"
    code, out, _ = await run("get", office.name)
    assert (code, "active" in out) == (0, True)
    assert (await run("delete", office.name))[0] == 0
    code, _, told = await run("get", office.name)
    assert code == 1
    assert office.name in told
    code, _, told = await run("put", office.name, "-", stdin='{"every": "1ms"}')
    assert code == 1
    assert "$.every" in told


# ---------------------------------------------------------------- several instances


class Crew:
    """A group of instances in one process, each with the hands that fire its schedules."""

    def __init__(self, group: World) -> None:
        self.group = group
        self.hands: dict[str, Scheduling] = {}

    async def start(self, *names: str) -> None:
        for each in await self.group.start(*names):
            each.local.scheduling = self.hands[each.name] = Scheduling(each.pipeline, each.front)
            each.local.scheduling.start()

    async def kill(self, instance: Instance) -> None:
        await self.hands.pop(instance.name).close()
        await instance.kill()


@pytest_asyncio.fixture(loop_scope="module")
async def crew(tmp_path: Path) -> AsyncIterator[Crew]:
    async with world(tmp_path) as group:
        made = Crew(group)
        try:
            yield made
        finally:
            for each in made.hands.values():
                await each.close()


SHIPPING = {
    "every": "1s",
    "overlap": "queue",
    "command": {"definition": {"name": "one", "steps": [SHIP]}, "payload": {}},
}


async def test_a_schedule_goes_on_where_its_partition_goes(crew: Crew) -> None:
    """Handed over, then its owner killed: its runs go on, in whatever partitions they are."""
    group = crew.group
    await crew.start("a", "b", "c")
    shipping = group.services["shipping"]
    name = id_at(0, "tick")
    await group.owner(name).front.put_schedule(name, SHIPPING, "ann")
    await shipping.until(lambda: len(shipping.arrivals) >= 2)
    moved = {**group.shares(), 0: "b"}
    group.agree(moved)
    await group.until(lambda: 0 in group.instances["b"].owned)
    handed_over_at = len(shipping.arrivals)
    await shipping.until(lambda: len(shipping.arrivals) >= handed_over_at + 2)
    owner = group.owner(name)
    await crew.kill(owner)
    group.agree(group.shares())
    await group.until(lambda: any(0 in each.owned for each in group.living))
    killed_at = len(shipping.arrivals)
    await shipping.until(lambda: len(shipping.arrivals) >= killed_at + 3)
    keys = list(dict.fromkeys(shipping.keys()))
    times = [due(key) for key in keys]
    assert times == sorted(times)
    assert {partition_of(key.partition("/")[0], PARTITIONS) for key in keys} != {0}  # they are all over the group
    for instance in group.living:
        view = await instance.front.schedule(name)
        assert view["last"]["command"].startswith(f"{name}@")
        assert [each["name"] for each in await instance.front.schedules()] == [name]
    anybody = next(each for each in group.living if each is not group.owner(name))
    await anybody.front.control_schedule(name, "delete", by="ann", reason="")
    with pytest.raises(UnknownSchedule):
        await group.owner(name).front.schedule(name)


@pytest_asyncio.fixture(loop_scope="module")
async def pair(kafka_bootstrap: str, tmp_path: Path) -> AsyncIterator[list[Office]]:
    """Two daemons of one group on Kafka, and one service."""
    topic = f"schedules-{os.urandom(4).hex()}"
    async with services("stock") as running:
        daemons = []
        for each in ("one", "two"):
            directory = tmp_path / each
            log = (
                f'kind = "kafka"\nbootstrap = "{kafka_bootstrap}"\ntopic = "{topic}"\npartitions = 2\n'
                f'data_dir = "{directory / "data"}"'
            )
            daemons.append(Daemon(directory, config(directory, running, log=log).replace('"test"', f'"{topic}"')))
        offices = [Office(each, running["stock"]) for each in daemons]
        try:
            await asyncio.gather(*(office.start() for office in offices))
            yield offices
        finally:
            for office in offices:
                await office.http.aclose()
                office.daemon.close()


async def test_on_kafka_another_daemon_goes_on_when_the_owner_is_killed(pair: list[Office]) -> None:
    """Put through one, fired by the owner of its partition; after kill -9 of that one, by the other: each run once."""
    stock = pair[0].stock
    await pair[0].put(overlap="queue")
    await pair[0].until_ran(2)
    owner, other = await _owner_first(pair)
    owner.daemon.kill()
    ran = len(other.ran())
    await other.until_ran(ran + 3)
    view = await other.get()
    assert view["last"]["command"] in [run["id"] for run in await other.runs()]
    calls = Counter(each.key for each in stock.arrivals)
    assert [key for key in calls if key.partition("/")[0] not in {run["id"] for run in await other.runs()}] == []
    times = [due(key) for key in other.ran()]
    assert times == sorted(set(times))


async def _owner_first(pair: list[Office]) -> list[Office]:
    """The daemon that owns the schedule's partition, then the other."""
    async with asyncio.timeout(20):
        while True:
            clusters = [(await office.http.get("/v1/cluster")).json() for office in pair]
            owners = {each["partition"]: each["owner"] for each in clusters[0]["partitions"]}
            owner = owners.get(partition_of("tick", 2))
            mine = [cluster["instance"] == owner for cluster in clusters]
            if any(mine):
                return [pair[mine.index(True)], pair[mine.index(False)]]
            await asyncio.sleep(0.05)
