"""Durations as people write them."""

from __future__ import annotations

import pytest

from coordinator.model.durations import format_duration, parse_duration


@pytest.mark.parametrize(
    ("text", "millis"),
    [
        ("0ms", 0),
        ("200ms", 200),
        ("1.5s", 1_500),
        ("0.5ms", 0),
        ("2m", 120_000),
        ("24h", 86_400_000),
        ("30d", 2_592_000_000),
        ("36500d", 3_153_600_000_000),
    ],
)
def test_a_number_and_a_unit(text: str, millis: int) -> None:
    """Whole milliseconds come out."""
    assert parse_duration(text) == millis


@pytest.mark.parametrize(
    "text",
    [
        "",
        "5",
        "5 s",
        " 5s",
        "5s\n",
        "-5s",
        "+5s",
        "5S",
        "1e3s",
        ".5s",
        "5.s",
        "1s500ms",
        "5w",
        "∞s",
        "٣s",
        5,
        None,
        1.5,
    ],
)
def test_anything_else_is_refused_with_what_is_allowed(text: object) -> None:
    """The sentence says how a duration is written."""
    with pytest.raises(ValueError, match="a duration is a number and a unit"):
        parse_duration(text)


def test_more_than_a_hundred_years_is_refused() -> None:
    """A slip of the units should not look like patience."""
    with pytest.raises(ValueError, match="longer than 100 years"):
        parse_duration("36501d")


@pytest.mark.parametrize(
    ("millis", "text"),
    [(0, "0ms"), (1, "1ms"), (1_500, "1500ms"), (2_000, "2s"), (60_000, "1m"), (3_600_000, "1h"), (172_800_000, "2d")],
)
def test_the_shortest_exact_spelling_and_back(millis: int, text: str) -> None:
    """What is printed can be read again."""
    assert format_duration(millis) == text
    assert parse_duration(text) == millis
