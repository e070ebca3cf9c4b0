"""The verbs against the real daemon: what a person types, one after the other."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import httpx
import pytest

from coordinator.cli.main import main
from tests.integration.daemon import Daemon, Service, config, services

ORDER: dict[str, Any] = {
    "name": "order",
    "version": 1,
    "steps": [
        {"name": "reserve", "service": "stock", "path": "/reserve", "undo": {"path": "/release"}},
        {"name": "charge", "service": "payments", "path": "/charge", "undo": {"path": "/refund"}},
    ],
    "result": "${steps.charge.id}",
}


def _run(arguments: Sequence[str], stdin: str) -> tuple[int, str, str]:
    out, told = io.StringIO(), io.StringIO()
    given = io.TextIOWrapper(io.BytesIO(stdin.encode()))
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(told),
        mock.patch.object(sys, "stdin", given),
        pytest.raises(SystemExit) as ended,
    ):
        main(list(arguments))
    assert isinstance(ended.value.code, int)
    return ended.value.code, out.getvalue(), told.getvalue()


class Shop:
    """A daemon with two services, and a command line that talks to it."""

    def __init__(self, daemon: Daemon, services: dict[str, Service]) -> None:
        self.daemon = daemon
        self.services = services

    async def run(self, *arguments: str, stdin: str = "") -> tuple[int, str, str]:
        """Exit code, standard output, standard error of a verb, run in a thread: the services live on this loop.

        One at a time.
        """
        code, out, told = await asyncio.to_thread(_run, [*arguments, "--server", self.daemon.http], stdin)
        assert "Traceback" not in told
        return code, out, told

    async def process(self, *arguments: str) -> tuple[int, str, str]:
        """The same as a process of its own: for verbs that take signals."""
        verb = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "coordinator", *arguments, "--server", self.daemon.http,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, told = await asyncio.wait_for(verb.communicate(), 60)
        assert verb.returncode is not None
        return verb.returncode, out.decode(), told.decode()

    async def json(self, *arguments: str, code: int = 0) -> Any:
        """The JSON that a verb prints."""
        ended, out, told = await self.run(*arguments, "--json")
        assert ended == code, told
        return json.loads(out)

    async def submit(self, id: str, **more: Any) -> None:
        """Submits an order without a process of its own, where the submission is not what is tested."""
        async with httpx.AsyncClient(base_url=self.daemon.http, trust_env=False) as client:
            (await client.post("/v1/commands", json={"id": id, "type": "order", **more})).raise_for_status()

    async def shown(self, id: str, state: str) -> None:
        """Waits until the command shows this state."""
        async with httpx.AsyncClient(base_url=self.daemon.http, trust_env=False) as client:
            while (await client.get(f"/v1/commands/{id}", params={"wait": "100ms"})).json()["state"] != state:
                pass


@pytest.fixture
async def shop(tmp_path: Path) -> AsyncIterator[Shop]:
    """The definition ``order`` is registered."""
    async with services("stock", "payments") as running:
        daemon = Daemon(tmp_path / "daemon", config(tmp_path, running))
        try:
            await asyncio.to_thread(daemon.start)
            made = Shop(daemon, running)
            code, _, told = await made.run("definitions", "put", "-", stdin=json.dumps(ORDER))
            assert code == 0, told
            yield made
        finally:
            daemon.close()


async def test_a_command_from_submission_to_history(shop: Shop) -> None:
    """submit, get, watch, history, explain, diagram and list agree about one command."""
    submitted = await shop.json(
        "submit", "order", "--id", "o-1", "--payload", "{}", "--wait", "20s", "--attribute", "k=v"
    )
    assert (submitted["state"], submitted["id"]) == ("completed", "o-1")
    assert await shop.json("get", "o-1") == submitted
    code, out, _ = await shop.run("watch", "o-1", "--json")
    assert (code, json.loads(out.splitlines()[-1])["kind"]) == (0, "final")
    kinds = [row["kind"] for row in await shop.json("history", "o-1")]
    assert (kinds[0], kinds[-1], len(kinds)) == ("Submitted", "Finished", 4)
    assert (await shop.json("explain", "o-1"))["state"] == "completed"
    assert "reserve" in (await shop.run("diagram", "o-1"))[1]
    listed = await shop.json("list", "--state", "completed", "--attribute", "k=v")
    assert [command["id"] for command in listed["commands"]] == ["o-1"]
    assert "o-1" in (await shop.run("list"))[1]


async def test_a_declined_command_exits_with_1(shop: Shop) -> None:
    """Undone is an end, but not the one that was wanted."""
    shop.services["payments"].answers["/charge"] = [409]
    code, out, _ = await shop.run("submit", "order", "--wait", "20s")
    assert code == 1
    assert "compensated" in out


async def test_refusals_are_told(shop: Shop) -> None:
    """Unknown command, unknown type, a version that is taken, an operation that is not legal."""
    code, _, told = await shop.run("get", "nobody")
    assert (code, told.startswith("coordinator: unknown_command: ")) == (1, True)
    code, _, told = await shop.run("submit", "nothing")
    assert (code, "unknown_type" in told) == (1, True)
    code, _, told = await shop.run("definitions", "put", "-", stdin=json.dumps({**ORDER, "result": None}))
    assert (code, "definition_conflict" in told) == (1, True)
    await shop.json("submit", "order", "--id", "o-1", "--wait", "20s")
    code, _, told = await shop.run("pause", "o-1")
    assert (code, "illegal_state" in told, "legal in the states" in told) == (1, True, True)


async def test_a_parked_undo_is_requeued(shop: Shop) -> None:
    """dead-letters shows it, requeue with another input lets the undo go on, and the history has who did it."""
    shop.services["payments"].answers["/charge"] = [409]
    shop.services["stock"].answers["/release"] = [422]
    await shop.json("submit", "order", "--id", "o-1", "--payload", "{}")
    assert (await shop.json("get", "o-1", "--wait", "1s"))["state"] == "dead_letter"
    assert "o-1" in (await shop.run("dead-letters"))[1]
    await shop.json("requeue", "o-1", "reserve", "--input", '{"amount": 1}', "--by", "ann", "--reason", "typo")
    assert (await shop.json("get", "o-1", "--wait", "20s", code=1))["state"] == "compensated"
    assert shop.services["stock"].arrivals[-1].json == {"amount": 1}
    assert any(row.get("by") == "ann" for row in await shop.json("history", "o-1"))


APPROVED: dict[str, Any] = {
    "name": "approved",
    "version": 1,
    "steps": [
        {"name": "reserve", "service": "stock", "path": "/reserve", "undo": {"path": "/release"}},
        {"name": "approve", "decision": {"input": "${payload.amount}", "roles": ["boss"], "timeout": "24h"}},
        {"name": "otp", "data": "code"},
        {"name": "charge", "service": "payments", "path": "/charge", "body": "${steps.otp}"},
    ],
}


async def test_people_and_programs_answer(shop: Shop) -> None:
    """decisions lists what is asked, decide answers once and only by role, provide brings the data; all in the
    history."""
    code, _, told = await shop.run("definitions", "put", "-", stdin=json.dumps(APPROVED))
    assert code == 0, told
    await shop.submit("o-1", type="approved", payload={"amount": 7})
    await shop.shown("o-1", "waiting")
    asked = await shop.json("decisions")
    assert [(row["command_id"], row["step"], row["input"], row["roles"]) for row in asked] == [
        ("o-1", "approve", 7, ["boss"])
    ]
    assert "approve" in (await shop.run("decisions"))[1]
    code, _, told = await shop.run("decide", "o-1", "approve", "--approve", "--role", "clerk")
    assert (code, told.startswith("coordinator: forbidden: "), "roles that may: boss" in told) == (1, True, True)
    yes = ("decide", "o-1", "approve", "--approve", "--role", "boss", "--by", "ann", "--comment", "fine")
    await shop.json(*yes)
    code, _, told = await shop.run("decide", "o-1", "approve", "--reject", "--role", "boss", "--by", "bob")
    assert (code, "illegal_state" in told, "ann" in told) == (1, True, True)
    code, _, told = await shop.run("provide", "o-1", "pin", "--payload", "1")
    assert (code, "unknown_step" in told, "code" in told) == (1, True, True)
    await shop.json("provide", "o-1", "code", "--payload", '{"pin": 1234}', "--signal-id", "s-1", "--by", "ann")
    assert (await shop.json("get", "o-1", "--wait", "20s"))["state"] == "completed"
    assert shop.services["payments"].arrivals[-1].json == {"pin": 1234}
    assert [row["by"] for row in await shop.json("history", "o-1") if row["kind"] == "Signal"] == ["ann", "ann"]


async def test_a_failed_undo_is_resolved_by_hand(shop: Shop) -> None:
    """The command ends as if it had been undone; who said so is in its history."""
    shop.services["payments"].answers["/charge"] = [409]
    shop.services["stock"].answers["/release"] = [422]
    await shop.submit("o-1")
    await shop.shown("o-1", "dead_letter")
    await shop.json("resolve", "o-1", "reserve", "--reason", "released by telephone", "--by", "ann")
    assert (await shop.json("get", "o-1", "--wait", "20s", code=1))["state"] == "compensated"
    assert [(row["by"], row["reason"]) for row in await shop.json("history", "o-1") if row["kind"] == "Control"] == [
        ("ann", "released by telephone")
    ]


async def test_many_commands_at_once(shop: Shop) -> None:
    """A dry run changes nothing; a cancel by filter reaches all that wait and nothing else; --delay makes them wait."""
    await shop.json("submit", "order", "--id", "other", "--delay", "1h")
    await shop.submit("done")
    await shop.shown("done", "completed")
    for number in range(12):
        await shop.submit(f"later-{number}", delay="1h", attributes={"batch": "7"})
    batch = ("--type", "order", "--state", "waiting", "--attribute", "batch=7")
    code, out, told = await shop.run("cancel", *batch, "--dry-run", "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert (code, len(rows), {(row["state"], row["legal"]) for row in rows}) == (0, 12, {("waiting", True)}), told
    assert (await shop.json("get", "later-3"))["waiting_for"] == ["start"]
    code, out, told = await shop.run("cancel", *batch, "--reason", "wrong batch", "--by", "ann")
    assert (code, out.count("done "), told) == (0, 12, "12 done\n")
    assert (await shop.json("get", "later-3", "--wait", "20s", code=1))["state"] == "failed"
    assert (await shop.json("get", "other"))["state"] == "waiting"
    code, out, _ = await shop.run("abort", "other", "done")
    assert (code, [line.split()[0] for line in out.splitlines()]) == (1, ["done", "refused"])


async def test_dead_letters_go_again_by_filter(shop: Shop) -> None:
    """Every parked undo of a step, after its service was mended."""
    shop.services["payments"].answers["/charge"] = [409] * 3
    shop.services["stock"].answers["/release"] = [422] * 3
    for number in range(3):
        await shop.submit(f"o-{number}")
    for number in range(3):
        await shop.shown(f"o-{number}", "dead_letter")
    stuck = ("--type", "order", "--step", "reserve", "--service", "stock")
    assert len(await shop.json("dead-letters", *stuck)) == 3
    assert await shop.json("dead-letters", "--step", "charge") == []
    code, out, _ = await shop.run("requeue", *stuck, "--dry-run")
    assert (code, out.count("yes")) == (0, 3)
    code, out, _ = await shop.run("requeue", *stuck, "--by", "ann")
    assert (code, out.count("done ")) == (0, 3)
    for number in range(3):
        await shop.shown(f"o-{number}", "compensated")


async def test_a_breaker_is_held_open(shop: Shop) -> None:
    """New commands are refused with the service's name; auto lets them in again."""
    await shop.json("services", "breaker", "stock", "open")
    code, _, told = await shop.run("submit", "order")
    assert (code, "suspended" in told, "stock" in told) == (1, True, True)
    await shop.json("services", "breaker", "stock", "auto")
    assert (await shop.json("submit", "order", "--wait", "20s"))["state"] == "completed"
    assert "stock" in (await shop.run("services"))[1]
    assert (await shop.run("cluster"))[0] == 0


async def test_a_service_is_rebuilt_from_its_outcomes(shop: Shop) -> None:
    """replay prints what was recorded, and posts the same to a service that has forgotten everything."""
    for number in range(5):
        await shop.json("submit", "order", "--id", f"o-{number}", "--wait", "20s")
    code, out, told = await shop.process("replay", "--service", "stock")
    printed = [json.loads(line) for line in out.splitlines()]
    assert (code, len(printed)) == (0, 5)
    assert "sent 5, accepted 5" in told
    empty = await Service().start()
    try:
        code, _, _ = await shop.process("replay", "--service", "stock", "--to", f"{empty.url}/rebuild")
        assert code == 0
        assert [arrival.json for arrival in empty.arrivals] == printed
        assert {arrival.key for arrival in empty.arrivals} == {f"o-{number}/reserve" for number in range(5)}
        last = printed[-1]["position"]
        assert (await shop.process("replay", "--service", "stock", "--from", last))[1].count("\n") == 1
    finally:
        await empty.stop()
    assert (await shop.process("replay", "--service", "nobody"))[0] == 1


async def test_waiting_outlasts_a_kill(shop: Shop) -> None:
    """submit --wait goes on through kill -9 and a restart, and brings the result."""
    shop.services["payments"].gate = asyncio.Event()
    submission = asyncio.create_task(shop.json("submit", "order", "--id", "o-1", "--wait", "60s"))
    await shop.services["payments"].until(lambda: bool(shop.services["payments"].arrivals))
    shop.daemon.kill()
    shop.services["payments"].gate.set()
    shop.services["payments"].gate = None
    await asyncio.to_thread(shop.daemon.start)
    assert (await submission)["state"] == "completed"
    assert len(shop.services["stock"].arrivals) == 1
