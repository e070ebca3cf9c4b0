"""Clients of each transport that send what a stranger might: plain values, no checks of their own, no retries.

The three have one method, `submit`, and one answer, `Told`, so that a test can ask all of them the same thing.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator
from typing import Any, Protocol

import grpc
import grpc.aio
import httpx
import msgspec

from coordinator.transport.pb import coordinator_pb2 as pb
from coordinator.transport.pb.coordinator_pb2_grpc import CoordinatorStub
from tests.integration.daemon import Daemon

TRANSPORTS = ("http", "grpc", "tcp")
_pack = msgspec.msgpack.encode


class Told(msgspec.Struct):
    """What a transport answered: an error's code and paths, or what the command looked like, and whether it was
    known."""

    code: str | None
    paths: list[str] = []
    id: str = ""
    state: str = ""
    position: str = ""
    result: Any = None
    attached: bool = False
    retry_after_ms: int | None = None

    @property
    def command(self) -> tuple[str, str, str, Any]:
        """What has to be the same for everybody who asks for one command."""
        return self.id, self.state, self.position, self.result


class Stranger(Protocol):
    async def submit(self, submission: dict[str, Any], wait_ms: int = 0) -> Told: ...


@contextlib.asynccontextmanager
async def stranger(daemon: Daemon, transport: str) -> AsyncIterator[Stranger]:
    """A connected client of the transport."""
    match transport:
        case "http":
            async with httpx.AsyncClient(base_url=daemon.http, timeout=30) as client:
                yield OverHttp(client)
        case "grpc":
            async with grpc.aio.insecure_channel(daemon.grpc) as channel:
                yield OverGrpc(channel)
        case _:
            reader, writer = await asyncio.open_connection("127.0.0.1", daemon.ports["tcp"])
            tcp = OverTcp(reader, writer)
            try:
                yield tcp
            finally:
                tcp.close()


def _paths(extra: dict[str, Any] | None) -> list[str]:
    return [fault["path"] for fault in (extra or {}).get("faults", [])]


class OverHttp:
    def __init__(self, client: httpx.AsyncClient) -> None:
        self.client = client

    async def submit(self, submission: dict[str, Any], wait_ms: int = 0) -> Told:
        answer = await self.client.post(
            "/v1/commands", params={"wait": f"{wait_ms}ms"}, content=msgspec.json.encode(submission)
        )
        told = answer.json()
        if answer.is_error:
            assert answer.headers["content-type"] == "application/problem+json"
            assert told["status"] == answer.status_code
            return Told(told["code"], _paths(told), retry_after_ms=told.get("retry_after_ms"))
        attached = answer.headers.get("coordinator-attached") == "true"
        return Told(None, [], told["id"], told["state"], told["position"], told["result"], attached)


class OverGrpc:
    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.stub = CoordinatorStub(channel)

    async def submit(self, submission: dict[str, Any], wait_ms: int = 0) -> Told:
        """``payload_json`` and ``definition_json`` may be given as bytes that are no JSON."""
        fields = dict(submission)
        for name in ("payload", "definition"):
            if name in fields:
                fields[f"{name}_json"] = msgspec.json.encode(fields.pop(name))
        fields["attributes"] = {name: _attribute(value) for name, value in fields.get("attributes", {}).items()}
        try:
            reply = await self.stub.Submit(pb.SubmitRequest(submission=pb.Submission(**fields), wait_ms=wait_ms))
        except grpc.aio.AioRpcError as error:
            told = pb.Error.FromString(dict(error.trailing_metadata() or ())["coordinator-error-bin"])
            extra = msgspec.json.decode(told.extra_json) if told.extra_json else None
            return Told(told.code, _paths(extra), retry_after_ms=told.retry_after_ms or None)
        command = reply.command
        result = msgspec.json.decode(command.result_json) if command.result_json else None
        return Told(None, [], command.id, command.state, command.position, result, reply.attached)


def _attribute(value: Any) -> pb.Attribute:
    if isinstance(value, bool):
        return pb.Attribute(flag=value)
    return pb.Attribute(whole=value) if isinstance(value, int) else pb.Attribute(text=value)


class OverTcp:
    """Frames by hand (proto/tcp.md)."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._seq = 0
        self._waiting: dict[int, asyncio.Future[Told]] = {}
        self._attached: dict[int, bool] = {}
        writer.write(frame(0, 0, "coordinator", 1, 1))
        self._task = asyncio.get_running_loop().create_task(self._read())

    async def submit(self, submission: dict[str, Any], wait_ms: int = 0) -> Told:
        self._seq += 1
        future = self._waiting[self._seq] = asyncio.get_running_loop().create_future()
        self._writer.write(frame(1, self._seq, "final" if wait_ms else "accepted", wait_ms or None, submission))
        return await future

    async def _read(self) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, OSError):
            while True:
                kind, seq, *rest = await read_frame(self._reader)
                if kind == 4:
                    self._attached[seq] = rest[2]
                view = rest[3] if kind == 4 else rest[2] if kind == 7 else None
                if kind == 10:
                    self._waiting.pop(seq).set_result(Told(rest[0], _paths(rest[5]), retry_after_ms=rest[4]))
                elif view is not None:
                    told = Told(None, [], view["id"], view["state"], view["position"], view["result"])
                    told.attached = self._attached[seq]
                    self._waiting.pop(seq).set_result(told)

    def close(self) -> None:
        self._task.cancel()
        self._writer.close()


def frame(*elements: Any) -> bytes:
    body = _pack(list(elements))
    return struct.pack(">I", len(body)) + body


async def read_frame(reader: asyncio.StreamReader) -> list[Any]:
    (size,) = struct.unpack(">I", await reader.readexactly(4))
    read: list[Any] = msgspec.msgpack.decode(await reader.readexactly(size))
    return read


def resident_mib(daemon: Daemon) -> float:
    """Memory of the process."""
    assert daemon.process is not None
    with open(f"/proc/{daemon.process.pid}/statm") as statm:
        return int(statm.read().split()[1]) * 4096 / (1 << 20)


def sample(metrics: str, name: str) -> float:
    """The value of a sample of /metrics; 0 where it is not there."""
    for line in metrics.splitlines():
        if line.startswith(name + " "):
            return float(line.rpartition(" ")[2])
    return 0.0
