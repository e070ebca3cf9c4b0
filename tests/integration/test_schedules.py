"""Schedules on real daemons: on time, once, and through kill -9, pauses, refusals and takeovers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Callable
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest

from coordinator.errors import UnknownSchedule
from coordinator.model.ids import partition_of
from coordinator.scheduling import Scheduling
from tests.integration.daemon import Daemon, Service, config, services
from tests.integration.routing_kit import PARTITIONS, SHIP, Instance, World, id_at, world

ONE = {
    "name": "one",
    "steps": [{"name": "reserve", "service": "stock", "path": "/reserve", "undo": {"path": "/release"}}],
}
EVERY_SECOND = {"every": "1s", "command": {"definition": ONE, "payload": {"n": 1}}}


class Office:
    """A daemon on SQLite with one service, its clients, and what its schedules have made."""

    def __init__(self, daemon: Daemon, stock: Service) -> None:
        self.daemon = daemon
        self.stock = stock

    async def start(self) -> None:
        await asyncio.to_thread(self.daemon.start)
        self.http = httpx.AsyncClient(base_url=self.daemon.http, timeout=20)

    async def put(self, name: str = "tick", **fields: Any) -> dict[str, Any]:
        answer = await self.http.put(f"/v1/schedules/{name}?by=ann", json={**EVERY_SECOND, **fields})
        assert answer.status_code == 200, answer.text
        return self._object(answer)

    async def get(self, name: str = "tick") -> dict[str, Any]:
        answer = await self.http.get(f"/v1/schedules/{name}")
        assert answer.status_code == 200, answer.text
        return self._object(answer)

    async def control(self, action: str, name: str = "tick") -> dict[str, Any]:
        answer = await self.http.post(f"/v1/schedules/{name}/{action}", json={"by": "bob", "reason": "why not"})
        assert answer.status_code == 200, answer.text
        return self._object(answer)

    async def runs(self, name: str = "tick") -> list[dict[str, Any]]:
        """The commands of a schedule, the first one first."""
        answer = await self.http.get("/v1/commands", params={"attribute.schedule": name, "limit": 500})
        found: list[dict[str, Any]] = answer.json()["commands"]
        return sorted(found, key=lambda command: command["id"])

    async def until(self, holds: Callable[[dict[str, Any]], bool], name: str = "tick") -> dict[str, Any]:
        """The schedule, once it is like this."""
        async with asyncio.timeout(20):
            while not holds(view := await self.get(name)):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        return view

    def ran(self) -> list[str]:
        """The keys of the forward calls that the service got, in order, each once."""
        return list(dict.fromkeys(each.key for each in self.stock.arrivals if each.path == "/reserve"))

    @staticmethod
    def _object(answer: httpx.Response) -> dict[str, Any]:
        value: dict[str, Any] = answer.json()
        return value


def due(id: str) -> float:
    """The due time (s) in a run's id."""
    return datetime.fromisoformat(id.partition("@")[2].partition("/")[0]).timestamp()


@pytest.fixture
async def office(tmp_path: Path) -> AsyncIterator[Office]:
    async with services("stock") as running:
        daemon = Daemon(tmp_path / "daemon", config(tmp_path, running))
        made = Office(daemon, running["stock"])
        try:
            await made.start()
            yield made
        finally:
            with contextlib.suppress(AttributeError):
                await made.http.aclose()
            daemon.close()


# ---------------------------------------------------------------- runs


async def test_every_second_one_command_on_the_grid(office: Office) -> None:
    """Named by its due time, a second apart without drift, with what was put; and all that a schedule shows."""
    put = await office.put()
    assert (put["state"], put["last"], put["waiting"], put["by"]) == ("active", None, None, "ann")
    await office.stock.until(lambda: len(office.stock.arrivals) >= 3)
    view = await office.until(lambda view: view["last"] is not None and view["last"]["state"] == "completed")
    runs = await office.runs()
    times = [due(run["id"]) for run in runs]
    first = datetime.fromisoformat(put["next"]).timestamp()
    assert times[:3] == [first, first + 1, first + 2]
    assert {(run["type"], run["attributes"]["schedule"]) for run in runs} == {("one", "tick")}
    assert view["last"]["command"] in [run["id"] for run in await office.runs()]
    assert view["spec"] == EVERY_SECOND
    metrics = (await office.http.get("/metrics")).text
    assert 'coordinator_schedule_runs_total{action="fired"}' in metrics


async def test_the_same_put_again_changes_nothing_and_another_begins_anew(office: Office) -> None:
    """Who deploys the same schedules every day does not move their grids."""
    first = await office.put(every="1h")
    assert (await office.put(every="1h"))["next"] == first["next"]
    other = await office.put(every="2h")
    assert datetime.fromisoformat(other["next"]) > datetime.fromisoformat(first["next"])


async def test_all_faults_of_a_schedule_at_once(office: Office) -> None:
    """Those of its times and those of its command, each with its path."""
    wrong = {
        "cron": "61 * * * *",
        "timezone": "Mars/Olympus",
        "surprise": 1,
        "command": {
            "definition": {"name": "x", "steps": [{"name": "a", "service": "nobody", "path": "/"}]},
            "version": 0,
        },
    }
    answer = await office.http.put("/v1/schedules/tick", json=wrong)
    assert answer.status_code == 422
    paths = {fault["path"] for fault in answer.json()["faults"]}
    assert paths >= {"$.cron", "$.timezone", "$.surprise"}
    assert any(path.startswith("$.command") for path in paths)
    unknown = await office.http.put("/v1/schedules/tick", json={"every": "1s", "command": {"type": "Nope"}})
    assert unknown.status_code == 422
    assert [fault["path"] for fault in unknown.json()["faults"]] == ["$.command.type"]
    over = await office.http.put("/v1/schedules/tick", json={**EVERY_SECOND, "end": "2020-01-01T00:00:00Z"})
    assert over.status_code == 422
    assert (await office.http.get("/v1/schedules/tick")).status_code == 404


async def test_a_deleted_schedule_is_gone(office: Office) -> None:
    """404 from then on, in no list, and nothing more is run; the runs that were stay."""
    await office.put()
    await office.stock.until(lambda: len(office.stock.arrivals) >= 1)
    assert [each["name"] for each in (await office.http.get("/v1/schedules")).json()] == ["tick"]
    gone = await office.http.delete("/v1/schedules/tick")
    assert gone.json()["state"] == "deleted"
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/pause"), ("POST", "/resume")):
        answer = await office.http.request(method, f"/v1/schedules/tick{path}")
        assert (answer.status_code, answer.json()["code"]) == (404, "unknown_schedule")
    assert (await office.http.get("/v1/schedules")).json() == []
    ran = await office.runs()
    again = await office.put("again")
    await office.until(lambda view: view["last"] is not None, "again")
    assert again["name"] == "again"
    assert await office.runs() == ran


# ---------------------------------------------------------------- pauses, crashes


async def test_what_fell_due_during_a_pause_is_not_run(office: Office) -> None:
    """Not even the last of it; twice is the same; who paused it and why is shown."""
    await office.put()
    await office.stock.until(lambda: len(office.stock.arrivals) >= 1)
    paused = await office.control("pause")
    assert (paused["state"], paused["next"], paused["by"], paused["reason"]) == ("paused", None, "bob", "why not")
    before = (await office.get())["last"]["command"]
    await asyncio.sleep(2.2)  # two due times go by: there is nothing else to wait for
    assert (await office.control("pause"))["last"]["command"] == before
    resumed = await office.control("resume")
    assert resumed["state"] == "active"
    view = await office.until(lambda view: view["last"]["command"] != before)
    assert view["last"]["due"] == resumed["next"]


async def test_kill_9_and_one_run_that_catches_up(office: Office) -> None:
    """Of the due times that went by while no daemon was there the latest is run, once; then the grid as before."""
    await office.put()
    await office.stock.until(lambda: len(office.ran()) >= 2)
    await office.until(lambda view: view["last"] is not None and view["last"]["state"] == "completed")
    office.daemon.kill()
    await office.http.aclose()
    killed = office.ran()
    await asyncio.sleep(3.5)  # the downtime
    await office.start()
    await office.stock.until(lambda: len(office.ran()) >= len(killed) + 4)
    times = [due(run["id"]) for run in await office.runs()]
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert len([gap for gap in gaps if gap != 1]) == 1
    assert max(gaps) >= 3
    assert len(office.ran()) == len({key.partition("/")[0] for key in office.ran()})


async def test_killed_again_and_again_no_run_is_doubled(office: Office) -> None:
    """Right at the due times: between the records of a run and its command, wherever it hits."""
    await office.put()
    for _ in range(4):
        count = len(office.stock.arrivals)
        await office.stock.until(lambda count=count: len(office.stock.arrivals) > count)  # type: ignore[misc]
        office.daemon.kill()
        await office.http.aclose()
        await office.start()
    view = await office.until(lambda view: view["last"] is not None and view["last"]["state"] == "completed")
    runs = await office.runs()
    assert view["last"]["command"] in [run["id"] for run in runs]
    assert len({run["id"] for run in runs}) == len(runs)
    async with asyncio.timeout(20):
        while any(run["state"] != "completed" for run in runs):
            runs = await office.runs()
    assert {len(await _history(office, run["id"], "Submitted")) for run in runs} == {1}


async def _history(office: Office, id: str, kind: str) -> list[dict[str, Any]]:
    answer = await office.http.get(f"/v1/commands/{id}/history")
    return [entry for entry in answer.json() if entry["kind"] == kind]


async def test_a_snapshot_keeps_the_schedules(office: Office, tmp_path: Path) -> None:
    """With its pause and its last run, although the log before it is deleted."""
    await office.put("kept", every="1h")
    await office.put()
    await office.until(lambda view: view["last"] is not None)
    await office.control("pause")
    await office.control("pause", "kept")
    before = (await office.http.get("/v1/schedules")).json()
    office.daemon.kill()
    await office.http.aclose()
    text = office.daemon.config.read_text().replace("[log]", '[log]\nretain = "1s"')
    office.daemon.config.write_text(text)
    await office.start()
    async with asyncio.timeout(30):
        while not (await office.http.get("/v1/log")).json()[0]["first"]:
            await office.http.post("/v1/commands?wait=1s", json={"definition": ONE, "payload": {}})
    office.daemon.kill()
    await office.http.aclose()
    await office.start()
    assert (await office.http.get("/v1/schedules")).json() == before


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


async def test_queue_runs_each_due_time_one_after_another(office: Office) -> None:
    """Those that wait survive a kill -9, and none of them begins before the one before it has ended."""
    office.stock.gate = asyncio.Event()
    put = await office.put(overlap="queue")
    view = await office.until(lambda view: view["waiting"] is not None and "2 more wait" in view["waiting"])
    first = view["last"]["command"]
    assert first in view["waiting"]
    assert [run["id"] for run in await office.runs()] == [first]
    office.daemon.kill()
    await office.http.aclose()
    await office.start()
    office.stock.gate.set()
    await office.until(lambda view: view["waiting"] is None)
    times = [due(run["id"]) for run in await office.runs()]
    begin = datetime.fromisoformat(put["next"]).timestamp()
    assert times[:4] == [begin, begin + 1, begin + 2, begin + 3]
    assert [due(key) for key in office.ran()] == sorted(due(key) for key in office.ran())


async def test_replace_cancels_the_last_run_first(office: Office) -> None:
    """The new one begins when the old one is undone; who cancelled it, and why, is in its history."""
    office.stock.gate = asyncio.Event()
    await office.put(overlap="replace")
    view = await office.until(lambda view: view["waiting"] is not None and "cancelled" in view["waiting"])
    first = view["last"]["command"]
    (cancel,) = await _history(office, first, "Control")
    assert (cancel["operation"], cancel["by"]) == ("cancel", "schedule tick")
    assert "replaced by the schedule's next run" in json.dumps(cancel)
    office.stock.gate.set()
    await office.until(lambda view: view["last"]["command"] != first)
    old = (await office.http.get(f"/v1/commands/{first}")).json()
    assert old["state"] == "compensated"
    paths = [each.path for each in office.stock.arrivals]
    assert "/release" in paths[: _second_reserve(office)]


def _second_reserve(office: Office) -> int:
    """Where the second run called the service for the first time."""
    second = office.ran()[1]
    return next(at for at, each in enumerate(office.stock.arrivals) if each.key == second)


# ---------------------------------------------------------------- refusals


async def test_a_run_that_finds_no_slot_is_asked_again_until_it_has_one(tmp_path: Path) -> None:
    """It is shown as waiting with the reason, and nothing is lost when the slot comes free."""
    async with services("stock") as running:
        daemon = Daemon(tmp_path / "daemon", config(tmp_path, running, engine="max_commands = 1"))
        office = Office(daemon, running["stock"])
        try:
            await office.start()
            office.stock.gate = asyncio.Event()
            await office.http.post("/v1/commands", json={"id": "other", "definition": ONE, "payload": {}})
            put = await office.put()
            view = await office.until(lambda view: view["waiting"] is not None and "limit_reached" in view["waiting"])
            assert view["last"] is None
            office.stock.gate.set()
            view = await office.until(lambda view: view["last"] is not None)
            assert view["last"]["due"] == put["next"]
            await office.http.aclose()
        finally:
            daemon.close()


async def test_a_type_that_is_gone_is_skipped_with_the_reason(office: Office, tmp_path: Path) -> None:
    """After a deploy without the service, the schedule tells why nothing is run; after the next one it runs again."""
    await office.put()
    await office.until(lambda view: view["last"] is not None)
    office.daemon.kill()
    await office.http.aclose()
    whole = office.daemon.config.read_text()
    office.daemon.config.write_text(whole.replace("services.stock", "services.warehouse"))
    await office.start()
    view = await office.until(lambda view: view["skipped"] is not None)
    assert "stock" in view["skipped"]["reason"]
    last = view["last"]["command"]
    office.daemon.kill()
    await office.http.aclose()
    office.daemon.config.write_text(whole)
    await office.start()
    await office.until(lambda view: view["last"]["command"] != last)


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
    code, out, told = await run("put", "monthly", "-", "--by", "ann", "--json", stdin=json.dumps(monthly))
    assert code == 0, told
    assert json.loads(out)["spec"] == monthly
    code, out, _ = await run("list")
    assert code == 0
    assert "monthly" in out
    assert "0 9 1 * * (Europe/Zurich)" in out
    code, out, _ = await run("pause", "monthly", "--reason", "holidays", "--by", "bob")
    assert (code, "paused" in out, "holidays" in out) == (0, True, True)
    code, out, _ = await run("resume", "monthly", "--json")
    assert json.loads(out)["state"] == "active"
    code, out, _ = await run("get", "monthly")
    assert (code, "active" in out) == (0, True)
    assert (await run("delete", "monthly"))[0] == 0
    code, _, told = await run("get", "monthly")
    assert code == 1
    assert "monthly" in told
    code, _, told = await run("put", "monthly", "-", stdin='{"every": "1ms"}')
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


@pytest.fixture
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
