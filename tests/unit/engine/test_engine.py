"""Many commands under one engine: slots, services they share, timers, and partitions that come and go."""

from __future__ import annotations

import msgspec
import pytest

from coordinator import Saga
from coordinator.admission.gate import Decision, Request
from coordinator.engine.kinds import HANDLERS
from coordinator.errors import IdConflict, LimitReached, Suspended
from coordinator.model.command import Operation
from coordinator.model.ids import CommandId
from coordinator.model.records import (
    KINDS,
    SCHEMA,
    Control,
    Epoch,
    Finished,
    Outcome,
    Record,
    Registered,
    Reopened,
    Schedule,
    Snapshot,
    Submitted,
    raw,
)
from coordinator.model.settings import EngineSettings
from tests.unit.engine.desk import CALM, OUTCOME, STEADY, Desk, fork, sequence, submitted


def ids(many: int) -> list[str]:
    return [f"c{n}" for n in range(many)]


# ---------------------------------------------------------------- records


def test_every_kind_of_record_has_its_handler() -> None:
    """Those of a command's course are folded by a handler; the others begin one, or belong to none."""
    union = set(Record.__args__)
    assert set(HANDLERS) | {Submitted, Reopened, Registered, Schedule, Epoch, Snapshot} == union
    assert set(HANDLERS) & {Submitted, Registered, Epoch, Snapshot} == set()
    assert set(KINDS.values()) == union


def test_records_of_unknown_and_of_ended_commands_are_ignored() -> None:
    """A former owner may have written them, or two requests crossed."""
    desk = submitted(sequence("a"))
    desk.ok("a")
    fold = len(desk.log)
    late = Outcome(SCHEMA, b"", 0, CommandId("c"), "a", "stock", 1, raw(1))
    unknown = msgspec.structs.replace(late, id=CommandId("nobody"))
    assert desk.engine.apply(0, fold, late) is None
    assert desk.engine.apply(0, fold + 1, unknown) is None
    assert desk.gather() == []


def test_the_first_occurrence_wins() -> None:
    """A second outcome, a second cancel and a second deadline change nothing."""
    desk = submitted(sequence("a", "b"))
    desk.ok("a", 1)
    again = msgspec.structs.replace(desk.log[1], outcome=raw(2))
    desk.outbox = []
    desk.settle(again)
    desk.turn()
    desk.ok("b", 3)
    assert desk.result() == [1, 3]


def test_an_operation_of_a_newer_program_is_kept_in_the_history_and_does_nothing() -> None:
    """Reading it must not stop an older instance."""
    desk = submitted(sequence("a"))
    desk.outbox = []
    desk.settle(Control(SCHEMA, b"", 0, CommandId("c"), "freeze_dry"))
    desk.turn()
    assert desk.state() == "running"
    assert desk.kinds()[-1] == "Control"


# ---------------------------------------------------------------- admission


def test_a_known_id_attaches_and_another_request_under_it_is_a_conflict() -> None:
    """Also while the first submission is still on its way to the log."""
    desk = Desk(sequence("a"))
    record = Submitted(SCHEMA, b"", 0, CommandId("c"), "T", 1, raw({}), b"f")
    request = desk_request("c", b"f")
    assert desk.engine.submit(request, record, 0, desk.now) is Decision.ADMIT
    assert desk.engine.submit(request, record, 0, desk.now) is Decision.ATTACH
    with pytest.raises(IdConflict):
        desk.engine.submit(desk_request("c", b"other"), record, 0, desk.now)
    desk.turn()
    assert desk.submit("c") is Decision.ATTACH
    assert desk.kinds().count("Submitted") == 1


def test_a_submission_on_its_way_takes_a_slot() -> None:
    """The limit holds within one batch."""
    desk = Desk(sequence("a"), settings=EngineSettings(max_commands=2))
    for id in ids(2):
        record = Submitted(SCHEMA, b"", 0, CommandId(id), "T", 1, raw({}), b"f")
        desk.engine.submit(desk_request(id, b"f"), record, 0, desk.now)
    with pytest.raises(LimitReached) as caught:
        desk.submit("one too many")
    assert (caught.value.code, caught.value.retryable) == ("limit_reached", True)
    assert (caught.value.retry_after_ms or 0) >= 100
    assert caught.value.extra == {"limit": 2, "used": 2}


def test_resumed_commands_may_exceed_the_limit_and_new_ones_wait_until_it_falls() -> None:
    """Nothing that was accepted is put back in the queue."""
    run = sequence("a")
    desk = Desk(run, settings=EngineSettings(max_commands=5))
    for id in ids(5):
        desk.submit(id)
    desk.settings = EngineSettings(max_commands=3)
    desk.restart(run)
    assert len(desk.engine.slots) == 5
    assert len(desk.calls) == 5
    for id in ids(3):
        with pytest.raises(LimitReached):
            desk.submit("new")
        desk.ok("a", id=id)
    assert len(desk.engine.slots) == 2
    desk.submit("new")


@pytest.mark.parametrize(
    ("leave", "come_back"),
    [(Operation.PAUSE, Operation.RESUME), (None, Operation.RETRY)],
)
def test_a_command_that_waits_for_a_person_holds_no_slot(leave: Operation | None, come_back: Operation) -> None:
    """And takes one again when it goes on, even if that is one too many."""
    desk = submitted(sequence("a", give_up_after="100ms"), settings=EngineSettings(max_commands=1, retry_jitter_ms=0))
    if leave is not None:
        desk.ask(leave)
    else:
        desk.lost("a")
        desk.sleep(100)
    assert desk.engine.slots == set()
    desk.submit("next")
    desk.ask(come_back)
    assert desk.engine.slots == {"c", "next"}


def test_delayed_commands_hold_their_slots() -> None:
    """Running and delayed ones count, so a service that is slow cannot fill the memory."""
    desk = submitted(sequence("a"), settings=EngineSettings(max_commands=1))
    desk.lost("a")
    assert desk.state() == "delayed"
    with pytest.raises(LimitReached):
        desk.submit("next")


# ---------------------------------------------------------------- delayed and blocked


@pytest.mark.parametrize("jitter", [0, 100])
def test_a_hundred_delayed_commands_are_all_retried_within_about_one_interval(jitter: int) -> None:
    """Not one after the other, and not all in the same instant."""
    settings = EngineSettings(slow_retry_interval_ms=1_000, retry_jitter_ms=jitter)
    desk = Desk(sequence("a"), settings=settings, breaker=CALM, max_in_flight=200)
    for id in ids(100):
        desk.submit(id)
    for id in ids(100):
        desk.lost("a", id=id)
    assert {desk.state(id) for id in ids(100)} == {"delayed"}
    began = desk.now
    desk.sleep(1_000 - jitter - 1)
    assert desk.calls == {}
    desk.sleep(1_001 + 2 * jitter)
    assert len(desk.calls) == 100
    times = sorted(call.sent_at - began for call in desk.made[100:])
    assert times[50] - times[0] >= 200


def test_a_breaker_that_opens_blocks_and_suspends_and_the_drained_backlog_resumes() -> None:
    """The whole story, as a client of the service sees it."""
    desk = Desk(sequence("a"), declares=("stock",))
    for id in ids(5):
        desk.submit(id)
    for id in ids(5):
        desk.lost("a", id=id)
    assert {desk.state(id) for id in ids(5)} == {"blocked"}
    with pytest.raises(Suspended) as caught:
        desk.submit("new")
    assert (caught.value.code, caught.value.extra["services"]) == ("suspended", ["stock"])
    assert caught.value.retry_after_ms == 1_000
    assert desk.submit("c0") is Decision.ATTACH, "a retry finds its command also while intake is suspended"
    desk.sleep(999)
    assert desk.calls == {}
    desk.sleep(1)
    ((probing, _),) = desk.calls
    desk.ok("a", id=probing)
    assert len(desk.calls) == 4, "the fast interval is zero"
    for id, _ in list(desk.calls):
        with pytest.raises(Suspended):
            desk.submit("new")
        desk.ok("a", id=id)
    assert desk.submit("new") is Decision.ADMIT
    assert {desk.state(id) for id in ids(5)} == {"completed"}


def test_a_fast_interval_that_is_not_zero_is_kept() -> None:
    """After the first success the others follow at that interval."""
    settings = EngineSettings(slow_retry_interval_ms=5_000, fast_retry_interval_ms=50, retry_jitter_ms=10)
    desk = Desk(sequence("a"), settings=settings)
    for id in ids(10):
        desk.submit(id)
    for id in ids(10):
        desk.lost("a", id=id)
    desk.sleep(6_000)
    ((probing, _),) = desk.calls
    desk.ok("a", id=probing)
    assert desk.calls == {}
    desk.sleep(39)
    assert desk.calls == {}
    desk.sleep(80)
    assert len(desk.calls) == 9


@pytest.mark.parametrize(
    ("declares", "suspend", "admitted"),
    [
        (("stock",), "service", False),
        (("payments",), "service", True),
        (("payments", "stock"), "service", False),
        ((), "service", False),
        (("payments",), "coordinator", False),
    ],
)
def test_who_is_suspended_by_a_service_that_is_down(declares: tuple[str, ...], suspend: str, *, admitted: bool) -> None:
    """Those that declare it; those that declare none; under ``coordinator`` all."""
    desk = submitted(sequence("a"), declares=declares, settings=msgspec.structs.replace(STEADY, suspend=suspend))
    desk.lost("a", down=True)
    if admitted:
        assert desk.submit("new") is Decision.ADMIT
    else:
        with pytest.raises(Suspended):
            desk.submit("new")


def test_local_functions_that_are_delayed_do_not_block_one_another() -> None:
    """They stand for no service; only Blocked opens their breaker."""

    async def function() -> None: ...

    async def run(saga: Saga) -> None:
        await saga.step("a", function)

    desk = Desk(run)
    for id in ids(20):
        desk.submit(id)
        desk.lost("a", id=id)
    assert desk.state("c0") == "delayed"
    desk.submit("new")
    desk.lost("a", id="new", down=True)
    assert desk.state("new") == "blocked"
    with pytest.raises(Suspended):
        desk.submit("another")


def test_commands_that_contend_for_one_service_all_get_through_its_outages() -> None:
    """Two outages, pauses and an abort in between: nobody is stuck, and the books balance."""
    desk = Desk(sequence("a", "b"), max_in_flight=3)
    for id in ids(12):
        desk.submit(id)
    for round in range(400):
        if round in (3, 30):
            desk.ask(Operation.PAUSE, "c1")
        if round in (20, 40):
            desk.ask(Operation.RESUME, "c1")
        if round == 7:
            desk.ask(Operation.ABORT, "c2")
        out = 0 <= round < 15 or 25 <= round < 35
        for id, name in list(desk.calls):
            if (id, name) in desk.calls:
                (desk.lost if out else desk.ok)(name, id=id)
        desk.sleep(300)
        if len(desk.ended) == 12:
            break
    assert {desk.state(id) for id in ids(12)} == {"completed", "aborted"}
    stock = desk.engine.services["stock"]
    assert (stock.in_flight, stock.backlog, stock.suspended(desk.now)) == (0, 0, False)


# ---------------------------------------------------------------- partitions and timers


def test_a_lost_partition_leaves_nothing_behind() -> None:
    """No calls in flight, no slots, no timers, no records; late answers are ignored."""
    desk = Desk(fork("a", "b"))
    desk.submit(timeout=60_000)
    late = desk.calls["c", "a"]
    desk.answer("b", OUTCOME, turn=False)
    gone = desk.engine.close(0)
    assert gone == ["c"]
    desk.engine.answer(late, OUTCOME, desk.now)
    output = desk.engine.take(desk.now)
    assert (output.records, output.calls) == ([], [])
    assert desk.engine.due(desk.now) is None
    assert (desk.engine.slots, desk.engine.commands) == (set(), {})
    assert desk.engine.services["stock"].in_flight == 0


def test_a_lost_partition_whose_call_was_the_probe_lets_others_probe() -> None:
    """The breaker is the instance's, and other partitions' commands wait for it."""
    desk = Desk(sequence("a"))
    desk.engine.open(1, b"token", 9)
    desk.submit("c")
    record = Submitted(SCHEMA, b"", 0, CommandId("d"), "T", 1, raw({}), b"f")
    desk.engine.apply(1, 0, record)
    desk.turn()
    desk.lost("a", down=True)
    desk.lost("a", id="d", down=True)
    desk.sleep(1_000)
    ((probing, _),) = desk.calls
    desk.calls.clear()
    desk.engine.close(0 if probing == "c" else 1)
    desk.sleep(1_000)
    assert len(desk.calls) == 1
    assert probing not in {id for id, _ in desk.calls}


def test_a_submission_that_was_lost_with_its_partition_frees_its_slot() -> None:
    """Its client was told so, and may send it again."""
    desk = Desk(sequence("a"))
    record = Submitted(SCHEMA, b"", 0, CommandId("c"), "T", 1, raw({}), b"f")
    desk.engine.submit(desk_request("c", b"f"), record, 0, desk.now)
    desk.engine.close(0)
    assert desk.engine.reserved == {}


def test_replay_ends_with_the_commands_that_have_ended_and_resumes_the_others() -> None:
    """What has ended leaves memory at once; what has not is resumed when the partition is open, and not before."""
    run = sequence("a")
    desk = Desk(run)
    desk.submit("ended")
    desk.ok("a", id="ended")
    desk.submit("going")
    desk.restart(run, opens=False)
    assert desk.gather() == []
    assert desk.calls == {}
    desk.open()
    assert list(desk.calls) == [("going", "a")]
    assert list(desk.engine.commands) == ["going"]


def test_timers_of_ended_commands_are_not_kept_until_they_are_due() -> None:
    """A deadline of a day must not cost memory for a day."""
    desk = Desk(sequence("a"))
    engine = desk.engine
    engine.timers._swept = 10
    for n in range(100):
        desk.submit(f"c{n}", timeout=86_400_000)
        desk.ok("a", id=f"c{n}")
        engine.timers._swept = min(engine.timers._swept, 10)
    assert len(engine.timers) <= 21


def test_a_late_tick_is_as_good_as_one_in_time() -> None:
    """The clock jumped, the process slept: everything that is due happens, once."""
    desk = Desk(sequence("a", give_up_after="1s"), breaker=CALM)
    desk.submit("gives up")
    desk.submit("expires", timeout=1_000)
    desk.lost("a", id="gives up")
    desk.lost("a", id="expires")
    desk.now += 86_400_000
    desk.turn()
    assert desk.state("gives up") == "dead_letter"
    assert desk.kinds("expires").count("Timer") == 1


def test_active_are_those_that_move_by_themselves() -> None:
    """What a drain waits for: calls and appends under way, not what is delayed."""
    desk = Desk(sequence("a"))
    assert desk.engine.active() == 0
    desk.submit()
    assert desk.engine.active() == 1
    desk.lost("a")
    assert desk.engine.active() == 0


def test_a_frozen_engine_starts_no_call_but_records_what_is_answered() -> None:
    """The daemon is about to stop: the next one goes on."""
    run = sequence("a", "b")
    desk = submitted(run)
    desk.engine.freeze()
    desk.ok("a")
    assert desk.calls == {}
    assert desk.kinds()[-1] == "Outcome"
    desk.restart(run)
    assert list(desk.calls) == [("c", "b")]


def test_each_command_that_ends_is_told_once() -> None:
    """With its notice, not before its record is durable."""
    desk = submitted(sequence("a"))
    desk.answer("a", OUTCOME, turn=False)
    desk.gather()
    desk.settle()
    output = desk.engine.take(desk.now)
    assert (output.finished, [type(record) for _, record in output.records]) == ([], [Finished])
    desk.outbox = [record for _, record in output.records]
    desk.settle()
    assert [command.id for command in desk.engine.take(desk.now).finished] == ["c"]
    assert desk.engine.take(desk.now).finished == []


def desk_request(id: str, fingerprint: bytes) -> Request:
    return Request(id, fingerprint, frozenset())
