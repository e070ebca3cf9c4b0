"""Data that opens a command again, and comes at the very moment when it ends."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from random import Random
from typing import Any

import pytest

from coordinator import App, Saga, post
from coordinator.engine.engine import Engine
from coordinator.engine.registry import Registry
from coordinator.model.call import Answer, Verdict
from coordinator.model.ids import CommandId
from coordinator.model.records import SCHEMA, Control, Finished, Record, Reopened, Signal, Submitted, Timer, raw, unraw
from coordinator.model.settings import EngineSettings
from coordinator.saga import CommandType
from coordinator.wire.codec import encode

ID = CommandId("c")


async def priced(payload: Any, saga: Saga) -> Any:
    """One step, then a datum for each revision; the result tells what it saw."""
    await saga.step("price", post("stock", "/price"))
    return [await saga.receive("coupon") for _ in range(1, saga.revision)]


Run = Callable[[Any, Saga], Coroutine[Any, Any, Any]]


class Table:
    """An engine, and the log that its records go to; `again` is the next one over the same log.  Calls are answered at
    once, but for those of the steps ``silent``."""

    def __init__(self, log: list[Record] | None = None, run: Run = priced, silent: str = "") -> None:
        app = App()
        app.add(CommandType("T", 1, object, frozenset(), run, reopens=frozenset({"coupon"})))
        self.run_of, self.silent = run, silent
        self.engine = Engine(EngineSettings(), {}, Registry(app, {"stock": "http"}), Random(1))
        self.log: list[Record] = []
        self.proposed: list[Record] = []
        for record in log or []:
            self.put(record)
        self.engine.open(0, b"t", 1)

    def put(self, record: Record) -> None:
        self.engine.apply(0, len(self.log), record)
        self.log.append(record)

    def turn(self) -> list[Record]:
        """What is proposed; calls are answered at once."""
        while True:
            output = self.engine.take(1000)
            calls = [call for call in output.calls if call.step != self.silent]
            self.silenced = [f"{'~' * call.undo}{call.step}" for call in output.calls if call not in calls]
            for call in calls:
                self.engine.answer(call, Answer(Verdict.OUTCOME, raw({})), 1000)
            if not calls:
                return [record for _, record in output.records]

    def run(self) -> list[Any]:
        """Until nothing more is proposed; the results of all ends that count."""
        while records := self.turn():
            for record in records:
                self.put(record)
        return [unraw(each.result) for each in self.log if isinstance(each, Finished)]

    def again(self) -> Table:
        return Table(self.log, self.run_of, self.silent)


def coupon(value: str) -> Signal:
    return Signal(SCHEMA, b"t", 1000, ID, "coupon", raw(value))


def begun(run: Run = priced, silent: str = "", timeout: int | None = None) -> Table:
    table = Table(run=run, silent=silent)
    table.put(Submitted(SCHEMA, b"t", 1000, ID, "T", 1, raw({}), b"f", timeout=timeout))
    while True:
        proposed = table.turn()
        if any(isinstance(each, Finished) for each in proposed):
            table.proposed = proposed
            return table
        for record in proposed:
            table.put(record)


@pytest.mark.parametrize("dies", [False, True])
def test_data_that_is_first_in_the_log_is_not_lost(dies: bool) -> None:
    """The end was decided without it, so it is none: the command goes on under its next revision, also for who reads
    the log later."""
    table = begun()
    table.put(coupon("a"))
    for record in table.proposed:
        table.put(record)
    table = table.again() if dies else table
    results = table.run()
    assert results[-1] == ["a"]
    assert table.engine.under_way == 0


@pytest.mark.parametrize("dies", [False, True])
def test_a_next_life_may_follow_the_end_in_one_batch(dies: bool) -> None:
    """Nobody has decided anything in between, and whoever reads the log later sees the same."""
    table = begun()
    for record in table.proposed:
        table.put(record)
    pieces = [(offset, encode(record)) for offset, record in enumerate(table.log)]
    table.put(Reopened(SCHEMA, b"t", 1000, ID, 2, pieces))
    table.put(coupon("a"))
    table = table.again() if dies else table
    assert table.run() == [[], ["a"]]


def test_what_was_begun_since_is_in_doubt_after_a_cancel() -> None:
    """A step that the datum has led to may have taken effect: it is asked for by whoever reads the log then."""

    async def run(_payload: Any, saga: Saga) -> None:
        for _ in range(1, saga.revision):
            await saga.receive("coupon")
            await saga.step("redeem", post("stock", "/redeem"), undo=post("stock", "/undo"))

    table = begun(run, silent="redeem")
    table.put(coupon("a"))
    for record in table.proposed:
        table.put(record)
    assert not table.turn()
    assert table.silenced == ["redeem"]
    table.put(Control(SCHEMA, b"t", 1000, ID, "cancel"))
    assert not table.turn()
    table = table.again()
    assert not table.turn()
    assert table.silenced == ["redeem"]


def test_a_datum_that_exec_does_not_ask_for_opens_it_once() -> None:
    """A type may say of a datum what its exec does not do: that is no reason to run it for ever."""

    async def run(_payload: Any, saga: Saga) -> int:
        await saga.step("price", post("stock", "/price"))
        return saga.revision

    table = begun(run)
    for value in ("a", "b"):
        table.put(coupon(value))
    for record in table.proposed:
        table.put(record)
    again = table.again()
    assert table.run() == again.run()
    assert table.engine.under_way == 0


def reopened(table: Table, at: int) -> None:
    """The end, and long after it the next life, without the datum yet."""
    for record in table.proposed:
        table.put(record)
    assert not table.turn()
    pieces = [(offset, encode(record)) for offset, record in enumerate(table.log)]
    table.put(Reopened(SCHEMA, b"t", at, ID, 2, pieces))


def test_each_life_has_as_long_as_the_first() -> None:
    """A deadline that passed when the command had ended long ago is none: what was completed is not undone for it."""
    table = begun(timeout=100)
    reopened(table, 1_000_000)
    table.engine.tick(1_000_050)
    assert not table.turn()
    table.engine.tick(1_000_100)
    assert [record.what for record in table.turn() if isinstance(record, Timer)] == ["deadline"]


def test_a_pause_that_came_as_it_ended_does_not_stop_the_next_life() -> None:
    """It was asked of what has ended since; whoever wants to stop the next life says so."""
    table = begun()
    table.put(Control(SCHEMA, b"t", 1000, ID, "pause"))
    reopened(table, 2000)
    table.put(coupon("a"))
    assert table.run() == [[], ["a"]]


def test_a_deadline_that_passes_as_the_command_ends_is_not_forgotten() -> None:
    """The end was none, since data was first in the log: the next life is still the one whose time is up."""
    table = begun(timeout=100)
    table.engine.tick(1100)
    table.put(coupon("a"))
    for record in table.proposed:
        table.put(record)
    table.engine.tick(1100)
    assert [record.what for record in table.turn() if isinstance(record, Timer)] == ["deadline"]
