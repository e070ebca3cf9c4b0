"""Identifiers and positions, and the hash that places a command."""

from __future__ import annotations

import pytest

from coordinator.errors import InvalidPayload
from coordinator.model.ids import (
    BUCKETS,
    ID_LENGTH_MAX,
    bucket_of,
    command_id,
    new_command_id,
    parse_position,
    partition_of,
    position,
)


@pytest.mark.parametrize("text", ["o", "order-123", "Zahlung-ä", "a:b#c?d%e", "😀", "x" * ID_LENGTH_MAX])
def test_an_id_that_a_client_may_choose(text: str) -> None:
    """Any text that fits into a path segment and a log line."""
    assert command_id(text) == text


@pytest.mark.parametrize(
    "text",
    ["", ".", "..", "a b", "a/b", "\x00", "a\n", "\x7f", "\x85", "\u2028", "\ud800", "x" * (ID_LENGTH_MAX + 1)],
)
def test_an_id_that_is_refused_with_its_path(text: str) -> None:
    """No spaces, control characters or slashes, and not too long."""
    with pytest.raises(InvalidPayload, match="1 to 200 characters") as caught:
        command_id(text)
    assert caught.value.extra["faults"][0]["path"] == "$.id"


def test_our_own_ids_are_ids() -> None:
    """And no two are alike."""
    ids = {new_command_id() for _ in range(100)}
    assert len(ids) == 100
    assert all(command_id(id) == id for id in ids)


def test_the_hash_that_places_a_command_never_changes() -> None:
    """These are in logs: another value would make another partition look for the command."""
    assert [bucket_of(id) for id in ("order-1", "order-2", "ä")] == [3203, 3486, 91]


def test_ids_spread_over_partitions() -> None:
    """Every partition gets its share, and one partition gets all."""
    counts = [0] * 6
    for n in range(1_200):
        counts[partition_of(f"order-{n}", 6)] += 1
    assert min(counts) > 140
    assert {partition_of(f"order-{n}", 1) for n in range(50)} == {0}
    assert all(0 <= bucket_of(f"order-{n}") < BUCKETS for n in range(50))


def test_a_position_is_read_as_it_is_written() -> None:
    """``partition:offset``."""
    assert position(3, 1841) == "3:1841"
    assert parse_position("3:1841") == (3, 1841)


@pytest.mark.parametrize(
    "text", ["", "3", "3:", ":1", "a:b", "-1:2", "1:-2", "1:2:3", " 1:2", "1:2\n", "9" * 30 + ":1"]
)
def test_what_is_no_position_is_refused(text: str) -> None:
    """With an example of one."""
    with pytest.raises(InvalidPayload, match="for example 3:1841"):
        parse_position(text)
