"""Payloads, durations, errors and delays: all that is decided before a byte is sent."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from coordinator_client import (
    Command,
    CommandFailed,
    CoordinatorError,
    InvalidPayload,
    LimitReached,
    Refused,
    Retryable,
    RetryPolicy,
    UnknownCommand,
)
from coordinator_client.errors import by_code, error_of
from coordinator_client.retry import Backoff
from coordinator_client.values import duration_text, json_value, seconds

from coordinator.errors import tree


class Order(msgspec.Struct):
    order_id: str
    lines: list[int]


@dataclass
class Customer:
    name: str
    order: Order


def nested(depth: int) -> Any:
    value: Any = None
    for _ in range(depth):
        value = [value]
    return value


def test_structs_and_dataclasses_become_plain_values() -> None:
    """Typed payloads are sent as the JSON that they stand for."""
    assert json_value(Customer("ann", Order("o-1", [1, 2]))) == {
        "name": "ann",
        "order": {"order_id": "o-1", "lines": [1, 2]},
    }


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({"a": [0, math.nan]}, "$.a[1]"),
        (math.inf, "$"),
        ({"big": 2**64}, "$.big"),
        ([-(2**63) - 1], "$[0]"),
        ({"m": {1: 2}}, "$.m"),
        ({"b": b"bytes"}, "$.b"),
        ({"t": "\ud800"}, "$.t"),
        ({"o": object()}, "$"),
        (nested(256), "$" + "[0]" * 255),
        (nested(50_000), "$"),
    ],
)
def test_what_is_no_json_is_refused_with_its_path(value: Any, path: str) -> None:
    """NaN, integers beyond 64 bits, wrong keys, bytes and deep nesting never reach a server."""
    with pytest.raises(InvalidPayload) as caught:
        json_value(value)
    assert caught.value.faults[0]["path"] == path


@pytest.mark.parametrize(
    "value", [None, True, -(2**63), 2**64 - 1, 1.5, "ü✓", [], {}, {"a": [{"b": None}]}, nested(255)]
)
def test_every_json_value_passes(value: Any) -> None:
    """The limits are where the documentation says."""
    assert json_value(value) == value


@pytest.mark.parametrize(
    ("duration", "expected"),
    [(1.5, 1.5), ("200ms", 0.2), ("24h", 86_400), (timedelta(minutes=1), 60), (None, math.inf)],
)
def test_durations_are_read_in_every_spelling(duration: Any, expected: float) -> None:
    """Numbers are seconds, text has a unit, None is for ever."""
    assert seconds(duration) == pytest.approx(expected)


@pytest.mark.parametrize("duration", [-1, math.nan, "5", "1 s", "", "-1s"])
def test_what_is_no_duration_is_a_value_error(duration: Any) -> None:
    """A wrong duration is the caller's mistake and found at once."""
    with pytest.raises(ValueError, match="duration"):
        seconds(duration)


def test_durations_for_the_server_are_text() -> None:
    """The server reads durations as people write them."""
    assert [duration_text(value, "timeout") for value in (None, "30s", 1.5, timedelta(seconds=2))] == [
        None,
        "30s",
        "1500ms",
        "2000ms",
    ]


def test_every_code_of_the_server_has_a_class_with_the_same_meaning() -> None:
    """The client's tree follows the server's: same codes, same answer to "may I send it again"."""
    classes = by_code()
    for code, server_side in tree().items():
        assert classes[code].retryable == server_side.retryable, code
        assert issubclass(classes[code], Retryable) == server_side.retryable, code


def test_an_unknown_code_keeps_the_servers_word_on_retries() -> None:
    """A newer server's error is neither lost nor guessed at."""
    error = error_of("out_of_cheese", "Out of cheese", "redo", True, 50)
    assert type(error) is CoordinatorError
    assert (error.code, error.retryable, error.retry_after_ms) == ("out_of_cheese", True, 50)


def test_delays_double_up_to_the_maximum_and_are_scattered() -> None:
    """Exponential backoff between half and one and a half times its nominal delay."""
    policy = RetryPolicy(first_s=0.1, max_s=0.5, jitter=0.5)
    for chance, scale in ((0.0, 0.5), (0.5, 1.0), (0.999999, 1.5)):
        backoff = Backoff(policy, lambda chance=chance: chance)  # type: ignore[misc]
        delays = [backoff.delay(LimitReached(), math.inf) for _ in range(5)]
        assert delays == pytest.approx([scale * nominal for nominal in (0.1, 0.2, 0.4, 0.5, 0.5)], rel=1e-3)


def test_the_servers_wish_is_a_floor_and_patience_a_ceiling() -> None:
    """retry_after_ms is honoured; a delay that would outlast the caller's patience is not begun."""
    backoff = Backoff(RetryPolicy(first_s=0.1, jitter=0), lambda: 0.5)
    assert backoff.delay(LimitReached(retry_after_ms=700), 10) == pytest.approx(0.7)
    assert backoff.delay(LimitReached(retry_after_ms=700), 0.6) is None


def test_what_is_refused_is_not_tried_again() -> None:
    """Only retryable errors have a next attempt, however long they are retried."""
    backoff = Backoff(RetryPolicy())
    assert backoff.delay(UnknownCommand(), math.inf) is None
    for _ in range(5000):
        assert backoff.delay(LimitReached(), math.inf) is not None


@pytest.mark.parametrize(
    ("state", "final", "ok"),
    [
        ("running", False, False),
        ("dead_letter", False, False),
        ("completed", True, True),
        ("compensated", True, False),
        ("aborted", True, False),
    ],
)
def test_a_command_tells_how_it_ended(state: str, final: bool, ok: bool) -> None:
    """`ok` is completed only; raise_for_state raises for the other ends and for nothing else."""
    command = Command(id="c-1", type="T", state=state)
    assert (command.final, command.ok) == (final, ok)
    if final and not ok:
        with pytest.raises(CommandFailed, match=state):
            command.raise_for_state()
    else:
        assert command.raise_for_state() is command


def test_the_tree_answers_the_two_usual_questions() -> None:
    """Refused and Retryable part the codes; nothing is both."""
    for kind in by_code().values():
        assert not (issubclass(kind, Refused) and issubclass(kind, Retryable))
