"""Services misbehave, the daemon is killed with -9 again and again: nothing lost, doubled or half done."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.integration.soak import Soak


@pytest.fixture(params=["sqlite", "kafka"])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The [log] section."""
    data = f'data_dir = "{tmp_path / "data"}"'
    if request.param == "sqlite":
        return data
    bootstrap, topic = request.getfixturevalue("kafka_bootstrap"), f"soak{time.monotonic_ns()}"
    return f'{data}\nkind = "kafka"\nbootstrap = "{bootstrap}"\ntopic = "{topic}"\npartitions = 2'


async def test_no_kill_loses_doubles_or_halves_a_command(log: str, tmp_path: Path) -> None:
    """Every accepted command ends once, and the services' ledgers agree with what clients were told (see `soak`)."""
    soak = Soak(tmp_path / "daemon", log, commands=120, kills=3, seed=20)
    states = await soak.run()
    assert soak.faults == []
    assert states.total() == 120
    assert states["completed"] > 40
    assert states["compensated"] > 20
