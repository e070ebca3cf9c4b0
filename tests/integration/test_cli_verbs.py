"""Every verb of the command line: 0, 1, 2 or 3, JSON for programs, a sentence for people, never a traceback."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from coordinator.cli.main import VERBS, main
from tests.integration.daemon import Daemon, Service, config

pytestmark = pytest.mark.asyncio(loop_scope="module")

ORDER: dict[str, Any] = {
    "name": "order",
    "version": 1,
    "steps": [
        {"name": "reserve", "service": "stock", "path": "/reserve", "undo": {"path": "/release"}},
        {"name": "charge", "service": "stock", "path": "/charge", "undo": {"path": "/refund"}},
    ],
    "result": "${steps.charge.path}",
}
NOWHERE = ("--server", "http://127.0.0.1:9")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def daemon(stock: Service, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Daemon]:
    """With the definition ``order``, one finished command, one parked and one running."""
    directory: Path = tmp_path_factory.mktemp("verbs")
    daemon = Daemon(directory, config(directory, {"stock": stock}))
    try:
        await asyncio.to_thread(daemon.start)
        yield daemon
    finally:
        daemon.close()


def _run(arguments: Sequence[str]) -> tuple[int, str, str]:
    out, told = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(told):
        try:
            main(list(arguments))
        except SystemExit as ended:
            code = ended.code
    assert isinstance(code, int)
    return code, out.getvalue(), told.getvalue()


async def run(*arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a verb, run in a thread: the services live on this loop."""
    return await asyncio.to_thread(_run, arguments)


async def process(*arguments: str) -> tuple[int, str, str]:
    """The same as a process of its own: for verbs that take signals."""
    verb = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "coordinator", *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, told = await asyncio.wait_for(verb.communicate(), 60)
    assert verb.returncode is not None
    return verb.returncode, out.decode(), told.decode()


ASKING: dict[str, list[str]] = {
    # each verb that talks to a server, as it is used
    "submit": ["order", "--id", "done", "--payload", "{}"],
    "get": ["done"],
    "watch": ["done"],
    "history": ["done"],
    "explain": ["done"],
    "diagram": ["done"],
    "list": [],
    "pause": ["done"],
    "resume": ["done"],
    "cancel": ["done"],
    "abort": ["done"],
    "retry": ["done"],
    "requeue": ["done", "charge"],
    "resolve": ["done", "charge", "--reason", "by hand"],
    "decide": ["done", "charge", "--approve"],
    "provide": ["done", "otp", "--payload", "1"],
    "decisions": [],
    "replay": ["--service", "stock"],
    "definitions": ["list"],
    "schedules": ["list"],
    "dead-letters": [],
    "quarantine": [],
    "services": [],
    "cluster": [],
    "log": ["explain"],
}
OPERATING = ("pause", "resume", "cancel", "abort", "retry", "requeue", "resolve")
ANSWERING = ("decide", "provide")
ALONE = ("serve", "demo", "simulate", "schema")  # that need no server
NO_JSON = ("diagram", "replay")  # Mermaid; JSON lines as they are


async def test_every_verb_is_tried_here() -> None:
    """A new verb has to be added to the table above."""
    assert {*ASKING, *ALONE} == set(VERBS)


@pytest.mark.parametrize("verb", [verb for verb in ASKING if verb != "replay"])
async def test_without_a_server_it_is_3(verb: str) -> None:
    """And the address is told."""
    code, out, told = await run(verb, *ASKING[verb], *NOWHERE)
    assert (code, out) == (3, "")
    assert "127.0.0.1:9" in told
    assert "Traceback" not in told


@pytest.mark.parametrize(
    "wrong",
    [
        *([verb, *ASKING[verb], "--nonsense"] for verb in ASKING),
        *(
            [verb]
            for verb in ("submit", "get", "watch", "history", "explain", "diagram", "replay", *OPERATING, *ANSWERING)
        ),
        ["cancel", "--dry-run"],
        ["cancel", "done", "--state", "running"],
        ["schema", "everything"],
        ["submit", "order", "--definition", "-"],
        ["submit", "order", "--payload", "{"],
        ["submit", "order", "--payload", "NaN"],
        ["submit", "order", "--payload", "@/no/such/file"],
        ["submit", "order", "--wait", "5"],
        ["submit", "order", "--attribute", "k"],
        ["submit", "--definition", "/no/such/file"],
        ["list", "--state", "gone"],
        ["list", "--limit", "0"],
        ["get", "x", "--server", "ftp://x"],
        ["replay", "--service", "stock", "--rate", "0/s"],
        ["replay", "--service", "stock", "--from", "yesterday"],
        ["definitions", "put", "/no/such/file"],
        ["services", "breaker", "stock", "ajar"],
        ["nonsense"],
        ["serve", "--http", "nowhere"],
        ["serve", "--config", "/no/such/file"],
        ["serve", "--log", "tape"],
        ["serve", "--app", "no_such_module:app"],
    ],
    ids=" ".join,
)
async def test_wrong_usage_is_2(wrong: list[str]) -> None:
    """Before anything is asked of a server; what is wrong is said."""
    code, out, told = await run(*wrong)
    assert (code, out) == (2, "")
    assert told
    assert "Traceback" not in told


async def test_every_verb_tells_programs_in_json(daemon: Daemon) -> None:
    """One document on standard output, nothing on standard error; a refusal is 1, and told there in words."""
    at = ("--server", daemon.http)
    definition = daemon.directory / "order.json"
    definition.write_text(json.dumps(ORDER))
    code, out, _ = await run("definitions", "put", str(definition), "--json", *at)
    assert (code, json.loads(out)["created"]) == (0, True)
    code, out, _ = await run("submit", *ASKING["submit"], "--wait", "20s", "--json", *at)
    done = json.loads(out)
    assert (code, done["state"], done["result"]) == (0, "completed", "/charge")
    for verb, arguments in ASKING.items():
        if verb in NO_JSON:
            continue
        code, out, told = await run(verb, *arguments, "--json", *at)
        if verb in OPERATING:
            assert (code, out) == (1, "")
            assert told.startswith("coordinator: illegal_state: ")
        elif verb in ANSWERING:  # an order asks nothing
            assert (code, out) == (1, "")
            assert told.startswith(("coordinator: unknown_step: ", "coordinator: illegal_state: "))
        else:
            assert (code, told) == (0, ""), verb
            documents = [json.loads(line) for line in out.splitlines()]
            assert documents
            assert len(documents) == 1 or verb == "watch"
    for verb in (["definitions", "get", "order"], ["services", "breaker", "stock", "auto"]):
        code, out, _ = await run(*verb, "--json", *at)
        assert (code, isinstance(json.loads(out), dict)) == (0, True)
    for verb in (["diagram", "done"], ["definitions", "diagram", "order"]):
        assert "reserve" in (await run(*verb, *at))[1]


async def test_every_verb_tells_people_in_words(daemon: Daemon) -> None:
    """The same without --json: what matters is in it."""
    at = ("--server", daemon.http)
    for verb, shown in (
        (["get", "done"], "completed"),
        (["watch", "done"], "final"),
        (["history", "done"], "Submitted"),
        (["explain", "done"], "waits for nothing"),
        (["list"], "done"),
        (["services"], "closed"),
        (["cluster"], "acting"),
        (["definitions", "list"], "order"),
    ):
        code, out, told = await run(*verb, *at)
        assert (code, told) == (0, ""), verb
        assert shown in out, verb
    for verb in (["list", "--state", "failed"], ["dead-letters"]):
        code, out, told = await run(*verb, *at)
        assert (code, out, told.startswith("no ")) == (0, "", True), "nothing is told, but not as if it were a row"


async def test_the_end_of_a_command_is_the_exit_code(daemon: Daemon, stock: Service) -> None:
    """submit, get and watch: 0 while it runs and when it completed, 1 for every other end."""
    at = ("--server", daemon.http)
    stock.answers["/charge"] = [402]
    assert (await run("submit", "order", "--id", "declined", "--wait", "20s", *at))[0] == 1
    assert (await run("get", "declined", *at))[0] == 1
    assert (await run("watch", "declined", *at))[0] == 1
    stock.gate = asyncio.Event()
    assert (await run("submit", "order", "--id", "slow", "--wait", "100ms", *at))[0] == 0
    for verb, state in (("pause", "paused"), ("resume", "running"), ("abort", "aborted")):
        code, out, _ = await run(verb, "slow", "--reason", "a test", "--by", "ann", "--json", *at)
        assert (code, json.loads(out)["state"]) == (0, state)
    stock.gate.set()
    stock.gate = None
    assert (await run("get", "slow", *at))[0] == 1
    _, out, _ = await run("history", "slow", "--json", *at)
    assert [(each["by"], each["reason"]) for each in json.loads(out) if each["kind"] == "Control"] == [
        ("ann", "a test")
    ] * 3


@pytest.mark.parametrize(
    ("verb", "code"),
    [
        (["get", "nobody"], "unknown_command"),
        (["watch", "nobody"], "unknown_command"),
        (["history", "nobody"], "unknown_command"),
        (["explain", "nobody"], "unknown_command"),
        (["diagram", "nobody"], "unknown_command"),
        (["cancel", "nobody"], "unknown_command"),
        (["submit", "nothing"], "unknown_type"),
        (["submit", "order", "--id", "a b"], "invalid_payload"),
        (["submit", "order", "--id", "done", "--payload", "[1]"], "id_conflict"),
        (["definitions", "get", "nothing"], "unknown_definition"),
        (["services", "breaker", "nobody", "open"], "unknown_service"),
        (["list", "--cursor", "x"], "invalid_payload"),
        (["decide", "nobody", "approve", "--reject"], "unknown_command"),
        (["provide", "nobody", "otp", "--payload", "1"], "unknown_command"),
        (["resolve", "nobody", "charge", "--reason", "by hand"], "unknown_command"),
        (["schedules", "get", "nothing"], "unknown_schedule"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
async def test_a_refusal_is_1(daemon: Daemon, verb: list[str], code: str) -> None:
    """With its code and what was wrong."""
    ended, out, told = await run(*verb, "--server", daemon.http)
    assert (ended, out) == (1, "")
    assert told.startswith(f"coordinator: {code}: ")


async def test_replay_ends_with_its_counts(daemon: Daemon, stock: Service) -> None:
    """In log order, resumed at a position, posted under the key of the step, refusals counted; ids of any script."""
    at = ("--server", daemon.http)
    assert (await run("submit", "order", "--id", "日本-é", "--wait", "20s", *at))[0] == 0
    code, out, told = await process("replay", "--service", "stock", *at)
    lines = out.splitlines()
    assert (code, f"sent {len(lines)}, accepted {len(lines)}, refused 0" in told) == (0, True), told
    offsets = [int(json.loads(line)["position"].partition(":")[2]) for line in lines]
    assert offsets == sorted(offsets)
    middle = json.loads(lines[len(lines) // 2])["position"]
    assert (await process("replay", "--service", "stock", "--from", middle, *at))[1].splitlines() == lines[
        len(lines) // 2 :
    ]
    rebuilt = await Service().start()
    try:
        rebuilt.answers["/rebuild"] = [200, 422]
        code, _, told = await process("replay", "--service", "stock", "--to", f"{rebuilt.url}/rebuild", *at)
        assert f"sent {len(lines)}, accepted {len(lines) - 1}, refused 1" in told
        assert code == 1
        assert [arrival.body.decode() for arrival in rebuilt.arrivals] == lines
        assert {arrival.headers["coordinator-replay"] for arrival in rebuilt.arrivals} == {"true"}
        sent = {arrival.headers["idempotency-key"] for arrival in rebuilt.arrivals}
        assert len(sent) == len(lines)
        assert sent < set(stock.remembered), "the keys of the first time"
    finally:
        await rebuilt.stop()
    code, _, told = await process("replay", "--service", "stock", *NOWHERE)
    assert (code, "127.0.0.1:9" in told) == (3, True)
