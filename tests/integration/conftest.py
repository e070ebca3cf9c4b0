"""Fixtures of the tests that run real daemons."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from tests.integration.daemon import Daemon, Service, config, services


@pytest.fixture
async def world() -> AsyncIterator[dict[str, Service]]:
    """Three services that do what their scripts say."""
    async with services("stock", "payments", "shipping") as started:
        yield started


@pytest.fixture
def daemons() -> Iterator[list[Daemon]]:
    """Whatever a test puts in is stopped."""
    made: list[Daemon] = []
    yield made
    for daemon in made:
        daemon.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stock() -> AsyncIterator[Service]:
    """One service for all tests of a module."""
    async with services("stock") as started:
        yield started["stock"]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def daemon(stock: Service, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Daemon]:
    """One daemon on SQLite for all tests of a module, with the service ``stock``."""
    directory = tmp_path_factory.mktemp("daemon")
    daemon = Daemon(directory, config(directory, {"stock": stock}))
    try:
        await asyncio.to_thread(daemon.start)
        yield daemon
    finally:
        daemon.close()
