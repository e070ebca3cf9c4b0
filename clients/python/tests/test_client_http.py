"""The client over HTTP against a scripted peer: requests as the API wants them, problems as errors, streams resumed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from coordinator_client import (
    AsyncClient,
    IllegalState,
    LimitReached,
    RetryPolicy,
    Suspended,
    Unavailable,
    UnknownCommand,
)

QUICK = RetryPolicy(first_s=0.001, max_s=0.01)


async def test_a_submission_is_posted_with_its_wait(http: Any, view: dict[str, Any]) -> None:
    """The body has what was given, the query how long the server may wait."""
    seen: list[Any] = []

    async def script(peer: Any) -> None:
        seen.append(await peer.read())
        peer.answer(200, view | {"id": seen[0][3]["id"]})

    http.play(script)
    async with AsyncClient(http.url) as client:
        command = await client.submit("T", {"n": 1}, wait="5s")
    method, target, headers, body = seen[0]
    assert (method, target) == ("POST", "/v1/commands?wait=5000ms")
    assert headers["content-type"] == "application/json"
    assert body == {"id": command.id, "type": "T", "payload": {"n": 1}, "priority": 0, "attributes": {}}
    assert command.ok


async def test_a_long_wait_is_many_short_ones(http: Any, view: dict[str, Any]) -> None:
    """A command that has not ended within one request is asked for again until it has."""

    async def script(peer: Any) -> None:
        await peer.read()
        peer.answer(202, view | {"state": "running"})
        for state in ("delayed", "completed"):
            method, target, _, _ = await peer.read()
            assert (method, target) == ("GET", "/v1/commands/c-1?wait=30000ms")
            peer.answer(200, view | {"state": state})

    http.play(script)
    async with AsyncClient(http.url) as client:
        assert (await client.submit("T", id="c-1", wait="10m")).ok


async def test_problems_are_retried_and_then_raised_by_code(http: Any, view: dict[str, Any]) -> None:
    """503 and 429 are tried again with their delay, a refusal is raised with its members."""

    async def script(peer: Any) -> None:
        await peer.read()
        peer.problem(503, "suspended", retry_after_ms=1, services=["payments"])
        await peer.read()
        peer.problem(429, "limit_reached", retry_after_ms=1)
        await peer.read()
        peer.answer(202, view | {"state": "running"})
        await peer.read()
        peer.problem(409, "illegal_state", legal_states=["paused"])

    http.play(script)
    async with AsyncClient(http.url, retry=QUICK) as client:
        await client.submit("T")
        with pytest.raises(IllegalState) as caught:
            await client.resume("c-1")
    assert caught.value.legal_states == ["paused"]


async def test_the_last_problem_is_raised_when_patience_ends(http: Any) -> None:
    """Retry-After alone is honoured too; the error says which services are down."""

    async def script(peer: Any) -> None:
        await peer.read()
        peer.answer(503, {"code": "suspended", "services": ["payments"]}, "application/problem+json", retry_after="7")

    http.play(script)
    async with AsyncClient(http.url, retry=QUICK) as client:
        with pytest.raises(Suspended) as caught:
            await client.submit("T", deadline="5s")
    assert (caught.value.services, caught.value.retry_after_ms) == (["payments"], 7000)


@pytest.mark.parametrize(("status", "kind"), [(502, Unavailable), (429, LimitReached)])
async def test_an_error_of_a_proxy_is_judged_by_its_status(http: Any, status: int, kind: type[Exception]) -> None:
    """What is no problem document still has a status."""

    async def script(peer: Any) -> None:
        await peer.read()
        peer.answer(status, "<html>", "text/html", retry_after="9")

    http.play(script)
    async with AsyncClient(http.url, retry=RetryPolicy(first_s=9, jitter=0, max_s=9)) as client:
        with pytest.raises(kind):
            await client.get("c-1", deadline="2s")


async def test_a_lost_connection_is_replaced(http: Any, view: dict[str, Any]) -> None:
    """A submission whose answer did not come is posted again under the same id."""
    ids: list[str] = []

    async def dies(peer: Any) -> None:
        ids.append((await peer.read())[3]["id"])
        peer.close()

    async def lives(peer: Any) -> None:
        ids.append((await peer.read())[3]["id"])
        peer.answer(200, view | {"id": ids[0]})

    http.play(dies, lives)
    async with AsyncClient(http.url, retry=QUICK) as client:
        command = await client.submit("T", wait=5)
    assert ids == [command.id, command.id]


async def test_every_operation_has_its_path(http: Any, view: dict[str, Any]) -> None:
    """Each method asks what API.md says, with ids quoted."""
    asked: list[Any] = []

    async def script(peer: Any) -> None:
        while True:
            method, target, _, body = await peer.read()
            asked.append((method, target, body))
            peer.answer(
                200, [] if "GET" in method and target.count("/") == 2 else view | {"name": "m", "created": True}
            )

    http.play(script)
    async with AsyncClient(http.url) as client:
        await client.get("ü-1")
        await client.explain("c-1")
        await client.pause("c-1", "stock count", "ann")
        await client.requeue("c-1", "charge", input=None)
        await client.requeue("c-1", "charge")
        await client.requeue("c-1", "charge", input="")
        await client.resolve("c-1", "charge", "refunded", "ann")
        await client.provide("c-1", "otp/2", None, signal_id="s 1", by="ann")
        await client.decide("c-1", "approve#2", approve=False, by="ann", roles=["manager"])
        await client.decisions()
        await client.dead_letters()
        await client.services()
        await client.set_breaker("payments", "auto")
        await client.put_definition("order", 1, {"steps": []}, by="ann")
        await client.get_definition("order")
        await client.get_definition("order", 2)
        await client.definitions()
        await client.put_schedule("monthly", {"every": "30s"}, "ann")
        await client.get_schedule("monthly")
        await client.schedules()
        await client.pause_schedule("monthly", "audit", "ann")
        await client.resume_schedule("monthly")
        await client.delete_schedule("monthly", by="ann")
    assert asked == [
        ("GET", "/v1/commands/%C3%BC-1", None),
        ("GET", "/v1/commands/c-1/explain", None),
        ("POST", "/v1/commands/c-1/pause", {"reason": "stock count", "by": "ann"}),
        ("POST", "/v1/commands/c-1/requeue", {"step": "charge", "input": None}),
        ("POST", "/v1/commands/c-1/requeue", {"step": "charge"}),
        ("POST", "/v1/commands/c-1/requeue", {"step": "charge", "input": ""}),
        ("POST", "/v1/commands/c-1/resolve", {"step": "charge", "reason": "refunded", "by": "ann"}),
        ("POST", "/v1/commands/c-1/data/otp%2F2?signal_id=s+1&by=ann", None),
        ("POST", "/v1/commands/c-1/decisions/approve%232", {"approve": False, "by": "ann", "roles": ["manager"]}),
        ("GET", "/v1/decisions", None),
        ("GET", "/v1/dead-letters", None),
        ("GET", "/v1/services", None),
        ("POST", "/v1/services/payments/breaker", {"state": "auto"}),
        ("PUT", "/v1/definitions/order/1?by=ann", {"steps": []}),
        ("GET", "/v1/definitions/order", None),
        ("GET", "/v1/definitions/order/2", None),
        ("GET", "/v1/definitions", None),
        ("PUT", "/v1/schedules/monthly?by=ann", {"every": "30s"}),
        ("GET", "/v1/schedules/monthly", None),
        ("GET", "/v1/schedules", None),
        ("POST", "/v1/schedules/monthly/pause", {"reason": "audit", "by": "ann"}),
        ("POST", "/v1/schedules/monthly/resume", {}),
        ("DELETE", "/v1/schedules/monthly?by=ann", None),
    ]


async def test_a_diagram_is_text(http: Any) -> None:
    """Mermaid comes as text, not as JSON."""

    async def script(peer: Any) -> None:
        await peer.read()
        peer.answer(200, "flowchart TD", "text/plain; charset=utf-8")

    http.play(script)
    async with AsyncClient(http.url) as client:
        assert await client.diagram("c-1") == "flowchart TD"


def sse(kind: str, position: str, **members: Any) -> str:
    data = {"kind": kind, "id": "c-1", "position": position, "state": "running"} | members
    return f"id: {position}\nevent: {kind}\ndata: {json.dumps(data)}\n\n"


async def test_watch_reads_server_sent_events_and_resumes(http: Any, view: dict[str, Any]) -> None:
    """Heartbeats are passed over; after a break Last-Event-ID says where to go on."""

    async def breaks(peer: Any) -> None:
        _, target, headers, _ = await peer.read()
        assert target == "/v1/commands/c-1/events"
        assert "last-event-id" not in headers
        events = sse("accepted", "0:1") + ": heartbeat\n\n" + sse("step", "0:4", record={"step": "a"})
        peer.stream("text/event-stream", "retry: 1000\n\n" + events)
        peer.close()

    async def tells(peer: Any) -> None:
        _, _, headers, _ = await peer.read()
        assert headers["last-event-id"] == "0:4"
        error = {"code": "stopping", "detail": "bye", "retryable": True, "retry_after_ms": 1}
        peer.stream("text/event-stream", sse("error", "", error=error))
        peer.close()

    async def ends(peer: Any) -> None:
        await peer.read()
        peer.stream("text/event-stream", sse("final", "0:7", view=view, state="completed"))
        peer.close()

    http.play(breaks, tells, ends)
    async with AsyncClient(http.url, retry=QUICK) as client:
        events = [event async for event in client.watch("c-1")]
    assert [event.kind for event in events] == ["accepted", "step", "final"]
    assert events[-1].command is not None
    assert events[-1].command.ok


async def test_watching_an_unknown_command_is_refused(http: Any) -> None:
    """A refusal before the stream is a problem like any other."""

    async def script(peer: Any) -> None:
        await peer.read()
        peer.problem(404, "unknown_command")

    http.play(script)
    async with AsyncClient(http.url) as client:
        with pytest.raises(UnknownCommand):
            await anext(client.watch("nope"))


async def test_outcomes_are_read_line_by_line_and_resumed(http: Any) -> None:
    """NDJSON with an error line in it is taken up again at the last position, without a repeat."""

    def line(n: int) -> str:
        return json.dumps({"position": f"0:{n}", "service": "payments", "command_id": "c", "outcome": n}) + "\n"

    async def breaks(peer: Any) -> None:
        _, target, _, _ = await peer.read()
        assert target == "/v1/outcomes?service=payments&follow=false"
        failed = json.dumps({"error": {"code": "log_unavailable", "detail": "disk", "retryable": True}}) + "\n"
        peer.stream("application/x-ndjson", line(1) + line(2) + failed)
        peer.close()

    async def goes_on(peer: Any) -> None:
        _, target, _, _ = await peer.read()
        assert target.endswith("&from=0%3A2")
        peer.stream("application/x-ndjson", line(2) + line(3))
        peer.close()

    http.play(breaks, goes_on)
    async with AsyncClient(http.url, retry=QUICK) as client:
        assert [outcome.outcome async for outcome in client.outcomes("payments")] == [1, 2, 3]
