"""The choice of a client between a refusal at once and a bounded wait for a slot."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import httpx
import pytest
from coordinator_client import AsyncClient, LimitReached, WaitTimeout

from tests.integration.daemon import Daemon, config, services

ONE = {"name": "one", "version": 1, "steps": [{"name": "ship", "service": "shipping", "path": "/ship"}]}


async def test_a_client_may_wait_for_a_slot_on_every_transport(tmp_path: Path) -> None:
    """admit_within: accepted as soon as a slot is free; refused when the time is up, and nothing is recorded then."""
    async with services("shipping") as world:
        daemon = Daemon(tmp_path, config(tmp_path, world, engine="max_commands = 1"))
        await asyncio.to_thread(daemon.start)
        gate = world["shipping"].gate = asyncio.Event()
        try:
            async with (
                httpx.AsyncClient(base_url=daemon.http, timeout=20) as http,
                AsyncClient(daemon.tcp) as tcp,
            ):
                first = await http.post("/v1/commands", json={"id": "first", "definition": ONE})
                assert first.status_code == 202
                body = {"id": "short", "definition": ONE, "admit_within": "300ms"}
                began = time.monotonic()
                assert (await http.post("/v1/commands", json=body)).json()["code"] == "limit_reached"
                assert 0.3 <= time.monotonic() - began < 5
                with pytest.raises((LimitReached, WaitTimeout)):
                    await tcp.submit(definition=ONE, payload=None, id="short-2", admit_within="200ms", deadline=0.6)
                assert (await http.get("/v1/commands/short")).status_code == 404
                patient = {"id": "long", "definition": ONE, "admit_within": "15s"}
                over_http = asyncio.create_task(http.post("/v1/commands", params={"wait": "10s"}, json=patient))
                over_tcp = asyncio.create_task(
                    tcp.submit(definition=ONE, payload=None, id="long-2", admit_within="15s", wait="15s")
                )
                await asyncio.wait([over_http, over_tcp], timeout=0.3)
                gate.set()
                assert (await over_http).json()["state"] == "completed"
                assert (await over_tcp).state == "completed"
        finally:
            daemon.close()
