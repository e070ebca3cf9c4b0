"""10. The same engine inside a user's own process, on the daemon's own files; schemas that editors check by."""

from __future__ import annotations

import contextlib
import io
import json
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import coordinator
from coordinator import FakeClock
from coordinator.cli.main import main
from tests.scenarios.kit import definition, staged, step
from tests.scenarios.nursery import Nursery
from tests.scenarios.sagas import app

EXAMPLES = Path(__file__).parents[2] / "examples"
WAITS = definition("waits", step("a"), {"name": "news", "data": "news"}, step("z", body="${steps.news}"))
SERVICES = ("stock", "payments", "shipping")


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_a_saga_runs_inside_of_my_process(kind: str, form: str, tmp_path: Path) -> None:
    """In memory or on disk, with a clock and services of the test's own: a sleep of a month takes no time."""
    data_dir = tmp_path / "data" if kind == "sqlite" else None
    slept: Any = definition("slept", step("a"), {"name": "sleep", "sleep": "30d"}, step("z"))
    async with coordinator.embedded(app, data_dir=data_dir, clock=FakeClock(), services=SERVICES) as c:
        c.services["stock"].on("POST", "*").answers(200)
        what, payload = ("Sleeper", {"duration": "30d"}) if form == "code" else (slept, {})
        view = await c.run(what, payload, within="31d")
        assert view.state == "completed"
        assert [call.step for call in c.calls] == ["a", "z"]


async def test_what_one_begins_the_other_ends(nursery: Nursery, tmp_path: Path, form: str) -> None:
    """The files are the daemon's: it goes on with a command that an embedded coordinator has left waiting."""
    what: Any = "Told" if form == "code" else WAITS
    async with coordinator.embedded(app, data_dir=tmp_path / "data", services=SERVICES, name="scenarios") as c:
        c.services["stock"].on("POST", "*").answers(200)
        await c.submit(what, {}, id="c-1")
        await c.provide("c-1", "news", "first")
        await c.settled()
    async with staged(nursery, tmp_path, *SERVICES, app="tests.scenarios.sagas:app") as stage:
        if form == "code":
            await stage.waiting("c-1", "news")
            await stage.provide("c-1", "news", "second")
        await stage.ended("c-1")
        assert not stage.parties["stock"].has_been_asked("c-1", "a")


def schema_of(what: str) -> Any:
    """What `coordinator schema` prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        main(["schema", what])
    return json.loads(out.getvalue())


def test_an_editor_checks_definitions() -> None:
    """Those of the examples are right; a misspelt field and a wrong value are marked."""
    validator = jsonschema.Draft202012Validator(schema_of("definition"))
    files = [file for file in EXAMPLES.glob("*.json") if file.name != "monthly.json"]
    assert len(files) > 5
    for file in files:
        validator.validate(json.loads(file.read_text()))
    for wrong in (step("a", timout="2s"), step("a", join="some"), {"name": "a", "data": "x", "service": "stock"}):
        assert not validator.is_valid(definition("wrong", wrong)), wrong


def test_an_editor_checks_configurations() -> None:
    """As above, of coordinator.toml."""
    validator = jsonschema.Draft202012Validator(schema_of("config"))
    for file in EXAMPLES.glob("*.toml"):
        validator.validate(tomllib.loads(file.read_text()))
    assert not validator.is_valid({"coordinator": {"max_commandos": 5}})
    assert not validator.is_valid({"log": {"kind": "paper"}})
