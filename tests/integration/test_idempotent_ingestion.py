"""The same submission again: at once, later, by another transport, after kill -9.  One command, one answer."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from itertools import count
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import httpx
import msgspec
import pytest
import pytest_asyncio

from coordinator.transport.pb import coordinator_pb2 as pb
from coordinator.transport.pb.coordinator_pb2_grpc import CoordinatorStub
from tests.integration.daemon import Daemon, Service, config
from tests.integration.strangers import TRANSPORTS, Stranger, Told, stranger

pytestmark = pytest.mark.asyncio(loop_scope="module")

ORDER = {
    "name": "order",
    "version": 1,
    "steps": [{"name": "reserve", "service": "stock", "path": "/reserve"}],
    "result": "${steps.reserve.id}",
}
WAIT_MS = 20_000
_ids = count(1)


@pytest_asyncio.fixture(loop_scope="module")
async def all_three(daemon: Daemon) -> AsyncIterator[list[Stranger]]:
    async with contextlib.AsyncExitStack() as stack:
        yield [await stack.enter_async_context(stranger(daemon, transport)) for transport in TRANSPORTS]


@pytest.fixture
def id() -> str:
    return f"order-{next(_ids)}"


def submission(id: str, **rest: Any) -> dict[str, Any]:
    return {"id": id, "definition": ORDER, "payload": {"a": 1, "b": [2.5, "x"]}, **rest}


def reserved(stock: Service, id: str) -> int:
    """How often the service was asked to do the step."""
    return stock.keys().count(f"{id}/reserve")


async def history(daemon: Daemon, id: str) -> list[str]:
    async with httpx.AsyncClient(base_url=daemon.http) as client:
        return [record["kind"] for record in (await client.get(f"/v1/commands/{id}/history")).json()]


async def fifty_times(clients: list[Stranger], make: Any) -> list[Told]:
    return await asyncio.gather(*(client.submit(make(n), WAIT_MS) for n in range(50) for client in clients))


async def test_150_at_once_over_three_transports_are_one_command(
    daemon: Daemon, stock: Service, all_three: list[Stranger], id: str
) -> None:
    """One Submitted, one call, equal answers; exactly one of them made it, the others are told that they attached."""
    told = await fifty_times(all_three, lambda _: submission(id))
    assert len({str(each.command) for each in told}) == 1
    assert told[0].state == "completed"
    assert Counter(each.attached for each in told) == {False: 1, True: 149}
    assert await history(daemon, id) == ["Submitted", "Outcome", "Finished"]
    assert reserved(stock, id) == 1


async def test_of_two_payloads_at_once_one_wins_whole(
    daemon: Daemon, stock: Service, all_three: list[Stranger], id: str
) -> None:
    """Everybody with the payload that came first gets its answer, everybody else id_conflict."""
    told = await fifty_times(all_three, lambda n: submission(id, payload={"n": n % 2}))
    by_payload = [{each.code for each in told[3 * n : 3 * n + 3]} for n in range(50)]
    assert sorted((by_payload[0], by_payload[1]), key=str) == sorted(({None}, {"id_conflict"}), key=str)
    assert by_payload == by_payload[:2] * 25
    assert reserved(stock, id) == 1


@pytest.mark.parametrize("again", TRANSPORTS)
@pytest.mark.parametrize("first", TRANSPORTS)
async def test_a_finished_command_answers_every_transport_alike(
    daemon: Daemon, stock: Service, id: str, first: str, again: str
) -> None:
    """Submitted by one, repeated by another; the order of keys in the payload does not count."""
    async with stranger(daemon, first) as client:
        made = await client.submit(submission(id), WAIT_MS)
    async with stranger(daemon, again) as client:
        found = await client.submit(submission(id, payload={"b": [2.5, "x"], "a": 1}), WAIT_MS)
        assert (found.command, found.attached) == (made.command, True)
        found = await client.submit(submission(id))
        assert (found.command, found.attached) == (made.command, True), "also without waiting"
    assert reserved(stock, id) == 1


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_another_request_under_a_taken_id_is_a_conflict(
    daemon: Daemon, stock: Service, id: str, transport: str
) -> None:
    """While it runs, and when it has ended; what only says how to run it may differ."""
    stock.gate = asyncio.Event()
    others = [
        submission(id, payload={"a": 1}),
        submission(id, payload=None),
        submission(id, payload={"a": 1.0, "b": [2.5, "x"]}),
        submission(id, definition={**ORDER, "result": None}),
    ]
    async with stranger(daemon, transport) as client:
        assert (await client.submit(submission(id))).code is None
        for _ in ("running", "ended"):
            assert {(await client.submit(other)).code for other in others} == {"id_conflict"}
            attached = await client.submit(submission(id, attributes={"k": "v"}, timeout="1h"))
            assert (attached.code, attached.attached) == (None, True)
            stock.gate.set()
            await client.submit(submission(id), WAIT_MS)
    stock.gate = None
    assert reserved(stock, id) == 1


async def test_a_repeated_id_is_known_after_kill_9(daemon: Daemon, stock: Service) -> None:
    """Of a finished command as of one that was under way; both keep their answers and refuse another request."""
    ids = [f"order-{next(_ids)}" for _ in range(2)]
    async with stranger(daemon, "tcp") as client:
        ended = await client.submit(submission(ids[0]), WAIT_MS)
        stock.gate = asyncio.Event()
        await client.submit(submission(ids[1]))
        await stock.until(lambda: reserved(stock, ids[1]) == 1)
    daemon.kill()
    stock.gate.set()
    stock.gate = None
    await asyncio.to_thread(daemon.start)
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(stranger(daemon, transport)) for transport in TRANSPORTS]
        found = await fifty_times(clients, lambda n: submission(ids[n % 2]))
        assert {each.attached for each in found} == {True}
        assert [each.command for each in found[:3]] == [ended.command] * 3
        assert len({str(each.command) for each in found}) == 2
        refused = await fifty_times(clients, lambda n: submission(ids[n % 2], payload=n))
        assert {each.code for each in refused} == {"id_conflict"}
    assert reserved(stock, ids[0]) == 1


async def test_refusals_that_may_be_repeated_say_when(daemon: Daemon, all_three: list[Stranger], id: str) -> None:
    """A suspended service: the same code and a delay on every transport, and afterwards the same id goes through."""
    async with httpx.AsyncClient(base_url=daemon.http) as operator:
        await operator.post("/v1/services/stock/breaker", json={"state": "open"})
        for client in all_three:
            refused = await client.submit(submission(id))
            assert refused.code == "suspended"
            assert (refused.retry_after_ms or 0) > 0
        assert (await operator.get(f"/v1/commands/{id}")).status_code == 404
        await operator.post("/v1/services/stock/breaker", json={"state": "auto"})
    told = [await client.submit(submission(id), WAIT_MS) for client in all_three]
    assert [each.state for each in told] == ["completed"] * 3
    assert [each.attached for each in told] == [False, True, True]


async def tcp_hello(daemon: Daemon) -> dict[str, Any]:
    """The options of the server's Hello."""
    reader, writer = await asyncio.open_connection("127.0.0.1", daemon.ports["tcp"])
    hello = msgspec.msgpack.encode([0, 0, "coordinator", 1, 1])
    writer.write(len(hello).to_bytes(4, "big") + hello)
    size = int.from_bytes(await reader.readexactly(4), "big")
    options: dict[str, Any] = msgspec.msgpack.decode(await reader.readexactly(size))[6]
    writer.close()
    return options


async def test_every_transport_says_for_how_long_an_id_is_known(stock: Service, tmp_path: Path) -> None:
    """As the setting says, also where the log is kept for less; and as a metric."""
    for dedupe, retain, told_s in (("90m", "0ms", 5400), ("90m", "30m", 5400), ("30m", "7d", 1800)):
        directory = tmp_path / f"{dedupe}-{retain}"
        log = f'data_dir = "{directory / "data"}"\nretain = "{retain}"'
        text = config(directory, {"stock": stock}, engine=f'dedupe_horizon = "{dedupe}"', log=log)
        daemon = Daemon(directory, text)
        try:
            await asyncio.to_thread(daemon.start)
            async with httpx.AsyncClient(base_url=daemon.http) as client:
                for _ in range(2):
                    answer = await client.post("/v1/commands", json=submission("horizon"))
                    assert answer.headers["coordinator-dedupe-horizon"] == str(told_s)
                assert f"coordinator_dedupe_horizon_seconds {told_s}.0" in (await client.get("/metrics")).text
            assert (await tcp_hello(daemon))["dedupe_horizon_ms"] == told_s * 1000
            async with grpc.aio.insecure_channel(daemon.grpc) as channel:
                asked = pb.Submission(id="c-2", definition_json=msgspec.json.encode(ORDER), payload_json=b"{}")
                call = CoordinatorStub(channel).Submit(pb.SubmitRequest(submission=asked))
                assert ("coordinator-dedupe-horizon", str(told_s)) in [*await call.trailing_metadata()]
        finally:
            daemon.close()
