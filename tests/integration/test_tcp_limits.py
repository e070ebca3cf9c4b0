"""Hostile TCP clients of a real daemon: each meets its limit, memory stays flat, and others are served meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from coordinator_client import AsyncClient

from tests.integration.daemon import Daemon, Service, config, services

LIMITS = """
[limits]
connections = 20
read_timeout = "300ms"
"""
DEFINITION = {"name": "one", "version": 1, "steps": [{"name": "a", "service": "stock", "path": "/a", "body": {}}]}
HELLO = [0, 0, "coordinator", 1, 1, "hostile", {}]


def frame(*values: Any) -> bytes:
    body = msgspec.msgpack.encode(list(values))
    return len(body).to_bytes(4, "big") + body


async def read(reader: asyncio.StreamReader) -> list[Any]:
    length = int.from_bytes(await reader.readexactly(4), "big")
    found: list[Any] = msgspec.msgpack.decode(await reader.readexactly(length))
    return found


@contextlib.asynccontextmanager
async def connected(daemon: Daemon) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", daemon.ports["tcp"])
    try:
        async with asyncio.timeout(30):
            yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


def memory_mb(daemon: Daemon) -> float:
    """Resident memory of the daemon's process."""
    assert daemon.process is not None
    status = Path(f"/proc/{daemon.process.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


@pytest.fixture
async def stock() -> AsyncIterator[Service]:
    async with services("stock") as started:
        yield started["stock"]


@pytest.fixture
async def daemon(tmp_path: Path, stock: Service) -> AsyncIterator[Daemon]:
    """A daemon with small limits, started."""
    daemon = Daemon(tmp_path, config(tmp_path, {"stock": stock}) + LIMITS)
    try:
        await asyncio.to_thread(daemon.start)
        yield daemon
    finally:
        daemon.close()


async def is_served(daemon: Daemon) -> None:
    """An honest client gets its command done."""
    async with AsyncClient(daemon.tcp) as client:
        assert (await client.submit(definition=DEFINITION, payload={"n": 1}, wait="10s", deadline="10s")).ok


async def test_megabytes_behind_an_oversized_prefix_are_dropped(daemon: Daemon) -> None:
    """The Error is readable although the client keeps sending, and nothing of what it sends is kept."""
    before = memory_mb(daemon)
    for _ in range(5):
        async with connected(daemon) as (reader, writer):
            writer.write(frame(*HELLO))
            await read(reader)
            writer.write(b"\x7f\xff\xff\xff")
            with contextlib.suppress(ConnectionError):
                for _ in range(160):
                    writer.write(b"x" * 65_536)
                    await writer.drain()
            assert (await read(reader))[:3] == [10, 0, "too_large"]
    assert memory_mb(daemon) < before + 20
    await is_served(daemon)


async def test_half_a_frame_is_not_kept_for_ever(daemon: Daemon) -> None:
    """A frame that never ends is given up after read_timeout, with the reason."""
    async with connected(daemon) as (reader, writer):
        writer.write(frame(*HELLO))
        await read(reader)
        writer.write(b"\x00\x00\x10\x00\x96")
        error = await read(reader)
        assert error[:3] == [10, 0, "deadline_exceeded"]
        assert "not completed" in error[4]
        assert await reader.read() == b""


async def test_a_connection_too_many_is_told_so_and_the_others_stay(daemon: Daemon) -> None:
    """Above `limits.connections` a newcomer gets a retryable Error; when one leaves there is room again."""
    async with contextlib.AsyncExitStack() as stack:
        held = [await stack.enter_async_context(connected(daemon)) for _ in range(20)]
        for reader, writer in held:
            writer.write(frame(*HELLO))
            await read(reader)
        async with connected(daemon) as (reader, writer):
            writer.write(frame(*HELLO))
            error = await read(reader)
            assert (error[:3], error[5]) == ([10, 0, "limit_reached"], True)
        for number, (reader, writer) in enumerate(held):
            writer.write(frame(11, number))
            assert await read(reader) == [12, number]
    await is_served(daemon)


async def test_a_client_that_never_reads_is_bounded_and_hurts_nobody(daemon: Daemon) -> None:
    """Answers that pile up stop the reading of more requests: memory stays flat while others are served."""
    async with AsyncClient(daemon.tcp) as client:
        big = await client.submit(definition=DEFINITION, payload={"pad": "x" * 200_000}, wait="10s")
        assert big.ok
    before = memory_mb(daemon)
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(5):
            _, writer = await stack.enter_async_context(connected(daemon))
            writer.write(frame(*HELLO))
            for seq in range(1, 1001):
                writer.write(frame(2, seq, "get", None, {"id": big.id}))
        await is_served(daemon)
        assert memory_mb(daemon) < before + 30, "five clients asked for 200 MB each"
    await is_served(daemon)
