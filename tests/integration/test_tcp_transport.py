"""The TCP transport of a real daemon, in raw frames: the promises of proto/tcp.md as a stranger would test them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from coordinator_client import AsyncClient, ConnectionLost, IdConflict, InvalidPayload

from tests.integration.daemon import Daemon, Service, config, services

INVALID = json.loads((Path(__file__).parents[2] / "proto" / "vectors" / "invalid.json").read_text())["frames"]
DEFINITION = {
    "name": "order",
    "version": 1,
    "steps": [
        {"name": "reserve", "service": "stock", "path": "/reserve", "body": {"n": "${payload.n}"}},
        {"name": "charge", "service": "stock", "path": "/charge", "body": {}},
    ],
    "result": "${steps.charge}",
}


class Raw:
    """A TCP client made of nothing but the document."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.limits: dict[str, Any] = {}

    def send(self, *frames: list[Any]) -> None:
        for frame in frames:
            body = msgspec.msgpack.encode(frame)
            self.writer.write(len(body).to_bytes(4, "big") + body)

    async def read(self) -> list[Any]:
        length = int.from_bytes(await self.reader.readexactly(4), "big")
        frame: list[Any] = msgspec.msgpack.decode(await self.reader.readexactly(length))
        return frame

    async def read_until(self, kind: int) -> list[list[Any]]:
        """Frames up to the first of that type, which is the last."""
        frames = [await self.read()]
        while frames[-1][0] != kind:
            frames.append(await self.read())
        return frames


@contextlib.asynccontextmanager
async def connected(daemon: Daemon, hello: bool = True) -> AsyncIterator[Raw]:
    """A connection to the daemon, after both Hellos."""
    raw = Raw(*await asyncio.open_connection("127.0.0.1", daemon.ports["tcp"]))
    try:
        if hello:
            raw.send([0, 0, "coordinator", 1, 1, "test", {}])
            answer = await raw.read()
            assert answer[:5] == [0, 0, "coordinator", 1, 1]
            raw.limits = answer[6]
        async with asyncio.timeout(30):
            yield raw
    finally:
        raw.writer.close()
        with contextlib.suppress(ConnectionError):
            await raw.writer.wait_closed()


@pytest.fixture
async def stock() -> AsyncIterator[Service]:
    """A service that answers whatever it is told."""
    async with services("stock") as started:
        yield started["stock"]


@pytest.fixture
def daemon(tmp_path: Path, stock: Service) -> Iterator[Daemon]:
    """A daemon on an empty log."""
    daemon = Daemon(tmp_path, config(tmp_path, {"stock": stock}))
    try:
        yield daemon
    finally:
        daemon.close()


def submit(seq: int, want: str, id: str, n: int = 1, deadline_ms: int | None = None) -> list[Any]:
    return [1, seq, want, deadline_ms, {"id": id, "definition": DEFINITION, "payload": {"n": n}}]


def unhex(text: str) -> bytes:
    return bytes.fromhex(re.sub(r"\{(\w\w)\*(\d+)\}", lambda found: found[1] * int(found[2]), text))


async def test_a_command_is_told_from_acceptance_to_its_end(daemon: Daemon, stock: Service) -> None:
    """Each `want` gets its frames, in log order, and the end is the command as HTTP shows it."""
    await asyncio.to_thread(daemon.start)
    async with connected(daemon) as raw:
        raw.send(submit(1, "events", "c-1"))
        frames = await raw.read_until(7)
        assert [frame[0] for frame in frames if frame[0] != 6] == [4, 5, 5, 7]
        assert [frame[5]["step"] for frame in frames if frame[0] == 5] == ["reserve", "charge"]
        view = frames[-1][4]
        assert (view["state"], view["result"]["path"]) == ("completed", "/charge")
        raw.send(submit(2, "final", "c-1"))
        attached = await raw.read_until(7)
        assert [frame[0] for frame in attached] == [4, 7]
        assert attached[0][4] is True
        raw.send(submit(3, "accepted", "c-2"))
        assert (await raw.read())[:3] == [4, 3, "c-2"]
        raw.send([2, 4, "get", None, {"id": "c-2", "wait_ms": 10_000}])
        assert (await raw.read())[2]["state"] == "completed"
    assert len(stock.arrivals) == 4


async def test_data_and_a_decision_are_requests_like_any_other(daemon: Daemon) -> None:
    """As the document has them: params that may be left out are, and every refusal has its code and members."""
    await asyncio.to_thread(daemon.start)
    asks = {"name": "approve", "decision": {"roles": ["manager"]}}
    definition = {"name": "asks", "version": 1, "steps": [{"name": "otp", "data": "otp"}, asks]}
    async with connected(daemon) as raw:

        async def asked(operation: str, **params: Any) -> Any:
            raw.send([2, 9, operation, None, params])
            answer = await raw.read()
            return answer[2] if answer[0] == 8 else (answer[2], answer[7])

        async def waits_for(name: str) -> None:
            while (view := await asked("get", id="c-1"))["waiting_for"] != [name]:
                assert view["state"] in ("running", "waiting"), view

        raw.send([1, 1, "accepted", None, {"id": "c-1", "definition": definition, "delay": "1ms"}])
        assert (await raw.read())[0] == 4
        await waits_for("otp")
        assert (await asked("provide", id="c-1", name="colour", value=1))[0] == "unknown_step"
        assert (await asked("provide", id="c-1", name="otp", value=None))["id"] == "c-1"
        await waits_for("approve")
        assert [each["command_id"] for each in await asked("decisions")] == ["c-1"]
        code, extra = await asked("decide", id="c-1", step="approve", approve=True)
        assert (code, extra["roles"]) == ("forbidden", ["manager"])
        await asked("decide", id="c-1", step="approve", approve=True, by="ann", roles=["manager", "clerk"])
        code, extra = await asked("decide", id="c-1", step="approve", approve=True, by="ann", roles=["manager"])
        assert (code, extra["decided"]["by"]) == ("illegal_state", "ann")
        view = await asked("get", id="c-1", wait_ms=20_000)
        assert (view["state"], view["revision"], view["waiting_for"]) == ("completed", 1, [])
        assert (await asked("resolve", id="c-1", step="approve"))[0] == "illegal_state"
        assert (await asked("schedule", name="nope"))[0] == "unknown_schedule"
        assert await asked("schedules") == []


async def test_wrong_input_gets_what_the_vectors_promise_and_hurts_nobody(daemon: Daemon) -> None:
    """Every invalid vector is answered as written, while another client's connection goes on undisturbed."""
    await asyncio.to_thread(daemon.start)
    async with connected(daemon) as bystander:
        for vector in INVALID:
            async with connected(daemon, hello=vector["state"] != "new") as raw:
                data = unhex(vector["hex"])
                if vector["name"] == "a length just above the limit":  # the vectors' limit is not this daemon's
                    data = (raw.limits["frame_bytes_max"] + 1).to_bytes(4, "big")
                raw.writer.write(data)
                frame = await raw.read()
                assert [10, vector["error"]["seq"], vector["error"]["code"]] == frame[:3], vector["name"]
                if "path" in vector["error"]:
                    assert frame[7]["faults"][0]["path"] == vector["error"]["path"], vector["name"]
                if vector["closes"]:
                    assert await raw.reader.read() == b"", vector["name"]
                else:
                    raw.send([11, 3])
                    assert await raw.read() == [12, 3], vector["name"]
        bystander.send(submit(1, "final", "fine"))
        assert (await bystander.read_until(7))[-1][4]["state"] == "completed"


async def test_a_caller_that_stops_waiting_does_not_stop_the_command(daemon: Daemon, stock: Service) -> None:
    """Deadline, Forget and a lost connection end the waiting only; each command is found completed."""
    await asyncio.to_thread(daemon.start)
    stock.gate = asyncio.Event()
    async with connected(daemon) as raw:
        raw.send(submit(1, "final", "late", deadline_ms=100), submit(2, "final", "forgotten"), [3, 2])
        raw.send(submit(3, "final", "lost"))
        late = await raw.read_until(10)
        assert late[-1][1:3] == [1, "deadline_exceeded"]
    stock.gate.set()
    async with AsyncClient(daemon.tcp) as client:
        assert [(await client.wait(id, "20s")).state for id in ("late", "forgotten", "lost")] == ["completed"] * 3


async def test_draining_says_go_away_answers_what_is_open_and_refuses_the_rest(daemon: Daemon, stock: Service) -> None:
    """SIGTERM: GoAway, the open command's end, `stopping` for new ones, exit 0."""
    await asyncio.to_thread(daemon.start)
    stock.gate = asyncio.Event()
    async with connected(daemon) as raw:
        raw.send(submit(1, "final", "open"))
        assert (await raw.read())[0] == 4
        daemon.signal(signal.SIGTERM)
        assert (await raw.read())[0] == 13
        raw.send(submit(2, "final", "new"))
        assert (await raw.read())[:3] == [10, 2, "stopping"]
        stock.gate.set()
        last = [await raw.read()]
        while last[-1][0] != 7 and last[-1][1] != 0:
            last.append(await raw.read())
    assert daemon.process is not None
    assert await asyncio.to_thread(daemon.process.wait, 30) == 0
    await asyncio.to_thread(daemon.start)
    async with AsyncClient(daemon.tcp) as client:
        assert (await client.wait("open", "20s")).ok


@pytest.mark.parametrize("scheme", ["tcp", "http"])
async def test_the_client_waits_through_a_kill_and_a_restart(daemon: Daemon, stock: Service, scheme: str) -> None:
    """kill -9 in the middle of twenty commands: the client reconnects, attaches by id, and gets every end once."""
    await asyncio.to_thread(daemon.start)
    stock.gate = asyncio.Event()
    async with AsyncClient(getattr(daemon, scheme), deadline="60s") as client:
        calls = [
            asyncio.create_task(client.submit(definition=DEFINITION, payload={"n": n}, id=f"c-{n}", wait="60s"))
            for n in range(20)
        ]
        await stock.until(lambda: len({arrival.key for arrival in stock.arrivals}) == 20)
        await asyncio.to_thread(daemon.kill)
        stock.gate.set()
        await asyncio.to_thread(daemon.start)
        commands = await asyncio.gather(*calls)
        assert [command.state for command in commands] == ["completed"] * 20
        assert len(stock.remembered) == 40
        assert {command.id async for command in client.list(limit=50, page=7)} == {f"c-{n}" for n in range(20)}
        kinds = [event.kind async for event in client.watch("c-1")]
        assert (kinds[0], kinds.count("step"), kinds[-1]) == ("accepted", 2, "final")
        outcomes = [outcome async for outcome in client.outcomes("stock")]
        assert len(outcomes) == 40


@pytest.mark.parametrize("scheme", ["tcp", "http"])
async def test_both_protocols_refuse_alike(daemon: Daemon, scheme: str) -> None:
    """The same mistake is the same class of error, whichever way it went."""
    await asyncio.to_thread(daemon.start)
    async with AsyncClient(getattr(daemon, scheme)) as client:
        await client.submit(definition=DEFINITION, payload={"n": 1}, id="taken", wait="20s")
        with pytest.raises(IdConflict):
            await client.submit(definition=DEFINITION, payload={"n": 2}, id="taken")
        with pytest.raises(InvalidPayload) as caught:
            await client.submit(definition=DEFINITION, id="no spaces allowed")
        assert caught.value.faults[0]["path"] == "$.id"
        assert await client.put_definition("order", 1, DEFINITION)
        assert not await client.put_definition("order", 1, DEFINITION)
        assert (await client.get_definition("order"))["steps"]
        assert "reserve" in await client.diagram("taken")
        assert await client.history("taken")
        assert await client.services()
        assert await client.cluster()
        assert await client.dead_letters() == []
        assert await client.quarantine() == []
        assert [row["why"] for row in await client.log()] == ["everything is kept: [log] retain is not set"]


async def test_no_daemon_is_a_lost_connection_within_the_callers_patience(daemon: Daemon) -> None:
    """A server that is not there is reported when the deadline has passed, not before and not never."""
    async with AsyncClient("tcp://127.0.0.1:9", deadline="200ms") as client:
        with pytest.raises(ConnectionLost, match="cannot reach"):
            await client.cluster()
