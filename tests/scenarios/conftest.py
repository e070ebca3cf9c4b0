"""Stages for the scenarios: one in peace for all tests of a file, and deadly ones."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.scenarios.kit import Stage, staged
from tests.scenarios.nursery import Nursery

SERVICES = ("stock", "payments", "shipping")
APP = "tests.scenarios.sagas:app"


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    made = Nursery()
    yield made
    made.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def calm(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    """One daemon for all tests of a file that do not kill it."""
    async with staged(nursery, tmp_path_factory.mktemp("calm"), *SERVICES, app=APP) as stage:
        yield stage


@pytest_asyncio.fixture(loop_scope="module")
async def deadly(nursery: Nursery, tmp_path: Path) -> AsyncIterator[Stage]:
    """A daemon that is killed at every point of a scenario."""
    async with staged(nursery, tmp_path, *SERVICES, app=APP, deadly=True) as stage:
        yield stage


@pytest.fixture(params=["in peace", "killed at every point"])
def stage(request: pytest.FixtureRequest) -> Stage:
    """Both, one after the other."""
    made: Stage = request.getfixturevalue("calm" if request.param == "in peace" else "deadly")
    made.fresh()
    return made


@pytest.fixture(params=["code", "json"])
def form(request: pytest.FixtureRequest) -> str:
    """How the command is written."""
    return str(request.param)
