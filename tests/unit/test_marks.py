"""What the view knows of a partition: from below, from the ownership that lives, and the hole between."""

from __future__ import annotations

import pytest

from coordinator.marks import Diverged, Marks, in_force

A, B, C = b"a" * 8, b"b" * 8, b"c" * 8


def owned(start: int, token: bytes, *epochs: tuple[int, bytes], upto: int, marks: Marks | None = None) -> Marks:
    """Marks after an ownership that began at ``start`` has passed these Epochs and stands at ``upto``."""
    marks = marks or Marks(A)
    marks.begin(start, token)
    for epoch in epochs:
        marks.saw(*epoch)
    marks.reached(upto, upto)
    return marks


def test_the_token_in_force_is_that_of_the_last_epoch_below() -> None:
    """An Epoch is in force behind its own offset; before the first there is none."""
    epochs = [(0, A), (7, B)]
    assert [in_force(epochs, offset) for offset in (0, 1, 7, 8, 99)] == [b"", A, A, B, B]


def test_a_replay_of_the_whole_log_knows_all_of_it() -> None:
    """It begins where the log does, so there is no hole, and the watermark goes with the fold."""
    marks = owned(0, b"", (0, A), (5, B), upto=9)
    assert (marks.watermark, marks.resume, marks.filled) == (9, 9, True)
    marks.reached(12, 10)
    assert (marks.watermark, marks.resume) == (12, 10)
    assert marks.epochs == [(0, A), (5, B)]


def test_behind_a_hole_nothing_joins() -> None:
    """What an ownership knows above a hole leaves the watermark where it was, and the tokens in the hole unknown."""
    marks = owned(50, B, (60, C), upto=70)
    assert (marks.watermark, marks.filled, marks.epochs) == (0, False, [])
    assert [marks.token_at(offset) for offset in (0, 1, 49, 50, 60, 61)] == [b"", None, None, B, B, C]


def test_a_filled_hole_joins_what_the_ownership_has_reached() -> None:
    """When the filler comes to where the ownership began, the watermark leaps to where the ownership is."""
    marks = owned(50, B, (60, C), upto=70)
    marks.fill([(0, A)], 20, 5)
    assert (marks.watermark, marks.resume, marks.filled) == (20, 5, False)
    assert marks.token_at(20) == A
    marks.fill([(30, B)], 50, 5)
    assert (marks.watermark, marks.resume, marks.filled) == (70, 70, True)
    assert marks.epochs == [(0, A), (30, B), (60, C)]


def test_the_next_ownership_opens_another_hole() -> None:
    """What was known stays; what other owners wrote meanwhile is to be filled."""
    marks = owned(0, b"", (0, A), upto=9)
    marks.begin(30, B)
    assert (marks.watermark, marks.filled) == (9, False)
    marks.reached(33, 31)
    assert marks.watermark == 9
    marks.fill([(9, B)], 30, 12)
    assert (marks.watermark, marks.resume) == (33, 31)


def test_an_ownership_that_begins_below_the_watermark_joins_when_it_has_passed_it() -> None:
    """Only then it is known that it reads the same history."""
    marks = owned(0, b"", (0, A), upto=9)
    marks.begin(4, A)
    assert marks.filled
    marks.reached(6, 6)
    assert marks.watermark == 9
    marks.saw(12, B)
    marks.reached(13, 11)
    assert (marks.watermark, marks.resume, marks.epochs) == (13, 11, [(0, A), (12, B)])


def test_another_token_where_the_ownership_begins_is_another_history() -> None:
    """The log was put back in time and has grown since."""
    marks = owned(0, b"", (0, A), upto=9)
    with pytest.raises(Diverged):
        marks.begin(4, B)


def test_another_token_at_the_watermark_is_another_history() -> None:
    """The log was cut at 6, and another owner began there; what was known of 6 to 9 never happened."""
    marks = owned(0, b"", (0, A), upto=9)
    marks.begin(4, A)
    marks.saw(6, B)
    marks.reached(8, 8)
    with pytest.raises(Diverged):
        marks.reached(10, 10)


def test_what_was_trimmed_is_passed_over() -> None:
    """Filling begins anew above a gap that nobody can fill any more; the token in force there is all that is kept."""
    marks = owned(50, C, upto=70, marks=Marks(A, 9, 3, [(0, A)]))
    marks.restart(40, B, 38)
    assert (marks.watermark, marks.resume, marks.filled) == (40, 38, False)
    assert [marks.token_at(offset) for offset in (40, 45)] == [B, None]
    marks.fill([(44, C)], 50, 50)
    assert (marks.watermark, marks.token_at(44), marks.token_at(45)) == (70, B, C)


def test_trimming_keeps_the_epoch_in_force() -> None:
    """Those below it judge nothing any more."""
    marks = owned(0, b"", (0, A), (5, B), (9, C), upto=20)
    marks.forget_below(9)
    assert marks.epochs == [(5, B), (9, C)]
    marks.forget_below(9)
    assert marks.epochs == [(5, B), (9, C)]
    marks.forget_below(10)
    assert marks.epochs == [(9, C)]
