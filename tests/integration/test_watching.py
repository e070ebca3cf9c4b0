"""Who watches a command, whenever it comes and however often its connection breaks, sees all of it once, in order."""

from __future__ import annotations

import asyncio
from itertools import count
from typing import Any

import grpc.aio
import httpx
import msgspec
import pytest

from coordinator.transport.pb import coordinator_pb2 as pb
from coordinator.transport.pb.coordinator_pb2_grpc import CoordinatorStub
from tests.integration.daemon import Daemon, Service
from tests.integration.strangers import TRANSPORTS, frame, read_frame

pytestmark = pytest.mark.asyncio(loop_scope="module")

STEPS = 20
LONG = {"name": "long", "version": 1, "steps": [{"name": f"s{n}", "service": "stock"} for n in range(STEPS)]}
ALL = ["accepted", *["step"] * STEPS, "final"]
Seen = list[tuple[str, str]]
"""Kind and position of each event but ``state``, which is no record of its own."""
_ids = count(1)


async def start(daemon: Daemon) -> str:
    """Submits a long command and does not wait for it."""
    id = f"long-{next(_ids)}"
    async with httpx.AsyncClient(base_url=daemon.http) as client:
        assert (await client.post("/v1/commands", json={"id": id, "definition": LONG})).status_code == 202
    return id


async def by_http(daemon: Daemon, id: str, after: str | None = None, most: int = 1000) -> Seen:
    """Events until ``final``, or the first ``most`` of them: then the connection is dropped."""
    seen: Seen = []
    headers = {} if after is None else {"last-event-id": after}
    async with (
        httpx.AsyncClient(base_url=daemon.http, timeout=20) as client,
        client.stream("GET", f"/v1/commands/{id}/events", headers=headers) as stream,
    ):
        assert stream.status_code == 200
        async for line in stream.aiter_lines():
            if line.startswith("data: "):
                event = msgspec.json.decode(line[6:])
                if event["kind"] != "state":
                    seen.append((event["kind"], event["position"]))
                if len(seen) == most:
                    break
    return seen


async def by_grpc(daemon: Daemon, id: str) -> Seen:
    async with grpc.aio.insecure_channel(daemon.grpc) as channel:
        watch = CoordinatorStub(channel).Watch(pb.WatchRequest(id=id))
        return [(event.kind, event.position) async for event in watch if event.kind != "state"]


async def by_tcp(daemon: Daemon, id: str) -> Seen:
    reader, writer = await asyncio.open_connection("127.0.0.1", daemon.ports["tcp"])
    writer.write(frame(0, 0, "coordinator", 1, 1) + frame(2, 1, "watch", None, {"id": id}))
    kinds = {4: "accepted", 5: "step", 7: "final"}
    seen: Seen = []
    while not seen or seen[-1][0] != "final":
        received: list[Any] = await read_frame(reader)
        assert received[0] != 10, received
        if received[0] in kinds:
            seen.append((kinds[received[0]], received[3]))
    writer.close()
    return seen


def _calls(stock: Service, id: str) -> int:
    return sum(arrival.key.startswith(f"{id}/") for arrival in stock.arrivals)


WATCHES = dict(zip(TRANSPORTS, (by_http, by_grpc, by_tcp), strict=True))


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_whoever_comes_sees_all_of_it_in_order(daemon: Daemon, stock: Service, transport: str) -> None:
    """Forty watchers come one after the other while it runs: what is told of the past is never overtaken."""
    id = await start(daemon)
    watchers = []
    for n in range(40):
        watchers.append(asyncio.create_task(WATCHES[transport](daemon, id)))
        await stock.until(lambda upto=n // 2: _calls(stock, id) >= upto)
    seen = await asyncio.gather(*watchers)
    assert [kind for kind, _ in seen[0]] == ALL
    offsets = [int(position.partition(":")[2]) for _, position in seen[0]]
    assert offsets == sorted(set(offsets))
    assert [each for each in seen if each != seen[0]] == []


async def test_a_connection_that_breaks_after_every_event_loses_nothing(daemon: Daemon) -> None:
    """Last-Event-ID resumes after the last that was received, under way as at the end."""
    id = await start(daemon)
    whole: Seen = []
    while not whole or whole[-1][0] != "final":
        whole += await by_http(daemon, id, after=whole[-1][1] if whole else None, most=1)
    assert whole == await by_http(daemon, id)
    assert [kind for kind, _ in whole] == ALL
    assert (await by_http(daemon, id, after=whole[-1][1])) == [whole[-1]], "the end is told to whoever asks"


@pytest.mark.parametrize("last", ["x", "0:-1", "0", "7:0", "0:99999999999999999999"])
async def test_a_place_that_is_none_is_refused(daemon: Daemon, last: str) -> None:
    """Also one of a partition that the command is not in: an offset there means nothing here."""
    id = await start(daemon)
    async with httpx.AsyncClient(base_url=daemon.http) as client:
        refused = await client.get(f"/v1/commands/{id}/events", headers={"last-event-id": last})
        assert refused.status_code == 422
        assert refused.json()["faults"][0]["path"] == "Last-Event-ID"
    async with grpc.aio.insecure_channel(daemon.grpc) as channel:
        with pytest.raises(grpc.aio.AioRpcError, match=r"\$\.after"):
            await CoordinatorStub(channel).Watch(pb.WatchRequest(id=id, after=last)).read()


async def test_attributes_are_found_alike_while_it_runs_and_afterwards(daemon: Daemon, stock: Service) -> None:
    """A filter is text; numbers and truths are compared as JSON writes them."""
    values = {"text": "é", "whole": 10, "number": 0.1, "large": 1e20, "truth": True, "falsity": False}
    filters = {"text": "é", "whole": "10", "number": "0.1", "large": "1e+20", "truth": "true", "falsity": "false"}
    stock.gate = asyncio.Event()
    async with httpx.AsyncClient(base_url=daemon.http, timeout=20) as client:
        await client.post("/v1/commands", json={"id": "tagged", "definition": LONG, "attributes": values})

        async def found(**wanted: str) -> list[str]:
            query = {f"attribute.{name}": value for name, value in wanted.items()}
            return [command["id"] for command in (await client.get("/v1/commands", params=query)).json()["commands"]]

        for _ in ("under way", "ended"):
            for name, wanted in filters.items():
                assert await found(**{name: wanted}) == ["tagged"], name
                assert await found(**{name: wanted + "0"}) == []
            assert await found(**filters) == ["tagged"]
            assert await found(**filters, other="x") == []
            stock.gate.set()
            assert (await client.get("/v1/commands/tagged", params={"wait": "20s"})).json()["state"] == "completed"
    stock.gate = None


async def test_pages_hold_every_command_once(daemon: Daemon) -> None:
    """Newest first, through any size of page, also while new ones come in."""
    ids = [await start(daemon) for _ in range(7)]
    async with httpx.AsyncClient(base_url=daemon.http, timeout=20) as client:
        everything = (await client.get("/v1/commands", params={"limit": 1000})).json()["commands"]
        seen: list[str] = []
        cursor = None
        while True:
            await start(daemon)
            query = {"limit": "3"} | ({} if cursor is None else {"cursor": cursor})
            page = (await client.get("/v1/commands", params=query)).json()
            seen += [command["id"] for command in page["commands"]]
            cursor = page["next_cursor"]
            if cursor is None:
                break
    known = [command["id"] for command in everything]
    assert [id for id in seen if id in known] == known
    assert set(known[:7]) == set(ids)
    assert len(seen) == len(set(seen))
