"""A log whose head is deleted while commands wait: what is gone, what is not, and what a take-over has to read.

Snapshots are taken all the time here (``recovery_target``), and records are old after a second (``retain``); so within
seconds a log is trimmed as often as one in production within weeks.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
import sqlite3
import sys
import textwrap
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import msgspec
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition  # type: ignore[import-untyped]

from coordinator.engine.registry import fingerprint
from coordinator.log.base import Log
from coordinator.log.kafka import KafkaLog
from coordinator.log.sqlite import SqliteLog
from coordinator.model.ids import CommandId, parse_position, partition_of
from coordinator.model.records import SCHEMA, Epoch, Finished, Outcome, Record, Submitted, raw
from coordinator.wire.codec import encode
from tests.integration.daemon import Daemon, Service, config

ORDER: dict[str, Any] = {
    "name": "order",
    "steps": [
        {"name": "reserve", "service": "stock", "path": "/reserve"},
        {"name": "charge", "service": "payments", "path": "/charge"},
    ],
}
NOTHING: dict[str, Any] = {
    "name": "nothing",
    "steps": [{"name": "reserve", "service": "stock", "path": "/reserve"}],
}
PATIENT = 'breaker = { failures = 1000000, reset = "300ms" }'
PARTITIONS = 2
WAITING = 12
World = dict[str, Service]


class Stage(NamedTuple):
    """Where a daemon keeps its log, and how to look at it from outside."""

    bootstrap: str  # "": SQLite
    topic: str
    directory: Path
    partitions: int

    def daemon(self, world: World, name: str = "one", *, retain: str = "1s", app: str | None = None) -> Daemon:
        directory = self.directory / name
        log = f'retain = "{retain}"\nsession_timeout = "3s"\ndata_dir = "{directory / "data"}"\n'
        if self.bootstrap:
            log += f'kind = "kafka"\nbootstrap = "{self.bootstrap}"\ntopic = "{self.topic}"\n'
            log += f"partitions = {self.partitions}\n"
        engine = 'recovery_target = "20ms"\nslow_retry_interval = "300ms"'
        return Daemon(directory, config(directory, world, engine=engine, log=log, service=PATIENT), app=app)

    async def bounds(self) -> dict[int, tuple[int, int]]:
        """First and next offset by partition, as any program of the log's kind sees them."""
        if not self.bootstrap:
            with contextlib.closing(sqlite3.connect(self.directory / "one" / "data" / "log.sqlite3")) as log:
                first, last = log.execute("SELECT min(offset), max(offset) FROM log_0").fetchone()
            return {0: (first, last + 1)}
        consumer = AIOKafkaConsumer(bootstrap_servers=self.bootstrap)
        await consumer.start()
        try:
            places = [TopicPartition(self.topic, each) for each in range(self.partitions)]
            first, end = await consumer.beginning_offsets(places), await consumer.end_offsets(places)
            return {each.partition: (first[each], end[each]) for each in places}
        finally:
            await consumer.stop()

    def open(self) -> Log:
        """The log in this process: only while no daemon has it."""
        if self.bootstrap:
            return KafkaLog(self.bootstrap, self.topic, self.partitions, open_timeout_ms=20_000)
        return SqliteLog(self.directory / "one" / "data", 1)


@pytest.fixture(params=["sqlite", "kafka"])
def stage(request: pytest.FixtureRequest, tmp_path: Path) -> Stage:
    if request.param == "sqlite":
        return Stage("", "", tmp_path, 1)
    return Stage(request.getfixturevalue("kafka_bootstrap"), f"trimming-{uuid.uuid4().hex}", tmp_path, PARTITIONS)


@pytest.fixture
def kafka_stage(kafka_bootstrap: str, tmp_path: Path) -> Stage:
    return Stage(kafka_bootstrap, f"trimming-{uuid.uuid4().hex}", tmp_path, PARTITIONS)


@contextlib.asynccontextmanager
async def client_of(daemon: Daemon) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=daemon.http, timeout=30) as client:
        yield client


def told(daemon: Daemon, event: str) -> list[dict[str, Any]]:
    """What this run of the daemon has logged of one kind."""
    lines = (line for line in daemon.text().splitlines() if f'"event": "{event}"' in line)
    return [json.loads(line) for line in lines]


# ---------------------------------------------------------------- a load


async def begin_waiting(client: httpx.AsyncClient, world: World) -> dict[str, list[dict[str, Any]]]:
    """Commands whose second step cannot be done for now; their histories so far, by id."""
    world["payments"].down = True
    ids = [f"waiting-{n}" for n in range(WAITING)]
    for id in ids:
        body = {"id": id, "definition": ORDER, "payload": {"n": id}}
        assert (await client.post("/v1/commands", json=body)).status_code == 202
    histories = {}
    for id in ids:
        while len(history := (await client.get(f"/v1/commands/{id}/history")).json()) < 2:
            await world["stock"].until(lambda: True)
        histories[id] = history
    return histories


_numbers = iter(range(1_000_000))


async def round_of_orders(client: httpx.AsyncClient, count: int = 40) -> list[str]:
    """Commands that begin and end at once."""
    ids = [f"quick-{next(_numbers)}" for _ in range(count)]

    async def one(id: str) -> None:
        body = {"id": id, "definition": NOTHING, "payload": {}}
        answer = await client.post("/v1/commands", params={"wait": "20s"}, json=body)
        assert answer.json()["state"] == "completed", answer.text

    await asyncio.gather(*map(one, ids))
    return ids


async def log_of(client: httpx.AsyncClient) -> dict[int, dict[str, Any]]:
    answer = await client.get("/v1/log")
    assert answer.status_code == 200, answer.text
    return {row["partition"]: row for row in answer.json()}


async def worked_until_trimmed(client: httpx.AsyncClient, times: int) -> list[str]:
    """Works until the head of every partition has been deleted so often; the ids of what was done."""
    firsts: dict[int, set[int]] = {}
    done: list[str] = []
    deadline = time.monotonic() + 60
    while not firsts or any(len(seen) < times for seen in firsts.values()):
        assert time.monotonic() < deadline, f"not trimmed: {await log_of(client)}"
        done += await round_of_orders(client)
        for partition, row in (await log_of(client)).items():
            if row["first"]:
                firsts.setdefault(partition, set()).add(row["first"])
            else:
                firsts.setdefault(partition, set())
    return done


async def finish(client: httpx.AsyncClient, world: World, waiting: dict[str, list[dict[str, Any]]]) -> None:
    """The services recover: each command that waited ends, its history is whole, and no step was done twice."""
    world["payments"].down = False
    for id, before in waiting.items():
        view = (await client.get(f"/v1/commands/{id}", params={"wait": "20s"})).json()
        assert view["state"] == "completed", view
        history = (await client.get(f"/v1/commands/{id}/history")).json()
        assert [each["kind"] for each in history] == ["Submitted", "Outcome", "Outcome", "Finished"]
        assert history[:2] == before
        assert world["stock"].keys().count(f"{id}/reserve") == 1


async def ended_long_ago(client: httpx.AsyncClient, world: World, id: str) -> None:
    """A command that ended within the dedupe horizon, and whose records are deleted, is known and never runs again."""
    calls = world["stock"].keys().count(f"{id}/reserve")
    assert (await client.get(f"/v1/commands/{id}")).json()["state"] == "completed"
    again = await client.post(
        "/v1/commands", params={"wait": "5s"}, json={"id": id, "definition": NOTHING, "payload": {}}
    )
    assert (again.json()["state"], again.headers["coordinator-attached"]) == ("completed", "true")
    assert world["stock"].keys().count(f"{id}/reserve") == calls


# ---------------------------------------------------------------- what is deleted, and what is not


async def test_the_head_is_deleted_and_nobody_who_waits_loses_anything(
    stage: Stage, world: World, daemons: list[Daemon]
) -> None:
    """Commands that wait survive many trims, a kill -9 and what was deleted below them; the log is as long as told,
    as others see it, too; and the restart reads next to nothing."""
    daemon = stage.daemon(world)
    daemons.append(daemon)
    await asyncio.to_thread(daemon.start)
    async with client_of(daemon) as client:
        waiting = await begin_waiting(client, world)
        done = await worked_until_trimmed(client, 3)
        for partition, row in (await log_of(client)).items():
            first, end = (await stage.bounds())[partition]
            assert row["first"] <= first
            assert row["end"] <= end
            assert row["snapshot"]["covered"] >= row["first"]
            assert row["replay_records"] < row["end"]
        bounds = await stage.bounds()
        for id, before in waiting.items():
            partition, offset = parse_position(before[0]["position"], "$")
            assert offset < bounds[partition][0], "its Submitted is deleted"
            assert (await client.get(f"/v1/commands/{id}/history")).json()[:2] == before
        await ended_long_ago(client, world, done[0])
    daemon.kill()
    await asyncio.to_thread(daemon.start)
    for line in told(daemon, "partition acquired"):
        assert line["start"].startswith("the snapshot at ")
        assert line["records"] < 2_000
    async with client_of(daemon) as client:
        for id, before in waiting.items():
            assert (await client.get(f"/v1/commands/{id}/history")).json()[:2] == before
        await ended_long_ago(client, world, done[0])
        await worked_until_trimmed(client, 1)
        await finish(client, world, waiting)
    assert await asyncio.to_thread(daemon.stop) == 0


async def test_another_instance_takes_over_a_log_without_its_head(
    kafka_stage: Stage, world: World, daemons: list[Daemon]
) -> None:
    """It has never seen what is deleted: the snapshot is all that it has, and all that it needs.  Any instance tells of
    all partitions, whoever owns them."""
    one, two = kafka_stage.daemon(world), kafka_stage.daemon(world, "two")
    daemons += [one, two]
    await asyncio.to_thread(one.start)
    async with client_of(one) as client:
        waiting = await begin_waiting(client, world)
        done = await worked_until_trimmed(client, 3)
    await asyncio.to_thread(two.start)
    async with client_of(two) as client:
        rows = await log_of(client)
        assert set(rows) == set(range(PARTITIONS))
        assert all(row["owner"] for row in rows.values())
        one.kill()
        for id, before in waiting.items():
            assert (await client.get(f"/v1/commands/{id}/history")).json()[:2] == before
        for line in told(two, "partition acquired"):
            assert line["start"].startswith("the snapshot at ")
            assert line["records"] < 2_000
        calls = world["stock"].keys().count(f"{done[0]}/reserve")
        again = await client.post("/v1/commands", json={"id": done[0], "definition": NOTHING, "payload": {}})
        assert (again.status_code, again.json()["code"]) == (409, "id_conflict"), "it has ended, and is not told how"
        assert world["stock"].keys().count(f"{done[0]}/reserve") == calls
        await worked_until_trimmed(client, 1)
        await finish(client, world, waiting)
        rows = await log_of(client)
        assert len({row["owner"] for row in rows.values()}) == 1


# ---------------------------------------------------------------- killed half way

KILLED_AT = {
    "before the pointer is saved": ["SqliteLog.save_pointer", "KafkaLog.save_pointer"],
    "after the snapshot, before the trim": ["SqliteLog.trim", "KafkaLog.trim"],
    "after the trim, before the view has heard": ["View.forget_below"],
}
DEADLY = """
    import os, signal
    from coordinator import App
    from coordinator.log.kafka import KafkaLog
    from coordinator.log.sqlite import SqliteLog
    from coordinator.view import View

    def deadly(kind, name):
        real = getattr(kind, name)

        async def dies(*arguments):
            if os.path.exists("armed"):
                os.kill(os.getpid(), signal.SIGKILL)
            return await real(*arguments)

        setattr(kind, name, dies)

    for each in {moments}:
        kind, name = each.split(".")
        deadly(globals()[kind], name)
    app = App()
"""


@pytest.mark.parametrize(
    ("stage", "moment"),
    [*(("sqlite", moment) for moment in KILLED_AT), ("kafka", "after the snapshot, before the trim")],
    indirect=["stage"],
)
async def test_a_kill_half_way_loses_nothing(stage: Stage, world: World, daemons: list[Daemon], moment: str) -> None:
    """Whatever was done of taking a snapshot, publishing it, trimming and forgetting: the next one finds its way, and
    does what was left undone."""
    daemon = stage.daemon(world)
    daemons.append(daemon)
    (daemon.directory / "deadly.py").write_text(textwrap.dedent(DEADLY.format(moments=KILLED_AT[moment])))
    daemon.app = "deadly:app"
    await asyncio.to_thread(daemon.start)
    async with client_of(daemon) as client:
        waiting = await begin_waiting(client, world)
        (daemon.directory / "armed").touch()
        with contextlib.suppress(httpx.TransportError):
            await worked_until_trimmed(client, 2)
            raise AssertionError("it was to die")
    assert daemon.process is not None
    assert await asyncio.to_thread(daemon.process.wait, 20) == -signal.SIGKILL
    daemon.app = None
    await asyncio.to_thread(daemon.start)
    async with client_of(daemon) as client:
        for id, before in waiting.items():
            assert (await client.get(f"/v1/commands/{id}/history")).json()[:2] == before
        await worked_until_trimmed(client, 1)
        await finish(client, world, waiting)


# ---------------------------------------------------------------- a long log, and the time that it takes

LONG = 50_000  # records


def history_of_a_year(partitions: int, tokens: dict[int, bytes]) -> Iterator[tuple[int, list[Record]]]:
    """Commands that have ended, three records each, and a few that have not."""
    print_ = fingerprint(None, None, {}, NOTHING)
    definition = msgspec.Raw(msgspec.msgpack.encode(NOTHING))
    for n in range(LONG // 3):
        id = CommandId(f"old-{n}")
        partition = partition_of(id, partitions)
        token = tokens[partition]
        at = 1_700_000_000_000 + n
        yield (
            partition,
            [
                Submitted(SCHEMA, token, at, id, "nothing", 1, raw({}), print_, definition=definition),
                Outcome(SCHEMA, token, at, id, "reserve", "stock", 1, raw({"id": n})),
                *([Finished(SCHEMA, token, at, id, "completed", raw(None))] if n % 500 else []),
            ],
        )


async def write_long_log(stage: Stage) -> None:
    """Straight into the log, as former owners would have done over a year."""
    log = stage.open()
    await log.open()
    tokens = {each: b"former%02d" % each for each in range(log.partitions)}
    writers = {each: await log.writer(each) for each in tokens}
    batches: dict[int, list[bytes]] = {}
    for partition, token in tokens.items():
        batches[partition] = [encode(Epoch(SCHEMA, token, 1_700_000_000_000, "former", ""))]
    for partition, records in history_of_a_year(log.partitions, tokens):
        batch = batches[partition]
        batch += map(encode, records)
        if len(batch) >= 1_000:
            await writers[partition].append(batch)
            batches[partition] = []
    for partition, batch in batches.items():
        if batch:
            await writers[partition].append(batch)
        await writers[partition].close()
    await log.close()


async def test_how_long_a_recovery_takes_does_not_depend_on_how_long_the_log_is(
    stage: Stage, world: World, daemons: list[Daemon]
) -> None:
    """The first start has to read everything; whoever comes after a kill -9 reads what the target allows, though
    nothing is ever deleted here, and commands wait since long ago."""
    stage.directory.joinpath("one").mkdir()
    world["stock"].down = True
    await write_long_log(stage)
    daemon = stage.daemon(world, retain="0ms")
    daemons.append(daemon)
    await asyncio.to_thread(daemon.start)
    lines = told(daemon, "partition acquired")
    read = sum(line["records"] for line in lines)
    assert read >= 0.99 * LONG
    rate = 1000 * read / max(1, sum(line["ms"] for line in lines))
    async with client_of(daemon) as client:
        deadline = time.monotonic() + 20
        while not all(row["snapshot"] for row in (await log_of(client)).values()):
            assert time.monotonic() < deadline, daemon.tail()
        world["stock"].down = False
        for _ in range(5):
            await round_of_orders(client, 80)
        rows = await log_of(client)
        assert all(row["first"] == 0 for row in rows.values())
        assert all(row["pinned_by"] == "retain" for row in rows.values())
    daemon.kill()
    await asyncio.to_thread(daemon.start)
    for line in told(daemon, "partition acquired"):
        assert line["start"].startswith("the snapshot at ")
        assert line["records"] < max(0.02 * rate, 1_500), "what 20 ms allow, and half a batch"
    async with client_of(daemon) as client:
        view = (await client.get("/v1/commands/old-500", params={"wait": "20s"})).json()
        assert view["state"] == "completed"


# ---------------------------------------------------------------- asking


async def test_log_explain_tells_people_what_pins_the_trim_point(
    stage: Stage, world: World, daemons: list[Daemon]
) -> None:
    """A table, and a sentence for each partition; the same as JSON."""
    daemon = stage.daemon(world)
    daemons.append(daemon)
    await asyncio.to_thread(daemon.start)

    async def explained(*extra: str) -> str:
        arguments = ["log", "explain", "--server", daemon.http, *extra]
        verb = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "coordinator", *arguments, stdout=asyncio.subprocess.PIPE
        )
        out, _ = await asyncio.wait_for(verb.communicate(), 60)
        assert verb.returncode == 0
        return out.decode()

    async with client_of(daemon) as client:
        await worked_until_trimmed(client, 2)
    text = await explained()
    head, *rest = text.splitlines()
    assert re.split(r"  +", head.strip())[:3] == ["partition", "owner", "log"]
    assert re.search(r"below \d+, \d+m?s ago +\d+ records, \d+m?s of 20ms +1s ", rest[0])
    assert len([line for line in rest if line.startswith("partition ")]) == stage.partitions
    rows = json.loads(await explained("--json"))
    assert [row["partition"] for row in rows] == list(range(stage.partitions))
    assert all(row["first"] > 0 and row["pinned_by"] in ("snapshot", "retain", "chain") for row in rows)
