"""The gRPC API of a real daemon, through the generated stub and in raw bytes."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import msgspec
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from coordinator.transport.pb import coordinator_pb2 as pb
from coordinator.transport.pb.coordinator_pb2_grpc import CoordinatorStub
from tests.integration.daemon import Daemon, Service, config, services

ROOT = Path(__file__).parents[2]
ORDER = {
    "name": "order",
    "version": 1,
    "steps": [
        {"name": "reserve", "service": "stock", "path": "/reserve", "body": {"n": "${payload.n}"}},
        {"name": "charge", "service": "stock", "path": "/charge"},
    ],
    "result": "${payload.n}",
}
PAYMENT = {
    "name": "payment",
    "version": 1,
    "steps": [
        {"name": "otp", "data": "otp"},
        {"name": "approve", "decision": {"input": "${payload}", "roles": ["manager"]}},
        {"name": "charge", "service": "stock", "path": "/charge", "undo": {"path": "/refund"}},
        {"name": "settle", "service": "stock", "path": "/settle"},
    ],
    "result": "${steps.otp}",
}
BIG = (1 << 64) - 1


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
async def channel(daemon: Daemon) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to the started daemon."""
    await asyncio.to_thread(daemon.start)
    async with grpc.aio.insecure_channel(daemon.grpc) as channel, asyncio.timeout(60):
        yield channel


@pytest.fixture
def stub(channel: grpc.aio.Channel) -> Any:
    return CoordinatorStub(channel)


def submission(id: str, n: int = 1, **rest: Any) -> pb.Submission:
    return pb.Submission(
        id=id, definition_json=msgspec.json.encode(ORDER), payload_json=msgspec.json.encode({"n": n}), **rest
    )


def submit(id: str, wait_ms: int = 20_000, **rest: Any) -> pb.SubmitRequest:
    return pb.SubmitRequest(submission=submission(id, **rest), wait_ms=wait_ms)


async def to_the_end(call: Any) -> list[Any]:
    """What a stream still has to say."""
    messages = []
    while (message := await call.read()) is not grpc.aio.EOF:
        messages.append(message)
    return messages


async def refused(call: Any) -> tuple[grpc.StatusCode, pb.Error]:
    """The status of a call that fails, and the error of its metadata."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    metadata = dict(raised.value.trailing_metadata() or ())
    error = pb.Error.FromString(metadata["coordinator-error-bin"])
    assert metadata["coordinator-code"] == error.code
    return raised.value.code(), error


async def test_a_walk_through_the_whole_service(stub: Any, stock: Service) -> None:
    """Every method, on one finished command."""
    definition = pb.PutDefinitionRequest(name="order", version=1, definition_json=msgspec.json.encode(ORDER))
    assert (await stub.PutDefinition(definition)).created
    assert not (await stub.PutDefinition(definition)).created
    got = await stub.GetDefinition(pb.DefinitionId(name="order"))
    assert msgspec.json.decode(got.json)["steps"] == ORDER["steps"]
    assert msgspec.json.decode((await stub.ListDefinitions(pb.Empty())).json)[0]["name"] == "order"
    assert "charge" in (await stub.DefinitionDiagram(pb.DefinitionId(name="order", version=1))).mermaid

    reply = await stub.Submit(submit("c-1", n=BIG, attributes={"who": pb.Attribute(text="me")}))
    command = reply.command
    assert (command.state, command.result_json, reply.attached) == ("completed", str(BIG).encode(), False)
    assert [step.name for step in command.steps] == ["reserve", "charge"]
    assert (await stub.Submit(submit("c-1", n=BIG, attributes={"who": pb.Attribute(text="me")}))).attached
    assert await stub.Get(pb.GetRequest(id="c-1")) == command
    listed = await stub.List(pb.ListRequest(state="completed", attributes={"who": "me"}, limit=1))
    assert [each.id for each in listed.commands] == ["c-1"]
    assert msgspec.json.decode((await stub.History(pb.CommandId(id="c-1"))).json)[0]["position"]
    assert msgspec.json.decode((await stub.Explain(pb.CommandId(id="c-1"))).json)["state"] == "completed"
    assert "reserve" in (await stub.Diagram(pb.CommandId(id="c-1"))).mermaid
    assert [event.kind async for event in stub.Watch(pb.WatchRequest(id="c-1"))][-1] == "final"

    assert msgspec.json.decode((await stub.DeadLetters(pb.Empty())).json) == []
    assert msgspec.json.decode((await stub.Quarantine(pb.Empty())).json) == []
    assert msgspec.json.decode((await stub.Log(pb.Empty())).json)[0]["pinned_by"] == "retain"
    assert msgspec.json.decode((await stub.Services(pb.Empty())).json)
    assert (await stub.SetBreaker(pb.SetBreakerRequest(service="stock", state="auto"))).json
    assert msgspec.json.decode((await stub.Cluster(pb.Empty())).json)["partitions"]
    items = [item async for item in stub.Outcomes(pb.OutcomesRequest(service="stock"))]
    assert [item.step for item in items] == ["reserve", "charge"]
    later = pb.OutcomesRequest(service="stock", **{"from": items[1].position})
    assert [item async for item in stub.Outcomes(later)] == items[1:]


async def test_errors_have_the_codes_of_the_other_transports(stub: Any, channel: grpc.aio.Channel) -> None:
    """A status for the machine, a code and all members in the metadata."""
    await stub.Submit(submit("c-1"))
    status = grpc.StatusCode
    unwell = channel.unary_unary("/coordinator.v1.Coordinator/Submit")
    control = pb.ControlRequest(id="c-1", operation="retry", reason="?", by="me")
    for call, expected in [
        (stub.Submit(submit("c-1", n=2)), (status.ALREADY_EXISTS, "id_conflict")),
        (stub.Submit(submit("a\x00")), (status.INVALID_ARGUMENT, "invalid_payload")),
        (stub.Submit(pb.SubmitRequest()), (status.INVALID_ARGUMENT, "invalid_payload")),
        (unwell(b"\xff\xff"), (status.INVALID_ARGUMENT, "malformed")),
        (stub.Submit(pb.SubmitRequest(submission=pb.Submission(type="nope"))), (status.NOT_FOUND, "unknown_type")),
        (stub.Get(pb.GetRequest(id="nope")), (status.NOT_FOUND, "unknown_command")),
        (stub.Control(control), (status.FAILED_PRECONDITION, "illegal_state")),
        (stub.Control(pb.ControlRequest(id="c-1")), (status.INVALID_ARGUMENT, "invalid_payload")),
        (stub.Requeue(pb.RequeueRequest(id="c-1", step="charge")), (status.FAILED_PRECONDITION, "illegal_state")),
        (stub.Resolve(pb.ResolveRequest(id="c-1", step="charge")), (status.FAILED_PRECONDITION, "illegal_state")),
        (stub.SetBreaker(pb.SetBreakerRequest(service="x", state="open")), (status.NOT_FOUND, "unknown_service")),
        (stub.GetDefinition(pb.DefinitionId(name="x")), (status.NOT_FOUND, "unknown_definition")),
        (stub.Watch(pb.WatchRequest(id="nope")).read(), (status.NOT_FOUND, "unknown_command")),
        (stub.Outcomes(pb.OutcomesRequest(service="x")).read(), (status.NOT_FOUND, "unknown_service")),
    ]:
        code, error = await refused(call)
        assert (code, error.code) == expected
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await unwell(b"x" * 10_000_000)
    assert raised.value.code() is status.RESOURCE_EXHAUSTED


async def waits_for(stub: Any, id: str, name: str) -> None:
    """Returns once the command waits for that alone."""
    while list((command := await stub.Get(pb.GetRequest(id=id))).waiting_for) != [name]:
        assert command.state in ("running", "waiting"), command


async def test_data_decisions_and_work_done_by_hand(stub: Any, stock: Service) -> None:
    """A payment that waits for data and a person, fails, and whose undo is taken for done: every refusal on the way."""
    status = grpc.StatusCode
    paid = pb.Submission(id="p-1", definition_json=msgspec.json.encode(PAYMENT), payload_json=str(BIG).encode())
    stock.answers["/settle"], stock.answers["/refund"] = [409], [400]
    await stub.Submit(pb.SubmitRequest(submission=paid))
    await waits_for(stub, "p-1", "otp")
    approve = {"id": "p-1", "step": "approve", "approve": True, "by": "ann", "roles": ["manager"]}
    otp = {"id": "p-1", "name": "otp", "value_json": str(BIG).encode(), "by": "customer"}
    for call, expected in [
        (stub.Provide(pb.ProvideRequest(**otp | {"name": "colour"})), (status.NOT_FOUND, "unknown_step")),
        (stub.Provide(pb.ProvideRequest(**otp | {"id": "nope"})), (status.NOT_FOUND, "unknown_command")),
        (stub.Provide(pb.ProvideRequest(**otp | {"name": ""})), (status.INVALID_ARGUMENT, "invalid_payload")),
        (stub.Provide(pb.ProvideRequest(**otp | {"value_json": b"{"})), (status.INVALID_ARGUMENT, "malformed")),
        (stub.Decide(pb.DecideRequest(**approve)), (status.FAILED_PRECONDITION, "illegal_state")),
    ]:
        code, error = await refused(call)
        assert (code, error.code) == expected
    await stub.Provide(pb.ProvideRequest(**otp, signal_id="s-1"))
    await waits_for(stub, "p-1", "approve")
    [pending] = msgspec.json.decode((await stub.Decisions(pb.Empty())).json)
    assert (pending["command_id"], pending["step"], pending["input"], pending["roles"]) == (
        "p-1",
        "approve",
        BIG,
        ["manager"],
    )
    code, error = await refused(stub.Decide(pb.DecideRequest(**approve | {"roles": []})))
    assert (code, error.code) == (status.PERMISSION_DENIED, "forbidden")
    assert msgspec.json.decode(error.extra_json)["roles"] == ["manager"]
    del approve["approve"]
    code, error = await refused(stub.Decide(pb.DecideRequest(**approve)))
    assert (code, error.code) == (status.INVALID_ARGUMENT, "invalid_payload")
    await stub.Decide(pb.DecideRequest(**approve, approve=True))
    code, error = await refused(stub.Decide(pb.DecideRequest(**approve, approve=False)))
    assert (code, msgspec.json.decode(error.extra_json)["decided"]["by"]) == (status.FAILED_PRECONDITION, "ann")

    while (await stub.Get(pb.GetRequest(id="p-1"))).state != "dead_letter":
        pass
    code, error = await refused(stub.Resolve(pb.ResolveRequest(id="p-1", step="")))
    assert (code, error.code) == (status.INVALID_ARGUMENT, "invalid_payload")
    code, error = await refused(stub.Control(pb.ControlRequest(id="p-1", operation="resolve")))
    assert (code, error.code) == (status.INVALID_ARGUMENT, "invalid_payload")
    await stub.Resolve(pb.ResolveRequest(id="p-1", step="charge", reason="by telephone", by="ann"))
    ended = await stub.Get(pb.GetRequest(id="p-1", wait_ms=20_000))
    assert (ended.state, ended.revision, [step.state for step in ended.steps if step.name == "charge"]) == (
        "compensated",
        1,
        ["undone"],
    )


async def test_a_delay_and_a_schedule(stub: Any, stock: Service) -> None:
    """A command that begins later, and one that the clock submits."""
    await stub.Submit(submit("later", wait_ms=0, delay="1h"))
    await waits_for(stub, "later", "start")
    code, error = await refused(stub.Submit(submit("never", delay="soon")))
    assert (code, error.code) == (grpc.StatusCode.INVALID_ARGUMENT, "invalid_payload")
    content = {"cron": "0 3 * * *", "command": {"definition": ORDER, "payload": {"n": 1}}}
    put = pb.PutScheduleRequest(name="nightly", schedule_json=msgspec.json.encode(content), by="ann")
    shown = msgspec.json.decode((await stub.PutSchedule(put)).json)
    assert (shown["spec"], shown["state"], shown["by"]) == (content, "active", "ann")
    assert msgspec.json.decode((await stub.GetSchedule(pb.ScheduleName(name="nightly"))).json) == shown
    assert msgspec.json.decode((await stub.ListSchedules(pb.Empty())).json) == [shown]
    for action, state in (("pause", "paused"), ("pause", "paused"), ("resume", "active"), ("delete", "deleted")):
        control = pb.ControlScheduleRequest(name="nightly", action=action, reason="audit", by="bob")
        assert msgspec.json.decode((await stub.ControlSchedule(control)).json)["state"] == state
    status = grpc.StatusCode
    empty = pb.PutScheduleRequest(name="nightly", schedule_json=b"{}")
    for call, expected in [
        (stub.GetSchedule(pb.ScheduleName(name="nightly")), (status.NOT_FOUND, "unknown_schedule")),
        (stub.PutSchedule(empty), (status.INVALID_ARGUMENT, "invalid_payload")),
        (stub.PutSchedule(pb.PutScheduleRequest(name="nightly")), (status.INVALID_ARGUMENT, "invalid_payload")),
        (
            stub.ControlSchedule(pb.ControlScheduleRequest(name="nightly", action="stop")),
            (status.INVALID_ARGUMENT, "invalid_payload"),
        ),
    ]:
        code, error = await refused(call)
        assert (code, error.code) == expected


async def test_a_deadline_bounds_the_wait(stub: Any, stock: Service) -> None:
    """The command is answered as it is, just before the deadline passes; a cancelled wait leaves it running."""
    stock.gate = asyncio.Event()
    reply = await stub.Submit(submit("c-1", wait_ms=60_000), timeout=2)
    assert reply.command.state == "running"
    waiting = stub.Get(pb.GetRequest(id="c-1", wait_ms=60_000))
    await stock.until(lambda: bool(stock.arrivals))
    waiting.cancel()
    stock.gate.set()
    assert (await stub.Get(pb.GetRequest(id="c-1", wait_ms=20_000))).state == "completed"


async def test_a_session_carries_many_commands_at_once(stub: Any) -> None:
    """Each has its accepted, its steps and its end, in order; a wrong one hurts only itself; half-closing ends it."""
    count = 100

    async def requests() -> AsyncIterator[pb.SessionRequest]:
        for seq in range(1, count + 1):
            yield pb.SessionRequest(seq=seq, submission=submission(f"c-{seq}"))
        yield pb.SessionRequest(seq=count + 1, submission=pb.Submission(type="nope"))

    kinds: dict[int, list[str]] = defaultdict(list)
    async for answer in stub.Session(requests()):
        if answer.event.kind != "state":
            kinds[answer.seq].append(answer.event.kind)
            wrong = answer.event.error.code or None
            assert wrong == ("unknown_type" if answer.seq == count + 1 else None)
    assert kinds.pop(count + 1) == ["error"]
    assert dict(kinds) == {seq: ["accepted", "step", "step", "final"] for seq in range(1, count + 1)}


async def test_a_session_that_breaks_its_rules_ends(stub: Any, stock: Service) -> None:
    """A seq of 0, or one that is still open, cannot be matched; the commands go on."""
    stock.gate = asyncio.Event()
    for second in (0, 1):
        call = stub.Session()
        await call.write(pb.SessionRequest(seq=1, submission=submission("c-1")))
        await call.write(pb.SessionRequest(seq=second, submission=submission("c-2")))
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await to_the_end(call)
        assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    stock.gate.set()
    assert (await stub.Get(pb.GetRequest(id="c-1", wait_ms=20_000))).state == "completed"


async def test_health_and_reflection_answer_the_usual_tools(channel: grpc.aio.Channel) -> None:
    """grpcurl and Kubernetes know what to do."""
    health = health_pb2_grpc.HealthStub(channel)
    for service in ("", "coordinator.v1.Coordinator"):
        answer = await health.Check(health_pb2.HealthCheckRequest(service=service))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    code, _ = await refused(health.Check(health_pb2.HealthCheckRequest(service="nope")))
    assert code is grpc.StatusCode.NOT_FOUND
    for version in ("v1", "v1alpha"):
        reflect = channel.stream_stream(
            f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )
        asked = [reflection_pb2.ServerReflectionRequest(list_services="")]
        names = [each.name async for answer in reflect(iter(asked)) for each in answer.list_services_response.service]
        assert {"coordinator.v1.Coordinator", "grpc.health.v1.Health"} <= set(names)
    asked = [reflection_pb2.ServerReflectionRequest(file_containing_symbol="coordinator.v1.Coordinator")]
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    files = [
        answer.file_descriptor_response.file_descriptor_proto async for answer in stub.ServerReflectionInfo(iter(asked))
    ]
    assert files[0][0] == pb.DESCRIPTOR.serialized_pb


async def test_sigterm_tells_every_stream(channel: grpc.aio.Channel, stub: Any, daemon: Daemon, stock: Service) -> None:
    """Watches end with an error event, sessions with UNAVAILABLE, health says NOT_SERVING first."""
    stock.gate = asyncio.Event()
    serving = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
    assert (await serving.read()).status == health_pb2.HealthCheckResponse.SERVING
    await stub.Submit(submit("c-1", wait_ms=0))
    watch = stub.Watch(pb.WatchRequest(id="c-1"))
    assert (await watch.read()).kind == "accepted"
    session = stub.Session()
    await session.write(pb.SessionRequest(seq=1, submission=submission("c-1")))
    assert (await session.read()).event.attached
    daemon.signal(signal.SIGTERM)
    assert (await serving.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
    code, error = await refused(stub.Submit(submit("c-2")))
    assert (code, error.code, error.retryable) == (grpc.StatusCode.UNAVAILABLE, "stopping", True)
    daemon.signal(signal.SIGTERM)
    events = await to_the_end(watch)
    assert (events[-1].kind, events[-1].error.retryable) == ("error", True)
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await to_the_end(session)
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE


def test_the_committed_stubs_are_those_of_the_proto_file(tmp_path: Path) -> None:
    """``make proto`` writes them anew."""
    command = [str(ROOT / "scripts" / "generate_proto.sh"), str(tmp_path)]
    subprocess.run(command, check=True, env={"PYTHON": sys.executable, "PATH": "/usr/bin:/bin"})
    folder = Path("coordinator/transport/pb")
    for generated in (tmp_path / folder).iterdir():
        assert (ROOT / folder / generated.name).read_text() == generated.read_text(), generated.name
