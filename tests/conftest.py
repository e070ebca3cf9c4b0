"""Fixtures that several suites share."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator

import pytest

from coordinator.log.base import Pointer
from coordinator.log.kafka import KafkaLog
from coordinator.testing.kafka import Cluster


@pytest.fixture(scope="session")
def kafka_bootstrap(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real Kafka: ``KAFKA_BOOTSTRAP`` if it is set, else one started here.  If it cannot start, tests fail."""
    if given := os.environ.get("KAFKA_BOOTSTRAP"):
        yield given
        return
    with Cluster(tmp_path_factory.mktemp("kafka")) as cluster:
        asyncio.run(_warm_up(cluster.bootstrap))
        yield cluster.bootstrap


async def _warm_up(bootstrap: str) -> None:
    """The first use of the lock and of a group creates topics inside Kafka; no test shall pay for that."""
    log = KafkaLog(bootstrap, "warm-up", 1)
    await log.open()
    try:
        writer = await log.writer(0)
        await writer.close()
        await log.save_pointer(0, Pointer(0, 0))
    finally:
        await log.close()
