"""The headers of the worked examples tell the truth: their commands are typed as they stand, against the daemon."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import re
import shlex
import socket
from collections.abc import AsyncIterator, Sequence
from importlib import import_module
from pathlib import Path

import httpx
import pytest
import uvicorn

from coordinator.cli.main import main
from examples.services import build
from tests.scenarios.kit import QuickDaemon
from tests.scenarios.nursery import Nursery

ROOT = Path(__file__).parents[2]
COMMENT = re.compile(r"\s{3,}# .*")

SEEN = {
    "card_payment": ['"revision": 2', '"waiting_for": ["Otp"]', "generate_invoice#2"],
    "netbanking": ['"waiting_for": ["BankAnswer"]', '"state": "completed"', "/thanks/pt"],
    "fulfilment": ['"state": "completed"', "/carriers/courier", "/carriers/post", "tell"],
    "approval": ['"roles": ["manager"]', '"by": "ann"', "our fault", "/bank/refunds"],
    "pipeline": ["/warehouse/enrichments", '"state": "completed"'],
    "repair": ['"step": "label"', '"state": "completed"', "credit note 77 was written by hand", "compensated"],
    "monthly": ["Europe/Zurich", '"next"', '"state": "paused"'],
}
"""What is seen when the commands of a header are typed: in their answers, or in the services' terminal."""


@pytest.fixture
async def terminal() -> AsyncIterator[tuple[int, list[str]]]:
    """The services of the examples: their port, and what they show."""
    shown: list[str] = []
    server = uvicorn.Server(uvicorn.Config(build(shown.append), log_level="error", access_log=False, lifespan="off"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server.install_signal_handlers = lambda: None  # type: ignore[method-assign]
        serving = asyncio.create_task(server._serve([listener]))
        yield listener.getsockname()[1], shown
        server.should_exit = True
        await serving


def commands_of(name: str) -> list[list[str]]:
    """The commands in an example's header, without the first, which starts the daemon."""
    header = str(import_module(f"examples.{name}").__doc__).replace("\\\n", " ")
    lines = [COMMENT.sub("", line).strip() for line in header.splitlines() if line.startswith("    ")]
    serve, *rest = [shlex.split(line) for line in lines]
    assert serve == ["coordinator", "serve", "--config", "examples/worked.toml", "--app", f"examples.{name}:app"]
    return rest


async def typed(arguments: Sequence[str], server: str) -> str:
    """What a verb prints for programs."""

    def run() -> tuple[int, str]:
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out), pytest.raises(SystemExit) as ended:
            main([*arguments, "--server", server, *(["--json"] if "diagram" not in arguments else [])])
        return int(ended.value.code or 0), out.getvalue()

    code, told = await asyncio.to_thread(run)
    async with asyncio.timeout(10):
        while code == 1 and "illegal_state" in told:  # a test types faster than a person
            await asyncio.sleep(0.02)
            code, told = await asyncio.to_thread(run)
    assert code == 0, (arguments, told)
    with contextlib.suppress(json.JSONDecodeError):
        told = json.dumps(json.loads(told), ensure_ascii=False)
    return told


async def fetched(arguments: Sequence[str], shown: list[str]) -> str:
    """What curl gets, of an address that stands in the services' terminal."""
    placeholder = re.search("[A-Z]+_TO", arguments[0])
    assert placeholder is not None
    found = re.search(f'"{placeholder[0].lower()}": "([^"]+)"', "\n".join(shown))
    assert found is not None, shown
    url = arguments[0].replace(placeholder[0], found[1])
    async with httpx.AsyncClient() as client:
        method, body = ("POST", arguments[arguments.index("-d") + 1]) if "-d" in arguments else ("GET", None)
        headers = {"content-type": "application/x-www-form-urlencoded"} if body else {}
        answer = await client.request(method, url, content=body, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.text


@pytest.mark.parametrize("name", SEEN)
async def test_the_commands_of_a_header_do_what_it_says(
    name: str, nursery: Nursery, tmp_path: Path, terminal: tuple[int, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Typed one after the other at the root of the checkout; each succeeds, and what was to be seen is seen."""
    monkeypatch.chdir(ROOT)
    port, shown = terminal
    content = (ROOT / "examples" / "worked.toml").read_text().replace(":9010/", f":{port}/")
    config = re.sub(r'data_dir = ".*"', f'data_dir = "{tmp_path / "data"}"', content)
    config = re.sub(r"\[listen\]\n(.+\n)+", "", config)
    daemon = QuickDaemon(nursery, tmp_path, config, app=f"examples.{name}:app")
    await asyncio.to_thread(daemon.start)
    told: list[str] = []
    try:
        for program, *arguments in commands_of(name):
            told.append(await (fetched(arguments, shown) if program == "curl" else typed(arguments, daemon.http)))
    finally:
        daemon.close()
    seen = "\n".join([*told, *shown])
    for each in SEEN[name]:
        assert each in seen, seen


def test_an_example_survives_the_simulator(monkeypatch: pytest.MonkeyPatch) -> None:
    """`coordinator simulate --app examples.x:app` finds nothing, crashed at every append and call."""
    monkeypatch.chdir(ROOT)
    arguments = ["--app", "examples.pipeline:app", "--type", "Pipeline", "--payload", '{"day": "2026-11-21"}']
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out), pytest.raises(SystemExit) as ended:
        main(["simulate", *arguments, "--seeds", "2"])
    assert ended.value.code == 0, out.getvalue()
