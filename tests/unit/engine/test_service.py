"""One service as the engine sees it: what may be called when, and for how long its intake is suspended."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from coordinator.engine.breaker import BreakerState
from coordinator.engine.service import Service, Stage, Work
from coordinator.model.call import Request
from coordinator.model.records import Failure
from coordinator.model.settings import BreakerSettings, EngineSettings, ServiceSettings

TIMEOUT = Failure("timeout")


def service(*, max_in_flight: int = 64, jitter: int = 0, failures: int = 2) -> Service:
    settings = ServiceSettings(
        name="stock", max_in_flight=max_in_flight, breaker=BreakerSettings(failures=failures, reset_ms=1_000)
    )
    return Service(settings, EngineSettings(retry_jitter_ms=jitter), Random(1))


def work(of: Service) -> Work:
    request = Request(service="stock")
    nobody: Any = None
    return Work(nobody, "a", of, request, undo=False, retry=None, timeout_ms=None, give_up_at=None)


def offered(of: Service, now: float, many: int = 1) -> list[Work]:
    works = [work(of) for _ in range(many)]
    for each in works:
        of.offer(each, now)
    return works


def fail(of: Service, works: list[Work], now: float) -> None:
    for each in works:
        of.unknown(each, now, TIMEOUT, None, down=False)


def down(*, many: int = 4) -> tuple[Service, list[Work]]:
    """A service whose breaker has opened at 0 over ``many`` calls, all delayed now."""
    found = service()
    works = offered(found, 0, many)
    assert found.release(0) == works
    fail(found, works, 0)
    assert found.breaker.state is BreakerState.OPEN
    return found, works


def test_new_work_is_called_at_once_first_come_first_served() -> None:
    """While the breaker is closed and there is room."""
    found = service()
    works = offered(found, 0, 3)
    assert found.release(0) == works
    assert (found.in_flight, found.release(0)) == (3, [])


def test_no_more_calls_are_under_way_than_allowed() -> None:
    """The next leaves when one is answered."""
    found = service(max_in_flight=2)
    first, second, third = offered(found, 0, 3)
    assert found.release(0) == [first, second]
    found.known(first, 1)
    assert found.release(1) == [third]


def test_delayed_calls_do_not_starve_behind_new_ones() -> None:
    """Nor the other way round: they take turns."""
    found = service(max_in_flight=1, failures=100)
    (delayed,) = offered(found, 0)
    found.release(0)
    fail(found, [delayed], 0)
    offered(found, 0, 50)
    order = []
    for now in range(300, 310):
        (sent,) = found.release(now)
        order.append(sent is delayed)
        found.known(sent, now)
    assert True in order[:2]


def test_work_that_is_new_while_the_breaker_is_open_is_blocked() -> None:
    """It joins the backlog without having been called."""
    found, _ = down()
    (new,) = offered(found, 10)
    assert (new.stage, new.blocked, new.tried) == (Stage.DELAYED, True, 0)


def test_ready_work_is_blocked_when_the_breaker_opens_before_its_turn() -> None:
    """It waits for the probe like the others."""
    found = service(max_in_flight=2)
    first, second, third = offered(found, 0, 3)
    found.release(0)
    fail(found, [first, second], 0)
    assert found.release(0) == []
    assert third.blocked


def test_after_the_reset_one_call_probes_and_its_success_lets_the_others_go() -> None:
    """At the fast interval."""
    found, works = down()
    assert (found.release(999), found.due(0)) == ([], 1_000)
    (probe,) = found.release(1_000)
    assert (found.release(1_001), found.due(1_001)) == ([], None)
    found.known(probe, 1_010)
    rest = found.release(1_010)
    assert sorted(map(id, rest)) == sorted(id(each) for each in works if each is not probe)


def test_a_probe_that_fails_leaves_the_others_for_another_reset() -> None:
    """At the slow interval, and only as soon as the breaker may be tried again."""
    found, _ = down()
    (probe,) = found.release(1_000)
    fail(found, [probe], 1_005)
    assert (found.release(1_500), found.due(1_500)) == ([], 2_005)
    assert len(found.release(2_005)) == 1


def test_a_probe_that_is_dropped_makes_room_for_the_next() -> None:
    """Its command was aborted: the breaker is not stuck half open."""
    found, _ = down()
    (probe,) = found.release(1_000)
    found.drop(probe)
    due = found.due(1_001)
    assert due is not None
    assert due <= 1_050
    assert len(found.release(due)) == 1


def test_dropping_an_older_call_does_not_let_a_second_probe_go() -> None:
    """It was sent before the breaker opened."""
    found = service()
    first, second, old = offered(found, 0, 3)
    found.release(0)
    fail(found, [first, second], 0)
    assert len(found.release(1_000)) == 1
    found.drop(old)
    assert found.release(1_001) == []


def test_a_newcomer_probes_at_once_when_nobody_else_is_there() -> None:
    """Half open without a backlog: the first new call is the probe, the second is blocked."""
    found, works = down(many=2)
    for each in works:
        found.drop(each)
    first, second = offered(found, 1_000, 2)
    assert found.release(1_000) == [first]
    assert second.blocked


def test_intake_is_suspended_from_opening_until_every_delayed_call_has_had_its_turn() -> None:
    """The breaker has closed before, but the backlog comes first."""
    found, works = down()
    assert found.suspended(0)
    (probe,) = found.release(1_000)
    assert found.suspended(1_000)
    found.known(probe, 1_001)
    for each in found.release(1_001):
        assert found.suspended(1_001)
        found.known(each, 1_002)
    assert not found.suspended(1_002)
    assert all(each.stage is Stage.SETTLING for each in works)


def test_a_call_that_the_service_cannot_digest_keeps_nobody_else_out() -> None:
    """It fails on its turn, and goes on at the slow interval on its own account."""
    found, _ = down()
    (probe,) = found.release(1_000)
    found.known(probe, 1_001)
    stuck, *others = found.release(1_001)
    for each in others:
        found.known(each, 1_002)
    assert found.suspended(1_002)
    fail(found, [stuck], 1_003)
    assert not found.suspended(1_003)
    assert (found.backlog, found.queue.fast) == (1, False)


def test_a_call_that_keeps_failing_among_successes_is_not_retried_in_a_hot_loop() -> None:
    """Without an outage there is no fast interval: it is asked at the slow one, however well the others do."""
    found = service(failures=100)
    (stuck,) = offered(found, 0)
    now, tries = 0.0, 0
    while now < 2_000:
        (fine,) = offered(found, now)
        for each in found.release(now):
            if each is stuck:
                tries += 1
                fail(found, [stuck], now)
            else:
                found.known(each, now)
        assert fine.stage is Stage.SETTLING
        now += 1
    assert tries <= 11


def test_intake_resumes_when_the_backlog_goes_away_otherwise() -> None:
    """Its commands were cancelled or paused: nobody waits, so a newcomer may try."""
    found, works = down()
    for each in works:
        found.drop(each)
    assert found.suspended(999)
    assert not found.suspended(1_000)


def test_giving_up_while_blocked_does_not_suspend_for_ever() -> None:
    """A step whose patience has ended leaves the backlog."""
    found, works = down()
    for each in works:
        found.gave_up(each, 500)
    assert found.backlog == 0
    assert not found.suspended(1_000)
    assert found.in_flight == 0


@pytest.mark.parametrize("ways", [1, 2, 3, 4, 5, 6, 7, 8])
def test_books_balance_whatever_comes_in_whatever_order(ways: int) -> None:
    """Calls in flight are counted once, the breaker is never stuck, and in the end nothing is left."""
    random = Random(ways)
    found = service(max_in_flight=3, jitter=50)
    now, works = 0.0, []
    for _ in range(400):
        now += random.choice([0, 1, 20, 300])
        if random.random() < 0.3:
            works += offered(found, now, random.randint(1, 3))
        if random.random() < 0.02:
            found.force(random.choice(["open", "closed", None]), now)
        found.release(now)
        for each in [each for each in works if each.stage is not Stage.SETTLING and random.random() < 0.3]:
            _happen(found, each, random.choice(["ok", "lost", "down", "give up", "drop"]), now)
        works = [each for each in works if each.stage not in (Stage.SETTLING, Stage.GONE)]
        calling = [each for each in works if each.stage is Stage.CALLING]
        assert found.in_flight == len(calling)
        assert found.backlog == sum(each.failure is not None for each in works)
        if found.breaker.probing:
            assert any(each.probe == found.breaker.opened_count for each in calling)
    found.force(None, now)
    for _ in range(5_000):
        found.release(now)
        calling = [each for each in works if each.stage is Stage.CALLING]
        for each in calling:
            found.known(each, now)
        works = [each for each in works if each.stage is not Stage.SETTLING]
        if not works:
            break
        due = found.due(now)
        assert due is not None or calling or found.ready
        now = max(now + 1, due or 0)
    assert (works, found.in_flight, found.backlog) == ([], 0, 0)
    assert not found.suspended(now + 1_000)


def _happen(found: Service, each: Work, what: str, now: float) -> None:
    if what == "drop":
        found.drop(each)
    elif what == "give up":
        found.gave_up(each, now)
    elif each.stage is Stage.CALLING and what == "ok":
        found.known(each, now)
    elif each.stage is Stage.CALLING:
        found.unknown(each, now, TIMEOUT, None, down=what == "down")


def test_an_operators_hold_suspends_and_its_end_drains() -> None:
    """Forced open: nothing is called. Let go: what was kept back has its turn before newcomers."""
    found = service()
    found.force("open", 0)
    (kept,) = offered(found, 0)
    assert (found.release(5_000), found.suspended(5_000)) == ([], True)
    found.force(None, 5_000)
    assert found.suspended(5_000)
    assert found.release(5_000) == [kept]
    found.known(kept, 5_001)
    assert not found.suspended(5_001)


def test_an_operator_may_close_a_breaker_that_has_opened() -> None:
    """Calls go out at once; intake resumes when what was delayed has had its turn."""
    found, works = down()
    found.force("closed", 300)
    sent = []
    for now in range(300, 700, 10):
        sent += found.release(now)
    assert len(sent) == len(works)
    assert found.suspended(700)
    for each in sent:
        found.known(each, 700)
    assert not found.suspended(700)


def test_what_an_operator_sees() -> None:
    """Every field of `GET /v1/services`."""
    found, _ = down(many=2)
    seen = found.inspect(400)
    assert seen == {
        "name": "stock",
        "url": "",
        "breaker": "open",
        "forced": None,
        "failures": 2,
        "opened": 1,
        "opens_again_in_ms": 600,
        "in_flight": 0,
        "ready": 0,
        "delayed": 2,
        "suspended": True,
        "interval": "slow",
        "calls": 2,
    }
