"""The HTTP API of a real daemon.  Every answer in this file is checked against the OpenAPI document that it serves."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from coordinator.transport.http.routes import ROUTES
from tests.integration.daemon import Daemon, Service, config, services
from tests.integration.documented import Documented, documented_client

STEPS = [
    {
        "name": "reserve",
        "service": "stock",
        "path": "/reserve",
        "body": {"n": "${payload.n}"},
        "undo": {"path": "/undo", "body": {"n": "${payload.n}"}},
    },
    {"name": "charge", "service": "stock", "path": "/charge"},
]
ORDER = {"name": "order", "version": 1, "steps": STEPS, "result": "${steps.charge}"}


@pytest.fixture
async def stock() -> AsyncIterator[Service]:
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


@pytest.fixture
async def documented() -> Documented:
    return Documented()


@pytest.fixture
async def client(daemon: Daemon, documented: Documented) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the started daemon."""
    await asyncio.to_thread(daemon.start)
    async with documented_client(daemon.http, documented) as client:
        yield client


def submission(id: str | None, definition: dict[str, Any] = ORDER, **rest: Any) -> dict[str, Any]:
    return {"definition": definition, "payload": {"n": 1}} | ({} if id is None else {"id": id}) | rest


class Events:
    """A reader of Server-Sent Events."""

    def __init__(self, response: httpx.Response) -> None:
        self._lines = response.aiter_lines()

    async def next(self) -> dict[str, Any]:
        """The next event: its fields, ``data`` decoded; comments and retry hints passed over."""
        found: dict[str, Any] = {}
        async for line in self._lines:
            if not line and "event" in found:
                return found
            name, _, value = line.partition(": ")
            if name in ("id", "event"):
                found[name] = value
            elif name == "data":
                found["data"] = msgspec.json.decode(value)
        raise EOFError

    async def rest(self) -> list[dict[str, Any]]:
        events = []
        with contextlib.suppress(EOFError):
            while True:
                events.append(await self.next())
        return events


async def test_a_walk_through_the_whole_api(client: httpx.AsyncClient, stock: Service, documented: Documented) -> None:
    """Every documented operation answers as documented."""
    put = await client.put("/v1/definitions/order/1", json=ORDER)
    assert (put.status_code, put.headers["location"]) == (201, "/v1/definitions/order/1")
    assert (await client.put("/v1/definitions/order/1", json=ORDER)).json()["created"] is False
    changed = await client.put("/v1/definitions/order/1", json={**ORDER, "result": "${steps.reserve}"})
    assert (changed.status_code, changed.json()["code"]) == (409, "definition_conflict")
    assert (await client.get("/v1/definitions/order/1")).json()["steps"] == STEPS
    assert (await client.get("/v1/definitions/order")).json()["name"] == "order"
    assert [row["name"] for row in (await client.get("/v1/definitions")).json()] == ["order"]
    drawing = await client.get("/v1/definitions/order/1/diagram", headers={"accept": "text/vnd.mermaid"})
    assert drawing.headers["content-type"].startswith("text/vnd.mermaid")

    done = await client.post("/v1/commands?wait=20s", json={"id": "é-1", "type": "order", "payload": {"n": 1}})
    assert (done.status_code, done.json()["state"]) == (200, "completed")
    path = done.headers["location"]
    assert (await client.get(path)).json() == done.json()
    assert (await client.get(f"{path}/history")).json()[0]["kind"] == "Submitted"
    assert (await client.get(f"{path}/explain")).json()["id"] == "é-1"
    assert "charge" in (await client.get(f"{path}/diagram")).text
    assert "final" in (await client.get(f"{path}/events")).text
    for operation in ("pause", "resume", "cancel", "abort", "retry"):
        refused = await client.post(f"{path}/{operation}")
        assert (refused.status_code, refused.json()["code"]) == (409, "illegal_state")
        assert isinstance(refused.json()["legal_states"], list)
    for operation in ("requeue", "resolve"):
        assert (await client.post(f"{path}/{operation}", json={"step": "charge"})).status_code == 409
    assert (await client.post(f"{path}/decisions/approve", json={"approve": True})).status_code == 404
    assert (await client.post(f"{path}/data/otp", json=1)).json()["code"] == "unknown_step"
    assert (await client.get("/v1/decisions")).json() == []
    for method in ("GET", "POST"):
        unknown = await client.request(method, "/v1/callbacks/é-1/otp/0.00")
        assert (unknown.status_code, unknown.json()["code"]) == (404, "unknown_command")

    nightly = {"cron": "0 3 * * *", "command": {"type": "order", "payload": {"n": 1}}}
    made = await client.put("/v1/schedules/nightly?by=me", json=nightly)
    assert (made.status_code, made.json()["name"]) == (200, "nightly")
    assert (await client.get("/v1/schedules/nightly")).json() == made.json()
    assert [each["name"] for each in (await client.get("/v1/schedules")).json()] == ["nightly"]
    for action in ("pause", "resume"):
        told = await client.post(f"/v1/schedules/nightly/{action}", json={"reason": "closed", "by": "me"})
        assert told.status_code == 200
    assert (await client.delete("/v1/schedules/nightly?reason=done&by=me")).status_code == 200
    assert (await client.get("/v1/schedules/nightly")).json()["code"] == "unknown_schedule"

    listed = (await client.get("/v1/commands", params={"state": "completed", "type": "order", "limit": 5})).json()
    assert [command["id"] for command in listed["commands"]] == ["é-1"]
    lines = (await client.get("/v1/outcomes", params={"service": "stock"})).text.splitlines()
    assert [msgspec.json.decode(line)["step"] for line in lines] == ["reserve", "charge"]
    assert (await client.get("/v1/outcomes", params={"service": "nope"})).json()["code"] == "unknown_service"
    assert (await client.get("/v1/dead-letters")).json() == []
    assert (await client.get("/v1/quarantine")).json() == []
    (kept,) = (await client.get("/v1/log")).json()
    assert (kept["first"], kept["retain"], kept["snapshot"]) == (0, None, None)
    assert (await client.get("/v1/services")).status_code == 200
    for state in ("open", "closed", "auto"):
        assert (await client.post("/v1/services/stock/breaker", json={"state": state})).status_code == 200
    for path in ("/v1/cluster", "/healthz", "/readyz", "/metrics", "/openapi.json", "/"):
        assert (await client.get(path)).status_code == 200
    assert documented.asked == {route.name for route in ROUTES}


async def test_submitting_twice_attaches_and_another_payload_conflicts(
    client: httpx.AsyncClient, stock: Service
) -> None:
    """The id may stand in the body, in Idempotency-Key, or in both if they agree."""
    stock.gate = asyncio.Event()
    first = await client.post("/v1/commands", json=submission("c-1"))
    assert (first.status_code, first.json()["state"]) == (202, "running")
    again = await client.post("/v1/commands", json=submission(None), headers={"Idempotency-Key": "c-1"})
    assert (again.status_code, again.json()["id"]) == (202, "c-1")
    other = await client.post("/v1/commands", json=submission("c-1", payload={"n": 2}))
    assert (other.status_code, other.json()["code"]) == (409, "id_conflict")
    differing = await client.post("/v1/commands", json=submission("c-1"), headers={"Idempotency-Key": "c-2"})
    assert (differing.status_code, differing.json()["faults"][0]["path"]) == (422, "Idempotency-Key")
    stock.gate.set()
    assert (await client.post("/v1/commands?wait=20s", json=submission("c-1"))).json()["state"] == "completed"
    assert sorted(stock.keys()) == ["c-1/charge", "c-1/reserve"]


async def test_wrong_input_is_told_where_and_leaves_nothing_behind(client: httpx.AsyncClient) -> None:
    """4xx with the path of the fault; the log has no command afterwards."""
    deep = b'{"payload":' + b"[" * 1000 + b"]" * 1000 + b"}"
    for body, status, code, path in [
        (b"", 400, "malformed", None),
        (b"{", 400, "malformed", None),
        (deep, 400, "malformed", None),
        (b'{"type": "order", "payload": NaN}', 400, "malformed", None),
        (b'{"type": "nope"}', 404, "unknown_type", None),
        (b'{"type": "nope", "payload": "' + b"x" * 10_000_000 + b'"}', 413, "too_large", None),
        (b"[]", 422, "invalid_payload", "$"),
        (b'{"type": 5}', 422, "invalid_payload", "$.type"),
        (msgspec.json.encode(submission(None, timeout="soon")), 422, "invalid_payload", "$.timeout"),
        (b'{"type": "order", "foo": 1}', 422, "invalid_payload", "$.foo"),
        (b'{"type": "order", "payload": [18446744073709551616]}', 422, "invalid_payload", "$.payload[0]"),
    ]:
        answer = await client.post("/v1/commands", content=body)
        assert (answer.status_code, answer.json()["code"]) == (status, code), body[:80]
        if path is not None:
            assert answer.json()["faults"][0]["path"] == path
    for id in ("a\x00b", "a b", "a/b", "x" * 201, ""):
        answer = await client.post("/v1/commands", json=submission(id))
        assert (answer.status_code, answer.json()["faults"][0]["path"]) == (422, "$.id"), id
    assert (await client.get("/v1/commands")).json()["commands"] == []


async def test_events_resume_after_the_last_that_was_received(client: httpx.AsyncClient, stock: Service) -> None:
    """Nothing is told twice, nothing is left out, and final is the end."""
    stock.gate = asyncio.Event()
    await client.post("/v1/commands", json=submission("c-1"))
    async with client.stream("GET", "/v1/commands/c-1/events") as response:
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        accepted = await Events(response).next()
        assert (accepted["event"], accepted["data"]["id"]) == ("accepted", "c-1")
    stock.gate.set()
    headers = {"Last-Event-ID": accepted["id"]}
    async with client.stream("GET", "/v1/commands/c-1/events", headers=headers) as response:
        events = [event for event in await Events(response).rest() if event["event"] != "state"]
    assert [event["event"] for event in events] == ["step", "step", "final"]
    assert [event["data"]["record"]["step"] for event in events[:2]] == ["reserve", "charge"]
    assert events[-1]["data"]["view"]["state"] == "completed"
    assert (await client.get("/v1/commands/c-1/events", headers={"Last-Event-ID": "x"})).status_code == 422
    assert (await client.get("/v1/commands/nope/events")).json()["code"] == "unknown_command"


@pytest.mark.parametrize(
    ("requeue", "expected"), [({}, {"n": 1}), ({"input": {"n": 2}}, {"n": 2}), ({"input": None}, None)]
)
async def test_a_dead_letter_is_requeued_with_or_without_another_input(
    client: httpx.AsyncClient, stock: Service, requeue: dict[str, Any], expected: Any
) -> None:
    """An input of null is an input; an absent one leaves the request as it was."""
    stock.answers["/charge"] = [409]
    stock.answers["/undo"] = [409]
    await client.post("/v1/commands", json=submission("c-1"))
    async with client.stream("GET", "/v1/commands/c-1/events") as response:
        reader = Events(response)
        while (await reader.next())["data"]["state"] != "dead_letter":
            pass
    assert [letter["step"] for letter in (await client.get("/v1/dead-letters")).json()] == ["reserve"]
    missing = await client.post("/v1/commands/c-1/requeue", json={})
    assert missing.json()["faults"] == [{"path": "$.step", "fault": "required"}]
    body = {"step": "reserve", "reason": "mended", "by": "me", **requeue}
    assert (await client.post("/v1/commands/c-1/requeue", json=body)).status_code == 200
    assert (await client.get("/v1/commands/c-1?wait=20s")).json()["state"] == "compensated"
    assert [call.json for call in stock.arrivals if call.path == "/undo"] == [{"n": 1}, expected]


async def test_a_client_that_leaves_does_not_stop_its_command(client: httpx.AsyncClient, stock: Service) -> None:
    """Its wait ends with its connection; the command goes on."""
    stock.gate = asyncio.Event()
    with pytest.raises(httpx.ReadTimeout):
        await client.post("/v1/commands?wait=20s", json=submission("c-1"), timeout=0.3)
    stock.gate.set()
    assert (await client.get("/v1/commands/c-1?wait=20s")).json()["state"] == "completed"


async def test_followed_outcomes_come_as_they_happen(client: httpx.AsyncClient) -> None:
    """From a position on, inclusive, and on and on."""
    await client.post("/v1/commands?wait=20s", json=submission("c-1"))
    _, second = (await client.get("/v1/outcomes", params={"service": "stock"})).text.splitlines()
    start = msgspec.json.decode(second)["position"]
    parameters = {"service": "stock", "from": start, "follow": "true"}
    async with client.stream("GET", "/v1/outcomes", params=parameters) as response:
        lines = response.aiter_lines()
        assert await anext(lines) == second
        await client.post("/v1/commands?wait=20s", json=submission("c-2"))
        assert msgspec.json.decode(await anext(lines))["command_id"] == "c-2"


async def test_sigterm_tells_whoever_waits(client: httpx.AsyncClient, daemon: Daemon, stock: Service) -> None:
    """Streams end with an error event, waits with 503 and a delay; both may ask again."""
    stock.gate = asyncio.Event()
    await client.post("/v1/commands", json=submission("c-1"))
    waiting = asyncio.ensure_future(client.get("/v1/commands/c-1?wait=60s"))
    async with client.stream("GET", "/v1/commands/c-1/events") as response:
        reader = Events(response)
        await reader.next()
        daemon.signal(signal.SIGTERM)
        refused = await _until_stopping(daemon)
        assert (refused.json()["code"], refused.headers["connection"]) == ("stopping", "close")
        daemon.signal(signal.SIGTERM)
        last = (await reader.rest())[-1]
    assert (last["event"], last["data"]["error"]["retryable"]) == ("error", True)
    with contextlib.suppress(httpx.TransportError):
        answer = await waiting
        assert answer.status_code == 503
        assert "retry-after" in answer.headers
    stock.gate.set()


async def _until_stopping(daemon: Daemon) -> httpx.Response:
    async with httpx.AsyncClient(base_url=daemon.http) as client:
        while True:
            answer = await client.post("/v1/commands", json=submission(None))
            if answer.status_code == 503:
                return answer
