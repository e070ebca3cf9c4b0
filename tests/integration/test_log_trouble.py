"""The log in trouble, the daemon from outside: clients are told, no service is called, and it recovers by itself."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import shutil
import signal
import socket
import sqlite3
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import msgspec

from coordinator.testing.kafka import Cluster
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


def order(id: str) -> dict[str, Any]:
    return {"id": id, "definition": ORDER, "payload": {}}


async def started(daemons: list[Daemon], directory: Path, text: str) -> Daemon:
    daemon = Daemon(directory, text)
    daemons.append(daemon)
    return await asyncio.to_thread(daemon.start)


async def until_ready(client: httpx.AsyncClient) -> None:
    async with asyncio.timeout(20):
        while (await client.get("/readyz")).status_code != 200:
            pass


async def refusal(client: httpx.AsyncClient, prefix: str) -> httpx.Response:
    """Submits until that is refused; what was accepted before counts."""
    async with asyncio.timeout(20):
        for number in range(10_000):
            answer = await client.post("/v1/commands", json=order(f"{prefix}-{number}"))
            if answer.status_code != 202:
                return answer
    raise AssertionError("never refused")


def assert_log_unavailable(answer: httpx.Response) -> None:
    assert answer.status_code == 503
    assert answer.json()["code"] == "log_unavailable"
    assert "retry-after" in answer.headers


async def test_a_lock_of_another_process(world: World, daemons: list[Daemon], tmp_path: Path) -> None:
    """While it is held nothing is accepted or called; then the daemon goes on, and who waited all along is answered."""
    daemon = await started(daemons, tmp_path, config(tmp_path, world))
    world["payments"].gate = asyncio.Event()
    async with httpx.AsyncClient(base_url=daemon.http, timeout=30) as client:
        waiting = asyncio.create_task(client.post("/v1/commands", params={"wait": "20s"}, json=order("before")))
        await world["payments"].until(lambda: bool(world["payments"].arrivals))
        other = sqlite3.connect(tmp_path / "data" / "log.sqlite3", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        assert_log_unavailable(await client.post("/v1/commands", json=order("during")))
        assert (await client.get("/readyz")).status_code == 503
        assert (await client.get("/healthz")).status_code == 200
        assert world["stock"].keys() == ["before/reserve"]
        world["payments"].gate.set()
        other.execute("ROLLBACK")
        other.close()
        assert (await waiting).json()["state"] == "completed"
        again = await client.post("/v1/commands", params={"wait": "10s"}, json=order("during"))
        assert again.json()["state"] == "completed"


async def test_a_full_disk(world: World, daemons: list[Daemon], tmp_path: Path) -> None:
    """No file may grow: commands are refused, the daemon stays; with room again it goes on, and nothing was lost."""
    daemon = await started(daemons, tmp_path, config(tmp_path, world))
    assert daemon.process is not None
    pid, unlimited = daemon.process.pid, resource.RLIM_INFINITY
    async with httpx.AsyncClient(base_url=daemon.http, timeout=30) as client:
        await client.post("/v1/commands", params={"wait": "5s"}, json=order("early"))
        size = (tmp_path / "data" / "log.sqlite3-wal").stat().st_size
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (size + 16_384, unlimited))
        refused = await refusal(client, "full")
        assert_log_unavailable(refused)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (unlimited, unlimited))
        await until_ready(client)
        late = await client.post("/v1/commands", params={"wait": "10s"}, json=order("late"))
        assert late.json()["state"] == "completed"
        listed = (await client.get("/v1/commands", params={"limit": 1000})).json()["commands"]
        for each in listed:
            assert (await client.get(f"/v1/commands/{each['id']}", params={"wait": "10s"})).json()[
                "state"
            ] == "completed"
    assert "Traceback" not in daemon.text()


async def test_a_log_that_is_moved_away_while_it_is_open(world: World, daemons: list[Daemon], tmp_path: Path) -> None:
    """Appends to a file without a name would be lost with the process, so none is confirmed; put back, it serves."""
    daemon = await started(daemons, tmp_path, config(tmp_path, world))
    file = tmp_path / "data" / "log.sqlite3"
    async with httpx.AsyncClient(base_url=daemon.http, timeout=30) as client:
        file.rename(tmp_path / "away")
        refused = await refusal(client, "gone")
        assert_log_unavailable(refused)
        assert "was deleted or moved" in refused.json()["detail"]
        (tmp_path / "away").rename(file)
        await until_ready(client)
        late = await client.post("/v1/commands", params={"wait": "10s"}, json=order("late"))
        assert late.json()["state"] == "completed"


async def test_a_daemon_that_was_stopped_wakes_up_fenced_and_later_takes_over(
    world: World, daemons: list[Daemon], tmp_path: Path
) -> None:
    """SIGSTOP, another takes over, SIGCONT: the sleeper calls nobody; when the other is killed it serves again."""
    text = config(tmp_path, world, service=PATIENT)
    sleeper = await started(daemons, tmp_path / "a", text)
    world["payments"].down = True
    ids = [f"o-{n}" for n in range(40)]
    async with httpx.AsyncClient(timeout=30) as client:
        await asyncio.gather(*(client.post(f"{sleeper.http}/v1/commands", json=order(id)) for id in ids))
        await world["payments"].until(lambda: len(set(world["payments"].keys())) == 40)
        sleeper.signal(signal.SIGSTOP)
        second = await started(daemons, tmp_path / "b", text)
        for id in ids[:10]:
            assert (await client.post(f"{second.http}/v1/commands/{id}/cancel", json={})).status_code == 200
        sleeper.signal(signal.SIGCONT)
        async with asyncio.timeout(10):
            while (answer := await client.get(f"{sleeper.http}/v1/commands/o-39")).status_code == 200:
                pass
        assert answer.json()["code"] == "no_owner"
        world["payments"].down = False
        views = [await client.get(f"{second.http}/v1/commands/{id}", params={"wait": "10s"}) for id in ids]
        assert Counter(view.json()["state"] for view in views) == {"compensated": 10, "completed": 30}
        for service in world.values():
            newest: dict[str, tuple[int, ...]] = {}
            for arrival in service.arrivals:
                assert arrival.fence >= newest.get(arrival.key, (0,)), "a call of the sleeper after the take-over"
                newest[arrival.key] = arrival.fence
        second.kill()
        async with httpx.AsyncClient(base_url=sleeper.http, timeout=30) as first:
            await until_ready(first)
            assert (await first.get("/v1/commands/o-39")).json()["state"] == "completed"
            late = await first.post("/v1/commands", params={"wait": "10s"}, json=order("late"))
            assert late.json()["state"] == "completed"


async def test_a_second_sigterm_stops_at_once_and_loses_nothing(
    world: World, daemons: list[Daemon], tmp_path: Path
) -> None:
    """The drain waits for a call that hangs; told again, the daemon leaves it, and the next one goes on with it."""
    daemon = await started(daemons, tmp_path, config(tmp_path, world))
    world["payments"].gate = asyncio.Event()
    assert daemon.process is not None
    async with httpx.AsyncClient(base_url=daemon.http, timeout=30) as client:
        waiting = asyncio.create_task(client.post("/v1/commands", params={"wait": "20s"}, json=order("o")))
        await world["payments"].until(lambda: bool(world["payments"].arrivals))
        daemon.signal(signal.SIGTERM)
        async with asyncio.timeout(5):
            while (await client.get("/readyz")).status_code == 200:
                pass
        assert (await client.post("/v1/commands", json=order("late"))).json()["code"] == "stopping"
        assert daemon.process.poll() is None
        began = time.monotonic()
        daemon.signal(signal.SIGTERM)
        assert await asyncio.to_thread(daemon.process.wait, 10) == 0
        assert time.monotonic() - began < 3
        assert (await waiting).json()["code"] == "stopping"
        world["payments"].gate.set()
        await asyncio.to_thread(daemon.start)
        assert (await client.get("/v1/commands/o", params={"wait": "10s"})).json()["state"] == "completed"
        assert (await client.get("/v1/commands/late")).status_code == 404


async def test_the_view_can_be_anything_at_the_start(world: World, daemons: list[Daemon], tmp_path: Path) -> None:
    """Deleted, garbage, half, damaged inside, or of another log: finished commands are found again all the same."""
    daemon = await started(daemons, tmp_path, config(tmp_path, world))
    view = tmp_path / "data" / "view.sqlite3"
    other = await started(daemons, tmp_path / "other", config(tmp_path / "other", world))
    async with httpx.AsyncClient(timeout=30) as client:
        stranger = {**order("o-3"), "payload": {"another": "payload"}}
        await client.post(f"{other.http}/v1/commands", params={"wait": "10s"}, json=stranger)
        for n in range(30):
            await client.post(f"{daemon.http}/v1/commands", params={"wait": "10s"}, json=order(f"o-{n}"))
    assert await asyncio.to_thread(other.stop) == 0

    def damage(start: int) -> None:
        data = bytearray(view.read_bytes())
        for at in range(start, len(data), 8192):
            data[at : at + 4096] = b"\xa5" * 4096
        view.write_bytes(data)

    troubles = [
        view.unlink,
        lambda: view.write_bytes(b"no database" * 1000),
        lambda: view.write_bytes(view.read_bytes()[:20_000]),
        lambda: damage(8192),
        lambda: shutil.copy(tmp_path / "other" / "data" / "view.sqlite3", view),
    ]
    for trouble in troubles:
        assert await asyncio.to_thread(daemon.stop) == 0
        trouble()
        await asyncio.to_thread(daemon.start)
        async with httpx.AsyncClient(base_url=daemon.http, timeout=30) as client:
            for n in range(30):
                while (found := await client.get(f"/v1/commands/o-{n}")).status_code == 503:
                    assert found.json()["retry_after_ms"] > 0
                assert found.json()["state"] == "completed"
            while (page := await client.get("/v1/commands")).status_code == 503:
                pass
            assert len(page.json()["commands"]) == 30
            assert (await client.post("/v1/commands", json=order("o-3"))).status_code == 200, "the same again"


async def test_sigterm_is_heard_while_kafka_is_waited_for(daemons: list[Daemon], tmp_path: Path) -> None:
    """A broker that takes connections and says nothing: the daemon can be stopped before its patience ends."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        log = f'kind = "kafka"\nbootstrap = "127.0.0.1:{silent.getsockname()[1]}"\ntopic = "t"\ndata_dir = "{tmp_path}"'
        daemon = Daemon(tmp_path, config(tmp_path, {}, log=log))
        daemons.append(daemon)
        daemon.spawn()
        silent.settimeout(10)
        (await asyncio.to_thread(silent.accept))[0].close()
        assert await asyncio.to_thread(daemon.stop, 5) == 0


async def test_a_broker_that_hangs_and_one_that_is_killed(world: World, daemons: list[Daemon], tmp_path: Path) -> None:
    """Under load: `log_unavailable` within the append timeout, no call meanwhile, and all goes on when it is back."""
    with Cluster(tmp_path / "kafka") as cluster:
        log = (
            f'kind = "kafka"\nbootstrap = "{cluster.bootstrap}"\ntopic = "t"\npartitions = 2\nappend_timeout = "1s"\n'
            f'data_dir = "{tmp_path / "data"}"'
        )
        daemon = await started(daemons, tmp_path, config(tmp_path, world, log=log))
        async with httpx.AsyncClient(base_url=daemon.http, timeout=30) as client:
            accepted = [f"early-{n}" for n in range(20)]
            for id in accepted:
                assert (await client.post("/v1/commands", json=order(id))).status_code == 202
            for begin, end in ((cluster.pause, cluster.resume), (cluster.kill, cluster.revive)):
                begin(1)
                name = begin.__name__
                asked = [client.post("/v1/commands", json=order(f"{name}-{n}")) for n in range(20)]
                began = time.monotonic()
                for answer in await asyncio.gather(*asked):
                    assert_log_unavailable(answer)
                assert time.monotonic() - began < 4
                await asyncio.gather(
                    *(service.until(lambda s=service: s.concurrent == 0) for service in world.values())
                )
                calls = sum(len(service.arrivals) for service in world.values())
                assert (await client.post("/v1/commands", json=order(f"{name}-late"))).status_code == 503
                assert sum(len(service.arrivals) for service in world.values()) == calls
                await asyncio.to_thread(end, 1)
                await until_ready(client)
                for n in range(20):
                    await client.post("/v1/commands", json=order(f"{name}-{n}"))
                accepted += [f"{name}-{n}" for n in range(20)]
            views = [await client.get(f"/v1/commands/{id}", params={"wait": "10s"}) for id in accepted]
            assert Counter(view.json()["state"] for view in views) == {"completed": 60}
        assert len(world["payments"].remembered) == 60


async def test_a_record_of_a_newer_version_in_the_tail_stops_the_daemon(
    world: World, daemons: list[Daemon], tmp_path: Path
) -> None:
    """Found while running, it is what it is at a start: told by offset and kind, nothing skipped, nobody called."""
    daemon = await started(daemons, tmp_path, config(tmp_path, world))
    assert daemon.process is not None
    async with httpx.AsyncClient(base_url=daemon.http, timeout=30) as client:
        await client.post("/v1/commands", params={"wait": "5s"}, json=order("o-1"))
        with sqlite3.connect(tmp_path / "data" / "log.sqlite3") as log:
            (end,) = log.execute("SELECT max(offset) + 1 FROM log_0").fetchone()
            (epoch,) = log.execute("SELECT data FROM log_0 WHERE offset = 0").fetchone()
            token = msgspec.msgpack.decode(epoch)[2]
            log.execute("INSERT INTO log_0 VALUES (?, ?)", (end, msgspec.msgpack.encode([77, 1, token, 5])))
        log.close()
        with contextlib.suppress(httpx.TransportError):  # it may have found it by itself
            assert (await client.post("/v1/commands", json=order("o-2"))).status_code == 503
    assert await asyncio.to_thread(daemon.process.wait, 10) == 1
    assert f"offset {end}" in daemon.text()
    assert "Traceback" not in daemon.text()
    assert "o-2/reserve" not in world["stock"].keys()  # noqa: SIM118
