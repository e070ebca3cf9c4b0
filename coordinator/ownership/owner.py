"""One ownership of one partition, from its Epoch record to its end, as a state machine without I/O.

    ACQUIRING ──own Epoch read──▶ OWNING ──foreign Epoch, doubt, disorder──▶ DOWN
        └───────────────── abandoned ──────────────────────────────────────────▲

*Acquiring.*  A fresh token, an Epoch record with it is appended, and the log is folded up to the place where that
record is found (never by its ack, which may be lost).  Its offset is the epoch's number.

*Owning.*  Batches are appended one after the other in one session, and settled strictly in that order.  ``verified``
is the first offset not yet known to be free of foreign Epochs.  A batch may be acted on only when ``verified`` passes
it:

| the head batch's answer     | what follows                                                                           |
| --------------------------- | -------------------------------------------------------------------------------------- |
| none yet                    | wait, whatever later batches were answered: no ack stands for another batch            |
| ack at b = verified         | act; ``verified`` passes the batch                                                     |
| ack at b > verified         | read [verified, b]: a foreign Epoch → down; only stale records → act                   |
| ack at b < verified         | down: another's place                                                                  |
| unknown (or an offset < 0)  | read [verified, end): found before any foreign Epoch → act; a foreign Epoch → down;    |
|                             | not found → down.  Absence is final only behind the next Epoch, so never send it again |
| refused                     | down: what the batch said is not so                                                    |

A foreign Epoch is one with another token, whoever wrote it: an own older attempt's, landing late, fences as any other.
 Of the records in between only strangers' (stale) ones are passed over; one of our own that is not the batch sought
 for means
that the session's order broke, and then the log's history is not the one that we would act on.

*Down* is for ever.  All that was not settled is dropped; a new ownership with a new token must read the log again.

The machine asks for what it needs with a `Move` (`settle`) and is told what came of it; who drives it does the I/O
(`log.owned`).  The rules are model checked, and each shortcut past one of them is shown to lose something: docs/spec.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from enum import Enum
from typing import Final

from msgspec import Struct

from coordinator.model.damaged import Damaged
from coordinator.model.records import Epoch, Record
from coordinator.ownership.validity import Validity


class Phase(Enum):
    ACQUIRING = "acquiring"
    OWNING = "owning"
    DOWN = "down"


# ---------------------------------------------------------------- what the machine asks for


class Wait(Struct, frozen=True):
    """Nothing to do until another answer comes in."""


class Act(Struct, frozen=True):
    """The batch is in the log at ``base``, under this epoch: act on it."""

    ticket: int
    base: int


class Read(Struct, frozen=True):
    """Read the log from ``start`` and hand in what is there (`observe`): through offset ``through``, or, where that is
    None, to an end taken after this Move was made; then tell that the end was reached (`end_reached`).
    """

    start: int
    through: int | None


class Down(Struct, frozen=True):
    """The ownership is over; ``by_*`` name who fenced it, where somebody did."""

    reason: str
    by_instance: str | None = None
    by_address: str | None = None


Move = Wait | Act | Read | Down

_WAIT: Final = Wait()


class Seen(Struct, frozen=True):
    """One record of the log as `observe` needs it; ``epoch`` is set if it is an Epoch."""

    offset: int
    token: bytes
    data: bytes
    epoch: Epoch | None = None


class _Answer(Enum):
    PENDING = "pending"
    ACKED = "acked"
    UNKNOWN = "unknown"
    REFUSED = "refused"


class _Batch:
    """A batch sent and not settled; ``found`` of its records have been seen in the log from ``base`` on."""

    __slots__ = ("answer", "base", "found", "reason", "records", "ticket")

    def __init__(self, ticket: int, records: Sequence[bytes]) -> None:
        self.ticket = ticket
        self.records = records
        self.answer = _Answer.PENDING
        self.base = -1
        self.found = 0
        self.reason = ""


# ---------------------------------------------------------------- the machine


class Owner:
    """One attempt to own one partition (see the module)."""

    def __init__(self, token: bytes, start: int = 0, token_in_force: bytes | None = None) -> None:
        self.token = token
        self.phase = Phase.ACQUIRING
        self.epoch = -1  # offset of the own Epoch record, once found
        self.verified = -1  # first offset not known to be free of foreign Epochs, once owning
        self.down: Down | None = None
        self._validity = Validity(start, token_in_force)
        self._batches: deque[_Batch] = deque()
        self._next_ticket = 0

    # ------------------------------------------------------------ acquiring

    def knew(self, tokens: Iterable[bytes]) -> None:
        """See `Validity.knew`."""
        self._validity.knew(tokens)

    def fold(self, records: Iterable[tuple[int, Record | Damaged]]) -> list[tuple[int, Record | Damaged]]:
        """The valid ones of these, up to and with the own Epoch, at which the phase becomes OWNING.

        Among them is what cannot be read and must be listed (`Validity`).

        To be called with every record from the start on, in log order.  What follows the own Epoch is left for
        settlement to judge: a foreign Epoch there means "already fenced", which the first append finds out.
        """
        assert self.phase is Phase.ACQUIRING
        admit = self._validity.admit
        valid = []
        for offset, record in records:
            if admit(offset, record):
                valid.append((offset, record))
                if isinstance(record, Epoch) and record.token == self.token:
                    self.epoch = offset
                    self.verified = offset + 1
                    self.phase = Phase.OWNING
                    break
        return valid

    def judge(self, offset: int, record: Record | Damaged) -> bool:
        """Whether a record behind the own Epoch counts, by the same rules; to be called before `observe`.

        Raises CorruptLog, as the next reader would.
        """
        return self._validity.admit(offset, record)

    # ------------------------------------------------------------ appending

    @property
    def in_flight(self) -> int:
        """Batches sent and not settled."""
        return len(self._batches)

    def sent(self, records: Sequence[bytes]) -> int:
        """A batch goes out now; returns its ticket.  Order of calls is order of appends."""
        assert self.phase is Phase.OWNING
        assert records
        ticket = self._next_ticket
        self._next_ticket += 1
        self._batches.append(_Batch(ticket, records))
        return ticket

    def acked(self, ticket: int, base: int) -> None:
        """The log confirmed the batch at ``base``; below 0 it confirmed it without knowing where: unknown."""
        if base < 0:
            self.unknown(ticket)
        elif batch := self._pending(ticket):
            batch.answer = _Answer.ACKED
            batch.base = base

    def unknown(self, ticket: int) -> None:
        """The batch was neither confirmed nor refused: it may be in the log, or still land."""
        if batch := self._pending(ticket):
            batch.answer = _Answer.UNKNOWN

    def refused(self, ticket: int, reason: str) -> None:
        """The batch is certainly not in the log and never will be."""
        if batch := self._pending(ticket):
            batch.answer = _Answer.REFUSED
            batch.reason = reason

    def _pending(self, ticket: int) -> _Batch | None:
        for batch in self._batches:
            if batch.ticket == ticket:
                assert batch.answer is _Answer.PENDING
                return batch
        assert self.phase is Phase.DOWN  # stepping down drops what was in flight; its answers may still come
        return None

    # ------------------------------------------------------------ settling

    def settle(self) -> Move:
        """The next thing to do; to be called after each answer and after each read, until it says Wait or Down."""
        if self.down is not None:
            return self.down
        if not self._batches:
            return _WAIT
        head = self._batches[0]
        if head.answer is _Answer.ACKED:
            if head.base == self.verified:
                return self._act(head)
            if head.base > self.verified:
                return Read(self.verified, head.base)
            return self.step_down(
                f"the log confirmed a batch at offset {head.base}, below {self.verified} where its place would begin"
            )
        if head.answer is _Answer.PENDING:
            return _WAIT
        if head.answer is _Answer.UNKNOWN:
            return Read(self.verified, None)
        return self.step_down(f"the log refused an append: {head.reason}")

    def _act(self, head: _Batch) -> Act:
        self._batches.popleft()
        self.verified = head.base + len(head.records)
        return Act(head.ticket, head.base)

    def observe(self, seen: Seen) -> bool:
        """One record read from ``verified`` on, in log order; False when reading on would tell nothing more now."""
        if self.down is not None:
            return False
        if seen.offset < self.verified:
            return True  # judged before
        if seen.token != self.token:
            if seen.epoch is not None:
                self.step_down("another epoch began", seen.epoch.instance, seen.epoch.address)
                return False
            return self._pass_stale(seen.offset)
        if seen.epoch is not None:
            return self._pass_stale(seen.offset)  # a second copy of the own Epoch changes nothing
        return self._observe_own(seen)

    def _pass_stale(self, offset: int) -> bool:
        head = self._batches[0] if self._batches else None
        if head is not None and head.found:
            self.step_down("a batch lies torn in the log")
            return False
        self.verified = offset + 1
        return True

    def _observe_own(self, seen: Seen) -> bool:
        """A record under the own token: the head batch's, or the order of the session broke."""
        head = self._batches[0] if self._batches else None
        if head is None:
            self.step_down(f"the log has a record of this epoch at offset {seen.offset} that was never sent")
            return False
        if head.answer is _Answer.PENDING:
            return False  # in flight: its answer will tell
        if head.answer is _Answer.ACKED:
            if seen.offset == head.base and seen.data == head.records[0]:
                self.verified = head.base
            else:
                self.step_down(
                    f"the log has another record of this epoch at offset {seen.offset} before the batch's place"
                )
            return False
        if head.answer is _Answer.UNKNOWN and seen.data == head.records[head.found]:
            if not head.found:
                head.base = seen.offset
            head.found += 1
            if head.found < len(head.records):
                return True
            head.answer = _Answer.ACKED
            self.verified = head.base
            return False
        self.step_down(f"the log has another batch of this epoch at offset {seen.offset} in place of the one in doubt")
        return False

    def end_reached(self) -> None:
        """The read that `settle` asked for has come to the log's end.

        A batch in doubt that was not found steps the ownership down.  A gap whose far side the reader cannot see yet (a
        replica behind) is asked for again by `settle`.
        """
        if self.down is None and self._batches and self._batches[0].answer is _Answer.UNKNOWN:
            self.step_down("an append was neither confirmed nor found in the log")

    # ------------------------------------------------------------ the end

    def step_down(self, reason: str, by_instance: str | None = None, by_address: str | None = None) -> Down:
        """Ends the ownership, from any phase; the first reason stays."""
        if self.down is None:
            self.down = Down(reason, by_instance, by_address)
            self.phase = Phase.DOWN
            self._batches.clear()
        return self.down
