"""Fixtures of the tests that run real daemons."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.integration.daemon import Daemon, Service, services


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
