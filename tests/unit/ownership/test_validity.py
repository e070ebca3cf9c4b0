"""Which records count."""

from __future__ import annotations

import msgspec
import pytest

from coordinator.errors import CorruptLog
from coordinator.model.damaged import Damaged
from coordinator.model.ids import CommandId
from coordinator.model.records import Epoch, Record, Timer
from coordinator.ownership.validity import Validity
from coordinator.wire.codec import read

A, B = b"a" * 8, b"b" * 8


def epoch(token: bytes) -> Record:
    return Epoch(1, token, 0, "instance", "address:1")


def record(token: bytes) -> Record:
    return Timer(1, token, 0, CommandId("c1"), "deadline")


def judged(validity: Validity, *records: Record) -> list[bool]:
    return [validity.admit(offset, each) for offset, each in enumerate(records)]


def test_records_count_under_the_last_epoch_only() -> None:
    """The last Epoch before a record decides; what the former owner still wrote behind it is void."""
    log = [epoch(A), record(A), epoch(B), record(A), record(B), record(A)]
    assert judged(Validity(), *log) == [True, True, True, False, True, False]


def test_nothing_counts_before_the_first_epoch() -> None:
    """A record without an Epoch before it was written by nobody in force."""
    assert judged(Validity(), record(A), epoch(A), record(A)) == [False, True, True]


def test_a_token_that_returns_would_count_again() -> None:
    """Why tokens are never used twice: a second Epoch with an old token revives what is late."""
    assert judged(Validity(), epoch(A), epoch(B), record(A), epoch(A), record(A)) == [True, True, False, True, True]


def test_a_reader_in_the_middle_goes_by_the_token_in_force() -> None:
    """Starting in the middle with the token in force there gives what starting at 0 gives."""
    log = [epoch(A), record(A), epoch(B), record(A), record(B), epoch(A[::-1]), record(B)]
    whole = Validity()
    everything = judged(whole, *log)
    running = Validity()
    for start, each in enumerate(log):
        later = Validity(start, running.token) if start else Validity()
        assert judged(later, *log[start:]) == everything[start:]
        assert later.token == whole.token
        running.admit(start, each)


def test_a_reader_in_the_middle_without_a_token_is_refused() -> None:
    """Guessing was shown to lose or to invent decisions."""
    with pytest.raises(CorruptLog, match="offset 7"):
        Validity(7).admit(7, record(A))


def test_a_reader_in_the_middle_may_begin_with_an_epoch() -> None:
    """An Epoch needs nothing before it."""
    assert judged(Validity(7), epoch(A), record(A), record(B)) == [True, True, False]


# ---------------------------------------------------------------- what cannot be read


def bad(*fields: object, offset: int = 5) -> Damaged:
    found = read(msgspec.msgpack.encode(fields), partition=0, offset=offset)
    assert isinstance(found, Damaged)
    return found


def noise(data: bytes = b"\xc1", offset: int = 5) -> Damaged:
    found = read(data, partition=0, offset=offset)
    assert isinstance(found, Damaged)
    return found


@pytest.mark.parametrize(
    "damaged",
    [
        pytest.param(noise(), id="noise"),
        pytest.param(noise(b""), id="nothing"),
        pytest.param(bad(0, 1), id="an Epoch without a token"),
        pytest.param(bad(2, 1, "text"), id="a text for a token"),
        pytest.param(bad(2, 1, A, 7, "c1"), id="a command's"),
        pytest.param(bad(2, 0, A, 7, "c1"), id="a command's, of a schema that never was"),
        pytest.param(bad(8, 1, A, 7), id="a Snapshot"),
    ],
)
def test_what_may_be_passed_is_told(damaged: Damaged) -> None:
    """Bytes without a token were no owner's; a command's record hurts that command only; a Snapshot decides nothing."""
    validity = Validity()
    validity.admit(0, epoch(A))
    assert validity.admit(5, damaged)


@pytest.mark.parametrize(
    ("damaged", "says"),
    [
        pytest.param(bad(0, 1, B, "then"), "whose records count", id="an Epoch"),
        pytest.param(bad(0, 2, B, {}), "schema version 2", id="an Epoch of a newer version"),
        pytest.param(bad(2, 1, A), "must not be passed over", id="a command's, but whose"),
        pytest.param(bad(2, 1, A, 7, "a b"), "must not be passed over", id="a command's, but of an impossible id"),
        pytest.param(bad(2, 2, A, 7, "c1"), "schema version 2", id="a newer schema"),
        pytest.param(bad(8, 2, A, 7), "schema version 2", id="a Snapshot of a newer version"),
        pytest.param(bad(10, 1, A, 7), "Registered", id="a definition"),
        pytest.param(bad(77, 1, A, 7, "c1"), "kind 77", id="an unknown kind"),
        pytest.param(noise(b"\xff" + A + b"\xff"), "the token in force is in it", id="noise with the token in force"),
    ],
)
def test_what_must_not_be_passed_stops(damaged: Damaged, says: str) -> None:
    """Its owner wrote it, and it may have decided anything for anybody; or it decides what counts."""
    validity = Validity()
    validity.admit(0, epoch(A))
    with pytest.raises(CorruptLog, match=rf"partition 0, offset 5\).*{says}") as stopped:
        validity.admit(5, damaged)
    assert stopped.value.damaged == damaged


@pytest.mark.parametrize("kind", [1, 8, 9, 10, 77])
@pytest.mark.parametrize("schema", [1, 2])
def test_under_another_token_it_is_void_whatever_it_is(kind: int, schema: int) -> None:
    """A fenced owner of a newer version wrote it; only kind 0 begins an epoch, in every version."""
    validity = Validity()
    assert judged(validity, epoch(B), epoch(A)) == [True, True]
    assert not validity.admit(5, bad(kind, schema, B, "whatever"))


def test_two_records_of_a_token_that_no_epoch_had_tell_a_lost_epoch() -> None:
    """One may be a stranger's; an owner's would all be void without a word.  The next Epoch ends the suspicion."""
    validity = Validity()
    validity.admit(0, epoch(A))
    validity.admit(1, noise(offset=1))
    assert not validity.admit(2, record(B))
    assert not validity.admit(2, record(B))  # read once more
    assert validity.admit(3, record(A))
    with pytest.raises(CorruptLog, match=r"offset 1\).*offsets 2 and 4"):
        validity.admit(4, record(B))
    validity.admit(5, epoch(A))
    assert not validity.admit(6, record(B))
    assert not validity.admit(7, record(B))


def test_without_noise_strangers_are_only_void() -> None:
    """There is nothing that could have been their Epoch."""
    assert judged(Validity(), epoch(A), record(B), record(B), record(A)) == [True, False, False, True]


def test_where_nothing_tells_the_token_noise_is_still_nobodys() -> None:
    """But a damaged record with a token cannot be judged there, as an intact one cannot."""
    validity = Validity(5)
    assert validity.admit(5, noise())
    with pytest.raises(CorruptLog, match="which epoch was in force"):
        validity.admit(6, bad(2, 1, A, 7, "c1", offset=6))


def test_a_late_record_of_an_epoch_below_the_start_is_void_and_no_more() -> None:
    """A reader that begins with a Snapshot knows the first owner's token from it: behind noise, that owner's late
    records do not make it doubt that the noise was nobody's."""
    late = [noise(), record(b"first"), record(b"first")]
    with pytest.raises(CorruptLog):
        judged(Validity(5, b"present"), *late)
    reader = Validity(5, b"present")
    reader.knew([b"first"])
    assert judged(reader, *late) == [True, False, False]
