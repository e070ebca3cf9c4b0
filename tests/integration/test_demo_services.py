"""The example services keep the promise that a saga asks of a service, also over kill -9."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from coordinator.demo.ledger import read_entries


@asynccontextmanager
async def service(name: str, ledger: Path) -> AsyncIterator[httpx.AsyncClient]:
    """One service as a process; killed with -9 at the end of the block."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "coordinator.demo.services", name, "--ledger", str(ledger), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        line = (await process.stdout.readline()).decode()
        address = line.removeprefix("listening on ").strip()
        async with httpx.AsyncClient(base_url=f"http://{address}") as client:
            yield client
    finally:
        process.kill()
        await process.wait()


def key(text: str) -> dict[str, str]:
    return {"Idempotency-Key": text, "Coordinator-Fence": "4.1"}


CHARGE = {"order": "o-1", "amount": 1999}


async def test_a_key_is_answered_again_and_done_once(tmp_path: Path) -> None:
    """Charge, refund, and both again after kill -9: the same answers, one deed each."""
    ledger = tmp_path / "payments.db"
    answers = []
    for _ in range(2):
        async with service("payments", ledger) as client:
            charge = await client.post("/charges", json=CHARGE, headers=key("o-1/charge"))
            refund = await client.post(f"/charges/{charge.json()['id']}/refund", headers=key("o-1/charge/undo"))
            answers.append([(charge.status_code, charge.json()), (refund.status_code, refund.json())])
    assert answers[0] == answers[1] == [(201, {"id": 1}), (200, {"id": 1, "undone": True})]
    assert [(entry.action, entry.asked, entry.fence) for entry in read_entries(ledger)] == [
        ("done", 2, "4.1"),
        ("undone", 2, "4.1"),
    ]


async def test_requests_with_one_key_at_the_same_time_are_one_deed(tmp_path: Path) -> None:
    """A retry that overtakes its first try finds the key, or waits for it."""
    ledger = tmp_path / "payments.db"
    async with service("payments", ledger) as client:
        answers = await asyncio.gather(
            *(client.post("/charges", json=CHARGE, headers=key("o-1/charge")) for _ in range(10))
        )
    assert {answer.text for answer in answers} == {'{"id":1}'}
    assert [(entry.action, entry.asked) for entry in read_entries(ledger)] == [("done", 10)]


@pytest.mark.parametrize(
    ("name", "path", "body", "status"),
    [
        ("stock", "/reservations", {"order": "o-1", "item": "teapot"}, 409),
        ("payments", "/charges", {"order": "o-1", "amount": 90_01}, 402),
        ("shipping", "/shipments", {"order": "o-1", "city": "Atlantis"}, 409),
    ],
)
async def test_a_refusal_is_remembered(
    name: str, path: str, body: dict[str, object], status: int, tmp_path: Path
) -> None:
    """Asked again with the same key, even for something it would do, a service repeats its refusal."""
    async with service(name, tmp_path / "ledger.db") as client:
        first = await client.post(path, json=body, headers=key("k"))
        again = await client.post(
            path, json={"order": "o-1", "item": "lamp", "amount": 1, "city": "Porto"}, headers=key("k")
        )
    assert (first.status_code, again.status_code) == (status, status)
    assert first.json() == again.json()
    assert [(entry.action, entry.asked) for entry in read_entries(tmp_path / "ledger.db")] == [("refused", 2)]


async def test_a_request_that_makes_no_sense_leaves_no_entry(tmp_path: Path) -> None:
    """No key, no JSON, a missing field, an unknown charge: a 4xx that says what is wrong, and nothing in the ledger."""
    async with service("payments", tmp_path / "ledger.db") as client:
        answers = [
            await client.post("/charges", json=CHARGE),
            await client.post("/charges", content=b"{", headers=key("a")),
            await client.post("/charges", json={"order": "o-1"}, headers=key("b")),
            await client.post("/charges/7/refund", headers=key("c")),
        ]
    assert [answer.status_code for answer in answers] == [400, 400, 400, 404]
    assert all(answer.json()["message"] for answer in answers)
    assert read_entries(tmp_path / "ledger.db") == []
