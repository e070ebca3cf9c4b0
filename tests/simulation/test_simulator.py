"""Whole daemons in played worlds: thousands of seeds keep every promise, and every shortcut is found."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from coordinator.log.memory import Fault
from coordinator.log.owned import OwnedPartition
from coordinator.model.records import SCHEMA, Epoch
from coordinator.testing.simulator import WHOLE, Cut, Report, command_line, search, shrink, simulate
from coordinator.testing.simulator.__main__ import main
from coordinator.testing.simulator.plan import FAULTS, plan
from coordinator.testing.simulator.process import Process
from coordinator.testing.simulator.world import World
from coordinator.wire.codec import encode
from tests.simulation import mutants

SEEDS = int(os.environ.get("SIMULATOR_SEEDS", "2500"))
MINUTES = 1.0  # on a busy machine it is as many as fit

pytestmark = pytest.mark.timeout(600)  # the first test that asks for the seeds waits for all of them


# ---------------------------------------------------------------- the promises


@pytest.fixture(scope="module")
def reports() -> list[Report]:
    """All cores run them, for a minute at most."""
    found = list(search(0, SEEDS, minutes=MINUTES))
    assert len(found) >= min(SEEDS, 200)
    return found


def test_every_promise_is_kept(reports: list[Report]) -> None:
    """Nothing accepted is lost, nobody contradicts, no effect is left half, nobody waits for ever."""
    broken = [f"{command_line(each)}: {each.violations[0]}" for each in reports if each.violations]
    assert not broken, "\n".join(broken)


def test_the_worlds_reach_what_they_are_about(reports: list[Report]) -> None:
    """Every end and every fault occurs, many times: promises are easily kept where nothing happens."""
    ends = sum((Counter(each.ends) for each in reports), Counter[str]())
    assert all(ends[state] > len(reports) / 30 for state in ("completed", "compensated", "failed", "aborted")), ends
    faults = sum((Counter(each.faults) for each in reports), Counter[str]())
    for kind in ("lose_ack", "lose_request", "late", "stall", "refuse", "no_offset"):
        assert faults[f"append: {kind}"] > len(reports) / 20, faults
    for kind in ("crash before an append", "crash after an append", "crash before a call", "crash after a call"):
        assert faults[kind] > len(reports) / 60, faults
    for kind in ("pause", "service down", "cut off from the log", "clock jump", "call twice", "operator: cancel"):
        assert faults[kind] > len(reports) / 10, faults
    for kind in (
        "link broken",
        "peers cut",
        "cut off from the group",
        "agreement late",
        "SIGTERM",
        "garbage",
        "trimmed",
    ):
        assert faults[kind] > len(reports) / 60, faults
    for kind in ("decided", "late data", "operator: cancel in bulk", "operator: retry"):
        assert faults[kind] > len(reports) / 60, faults
    for kind in ("pointer overwritten", "pointer lost"):
        assert faults[kind] > len(reports) / 60, faults
    assert sum(each.epochs - each.lives for each in reports) > len(reports)  # takeovers and new beginnings


def test_a_seed_replays_to_the_last_bit(reports: list[Report]) -> None:
    """In this process and in another one with other hashes: the trace of all that happened is the same."""
    assert [simulate(seed) for seed in range(30)] == reports[:30]
    program = "from coordinator.testing.simulator import simulate; print([simulate(n).trace for n in range(10)])"
    environment = {**os.environ, "PYTHONHASHSEED": "2"}
    elsewhere = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert elsewhere.stdout.strip() == str([report.trace for report in reports[:10]])


def test_seeds_differ() -> None:
    """Another seed is another world."""
    assert simulate(1).trace != simulate(2).trace


# ---------------------------------------------------------------- each rule taken out


def found(owned: type[OwnedPartition], at_most: int) -> Report:
    """The first seed's report that shows this variant's mistake."""
    for seed in range(at_most):
        report = simulate(seed, owned=owned)
        if report.violations:
            return report
    raise AssertionError(f"{owned.__name__} was not found in {at_most} seeds")


@pytest.mark.parametrize("mutant", mutants.ALL, ids=lambda mutant: mutant.__name__)
def test_every_shortcut_is_found(mutant: type[OwnedPartition]) -> None:
    """Each of the shortcuts that DESIGN lists breaks a promise within a bounded number of seeds."""
    assert found(mutant, 200).violations


@pytest.mark.parametrize("mutant", mutants.ELSEWHERE, ids=lambda mutant: mutant.__name__)
def test_every_rule_taken_out_is_missed(mutant: Callable[[pytest.MonkeyPatch], None]) -> None:
    """So does each rule of snapshots, of the group, of routing, of dedupe and of the core, when it is taken out."""
    with pytest.MonkeyPatch.context() as patch:
        mutant(patch)
        assert found(OwnedPartition, 400).violations


def test_a_failing_seed_is_shrunk() -> None:
    """What is left breaks the same promise with less, and the command to run it says so."""
    failing = found(mutants.SkipsTheGapCheck, 50)
    small = shrink(failing, owned=mutants.SkipsTheGapCheck, runs_max=40)
    assert small.violations
    assert small.cut != WHOLE
    assert simulate(small.seed, small.cut, owned=mutants.SkipsTheGapCheck) == small
    assert f"--replay {small.seed}" in command_line(small)


# ---------------------------------------------------------------- the verb


def test_the_verb_runs_seeds_and_says_what_they_reached(capsys: pytest.CaptureFixture[str]) -> None:
    """One line for the worlds, one for the faults, one for what broke."""
    assert main(["--seeds", "3", "--from", "40", "--jobs", "1"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("3 worlds in")
    assert "broken: nothing" in out


def test_the_verb_replays_one_seed_and_tells_all(capsys: pytest.CaptureFixture[str]) -> None:
    """Every event with its time; the run is made twice, and is the same."""
    assert main(["--replay", "7", "--without", "crash,pause", "--commands", "0,1", "--until", "2.5"]) == 0
    out = capsys.readouterr().out
    assert "acquired  m" in out
    assert "again the same" in out
    assert "crash" not in out


def test_the_verb_names_the_faults_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    """A fault that does not exist is an error that lists those that do."""
    with pytest.raises(SystemExit):
        main(["--replay", "7", "--without", "gremlins"])
    assert "there are crash, pause" in capsys.readouterr().err


# ---------------------------------------------------------------- what it has found


@pytest.mark.parametrize("another", [False, True], ids=["alone", "under one of a dead process"])
def test_a_late_epoch_does_not_leave_two_standbys(tmp_path: Path, another: bool) -> None:
    """An Epoch of a dead attempt fences the owner: its author, a standby by then, must take over, or nobody does."""
    calm = replace(plan(0, Cut(commands=(), without=FAULTS)), group=False, instances=2, partitions=1)
    world = World(calm, tmp_path)
    first, second = world.machines

    async def until_owned_by(process: Process) -> None:
        while world.judge.owners(0) != [process.name]:  # noqa: ASYNC110 - in virtual time
            await asyncio.sleep(0.1)

    async def course() -> None:
        early = first.boot()
        early.log.inject(Fault.LOSE_REQUEST)  # or so it seems
        await asyncio.sleep(0.1)
        late = encode(Epoch(SCHEMA, early.tokens[0], 0, early.name, "m0:0"))
        await until_owned_by(early)
        await until_owned_by(second.boot())
        await asyncio.sleep(5)
        landing = [late, encode(Epoch(SCHEMA, b"nobody's", 0, "m0.0", "m0:0"))] if another else [late]
        world.judge.landed(0, world.storage.append(0, landing), landing)
        async with asyncio.timeout(10):
            await until_owned_by(early)

    world.run(course())
    assert not world.judge.violations
