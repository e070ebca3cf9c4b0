"""Logs with damage anywhere: whoever reads one stops with a clear error, or changes nobody but the damaged record's
own command."""

from __future__ import annotations

from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator import App, Saga, post
from coordinator.engine import views
from coordinator.engine.engine import Engine
from coordinator.engine.explain import explain
from coordinator.engine.registry import Registry
from coordinator.engine.state import Command
from coordinator.errors import CorruptLog
from coordinator.model.damaged import Damaged
from coordinator.model.ids import CommandId
from coordinator.model.records import (
    SCHEMA,
    Control,
    Epoch,
    Failure,
    Finished,
    Outcome,
    Record,
    Registered,
    StepFailed,
    Submitted,
    Timer,
    Undone,
    raw,
)
from coordinator.model.settings import EngineSettings, ServiceSettings
from coordinator.ownership.validity import Validity
from coordinator.wire import codec
from coordinator.wire.codec import encode, stored

FIRST, SECOND, OWN = b"1" * 8, b"2" * 8, b"3" * 8
DEFINITION = {"name": "d", "version": 1, "steps": [{"name": "reserve", "service": "stock", "path": "/"}]}


class T(msgspec.Struct):
    """Two steps, each with an undo."""

    async def exec(self, saga: Saga) -> Any:
        for step in ("reserve", "charge"):
            await saga.step(step, post("stock", f"/{step}"), undo=post("stock", f"/{step}/undo"))
        return {"done": True}


def records_of(token: bytes, at: int, id: str, course: str) -> list[Record]:
    """The records of one command in the order that its owner wrote them."""
    c = CommandId(id)
    begun: list[Record] = [Submitted(SCHEMA, token, at, c, "T", 1, raw({"n": id}), b"f" * 16, timeout=10**9)]
    reserved = Outcome(SCHEMA, token, at + 1, c, "reserve", "stock", 1, raw({"id": "r"}))
    charged = Outcome(SCHEMA, token, at + 2, c, "charge", "stock", 1, raw({"id": "p"}))
    no = Failure("declined", "no", 409, raw({"why": "broke"}))
    declined = StepFailed(SCHEMA, token, at + 2, c, "charge", "stock", 1, no, "failed")
    undone = Undone(SCHEMA, token, at + 3, c, "reserve", "stock", 1)
    rest: dict[str, list[Record]] = {
        "new": [],
        "half": [reserved],
        "paused": [reserved, Control(SCHEMA, token, at + 2, c, "pause", "why", "op")],
        "late": [reserved, Timer(SCHEMA, token, at + 2, c, "deadline")],
        "undoing": [reserved, declined],
        "parked": [StepFailed(SCHEMA, token, at + 1, c, "reserve", "stock", 1, no, "parked")],
        "done": [reserved, charged, Finished(SCHEMA, token, at + 3, c, "completed", raw({"done": True}))],
        "back": [reserved, declined, undone, Finished(SCHEMA, token, at + 4, c, "compensated", failure=no)],
    }
    return begun + rest[course]


COURSES = ("new", "half", "paused", "late", "undoing", "parked", "done", "back")


def log_of(random: Random) -> list[bytes]:
    """Two epochs with commands on every course, interleaved, and a stale record; then the reader's own Epoch."""
    records: list[Record] = []
    for number, token in enumerate((FIRST, SECOND)):
        records.append(Epoch(SCHEMA, token, 1000 * number, "a", "a:1"))
        records.append(Registered(SCHEMA, token, 1000 * number, f"d{number}", 1, raw(DEFINITION), b"f"))
        lines = [records_of(token, 1000 * number + 10, f"c{number}-{course}", course) for course in COURSES]
        while lines:
            line = random.choice(lines)
            records.append(line.pop(0))
            lines = [each for each in lines if each]
    records.append(Outcome(SCHEMA, FIRST, 9, CommandId("c1-new"), "reserve", "stock", 1, raw("stale")))
    records.append(Epoch(SCHEMA, OWN, 5000, "b", "b:1"))
    return [encode(record) for record in records]


class Reader:
    """A new owner over a log, up to what it shows to clients and what it does next."""

    def __init__(self, log: list[bytes]) -> None:
        app = App()
        app.command(name="T")(T)
        self.engine = Engine(
            EngineSettings(retry_jitter_ms=0),
            {"stock": ServiceSettings(name="stock")},
            Registry(app, {"stock": "http"}),
            Random(1),
        )
        self.validity = Validity()
        self.finished: dict[str, Command] = {}
        self.judged: list[bool] = []
        for offset, data in enumerate(log):
            self.read(offset, data)
        self.finished |= {command.id: command for command in self.engine.take_replayed()}
        self.engine.open(0, OWN, len(log) - 1)
        self.output = self.engine.take(6000)

    def read(self, offset: int, data: bytes) -> None:
        record = codec.read(data, partition=0, offset=offset)
        counts = self.validity.admit(offset, record)
        self.judged.append(counts)
        if counts and not isinstance(record, Epoch):
            self.engine.apply(0, offset, record)

    def told(self) -> dict[str, Any]:
        """All that clients can see, and what is called, by command."""
        engine = self.engine
        told: dict[str, dict[str, Any]] = {}
        for id, command in (engine.commands | self.finished).items():
            told[id] = {
                "view": views.command_view(command, engine.registry.planned(command.submitted)),
                "explain": explain(command, 6000, owner={}, slots=(0, 1)),
                "letters": views.dead_letters(command),
                "history": [views.history_entry(0, 0, record) for _, record in command.history],
                "stored": [stored(record) for _, record in command.history],
                "calls": sorted((call.step, call.undo) for call in self.output.calls if call.command == id),
                "records": [type(record).__name__ for _, record in self.output.records if record.id == id],  # type: ignore[union-attr]
            }
        for each in told.values():
            msgspec.json.encode(each)
            each["view"] = msgspec.structs.replace(each["view"], position="")
            each["explain"].pop("position")
            for wait in each["explain"]["waits"]:
                wait.pop("ahead", None)  # of the service's queue, which is everybody's
                wait.pop("in_flight", None)
            for entry in each["history"]:
                entry.pop("position")
        return told


def read(log: list[bytes]) -> Reader | str:
    """A new owner over a log, or why there can be none."""
    try:
        return Reader(log)
    except CorruptLog as error:
        return str(error)


def damages(random: Random, data: bytes) -> bytes:
    """The bytes, not as they were."""
    at = random.randrange(len(data) or 1)
    match random.randrange(7):
        case 0:
            return data[:at]
        case 1:
            return data + random.randbytes(1 + random.randrange(4))
        case 2:
            return random.randbytes(random.randrange(40))
        case 3:
            return data[:at] + bytes(byte ^ 1 << random.randrange(8) for byte in data[at : at + 1]) + data[at + 1 :]
        case 4:
            return data[:at] + random.randbytes(3) + data[at + 3 :]
        case 5:
            return data[:at] + data[at + 1 :]
        case _:
            return data[: at // 2] + b"\xc1" + data[at // 2 :]


def owners(*records: Record | Damaged) -> set[str]:
    """The commands that these records are of, or could be of."""
    return {id for record in records if (id := getattr(record, "id", None))}


@settings(max_examples=600, deadline=None)
@given(st.integers(0, 2**32))
def test_damage_to_a_record_changes_no_other_command(seed: int) -> None:
    """Nor does it raise anything but CorruptLog with its place; a reader that stops has shown nothing wrong."""
    random = Random(seed)
    log = log_of(random)
    clean = Reader(log).told()
    at = random.randrange(len(log) - 1)
    intact = codec.read(log[at], partition=0, offset=at)
    log[at] = damages(random, log[at])
    damaged = codec.read(log[at], partition=0, offset=at)
    reader = read(log)
    if isinstance(reader, str):
        assert "partition 0, offset" in reader
        return
    told = reader.told()
    if not isinstance(damaged, Damaged):
        return  # it says something else now, and says it well: only a checksum could tell
    touched = owners(intact, damaged)
    assert {id: each for id, each in told.items() if id not in touched} == {
        id: each for id, each in clean.items() if id not in touched
    }
    entries = reader.engine.quarantined[0].entries
    assert [entry.offset for entry in entries] == ([at] if reader.judged[at] else [])
    if damaged.id is not None and damaged.id in reader.engine.commands and reader.judged[at]:
        command = reader.engine.commands[damaged.id]
        assert command.state == "dead_letter"
        assert told[damaged.id]["calls"] == told[damaged.id]["records"] == []


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32))
def test_bytes_in_between_change_nobody(seed: int) -> None:
    """What a stranger puts anywhere is listed, and everything else is as it was, whatever stands next to it."""
    random = Random(seed)
    log = log_of(random)
    clean = Reader(log).told()
    for _ in range(random.randrange(1, 4)):
        log.insert(random.randrange(1, len(log)), b"\xc1" + random.randbytes(random.randrange(30)))
    reader = Reader(log)
    assert reader.told() == clean
    assert reader.engine.quarantined[0].total == sum(data[:1] == b"\xc1" for data in log)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32))
def test_two_readers_of_one_damaged_log_agree(seed: int) -> None:
    """The fold has no chance in it: a second reading shows the same, the list included."""
    random = Random(seed)
    log = log_of(random)
    for _ in range(3):
        at = random.randrange(1, len(log) - 1)
        log[at] = damages(random, log[at])
    reader, other = read(log), read(log)
    if isinstance(reader, str) or isinstance(other, str):
        assert reader == other
        return
    assert other.told() == reader.told()
    assert other.engine.quarantined[0].entries == reader.engine.quarantined[0].entries


def test_an_epoch_turned_to_noise_stops_the_reader() -> None:
    """Else all that its owner recorded would be void without a word; a single record may be a stranger's."""
    log = log_of(Random(1))
    second = next(at for at, data in enumerate(log) if data == encode(Epoch(SCHEMA, SECOND, 1000, "a", "a:1")))
    for at in (0, second):
        with pytest.raises(CorruptLog, match=rf"offset {at}\).*no Epoch had"):
            Reader([*log[:at], b"noise", *log[at + 1 :]])
    stray = encode(Finished(SCHEMA, b"made up!", 1, CommandId("c1-new"), "aborted"))
    assert Reader([*log[:-1], b"noise", stray, log[-1]]).told() == Reader(log).told()
