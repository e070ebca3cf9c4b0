"""The short run of `make test`: a kill, a hang and a rolling restart of three daemons on three brokers under load."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest

from tests.chaos.instances import ROOT

FAULTS = ("kill", "hang", "rolling restart")


@pytest.mark.timeout(240)
async def test_a_killed_a_hung_and_three_drained_instances_lose_and_contradict_nothing(tmp_path: Path) -> None:
    """Every command ends as clients were told, no error passes the client library, and each fault is over in time.

    How long it takes is judged loosely here, on a machine that does other things meanwhile; `make chaos` is strict.
    """
    report = tmp_path / "report.json"
    arguments = [
        "--only",
        ",".join(FAULTS),
        "--session",
        "3",
        "--quiet",
        "0.5",
        "--workers",
        "6",
        "--json",
        str(report),
    ]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.chaos", *arguments),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert report.exists(), output.decode()
    told = json.loads(report.read_bytes())
    assert told["faults"] == [], output.decode()
    rows = {row["fault"]: row for row in told["rows"]}
    for row in rows.values():
        assert (row["lost"], row["contradicted"], row["errors"], row["complaints"]) == (0, 0, 0, []), output.decode()
    assert all(rows[fault]["commands"] > 50 for fault in FAULTS)
    assert 0 < max(rows["kill"]["takeovers"]) < 5
    assert 0 < max(rows["hang"]["takeovers"]) < 12
