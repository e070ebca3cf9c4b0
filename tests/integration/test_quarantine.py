"""Records that cannot be read, in the log of a real daemon: what is listed, who is parked, who goes on, what stops."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import re
import shutil
import sqlite3
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition  # type: ignore[import-untyped]

from coordinator.model.ids import partition_of
from tests.integration.daemon import Daemon, Service, config

ORDER: dict[str, Any] = {
    "name": "order",
    "steps": [
        {"name": "reserve", "service": "stock", "path": "/reserve", "undo": {"path": "/release"}},
        {"name": "charge", "service": "payments", "path": "/charge", "undo": {"path": "/refund"}},
    ],
}
World = dict[str, Service]
PATIENT = 'breaker = { failures = 10000, reset = "300ms" }'
EPOCH, SUBMITTED, OUTCOME, FINISHED, REGISTERED = 0, 1, 2, 9, 10
PARTITIONS = 3


def order(id: str) -> dict[str, Any]:
    return {"id": id, "definition": ORDER, "payload": {"n": id}}


def array(data: bytes) -> list[Any]:
    """A record as its bare msgpack array."""
    return msgspec.msgpack.decode(data)  # type: ignore[no-any-return]


def forged(*fields: Any) -> bytes:
    return msgspec.msgpack.encode(fields)


class Rows:
    """The embedded log's only partition, as any program with SQLite sees it."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / "data" / "log.sqlite3"

    @contextlib.contextmanager
    def _open(self) -> Any:
        with contextlib.closing(sqlite3.connect(self._file)) as log, log:
            yield log

    def all(self) -> dict[int, bytes]:
        with self._open() as log:
            (name,) = [each for _, each, *_ in log.execute("PRAGMA table_info(log_0)") if each != "offset"]
            return {offset: bytes(data) for offset, data in log.execute(f"SELECT offset, {name} FROM log_0")}

    def put(self, data: bytes, offset: int | None = None) -> int:
        """Appends, or puts in the place of what is there; returns the offset."""
        with self._open() as log:
            if offset is None:
                (offset,) = log.execute("SELECT max(offset) + 1 FROM log_0").fetchone()
            log.execute("INSERT OR REPLACE INTO log_0 VALUES (?, ?)", (offset, data))
            return offset

    @property
    def token(self) -> bytes:
        """The one in force at the end."""
        return [array(data) for data in self.all().values() if data[1] == EPOCH][-1][2]  # type: ignore[no-any-return]

    def find(self, kind: int, id: str, step: str | None = None) -> int:
        for offset, data in self.all().items():
            record = array(data)
            if record[0] == kind and record[4] == id and step in (None, record[5]):
                return offset
        raise LookupError(f"no record of kind {kind} of {id}")


@pytest.fixture
async def alone(world: World, daemons: list[Daemon], tmp_path: Path) -> Daemon:
    """An embedded daemon, ready."""
    daemon = Daemon(tmp_path, config(tmp_path, world, service=PATIENT))
    daemons.append(daemon)
    return await asyncio.to_thread(daemon.start)


@contextlib.asynccontextmanager
async def client_of(daemon: Daemon) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=daemon.http, timeout=30) as client:
        yield client


async def until(check: Callable[[], Any], seconds: float = 20) -> Any:
    """What ``check`` gives once that is true; it asks the daemon, so it takes its own time."""
    deadline = time.monotonic() + seconds
    while not (found := await check()):
        assert time.monotonic() < deadline, "never came true"
    return found


async def listed(client: httpx.AsyncClient, count: int) -> list[dict[str, Any]]:
    """The quarantine list, once it has so many entries."""

    async def enough() -> list[dict[str, Any]] | None:
        answer = await client.get("/v1/quarantine")
        items: list[dict[str, Any]] = answer.json() if answer.status_code == 200 else []
        return items if len(items) >= count else None

    found: list[dict[str, Any]] = await until(enough)
    assert len(found) == count
    return found


# ---------------------------------------------------------------- a command's record


async def test_a_damaged_outcome_parks_its_command_and_no_other(alone: Daemon, world: World, tmp_path: Path) -> None:
    """Told everywhere a person looks: the command, why, the dead letters, the list, the history, the metrics; abort
    ends it, and nothing else is legal."""
    world["payments"].down = True
    async with client_of(alone) as client:
        for id in ("hurt", "well"):
            await client.post("/v1/commands", json=order(id))

        async def reserved() -> bool:
            views = [(await client.get(f"/v1/commands/{id}")).json() for id in ("hurt", "well")]
            return all(view["steps"][0]["state"] == "succeeded" for view in views)

        await until(reserved)
    alone.kill()
    rows = Rows(tmp_path)
    offset = rows.find(OUTCOME, "hurt", "reserve")
    rows.put(rows.all()[offset][:-3], offset)
    charges = [key for key in world["payments"].keys() if key.startswith("hurt/")]  # noqa: SIM118
    world["payments"].down = False
    await asyncio.to_thread(alone.start)
    async with client_of(alone) as client:
        well = (await client.get("/v1/commands/well", params={"wait": "10s"})).json()
        assert well["state"] == "completed"
        view = (await client.get("/v1/commands/hurt")).json()
        assert view["state"] == "dead_letter"
        assert view["error"]["code"] == "quarantined"
        assert f"0:{offset}" in view["error"]["message"]
        (entry,) = await listed(client, 1)
        assert (entry["position"], entry["kind"], entry["command_id"]) == (f"0:{offset}", "Outcome", "hurt")
        assert entry["effect"] == "parked"
        assert base64.b64decode(entry["bytes"]) == rows.all()[offset]
        (letter,) = (await client.get("/v1/dead-letters")).json()
        assert (letter["command_id"], letter["error"]["code"]) == ("hurt", "quarantined")
        why = (await client.get("/v1/commands/hurt/explain")).json()
        assert why["waits"][0]["why"] == "quarantined"
        assert "quarantine" in why["summary"]
        history = (await client.get("/v1/commands/hurt/history")).json()
        assert [each["kind"] for each in history] == ["Submitted", "Outcome"]
        assert "damaged" in history[1]["quarantined"]
        metrics = (await client.get("/metrics")).text
        assert 'coordinator_quarantined_records{partition="0"} 1.0' in metrics
        for operation in ("retry", "pause", "resume", "cancel"):
            refused = await client.post(f"/v1/commands/hurt/{operation}", json={})
            assert (refused.status_code, refused.json()["code"]) == (409, "illegal_state")
            assert "dead_letter" not in refused.json()["legal_states"]
        assert (await client.post("/v1/commands/hurt/requeue", json={"step": "charge"})).status_code == 409
        assert [key for key in world["payments"].keys() if key.startswith("hurt/")] == charges  # noqa: SIM118
        assert "hurt/reserve/undo" not in set(world["stock"].keys())
        ended = await client.post("/v1/commands/hurt/abort", json={"reason": "seen to by hand"})
        assert ended.json()["state"] == "aborted"
        attached = await client.post("/v1/commands", json=order("hurt"))
        assert attached.json()["state"] == "aborted"
    assert await asyncio.to_thread(alone.stop) == 0
    await asyncio.to_thread(alone.start)
    async with client_of(alone) as client:
        assert (await client.get("/v1/commands/hurt")).json()["state"] == "aborted"
        assert len(await listed(client, 1)) == 1


async def test_a_damaged_submitted_keeps_its_id(alone: Daemon, world: World, tmp_path: Path) -> None:
    """Its command cannot run, but nobody can start another one in its name, before its abort or after."""
    world["stock"].down = True
    async with client_of(alone) as client:
        await client.post("/v1/commands", json=order("hurt"))
    alone.kill()
    rows = Rows(tmp_path)
    offset = rows.find(SUBMITTED, "hurt")
    rows.put(rows.all()[offset] + b"\xc1", offset)
    await asyncio.to_thread(alone.start)
    async with client_of(alone) as client:
        assert (await client.get("/v1/commands/hurt")).json()["state"] == "dead_letter"
        again = await client.post("/v1/commands", json=order("hurt"))
        assert (again.status_code, again.json()["code"]) == (409, "id_conflict")
        assert "quarantine" in again.json()["detail"]
        assert [each["id"] for each in (await client.get("/v1/commands")).json()["commands"]] == ["hurt"]
        assert (await client.post("/v1/commands/hurt/abort", json={})).json()["state"] == "aborted"
        again = await client.post("/v1/commands", json=order("hurt"))
        assert (again.status_code, again.json()["code"]) == (409, "id_conflict")
        assert (await client.get("/v1/commands/hurt")).json()["state"] == "aborted"


async def test_a_damaged_end_is_no_end(alone: Daemon, tmp_path: Path) -> None:
    """Whether the command was told completed is not known any more: it is a dead letter, and is not run again."""
    async with client_of(alone) as client:
        view = (await client.post("/v1/commands", params={"wait": "10s"}, json=order("hurt"))).json()
        assert view["state"] == "completed"
    alone.kill()
    rows = Rows(tmp_path)
    offset = rows.find(FINISHED, "hurt")
    rows.put(forged(*array(rows.all()[offset])[:5], 99), offset)
    for file in (tmp_path / "data").glob("view.sqlite3*"):
        file.unlink()
    await asyncio.to_thread(alone.start)
    async with client_of(alone) as client:
        view = (await client.get("/v1/commands/hurt")).json()
        assert view["state"] == "dead_letter"
        assert [step["state"] for step in view["steps"]] == ["succeeded", "succeeded"]


async def test_a_record_that_can_be_read_but_not_applied(alone: Daemon, world: World, tmp_path: Path) -> None:
    """A final state that does not exist: nothing of the record takes effect, and its command is parked."""
    world["stock"].down = True
    async with client_of(alone) as client:
        await client.post("/v1/commands", json=order("hurt"))
    alone.kill()
    rows = Rows(tmp_path)
    offset = rows.put(forged(FINISHED, 1, rows.token, 5, "hurt", "evaporated", None, None))
    await asyncio.to_thread(alone.start)
    async with client_of(alone) as client:
        view = (await client.get("/v1/commands/hurt")).json()
        assert view["state"] == "dead_letter"
        assert "evaporated" in view["error"]["message"]
        (entry,) = await listed(client, 1)
        assert (entry["offset"], entry["effect"], entry["kind"]) == (offset, "parked", "Finished")


# ---------------------------------------------------------------- nobody's bytes


async def test_garbage_is_passed_over_found_at_a_start_or_while_running(alone: Daemon, tmp_path: Path) -> None:
    """Commands before, after and in between are as if it were not there; the list is the same after a restart."""
    rows = Rows(tmp_path)
    async with client_of(alone) as client:
        await client.post("/v1/commands", params={"wait": "10s"}, json=order("before"))
        big = b"\xff" + bytes(10_000)
        places = [rows.put(data) for data in (b"", b'{"json": true}', big)]
        rows.put(forged(FINISHED, 1, b"unknown!", 5, "before", "aborted"))
        view = (await client.post("/v1/commands", params={"wait": "10s"}, json=order("amid"))).json()
        assert view["state"] == "completed"
        live = await listed(client, 3)
    assert [(each["offset"], each["effect"], each["size"]) for each in live] == [
        (places[0], "passed_over", 0),
        (places[1], "passed_over", 14),
        (places[2], "passed_over", 10_001),
    ]
    assert base64.b64decode(live[2]["bytes"]) == big[:4096]
    assert f'"position": "0:{places[0]}"' in alone.text()
    alone.kill()
    rows.put(b"\xff more")
    await asyncio.to_thread(alone.start)
    async with client_of(alone) as client:
        again = await listed(client, 4)
        assert [each for each in again if each["offset"] in places] == live
        for id in ("before", "amid"):
            assert (await client.get(f"/v1/commands/{id}")).json()["state"] == "completed"


async def test_a_forged_record_under_the_token_in_force(alone: Daemon, world: World, tmp_path: Path) -> None:
    """The owner did not write it, so it steps down; the next epoch finds it damaged, parks its command, and goes on:
    once, not for ever."""
    world["stock"].down = True
    rows = Rows(tmp_path)
    async with client_of(alone) as client:
        for id in ("hurt", "well"):
            await client.post("/v1/commands", json=order(id))
        rows.put(forged(OUTCOME, 1, rows.token, 5, "hurt"))
        (entry,) = await listed(client, 1)
        assert (entry["command_id"], entry["effect"]) == ("hurt", "parked")
        world["stock"].down = False
        assert (await client.get("/v1/commands/well", params={"wait": "10s"})).json()["state"] == "completed"
        assert (await client.get("/v1/commands/hurt")).json()["state"] == "dead_letter"
        assert (await client.post("/v1/commands/hurt/abort", json={})).json()["state"] == "aborted"
    assert sum(data[1:2] == b"\x00" for data in rows.all().values()) == 2  # epochs: the first, and one more


async def test_a_bad_value_within_a_record_spoils_no_list(alone: Daemon, world: World, tmp_path: Path) -> None:
    """A payload that is no text inside is shown as its bytes, and its command among the others."""
    world["stock"].down = True
    async with client_of(alone) as client:
        for id in ("hurt", "well"):
            await client.post("/v1/commands", json=order(id))
    alone.kill()
    rows = Rows(tmp_path)
    offset = rows.find(SUBMITTED, "hurt")
    data = rows.all()[offset]
    rows.put(data.replace(b"\x81\xa1n\xa4hurt", b"\x81\xa1n\xa4h\xff\xfet"), offset)
    assert rows.all()[offset] != data
    await asyncio.to_thread(alone.start)
    async with client_of(alone) as client:
        shown = {each["id"]: each for each in (await client.get("/v1/commands")).json()["commands"]}
        assert set(shown) == {"hurt", "well"}
        assert "unreadable" in shown["hurt"]["payload"]


# ---------------------------------------------------------------- what stops


STOPS = {
    "unknown kind": "kind 77 is unknown.*start that one",
    "damaged epoch": r"\(Epoch\) is damaged.*whose records count",
    "an epoch of noise": "no Epoch had",
}


async def test_what_stops_the_daemon_at_its_start(alone: Daemon, world: World, tmp_path: Path) -> None:
    """With one partition there is nothing else to do: exit code 1 and one clear text, no traceback, nothing lost."""
    async with client_of(alone) as client:
        await client.post("/v1/commands", params={"wait": "10s"}, json=order("well"))
    assert await asyncio.to_thread(alone.stop) == 0
    token = Rows(tmp_path).token
    bad = {
        "unknown kind": forged(77, 1, token, 5, "well"),
        "damaged epoch": forged(EPOCH, 1, b"12345678", 5, 6, 7),
        "an epoch of noise": b"\xff",
    }
    for what, says in STOPS.items():
        directory = tmp_path / what.replace(" ", "-")
        shutil.copytree(tmp_path / "data", directory / "data")
        rows = Rows(directory)
        offset = rows.put(bad[what], 0 if what == "an epoch of noise" else None)
        before = rows.all()
        daemon = Daemon(directory, config(directory, world))
        daemon.spawn()
        assert daemon.process is not None
        try:
            assert await asyncio.to_thread(daemon.process.wait, 30) == 1, what
        finally:
            daemon.close()
        assert re.search(rf"partition 0, offset {offset}\).*{says}", daemon.text()), what
        assert "Traceback" not in daemon.text()
        assert {at: data for at, data in rows.all().items() if at in before} == before


# ---------------------------------------------------------------- Kafka: many partitions


class Topic:
    """The coordinator's topic, as any program with Kafka sees it."""

    def __init__(self, bootstrap: str, name: str) -> None:
        self.bootstrap = bootstrap
        self.name = name

    async def put(self, partition: int, *values: bytes | None) -> list[int]:
        """Appends; returns the offsets."""
        producer = AIOKafkaProducer(bootstrap_servers=self.bootstrap)
        await producer.start()
        try:
            told = [await producer.send_and_wait(self.name, value, partition=partition, key=b"x") for value in values]
            return [each.offset for each in told]
        finally:
            await producer.stop()

    async def token(self, partition: int) -> bytes:
        """The one in force at the end."""
        place = TopicPartition(self.name, partition)
        consumer = AIOKafkaConsumer(bootstrap_servers=self.bootstrap)
        await consumer.start()
        try:
            consumer.assign([place])
            await consumer.seek_to_beginning(place)
            end, token = (await consumer.end_offsets([place]))[place], b""
            while await consumer.position(place) < end:
                for record in (await consumer.getmany(place, timeout_ms=200)).get(place, ()):
                    if record.value and record.value[1] == EPOCH:
                        token = array(record.value)[2]
            return token
        finally:
            await consumer.stop()


def ids_of(partition: int, prefix: str, count: int) -> list[str]:
    """Ids that live in a partition."""
    found = (f"{prefix}-{n}" for n in range(10_000) if partition_of(f"{prefix}-{n}", PARTITIONS) == partition)
    return [next(found) for _ in range(count)]


@pytest.fixture
async def grouped(kafka_bootstrap: str, world: World, daemons: list[Daemon], tmp_path: Path) -> tuple[Daemon, Topic]:
    """A daemon on a Kafka topic of three partitions, ready."""
    topic = f"quarantine-{uuid.uuid4().hex}"
    log = (
        f'kind = "kafka"\nbootstrap = "{kafka_bootstrap}"\ntopic = "{topic}"\npartitions = {PARTITIONS}\n'
        f'data_dir = "{tmp_path / "data"}"'
    )
    daemon = Daemon(tmp_path, config(tmp_path, world, log=log, service=PATIENT))
    daemons.append(daemon)
    await asyncio.to_thread(daemon.start)
    return daemon, Topic(kafka_bootstrap, topic)


async def test_strangers_on_the_topic(grouped: tuple[Daemon, Topic], world: World) -> None:
    """Garbage, a message without value and forged records while the daemon runs, and over a restart: all listed, one
    command parked, everything else completes, in every partition."""
    daemon, topic = grouped
    (hurt, *well) = ids_of(1, "o", 3)
    others = [id for partition in (0, 2) for id in ids_of(partition, "p", 2)]
    world["stock"].down = True
    async with client_of(daemon) as client:
        for id in (hurt, *well, *others):
            assert (await client.post("/v1/commands", json=order(id))).status_code == 202
        garbage = await topic.put(1, b"noise", None)
        assert [each["offset"] for each in await listed(client, 2)] == garbage
        await topic.put(1, forged(OUTCOME, 1, await topic.token(1), 5, hurt, "reserve"))
        live = await listed(client, 3)
        assert [each["effect"] for each in live] == ["passed_over", "passed_over", "parked"]
        world["stock"].down = False
        for id in (*well, *others):
            view = (await client.get(f"/v1/commands/{id}", params={"wait": "20s"})).json()
            assert view["state"] == "completed", view
        assert (await client.get(f"/v1/commands/{hurt}")).json()["state"] == "dead_letter"
    assert await asyncio.to_thread(daemon.stop) == 0
    await topic.put(0, b"while it was away")
    await asyncio.to_thread(daemon.start)
    async with client_of(daemon) as client:
        again = await listed(client, 4)
        assert [each for each in again if each["partition"] == 1] == live
        assert (await client.get(f"/v1/commands/{hurt}")).json()["state"] == "dead_letter"
        for id in (*well, *others):
            assert (await client.get(f"/v1/commands/{id}")).json()["state"] == "completed"
        assert (await client.post(f"/v1/commands/{hurt}/abort", json={})).json()["state"] == "aborted"


async def test_a_partition_that_stops_stops_alone(grouped: tuple[Daemon, Topic], world: World) -> None:
    """A record of a newer version under the token in force: that partition's requests are refused at once with the
    reason, whoever waits is told, readiness tells, the others go on; so it is after a restart."""
    daemon, topic = grouped
    gone, awaited = ids_of(1, "g", 2)
    others = [id for partition in (0, 2) for id in ids_of(partition, "h", 2)]
    async with client_of(daemon) as client:
        world["stock"].down = True
        await client.post("/v1/commands", json=order(awaited))
        waiting = asyncio.create_task(client.get(f"/v1/commands/{awaited}", params={"wait": "25s"}))
        began = time.monotonic()
        (offset,) = await topic.put(1, forged(77, 1, await topic.token(1), 5, "x"))
        assert (await waiting).json()["code"] == "corrupt_log"
        assert time.monotonic() - began < 20
        world["stock"].down = False

        async def refused() -> httpx.Response | None:
            answer = await client.post("/v1/commands", json=order(gone))
            return answer if answer.json().get("code") == "corrupt_log" else None

        for turn in range(2):
            answer: httpx.Response = await until(refused)
            assert answer.status_code == 503
            assert "retry-after" in answer.headers
            assert f"partition 1, offset {offset}" in answer.json()["detail"]
            assert "kind 77 is unknown" in answer.json()["detail"]
            for id in others:
                view = (await client.post("/v1/commands", params={"wait": "10s"}, json=order(f"{id}"))).json()
                assert view["state"] == "completed"
            ready = await client.get("/readyz")
            assert ready.status_code == 503
            assert f"offset {offset}" in json.dumps(ready.json())
            (entry,) = await listed(client, 1)
            assert (entry["effect"], entry["position"]) == ("stopped", f"1:{offset}")
            assert 'coordinator_partition_stopped{partition="1"} 1.0' in (await client.get("/metrics")).text
            if turn == 0:
                assert await asyncio.to_thread(daemon.stop) == 0
                daemon.spawn()
                await asyncio.to_thread(daemon.listening)
                await until(lambda: acting(client, others))


async def acting(client: httpx.AsyncClient, ids: Sequence[str]) -> bool:
    """Whether the partitions of these commands are served."""
    answers = []
    for id in ids:
        with contextlib.suppress(httpx.TransportError):
            answers.append((await client.get(f"/v1/commands/{id}")).status_code)
    return answers == [200] * len(ids)
