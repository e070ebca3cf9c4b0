"""What an operator sees from outside: metrics that move and hold no ids, logs that machines read, explanations."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio
from prometheus_client.parser import text_string_to_metric_families

from tests.integration.daemon import Daemon, Service
from tests.integration.strangers import TRANSPORTS, stranger

pytestmark = pytest.mark.asyncio(loop_scope="module")

ORDER: dict[str, Any] = {
    "name": "order",
    "version": 1,
    "steps": [{"name": "reserve", "service": "stock", "path": "/reserve", "undo": {"path": "/release"}}],
}
LABELS = {"code", "generation", "implementation", "le", "major", "minor", "name", "partition", "patchlevel", "service"}
LABELS |= {"state", "transport", "type", "verdict", "version"}
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(daemon: Daemon) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=daemon.http, timeout=20) as client:
        yield client


async def scrape(client: httpx.AsyncClient) -> Samples:
    text = (await client.get("/metrics")).text
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples.get((f"coordinator_{name}", frozenset(labels.items())), 0.0)


async def test_counters_move_with_what_happens(daemon: Daemon, client: httpx.AsyncClient, stock: Service) -> None:
    """Submissions, ends, refusals, calls, appends, and connections and requests of each transport."""
    before = await scrape(client)
    await client.put("/v1/definitions/order/1", json=ORDER)
    for transport in TRANSPORTS:
        async with stranger(daemon, transport) as each:
            assert (await each.submit({"type": "order", "id": f"m-{transport}"}, 20_000)).state == "completed"
            assert (await each.submit({"type": "nope"})).code == "unknown_type"
            open_now = value(await scrape(client), "connections", transport=transport)
            assert open_now == {"http": 2, "grpc": 0, "tcp": 1}[transport], "gRPC's connections are not ours to see"
    stock.answers["/reserve"] = [409]
    await client.post("/v1/commands", params={"wait": "20s"}, json={"type": "order", "id": "m-declined"})
    after = await scrape(client)

    def moved(name: str, **labels: str) -> float:
        return value(after, name, **labels) - value(before, name, **labels)

    assert moved("commands_submitted_total", type="order") == 4
    assert moved("commands_finished_total", type="order", state="completed") == 3
    assert moved("commands_finished_total", type="order", state="failed") == 1
    assert moved("commands_refused_total", code="unknown_type") == 3
    assert moved("calls_total", service="stock", verdict="outcome") == 3
    assert moved("calls_total", service="stock", verdict="failure") == 1
    assert moved("call_seconds_count", service="stock") == 4
    assert moved("command_seconds_count") == 4
    assert moved("append_records_sum") == 13, "a definition, and three records a command"
    assert moved("log_end_offset", partition="0") == 13
    assert [moved("requests_total", transport=transport) >= 2 for transport in TRANSPORTS] == [True] * 3
    assert moved("connections_opened_total", transport="tcp") == 1


async def test_gauges_tell_how_things_stand(client: httpx.AsyncClient, stock: Service) -> None:
    """Commands by state, slots, breakers, suspension, readiness: as they are at each scrape."""
    stock.gate = asyncio.Event()
    await client.post("/v1/commands", json={"definition": ORDER, "id": "held"})
    await stock.until(lambda: "held/reserve" in stock.keys())  # noqa: SIM118 - keys() is the harness's list of calls
    samples = await scrape(client)
    assert value(samples, "commands", state="running") == 1
    assert value(samples, "slots_used") == 1
    assert value(samples, "calls_in_flight", service="stock") == 1
    assert value(samples, "ready") == 1
    await client.post("/v1/services/stock/breaker", json={"state": "open"})
    samples = await scrape(client)
    assert value(samples, "breaker_state", service="stock", state="open") == 1
    assert value(samples, "suspended_services") == 1
    await client.post("/v1/services/stock/breaker", json={"state": "auto"})
    stock.gate.set()
    stock.gate = None
    await client.get("/v1/commands/held", params={"wait": "20s"})
    samples = await scrape(client)
    assert (value(samples, "commands", state="running"), value(samples, "slots_used")) == (0, 0)


async def test_labels_are_bounded_and_hold_no_id(client: httpx.AsyncClient) -> None:
    """Whatever strangers send as ids, types, paths: the series stay the same."""
    await client.get("/v1/commands/secret-id-0")
    before = set(await scrape(client))
    for n in range(20):
        await client.get(f"/v1/commands/secret-id-{n}")
        await client.get(f"/v1/outcomes?service=secret-{n}")
        await client.post("/v1/commands", json={"type": f"secret-{n}"})
        await client.post("/v1/commands", params={"wait": "20s"}, json={"definition": ORDER, "id": f"secret-id-{n}"})
    after = await scrape(client)
    assert {name for name, _ in set(after) - before} <= {"coordinator_commands_refused_total"}
    assert {label for _, labels in after for label, _ in labels} <= LABELS
    assert not [text for _, labels in after for _, text in labels if "secret" in text]


async def test_logs_are_json_lines(daemon: Daemon, client: httpx.AsyncClient) -> None:
    """Each with event, level and time; a client's mistakes are not the operator's warnings."""
    await client.post("/v1/commands", content=b"{")
    await client.get("/nowhere")
    async with stranger(daemon, "tcp") as tcp:
        await tcp.submit({"type": "\n\x1b[31mnope"})
    lines = [json.loads(line) for line in daemon.text().splitlines()]
    assert all({"event", "level", "timestamp"} <= set(line) for line in lines)
    assert [line for line in lines if line["level"] not in ("info", "debug")] == []
    assert [line["event"] for line in lines if line["event"] in ("listening", "ready")] == ["listening", "ready"]


async def test_an_explanation_says_what_it_waits_for(client: httpx.AsyncClient, stock: Service) -> None:
    """Step, service, attempts, the breaker, when next; and since when."""
    stock.down = True
    await client.post("/v1/commands", json={"definition": ORDER, "id": "stuck"})
    async with asyncio.timeout(10):
        told: dict[str, Any] = {"state": ""}
        while told["state"] != "blocked":
            told = (await client.get("/v1/commands/stuck/explain")).json()
    (wait,) = told["waits"]
    assert (wait["step"], wait["service"]) == ("reserve", "stock")
    assert wait["attempts"] >= 1
    assert {"next_retry_at", "breaker", "since", "error"} <= set(wait)
    assert told["since"]
    assert told["owner"]["epoch"] >= 0
    stock.down = False
    assert (await client.get("/v1/commands/stuck", params={"wait": "20s"})).json()["state"] == "completed"
    kinds = [(record["kind"], record["position"], record["at"]) for record in await _history(client, "stuck")]
    assert [kind for kind, _, _ in kinds] == ["Submitted", "Outcome", "Finished"]
    assert all(position and at.endswith("Z") for _, position, at in kinds)


async def _history(client: httpx.AsyncClient, id: str) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = (await client.get(f"/v1/commands/{id}/history")).json()
    return records
