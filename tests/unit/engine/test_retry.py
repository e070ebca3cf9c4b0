"""When calls are made again: the paced queue, and backoff."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest

from coordinator import Retry
from coordinator.engine.retry import RetryQueue, backoff_ms
from coordinator.model.settings import EngineSettings


def queue(*, slow: int = 200, fast: int = 0, jitter: int = 0) -> RetryQueue[int]:
    settings = EngineSettings(slow_retry_interval_ms=slow, fast_retry_interval_ms=fast, retry_jitter_ms=jitter)
    return RetryQueue(settings, Random(1))


def drain(found: RetryQueue[int], now: float, tick: float = 0.5) -> list[tuple[float, int]]:
    """All items with the times that they come out, a timer that is as late as an event loop's."""
    out = []
    while (due := found.due()) is not None:
        now = max(now + tick, due)
        while (item := found.pop(now)) is not None:
            out.append((now, item))
    return out


def test_a_call_is_due_an_interval_after_its_answer() -> None:
    """Not sooner, and no later."""
    found = queue()
    found.put(1, 1_000)
    assert found.due() == 1_200
    assert found.pop(1_199) is None
    assert found.pop(1_200) == 1
    assert found.due() is None


@pytest.mark.parametrize(("slow", "fast"), [(200, 0), (500, 50), (50, 0)])
def test_both_intervals_have_jitter(slow: int, fast: int) -> None:
    """Within ± jitter, never before now, and not always the same."""
    for is_fast in (False, True):
        found = queue(slow=slow, fast=fast, jitter=100)
        if is_fast:
            found.hasten(0)
        interval = fast if is_fast else slow
        dues = set()
        for item in range(50):
            handle = found.put(item, 0)
            dues.add(found.due())
            found.remove(handle)
        times = [due for due in dues if due is not None]
        assert len(times) > 40
        assert min(times) >= max(0, interval - 100)
        assert max(times) <= interval + 100


@pytest.mark.parametrize("jitter", [0, 100])
@pytest.mark.parametrize("many", [2, 100, 1_000])
def test_all_delayed_calls_are_retried_within_about_one_interval_and_not_at_once(many: int, jitter: int) -> None:
    """All answers came in the same instant; the service sees a trickle, and the last one waits one interval more."""
    found = queue(jitter=jitter)
    for item in range(many):
        found.put(item, 0)
    out = drain(found, 0)
    assert sorted(item for _, item in out) == list(range(many))
    assert out[0][0] >= 200 - jitter
    assert out[-1][0] <= 200 + jitter + 200
    burst = max(sum(1 for at, _ in out if start <= at < start + 20) for start in range(100, 500, 5))
    assert burst <= many * 0.25 + 1, "never a storm"


def test_the_pace_does_not_slacken_as_the_queue_drains() -> None:
    """A hundredth of the interval between them, from the first to the last."""
    found = queue()
    for item in range(100):
        found.put(item, 0)
    out = drain(found, 0)
    gaps = [later - earlier for (earlier, _), (later, _) in pairwise(out[20:])]
    assert max(gaps) < 3


def test_calls_that_fail_again_keep_the_pace_of_their_number() -> None:
    """A service that stays down is asked by each call once an interval, on the average."""
    found = queue()
    for item in range(10):
        found.put(item, 0)
    now, calls = 0.0, 0
    while now < 20_000:
        due = found.due()
        assert due is not None
        now = max(now + 0.5, due)
        while (item := found.pop(now)) is not None:
            calls += 1
            found.put(item, now)
    assert 900 <= calls <= 1_010


def test_a_single_call_is_not_held_back_by_the_pace() -> None:
    """Its own interval is all that counts."""
    found = queue(jitter=100)
    now = 0.0
    for _ in range(100):
        found.put(1, now)
        due = found.due()
        assert due is not None
        assert due - now <= 300
        now = due
        assert found.pop(now) == 1


def test_retry_after_is_kept_also_when_the_queue_is_hastened() -> None:
    """The service said when; its neighbours need not wait for it."""
    found = queue()
    found.put(1, 0, at_least_ms=5_000)
    found.put(2, 0)
    found.hasten(10)
    assert drain(found, 10) == [(10.5, 2), (5_000, 1)]


def test_after_the_first_success_those_that_wait_are_due_at_the_fast_interval() -> None:
    """Oldest first."""
    found = queue(slow=1_000, fast=10)
    for item in range(5):
        found.put(item, item)
    found.hasten(100)
    out = drain(found, 100)
    assert [item for _, item in out] == [0, 1, 2, 3, 4]
    assert out[-1][0] <= 130


def test_after_a_failure_the_interval_is_slow_again() -> None:
    """For what is delayed from now on."""
    found = queue(slow=1_000)
    found.hasten(0)
    found.slow()
    found.put(1, 0)
    assert found.due() == 1_000


def test_calls_that_are_taken_out_never_come_out() -> None:
    """In any order, and the others keep theirs."""
    random = Random(3)
    found = queue(jitter=50)
    handles = {found.put(item, item): item for item in range(100)}
    gone = random.sample(list(handles), 70)
    for handle in gone:
        found.remove(handle)
    assert len(found) == 30
    out = {item for _, item in drain(found, 0)}
    assert out == set(handles.values()) - {handles[handle] for handle in gone}
    assert len(found) == 0


@pytest.mark.parametrize(
    ("retry", "expected"),
    [
        (Retry(first="1s", jitter=0), [1_000, 1_000, 1_000]),
        (Retry(backoff="exponential", first="100ms", max="1s", jitter=0), [100, 200, 400, 800, 1_000, 1_000]),
        (Retry(backoff="exponential", first="0ms", jitter=0), [0, 0]),
        (Retry(backoff="fixed", first="2m", max="1m", jitter=0), [60_000]),
    ],
)
def test_backoff_is_fixed_or_doubles_up_to_its_longest(retry: Retry, expected: list[int]) -> None:
    """`answered` negative answers lead to the delay before the next call."""
    assert [backoff_ms(retry, answered, Random(1)) for answered in range(1, len(expected) + 1)] == expected


def test_backoff_has_jitter_and_does_not_overflow() -> None:
    """A share of the delay, both ways; a million answers later it is still the longest."""
    retry = Retry(backoff="exponential", first="1s", max="10s", jitter=0.5)
    random = Random(1)
    delays = {backoff_ms(retry, 1_000_000, random) for _ in range(50)}
    assert len(delays) > 40
    assert min(delays) >= 5_000
    assert max(delays) <= 15_000
